"""Types that the public names share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np

Values: TypeAlias = Union[float, Tensor, "np.ndarray[Any, Any]"]
"""A neuron's parameter: a number, or a tensor or array that broadcasts over the neuron dimensions."""

SpikeGrad: TypeAlias = Callable[[Tensor], Tensor]
"""A surrogate gradient: from `mem - threshold` to spikes."""

StateQuant: TypeAlias = Callable[[Tensor], Tensor] | bool
"""What quantises a membrane, or False."""

Net = TypeVar("Net", bound=nn.Module)
"""A network, which a function gives back as what it is."""

Run = TypeVar("Run", bound=Callable[..., Any])
"""A network or a function, likewise."""
