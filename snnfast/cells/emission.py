"""C++ from a step's lanes."""

from collections.abc import Sequence

import torch
from torch.fx import Node

from .lanes import Lanes
from .operators import RowFunction, call_of, fuses, literal

_ROUNDED = {torch.bfloat16: "aten::as_bfloat16", torch.float16: "aten::as_float16"}
TYPES = {torch.float32: "float", torch.float64: "double"}


class Emitter:
    """Writes one step: what every neuron computes, in order.

    Args:
        lanes: of the step.
        params: which of its nodes the places of parameters hold, in order.
        stores: what is stored, and in which places; None: nothing, for which an absent gradient stands.
    """

    fuses: bool
    """Whether ATen's kernels fuse multiply-adds within an operator."""

    def __init__(self, lanes: Lanes, params: Sequence[Node], stores: Sequence[tuple[Node | None, str]]):
        self._lanes, self._stores = lanes, stores
        self._order = order = lanes.needed(node for node, _ in stores)
        self._number = {node: k for k, node in enumerate(order)}
        self._rows = {node: row for node, row in lanes.rows.items() if node in self._number}
        self._rows |= {node: f"rows.params[{params.index(node)}]" for node in order if lanes.kind[node] == "param"}
        self._computed = [node for node in order if lanes.kind[node] == "lane" and node not in self._rows]
        self._used: list[Node] = []

    def number(self, value) -> str:
        """An argument of an operator, as a number."""
        if not isinstance(value, Node):
            return literal(float(value))
        text = self._named(value)
        return f"({text} ? T(1) : T(0))" if _is_truth(value) else text

    def truth(self, value) -> str:
        """An argument of an operator, as true or false."""
        if not isinstance(value, Node):
            return literal(bool(value))
        text = self._named(value)
        return text if _is_truth(value) else f"({text} != T(0))"

    def fused(self, a: str, b: str, c: str) -> str:
        """a * b + c, as ATen's kernels round it within an operator."""
        return f"aten::fused<T>({a}, {b}, {c})" if self.fuses else f"({a} * {b} + {c})"

    def _named(self, node: Node) -> str:
        if self._lanes.kind[node] == "constant":
            return f"({self._expression(node)})"
        self._used.append(node)
        return f"v{self._number[node]}"

    def _expression(self, node: Node) -> str:
        text = self._lanes.operators[node.target](self, node, *node.args, **node.kwargs)
        rounded = _ROUNDED.get(node.meta["val"].dtype)
        return f"{rounded}({text})" if rounded else text

    def _defined(self, node: Node, value: str) -> str:
        return f"const {'bool' if _is_truth(node) else 'T'} v{self._number[node]} = {value};"

    def _loaded(self, node: Node, place: str) -> str:
        return self._defined(node, f"{place} != T(0)" if _is_truth(node) else place)

    def _stored(self, node: Node | None) -> str:
        return "-T(0)" if node is None else self.number(node)


class LaneEmitter(Emitter):
    """Writes a step of one neuron, for a GPU's threads."""

    fuses = True

    def text(self) -> str:
        """The body of a function of `rows`, whose places are numbers."""
        loads = [self._loaded(node, self._rows[node]) for node in self._order if node in self._rows]
        body = [self._defined(node, self._expression(node)) for node in self._computed]
        return "\n".join([*loads, *body, *(f"{row} = {self._stored(node)};" for node, row in self._stores)])


