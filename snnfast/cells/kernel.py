"""A step's lanes as a kernel over whole sequences: what every device's has in common, and the CPU's."""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from .building import address, library
from .emission import RowEmitter, backward_source, forward_source
from .lanes import Lanes
from .operators import OPERATORS, RowFunction, lanes_of
from .tracing import Refused

_GRAIN = 32768
"""Elements that ATen's elementwise kernels leave to one thread."""


class Kernel:
    """A built step: lanes with what they store, one set for each variant.

    Args:
        variants, stores: of each.
        counts: ins, outs, states, products, first_product, and of a backward bridges.
        terms: of each variant of a backward, how many terms it has; None: a forward.
        late: of each variant of a backward lanes and stores of what comes after its products.
        rerun: lanes and stores of the step itself, where backward runs it again for its states.
        storage: dtypes of sequences of inputs, and of outputs.
        device: where it runs.

    Raises:
        Refused, BuildFailed.
    """

    operators: dict
    """The table that its lanes are written by."""
    multiplies = False
    """Whether it has products between steps."""
    reruns = False
    """Whether a backward may run steps again for their states."""
    tails: Sequence = ()
    """Functions that ATen rounds otherwise where no whole vector of values lies row by row."""

    def __init__(
        self,
        variants: Sequence[Lanes],
        stores: Sequence[list],
        counts: dict[str, int],
        terms: Sequence[int] | None,
        storage: tuple[torch.dtype, torch.dtype],
        device: torch.device,
        late: Sequence[tuple[Lanes, list]] = (),
        rerun: tuple[Lanes, list] | None = None,
    ):
        if rerun is not None:
            variants, stores = [*variants, rerun[0]], [*stores, rerun[1]]
        self._variants, self._stores, self._reruns = variants, stores, rerun is not None
        self._nodes = [lanes.params(node for node, _ in stored) for lanes, stored in zip(variants, stores, strict=True)]
        self._dtype, self._storage, self._device = variants[0].dtype, storage, device
        self._late = late
        self._counts, self._terms = {**counts, "params": sum(map(len, self._nodes))}, terms
        self._build()

    @staticmethod
    def storage(dtypes: Sequence[torch.dtype], dtype: torch.dtype) -> torch.dtype:
        """What sequences of these dtypes are given as to a kernel that computes in `dtype`."""
        return dtype

    @staticmethod
    def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for a result."""
        return torch.empty(shape, dtype=dtype, device=device)

    def run(
        self,
        steps: int,
        shape: torch.Size,
        tensors: Sequence[Tensor],
        headed: bool = False,
        recurrence=None,
        every: int = 1,
        **places,
    ) -> None:
        """One call.

        Args:
            tensors: of the surroundings, for the parameters.
            headed: whether `outer` has a row before the first step.
            recurrence: of a step with products, `Recurrence.call`.
            every: after every so many steps states are stored; backward runs those between again.
            places: lists of what is read and written, by the names of csrc/cpu/cell.h.
        """
        raise NotImplementedError

    def _build(self) -> None:
        raise NotImplementedError

    def _bodies(self, emitter, *more) -> list[str]:
        """Each variant's, written by an emitter."""
        bodies, first = [], 0
        for lanes, stored, nodes in zip(self._variants, self._stores, self._nodes, strict=True):
            bodies.append(emitter(lanes, [None] * first + nodes, stored, *more).text())
            first += len(nodes)
        return bodies

    def _params(self, tensors: Sequence[Tensor], shape: torch.Size) -> list[Tensor]:
        """The parameters that the kernel reads, computed from the surroundings' tensors."""
        with torch.no_grad():
            return [
                self._trailing(value, shape)
                for lanes, nodes in zip(self._variants, self._nodes, strict=True)
                for value in lanes.computed(nodes, tensors, {})
            ]

    def _trailing(self, value: Tensor, shape: torch.Size) -> Tensor:
        """A parameter laid out over the trailing dimensions that it differs in."""
        if value.numel() == 1 and value.device != self._device:
            # Filled in, which waits for no device.
            return torch.full((), value.item(), dtype=self._dtype, device=self._device)
        value = contiguous(value, self._dtype)
        if value.numel() == 1:
            return value
        inner = value.dim() - next(k for k, size in enumerate(value.shape) if size != 1)
        return value.reshape(value.shape[-inner:]).expand(shape[len(shape) - inner :]).contiguous()


