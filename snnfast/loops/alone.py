"""One step of an operation of a loop, as it is written."""

import torch
from torch import Tensor

from ..compiler.emission import ALIGNMENT, own_memory
from . import functions, known
from .operation import MADE, Operation, step_outputs


def step_of(layer, leaves: list) -> tuple:
    """One step of a layer from its input and states: spikes, and the states that are not spikes."""
    spk, states = layer._step_alone(leaves[0], tuple(leaves[1:]))
    return spk, *(states[name] for name in step_outputs(layer)[1:])


def call(operation: Operation, leaves: list) -> tuple:
    """One step of an operation, as written."""
    if operation.is_step:
        return step_of(operation.function, leaves)
    if operation.is_call:
        out = functions.run(operation.function, leaves)
        return (out,) if operation.several is None else out
    if operation.function in known.PRODUCTS:
        leaves = _placed(operation, leaves)
    if operation.function is known.set_item and operation.slots[0].kind == MADE and not operation.needs_itself:
        # What another operation made is a step of a stack.
        leaves = [leaves[0].clone(), *leaves[1:]]
    args, kwargs = operation.values(leaves)
    out = operation.function(*args, **kwargs)
    return (out,) if operation.several is None else tuple(out)


def _placed(operation: Operation, leaves: list) -> list:
    """What the loop would have in new memory, in memory that begins as such: a product's sums go by that. What comes
    from outside, or is a view of it, is where it was."""
    leaves = list(leaves)
    for place in operation.new:
        leaves[place] = _in_place_of_new(leaves[place])
    return leaves


def _in_place_of_new(leaf):
    """A step of a stack, in memory of its own where it would not begin where a new tensor does."""
    if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf._is_view() and leaf.data_ptr() % ALIGNMENT:
        return own_memory(leaf) if torch.is_grad_enabled() else leaf.clone()
    return leaf
