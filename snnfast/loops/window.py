"""How many steps run at once: by the memory that they cost beside the loop's own, and by the cache.

Training, a loop's memory is fullest as backward begins: it holds what all steps keep, and then, as it adds one step's
gradient of a weight to the others', two more tensors of that weight's size. Windows keep the same, and hold the
gradients of what a whole window made, but a layer's are freed as backward comes to the one before, and so is what it
kept. The last window, the first of backward, may thus hold what the weights' gradients do; each one before it that and
what those after it have freed. So windows grow from the last to the first.
"""

from typing import NamedTuple

import torch

IN_CACHE = 16 << 20
"""Bytes that the layers of one window make that a CPU's cache holds together with what is computed from them."""

ENOUGH = 8
"""Steps of a window in training that need not fit into the cache: of fewer, those that run alone at a window's ends
cost more than it gains."""

SMALL = 1 << 16
"""Bytes beside the loop's that are no matter."""

AT_FIRST = 8
"""Steps of a window, or as many as fit, where the length of the loop is not known."""


class Stage(NamedTuple):
    """An operation of one step, in bytes: what it makes, what it keeps for backward, its weights that learn; whether it
    is a layer's step; and what of it the loop keeps beside."""

    made: int
    kept: int
    weights: int = 0
    is_step: bool = False
    loops: int = 0


class Windows(NamedTuple):
    """The sizes of a loop's windows, from the first on."""

    sizes: tuple[int, ...]

    def split(self, lanes) -> list[tuple]:
        """Steps of the loop in their windows; fewer of them, which fit into one, as one."""
        if len(lanes) <= max(self.sizes):
            return [tuple(lanes)]
        sizes = self.sizes if len(lanes) == sum(self.sizes) else (self.sizes[-1],) * len(lanes)
        parts, start = [], 0
        for size in sizes:
            parts.append(tuple(lanes[start : start + size]))
            start += size
        return [part for part in parts if part]

    def __str__(self):
        return ", ".join(map(str, self.sizes[:-1])) + " and " * (len(self.sizes) > 1) + str(self.sizes[-1])


def every(window: int, steps: int) -> Windows:
    """Windows of so many steps each."""
    return Windows((min(window, max(steps, 1)),))


def choose(stages: list[Stage], steps: int | None, device: torch.device) -> tuple[Windows, str]:
    """The windows of a loop of so many steps, none of which takes more memory than the loop, and why.

    Args:
        stages: the operations of one step, in their order.
        steps: None where that is not known: all windows are then alike, and may hold more than the loop.
    """
    made = sum(stage.made for stage in stages if stage.is_step)
    most, limit = _most(made, 2, device)
    kept = sum(stage.kept for stage in stages)
    adds = max((more for more, _ in beside(stages)), default=0)
    if not kept or adds <= 0:
        return _equal(steps, most), limit
    if steps is None:
        return Windows((min(AT_FIRST, most),)), limit
    most, limit = _most(made, ENOUGH, device)
    room = spare(stages) + steps * sum(stage.loops for stage in stages)
    sizes = _growing(stages, steps, most, room, 1)
    for count in range(2, len(sizes) + 3):
        if len(sizes) >= count:
            sizes = _growing(stages, steps, most, room, count)
    sizes = _alike(stages, steps, most, room, len(sizes)) or sizes
    why = (
        f"each step keeps {size_of(kept)} for backward, a window holds {size_of(adds)} a step beside, the loop "
        f"{size_of(spare(stages))}, and {limit}"
    )
    return Windows(tuple(sizes)), why


def _most(made: int, least: int, device: torch.device) -> tuple[int, str]:
    """The most steps of a window whose layers make so many bytes each, no fewer than `least`, and why."""
    fitting, limit = _limit(device) // max(made, 1), size_of(_limit(device))
    if fitting < least:
        return least, f"a window has up to {least} steps, whose spikes take more than {limit}"
    return fitting, f"the spikes of a window take up to {limit}"


def _growing(stages: list[Stage], steps: int, most: int, room: int, count: int) -> list[int]:
    """Windows, if there are `count`, of which the last takes what the loop does, and each before it that and what those
    after it have freed; room: bytes that the loop holds beside what windows keep."""
    sizes = []
    while steps:
        sizes.insert(0, min(max(1, _longest(stages, room, count, sizes)), most, steps))
        steps -= sizes[0]
    return sizes


def _alike(stages: list[Stage], steps: int, most: int, room: int, count: int) -> list[int] | None:
    """No more windows than `count`, as long as one another to a step: one takes up the memory that another left."""
    for windows in range(-(-steps // most), count + 1):
        sizes = [steps // windows + (window < steps % windows) for window in range(windows)]
        fits = (size <= _longest(stages, room, windows, sizes[place + 1 :]) for place, size in enumerate(sizes))
        if all(fits):
            return sizes
    return None


def _longest(stages: list[Stage], room: int, count: int, later: list[int]) -> int:
    """Steps that one of `count` windows may have, with these after it."""
    kept, weights = sum(stage.kept for stage in stages), sum(stage.weights for stage in stages)
    state = sum(stage.kept for stage in stages if stage.is_step)
    found = beside(stages)
    # States with which windows begin are kept beside all others; there is a gradient of this window's first ones,
    # and, where another window follows it, of its last.
    states = count - len(later) + 1 + bool(later)
    free = room - states * state + sum(later) * kept
    there = [weights] * len(found) if later else [those for _, those in found]
    return min((free - those) // more for (more, _), those in zip(found, there, strict=True) if more > 0)


def spare(stages: list[Stage]) -> int:
    """The most that the loop holds beside what all of its steps keep, in bytes: as backward begins, or when one step's
    gradient of a weight is added to another's, where what a step kept is gone."""
    weights, kept = [stage.weights for stage in stages], sum(stage.kept for stage in stages)
    states = sum(stage.kept for stage in stages if stage.is_step)
    return max(SMALL, sum(weights) + 2 * max(weights) - kept, states + max(map(sum, beside(stages))))


def beside(stages: list[Stage]) -> list[tuple[int, int]]:
    """For each operation, what its backward holds beside all that is kept, in bytes of each step: the gradients of
    what it made and was given, less what those behind it have freed by then; and those of weights that are there."""
    found, freed, weights = [], 0, 0
    for before, stage in zip([Stage(0, 0), *stages[:-1]][::-1], stages[::-1], strict=True):
        found.append((stage.made + before.made - freed, weights))
        freed, weights = freed + stage.kept, weights + stage.weights
    return found


def _equal(steps: int | None, most: int) -> Windows:
    if steps is None:
        return Windows((most,))
    count = -(-steps // most)
    return every(-(-steps // max(count, 1)), steps)


def size_of(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _limit(device: torch.device) -> int:
    """Bytes of spikes in one window."""
    return IN_CACHE if device.type != "cuda" else torch.cuda.get_device_properties(device).total_memory // 16
