"""ATen's operators in C++, each rounded as ATen's CPU kernels round it (tests/test_cells.py compares every one), and
for a GPU as its CUDA kernels do.

What is not in the table is refused by name: an operator that is no elementwise one, or one that ATen rounds in a way
that depends on where in memory a value lies (softplus, silu, pow with other exponents than the table's).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import Node

from .tracing import Refused

aten = torch.ops.aten


@dataclass(frozen=True)
class RowFunction:
    """An operator that ATen gives whole rows to.

    symbols: of the library's function for float and double; call: a statement with {function}, {width}, {from_row},
    {to_row}, {lanes}; tail: the expression of {0} by which ATen computes what fills no whole vectors, where it differs;
    fused: that of {0} for floats which needs no call, where multiply-adds are fused.
    """

    symbols: tuple[str, str]
    call: str
    tail: str | None = None
    fused: str | None = None

    def is_called(self, dtype: torch.dtype) -> bool:
        """Whether whole rows are given to the library's function."""
        return self.fused is None or dtype != torch.float32 or not fuses()


def literal(value) -> str:
    """A Python number as the step's type has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    value = float(value)
    if math.isinf(value):
        return "T(INFINITY)" if value > 0 else "-T(INFINITY)"
    if math.isnan(value):
        return "T(NAN)"
    return f"T({value!r})"


class Writer:
    """What an operator's function is given to write its arguments with (`emission.Emitter`)."""

    def number(self, value) -> str: ...

    def truth(self, value) -> str: ...

    def fused(self, a: str, b: str, c: str) -> str:
        """a * b + c, as ATen's kernels round it within an operator."""


Write = Callable[..., str]
"""write(writer, node, *arguments, **options) -> an expression."""


def _of_numbers(template: str) -> Write:
    def write(writer: Writer, node: Node, *args, **options):
        _refuse_options(node, options)
        return template.format(*map(writer.number, args))

    return write


def _of_truths(template: str) -> Write:
    def write(writer, node, *args):
        return template.format(*map(writer.truth, args))

    return write


def _bitwise(symbol: str) -> Write:
    def write(writer, node, a, b):
        if node.meta["val"].dtype != torch.bool:
            raise Refused(f"{node.target} of integers")
        return f"{writer.truth(a)} {symbol} {writer.truth(b)}"

    return write


def _refuse_options(node: Node, options: dict) -> None:
    if any(option is not None for option in options.values()):
        raise Refused(f"{node.target} with {', '.join(options)}")


def fuses() -> bool:
    """Whether ATen's CPU kernels fuse multiply-adds here."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _sum(sign: int) -> Write:
    def write(writer, node, a, b, alpha=1):
        if alpha != 1 and not isinstance(b, Node):
            raise Refused(f"{node.target} of a number with alpha, which ATen rounds by the place in memory")
        a, b = writer.number(a), writer.number(b)
        if alpha == 1:
            return f"{a} {'+' if sign > 0 else '-'} {b}"
        return writer.fused(b, literal(sign * alpha), a)

    return write


def _reversed_difference(writer, node, a, b, alpha=1):
    return _sum(-1)(writer, node, b, a, alpha)


def _same(writer, node, a, *_, **__):
    return writer.truth(a) if node.meta["val"].dtype == torch.bool else writer.number(a)


def _converted(writer, node, a, *_, **__):
    return writer.truth(a) if node.meta["val"].dtype == torch.bool else writer.number(a)


def _filled(value=None) -> Write:
    """A constant: the given, else the operator's last argument."""

    def write(writer, node, *args, **options):
        number = args[-1] if value is None else value
        if isinstance(number, Node):
            return _same(writer, node, number)
        return literal(bool(number) if node.meta["val"].dtype == torch.bool else number)

    return write


_POWERS = {0: "T(1)", 1: "{0}", 2: "{0} * {0}", 3: "{0} * {0} * {0}", -1: "T(1) / {0}", -2: "T(1) / ({0} * {0})"}


def _power(writer, node, a, exponent):
    if not isinstance(exponent, (int, float)) or exponent not in _POWERS:
        raise Refused(f"{node.target} with exponent {exponent}; the exact ones are {', '.join(map(str, _POWERS))}")
    return _POWERS[exponent].format(writer.number(a))