class CpuKernel(Kernel):
    """In C++, by the system's compiler, for the time loops of csrc/cpu/cell.h."""

    operators = OPERATORS
    multiplies = reruns = True

    @staticmethod
    def empty(shape, dtype, device):
        return ops.fresh(shape, dtype)

    def _build(self):
        symbols = []
        bodies = self._bodies(RowEmitter, symbols)
        functions = {
            node.target
            for lanes, stored in zip(self._variants, self._stores, strict=True)
            for node in lanes.needed(node for node, _ in stored)
            if isinstance(OPERATORS.get(node.target), RowFunction) and node not in lanes.rows
        }
        self.tails = [function for function in functions if OPERATORS[function].tail]
        self._functions = (ctypes.c_void_p * max(1, len(symbols)))()
        for place, symbol in enumerate(symbols):
            self._functions[place] = address(symbol)
            if self._functions[place] is None:
                raise Refused(f"{', '.join(map(str, functions))}: this torch has no {symbol}")
        if self._terms is None:
            source = forward_source(self._dtype, self._counts, bodies[0])
        else:
            late = [RowEmitter(lanes, [], stored, symbols).text() if stored else "" for lanes, stored in self._late]
            step = bodies.pop() if self._reruns else None
            source = backward_source(self._dtype, self._counts, bodies, late, self._terms, step)
        self._library = library(source)

    def run(self, steps, shape, tensors, headed=False, recurrence=None, every=1, **places):
        params = self._params(tensors, shape)
        call = _Call(steps=steps, neurons=shape.numel(), whole=self._whole(shape), headed=headed, every=every)
        arrays = {name: array(values) for name, values in places.items()}
        arrays |= {"params": periodic(params), "functions": self._functions}
        for name, values in arrays.items():
            setattr(call, name, ctypes.cast(values, ctypes.c_void_p))
        call.parallel_for = address("torch_parallel_for")
        call.recurrence = recurrence and recurrence.address
        if self._library.run(ctypes.byref(call)) != 0:
            raise RuntimeError("a generated neuron's kernel failed in torch's parallel_for or in a product")

    def _whole(self, shape: torch.Size) -> int:
        """How many of a step's values fill whole vectors in ATen's kernels: the others may be rounded otherwise.

        Raises Refused where several threads have such others.
        """
        size, count = 2 * lanes_of(self._dtype), shape.numel()
        if size == 0:
            return 0
        threads = min(torch.get_num_threads(), math.ceil(count / _GRAIN))
        if self.tails and threads > 1 and (math.ceil(count / threads) % size or count % size):
            names = ", ".join(map(str, self.tails))
            raise Refused(f"{names}: ATen rounds them otherwise at the ends of its {threads} threads' shares")
        return count - count % size


class Rows(ctypes.Structure):
    """Rows of csrc/op/scan.h."""

    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64)]


class Periodic(ctypes.Structure):
    """Periodic of csrc/op/scan.h."""

    _fields_ = [("data", ctypes.c_void_p), ("period", ctypes.c_int64)]


class _Call(ctypes.Structure):
    """CellCall of csrc/cpu/cell.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("steps", "neurons", "whole")),
        *((name, ctypes.c_void_p) for name in ("parallel_for", "functions", "x", "initial", "params", "out", "states")),
        ("every", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("last", "grad_out", "outer")),
        ("headed", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("grad_last", "grad_x", "grad_initial", "terms", "recurrence")),
    ]


class Sequenced:
    """A sequence as kernels read it, and the tensor that holds it."""

    def __init__(self, kept: Tensor | None, stride: int, steps: int):
        self.kept, self.steps = kept, steps
        self.rows = Rows(None if kept is None else kept.data_ptr(), stride)

    def without_first(self) -> "Sequenced":
        """Its steps after the first."""
        if self.kept is None:
            return self
        found = Sequenced(self.kept, self.rows.stride, self.steps - 1)
        found.rows.data = self.kept.data_ptr() + self.rows.stride * self.kept.element_size()
        return found


NO_ROWS = Sequenced(None, 0, 0)


def rows(sequence: Tensor | None, dtype: torch.dtype) -> Sequenced:
    """A sequence, None: an absent one, as it lies in memory where kernels can read it so."""
    if sequence is None:
        return NO_ROWS
    steps = len(sequence)
    if steps > 1 and sequence.stride(0) == 0:
        return Sequenced(contiguous(sequence[0], dtype), 0, steps)
    kept = _plain(sequence, dtype)
    if not steps or not kept[0].is_contiguous():
        kept = kept.contiguous()
    return Sequenced(kept, kept.stride(0), steps)


def contiguous(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A tensor's values in row-major order."""
    return None if tensor is None else _plain(tensor, dtype).contiguous()


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Values as they stand in memory, each at an address that its type may have."""
    tensor = tensor.detach().to(dtype).resolve_neg()
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def array(values: Sequence) -> ctypes.Array:
    """Where sequences or tensors lie."""
    if any(isinstance(value, Sequenced) for value in values):
        return (Rows * len(values))(*(value.rows for value in values))
    return (ctypes.c_void_p * max(1, len(values)))(*(None if value is None else value.data_ptr() for value in values))


def periodic(params: Sequence[Tensor]) -> ctypes.Array:
    """Where parameters lie, and how many values each has."""
    return (Periodic * max(1, len(params)))(*(Periodic(p.data_ptr(), max(1, p.numel())) for p in params))
