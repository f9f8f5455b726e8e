"""Where a layer's step meets the recorder of its thread."""

import contextlib
import importlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _torch
from . import functions, placeholder, purity, series, settings

is_on = False
"""Whether any layer of this process may be recorded: what a step asks first."""

_of_thread = threading.local()


def switch(layers: bool = False) -> None:
    """Looks whether anything may be recorded; `layers`: some layer is from now on."""
    global is_on
    is_on = (is_on or layers or settings.everywhere is not None) and settings.are_allowed()
    if is_on:
        importlib.import_module("snnfast.loops.recorder")  # now, not in the first step
        importlib.import_module("snnfast.loops.unseen").watch_functions()


def record_everywhere(chosen: "settings.Settings | None") -> None:
    """Records the loops of all layers of this process from now on; None: no more than those that ask for it."""
    settings.everywhere = chosen
    switch()
    if chosen is None:
        stop()


@contextlib.contextmanager
def region(chosen: "settings.Settings | None") -> Iterator[None]:
    """Within it, the loops of this thread are recorded; None: none is. What it has recorded is computed at its end."""
    before = getattr(_of_thread, "region", ())
    stop()
    _of_thread.region = (*before, chosen)
    switch(layers=chosen is not None)
    try:
        yield
    finally:
        _of_thread.region = before
        stop()


def of_this_thread():
    """The recorder of this thread, or None."""
    return getattr(_of_thread, "recorder", None)


def _recorder():
    """The recorder of this thread, new where it has none."""
    if of_this_thread() is None:
        from .recorder import Recorder

        _of_thread.recorder = Recorder()
    return _of_thread.recorder


def is_computing() -> bool:
    """Whether this thread's recorder computes what waited."""
    recorder = of_this_thread()
    return recorder is not None and recorder.packing


def passes(layer) -> bool:
    """Whether the loops of a layer are not recorded for a while, as they could not be the last time; counts a step."""
    return layer._loops is not None and _skips(layer._loops)


def _skips(loops) -> bool:
    recorder = of_this_thread()
    if not loops.skip or (recorder is not None and recorder.is_there):
        return False
    loops.skip -= 1
    return True


def goes_on(layer, input_) -> bool:
    """Whether a step of a layer from this input is what a recorded loop does next, after others of that layer."""
    recorder = of_this_thread()
    return recorder is not None and type(input_) is placeholder.Pending and recorder.goes_on_with(layer)


def compute(*values) -> None:
    """Computes what waits among the arguments of an operator that torch.overrides does not see."""
    if is_on and not torch.compiler.is_compiling():
        placeholder.compute(*values)


def stop() -> None:
    """Computes what this thread's recorder has pending, and sends it away."""
    recorder = getattr(_of_thread, "recorder", None)
    if recorder is None or recorder.is_busy:
        return
    try:
        recorder.leave()
    finally:
        _of_thread.recorder = None


def step(layer, input_: Tensor, states: tuple):
    """One step of a layer: recorded, if that is wanted here and its loop is one that can be."""
    if torch.compiler.is_compiling():
        return layer._step_fused(input_, states)
    recorder = of_this_thread()
    goes_on = recorder is not None and recorder.goes_on_with(layer)
    if goes_on and recorder.settings is _chosen(layer) and layer._may_wait():
        out = recorder.next_step(layer, input_, states)
        if out is not NotImplemented:
            return out
    if passes(layer) or (recorder is not None and recorder.handling):
        return layer._step_fused(input_, states)
    chosen = _chosen(layer)
    if chosen is None or not layer._may_wait() or not series.is_plain_place():
        stop()
        return layer._step_fused(input_, states)
    with _torch.unwatched():
        return _recorder().step(layer, input_, states, chosen)


def run_plainly(function, *args, **kwargs):
    """Calls what steps a layer whose loops are not recorded, without a look at each autograd function in it."""
    before, _of_thread.plain = getattr(_of_thread, "plain", False), True
    try:
        return function(*args, **kwargs)
    finally:
        _of_thread.plain = before


def runs_plainly() -> bool:
    """Whether what runs now steps a layer whose loops are not recorded, while no recorder sees anything."""
    recorder = of_this_thread()
    return getattr(_of_thread, "plain", False) and (recorder is None or not recorder.is_there)


def call(function: type, args: tuple):
    """What an autograd function of the user's gives: recorded, if that is wanted here; else NotImplemented."""
    recorder = of_this_thread()
    if (recorder is not None and recorder.is_busy) or getattr(_of_thread, "plain", False):
        return NotImplemented
    if purity.has_changed(function):
        waits = recorder is not None and recorder.waits_for(function)
        if waits:
            recorder.pack(function)
        purity.take_changes(function, wanders=waits)
    if recorder is None or (recorder.learning is None and not recorder.expects(function)):
        if not is_on or not functions.may_wait(function, args) or torch.compiler.is_compiling():
            return NotImplemented
        landmark = functions.caller()
        chosen = _chosen(landmark)
        if chosen is None or not (recorder is None or recorder.may_begin_at(landmark)) or not series.is_plain_place():
            return NotImplemented
        if _skips(functions.loops_of(landmark)):
            return NotImplemented
        with _torch.unwatched():
            return _recorder().begin_at(landmark, function, args, chosen)
    if not series.is_plain_place() or not functions.may_wait(function, args):
        return NotImplemented
    with _torch.unwatched():
        return recorder.call(function, args)


def _chosen(landmark) -> "settings.Settings | None":
    """The settings that hold for a layer, or whatever a loop may begin with, here."""
    regions = getattr(_of_thread, "region", ())
    if regions:
        return regions[-1]
    return getattr(landmark, "_recorded", None) or settings.everywhere


def settings_of(function) -> "settings.Settings | None":
    """The settings with which `accelerate` had a module's layers, or a function, recorded; None where it had not."""
    if not isinstance(function, torch.nn.Module):
        return getattr(function, "_recorded", None)
    found = [vars(module)["_recorded"] for module in function.modules() if "_recorded" in vars(module)]
    return found[0] if found else None


def about_to_change(layer) -> None:
    """An attribute of a layer is about to change: steps that are pending are those of before."""
    recorder = getattr(_of_thread, "recorder", None)
    if recorder is not None:
        recorder.layer_changes(layer)
