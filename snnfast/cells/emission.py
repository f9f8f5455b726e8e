"""C++ from a step's lanes."""

from collections.abc import Sequence

import torch
from torch.fx import Node

from .lanes import Lanes
from .operators import OPERATORS, RowFunction, call_of, literal

_ROUNDED = {torch.bfloat16: "aten::as_bfloat16", torch.float16: "aten::as_float16"}
_TYPES = {torch.float32: "float", torch.float64: "double"}


class Emitter:
    """Writes one step: loops over the neurons of rows, with the calls of row functions between them.

    Args:
        lanes: of the step.
        params: which of its nodes the rows of parameters hold, in order.
        stores: what is stored, and in which rows; None: nothing, for which an absent gradient stands.
        symbols: of libraries' functions, by their numbers in `rows.functions`; added to.
    """

    def __init__(
        self, lanes: Lanes, params: Sequence[Node], stores: Sequence[tuple[Node | None, str]], symbols: list[str]
    ):
        self._lanes, self._stores, self._symbols = lanes, stores, symbols
        order = lanes.needed(node for node, _ in stores)
        self._number = {node: k for k, node in enumerate(order)}
        self._rows = {node: row for node, row in lanes.rows.items() if node in self._number}
        self._rows |= {node: f"rows.params[{params.index(node)}]" for node in order if lanes.kind[node] == "param"}
        self._computed = [node for node in order if lanes.kind[node] == "lane" and node not in self._rows]
        self._pointers: dict[str, str] = {}
        self._used: list[Node] = []
        self._divide()

    @property
    def reads(self) -> set[str]:
        """The rows that the step reads."""
        return set(self._rows.values())

    def text(self) -> str:
        """The body of a function of `rows` and `width`."""
        loops = [self._loop(part) for part in range(self._parts)]
        kept = [f"alignas(kLine) Row<T> r{self._number[node]};" for node in self._computed if self._is_kept(node)]
        kept += [f"alignas(kLine) Row<T> a{self._number[node]};" for node in self._computed if _is_row_function(node)]
        pointers = [f"auto* const __restrict {name} = {row};" for row, name in self._pointers.items()]
        return "\n".join([*pointers, *kept, *loops])

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

    def _named(self, node: Node) -> str:
        if self._lanes.kind[node] == "constant":
            return f"({OPERATORS[node.target](self, node, *node.args, **node.kwargs)})"
        self._used.append(node)
        return f"v{self._number[node]}"

    def _divide(self) -> None:
        """Into loops: the result of a row function is there for those after the one that fills its row."""
        self._part: dict[Node, int] = {}

        def ready(node: Node) -> int:
            return self._part.get(node, 0) + (node in self._part and _is_row_function(node))

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
        return _is_row_function(node) or self._read_until[node] > self._part[node]

    def _loop(self, part: int) -> str:
        self._used = []
        body, calls = [], []
        for node in self._computed:
            if self._part[node] == part:
                body += self._statements(node)
                if _is_row_function(node):
                    calls += self._call(node)
        for (node, row), at in zip(self._stores, self._stored_in, strict=True):
            if at == part:
                body.append(f"{self._pointer(row)}[i] = {'-T(0)' if node is None else self.number(node)};")
        loads = [self._load(node) for node in dict.fromkeys(self._used) if self._is_loaded(node, part)]
        text = "\n".join(["#pragma GCC ivdep", "for (int i = 0; i < width; ++i) {", *loads, *body, "}"])
        return "\n".join([text, *calls]) if body else ""

    def _is_loaded(self, node: Node, part: int) -> bool:
        return node in self._rows or self._part[node] < part or _is_row_function(node)

    def _load(self, node: Node) -> str:
        number = self._number[node]
        value = f"{self._pointer(self._rows[node])}[i]" if node in self._rows else f"r{number}[i]"
        return f"const bool v{number} = {value} != T(0);" if _is_truth(node) else f"const T v{number} = {value};"

    def _statements(self, node: Node) -> list[str]:
        number, operator = self._number[node], OPERATORS[node.target]
        if _is_row_function(node):
            return [f"a{number}[i] = {self.number(node.args[0])};"]
        text = operator(self, node, *node.args, **node.kwargs)
        dtype = node.meta["val"].dtype
        if dtype in _ROUNDED:
            text = f"{_ROUNDED[dtype]}({text})"
        found = [f"const {'bool' if _is_truth(node) else 'T'} v{number} = {text};"]
        if self._is_kept(node):
            found.append(f"r{number}[i] = {self._as_number(node)};")
        return found

    def _as_number(self, node: Node) -> str:
        name = f"v{self._number[node]}"
        return f"{name} ? T(1) : T(0)" if _is_truth(node) else name

    def _call(self, node: Node) -> list[str]:
        number, function = self._number[node], OPERATORS[node.target]
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

    def _pointer(self, row: str) -> str:
        return self._pointers.setdefault(row, f"p{len(self._pointers)}")


def _is_truth(node: Node) -> bool:
    return node.meta["val"].dtype == torch.bool


def _is_row_function(node: Node) -> bool:
    return isinstance(OPERATORS.get(node.target), RowFunction)


_FORWARD = """\
struct Cell {{
  using Scalar = T;
  static constexpr int kIns = {ins}, kOuts = {outs}, kStates = {states}, kParams = {params}, kTerms = 0;
  static void step(CellRows<Cell>& rows, int width) {{
{body}
  }}
}};
}}

extern "C" int run(const CellCall<T>* call) {{
  prepare_cell_memory<Cell>(*call);
  return for_cell_tiles(*call, false, [&](int64_t first, int width) {{ run_cell_tile<Cell>(*call, first, width); }});
}}
"""

_BACKWARD = """\
struct Cell {{
  using Scalar = T;
  static constexpr int kIns = {ins}, kOuts = {outs}, kStates = {states}, kParams = {params}, kTerms = {terms};
  static constexpr int kVariants = {variants};
  static constexpr int kFirstTerm[] = {{{first_terms}}};
  static void step_backward(int variant, CellRows<Cell>& rows, int width) {{
    switch (variant) {{
{cases}
    }}
  }}
{functions}
}};
}}

extern "C" int run(const CellCall<T>* call) {{
  prepare_cell_memory<Cell>(*call);
  return for_cell_tiles(*call, true,
                        [&](int64_t first, int width) {{ run_cell_tile_backward<Cell>(*call, first, width); }});
}}
"""

_FRAME = """\
#include "cpu/cell.h"

using namespace snnfast;

namespace {{
using T = {type};

{cell}"""


def forward_source(dtype: torch.dtype, counts: dict[str, int], body: str) -> str:
    """The file of a step. counts: ins, outs, states, params."""
    return _FRAME.format(type=_TYPES[dtype], cell=_FORWARD.format(**counts, body=body))


def backward_source(dtype: torch.dtype, counts: dict[str, int], bodies: Sequence[str], terms: Sequence[int]) -> str:
    """The file of a step's backward. bodies, terms: of each variant, and how many terms it has."""
    first_terms = [sum(terms[:k]) for k in range(len(terms) + 1)]
    cell = _BACKWARD.format(
        **counts,
        terms=first_terms[-1],
        variants=len(bodies),
        first_terms=", ".join(map(str, first_terms)),
        cases="\n".join(f"case {k}: return back_{k}(rows, width);" for k in range(len(bodies))),
        functions="\n".join(
            f"static void back_{k}(CellRows<Cell>& rows, int width) {{\n{body}\n}}" for k, body in enumerate(bodies)
        ),
    )
    return _FRAME.format(type=_TYPES[dtype], cell=cell)
