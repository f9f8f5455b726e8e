"""Which layers' loops are recorded, and with which numbers."""

import os
from dataclasses import dataclass

NUMBERS = ("forward", "exact")


@dataclass(frozen=True)
class Settings:
    """How loops are recorded.

    numbers: "forward": spikes, membranes and losses as the loop's, gradients to rounding; "exact": gradients' bits too.
    verify: so many packed windows of each loop are computed as written too, and compared; 0 for none.
    """

    numbers: str = "forward"
    verify: int = 0

    def __post_init__(self):
        if self.numbers not in NUMBERS:
            raise ValueError(f"numbers must be one of {', '.join(NUMBERS)}; got {self.numbers!r}")
        if isinstance(self.verify, bool) or not isinstance(self.verify, int):
            raise TypeError(f"verify must be an integer, got {type(self.verify).__name__}")
        if self.verify < 0:
            raise ValueError(f"verify must not be negative, got {self.verify}")


everywhere: Settings | None = None
"""With which settings all loops of the process are recorded; None: those of layers and regions that ask for it."""


def default_numbers() -> str:
    """What SNNFAST_NUMBERS says, or "forward"."""
    return os.environ.get("SNNFAST_NUMBERS") or "forward"


def are_allowed() -> bool:
    """Whether SNNFAST_AUTO lets loops be recorded at all."""
    return os.environ.get("SNNFAST_AUTO") != "0"