class RowEmitter(Emitter):
    """Writes a step of many neurons: loops over the neurons of rows, with the calls of row functions between them.

    Args:
        symbols: of libraries' functions, by their numbers in `rows.functions`; added to.
    """

    def __init__(self, lanes: Lanes, params, stores, symbols: list[str]):
        super().__init__(lanes, params, stores)
        self.fuses, self._symbols = fuses(), symbols
        self._pointers: dict[str, str] = {}
        self._divide()

    def text(self) -> str:
        """The body of a function of `rows` and `width`."""
        loops = [self._loop(part) for part in range(self._parts)]
        kept = [f"alignas(kLine) Row<T> r{self._number[node]};" for node in self._computed if self._is_kept(node)]
        kept += [f"alignas(kLine) Row<T> a{self._number[node]};" for node in self._computed if self._is_row(node)]
        pointers = [f"auto* const __restrict {name} = {row};" for row, name in self._pointers.items()]
        return "\n".join([*pointers, *kept, *loops])

    def _divide(self) -> None:
        """Into loops: the result of a row function is there for those after the one that fills its row."""
        self._part: dict[Node, int] = {}

        def ready(node: Node) -> int:
            return self._part.get(node, 0) + (node in self._part and self._is_row(node))

        for node in self._computed:
            self._part[node] = max(map(ready, node.all_input_nodes), default=0)
        self._stored_in = [ready(node) if node is not None else 0 for node, _ in self._stores]
        self._parts = 1 + max([*self._part.values(), *self._stored_in])
        self._read_until = {node: part for node, part in self._part.items()}
        for node in self._computed:
            for other in node.all_input_nodes:
                self._read_until[other] = max(self._read_until.get(other, 0), self._part[node])
        for (node, _), part in zip(self._stores, self._stored_in, strict=True):
            self._read_until[node] = max(self._read_until.get(node, 0), part)

    def _is_kept(self, node: Node) -> bool:
        """Whether its value has a row: a loop after its own reads it."""
        return self._is_row(node) or self._read_until[node] > self._part[node]

    def _loop(self, part: int) -> str:
        computed = [node for node in self._computed if self._part[node] == part]
        loops = [self._over("int i = 0; i < width", part, computed)]
        if any(not self._is_row(node) and isinstance(self._function(node), RowFunction) for node in computed):
            bounds = "int i = 0; i < rows.whole", "int i = rows.whole; i < width"
            loops = [self._over(bounds[tail], part, computed, tail) for tail in (False, True)]
        calls = [line for node in computed if self._is_row(node) for line in self._call(node)]
        return "\n".join([*loops, *calls]) if loops[0] else ""

    def _over(self, bounds: str, part: int, computed: Sequence[Node], tail: bool = False) -> str:
        """The loop over these neurons. tail: those that fill no whole vectors in ATen's kernels."""
        self._used, self._tail = [], tail
        body = [line for node in computed for line in self._statements(node)]
        for (node, row), at in zip(self._stores, self._stored_in, strict=True):
            if at == part:
                body.append(f"{self._pointer(row)}[i] = {self._stored(node)};")
        loads = [self._load(node) for node in dict.fromkeys(self._used) if self._is_loaded(node, part)]
        return "\n".join(["#pragma GCC ivdep", f"for ({bounds}; ++i) {{", *loads, *body, "}"]) if body else ""

    def _expression(self, node: Node) -> str:
        function = self._function(node)
        if not isinstance(function, RowFunction):
            return super()._expression(node)
        return (function.tail if self._tail else function.fused).format(self.number(node.args[0]))

    def _is_loaded(self, node: Node, part: int) -> bool:
        return node in self._rows or self._part[node] < part or self._is_row(node)

    def _load(self, node: Node) -> str:
        row = self._pointer(self._rows[node]) if node in self._rows else f"r{self._number[node]}"
        return self._loaded(node, f"{row}[i]")

    def _statements(self, node: Node) -> list[str]:
        number = self._number[node]
        if self._is_row(node):
            return [f"a{number}[i] = {self.number(node.args[0])};"]
        found = [self._defined(node, self._expression(node))]
        if self._is_kept(node):
            found.append(f"r{number}[i] = {self._as_number(node)};")
        return found

    def _as_number(self, node: Node) -> str:
        name = f"v{self._number[node]}"
        return f"{name} ? T(1) : T(0)" if _is_truth(node) else name

    def _call(self, node: Node) -> list[str]:
        number, function = self._number[node], self._function(node)
        place = len(self._symbols)
        at = f"rows.functions[{place}]"
        symbol, call = call_of(function, self._lanes.dtype, at, f"a{number}", f"r{number}")
        self._symbols.append(symbol)
        lines = [call]
        if function.tail:
            lines.append(
                f"for (int i = rows.whole; i < width; ++i) r{number}[i] = {function.tail.format(f'a{number}[i]')};"
            )
        return lines

    def _function(self, node: Node):
        return self._lanes.operators.get(node.target)

    def _is_row(self, node: Node) -> bool:
        return self._lanes.is_called(node)

    def _pointer(self, row: str) -> str:
        return self._pointers.setdefault(row, f"p{len(self._pointers)}")


