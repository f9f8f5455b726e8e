"""Random programs around `snnfast.Leaky` and its recurrent kin: loops over time as people write them, as source text.

`random_program(seed)` writes a module statement by statement. An emitter is a function that writes a statement or two
and returns the `Value` they compute, or None where it does not apply; a `Draft` holds the lines so far.
"""

from .draft import Program
from .loops import random_program

__all__ = ["Program", "random_program"]
