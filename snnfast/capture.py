"""What torch.compile is to do with functions of ours, without the import of torch._dynamo that torch says it with."""

from collections.abc import Callable


def constant(function: Callable) -> Callable:
    """`torch.compiler.assume_constant_result`: called while torch compiles, its result is part of the graph."""
    function._dynamo_marked_constant = True
    return function
