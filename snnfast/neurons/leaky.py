"""`snntorch.Leaky`, fused."""

import torch
from torch import Tensor

from .. import ops
from ..functional import fits_one_operator, run_leaky
from ..ops import LeakyOptions
from .base import SpikingNeuron

try:
    from snntorch import Leaky as _SnntorchLeaky
except ImportError:
    _SnntorchLeaky = None


class Leaky(SpikingNeuron, *([_SnntorchLeaky] if _SnntorchLeaky else [])):
    """Leaky integrate-and-fire neurons with the arguments, states and numbers of `snntorch.Leaky` 1.0.0.

    `csrc/neuron/leaky.h` and `snnfast/reference.py` state the equations.

    Args:
        beta: decay of the membrane per step, clamped to [0, 1]. A number, or a tensor (or array) that broadcasts over
            the neuron dimensions, such as (N,) for [B, N] or (C, 1, 1) for [B, C, H, W].
        threshold: a neuron fires where its membrane exceeds it. Default 1; broadcasts as beta.
        spike_grad: surrogate gradient: one of `snnfast.surrogate` or `snntorch.surrogate`, or any callable from
            `mem - threshold` to spikes. Default atan(alpha=2).
        surrogate_disable: let no gradient through the spike.
        init_hidden: keep the membrane in the layer; a call then takes the current alone and returns the spikes alone.
        inhibition: let only the largest membrane along dimension 1 fire. Not fused.
        learn_beta, learn_threshold, learn_graded_spikes_factor: make it an `nn.Parameter`.
        reset_mechanism: "subtract" (default), "zero" or "none".
        state_quant: a callable that quantises the membrane, or False. Not fused.
        output: return (spikes, membrane) even with init_hidden.
        graded_spikes_factor: the height of a spike. Default 1; broadcasts as beta.
        reset_delay: reset one step after the spike (default) or in the same step.

    Shapes: a step takes and returns [B, ...]; `unroll` takes [T, B, ...]. Dtypes as in `snnfast.functional`.

    Raises:
        TypeError: a parameter that is no number, a `spike_grad` or `state_quant` that is not callable.
        ValueError: an unknown reset mechanism.
    """

    state_names = ("mem",)
    parameter_names = ("beta", "threshold", "graded_spikes_factor")

    def __init__(
        self,
        beta,
        threshold=1.0,
        spike_grad=None,
        surrogate_disable=False,
        init_hidden=False,
        inhibition=False,
        learn_beta=False,
        learn_threshold=False,
        reset_mechanism="subtract",
        state_quant=False,
        output=False,
        graded_spikes_factor=1.0,
        learn_graded_spikes_factor=False,
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
            graded_spikes_factor,
            learn_graded_spikes_factor,
        )
        self._add_parameter("beta", beta, learn_beta)
        self.reset_delay = reset_delay

    def forward(self, input_: Tensor, mem: Tensor | None = None):
        """One time step.

        Args:
            input_: current [B, ...].
            mem: membrane [B, ...]. Without it the layer goes on from its own `mem`. As in snnTorch, a membrane of
                another shape is replaced by zeros.

        Returns:
            (spikes, membrane), both [B, ...]; the spikes alone with init_hidden=True and output=False.

        Raises:
            TypeError: `mem` together with init_hidden=True, or a current that is no floating or integer tensor.
            ValueError: a sparse current, parameters that do not broadcast, tensors on several devices.
        """
        self._refuse_mem(mem)
        if torch.compiler.is_compiling() and fits_one_operator(self._surrogate_key, self.state_quant, self.inhibition):
            # What `_run` comes to in a captured graph, but quicker to trace: a loop comes here at every step.
            params = self.beta, self.threshold, self.graded_spikes_factor
            options = *self._surrogate_key, self.reset_mechanism, self.reset_delay
            spk, mem = ops.leaky_step(input_, self.mem if mem is None else mem, *params, *options)
        else:
            spk, mem, _ = self._run(input_, mem, unroll=False)
        self._keep("mem", mem)
        return (spk, self.mem) if self._returns_mem() else spk

    def unroll(self, input_: Tensor, mem: Tensor | None = None):
        """A whole sequence in one launch: what T calls of `forward` compute.

        Args:
            input_: current [T, B, ...].
            mem: membrane before the first step [B, ...]. Without it the sequence starts from zeros, or with
                init_hidden=True from the layer's own `mem`, where the last membrane is kept in turn.

        Returns:
            (spikes, membranes), both [T, B, ...]; the spikes alone with init_hidden=True and output=False.

        Raises:
            As `forward`, and ValueError for a `mem` of another shape.
        """
        return self._unroll(input_, mem, self._returns_mem())

    def unroll_spikes(self, input_: Tensor) -> Tensor:
        """`unroll` for who needs no membranes: the spikes [T, B, ...], at less memory."""
        return self._unroll(input_, None, False)

    def _unroll(self, input_, mem, want_mem_seq):
        self._refuse_mem(mem)
        spk, last, mem_seq = self._run(input_, mem, unroll=True, want_mem_seq=want_mem_seq)
        if self.init_hidden:
            self.mem = last
        return (spk, mem_seq) if want_mem_seq else spk

    def _run(self, input_, mem, unroll, want_mem_seq=False):
        if isinstance(input_, Tensor) and (not unroll or (self.init_hidden and input_.dim() > 0)):
            shape = input_.shape[1:] if unroll else input_.shape
            mem = self._initial("mem", mem, shape, input_.device)
        return run_leaky(
            input_,
            mem,
            self._parameters_of_call(),
            LeakyOptions(self._surrogate, self.reset_mechanism, bool(self.reset_delay), unroll),
            want_mem_seq,
            self.state_quant,
            self.inhibition,
        )

    def _refuse_mem(self, mem):
        if self.init_hidden and mem is not None:
            raise TypeError("mem must not be passed while init_hidden=True: the layer keeps its own")

    def _returns_mem(self) -> bool:
        return self.output or not self.init_hidden

    def reset_mem(self) -> Tensor:
        """Sets the membrane to zeros (of shape (0,) before the first call, which every call takes for "zeros")."""
        self.reset_state()
        return self.mem

    def init_leaky(self) -> Tensor:
        """Deprecated in snnTorch for `reset_mem`."""
        return self.reset_mem()

    def extra_repr(self) -> str:
        shown = self.beta.numel() == 1 and not self.beta.is_meta
        beta = f"{self.beta.item():.4g}" if shown else tuple(self.beta.shape)
        return f"beta={beta}, reset_mechanism={self.reset_mechanism!r}, reset_delay={self.reset_delay}"


def is_snntorch_leaky(module: torch.nn.Module) -> bool:
    """Whether a module is snnTorch's own Leaky, no subclass of it."""
    return _SnntorchLeaky is not None and type(module) is _SnntorchLeaky