def _clamped(writer, node, a, low=None, high=None):
    text = writer.number(a)
    if low is not None:
        text = f"aten::{'maximum' if isinstance(low, Node) else 'at_least'}<T>({text}, {writer.number(low)})"
    if high is not None:
        text = f"aten::{'minimum' if isinstance(high, Node) else 'at_most'}<T>({text}, {writer.number(high)})"
    return text


def _chosen(writer, node, condition, a, b):
    if node.meta["val"].dtype == torch.bool:
        a, b, c = writer.truth(a), writer.truth(b), writer.truth(condition)
        return f"({c} & {a}) | (!{c} & {b})"
    return f"{writer.truth(condition)} ? {writer.number(a)} : {writer.number(b)}"


def _masked(writer, node, a, mask, value):
    return _chosen(writer, node, mask, value, a)


def _put(writer, node, a, indices, value, accumulate=False):
    """a[mask] = number, the one form of index_put that is elementwise."""
    single = not isinstance(value, Node) or value.meta["val"].dim() == 0
    if len(indices) != 1 or accumulate or not single or indices[0].meta["val"].dtype != torch.bool:
        raise Refused(f"{node.target} of anything but one number at a mask")
    return _chosen(writer, node, indices[0], value, a)


def _threshold_backward(writer, node, grad, value, threshold):
    return f"{writer.number(value)} <= {literal(threshold)} ? T(0) : {writer.number(grad)}"


def _tanh_backward(writer, node, grad, result):
    grad, result = writer.number(grad), writer.number(result)
    return f"{grad} * {writer.fused(f'-{result}', result, 'T(1)')}"


def _product_added(writer, node, a, b, c, value=1):
    product = writer.number(b) if value == 1 else f"({literal(value)} * {writer.number(b)})"
    return writer.fused(product, writer.number(c), writer.number(a))


def _quotient_added(writer, node, a, b, c, value=1):
    return f"{writer.number(a)} + {literal(value)} * {writer.number(b)} / {writer.number(c)}"


def _interpolated(writer, node, start, end, weight):
    if isinstance(weight, Node):
        raise Refused(f"{node.target} with a tensor for weight")
    start, end = writer.number(start), writer.number(end)
    if abs(weight) < 0.5:
        return writer.fused(literal(weight), f"({end} - {start})", start)
    return writer.fused(f"-({end} - {start})", f"(T(1) - {literal(weight)})", end)


def _leaky_relu(writer, node, a, slope=0.01):
    a = writer.number(a)
    return f"{a} > T(0) ? {a} : {a} * {literal(slope)}"


def _mkl(name: str) -> RowFunction:
    return RowFunction((f"VMS{name}_", f"VMD{name}_"), "aten::mkl({function}, {width}, {from_row}, {to_row});")


