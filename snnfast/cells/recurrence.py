"""All-to-all recurrence of a cell: what `products` traces, as inputs more of the step that each neuron computes.

Backward, that step and what is still to be done with what comes back through the weights are two parts (`split`).
"""

import copy
import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from .. import ops
from ..products import are_ours
from .building import address
from .lanes import Lanes
from .products import BACK, PRODUCT, WEIGHT
from .tracing import Refused

_DTYPES = {torch.float32: 6, torch.float64: 7}
"""c10's numbers of them."""
_CALLS = "create_tensor_from_blob", "delete_tensor_object", "cpu_mm_out", "cpu_addmm_out"


class Recurrence:
    """The products of a step.

    Args:
        lanes: of the step, whose products become rows: inputs from `first` on.
    """

    def __init__(self, lanes: Lanes, first: int):
        self._lanes, self._first = lanes, first
        self._nodes = [node for node in lanes.graph.nodes if node.target is PRODUCT]
        self._places = {node.args[3]: place for place, node in enumerate(self._nodes)}
        self.states = [int(lanes.rows[lanes.origin(node.args[0])][len("rows.previous[") : -1]) for node in self._nodes]
        """Which state each takes."""
        self.place(lanes)

    def __len__(self) -> int:
        return len(self._nodes)

    def place(self, lanes: Lanes) -> list[Node | None]:
        """Has lanes read the products, and what comes back, from rows. Gives the gradients that the products take."""
        grads = [None] * len(self)
        for node in lanes.graph.nodes:
            if node.target in (PRODUCT, BACK, WEIGHT):
                place = self._places[node.args[-1]]
                if node.target is PRODUCT:
                    lanes.rows[node] = f"rows.x[{self._first + place}]"
                else:
                    grads[place] = node.args[0]
                if node.target is BACK:
                    lanes.rows[node] = f"rows.fed[{place}]"
        return grads

    def call(self, shape: torch.Size, tensors: Sequence[Tensor], rec: Sequence[Tensor | None]) -> "Call":
        """For a kernel. tensors: of the surroundings; rec: where the products of all steps go."""
        with torch.no_grad():
            given = [
                [None if node is None else self._lanes.computed([node], tensors, {})[0] for node in product.args[1:3]]
                for product in self._nodes
            ]
        return Call(shape, self.states, given, rec)

    def grad_weight(self, node: Node, grads: Sequence[Tensor], states: Sequence[Tensor], seqs: Sequence[Tensor]):
        """The gradient of a product's weight, one product of all steps.

        Args:
            node: that stands for it.
            grads: of all products, [T, ...]; states: before the first step; seqs: of all steps.
        """
        place = self._places[node.args[2]]
        grad, k = grads[place], self.states[place]
        total = _turned(grad[0], states[k].to(grad.dtype))
        if len(grad) > 1:
            total += _turned(grad[1:], seqs[k][len(seqs[k]) - len(grad) : -1])
        return total


def _turned(grad: Tensor, x: Tensor) -> Tensor:
    """grad^T x, over all dimensions but the last."""
    if are_ours(x, grad.new_empty(1).expand(grad.shape[-1], x.shape[-1]), None):
        return ops.spikes.grad_weight(grad, x)
    return grad.flatten(0, -2).T @ x.flatten(0, -2)


def split(
    lanes: Lanes, of_states: Sequence[Node | None], others: Sequence[Node | None]
) -> tuple[list[Node], list[Node | None]]:
    """A step's backward, before its products and after them.

    Args:
        of_states: the gradients of states; others: what else it gives, which comes before.

    Returns:
        What of the part before the part after takes, and the gradients that it gives, None where one comes before.
    """
    after, taken = comes_after(lanes), {}
    if any(node in after for node in others):
        raise Refused("a product's gradient needs what comes back through another")
    late = [grad if grad in after else None for grad in of_states]
    for node in lanes.needed(late):
        for other in node.all_input_nodes if node in after and node not in lanes.rows else ():
            if lanes.kind[other] == "param":
                raise Refused("what comes back through weights meets a parameter")
            if lanes.kind[other] == "lane" and other not in after:
                taken[other] = None
    return list(taken), late


def comes_after(lanes: Lanes) -> set[Node]:
    """The lanes that need what comes back through weights."""
    found = set()
    for node in lanes.graph.nodes:
        if node.target is BACK or (node not in lanes.rows and any(other in found for other in node.all_input_nodes)):
            found.add(node)
    return found


def rest(lanes: Lanes, bridges: Sequence[Node]) -> Lanes:
    """The lanes of the part after the products, which reads what it takes of the part before from rows."""
    found = copy.copy(lanes)
    found.rows = {**lanes.rows, **{node: f"rows.bridges[{k}]" for k, node in enumerate(bridges)}}
    return found


class Call:
    """CellRecurrence of csrc/cpu/cell_recurrence.h, and all that it points to."""

    def __init__(self, shape: torch.Size, states: Sequence[int], given: Sequence[list], rec: Sequence[Tensor | None]):
        given = [(weight, None if bias is None else bias.contiguous()) for weight, bias in given]
        products = (_Product * len(states))()
        for one, state, (weight, bias) in zip(products, states, given, strict=True):
            one.state, one.weight = state, weight.data_ptr()
            one.strides[:] = weight.stride()
            one.bias = None if bias is None else bias.data_ptr()
        rec_rows = (ctypes.c_void_p * len(states))(*(None if one is None else one.data_ptr() for one in rec))
        calls = [address(f"aoti_torch_{name}") for name in _CALLS]
        if None in calls:
            raise Refused(f"this torch has no aoti_torch_{_CALLS[calls.index(None)]}")
        torchs = _Torch(*calls, _DTYPES[given[0][0].dtype])
        self._kept = given, rec, products, rec_rows, torchs
        of = ctypes.addressof
        self._found = _Recurrence(of(torchs), shape[-1], of(products), of(rec_rows))

    @property
    def address(self) -> int:
        return ctypes.addressof(self._found)


class _Torch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("from_blob", "remove", "mm", "addmm")),
        ("dtype", ctypes.c_int64),
    ]


class _Product(ctypes.Structure):
    _fields_ = [
        ("state", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("strides", ctypes.c_int64 * 2),
        ("bias", ctypes.c_void_p),
    ]


class _Recurrence(ctypes.Structure):
    _fields_ = [
        ("torch", ctypes.c_void_p),
        ("features", ctypes.c_int64),
        ("products", ctypes.c_void_p),
        ("rec", ctypes.c_void_p),
    ]
