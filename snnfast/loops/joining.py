"""Stacks of steps, most of which are together already."""

import torch
from torch import Tensor

from . import pieces
from .placeholder import Pending

JOINS = {torch.stack, torch.cat, torch.concat}


def _lanes_of(args: tuple, kwargs: dict) -> list | None:
    """The steps that a call joins along a new first dimension, or the first; None where it does something else."""
    lanes = args[0] if args else None
    if set(kwargs) - {"dim"} or (*args[1:], *kwargs.values()) not in ((), (0,)):
        return None
    if not isinstance(lanes, (list, tuple)) or not all(isinstance(lane, Tensor) for lane in lanes):
        return None
    return lanes if any(type(lane) is Pending or id(lane) in pieces.known for lane in lanes) else None


def _join(func, lanes: list) -> Tensor | None:
    """What `func` gives of these steps; None where most of them are alone."""
    parts = [stack if count == len(stack) else stack[first : first + count] for stack, first, count in _runs(lanes)]
    if len(parts) > len(lanes) // 2 or len({part.shape[1:] for part in parts}) > 1:
        return None
    joined = torch.cat(parts) if len(parts) > 1 else parts[0].clone()
    return joined if func is torch.stack else joined.flatten(0, 1)


def _runs(lanes: list) -> list:
    """(stack, first, count) of which the lanes are made in turn."""
    runs, alone = [], []
    for lane in lanes:
        piece = pieces.of(lane)
        if piece is None or piece.stack is None:
            alone.append(lane)
            continue
        if alone:
            runs.append([torch.stack(alone), 0, len(alone)])
            alone = []
        _, stack, step, _ = piece
        if runs and runs[-1][0] is stack and runs[-1][1] + runs[-1][2] == step:
            runs[-1][2] += 1
        else:
            runs.append([stack, step, 1])
    if alone:
        runs.append([torch.stack(alone), 0, len(alone)])
    return runs


def joined(recorder, func, args: tuple, kwargs: dict) -> Tensor | None:
    """A stack of steps that are together already; None where they are not."""
    lanes = _lanes_of(args, kwargs)
    if lanes is None or (recorder.settings.numbers == "exact" and torch.is_grad_enabled()):
        return None
    if recorder.waiting:
        recorder.pack(func)
    return _join(func, lanes)