OPERATORS: dict[torch._ops.OpOverload, Write | RowFunction] = {
    aten.add.Tensor: _sum(1),
    aten.add.Scalar: _sum(1),
    aten.sub.Tensor: _sum(-1),
    aten.sub.Scalar: _sum(-1),
    aten.rsub.Tensor: _reversed_difference,
    aten.rsub.Scalar: _reversed_difference,
    aten.mul.Tensor: _of_numbers("{} * {}"),
    aten.mul.Scalar: _of_numbers("{} * {}"),
    aten.div.Tensor: _of_numbers("{} / {}"),
    aten.div.Scalar: _of_numbers("{} / {}"),
    aten.neg.default: _of_numbers("-{}"),
    aten.abs.default: _of_numbers("std::abs({})"),
    aten.sign.default: _of_numbers("aten::sign<T>({})"),
    aten.sgn.default: _of_numbers("aten::sign<T>({})"),
    aten.reciprocal.default: _of_numbers("T(1) / {}"),
    aten.square.default: _of_numbers("{0} * {0}"),
    aten.floor.default: _of_numbers("std::floor({})"),
    aten.ceil.default: _of_numbers("std::ceil({})"),
    aten.trunc.default: _of_numbers("std::trunc({})"),
    aten.round.default: _of_numbers("std::nearbyint({})"),
    aten.pow.Tensor_Scalar: _power,
    aten.relu.default: lambda w, n, a: _clamped(w, n, a, 0),
    aten.leaky_relu.default: _leaky_relu,
    aten.hardtanh.default: lambda w, n, a, low=-1, high=1: _clamped(w, n, a, low, high),
    aten.clamp.default: _clamped,
    aten.clamp.Tensor: _clamped,
    aten.clamp_min.default: _clamped,
    aten.clamp_min.Tensor: _clamped,
    aten.clamp_max.default: lambda w, n, a, high: _clamped(w, n, a, None, high),
    aten.clamp_max.Tensor: lambda w, n, a, high: _clamped(w, n, a, None, high),
    aten.maximum.default: _of_numbers("aten::maximum<T>({}, {})"),
    aten.minimum.default: _of_numbers("aten::minimum<T>({}, {})"),
    aten.heaviside.default: _of_numbers("{0} == T(0) ? {1} : ({0} > T(0) ? T(1) : T(0))"),
    aten.addcmul.default: _product_added,
    aten.addcdiv.default: _quotient_added,
    aten.lerp.Scalar: _interpolated,
    aten.where.self: _chosen,
    aten.where.ScalarOther: _chosen,
    aten.where.ScalarSelf: _chosen,
    aten.where.Scalar: _chosen,
    aten.masked_fill.Scalar: _masked,
    aten.masked_fill.Tensor: _masked,
    aten.index_put.default: _put,
    **{
        getattr(getattr(aten, name), kind): _of_numbers(f"{{}} {symbol} {{}}")
        for name, symbol in {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}.items()
        for kind in ("Scalar", "Tensor")
    },
    aten.isnan.default: _of_numbers("{0} != {0}"),
    aten.logical_and.default: _of_truths("{} & {}"),
    aten.logical_or.default: _of_truths("{} | {}"),
    aten.logical_xor.default: _of_truths("{} != {}"),
    aten.logical_not.default: _of_truths("!{}"),
    aten.bitwise_and.Tensor: _bitwise("&"),
    aten.bitwise_or.Tensor: _bitwise("|"),
    aten.bitwise_xor.Tensor: _bitwise("!="),
    aten.bitwise_not.default: lambda w, n, a: _bitwise("!=")(w, n, a, True),
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.clone.default: _same,
    aten.contiguous.default: _same,
    aten.lift_fresh_copy.default: _same,
    aten.expand.default: _same,
    aten.view.default: _same,
    aten.reshape.default: _same,
    aten._unsafe_view.default: _same,
    aten._to_copy.default: _converted,
    aten.zeros_like.default: _filled(0),
    aten.ones_like.default: _filled(1),
    aten.new_zeros.default: _filled(0),
    aten.new_ones.default: _filled(1),
    aten.zeros.default: _filled(0),
    aten.ones.default: _filled(1),
    aten.full.default: _filled(),
    aten.full_like.default: _filled(),
    aten.new_full.default: _filled(),
    aten.scalar_tensor.default: _filled(),
    aten.fill.Scalar: _filled(),
    aten.fill.Tensor: _filled(),
    aten.threshold_backward.default: _threshold_backward,
    aten.sigmoid_backward.default: _of_numbers("{0} * (T(1) - {1}) * {1}"),
    aten.tanh_backward.default: _tanh_backward,
    **{
        getattr(aten, name).default: _mkl(symbol)
        for name, symbol in {
            "exp": "EXP",
            "log": "LN",
            "tanh": "TANH",
            "sqrt": "SQRT",
            "sin": "SIN",
            "cos": "COS",
            "atan": "ATAN",
            "tan": "TAN",
            "asin": "ASIN",
            "acos": "ACOS",
            "erf": "ERF",
            "erfc": "ERFC",
            "log2": "LOG2",
            "log10": "LOG10",
        }.items()
    },
    aten.sigmoid.default: RowFunction(
        ("Sleef_expf{lanes}_u10", "Sleef_expd{lanes}_u10"),
        "aten::sigmoids<T, {lanes}>({function}, {width}, {from_row}, {to_row});",
        "T(1) / (T(1) + std::exp(-{0}))",
        "aten::sigmoid({0})",
    ),
}


