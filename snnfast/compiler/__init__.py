"""The torch.compile backend "snnfast": a user's own loop over time runs layer by layer over whole sequences.

The data's way: capture (torch._dynamo) -> `simplify` -> `chains` -> `packing`, with the batching `rules`, legal by
`order` and `effects` -> `emission`. The result is an ordinary differentiable `torch.fx.GraphModule`.
"""

from .accelerate import accelerate
from .backend import backend
from .explain import explain

__all__ = ["accelerate", "backend", "explain"]
