"""`snntorch.RLeaky` and `snntorch.RSynaptic`, fused."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..annotations import SpikeGrad, StateQuant, Values
from ..functional import run
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

    def _feeds_back_one_to_one(self) -> bool:
        """Whether each neuron hears its own spike times V, and nobody put anything else in `recurrent`'s place."""
        return not self.all_to_all and is_plain(self.recurrent, ONE_TO_ONE)

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

    def _learnt(self):
        own = [name for name in super()._learnt() if name != "V"]
        return [*own, *(["recurrent"] if any(p.requires_grad for p in self.recurrent.parameters()) else [])]

    def _charging(self, input_):
        return self.given, (input_, self.recurrent(self.spk)), self._parameters_of_given()

    def _parameters_of_given(self) -> tuple[Tensor, ...]:
        return self._parameters_of_call()[: len(self.given.params)]

    def _fits_one_operator(self):
        return self._feeds_back_one_to_one() and super()._fits_one_operator()

    def _step_alone(self, input_, states):
        if self._feeds_back_one_to_one():
            return super()._step_alone(input_, states)
        by_name = self._states_before(input_, states, unroll=False)
        spk, last, _ = self._run_step(input_, by_name["spk"], tuple(by_name[name] for name in self.given.states))
        return spk, {**dict(zip(self.given.states, last, strict=True)), "spk": spk}

    def _may_wait(self):
        return is_plain(self.recurrent, (nn.Linear, nn.Conv2d, *ONE_TO_ONE))

    def _sums_otherwise_in_sequence(self):
        return not self._feeds_back_one_to_one()

    def _sequence(self, input_, states, want_seqs):
        if self._feeds_back_one_to_one():
            return super()._sequence(input_, states, want_seqs)
        by_name = self._states_before(input_, states, unroll=True)
        unroll = self._unroll_at_once if is_plain(self.recurrent, (nn.Linear,)) else self._unroll_by_step
        spk, last, seqs = unroll(input_, by_name, want_seqs)
        seqs = dict(zip(self.given.states, seqs, strict=True)) if want_seqs else {}
        if not len(spk):
            return spk, {}, seqs
        return spk, {"spk": spk[-1].clone(), **dict(zip(self.given.states, last, strict=True))}, seqs

    def _unroll_at_once(self, input_, by_name, want_seqs):
        return run(
            self.given,
            input_,
            tuple(by_name[name] for name in self.given.states),
            self._parameters_of_given(),
            self._options(unroll=True),
            want_seqs,
            self.state_quant,
            self.inhibition,
            ops.Recurrence(self.recurrent.weight, self.recurrent.bias, by_name["spk"]),
        )

    def _unroll_by_step(self, input_, by_name, want_seqs):
        spk, states = by_name["spk"], tuple(by_name[name] for name in self.given.states)
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
            self.given,
            input_,
            states,
            self._parameters_of_given(),
            self._options(unroll=False),
            state_quant=self.state_quant,
            inhibition=self.inhibition,
            rec=self.recurrent(torch.zeros_like(input_) if spk is None else spk),
        )


# After `convert` a layer has snnTorch's, from the module of its neuron.
ONE_TO_ONE = (
    RecurrentOneToOne,
    *(
        sys.modules[theirs.__module__].RecurrentOneToOne
        for name in ("RLeaky", "RSynaptic")
        for theirs in snntorch_class(name)
    ),
)


def is_plain(module, kinds: tuple) -> bool:
    """A module of these kinds that does what it is made for and nothing else: no hooks, no parametrised weights."""
    if type(module) not in kinds or "forward" in vars(module):
        return False
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return not any(hooks)


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

    Source: J. K. Eshraghian et al., "Training Spiking Neural Networks Using Lessons From Deep Learning", Proceedings
    of the IEEE 111 (2023), and snnTorch 1.0.0.

    Examples:
        >>> spk, mem = snn.RLeaky(beta=0.9, linear_features=20).unroll(torch.rand(100, 8, 20))
    """

    given = RLEAKY
    one_to_one = RLEAKY_ONE_TO_ONE
    state_names = ("spk", "mem")
    beta: Tensor
    spk: Tensor
    mem: Tensor

    def __init__(
        self,
        beta: Values,
        V: Values = 1.0,
        all_to_all: bool = True,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: int | tuple[int, int] | None = None,
        threshold: Values = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        learn_recurrent: bool = True,
        reset_mechanism: str = "subtract",
        state_quant: StateQuant = False,
        output: bool = False,
        reset_delay: bool = True,
    ) -> None:
        super().__init__(
            *(threshold, spike_grad, surrogate_disable, init_hidden, inhibition, learn_threshold),
            *(reset_mechanism, state_quant, output),
        )
        self._add_parameter("beta", beta, learn_beta)
        self._add_recurrence(V, all_to_all, linear_features, conv2d_channels, kernel_size, learn_recurrent)
        self.reset_delay = reset_delay
        self._add_states()

    def forward(self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None) -> Any:
        """One time step, as `Leaky.forward`: (spikes, membrane), both [B, ...]; spk are the last spikes."""
        return self._step(input_, spk, mem)

    @classmethod
    def reset_hidden(cls) -> None:
        """Resets every living layer of this class by `init_rleaky`, as snnTorch does."""
        for layer in cls._living():
            layer.spk, layer.mem = layer.init_rleaky()

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

    Source: J. K. Eshraghian et al., "Training Spiking Neural Networks Using Lessons From Deep Learning", Proceedings
    of the IEEE 111 (2023), and snnTorch 1.0.0.

    Examples:
        >>> spk, syn, mem = snn.RSynaptic(alpha=0.8, beta=0.9, V=0.5, all_to_all=False).unroll(torch.rand(100, 8, 20))
    """

    given = RSYNAPTIC
    one_to_one = RSYNAPTIC_ONE_TO_ONE
    state_names = ("spk", "syn", "mem")
    alpha: Tensor
    beta: Tensor
    spk: Tensor
    syn: Tensor
    mem: Tensor

    def __init__(
        self,
        alpha: Values,
        beta: Values,
        V: Values = 1.0,
        all_to_all: bool = True,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: int | tuple[int, int] | None = None,
        threshold: Values = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_alpha: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        learn_recurrent: bool = True,
        reset_mechanism: str = "subtract",
        state_quant: StateQuant = False,
        output: bool = False,
        reset_delay: bool = True,
    ) -> None:
        super().__init__(
            *(threshold, spike_grad, surrogate_disable, init_hidden, inhibition, learn_threshold),
            *(reset_mechanism, state_quant, output),
        )
        self._add_parameter("beta", beta, learn_beta)
        self._add_recurrence(V, all_to_all, linear_features, conv2d_channels, kernel_size, learn_recurrent)
        self._add_parameter("alpha", alpha, learn_alpha)
        self.reset_delay = reset_delay
        self._add_states()

    def forward(
        self, input_: Tensor, spk: Tensor | None = None, syn: Tensor | None = None, mem: Tensor | None = None
    ) -> Any:
        """One time step, as `Leaky.forward`: (spikes, synaptic current, membrane), all [B, ...]."""
        return self._step(input_, spk, syn, mem)

    def set_through_list(self, name: str, value: Any) -> None:
        """As snnTorch's `reset_hidden` does, which leaves out the spikes: with the membrane they become zeros too."""
        super().set_through_list(name, value)
        if name == "mem":
            self.spk = torch.zeros_like(self.spk, requires_grad=False)

    def init_rsynaptic(self) -> tuple[Tensor, Tensor, Tensor]:
        """Deprecated in snnTorch for `reset_mem`."""
        return self.reset_mem()