def _divided(writer, node, a, b):
    """By a number, or a tensor of one that is on the CPU, ATen multiplies with its reciprocal."""
    a, single = writer.number(a), not isinstance(b, Node)
    b_value = None if single else b.meta["val"]
    if single or (b_value.dim() == 0 and b_value.device.type == "cpu" and node.meta["val"].device.type == "cuda"):
        return f"{a} * (T(1) / {writer.number(b)})"
    return f"{a} / {writer.number(b)}"


def _quotient_fused(writer, node, a, b, c, value=1):
    return writer.fused(literal(value), f"({writer.number(b)} / {writer.number(c)})", writer.number(a))


def _clamped_at_once(writer, node, a, low=None, high=None):
    """Both of a GPU's bounds are maxima and minima of numbers."""
    text = writer.number(a)
    for bound, name in ((low, "maximum"), (high, "minimum")):
        if bound is not None:
            text = f"aten::{name}<T>({text}, {writer.number(bound)})"
    return text


def _power_on_cuda(writer, node, a, exponent):
    if exponent == -1:
        raise Refused(f"{node.target} with exponent -1, which is no division on a GPU")
    return _power(writer, node, a, exponent)


def _of_cuda(operator: torch._ops.OpOverload, write: Write | RowFunction) -> Write:
    """What CUDA's kernels compute in the place of a function on whole rows: the one of that name."""
    if not isinstance(write, RowFunction):
        return write
    name = operator._schema.name.removeprefix("aten::")
    return _of_numbers("aten::sigmoid<T>({})" if name == "sigmoid" else f"std::{name}({{}})")


CUDA_OPERATORS: dict[torch._ops.OpOverload, Write] = {
    **{operator: _of_cuda(operator, write) for operator, write in OPERATORS.items()},
    aten.div.Tensor: _divided,
    aten.div.Scalar: _divided,
    aten.addcdiv.default: _quotient_fused,
    aten.pow.Tensor_Scalar: _power_on_cuda,
    aten.relu.default: lambda w, n, a: _clamped_at_once(w, n, a, 0),
    aten.hardtanh.default: lambda w, n, a, low=-1, high=1: _clamped_at_once(w, n, a, low, high),
    aten.clamp.default: _clamped_at_once,
    aten.clamp.Tensor: _clamped_at_once,
    aten.clamp_min.default: _clamped_at_once,
    aten.clamp_min.Tensor: _clamped_at_once,
    aten.clamp_max.default: lambda w, n, a, high: _clamped_at_once(w, n, a, None, high),
    aten.clamp_max.Tensor: lambda w, n, a, high: _clamped_at_once(w, n, a, None, high),
}
"""For a GPU: written for one neuron, rounded as ATen's CUDA kernels round, which fuse multiply-adds within an operator.

What a GPU of one's own computes is compared with its loop all the same, before it is used (`Program`).
"""

VIEWS = {
    aten.expand.default,
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.detach.default,
    aten.alias.default,
}
"""What may share its result's memory with its argument."""


def _in_place() -> dict:
    """The operators that write to their first argument, and the ones that compute the same."""
    found = {}
    for operator in OPERATORS:
        packet = getattr(aten, operator._schema.name.split("::")[1] + "_", None)
        if packet is not None and operator._overloadname in packet.overloads():
            found[getattr(packet, operator._overloadname)] = operator
    others = {aten.zero_.default: aten.zeros_like.default, aten.pow_.Scalar: aten.pow.Tensor_Scalar}
    return {**found, **others, aten.copy_.default: None}


IN_PLACE = _in_place()


def lanes_of(dtype: torch.dtype) -> int:
    """How many values of a dtype ATen's kernels take at once here; 0: they take one."""
    size = {"AVX2": 32, "AVX512": 64}.get(torch.backends.cpu.get_cpu_capability(), 0)
    return size // dtype.itemsize


def call_of(function: RowFunction, dtype: torch.dtype, at: str, from_row: str, to_row: str) -> tuple[str, str]:
    """The library's function for this dtype by name, and its call where its address is `at`."""
    lanes = lanes_of(dtype) or 32 // dtype.itemsize
    call = function.call.format(function=at, width="width", from_row=from_row, to_row=to_row, lanes=lanes)
    return function.symbols[dtype == torch.float64].format(lanes=lanes), call
