"""What is remembered of every loop, and what `--explain` says of it."""

import sys
from collections import Counter
from pathlib import Path

KEPT = 4
"""Periods that are remembered for each layer that begins one: of batches of other sizes, of training and evaluation."""

LONGEST = 1024
"""Calls of its first for which a loop that could not be learnt runs as it is, at most."""

stories: dict[str, "Story"] = {}
"""What happened to the loops of this process, by the place (file:line) where they step their first layer."""

unfit: Counter[tuple[str, str]] = Counter()
"""Steps that snnTorch's layers ran as snnTorch has them, by class and what left them to it (`snnfast.auto`)."""

_NOT_THE_USERS = {"snnfast", "snntorch", "torch", "torchvision"}

ADVICE = {
    "needs its values at every step": "keep what it looks at in a list, and read that once the loop has ended",
    "no rule": "the loop runs as it is; what does not feed back can be moved behind it, over all steps at once",
    "is written to": "make a new tensor (`mem = mem * mask`) instead of writing into one of a step's (`mem[0] = 0`)",
    "are not alike": "a loop whose steps take turns repeats itself only after all of them",
    "looks at values": "values are asked for before two steps have gathered: look less often, or at its end",
    "gains less": "larger batches, or fewer operations that need the step before, make it pay",
    "steps run as one": 'numbers="forward" keeps spikes and losses, and lets gradients be sums over all steps',
    "too few steps": "a loop of three steps or more is recorded",
}


class Story:
    """What happened to the loops that step their first layer at one place."""

    def __init__(self, place: str):
        self.place = place
        self.plain = self.recorded = self.windows = self.failures = self.verified = 0
        self.why = ""
        self.seconds = 0.0
        self.operations, self.ends = Counter(), Counter()
        self.layers: dict[str, list[int]] = {}
        self.own: dict[str, list] = {}
        """Of neurons of the user's own, found by their surrogate gradients: steps, calls over time, single steps, why
        these, and file:line."""
        self.differences: list[str] = []

    def count(self, window, first) -> None:
        """Notes what a window was computed by; `first`: the operation that begins the loop."""
        self.windows += 1
        for operation, (calls, alone) in window.done.items():
            self.operations["fused"] += calls
            self.operations["plain"] += alone
            if operation.is_mark:
                size = "x".join(map(str, operation.outputs[0].shape[1:])) or "1"
                name = f"{operation.name} of {size}"
                if operation.is_step:
                    told = self.layers.setdefault(name, [0, 0, 0])
                else:
                    told = self.own.setdefault(name, [0, 0, 0, "", operation.where])
                    told[3] = next((cell.why for cell in window.period.cells.values() if operation in cell.shift), "")
                told[0] += operation.count
                told[1] += calls
                told[2] += alone
            if operation is first:
                self.recorded += operation.count

    def text(self) -> str:
        """Some lines on the loop."""
        lines = [
            f"{self.place}: {self.plain} steps as written, {self.recorded} recorded in {self.windows} windows "
            f"({self.operations['fused']} calls over time, {self.operations['plain']} of single steps, "
            f"{self.seconds:.3g} s)"
        ]
        for layer, (steps, calls, alone, *why) in (*self.layers.items(), *self.own.items()):
            apart = f" and {alone} alone" if alone else ""
            reason = f": {why[0]}" if why and why[0] else ""
            lines.append(f"  {layer}: {steps} steps in {calls} calls{apart}{reason}")
        if self.ends:
            ends = ", ".join(f"{what} ({count})" for what, count in self.ends.most_common(4))
            lines.append(f"  values were asked for by {ends}")
        if self.why:
            often = "once" if self.failures == 1 else f"{self.failures} times"
            lines.append(f"  not recorded {often}: {self.why}; {advice_on(self.why)}")
        lines += [f"  DIFFERENT: {difference}" for difference in self.differences[:8]]
        if self.verified and not self.differences:
            lines.append(f"  {self.verified} windows verified: as written")
        return "\n".join(lines)


def advice_on(why: str) -> str:
    """What can be done so that a loop is recorded, which was not for this reason."""
    return next((text for part, text in ADVICE.items() if part in why), "nothing is to be done")


class Loops:
    """What is remembered of the loops that a layer begins; it lives with the layer.

    Attributes:
        why: the last of them was not recorded; "" where it was, or where nobody knows.
    """

    def __init__(self):
        self.periods = []
        self.why = ""
        self.failures = 0
        self.skip = 0
        self.place = place_of_caller()

    def __reduce__(self):
        return Loops, ()

    @property
    def story(self) -> Story:
        return stories.setdefault(self.place, Story(self.place))

    def find(self, key: tuple):
        """The period of a loop that began like that, or None."""
        return next((period for known_key, period in self.periods if known_key == key), None)

    def keep(self, key: tuple, period) -> None:
        """Remembers a period in place of what began alike."""
        self.periods = [(key, period), *((k, p) for k, p in self.periods if k != key)][:KEPT]
        self.why = ""

    def drop(self, period) -> None:
        """Forgets a period."""
        self.periods = [(key, kept) for key, kept in self.periods if kept is not period]

    def fail(self, why: str, to_no_use: bool = False) -> None:
        """The loop could not be recorded, or to no use: it runs as it is for a while, longer every time."""
        self.failures += 1
        self.story.failures += 1
        self.why = self.story.why = why
        # Several windows have told that recording it gains nothing; to learn and record it anew costs the most.
        longer = LONGEST if to_no_use else 1
        self.skip = longer * min(2**self.failures if self.failures < 3 else 4 ** (self.failures - 1), LONGEST)


def summary() -> str:
    """What happened to each loop of this process, most steps first."""
    told = [story for story in stories.values() if story.plain + story.recorded > 2]
    told.sort(key=lambda story: -story.plain - story.recorded)
    lines = [story.text() for story in told]
    lines += [f"{layer}: {steps} steps by snnTorch's own: {why}" for (layer, why), steps in unfit.most_common()]
    return "\n".join(lines) or "no loop over time steps of a layer that snnfast has fused"


def place_of_caller() -> str:
    """file:line of the user's code that runs."""
    frame = sys._getframe(1)
    while frame is not None and _package_of(frame) in _NOT_THE_USERS:
        frame = frame.f_back
    # A module's own forward stands inside the loop: the loop is in it, or around it.
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else ""


def _package_of(frame) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
