"""The batching rules: how T calls, one a step, become one call on [T, ...] stacks.

A rule gets a `Call`, in which what differs from step to step is `Stacked` and the rest is shared, and returns the
`Batched` call, or None where the operator cannot be batched with these arguments. TABLE and METHODS name the operators
whose fastest batched form is known; any other torch operator without effects is batched by `torch.vmap`.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .. import _torch, images, products
from . import graph as g


@dataclass(frozen=True)
class Stacked:
    """An argument that is another node at every step, and what is done to its [T, ...] stack before the call."""

    lanes: tuple[Node, ...]
    before: Callable[[Tensor], Tensor] | None = None

    @property
    def rank(self) -> int:
        """Dimensions of one step's value."""
        return g.value(self.lanes[0]).dim()


@dataclass(frozen=True)
class Call:
    """T calls of one operator; `args` and `kwargs` hold `Stacked` where the steps differ."""

    lanes: tuple[Node, ...]
    args: tuple
    kwargs: dict

    @property
    def target(self):
        return self.lanes[0].target

    @property
    def is_method(self) -> bool:
        return self.lanes[0].op == "call_method"

    def shared(self) -> list[Node]:
        """The nodes that every step uses."""
        return [leaf for leaf in leaves(self) if isinstance(leaf, Node)]


@dataclass(frozen=True)
class Batched:
    """One call for all steps; `exact`: gradients and rounding are those of the steps, whatever the sizes."""

    op: str
    target: object
    args: tuple
    kwargs: dict
    exact: bool
    after: Callable[[Tensor], Tensor] | None = None


def is_stacked(leaf) -> bool:
    return isinstance(leaf, Stacked)


def leaves(call: Call | Batched) -> list:
    """All arguments, flat."""
    return tree_flatten((call.args, call.kwargs), is_leaf=is_stacked)[0]


def stacked(call: Call | Batched) -> list[Stacked]:
    """The arguments that differ from step to step."""
    return [leaf for leaf in leaves(call) if isinstance(leaf, Stacked)]


def batch(call: Call) -> Batched | None:
    """The batched form of a call, by the table or by `torch.vmap`."""
    if not stacked(call):
        return None
    known = METHODS.get(call.target) if call.is_method else TABLE.get(call.target)
    batched = known(call) if known else None
    return batched or by_vmap(call)


def _same(call: Call, exact: bool, prepare: Callable[[Stacked], Stacked] = lambda leaf: leaf, after=None) -> Batched:
    def one(leaf):
        return prepare(leaf) if isinstance(leaf, Stacked) else leaf

    args, kwargs = tree_map(one, (call.args, call.kwargs), is_leaf=is_stacked)
    return Batched(call.lanes[0].op, call.target, args, kwargs, exact, after)


def pointwise(call: Call) -> Batched | None:
    """Elementwise with broadcasting: a stack of fewer dimensions gets the missing ones after time."""
    result = g.value(call.lanes[0])
    if not isinstance(result, Tensor):
        return None
    operands = [g.value(leaf.lanes[0]) for leaf in stacked(call)] + [g.value(leaf) for leaf in call.shared()]
    operands = [operand for operand in operands if isinstance(operand, Tensor)]
    # A number-like tensor loses its say on the result's dtype; a stack of them would have it.
    if any(operand.dim() == 0 for operand in operands) and len({operand.dtype for operand in operands}) > 1:
        return None
    if len({operand.device for operand in operands}) > 1:
        return None

    def prepare(leaf):
        missing = result.dim() - leaf.rank
        return Stacked(leaf.lanes, padding(missing)) if missing else leaf

    name = getattr(call.target, "__name__", call.target)
    # `add(alpha=)` is one fused operation in vectors and two in what remains.
    rounded = name in CORRECTLY_ROUNDED and "alpha" not in call.kwargs
    return _same(call, rounded and not _shares_gradients(call), prepare)


def leading(call: Call) -> Batched | None:
    """Acts on the last dimensions of its first argument and takes any number before them."""
    if not _only_first_stacked(call) or stacked(call)[0].rank < 1:
        return None
    return _same(call, exact=False)


def linear(call: Call) -> Batched | None:
    """`F.linear` of one weight, whose input may be spikes."""
    if not _only_first_stacked(call) or stacked(call)[0].rank < 1:
        return None
    return Batched("call_function", products.linear, call.args, call.kwargs, exact=False)


def matrix_product(call: Call) -> Batched | None:
    """`x @ weight` with one weight for all steps, whose input may be spikes."""
    if not _only_first_stacked(call) or len(call.args) != 2 or not isinstance(call.args[1], Node):
        return None
    if g.value(call.args[1]).dim() != 2:
        return None
    return Batched("call_function", products.matmul, call.args, {}, exact=False)


