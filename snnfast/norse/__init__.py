"""Norse's LIF and LI neurons and its encoders, fused: the names, arguments, states and numbers of Norse 1.1.0.

Cells take one step [B, ...], layers a sequence [T, B, ...], time first; both return (output, state). Numbers are those
of Norse (norse/torch/{functional,module}/{lif,leaky_integrator,encode}.py) to the bit, in the spikes, voltages and
currents and in the gradients of inputs and of initial states. What differs:

- Outputs come in the input's dtype. States are float32, and float64 where the input or a state is.
- Gradients of a cell's voltage beside those of its spikes may round differently; those of `LIF` do not.
- An initial state that is made here needs no gradient.
- The inputs of `LIFRecurrent` meet their weights in one product for all steps, which may round differently.
- Spikes are dense, and "adjoint" is no method.

Source: C. Pehle and J. E. Pedersen, Norse - A deep learning library for spiking neural networks (2021),
doi:10.5281/zenodo.4422025.

Voltages are in mV by Norse's convention, inverse time constants in 1/s with dt in s.
"""

from .encoders import ConstantCurrentLIFEncoder, PoissonEncoder, SpikeLatencyEncoder, SpikeLatencyLIFEncoder
from .feed_forward import LI, LIF, LICell, LIFCell, LILinearCell
from .parameters import LIFFeedForwardState, LIFParameters, LIFState, LIParameters, LIState
from .recurrent import LIFRecurrent, LIFRecurrentCell

__all__ = [
    "LI",
    "LIF",
    "ConstantCurrentLIFEncoder",
    "LICell",
    "LIFCell",
    "LIFFeedForwardState",
    "LIFParameters",
    "LIFRecurrent",
    "LIFRecurrentCell",
    "LIFState",
    "LILinearCell",
    "LIParameters",
    "LIState",
    "PoissonEncoder",
    "SpikeLatencyEncoder",
    "SpikeLatencyLIFEncoder",
]
