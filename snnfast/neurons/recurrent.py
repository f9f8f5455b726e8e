"""`snntorch.RLeaky` and `snntorch.RSynaptic`, fused."""

import torch
from torch import Tensor, nn

from .. import ops
from ..functional import run, run_dense
from ..reference import RLEAKY, RLEAKY_ONE_TO_ONE, RSYNAPTIC, RSYNAPTIC_ONE_TO_ONE, Model
from .base import SpikingNeuron, snntorch_class


class RecurrentOneToOne(nn.Module):
    """What snnTorch puts between a layer's spikes and its current: spikes [B, ...] times V."""

    def __init__(self, V: Tensor):
        super().__init__()
        if isinstance(V, nn.Parameter):
            self.V = V
        else:
            self.register_buffer("V", V, persistent=False)

    def forward(self, spk: Tensor) -> Tensor:
        return spk * self.V


class RecurrentNeuron(SpikingNeuron):
    """Base of the neurons whose spikes come back to the layer: through weights, or each to itself.

    Subclasses name the model that takes the recurrent current and the one that makes it itself, of V.
    """

    given: Model
    one_to_one: Model

    @property
    def model(self) -> Model:
        return self.given if self.all_to_all else self.one_to_one

    def _add_recurrence(self, V, all_to_all, linear_features, conv2d_channels, kernel_size, learn_recurrent):
        name = type(self).__name__
        if all_to_all and bool(linear_features) == bool(conv2d_channels and kernel_size):
            raise TypeError(
                f"{name} with all_to_all=True must be given either linear_features or both of conv2d_channels and "
                f"kernel_size, got {linear_features}, {conv2d_channels} and {kernel_size}"
            )
        if not all_to_all and (linear_features or conv2d_channels or kernel_size):
            raise TypeError(
                f"{name} with all_to_all=False takes no linear_features, conv2d_channels or kernel_size, but V"
            )
        self.all_to_all = all_to_all
        self.learn_recurrent = learn_recurrent
        self.linear_features = linear_features
        self.conv2d_channels = conv2d_channels
        self.kernel_size = kernel_size
        if not all_to_all:
            self._add_parameter("V", V, learn_recurrent)
            self.recurrent = RecurrentOneToOne(self.V)
        elif linear_features:
            self.recurrent = nn.Linear(linear_features, linear_features)
        else:
            sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
            padding = tuple(size // 2 for size in sizes)
            self.recurrent = nn.Conv2d(conv2d_channels, conv2d_channels, kernel_size, padding=padding)
        if all_to_all and not learn_recurrent:
            self.recurrent.requires_grad_(False)

    def _step(self, input_: Tensor, *states: Tensor | None):
        if not self.all_to_all:
            return super()._step(input_, *states)
        self._refuse_states(states)
        by_name = self._states_before(input_, states, unroll=False)
        spk, last, _ = self._run_step(input_, by_name["spk"], tuple(by_name[name] for name in self.model.states))
        for name, state in zip((*self.model.states, "spk"), (*last, spk), strict=True):
            self._keep(name, state)
        return (spk, *(getattr(self, name) for name in self._returned())) if self._returns_states() else spk

    def _unroll(self, input_, states, want_seqs):
        if not self.all_to_all:
            return super()._unroll(input_, states, want_seqs)
        self._refuse_states(states)
        by_name = self._states_before(input_, states, unroll=True)
        unroll = self._unroll_at_once if _is_plain_linear(self.recurrent) else self._unroll_by_step
        spk, last, seqs = unroll(input_, by_name, want_seqs)
        if self.init_hidden and len(spk):
            for name, state in zip(("spk", *self.model.states), (spk[-1].clone(), *last), strict=True):
                setattr(self, name, state)
        if not want_seqs:
            return spk
        seqs = dict(zip(self.model.states, seqs, strict=True))
        return spk, *(seqs[name] for name in self._returned())

    def _unroll_at_once(self, input_, by_name, want_seqs):
        return run_dense(
            self.model,
            input_,
            by_name["spk"],
            tuple(by_name[name] for name in self.model.states),
            self._parameters_of_call(),
            ops.Recurrence(self.recurrent.weight, self.recurrent.bias),
            self._options(unroll=True),
            want_seqs,
            self.state_quant,
            self.inhibition,
        )

    def _unroll_by_step(self, input_, by_name, want_seqs):
        spk, states = by_name["spk"], tuple(by_name[name] for name in self.model.states)
        spikes, history = [], []
        for current in input_.unbind(0):
            spk, states, _ = self._run_step(current, spk, states)
            spikes.append(spk)
            history.append(states)
        if not spikes:
            return input_, states, tuple(input_ for _ in states)
        seqs = tuple(torch.stack(column) for column in zip(*history, strict=True)) if want_seqs else None
        return torch.stack(spikes), states, seqs

    def _run_step(self, input_, spk, states):
        return run(
            self.model,
            input_,
            states,
            self._parameters_of_call(),
            self._options(unroll=False),
            state_quant=self.state_quant,
            inhibition=self.inhibition,
            rec=self.recurrent(torch.zeros_like(input_) if spk is None else spk),
        )


def _is_plain_linear(module: nn.Module) -> bool:
    """A linear layer that does its product and nothing else: no hooks, no pruned or parametrised weights."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) is nn.Linear and not hooked and "forward" not in vars(module)


class RLeaky(RecurrentNeuron, *snntorch_class("RLeaky")):
    """Recurrent leaky neurons with the arguments, states and numbers of `snntorch.RLeaky` 1.0.0.

    `csrc/neuron/rleaky.h`, `csrc/neuron/recurrence.h` and `snnfast/reference/` state the equations. The layer's last
    spikes come back as a current: through `recurrent`, an `nn.Linear` or `nn.Conv2d`, or each times V.

    Args:
        beta: as in `Leaky`.
        V: weight of a neuron's own spike with all_to_all=False; broadcasts as beta.
        all_to_all: let every neuron hear every other, or only itself.
        linear_features: number of neurons of a layer [B, N] with all_to_all=True; `recurrent` is an `nn.Linear`.
        conv2d_channels, kernel_size: channels of a layer [B, C, H, W] with all_to_all=True, and the kernel with which
            they are heard; `recurrent` is an `nn.Conv2d`.
        learn_recurrent: make the recurrent weights parameters that are trained. Default True.

    The other arguments, shapes, dtypes and errors are those of `Leaky`.

    Raises:
        TypeError: sizes that do not go with all_to_all.
    """

    given = RLEAKY
    one_to_one = RLEAKY_ONE_TO_ONE
    state_names = ("spk", "mem")

    def __init__(
        self,
        beta,
        V=1.0,
        all_to_all=True,
        linear_features=None,
        conv2d_channels=None,
        kernel_size=None,
        threshold=1.0,
        spike_grad=None,
        surrogate_disable=False,
        init_hidden=False,
        inhibition=False,
        learn_beta=False,
        learn_threshold=False,
        learn_recurrent=True,
        reset_mechanism="subtract",
        state_quant=False,
        output=False,
        reset_delay=True,
    ):
        super().__init__(
            threshold,
            spike_grad,
            surrogate_disable,
            init_hidden,
            inhibition,
            learn_threshold,
            reset_mechanism,
            state_quant,
            output,
        )
        self._add_parameter("beta", beta, learn_beta)
        self._add_recurrence(V, all_to_all, linear_features, conv2d_channels, kernel_size, learn_recurrent)
        self.reset_delay = reset_delay

    def forward(self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None):
        """One time step, as `Leaky.forward`: (spikes, membrane), both [B, ...]; spk are the last spikes."""
        return self._step(input_, spk, mem)

    def init_rleaky(self) -> tuple[Tensor, Tensor]:
        """Deprecated in snnTorch for `reset_mem`."""
        return self.reset_mem()


class RSynaptic(RecurrentNeuron, *snntorch_class("RSynaptic")):
    """Recurrent second-order neurons with the arguments, states and numbers of `snntorch.RSynaptic` 1.0.0.

    `csrc/neuron/synaptic.h`, `csrc/neuron/recurrence.h` and `snnfast/reference/` state the equations. reset_delay=False
    resets in the same step, as snnTorch documents it (1.0.0 fails or ignores it), and resetting or detaching hidden
    states includes the spikes.

    Args:
        alpha, beta: as in `Synaptic`.

    The other arguments, shapes, dtypes and errors are those of `RLeaky`.
    """

    given = RSYNAPTIC
    one_to_one = RSYNAPTIC_ONE_TO_ONE
    state_names = ("spk", "syn", "mem")

    def __init__(
        self,
        alpha,
        beta,
        V=1.0,
        all_to_all=True,
        linear_features=None,
        conv2d_channels=None,
        kernel_size=None,
        threshold=1.0,
        spike_grad=None,
        surrogate_disable=False,
        init_hidden=False,
        inhibition=False,
        learn_alpha=False,
        learn_beta=False,
        learn_threshold=False,
        learn_recurrent=True,
        reset_mechanism="subtract",
        state_quant=False,
        output=False,
        reset_delay=True,
    ):
        super().__init__(
            threshold,
            spike_grad,
            surrogate_disable,
            init_hidden,
            inhibition,
            learn_threshold,
            reset_mechanism,
            state_quant,
            output,
        )
        self._add_parameter("beta", beta, learn_beta)
        self._add_recurrence(V, all_to_all, linear_features, conv2d_channels, kernel_size, learn_recurrent)
        self._add_parameter("alpha", alpha, learn_alpha)
        self.reset_delay = reset_delay

    def forward(self, input_: Tensor, spk: Tensor | None = None, syn: Tensor | None = None, mem: Tensor | None = None):
        """One time step, as `Leaky.forward`: (spikes, synaptic current, membrane), all [B, ...]."""
        return self._step(input_, spk, syn, mem)

    def init_rsynaptic(self) -> tuple[Tensor, Tensor, Tensor]:
        """Deprecated in snnTorch for `reset_mem`."""
        return self.reset_mem()
