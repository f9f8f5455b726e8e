"""Nested states: tensors within tuples, lists, dictionaries, NamedTuples and dataclasses."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple


class Leaf(NamedTuple):
    """The form of what is no container."""


class Form(NamedTuple):
    """How a value was nested: its class, the names of its parts, and their forms."""

    kind: type
    names: tuple | None
    parts: tuple


def flatten(value) -> tuple[list, Leaf | Form]:
    """What is no container in a value, in order, and how it is nested. None is a leaf."""
    leaves = []
    return leaves, _flatten(value, leaves)


def _flatten(value, leaves: list) -> Leaf | Form:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = tuple(field.name for field in dataclasses.fields(value))
        return Form(type(value), names, tuple(_flatten(getattr(value, name), leaves) for name in names))
    if type(value) is dict:
        return Form(dict, tuple(value), tuple(_flatten(part, leaves) for part in value.values()))
    if isinstance(value, (tuple, list)):
        return Form(type(value), None, tuple(_flatten(part, leaves) for part in value))
    leaves.append(value)
    return Leaf()


def unflatten(form: Leaf | Form, leaves: list):
    """The value that was nested so, with other leaves."""
    return _unflatten(form, iter(leaves))


def _unflatten(form, leaves: Iterator):
    if isinstance(form, Leaf):
        return next(leaves)
    parts = [_unflatten(part, leaves) for part in form.parts]
    if form.kind is dict:
        return dict(zip(form.names, parts, strict=True))
    if form.names is not None:
        return form.kind(**dict(zip(form.names, parts, strict=True)))
    return form.kind(*parts) if hasattr(form.kind, "_fields") else form.kind(parts)
