"""The ways in: a network, a function or a region whose loops over time run fused."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from .annotations import Run
from .convert import convert
from .loops import recording
from .loops.settings import Settings, default_numbers
from .neurons import SpikingNeuron


def accelerate(
    net: Run,
    *,
    numbers: str | None = None,
    verify: int = 0,
    compile: bool | None = None,
    window: int | None = None,
    products: str = "batched",
    inner: str | Callable[..., Any] | None = None,
) -> Run:
    """Makes loops over time run fused, wherever they stand: in a network's `forward`, in a function, around both.

    The first two steps of a loop run as written. Further ones are recorded: their operations wait, and are computed
    layer by layer over all steps once a value is asked for. There is nothing to compile and no dependence on the number
    of steps; a loop that cannot be recorded runs as it is. `snnfast.explain` and `python -m snnfast --explain` tell.

    Args:
        net: a module, changed in place (`convert`; the module object, its parameters and its state_dict stay as they
            are), whose layers' loops are recorded from now on, or a function, such as `forward_pass(net, steps, x)`,
            in which those of all layers of snnfast are.
        numbers: "forward": spikes, membranes and losses as the loop's, gradients to rounding; "exact": gradients' bits
            too, with products step by step. None: SNNFAST_NUMBERS, or "forward".
        verify: so many windows of every loop are computed as written too, from the same inputs; a difference is warned
            of, with layer and step, and what was written is used.
        compile: captures the network by `torch.compile` with backend "snnfast" instead: the loop must be inside the
            module's `forward`, and the first call of a shape compiles. None: where one of the options below is given.
        window: compiled: steps that run as one call; None: chosen from the sizes and the device.
        products: compiled: "batched": matrix products of all steps of a window are one product, whose sum may round
            otherwise than that of small ones; "per-step": only what is exact is batched, so that results and gradients
            of input and weights equal the loop's to the bit; spikes that come back through weights do so step by step.
        inner: compiled: another torch.compile backend (such as "inductor") that compiles the fused graph in turn.

    Returns:
        `net`; of a function, one that runs accelerated.

    Raises:
        TypeError, ValueError: `net` is neither, or an option has a wrong value.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True))
        >>> net = snn.accelerate(net)
        >>> @snn.accelerate
        ... def forward_pass(net, num_steps, data):
        ...     snn.reset(net)
        ...     return torch.stack([net(data) for _ in range(num_steps)])
        >>> forward_pass(net, 25, torch.rand(16, 4)).shape
        torch.Size([25, 16, 8])
    """
    settings = Settings(default_numbers() if numbers is None else numbers, verify)
    options = {"window": window, "products": products, "inner": inner}
    given = window is not None or products != "batched" or inner is not None
    if compile not in (None, True, False):
        raise TypeError(f"compile must be True, False or None, got {compile!r}")
    if compile or (compile is None and given):
        from .compiler.accelerate import accelerate as accelerate_compiled

        return accelerate_compiled(net, **options)
    if given:
        raise ValueError("window, products and inner are options of compile=True")
    if isinstance(net, nn.Module):
        convert(net)
        for module in net.modules():
            if isinstance(module, SpikingNeuron):
                module.record_loops(settings)
            else:
                # Neurons of the user's own are known by the surrogate gradients that they call.
                module.__dict__["_recorded"] = settings
        recording.switch(layers=True)
        return net
    if not callable(net):
        raise TypeError(f"net must be a torch.nn.Module or a function, got {type(net).__name__}")
    return _in_region(net, settings)


def _in_region(function: Callable, settings: Settings) -> Callable:
    @functools.wraps(function)
    def accelerated_function(*args, **kwargs):
        with recording.region(settings):
            return function(*args, **kwargs)

    accelerated_function._recorded = settings
    return accelerated_function


def accelerated(
    enabled: bool = True, *, numbers: str | None = None, verify: int = 0
) -> contextlib.AbstractContextManager[None]:
    """Within it, the loops of this thread that step layers of snnfast run fused; with `enabled=False`, none does.

    Args: as `accelerate`.

    Examples:
        >>> fc, lif = nn.Linear(4, 8), snn.Leaky(0.9)
        >>> x, mem = torch.rand(16, 4), lif.reset_mem()
        >>> with snn.accelerated():
        ...     for step in range(25):
        ...         spk, mem = lif(fc(x), mem)
    """
    settings = Settings(default_numbers() if numbers is None else numbers, verify)
    return recording.region(settings if enabled else None)
