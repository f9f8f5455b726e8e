"""One line for a model that was written for snnTorch."""

import itertools
import types
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch._dynamo.convert_frame import compile_lock
from torch._dynamo.types import FrameAction

from ..convert import convert
from ..loops.unseen import watch_compiled
from .backend import backend, listeners, make_options

VARIANTS = 512
"""How often torch captures one function for other numbers of steps, batch sizes, dtypes, modes; its own limit is 8."""


def accelerate(
    net: nn.Module, *, window: int | None = None, products: str = "batched", inner: str | Callable | None = None
) -> nn.Module:
    """Makes a network run fused over time, in place: `convert`, then `torch.compile` with this backend.

    The module object, its parameters and its state_dict stay as they are. The first call of a shape compiles; the loop
    over time must be inside the module's `forward`. Copies of the module, pickled ones too, are accelerated as it is.

    Args:
        net: a module whose forward loops over time steps.
        window: steps that run as one call; None: chosen from the sizes and the device.
        products: "batched": matrix products of all steps of a window are one product, whose sum may round otherwise
            than that of small ones; "per-step": only what is exact is batched, so that results and gradients of input
            and weights equal the loop's to the bit; spikes that come back through weights do so step by step.
        inner: another torch.compile backend (such as "inductor") that compiles the fused graph in turn.

    Returns:
        `net`.

    Raises:
        TypeError, ValueError: `net` is no module, or an option has a wrong value.
    """
    options = {"window": window, "products": products, "inner": inner}
    make_options(**options)
    convert(net)
    Accelerated(net, options)
    return net


class Accelerated:
    """What an accelerated network's call runs: its forward, captured by torch and fused.

    It stands in the network's `__dict__` twice: as what `nn.Module.compile` sets, which modules leave out of copies,
    and under a name of its own, by which a copy of the network gets a copy of this that runs the copy.
    """

    def __init__(self, net: nn.Module, options: dict):
        self.__setstate__((net, options))

    def __getstate__(self):
        return self.net, self.options

    def __setstate__(self, state):
        self.net, self.options = state
        self._compiled, self.limits_met = None, []
        vars(self.net).update(_compiled_call_impl=self, _accelerated=self)

    def __call__(self, *args, **kwargs):
        if self._compiled is None:
            self._compiled = captured(self.net, type(self.net).__name__, self.options, self.limits_met)
        return self._compiled(*args, **kwargs)


def captured(function: Callable, name: str, options: dict, limits_met: list[str]) -> Callable:
    """A module's call or a function, captured by torch and fused: `torch.compile` with limits of our own.

    What is warned of where one is met goes to `limits_met` too.
    """
    watch_compiled()
    context = torch._dynamo.optimize(partial(backend, options=options))
    context.callback = _Capture(context.callback, name, limits_met)
    return context(_own_code(getattr(function, "_call_impl", function), name))


_numbers = itertools.count()


def _own_code(self: Callable, name: str) -> Callable:
    """A function that calls another, with code that nothing else shares: torch keeps what it captured with the code."""

    def call(*args, **kwargs):
        return self(*args, **kwargs)

    code = call.__code__.replace(co_name=f"{name}_{next(_numbers)}")
    return types.FunctionType(code, call.__globals__, code.co_name, closure=call.__closure__)


class _Capture:
    """torch's capture of a frame, with limits that suit loops: every number of steps is a capture of its own.

    Limits hold while a frame of an accelerated network is captured, and nowhere else.
    """

    def __init__(self, capture: Callable, name: str, limits_met: list[str]):
        # The name under which torch looks for the backend.
        self._torchdynamo_orig_backend = capture
        self._name, self._limits_met = name, limits_met

    def __call__(self, frame, *state):
        # A frame without an operation, as with T=0, would else never be captured again.
        ours = torch._dynamo.config.patch(
            recompile_limit=VARIANTS, accumulated_recompile_limit=VARIANTS, allow_empty_graphs=True
        )
        with compile_lock, ours:
            result = self._torchdynamo_orig_backend(frame, *state)
        for listener in listeners:
            listener.compiled(frame.f_code, result)
        if result.guarded_code is None and result.frame_exec_strategy.cur_action == FrameAction.RUN_ONLY:
            code = frame.f_code
            self._limits_met.append(
                f"{self._name}: torch has captured {code.co_name} ({code.co_filename}:{code.co_firstlineno}) for "
                f"{VARIANTS} different calls, and runs it as it is, not fused, for further ones: pad sequences to few "
                "numbers of steps, or use snnfast.Unroll"
            )
            warnings.warn(self._limits_met[-1], stacklevel=3)
        return result
