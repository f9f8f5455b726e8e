"""Spike encoders: data to spikes of all time steps, time first [T, B, ...], in one pass; events into frames.

Arguments and meaning are those of `snntorch.spikegen` 1.0.0, with `poisson` beside them. All take dense real tensors on
a CPU or a GPU; integers and bools are taken as torch's default dtype. `dtype`, that of the spikes, is float32, float64,
float16, bfloat16 or bool; by default the data's where that is floating, else torch's default dtype. Spikes carry no
gradient.

The random encoders draw one seed from torch's generator (`torch.manual_seed`, or `generator`, on the data's device) and
every spike from that seed, its step and its place, by Philox4x32-10: the same seed gives the same spikes whatever the
number of threads. Nothing waits for a GPU, so all can be captured in a CUDA graph or by torch.compile, but for
`latency` without `num_steps`, and torch.compile takes no `generator`.
"""

import math
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from . import ops
from .checks import check_count, check_data

__all__ = ["bin_events", "delta", "latency", "poisson", "rate"]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool)


def rate(
    data: Tensor,
    num_steps: int = False,
    gain: float = 1,
    offset: float = 0,
    first_spike_time: int = 0,
    time_var_input: bool = False,
    *,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random spikes, in every step with probability clamp(gain * data + offset, 0, 1); NaN never fires.

    Unlike `snntorch.spikegen.rate`, gain and offset apply to time-varying data too, as its documentation has it.

    Args:
        data: [B, ...], the same in all steps, or with `time_var_input` [T, B, ...].
        num_steps: T for data that does not vary.
        gain, offset: numbers.
        first_spike_time: steps without spikes at the beginning; time-varying data begins after them.
        time_var_input: whether the data's first dimension is time.
        dtype: of the spikes, see above.
        generator: where the seed is drawn from, on the data's device. Default: torch's own.

    Returns:
        spikes [T, B, ...]; of time-varying data [first_spike_time + T, B, ...].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: no steps, or an argument out of its range.

    Examples:
        >>> snn.encoding.rate(torch.rand(8, 20), num_steps=25).shape
        torch.Size([25, 8, 20])
    """
    data, dtype = _checked(data, dtype)
    first_spike_time = check_count("first_spike_time", first_spike_time)
    if time_var_input:
        if num_steps is not False and num_steps is not None:
            raise ValueError(f"num_steps must not be given with time_var_input, got {num_steps}")
        _check_sequence(data)
        num_steps = None
    else:
        num_steps = _steps(num_steps, "; data with a time dimension of its own needs time_var_input=True")
        _check_first(first_spike_time, num_steps)
    gain, offset = _number("gain", gain), _number("offset", offset)
    return _encoded(ops.encode_rate, data, _seed(data, generator), num_steps, first_spike_time, gain, offset, dtype)


def poisson(
    data: Tensor,
    num_steps: int,
    max_rate_hz: float = 100.0,
    dt: float = 1e-3,
    *,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A Poisson process in steps of dt: spikes with probability clamp(data * max_rate_hz * dt, 0, 1), new every step.

    Args:
        data: [B, ...], 1 for the highest rate.
        num_steps: number of time steps T.
        max_rate_hz: rate of data of 1, in Hz.
        dt: time step in s.
        dtype, generator: as in `rate`.

    Returns:
        spikes [T, B, ...].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: no steps, or an argument out of its range.

    Examples:
        >>> snn.encoding.poisson(torch.rand(8, 20), num_steps=25, max_rate_hz=200).shape
        torch.Size([25, 8, 20])
    """
    max_rate_hz, dt = _number("max_rate_hz", max_rate_hz), _number("dt", dt)
    if max_rate_hz < 0:
        raise ValueError(f"max_rate_hz must be 0 or more, got {max_rate_hz}")
    if dt <= 0:
        raise ValueError(f"dt must be more than 0, got {dt}")
    return rate(data, _steps(num_steps), gain=max_rate_hz * dt, dtype=dtype, generator=generator)


def latency(
    data: Tensor,
    num_steps: int = False,
    threshold: float = 0.01,
    tau: float = 1,
    first_spike_time: int = 0,
    on_target: float = 1,
    off_target: float = 0,
    clip: bool = False,
    normalize: bool = False,
    linear: bool = False,
    interpolate: bool = False,
    bypass: bool = False,
    epsilon: float = 1e-7,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """One spike for each feature, the earlier the larger it is: the first spike of a LIF neuron that it charges.

    The time is tau * log(x / (x - threshold)), or tau * (1 - x) if `linear`, in steps, rounded. Features below the
    threshold fire with those at it. Spikes are those of `snntorch.spikegen.latency`, which however

    - gives 0 or worse in silent steps unless 0 <= off_target <= on_target: here it is off_target;
    - with `interpolate` ignores `clip`, lets a line end a rounding error away from on_target (or at off_target), and
      begins lines to spikes in step `num_steps`, which are never reached;
    - waits for the GPU to look at the data: here, on a GPU and under torch.compile, data outside [0, 1] counts as the
      nearest of the two, NaN does not fire (nor then, with `normalize`, does anything), and late spikes are dropped as
      with `bypass`;
    - always gives float32 and computes in the data's dtype: here times of half precision are float32;
    - fails on an empty batch, and in a division by 0 where `normalize` meets a threshold that rounds away.

    Args:
        data: [B, ...] in [0, 1].
        num_steps: T. It may be left out with `bypass`: the last spike is then in the last step.
        threshold: of the neuron, between 0 and 1.
        tau: time constant of the neuron in steps, more than 0.
        first_spike_time: steps by which all spikes are later.
        on_target, off_target: the values of a spike and of no spike.
        clip: features below the threshold do not fire.
        normalize: times are scaled such that the last possible spike is in the last step.
        linear: see above.
        interpolate: values rise in a line from off_target in step 0 to the spike, and are off_target after it.
        bypass: spikes after the last step are dropped; without it they are an error.
        epsilon: added to the threshold where features are raised to it, which keeps the logarithm finite; more than 0.
        dtype: of the spikes, see above.

    Returns:
        spikes [T, B, ...].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: data out of [0, 1], spikes out of the steps, no
            steps, or an argument out of its range.

    Examples:
        >>> snn.encoding.latency(torch.rand(8, 20), num_steps=25, normalize=True, linear=True).shape
        torch.Size([25, 8, 20])
    """
    data, dtype = _checked(data, dtype)
    first_spike_time = check_count("first_spike_time", first_spike_time)
    if num_steps is False or num_steps is None:
        if normalize or not bypass:
            raise ValueError("num_steps must be given, unless bypass=True without normalize makes it the last spike's")
        num_steps = None
    else:
        num_steps = _steps(num_steps)
        _check_first(first_spike_time, num_steps)
    threshold, tau = _number("threshold", threshold), _number("tau", tau)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    if tau <= 0:
        raise ValueError(f"tau must be more than 0, got {tau}")
    if _number("epsilon", epsilon) <= 0:
        raise ValueError(f"epsilon must be more than 0, got {epsilon}")
    on, off = _number("on_target", on_target), _number("off_target", off_target)
    if interpolate and on < off:
        raise ValueError(f"on_target must be off_target or more to interpolate, got {on_target} and {off_target}")
    if dtype == torch.bool and (interpolate or not {on, off} <= {0, 1}):
        raise ValueError("dtype must be floating for interpolate and for targets other than 0 and 1, got torch.bool")

    data = data.float() if data.dtype in (torch.float16, torch.bfloat16) else data
    readable = data.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable:
        _check_unit_interval(data)
    else:
        data = data.clamp(0, 1)
    times = _spike_times(data, num_steps, threshold, tau, first_spike_time, normalize, linear, epsilon)
    if num_steps is None:
        num_steps = _last_step(times) + 1
    elif readable and not bypass and times.numel() and (last := _last_step(times)) >= num_steps:
        raise ValueError(
            f"num_steps must be more than {last}, the step of the last spike, or bypass=True; got {num_steps}"
        )
    if clip:
        times = times.masked_fill(data < threshold, -1)
    return _encoded(ops.encode_latency, times, num_steps, bool(interpolate), on, off, dtype)


def delta(
    data: Tensor,
    threshold: float = 0.1,
    padding: bool = False,
    off_spike: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Spikes where data rises by the threshold or more from one step to the next.

    Spikes are those of `snntorch.spikegen.delta`, but that differences of unsigned integers do not wrap around there.

    Args:
        data: [T, B, ...].
        threshold: 0 or more.
        padding: before the first step the data was the same; by default it was 0.
        off_spike: falls as large give -1.
        dtype: of the spikes, see above.

    Returns:
        spikes [T, B, ...].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: no steps, or an argument out of its range.

    Examples:
        >>> snn.encoding.delta(torch.rand(25, 8, 20), threshold=0.1).shape
        torch.Size([25, 8, 20])
    """
    data, dtype = _checked(data, dtype)
    _check_sequence(data)
    threshold = _number("threshold", threshold)
    if threshold < 0:
        raise ValueError(f"threshold must be 0 or more, got {threshold}")
    if off_spike and dtype == torch.bool:
        raise ValueError("dtype must be floating for off_spike, whose spikes are -1 too; got torch.bool")
    return _encoded(ops.encode_delta, data, threshold, bool(padding), bool(off_spike), dtype)


def bin_events(
    t: Tensor,
    x: Tensor,
    y: Tensor,
    p: Tensor,
    steps: int,
    size: tuple[int, int],
    span: tuple[float, float] | None = None,
) -> Tensor:
    """Count the events of one recording in `steps` equal intervals of time.

    Args:
        t, x, y, p: time in any unit, column, row and polarity (0 or 1, or bool) of each event, all [events], any order;
            tensors or NumPy arrays.
        steps: T.
        size: rows and columns of the sensor, (H, W).
        span: first and last time, in t's unit; events outside are left out. Default: from the first event to the last.

    Returns:
        float32 counts [T, polarity, H, W]. `.clamp(max=1)` makes spikes of them.

    Raises:
        ValueError: t, x, y, p of unequal shapes, a place off the sensor, another polarity, no steps or an empty span.

    Examples:
        >>> t, x, y, p = torch.tensor([0.0, 0.3, 0.9]), *torch.tensor([[0, 1, 1], [0, 0, 1], [1, 0, 1]])
        >>> snn.bin_events(t, x, y, p, steps=3, size=(2, 2)).shape
        torch.Size([3, 2, 2, 2])
    """
    rows, columns = size
    t, x, y, p = map(torch.as_tensor, (t, x, y, p))
    if t.dim() != 1 or not t.shape == x.shape == y.shape == p.shape:
        shapes = ", ".join(str(tuple(values.shape)) for values in (t, x, y, p))
        raise ValueError(f"t, x, y and p must have one shape [events], got {shapes}")
    for name, values, limit in (("x", x, columns), ("y", y, rows), ("p", p, 2)):
        if len(values) and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(f"{name} must be from 0 to {limit - 1}, got {values.min()} to {values.max()}")
    if steps < 1 or (span and not span[0] < span[1]):
        raise ValueError(f"steps must be at least 1 and span increase, got {steps} and {span}")
    counts = torch.zeros(steps, 2, rows, columns)
    if not len(t):
        return counts
    t = t.double()
    begin, end = span or (t.min().item(), t.max().item())
    # All events at one time are one step's.
    step = ((t - begin) * (steps / ((end - begin) or 1.0))).floor().long()
    step[t == end] = steps - 1
    inside = (step >= 0) & (step < steps)
    place = tuple(values[inside].long() for values in (step, p, y, x))
    return counts.index_put_(place, torch.ones(()), accumulate=True)


def _encoded(encode: Callable, data: Tensor, *others) -> Tensor:
    """`encode(data, *others)`, on the CPU where the data's GPU has no kernels: the same spikes."""
    why = _lacks_kernels(data.device)
    if why is None:
        return encode(data, *others)
    _say_once(why)
    moved = [other.cpu() if isinstance(other, Tensor) else other for other in others]
    return encode(data.cpu(), *moved).to(data.device)


def _lacks_kernels(device: torch.device) -> str | None:
    return ops.why_no_kernel_runs(device.index) if device.type == "cuda" else None


@cache
def _say_once(why: str) -> None:
    warnings.warn(f"encoding: CUDA, {why}, encodes on the CPU: the same spikes, but slower", stacklevel=4)


def _spike_times(data, num_steps, threshold, tau, first_spike_time, normalize, linear, epsilon) -> Tensor:
    """Rounded times, in the order of operations of spikegen and by torch's logarithm, which rounds in its own way.

    From `snntorch.spikegen.latency_code_log` and `latency_code_linear`.
    """
    if linear:
        if normalize:
            tau = num_steps - 1 - first_spike_time
        return torch.round(torch.clamp_max(-tau * (data - 1), -tau * (threshold - 1)) + first_spike_time)
    charge = torch.clamp(data, threshold + epsilon)
    times = tau * torch.log(charge / (charge - threshold))
    if first_spike_time > 0:
        times = times + first_spike_time
    if normalize and times.numel():
        times = times - first_spike_time
        longest = times.max()
        longest = torch.where(longest > 0, longest, 1)
        times = times * (num_steps - first_spike_time - 1) / longest + first_spike_time
    return torch.round(times)


def _last_step(times: Tensor) -> int:
    if times.numel() == 0:
        raise ValueError("num_steps must be given for data without elements")
    return int(times.max())


def _seed(data: Tensor, generator: torch.Generator | None) -> Tensor:
    """One number from torch's generator that stays on the data's device: no host waits for it."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    if generator is not None and generator.device.type != data.device.type:
        raise ValueError(f"generator must be on {data.device} as data is, got {generator.device}")
    return torch.randint(2**63 - 1, (), generator=generator, device=data.device)


def _checked(data: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, torch.dtype]:
    """The data as the kernels read it, without gradient, and the dtype of the spikes."""
    check_data("data", data)
    if data.dtype not in DTYPES or data.dtype == torch.bool:
        data = data.to(torch.get_default_dtype())
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, DTYPES))}; got {dtype!r}")
    return data.detach(), data.dtype if dtype is None else dtype


def _check_sequence(data: Tensor) -> None:
    if data.dim() == 0 or len(data) == 0:
        raise ValueError(f"data must have one time step [T, B, ...] or more, got shape {tuple(data.shape)}")


def _check_unit_interval(data: Tensor) -> None:
    if data.numel() == 0:
        return
    low, high = (bound.item() for bound in torch.aminmax(data))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"data must lie in [0, 1], got values from {low} to {high}")


def _steps(num_steps, hint: str = "") -> int:
    if num_steps is False or num_steps is None:
        raise ValueError(f"num_steps must be given{hint}")
    if check_count("num_steps", num_steps) == 0:
        raise ValueError(f"num_steps must be 1 or more, got 0{hint}")
    return num_steps


def _check_first(first_spike_time: int, num_steps: int) -> None:
    if first_spike_time >= num_steps:
        raise ValueError(f"first_spike_time must be less than num_steps = {num_steps}, got {first_spike_time}")


def _number(name: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value
