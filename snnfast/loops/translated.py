"""Calls that wait in another form than they have: dropout as a product with a mask that it draws here and now."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .placeholder import Pending

_DROPOUTS = {F.dropout1d, F.dropout2d, F.dropout3d}
TRANSLATED = {F.dropout, F.relu, *_DROPOUTS}


def translated(func, args, kwargs):
    """A call in the form in which it may wait; (None, x, {}) where it gives its argument."""
    if func is F.dropout or func in _DROPOUTS:
        return _with_mask(func, args, kwargs)
    if func is F.relu and (kwargs.get("inplace") or len(args) > 1 and args[1]):
        return Tensor.relu_, args[:1], {}
    return func, args, kwargs


def _with_mask(func, args, kwargs):
    """Dropout as a product with the mask that it draws here and now; (None, x, {}) where it changes nothing."""
    given = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
    x, p, training = given.get("input"), given.get("p", 0.5), given.get("training", True)
    if given.get("inplace") or not isinstance(x, Tensor) or not 0 <= p < 1:
        return func, args, kwargs
    if not training or p == 0 or not x.numel():
        return (None, x, {}) if func is F.dropout else (func, args, kwargs)
    shape = tuple(x.shape)
    if func is not F.dropout:
        if len(shape) != 2 + {F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3}[func]:
            return func, args, kwargs
        shape = (*shape[:2], *(1,) * (len(shape) - 2))
    if func is F.dropout:
        # It draws in memory order.
        with torch.no_grad():
            ones = torch.ones_like(stand_in(x))
    else:
        ones = torch.ones(shape, dtype=x.dtype, device=x.device)
    return torch.mul, (x, func(ones, p, True)), {}


def stand_in(x: Tensor) -> Tensor:
    """A tensor like x, or like what x will be, in memory order too, but for what is in it."""
    if type(x) is not Pending:
        return x
    _, operation, output, _ = x.made_by
    like = operation.outputs[output]
    return torch.empty_strided(like.shape, like.strides, dtype=like.dtype, device=like.device)
