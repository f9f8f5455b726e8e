"""How a neuron's current lies in memory: the kernels see its dimensions in that order, and results lie as it does.

A neuron's neurons know nothing of one another: in which order they are walked through is no matter to their numbers.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import transforms


class Layout(NamedTuple):
    """The order of a sequence's dimensions in memory; None: as they are counted.

    order: the dimensions from the one whose steps are largest; time, where there is one, stays first.
    time: 1 where the first dimension is time, else 0.
    """

    order: tuple[int, ...] | None
    time: int

    def put(self, x: Tensor | None) -> Tensor | None:
        """A sequence, or what has its shape, with its dimensions in the order of memory."""
        return x if self.order is None or x is None else x.permute(self.order)

    def back(self, x: Tensor) -> Tensor:
        """What `put` was."""
        return x if self.order is None else x.permute(_inverse(self.order))

    def put_step(self, state: Tensor | None) -> Tensor | None:
        """The same of one step."""
        return state if self.order is None or state is None else state.permute(self._step())

    def put_steps(self, states: tuple) -> tuple:
        return states if self.order is None else tuple(map(self.put_step, states))

    def back_steps(self, states: tuple) -> tuple:
        if self.order is None:
            return states
        inverse = _inverse(self._step())
        return tuple(state.permute(inverse) for state in states)

    def put_param(self, param: Tensor, dims: int) -> Tensor:
        """What broadcasts over a step of so many dimensions."""
        if self.order is None or param.numel() == 1:
            return param
        return param.reshape((1,) * (dims - param.dim()) + tuple(param.shape)).permute(self._step())

    def of_step(self, shape: torch.Size) -> torch.Size:
        """A step's shape."""
        return shape if self.order is None else torch.Size(shape[dim] for dim in self._step())

    def _step(self) -> tuple[int, ...]:
        return tuple(dim - self.time for dim in self.order[self.time :])


def of(x: Tensor, time: int, but: int = 0) -> Layout:
    """The layout of a sequence, or of a step where time is 0; the last `but` dimensions stay the last."""
    if x.is_contiguous() or transforms.functional():
        return _AS_COUNTED[time]
    strides = x.stride()
    moving = range(time, x.dim() - but)
    if any(strides[dim] == 0 and x.shape[dim] > 1 for dim in moving):
        # Which of them is outside nobody can tell.
        return _AS_COUNTED[time]
    # One of size 1 has no place of its own: it stays beside the one before it.
    keys, key = [], float("inf")
    for dim in moving:
        key = strides[dim] if x.shape[dim] != 1 else key
        keys.append(key)
    inside = sorted(moving, key=lambda dim: -keys[dim - time])
    order = (*range(time), *inside, *range(x.dim() - but, x.dim()))
    return _AS_COUNTED[time] if order == tuple(range(x.dim())) else Layout(order, time)


_AS_COUNTED = (Layout(None, 0), Layout(None, 1))


def _inverse(order: tuple[int, ...]) -> list[int]:
    inverse = [0] * len(order)
    for place, dim in enumerate(order):
        inverse[dim] = place
    return inverse
