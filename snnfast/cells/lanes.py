"""A traced graph, sorted: what every neuron computes for itself, what parameters alone give, what is summed."""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from .operators import IN_PLACE, VIEWS, RowFunction, aten
from .products import BACK, PRODUCT, WEIGHT
from .tracing import Refused

_SUMS = (aten.sum.dim_IntList, aten.sum.default)
_HALVES = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, torch.float64, *_HALVES)
_KEEP = (aten._to_copy.default, aten.detach.default, aten.alias.default, aten.clone.default)
_UNCHANGED = (aten.detach.default, aten.alias.default, aten.clone.default)
_FILLS = (aten.zeros.default, aten.ones.default, aten.full.default, aten.scalar_tensor.default)


def _is_like(node: Node, other: Node) -> bool:
    mine, its = node.meta["val"], other.meta["val"]
    return mine.shape == its.shape and mine.dtype == its.dtype


class Lanes:
    """The nodes of one step's graph by what they are.

    A node is of kind
        "lane"      a value per neuron
        "constant"  the same number everywhere
        "param"     computed from tensors of the surroundings alone, by torch
        "sum"       lanes added up, or laid out in another shape: a term of a parameter's gradient
        "after"     computed from sums, by torch, once they are added up over time

    Args:
        module: the graph.
        names: of its placeholders that are lanes, the row that each is read from; None: a tensor of the surroundings.
        shape: of a step.
        operators: the table that they are written by.

    Raises:
        Refused: an operator, a dtype or a shape that no lane can have.
    """

    def __init__(self, module: GraphModule, names: Sequence[str | None], shape: torch.Size, operators: dict):
        self.module, self.graph, self.shape, self.operators = module, module.graph, shape, operators
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        self.rows = {node: name for node, name in zip(placeholders, names, strict=True) if name is not None}
        self.tensors = [node for node, name in zip(placeholders, names, strict=True) if name is None]
        self.written: set[Node] = set()
        """Placeholders that the step writes to."""
        self._without_writes()
        self.outputs: tuple[Node | None, ...] = next(n for n in self.graph.nodes if n.op == "output").args[0]
        self.kind: dict[Node, str] = {}
        for node in self.graph.nodes:
            if node.op != "output":
                self.kind[node] = self._kind_of(node)
        self.dtype = self._dtype()

    def _without_writes(self) -> None:
        """Operators that write become ones that compute: whoever reads that memory afterwards reads their result."""
        memory: dict[Node, Node] = {}
        newest: dict[Node, Node] = {}

        def current(node: Node) -> Node:
            return newest.get(memory[node], node)

        for node in list(self.graph.nodes):
            memory[node] = node
            if node.op == "placeholder":
                continue
            node.args, node.kwargs = map_arg(node.args, current), map_arg(node.kwargs, current)
            if node.op != "call_function":
                continue
            if node.target in _SUMS and _is_like(node, node.args[0]):
                # Over dimensions of size one.
                node.replace_all_uses_with(node.args[0])
                memory[node] = memory[node.args[0]]
                continue
            if node.target in IN_PLACE:
                target = node.args[0]
                if node.meta["val"].shape != target.meta["val"].shape or self._is_part(memory, target):
                    raise Refused(f"{node.target} on a part of a tensor")
                if node.target is aten.copy_.default:
                    source = node.args[1]
                    # Converted, and as large as what it is copied to.
                    node.target, node.args = aten._to_copy.default, (source,)
                    if source.meta["val"].shape != target.meta["val"].shape:
                        raise Refused("aten.copy_ from another shape")
                else:
                    node.target = IN_PLACE[node.target]
                memory[node] = memory[target]
                newest[memory[node]] = node
                if memory[node].op == "placeholder":
                    self.written.add(memory[node])
            elif node.target in VIEWS:
                memory[node] = memory[node.args[0]]
            elif getattr(node.target, "_schema", None) is not None and node.target._schema.is_mutable:
                raise Refused(f"{node.target} writes to its arguments")
        self.graph.eliminate_dead_code()

    @staticmethod
    def _is_part(memory: dict[Node, Node], node: Node) -> bool:
        return memory[node].meta["val"].shape != node.meta["val"].shape

    def _kind_of(self, node: Node) -> str:
        if node.op == "placeholder":
            return "lane" if node in self.rows else "param"
        if node.op == "get_attr":
            return "param"
        inputs = {self.kind[other] for other in node.all_input_nodes}
        value, target = node.meta["val"], node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            raise Refused(f"{target} draws random numbers")
        if not isinstance(value, Tensor):
            raise Refused(f"{target} gives no tensor")
        if not inputs:
            return "constant" if target in _FILLS else "param"
        if inputs <= {"param", "constant"}:
            return "param"
        if inputs & {"sum", "after"}:
            if "lane" in inputs:
                raise Refused(f"{target} mixes neurons: it takes a sum over them together with single ones")
            return "after"
        if target in (PRODUCT, BACK, WEIGHT):
            return self._kind_of_product(node)
        same = value.shape == self.shape
        if (target in _SUMS or target in VIEWS) and not same:
            return "sum"
        if target not in self.operators:
            raise Refused(f"{target} is not elementwise, or is not computed to the same bit")
        if target not in _KEEP and all(other.meta["val"].dtype in _HALVES for other in node.all_input_nodes):
            raise Refused(f"{target} computes in {node.args[0].meta['val'].dtype}")
        if not same:
            raise Refused(f"{target} gives shape {tuple(value.shape)}, a step has {tuple(self.shape)}")
        return "lane"

    def _kind_of_product(self, node: Node) -> str:
        """Of operators of `products`: what one gives is an input of the lanes."""
        if node.target is PRODUCT and not self.rows.get(self.origin(node.args[0]), "").startswith("rows.previous"):
            raise Refused("a product takes what is no state before the step")
        weights = node.args[1:3] if node.target is PRODUCT else node.args[1:2] if node.target is BACK else ()
        if any(other is not None and self.kind[other] != "param" for other in weights):
            raise Refused("a product has no weights that are the same at every step")
        return "sum" if node.target is WEIGHT else "lane"

    def origin(self, node: Node) -> Node:
        """What a node's value is, unchanged."""
        while node.target in _UNCHANGED:
            node = node.args[0]
        return node

    def _dtype(self) -> torch.dtype:
        """What lanes are computed in."""
        found, small = {}, set()
        for node, kind in self.kind.items():
            if kind == "lane":
                dtype = node.meta["val"].dtype
                if dtype == torch.bool or _is_small(node) or (node.target in _KEEP and node.args[0] in small):
                    # Zeros, ones and the like are the same in every dtype.
                    small.add(node)
                    if dtype in _FLOATS:
                        continue
                if dtype not in (torch.bool, *_FLOATS):
                    raise Refused(f"{node.target} has dtype {dtype}")
                found.setdefault(torch.float32 if dtype in _HALVES else dtype, node)
        found.pop(torch.bool, None)
        if len(found) > 1:
            raise Refused(f"it computes in {' and '.join(map(str, found))}")
        return next(iter(found), torch.float32)

    def params(self, outputs: Iterable[Node | None]) -> list[Node]:
        """The parameters that lanes read which these nodes need."""
        return [node for node in self.needed(outputs) if self.kind[node] == "param"]

    def needed(self, outputs: Iterable[Node | None]) -> list[Node]:
        """What it takes to compute these lanes, down to rows, parameters and constants, in order."""
        found, todo = set(), [node for node in outputs if node is not None]
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                if self.kind[node] == "lane" and node not in self.rows:
                    todo += node.all_input_nodes
        return [node for node in self.graph.nodes if node in found]

    def terms(self, outputs: Iterable[Node | None]) -> list[Node]:
        """The sums, and lanes taken for sums over no dimension, of which these gradients of parameters are made."""
        found, todo, seen = [], [node for node in outputs if node is not None], set()
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if self.kind[node] in ("sum", "lane"):
                found.append(node)
            elif self.kind[node] == "after":
                todo += node.all_input_nodes
        return sorted(found, key=list(self.graph.nodes).index)

    def identities(self) -> dict[Node, str]:
        """A name for each node, the same in two graphs for what is computed in the same way from the same rows."""
        found: dict[Node, str] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                found[node] = self.rows.get(node) or f"tensor {self.tensors.index(node)}"
            elif node.target in _UNCHANGED:
                found[node] = found[node.args[0]]
            elif node.op == "call_function":
                arguments = map_arg((node.args, node.kwargs), lambda other: _Named(found[other]))
                found[node] = hashlib.sha256(f"{node.target}{arguments}".encode()).hexdigest()
            elif node.op == "get_attr":
                found[node] = f"constant {id(getattr(self.module, node.target))}"
        return found

    def is_called(self, node: Node) -> bool:
        """Whether a library's function computes it for whole rows."""
        function = self.operators.get(node.target)
        return isinstance(function, RowFunction) and function.is_called(self.dtype)

    def row_functions(self) -> list[Node]:
        """The lanes, one of each identity, that a library's function computes: it takes longer than memory does."""
        names = self.identities()
        nodes = [node for node in self.needed(self.outputs) if self.kind[node] == "lane" and node not in self.rows]
        nodes = [node for node in nodes if self.is_called(node)]
        return [*{names[node]: node for node in reversed(nodes)}.values()][::-1]

    def computed(self, nodes: Iterable[Node], tensors: Sequence[Tensor], known: dict[Node, Tensor]) -> list[Tensor]:
        """Values of parameters, or of what follows sums, by torch. known: values of nodes."""
        values = {**dict(zip(self.tensors, tensors, strict=True)), **known}

        def value(node: Node):
            if node not in values:
                if node.op == "get_attr":
                    values[node] = getattr(self.module, node.target)
                else:
                    args, kwargs = map_arg((node.args, node.kwargs), value)
                    values[node] = node.target(*args, **kwargs)
            return values[node]

        return [value(node) for node in nodes]


class _Named:
    """Stands for a node in the words of its user's arguments."""

    def __init__(self, name: str):
        self._name = name

    def __repr__(self):
        return self._name


def _is_small(node: Node) -> bool:
    """Whether it chooses between numbers that every dtype has, as `torch.where(fired, 1.0, 0.0)`."""
    return node.target is aten.where.Scalar and all(number in (-1, 0, 1) for number in node.args[1:])
