"""The operations that may wait: what is not on this list ends the waiting of all others, and runs as written.

They read their arguments and give new tensors: no memory is written, nothing is drawn at random, nothing is switched.
"""

import operator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..compiler import rules
from .placeholder import DESCRIPTIONS

_BY_STEP = (
    "sum mean std var prod amax amin max min argmax argmin any all norm cumsum softmax log_softmax logsumexp "
    "matmul mm bmm mv dot einsum outer transpose permute movedim squeeze unsqueeze t swapaxes expand expand_as "
    "repeat repeat_interleave narrow select stack cat concat hstack vstack split chunk roll flip tril triu gather "
    "take_along_dim index_select masked_fill scatter one_hot view_as reshape_as unflatten conv_transpose1d "
    "conv_transpose2d conv_transpose3d layer_norm group_norm interpolate pad embedding cosine_similarity "
    "normalize pairwise_distance bilinear unfold fold pixel_shuffle cross_entropy nll_loss mse_loss l1_loss "
    "smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div cosine_embedding_loss "
    "hinge_embedding_loss poisson_nll_loss margin_ranking_loss local_response_norm glu threshold hardshrink "
    "softshrink softmin prelu logit isnan isinf isfinite heaviside remainder fmod floor_divide addcmul addcdiv "
    "addmm lerp contiguous float_power atan atan2 tan asin acos sinh cosh rsub log2 log10 trunc frac "
    "count_nonzero diff linear conv1d conv2d conv3d batch_norm max_pool1d max_pool2d max_pool3d "
    "avg_pool3d"
)
_REVERSED = (
    "__rsub__ __rdiv__ __rtruediv__ __pow__ __rpow__ __rmul__ __radd__ __rmatmul__ __rmod__ __floordiv__ "
    "__rfloordiv__ __getitem__ __eq__ __and__ __or__ __xor__ __invert__ positive"
)

DEFERRABLE = frozenset(
    {
        *(function for function in rules.TABLE if getattr(function, "__module__", "") != "_operator"),
        *rules.functions(" ".join(rules.METHODS) + " " + _REVERSED, Tensor),
        *rules.functions(_BY_STEP, torch, F, Tensor),
    }
)

PRODUCTS = frozenset(
    {
        F.linear,
        F.bilinear,
        *rules.functions("matmul mm bmm addmm baddbmm mv addmv dot einsum __rmatmul__", torch, Tensor),
    }
    | {getattr(home, f"conv{kind}d") for home in (torch, F) for kind in ("1", "2", "3")}
    | {getattr(torch, f"conv_transpose{rank}d") for rank in (1, 2, 3)}
)
"""Those whose sums may round otherwise when the steps are one call, or where operands begin elsewhere in memory."""

MULTIPLIES = frozenset(rules.functions("mul multiply __mul__ __rmul__", torch, Tensor))
"""Those that keep both factors for backward, where both have gradients."""

BY_LIBRARY = frozenset(
    rules.functions(
        "sigmoid exp tanh log sqrt sin cos atan tan asin acos erf erfc log2 log10 sinh cosh expm1 log1p",
        torch,
        F,
        Tensor,
    )
)
"""Those that a cell has a library compute, which costs more than a step's other operations."""

ELEMENTWISE = frozenset(
    rules.functions(
        f"{rules.POINTWISE} {rules.CASTS} sigmoid tanh relu leaky_relu hardtanh heaviside addcmul addcdiv lerp "
        "masked_fill threshold rsub logical_xor float_power contiguous positive __rsub__ __rdiv__ __rtruediv__ "
        "__pow__ __rpow__ __rmul__ __radd__ __eq__ __and__ __or__ __xor__ __invert__",
        torch,
        F,
        Tensor,
    )
)
"""Those that may be operations of a cell, which the cell's own table has the last word on."""

POOLS_BY_TAPS = frozenset({F.max_pool2d, torch.max_pool2d})
"""Of whose windows a packed loop keeps a byte each for backward."""


def _of_batch_norm(function):
    def written(args, kwargs):
        given = rules.given_to_batch_norm(function, args, kwargs)
        kept = [given.get(name) for name in rules.STATISTICS]
        return [tensor for tensor in kept if tensor is not None] if rules.trains(function, args, kwargs) else []

    return written


