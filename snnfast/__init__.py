"""snnfast: spiking neural networks written for snnTorch, trained at the speed of the hardware.

What snnfast has no name for comes from snnTorch, where that is installed: `snnfast.utils`, `snnfast.SLSTM`,
`snnfast.functional.ce_rate_loss` ..., so that `import snnfast as snn` does in a script for `import snntorch as snn`.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import encoding, functional, products, reference, surrogate
from . import snntorchs as _snntorchs
from .accelerate import accelerate, accelerated
from .auto import install, load_ipython_extension, uninstall, unload_ipython_extension
from .benchmark import benchmark
from .cells import Cell, scan
from .convert import convert, detach, reset
from .encoding import bin_events
from .functional import use_reference
from .memory import empty_cache
from .neurons import ALIF, Alpha, Lapicque, Leaky, RLeaky, RSynaptic, SpikingNeuron, Synaptic
from .probe import record
from .step import TrainingStep
from .unroll import Unroll

__version__ = _version("snnfast")

__all__ = [
    "ALIF",
    "Alpha",
    "Cell",
    "Lapicque",
    "Leaky",
    "RLeaky",
    "RSynaptic",
    "SpikingNeuron",
    "Synaptic",
    "TrainingStep",
    "Unroll",
    "accelerate",
    "accelerated",
    "benchmark",
    "bin_events",
    "convert",
    "detach",
    "empty_cache",
    "encoding",
    "explain",
    "functional",
    "install",
    "load_ipython_extension",
    "products",
    "record",
    "reference",
    "reset",
    "scan",
    "surrogate",
    "uninstall",
    "unload_ipython_extension",
    "use_reference",
]

_from_snntorch, _names = _snntorchs.fallback(__name__)

if _TYPE_CHECKING:
    from .compiler.explain import explain


def __getattr__(name: str) -> _Any:
    if name != "explain":
        return _from_snntorch(name)
    # When first asked for: it brings torch._dynamo, which takes longer to import than all of snnfast.
    from .compiler.explain import explain

    globals()[name] = explain
    return explain


def __dir__() -> list[str]:
    return sorted({*_names(), "explain"})
