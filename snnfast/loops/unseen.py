"""Calls that take tensors, or look into them, and that no TorchFunctionMode sees: they are given computed values. And
those that it need not see."""

import contextlib
import functools
import sys
import threading

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data.dataloader import _BaseDataLoaderIter

from .. import _torch
from . import recording
from .reading import note_batch

_SCRIPTS = [(made, "__call__", made.__call__) for made in _torch.script_calls]
_TRANSFORMS = [(owner, name, getattr(owner, name)) for owner, name in _torch.transforms_begin]

_next_batch = _BaseDataLoaderIter.__next__
_compile = torch.compile
_begin_compiled = None

_optimisers = []  # what ends their being watched
_watching = 0
_lock = threading.Lock()


def watch(more: int) -> None:
    """Watches them while a recorder is anywhere, of whatever thread."""
    global _watching
    with _lock:
        _watching += more
        watch_functions()
        for owner, name, function in _TRANSFORMS:
            setattr(owner, name, _with_all_computed(function) if _watching else function)
        _BaseDataLoaderIter.__next__ = _next_batch_alone if _watching else _next_batch
        torch.compile = _compile_alone if _watching else _compile
        _watch_optimisers()
        _watch_compiled()


def watch_compiled() -> None:
    """Watches what torch compiles from now on, where recorders are older than its compiler's import."""
    with _lock:
        _watch_compiled()


def watch_functions() -> None:
    """Watches autograd functions while a recorder is anywhere, or may be from one of them on."""
    watched = _watching or recording.is_on
    for owner, name, function in _SCRIPTS:
        setattr(owner, name, _plainly(function) if watched else function)
    # Beneath `torch.autograd.Function.apply`, of which people keep a bound one: `spike_fn = Spike.apply`.
    if watched:
        _torch.function_calls.apply = classmethod(_apply)
    elif "apply" in vars(_torch.function_calls):
        del _torch.function_calls.apply


@functools.wraps(_next_batch)
def _next_batch_alone(batches):
    """The many small operations that make a batch, without a mode around each of them."""
    recorder = recording.of_this_thread()
    with contextlib.nullcontext() if recorder is None else recorder.away():
        batch = _next_batch(batches)
    note_batch(batch)
    return batch


@functools.wraps(_compile)
def _compile_alone(*args, **kwargs):
    recording.stop()
    compiled = _compile(*args, **kwargs)
    watch_compiled()
    return compiled


def _watch_optimisers() -> None:
    """The many small operations of an optimiser's step want no mode around each of them."""
    if _watching and not _optimisers:
        _optimisers.append(register_optimizer_step_pre_hook(_rest))
        _optimisers.append(register_optimizer_step_post_hook(_resume))
    while _optimisers and not _watching:
        _optimisers.pop().remove()


def _rest(optimiser, args, kwargs) -> None:
    recorder = recording.of_this_thread()
    if recorder is not None:
        recorder.rest_for(type(optimiser).__module__.startswith("torch.optim."))


def _resume(optimiser, args, kwargs) -> None:
    recorder = recording.of_this_thread()
    if recorder is not None:
        recorder.resume()


def _watch_compiled() -> None:
    """What torch compiles must not find a recorder, which it would trace; torch._dynamo is no import of ours."""
    global _begin_compiled
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is None:
        return
    if _begin_compiled is None:
        _begin_compiled = dynamo._maybe_set_eval_frame
    dynamo._maybe_set_eval_frame = _begin_compiled_alone if _watching else _begin_compiled


def _begin_compiled_alone(callback):
    if callable(callback):
        recording.stop()
    return _begin_compiled(callback)


def _apply(cls, *args):
    call = _torch.apply.__get__(None, cls)
    if recording.runs_plainly():
        return call(*args)
    out = recording.call(cls, args)
    if out is not NotImplemented:
        return out
    recorder = recording.of_this_thread()
    if recorder is None:
        return call(*args)
    recorder.is_about_to_run(cls.__name__, args)
    with recorder.aside():
        return call(*args)


def _with_all_computed(function):
    """What a transform is of may be in a closure."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        recorder = recording.of_this_thread()
        if recorder is not None:
            recorder.is_about_to_run(function.__name__, None)
        return function(*args, **kwargs)

    return call


def _plainly(function):
    """What a script calls is given values, and gives such: autograd functions that it calls do not wait."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        recorder = recording.of_this_thread()
        if recorder is not None:
            recorder.is_about_to_run(function.__name__, (*args, *kwargs.values()))
        return recording.run_plainly(function, *args, **kwargs)

    return call
