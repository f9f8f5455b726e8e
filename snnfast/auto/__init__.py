"""The zero-change mode: a script that only knows snnTorch, fused (`python -m snnfast script.py`)."""

import importlib.util
import os
import warnings
from typing import Any

from ..loops import recording, settings

ENCODERS = ("exact", "fast")
OFF = "SNNFAST_AUTO"
"""The environment variable that, at 0, switches the mode off."""

_replaced: list[tuple[object, str, object, object]] = []
"""Where something was put, what stood there before, and what stands there now."""

_MISSING = object()
_said_that_off = False


def install(numbers: str | None = None, verify: int = 0, encoders: str = "exact") -> None:
    """Makes snnTorch itself fast in this process: its layers run fused, and loops over their steps as whole sequences.

    snnTorch's classes stay what they are: layers made before and after, `isinstance`, pickles, checkpoints, hooks and
    optimisers go on as they did; subclasses and patched methods run as written. A second call changes the options.
    SNNFAST_AUTO=0 in the environment makes it do nothing.

    Args:
        numbers: "forward": spikes, membranes and losses as the loop's, gradients to rounding; "exact": gradients' bits
            too. Default: SNNFAST_NUMBERS, else "forward".
        verify: so many windows of each loop are computed as written too, and compared; where they differ that is
            reported, and the written result used.
        encoders: "exact": random spikes are torch's own; "fast": `snnfast.encoding`'s, other numbers drawn faster.

    Raises:
        ImportError: snnTorch is not installed. TypeError, ValueError: an option has a wrong value.

    Examples:
        >>> import snnfast
        >>> snnfast.install()
        >>> import snntorch  # before or after: the rest of the script is as it was
        >>> type(snntorch.Leaky(0.9)) is snntorch.Leaky
        True
        >>> snnfast.uninstall()
    """
    chosen = settings.Settings(numbers or settings.default_numbers(), verify)
    if encoders not in ENCODERS:
        raise ValueError(f"encoders must be one of {', '.join(ENCODERS)}; got {encoders!r}")
    if os.environ.get(OFF) == "0":
        _say_that_off()
        return
    if importlib.util.find_spec("snntorch") is None:
        raise ImportError("snnfast.install makes snnTorch fast, which is not installed: pip install snntorch")
    from . import functions, layers

    uninstall()
    for target, attributes in {**layers.replacements(), **functions.replacements(encoders)}.items():
        for name, value in attributes.items():
            _replaced.append((target, name, vars(target).get(name, _MISSING), value))
            setattr(target, name, value)
    recording.record_everywhere(chosen)


def uninstall() -> None:
    """Undoes `install`: snnTorch's classes and functions are its own again, and layers that ran fused are plain ones.

    What somebody else has put in their place since stays.

    Examples:
        >>> snn.install()
        >>> snn.uninstall()
    """
    recording.record_everywhere(None)
    for target, name, before, now in _replaced:
        if vars(target).get(name) is not now:
            continue
        if before is _MISSING:
            delattr(target, name)
        else:
            setattr(target, name, before)
    if _replaced:
        from . import layers

        layers.let_go()
    _replaced.clear()


def _say_that_off() -> None:
    global _said_that_off
    if not _said_that_off:
        warnings.warn(f"snnfast.install does nothing: {OFF}=0 is in the environment", stacklevel=3)
    _said_that_off = True


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext snnfast` in a notebook: `install`, for its whole session."""
    install()


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext snnfast`: `uninstall`."""
    uninstall()
