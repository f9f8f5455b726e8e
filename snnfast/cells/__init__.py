"""Neurons written in plain PyTorch: traced, generated as C++, compiled, and run over whole sequences.

`scan` is the way in, `Cell` a layer that goes that way. A step becomes two graphs (`tracing`), of which `lanes` sorts
out what every neuron computes for itself; `emission` writes that as C++ with the operators of `operators`, for the time
loops of `csrc/cpu/cell.h` (`kernel`) and `csrc/cuda/cell.cuh` (`cuda`); `building` compiles it, or finds it on disk;
`program` runs it, forward and (`backward`) back.
Products of states with weights are traced as operators of their own (`products`) and computed between steps
(`recurrence`).
`surroundings` is what a cell's code reads besides its arguments, by which one program serves all cells alike.
"""

from .building import BuildFailed
from .neuron import Cell
from .scanning import fused, scan, why_not_fused
from .tracing import Refused

__all__ = ["BuildFailed", "Cell", "Refused", "fused", "scan", "why_not_fused"]
