"""The compiler's batching rules, for the operations of a recorded loop: one call for all steps of a window."""

import dataclasses
import itertools

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .. import images
from ..compiler import graph as g
from ..compiler import rules
from . import known
from .operation import Operation
from .series import Series


def rule_of(operation: Operation, inputs: list):
    """The rule's one call, its `Stacked` holding the numbers of series; None without a rule."""
    if operation.several is not None or rules.trains(operation.function, *operation.values(inputs)):
        return None
    graph, numbers = Graph(), itertools.count()

    def node_of(value: Tensor) -> Node:
        node = graph.placeholder(f"x{len(graph.nodes)}")
        node.meta["example_value"] = value
        return node

    def leaf(number):
        given, slot = inputs[number], operation.slots[number]
        if isinstance(given, Series):
            node = node_of(given.steady if given.is_steady else _sample(slot.like))
            node.meta["series"] = next(numbers)
            return node if given.is_steady else rules.Stacked((node,) * operation.count)
        return _shared(node_of, given) if isinstance(given, Tensor) else given

    leaves = [leaf(number) for number in range(len(inputs))]
    args, kwargs = operation.values(leaves)
    kind, target = known.call_of(operation.function)
    result = graph.create_node(kind, target) if kind == "call_method" else graph.call_function(target)
    result.meta["example_value"] = _sample(operation.outputs[0])
    one = rules.Call((result,) * operation.count, tuple(args), kwargs)
    if not rules.stacked(one):
        return None
    table = rules.METHODS.get(target) if kind == "call_method" else rules.TABLE.get(target)
    batched = table(one) if table else None
    if batched is not None and batched.target in (images.conv2d, images.conv_transpose2d):
        # Spikes are to be the loop's.
        return dataclasses.replace(batched, kwargs={**batched.kwargs, "steps": operation.count})
    return batched


def _shared(node_of, value: Tensor) -> Node:
    node = node_of(value)
    node.meta["value"] = value
    return node


def _sample(like) -> Tensor:
    """A tensor of that shape without memory."""
    empty = torch.empty((), dtype=like.dtype, device=like.device).expand(like.shape)
    return empty.requires_grad_() if like.requires_grad and like.dtype.is_floating_point else empty


def run_batched(batched, series: dict[int, Series]) -> Tensor:
    """A rule's call, on the series of a window."""
    out = g.run(batched.op, batched.target, *filled(batched, series))
    return batched.after(out) if batched.after else out


def filled(batched, series: dict[int, Series]) -> tuple[tuple, dict]:
    """A rule's arguments, on the series of a window."""
    return _filled(batched.args, series), _filled(batched.kwargs, series)


def _filled(value, series: dict[int, Series]):
    # A tree of torch's takes longer than the call itself; a function within one would keep the series alive.
    if isinstance(value, rules.Stacked):
        stack = series[value.lanes[0].meta["series"]].stack()
        return value.before(stack) if value.before else stack
    if isinstance(value, Node):
        return value.meta["value"] if "value" in value.meta else series[value.meta["series"]].steady
    if isinstance(value, (tuple, list)):
        return (tuple if isinstance(value, tuple) else list)([_filled(one, series) for one in value])
    return {name: _filled(one, series) for name, one in value.items()} if isinstance(value, dict) else value
