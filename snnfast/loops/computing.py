"""A window is computed, looked at again where that is asked for, and a loop judged by its windows."""

import time
import warnings

from . import known, settings, worth
from .packing import Window
from .period import Period
from .report import Story
from .settings import Settings

SECONDS_BEFORE_BUILDING = 1.0
"""Of an unmodified script's loop, before its own neurons are compiled."""


def computed(period: Period, chosen: Settings, story: Story, early: set, held: set, as_written: bool) -> Window:
    """What waits of a period, computed; verified where that is asked for."""
    exact, start = chosen.numbers == "exact", time.perf_counter()
    # An unmodified script is not to wait for a compiler before it has run for a while.
    builds = chosen is not settings.everywhere or period.seconds > SECONDS_BEFORE_BUILDING
    window = Window(period, exact, builds)
    try:
        given = (None, None) if story.verified < chosen.verify else (early, held)
        window.run(*given, as_written or period.as_written)
    except Exception:
        if any(operation.writes or operation.function is known.set_item for operation in window.done):
            # What is written would be written twice.
            raise
        # As one call it may want what single steps do not, such as memory; as written it fails as the loop would.
        period.as_written = True
        window = Window(period, exact)
        window.run(as_written=True)
    seconds = time.perf_counter() - start
    period.seconds += seconds
    story.seconds += seconds
    if story.verified < chosen.verify:
        story.verified += 1
        window = _verified(window, period, story)
    story.count(window, period.operations[0])
    period.fused += sum(calls for one, (calls, _) in window.done.items() if one.is_mark or not exact)
    if (builds or not period.cells) and not as_written:
        period.judged += 1
        period.gained += worth.gained(window)
    return window


def _verified(window: Window, period: Period, story: Story) -> Window:
    """The window, or where the written loop gives something else, that."""
    written = Window(period, window.exact)
    written.run(as_written=True)
    differences = window.differences(written)
    if not differences:
        return window
    story.differences += differences
    period.as_written = True
    warnings.warn(
        f"snnfast: {story.place}: {differences[0]}; the loop runs as written from now on. Please report it",
        stacklevel=2,
    )
    return written


def why_it_was_no_use(period: Period, exact: bool) -> str:
    """Why a loop had better run as written; "": it gains by waiting, or it is too early to say."""
    if period.windows >= 8 and period.steps < 2.5 * period.windows:
        return "it looks at values too often"
    if period.windows >= 4 and not period.fused:
        return "with exact numbers no layer's steps run as one" if exact else "none of its steps run as one"
    if period.judged >= 8 and period.gained + worth.LOST < worth.OTHER * period.others:
        return "it gains less by waiting than that costs"
    return ""