def folding(rank: int, exact: bool = False, target=None) -> Callable[[Call], Batched | None]:
    """Rule of an operator on [B, ...] of `rank` dimensions that treats samples alike: time is folded into the batch;
    target: what is called in its place."""

    def rule(call):
        if not _only_first_stacked(call) or not isinstance(g.value(call.lanes[0]), Tensor):
            return None
        if (rank and stacked(call)[0].rank != rank) or stacked(call)[0].rank < 2:
            return None
        unfold = unfolding(len(call.lanes))
        folded = _same(call, exact and not _shares_gradients(call), lambda leaf: Stacked(leaf.lanes, fold), unfold)
        return replace(folded, target=target) if target else folded

    return rule


def batch_norm(call: Call) -> Batched | None:
    """By running statistics time is folded into the batch; by its own samples every step is normalised by itself."""
    return in_turn(call) if takes_statistics(call.lanes[0]) else folding(0)(call)


def takes_statistics(node: Node) -> bool:
    """Whether a node is batch-norm by its own samples, which writes no memory but that of its running statistics."""
    return node.op == "call_function" and trains(node.target, node.args, node.kwargs)


def given_to_batch_norm(function, args: tuple, kwargs: dict) -> dict:
    """The arguments of a batch-norm by name; of another function those by name alone."""
    return dict(zip(BATCH_NORMS.get(function, ()), args, strict=False)) | kwargs


def trains(function, args: tuple, kwargs: dict) -> bool:
    """Whether a function is batch-norm that normalises by its own samples."""
    return function in BATCH_NORMS and given_to_batch_norm(function, args, kwargs).get("training", False) is not False


def in_turn(call: Call) -> Batched:
    """The calls themselves, one after the other, on the steps of a stack: alone they change nothing, but as one call
    they let what leads to them and what follows run at once. Measured on CPUs, batch-norm of [B, T * C] is slower."""
    rank = g.value(call.lanes[0]).dim()
    flat, nesting = tree_flatten((call.args, call.kwargs), is_leaf=is_stacked)
    places = [place for place, leaf in enumerate(flat) if isinstance(leaf, (Stacked, Node))]

    def column(leaf):
        """The lanes of smaller tensors, such as weights, as they are: a stack would copy what is written to."""
        if isinstance(leaf, Node):
            return (leaf,) * len(call.lanes)
        return leaf if leaf.rank == rank else leaf.lanes

    def one_by_one(*columns):
        steps = []
        for lanes in zip(*columns, strict=True):
            filled = list(flat)
            for place, lane in zip(places, lanes, strict=True):
                filled[place] = lane
            args, kwargs = tree_unflatten(filled, nesting)
            steps.append(call.target(*args, **kwargs))
        return torch.stack(steps)

    one_by_one.__name__ = f"{call.target.__name__}_one_by_one"
    return Batched("call_function", one_by_one, tuple(column(flat[place]) for place in places), {}, exact=False)


def reshape(call: Call) -> Batched | None:
    """`x.reshape(*sizes)` and `x.view(*sizes)`."""
    if not _only_first_stacked(call) or isinstance(g.value(call.lanes[0]), tuple) or call.kwargs:
        return None
    sizes = call.args[1:]
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    if any(isinstance(size, torch.dtype) for size in sizes):
        return None
    return Batched("call_method", "reshape", (call.args[0], len(call.lanes), *sizes), {}, exact=True)


def flatten(call: Call) -> Batched | None:
    """`x.flatten(start, end)`."""
    if not _only_first_stacked(call) or stacked(call)[0].rank < 1:
        return None
    given = dict(zip(("start_dim", "end_dim"), call.args[1:], strict=False)) | call.kwargs
    start, end = (_after_time(given.get(name, default)) for name, default in (("start_dim", 0), ("end_dim", -1)))
    return Batched("call_method", "flatten", (call.args[0], start, end), {}, exact=True)


def pick(call: Call) -> Batched | None:
    """One output of a call with several."""
    first = call.args[0]
    if not isinstance(first, Stacked) or not isinstance(g.value(first.lanes[0]), (tuple, list)):
        return None
    return _same(call, exact=True)


def by_vmap(call: Call) -> Batched | None:
    """Any operator of torch that vmap knows, on tensors."""
    custom = isinstance(call.target, (_torch.Operator, _torch.Packet))
    if custom or not g.tensors(call.lanes[0]) or call.target in NO_VMAP:
        return None
    if not call.is_method and (getattr(call.target, "__module__", None) or "torch").split(".")[0] not in (
        "torch",
        "_operator",
    ):
        return None
    flat, nesting = tree_flatten((call.args, call.kwargs), is_leaf=is_stacked)
    mapped = [index for index, leaf in enumerate(flat) if isinstance(leaf, (Stacked, Node))]
    axes = tuple(0 if isinstance(flat[index], Stacked) else None for index in mapped)
    op, target = call.lanes[0].op, call.target

    def over_time(*given):
        def one_step(*lanes):
            filled = list(flat)
            for index, lane in zip(mapped, lanes, strict=True):
                filled[index] = lane
            args, kwargs = tree_unflatten(filled, nesting)
            return g.run(op, target, args, kwargs)

        return torch.vmap(one_step, in_dims=axes)(*given)

    over_time.__name__ = f"{getattr(target, '__name__', target)}_over_time".replace(".", "_")
    return Batched("call_function", over_time, tuple(flat[index] for index in mapped), {}, exact=False)


