"""What a value of a period is over many: one for all, a stack, or apart; and what is switched on around it."""

import contextlib

import torch
from torch import Tensor

from .. import _torch, transforms


class Series:
    """The values of `count` periods from `start` on: one for all, a stack [T, ...], or apart."""

    def __init__(self, start: int, count: int, steady=None, stack=None, apart=None):
        self.start, self.count = start, count
        self.steady, self._stack, self._apart = steady, stack, apart
        self.is_apart = apart is not None and stack is None
        """Whether the steps were computed one by one, and a stack is of them."""

    @property
    def is_steady(self) -> bool:
        return self.steady is not None

    def stack(self) -> Tensor:
        if self._stack is None:
            if self.is_steady:
                return self.steady.expand(self.count, *self.steady.shape)
            with torch.enable_grad():
                self._stack = _stacked(self._apart)
        return self._stack

    def apart(self):
        if self._apart is None:
            # Whoever asks first: those who ask later may go back through it.
            with torch.enable_grad():
                self._apart = (self.steady,) * self.count if self.is_steady else self._stack.unbind(0)
        return self._apart

    def between(self, start: int, count: int) -> "Series":
        """A part of it."""
        if (start, count) == (self.start, self.count):
            return self
        first = start - self.start
        apart = None if self._apart is None else self._apart[first : first + count]
        stack = None if self._stack is None else self._stack[first : first + count]
        return Series(start, count, self.steady, stack, apart)

    def after(self, leads: list) -> "Series":
        """With other values before it."""
        start, count = self.start - len(leads), self.count + len(leads)
        if self.is_steady and all(lead is self.steady for lead in leads):
            return Series(start, count, self.steady)
        if self._stack is None or not self.count:
            rest = list(self.apart()) if self.count else []
            return Series(start, count, apart=[*leads, *rest])
        return Series(start, count, stack=torch.cat([torch.stack(leads), self._stack]))


def _stacked(steps: list) -> Tensor:
    """A tensor that several steps take collects their gradients last step first, as it does in a loop."""
    if len({id(step) for step in steps}) < len(steps) and torch.is_grad_enabled():
        return torch.stack(steps[::-1]).flip(0)
    return torch.stack(steps)


class Numbers(list):
    """Numbers that differ from period to period."""

    def run_within(self, size: int) -> int | None:
        """Where they begin, if they are first, first + 1, ... of `size` places counted from 0."""
        first, count = self[0], len(self)
        is_run = type(first) is int and first >= 0 and self == list(range(first, first + count))
        return first if is_run and first + count <= size else None


SEEN_IN = torch.is_grad_enabled, torch.is_inference_mode_enabled
"""What tells how autograd sees an operation."""

WAITS_UNDER_NONE = (
    _torch.any_autocast,
    transforms.functional,
    transforms.forward_mode,
    _torch.dispatch_modes,
    _torch.traced_by_jit,
    transforms.hooks_of_saved,
)
"""What tells of contexts in which no operation waits: they would see, cast or keep those of another order."""


def is_plain_place() -> bool:
    """Whether operations may wait here."""
    return not (torch.compiler.is_compiling() or any(at_work() for at_work in WAITS_UNDER_NONE))


def modes() -> tuple:
    """What is switched on around an operation: gradients, inference, and what no operation waits under."""
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), any(at_work() for at_work in WAITS_UNDER_NONE)


@contextlib.contextmanager
def in_modes(wanted: tuple):
    """Within it, what was switched on around an operation is so again."""
    grad, inference, _ = wanted
    if modes() == wanted:
        yield
    elif inference:
        with torch.inference_mode():
            yield
    elif torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            yield
    else:
        with torch.set_grad_enabled(grad):
            yield


@contextlib.contextmanager
def without_autocast():
    """Within it, nothing is cast: what waits is of before."""
    with contextlib.ExitStack() as stack:
        if _torch.any_autocast():
            for device in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
