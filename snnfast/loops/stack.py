"""The thread's stack of modes, at whose bottom the recorder lies: users' contexts take away what is on its top."""

import torch
from torch.utils._device import DeviceContext


def put_at_bottom(mode) -> None:
    """Lays a mode below all others."""
    above = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    # A device's context takes itself away from the very bottom.
    if above and isinstance(above[-1], DeviceContext):
        torch._C._push_on_torch_function_stack(above.pop())
    torch._C._push_on_torch_function_stack(mode)
    for other in reversed(above):
        torch._C._push_on_torch_function_stack(other)


def take_away(mode) -> None:
    """Takes a mode out of the stack, wherever it lies."""
    stack = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    for other in reversed(stack):
        if other is not mode:
            torch._C._push_on_torch_function_stack(other)