STATISTICS = {function: _of_batch_norm(function) for function in rules.BATCH_NORMS}
"""The running statistics that a batch-norm writes, of which their versions say nothing."""

VIEWS = frozenset(
    rules.functions(
        "view reshape flatten unflatten transpose permute movedim squeeze unsqueeze t swapaxes expand expand_as "
        "narrow select split chunk view_as reshape_as detach contiguous to float double __getitem__ unbind",
        torch,
        Tensor,
    )
)
"""Those whose result may be their argument's memory."""

OF_SHAPE = frozenset(
    {
        *rules.functions("zeros_like ones_like full_like empty_like rand_like randn_like randint_like", torch),
        *rules.functions("new_zeros new_ones new_full new_empty new_tensor", Tensor),
    }
)
"""Those that make a tensor of the shape, dtype and device of another, whose values they do not read."""

MAKERS = frozenset(
    {
        *OF_SHAPE,
        *rules.functions(
            "zeros ones full empty rand randn randint randperm arange linspace eye tensor as_tensor bernoulli "
            "normal poisson multinomial from_numpy is_tensor is_storage get_default_dtype equal allclose",
            torch,
        ),
        *rules.functions(
            "item tolist __bool__ __int__ __float__ cpu __format__ __repr__ clone __contains__ equal cuda",
            Tensor,
        ),
    }
)
"""Others that write no memory there was: on computed tensors they run at once, and nothing else is computed."""


def in_place() -> dict:
    """For each in-place operation that may wait, the one whose result it writes."""
    pairs = {}
    for name in rules.POINTWISE.split() + ["relu", "masked_fill", "addcmul", "lerp"]:
        written, made = getattr(Tensor, f"{name}_", None), getattr(Tensor, name, None)
        if written is not None and made in DEFERRABLE and name not in ("detach",):
            pairs[written] = made
    return pairs


def set_item(x: Tensor, index, value) -> Tensor:
    """`x[index] = value`; gives `x`."""
    x[index] = value
    return x


IN_PLACE = {**in_place(), Tensor.__setitem__: set_item}


def call_of(function) -> tuple[str, object]:
    """How a graph calls it: ("call_method", name) or ("call_function", function)."""
    if function is Tensor.__getitem__:
        return "call_function", operator.getitem
    name = getattr(function, "__name__", "")
    if function not in rules.TABLE and getattr(Tensor, name, None) is function:
        return "call_method", name
    return "call_function", function


_GIVES_MEMORY = {"numpy", "__array__", "__dlpack__", "data_ptr"}
"""Names of calls that hand a tensor's memory to what may write to it unseen."""


def written_by(function, args: tuple, kwargs: dict):
    """The tensors that a call may write: None where that could be any it is given."""
    if kwargs and kwargs.get("out") is not None:
        return [kwargs["out"]]
    name = getattr(function, "__name__", "")
    if name in _GIVES_MEMORY:
        return [args[0]]
    if function in DEFERRABLE or function in MAKERS:
        return [] if not (kwargs and kwargs.get("inplace")) else [args[0]]
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name in ("__iadd__", "__isub__"):
        return [args[0]] if args and isinstance(args[0], Tensor) else None
    return None


READERS = DEFERRABLE | MAKERS | DESCRIPTIONS
"""Those that write nothing, unless an argument says so."""

ENDS = frozenset({Tensor.backward, torch.autograd.backward, torch.autograd.grad})
"""What no step of a loop that is worth recording does."""


def is_array(value) -> bool:
    """Whether it is a NumPy array, or another that is no tensor: it may be written to before what waits is computed."""
    kind = type(value)
    return hasattr(kind, "__array__") and hasattr(kind, "__setitem__") and not isinstance(value, Tensor)


def is_whole(entry) -> bool:
    """Whether an entry of an index is a step's number, or takes all there is."""
    if isinstance(entry, slice):
        return entry.start is entry.stop is entry.step is None
    return entry is None or entry is Ellipsis or type(entry) is int
