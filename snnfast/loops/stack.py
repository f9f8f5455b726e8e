"""The thread's stack of modes, at whose bottom the recorder lies: users' contexts take away what is on its top."""

from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext

from .. import _torch
from . import unseen


class AtBottom(TorchFunctionMode):
    """A mode that lies at the bottom while it is there, but for where it rests."""

    def __init__(self):
        super().__init__()
        self.is_there = self.rests = False

    def enter(self) -> None:
        if not self.is_there:
            put_at_bottom(self)
            unseen.watch(1)
            self.is_there = True

    def go(self) -> None:
        if self.is_there:
            if not self.rests:
                take_away(self)
            unseen.watch(-1)
            self.is_there = self.rests = False

    def rest(self) -> None:
        """Sees nothing until `resume`."""
        if self.is_there and not self.rests:
            take_away(self)
            self.rests = True

    def resume(self) -> None:
        if self.rests:
            put_at_bottom(self)
            self.rests = False


def put_at_bottom(mode) -> None:
    """Lays a mode below all others."""
    above = [_torch.pop_function_mode() for _ in range(_torch.function_modes())]
    # A device's context takes itself away from the very bottom.
    if above and isinstance(above[-1], DeviceContext):
        _torch.push_function_mode(above.pop())
    _torch.push_function_mode(mode)
    for other in reversed(above):
        _torch.push_function_mode(other)


def take_away(mode) -> None:
    """Takes a mode out of the stack, wherever it lies."""
    stack = [_torch.pop_function_mode() for _ in range(_torch.function_modes())]
    for other in reversed(stack):
        if other is not mode:
            _torch.push_function_mode(other)
