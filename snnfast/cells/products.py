"""Products of a cell's states with weights, as a step is traced: operators in their place, which no tensor meets."""

import operator
import threading

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_library = torch.library.Library("snnfast_cells", "DEF")
_library.define("product(Tensor x, Tensor weight, Tensor? bias, int number) -> Tensor")
_library.define("product_back(Tensor grad, Tensor weight, int number) -> Tensor")
_library.define("product_weight(Tensor grad, Tensor x, int number) -> Tensor")
PRODUCT = torch.ops.snnfast_cells.product.default
"""x [..., N] weight [N, N]^T + bias [N]; `number`: which product of the step it is."""
BACK = torch.ops.snnfast_cells.product_back.default
"""dL/dx."""
WEIGHT = torch.ops.snnfast_cells.product_weight.default
"""dL/dweight."""


@torch.library.register_fake("snnfast_cells::product", lib=_library)
def _(x, weight, bias, number):
    return torch.empty_like(x)


@torch.library.register_fake("snnfast_cells::product_back", lib=_library)
def _(grad, weight, number):
    return torch.empty_like(grad)


@torch.library.register_fake("snnfast_cells::product_weight", lib=_library)
def _(grad, x, number):
    return grad.new_empty(grad.shape[-1], x.shape[-1])


_at_work = threading.local()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, number):
        ctx.save_for_backward(x, weight)
        ctx.number = number
        return PRODUCT(x, weight, bias, number)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            BACK(grad, weight, ctx.number) if of_x else None,
            WEIGHT(grad, x, ctx.number) if of_weight else None,
            grad.sum(tuple(range(grad.dim() - 1))) if of_bias else None,
            None,
        )


class Products(TorchFunctionMode):
    """Within it, products of what has the shape of a step with square weights are operators."""

    def __init__(self, shape: torch.Size):
        super().__init__()
        self._shape, self._count = shape, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = factors(function, args, kwargs or {})
        if given is None or not fit(self._shape, *given):
            return function(*args, **(kwargs or {}))
        self._count += 1
        return _Product.apply(*given, self._count - 1)

    def __enter__(self):
        self._before, _at_work.mode = getattr(_at_work, "mode", None), self
        return super().__enter__()

    def __exit__(self, *about):
        _at_work.mode = self._before
        return super().__exit__(*about)


def call(function, args: tuple, kwargs: dict):
    """A call that `Products` sees even where modes are switched off, as they are while a recorded loop is computed."""
    mode = getattr(_at_work, "mode", None)
    return function(*args, **kwargs) if mode is None else mode.__torch_function__(function, (), args, kwargs)


def factors(function, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """What a call takes as `F.linear` takes it: input, weight and bias; None: it is another call."""
    if function is F.linear:
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        return given["input"], given["weight"], given.get("bias")
    if kwargs or function not in _MATRICES or not all(isinstance(arg, Tensor) for arg in args):
        return None
    *bias, x, weight = args
    return x, weight.t() if weight.dim() == 2 else weight, *(bias or (None,))


def fit(shape: torch.Size, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a step of this shape has them as a product: of states like its own, with square weights."""
    features = shape[-1] if len(shape) > 1 else 0
    same = all(other is None or other.dtype == x.dtype for other in (weight, bias))
    wanted = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    fits = x.shape == shape and weight.shape == (features, features) and features > 0
    return same and wanted and fits and (bias is None or bias.shape == (features,))


def is_one(function, names: tuple[str, ...]) -> bool:
    """Whether a call with keyword arguments of these names is one that `factors` knows, its input in its place."""
    return (function is F.linear and {*names} <= {"weight", "bias"}) or (function in _MATRICES and not names)


def operand(function) -> int:
    """Which argument the input is."""
    return int(function is torch.addmm)


_MATRICES = {torch.mm, torch.matmul, torch.addmm, Tensor.mm, Tensor.matmul, Tensor.__matmul__, operator.matmul}
