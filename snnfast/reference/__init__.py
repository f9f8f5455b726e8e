"""The pure-PyTorch loops: the specification that the kernels are held to, and what runs where nothing is fused.

Operations stand in the order of the library that a neuron comes from, one rounding each, so that the numbers are that
library's to the bit. Shapes: x [T, ...] for a sequence, [...] for a step; states as one step of x; parameters broadcast
over a step.
"""

from torch import Tensor

from ..annotations import SpikeGrad
from .alif import ALIF
from .alpha import ALPHA
from .lapicque import LAPICQUE
from .leaky import LEAKY
from .li import LI
from .lif import LIF, LIF_RECURRENT
from .model import Call, Model, backward, loop, step
from .rleaky import RLEAKY, RLEAKY_ONE_TO_ONE
from .synaptic import RSYNAPTIC, RSYNAPTIC_ONE_TO_ONE, SYNAPTIC

MODELS = (
    LEAKY,
    SYNAPTIC,
    RLEAKY,
    RLEAKY_ONE_TO_ONE,
    RSYNAPTIC,
    RSYNAPTIC_ONE_TO_ONE,
    LAPICQUE,
    ALPHA,
    LI,
    LIF,
    LIF_RECURRENT,
    ALIF,
)

__all__ = [
    "ALIF",
    "ALPHA",
    "LAPICQUE",
    "LEAKY",
    "LI",
    "LIF",
    "LIF_RECURRENT",
    "MODELS",
    "RLEAKY",
    "RLEAKY_ONE_TO_ONE",
    "RSYNAPTIC",
    "RSYNAPTIC_ONE_TO_ONE",
    "SYNAPTIC",
    "Call",
    "Model",
    "backward",
    "leaky",
    "leaky_step",
    "loop",
    "step",
]


def leaky_step(
    x: Tensor,
    mem: Tensor,
    beta: Tensor,
    threshold: Tensor,
    graded_spikes_factor: Tensor,
    spike_grad: SpikeGrad,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
) -> tuple[Tensor, Tensor]:
    """One step of `snntorch.Leaky`: current x and membrane mem [...] to spikes and membrane [...]."""
    params = beta, threshold, graded_spikes_factor
    spk, (mem,) = step(LEAKY, x, (mem,), params, Call(spike_grad, reset_mechanism, reset_delay))
    return spk, mem


def leaky(
    x: Tensor,
    mem: Tensor,
    beta: Tensor,
    threshold: Tensor,
    graded_spikes_factor: Tensor,
    spike_grad: SpikeGrad,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
) -> tuple[Tensor, Tensor]:
    """A whole sequence of `leaky_step`: x [T, ...], mem [...] to spikes and membranes [T, ...]."""
    params = beta, threshold, graded_spikes_factor
    spk, _, (mem,) = loop(LEAKY, x, (mem,), params, Call(spike_grad, reset_mechanism, reset_delay))
    return spk, mem