def fold(x: Tensor) -> Tensor:
    """[T, B, ...] as [T * B, ...]."""
    return x.flatten(0, 1)


def unfolding(steps: int) -> Callable[[Tensor], Tensor]:
    """[T * B, ...] back as [T, B, ...]."""

    def unfold(x):
        return x.reshape(steps, x.shape[0] // steps, *x.shape[1:])

    return unfold


def padding(missing: int) -> Callable[[Tensor], Tensor]:
    """[T, ...] with `missing` dimensions of size 1 after time."""

    def pad(x):
        return x.reshape(x.shape[0], *(1,) * missing, *x.shape[1:])

    return pad


def _after_time(dim: int) -> int:
    return dim + 1 if dim >= 0 else dim


def _only_first_stacked(call: Call) -> bool:
    return call.args and isinstance(call.args[0], Stacked) and len(stacked(call)) == 1


def _shares_gradients(call: Call) -> bool:
    """Whether the steps' gradients of a shared argument are added up."""
    return any(tensor.requires_grad for node in call.shared() for tensor in g.tensors(node))


def functions(names: str, *homes) -> list:
    """What has one of these names in one of these places, where there is such a thing."""
    return [getattr(home, name) for home in homes for name in names.split() if hasattr(home, name)]


POINTWISE = (
    "add sub mul div true_divide neg abs exp expm1 log log1p sqrt rsqrt square pow reciprocal tanh sigmoid relu sin "
    "cos erf sign floor ceil round clamp clamp_min clamp_max minimum maximum where gt ge lt le eq ne logical_and "
    "logical_or logical_not nan_to_num detach clone"
)
ACTIVATIONS = "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign sigmoid tanh hardtanh hardsigmoid"
OPERATORS = "add sub mul truediv neg pos pow abs gt ge lt le eq ne and_ or_ invert"
POOLS = "max_pool?d avg_pool?d adaptive_avg_pool?d"
CASTS = "float double half bfloat16 bool int long to type_as"
# The same to the bit wherever an element stands in memory, which exp or tanh in vectors are not.
CORRECTLY_ROUNDED = (
    "add sub mul div true_divide truediv neg pos abs sqrt relu relu6 leaky_relu hardtanh clamp minimum maximum "
    "where gt ge lt le eq ne logical_and logical_or logical_not and_ or_ invert detach clone " + CASTS
).split()

STATISTICS = ("running_mean", "running_var")
BATCH_NORMS = {
    F.batch_norm: ("input", *STATISTICS, "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: ("input", "weight", "bias", *STATISTICS, "training", "momentum", "eps"),
}

TABLE = {
    **dict.fromkeys(functions(POINTWISE, torch), pointwise),
    **dict.fromkeys(functions(ACTIVATIONS, torch, F), pointwise),
    **dict.fromkeys(functions(OPERATORS, operator), pointwise),
    **dict.fromkeys((F.linear, _torch.functions.linear), linear),
    F.layer_norm: leading,
    **dict.fromkeys((operator.matmul, torch.matmul, torch.mm), matrix_product),
    **dict.fromkeys((F.conv1d, torch.conv1d), folding(3)),
    **dict.fromkeys((F.conv2d, torch.conv2d), folding(4, target=images.conv2d)),
    **dict.fromkeys((F.conv3d, torch.conv3d), folding(5)),
    F.conv_transpose2d: folding(4, target=images.conv_transpose2d),
    **dict.fromkeys(functions(POOLS.replace("?", "1"), F, torch), folding(3, exact=True)),
    **dict.fromkeys(functions(POOLS.replace("?", "2"), F, torch, _torch.functions), folding(4, exact=True)),
    **dict.fromkeys(BATCH_NORMS, batch_norm),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), folding(4, exact=True, target=images.max_pool2d)),
    torch.flatten: flatten,
    torch.reshape: reshape,
    operator.getitem: pick,
}
METHODS = {
    **dict.fromkeys(POINTWISE.split(), pointwise),
    **dict.fromkeys(CASTS.split(), pointwise),
    "matmul": matrix_product,
    "mm": matrix_product,
    "flatten": flatten,
    "reshape": reshape,
    "view": reshape,
}
# Emission joins and takes apart steps itself.
NO_VMAP = {torch.stack, torch.cat, "unbind", torch.unbind}