def _is_truth(node: Node) -> bool:
    return node.meta["val"].dtype == torch.bool


_FORWARD = """\
struct Cell {{
  using Scalar = T;
  static constexpr int kIns = {ins}, kOuts = {outs}, kStates = {states}, kParams = {params}, kTerms = 0;
  static constexpr int kProducts = {products}, kFirstProduct = {first_product}, kBridges = 0;
  static void step(CellRows<Cell>& rows, int width) {{
{body}
  }}
}};
}}

extern "C" int run(const CellCall<T>* call) {{
  prepare_cell_memory<Cell>(*call);
  if constexpr (Cell::kProducts > 0) return run_recurrent_cell<Cell>(*call);
  return for_cell_tiles(*call, false, [&](int64_t first, int width) {{ run_cell_tile<Cell>(*call, first, width); }});
}}
"""

_BACKWARD = """\
struct Cell {{
  using Scalar = T;
  static constexpr int kIns = {ins}, kOuts = {outs}, kStates = {states}, kParams = {params}, kTerms = {terms};
  static constexpr int kProducts = {products}, kFirstProduct = {first_product}, kBridges = {bridges};
  static constexpr int kVariants = {variants};
  static constexpr bool kReruns = {reruns};
  static constexpr int kFirstTerm[] = {{{first_terms}}};
  static void step_backward(int variant, CellRows<Cell>& rows, int width) {{
    switch (variant) {{
{cases}
    }}
  }}
  static void step_late(int variant, CellRows<Cell>& rows, int width) {{
    switch (variant) {{
{late_cases}
    }}
  }}
  static void step(CellRows<Cell>& rows, int width) {{
{step}
  }}
{functions}
}};
}}

extern "C" int run(const CellCall<T>* call) {{
  prepare_cell_memory<Cell>(*call);
  if constexpr (Cell::kProducts > 0) return RecurrentBackward<Cell>(*call).run();
  return for_cell_tiles(*call, true,
                        [&](int64_t first, int width) {{ run_cell_tile_backward<Cell>(*call, first, width); }});
}}
"""

_FRAME = """\
#include "cpu/cell_recurrence.h"

using namespace snnfast;

namespace {{
using T = {type};

{cell}"""


def forward_source(dtype: torch.dtype, counts: dict[str, int], body: str) -> str:
    """The file of a step. counts: ins, outs, states, params, products, first_product."""
    return _FRAME.format(type=TYPES[dtype], cell=_FORWARD.format(**counts, body=body))


def backward_source(
    dtype: torch.dtype,
    counts: dict[str, int],
    bodies: Sequence[str],
    late: Sequence[str],
    terms: Sequence[int],
    step: str | None,
) -> str:
    """The file of a step's backward. bodies, late, terms: of each variant, what comes before its products and after
    them, and how many terms it has; step: the step itself, where it is run again for its states."""
    first_terms = [sum(terms[:k]) for k in range(len(terms) + 1)]
    functions = [
        (f"{name}_{k}", body) for name, texts in (("back", bodies), ("late", late)) for k, body in enumerate(texts)
    ]
    cell = _BACKWARD.format(
        **counts,
        terms=first_terms[-1],
        variants=len(bodies),
        reruns="false" if step is None else "true",
        step=step or "",
        first_terms=", ".join(map(str, first_terms)),
        cases="\n".join(f"case {k}: return back_{k}(rows, width);" for k in range(len(bodies))),
        late_cases="\n".join(f"case {k}: return late_{k}(rows, width);" for k in range(len(late))),
        functions="\n".join(
            f"static void {name}(CellRows<Cell>& rows, int width) {{\n{body}\n}}" for name, body in functions
        ),
    )
    return _FRAME.format(type=TYPES[dtype], cell=cell)
