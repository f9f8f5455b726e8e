"""The thread's stack of modes, at whose bottom the recorder lies: users' contexts take away what is on its top."""

from torch.utils._device import DeviceContext

from .. import _torch


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
