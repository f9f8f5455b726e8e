"""Whether an autograd function's backward is linear in what comes back: one of a sum is then the sum of several.

It is watched as it runs once: every operation on what came back, and on what was made of that, must be linear in it,
and none may look at a value. A function whose code may wait (`functions.may_wait`) then does the same whatever the
values.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from . import functions
from .operation import Operation
from .reading import memory_of

aten = torch.ops.aten


def _of(names: str) -> list:
    """Operators of these names, those that write their first argument too."""
    found = [getattr(aten, name + end, None) for name in names.split() for end in ("", "_")]
    return [one for one in found if one is not None]


LINEAR = {
    **dict.fromkeys(
        _of(
            """_to_copy _unsafe_view alias as_strided cat clone cumsum detach diagonal div expand flip gather index
            index_select mean neg permute repeat roll select slice split split_with_sizes squeeze stack sum t transpose
            tril triu unbind unfold unsqueeze view zero"""
        ),
        (0,),
    ),
    **dict.fromkeys(_of("add sub copy fill"), (0, 1)),
    **dict.fromkeys(_of("masked_fill index_put"), (0, 2)),
    aten.where: (1, 2),
}
"""In which of their arguments, taken together, operations are linear."""

PRODUCTS = set(_of("mul mm bmm dot mv"))
"""Those that are linear in one argument or the other."""

CONSTANTS = set(_of("zeros zeros_like new_zeros full full_like new_full scalar_tensor lift_fresh"))
"""Those whose values are none of a tensor's."""


def adds_up(operation: Operation, given: list) -> bool:
    """Whether the gradient of one call of an operation for all steps is the sum of the steps', to rounding."""
    if not operation.is_call:
        return True
    key = tuple(getattr(one, "requires_grad", None) for one in given)
    if key not in operation.by_steps:
        try:
            operation.by_steps[key] = is_linear(operation.function, given)
        except Exception:
            # What fails is to fail where it would in the loop.
            operation.by_steps[key] = False
    return operation.by_steps[key]


def is_linear(function: type, args) -> bool:
    """Whether the gradients of a call, an autograd function's that may wait, are linear in those of its results."""
    leaves = [one.detach().requires_grad_(one.requires_grad) if isinstance(one, Tensor) else one for one in args]
    with torch.enable_grad():
        out = functions.run(function, leaves)
    outs = out if isinstance(out, tuple) else (out,)
    node = outs[0].grad_fn
    if node is None or not all(one.is_floating_point() for one in outs):
        return False
    given = [torch.ones_like(one) for one in outs]
    with torch.no_grad(), _Watch(given) as watch:
        found = node.apply(*given)
    found = found if isinstance(found, tuple) else (found,)
    return watch.is_linear and all(one is None or watch.depends(one) for one in found)


class _Watch(TorchDispatchMode):
    """Follows what depends on some tensors. is_linear: whether all of it is linear in them, and no value decides."""

    def __init__(self, given: list[Tensor]):
        super().__init__()
        self.is_linear = True
        self._dependent = set(map(memory_of, given))
        self._made, self._zeros = set(), set()
        # The memory of what lives no longer would be another's.
        self._alive = list(given)

    def depends(self, value) -> bool:
        return isinstance(value, Tensor) and memory_of(value) in self._dependent

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, func.overloadpacket
        given = _tensors((args, kwargs))
        dependent = sum(map(self.depends, given)) if packet not in CONSTANTS else 0
        written = set(map(memory_of, _tensors(args[:1]))) if func._schema.is_mutable else set()
        looks = "out" in kwargs or packet is aten._local_scalar_dense or torch.Tag.nondeterministic_seeded in func.tags
        if looks or not written <= self._dependent | self._made:
            self.is_linear = False
        if dependent and not self._keeps_linear(packet, args, kwargs, dependent):
            self.is_linear = False
        out = func(*args, **kwargs)
        outs = _tensors(out)
        self._alive += outs
        memories = set(map(memory_of, outs))
        self._made |= memories - set(map(memory_of, given))
        self._zeros -= written
        if dependent:
            self._dependent |= memories
            self.is_linear &= all(one.is_floating_point() for one in outs)
        elif packet in CONSTANTS and not any(one.count_nonzero() for one in outs):
            self._zeros |= memories
        return out

    def _keeps_linear(self, packet, args, kwargs, dependent: int) -> bool:
        if packet in PRODUCTS:
            return dependent == 1
        if packet not in LINEAR or kwargs.get("rounding_mode"):
            return False
        within = tree_flatten([args[place] for place in LINEAR[packet] if place < len(args)])[0]
        return all(map(self._is_zero_or_depends, within)) and dependent == sum(map(self.depends, within))

    def _is_zero_or_depends(self, value) -> bool:
        return value == 0 if not isinstance(value, Tensor) else self.depends(value) or memory_of(value) in self._zeros


def _tensors(nested) -> list[Tensor]:
    return [one for one in tree_flatten(nested)[0] if isinstance(one, Tensor)]
