"""Norse's encoders."""

import torch
from torch import Tensor, nn

from ..checks import check_count, check_data
from ..functional import run
from ..ops import Options
from ..reference import LIF
from .parameters import LIF_DEFAULTS, LIFParameters, checked, products_with_dt, surrogate_of


class _Encoder(nn.Module):
    """Base of the encoders that drive LIF neurons, without a synapse, by a constant current."""

    def __init__(self, seq_length: int, p: LIFParameters = LIF_DEFAULTS, dt: float = 0.001) -> None:
        super().__init__()
        self.seq_length = check_count("seq_length", seq_length)
        self.p = checked(p, LIFParameters)
        self._surrogate = surrogate_of(p)
        self.dt = dt

    def extra_repr(self) -> str:
        return f"seq_length={self.seq_length}, p={self.p}, dt={self.dt}"

    def _spikes(self, current: Tensor, v: Tensor) -> Tensor:
        """Spikes [seq_length, ...] of a current [...] on voltages v [...]."""
        if self._is_fusible(current, v):
            # A synapse that forgets at once hands the current on as it is.
            mem_rate, _, *voltages = products_with_dt(self.p[:5], self.dt)
            x = current.to(v.dtype).expand(self.seq_length, *current.shape)
            options = Options(self._surrogate, "none", True, True)
            return run(LIF, x, (None, None), (mem_rate, 1.0, *voltages), options).spk
        spikes = []
        mem_rate = self.dt * self.p.tau_mem_inv
        for _ in range(self.seq_length):
            v = v + mem_rate * ((self.p.v_leak - v) + current)
            spk = self._surrogate(v - self.p.v_th)
            v = v - spk * (v - self.p.v_reset)
            spikes.append(spk)
        return torch.stack(spikes) if spikes else v.new_empty(0, *v.shape)

    def _is_fusible(self, current: Tensor, v: Tensor) -> bool:
        """Whether the fused neuron gives these numbers: its reset is another where v_reset is not 0."""
        if torch.compiler.is_compiling() or v.dtype not in (torch.float32, torch.float64):
            return False
        tensors = (current, *self.p[:5])
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return False
        if any(p.dim() > 0 or (p.dtype == torch.float64 and v.dtype != p.dtype) for p in self.p[:5]):
            return False
        return bool(self.p.v_reset == 0)


class ConstantCurrentLIFEncoder(_Encoder):
    """Spikes of LIF neurons without a synapse, each driven by a constant current.

    Args:
        seq_length: number of time steps.
        p: parameters. Default: Norse's.
        dt: time step in s. Default 0.001.

    Raises:
        TypeError: a parameter that is no number.
        ValueError: an unknown method, a negative length.

    Examples:
        >>> norse.ConstantCurrentLIFEncoder(25)(torch.rand(16, 4)).shape
        torch.Size([25, 16, 4])
    """

    def forward(self, input_currents: Tensor) -> Tensor:
        """Currents [...] of any real dtype to spikes [seq_length, ...], float32; voltages start from 0."""
        check_data("input_currents", input_currents)
        wide = torch.float64 if input_currents.dtype == torch.float64 else torch.get_default_dtype()
        v = torch.zeros(input_currents.shape, device=input_currents.device, dtype=wide)
        return self._spikes(input_currents, v).to(torch.get_default_dtype())


class SpikeLatencyLIFEncoder(_Encoder):
    """The first spike of each neuron of `ConstantCurrentLIFEncoder`. Args as there.

    Examples:
        >>> norse.SpikeLatencyLIFEncoder(25)(torch.rand(16, 4)).shape
        torch.Size([25, 16, 4])
    """

    def forward(self, input_current: Tensor) -> Tensor:
        """Currents [...] to spikes [seq_length, ...] in their dtype, which is a floating one."""
        check_data("input_current", input_current)
        if not input_current.is_floating_point():
            raise TypeError(f"input_current must have a floating dtype, got {input_current.dtype}")
        return _first_spikes(self._spikes(input_current, torch.zeros_like(input_current)))


class SpikeLatencyEncoder(nn.Module):
    """Leaves of each neuron's spikes the first.

    Examples:
        >>> norse.SpikeLatencyEncoder()(torch.rand(25, 16, 4)).shape
        torch.Size([25, 16, 4])
    """

    def forward(self, input_spikes: Tensor) -> Tensor:
        """Spikes [T, ...], 0 or 1, of any dtype to spikes of the same shape and dtype."""
        check_data("input_spikes", input_spikes)
        if input_spikes.dim() == 0:
            raise ValueError("input_spikes must have a time dimension [T, ...], got a tensor of 0 dimensions")
        return _first_spikes(input_spikes)


def _first_spikes(spikes: Tensor) -> Tensor:
    fired = (spikes.detach() > 0).cumsum(0)
    before = torch.cat([torch.zeros_like(fired[:1]), fired[:-1]])
    return torch.where(before > 0, torch.zeros_like(spikes), spikes)


class PoissonEncoder(nn.Module):
    """Random spikes at rates of up to f_max; the same seed gives the spikes that Norse draws.

    Args:
        seq_length: number of time steps.
        f_max: rate of an input of 1, in Hz. Default 100.
        dt: time step in s. Default 0.001.

    Raises:
        TypeError: a `seq_length` that is no int, an input that is no tensor.
        ValueError: a negative `seq_length`.

    Examples:
        >>> norse.PoissonEncoder(25)(torch.rand(16, 4)).shape
        torch.Size([25, 16, 4])
    """

    def __init__(self, seq_length: int, f_max: float = 100, dt: float = 0.001) -> None:
        super().__init__()
        self.seq_length = check_count("seq_length", seq_length)
        self.f_max = f_max
        self.dt = dt

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [...] from 0 to 1 to spikes [seq_length, ...], float32."""
        check_data("x", x)
        return (torch.rand(self.seq_length, *x.shape, device=x.device).float() < self.dt * self.f_max * x).float()

    def extra_repr(self) -> str:
        return f"seq_length={self.seq_length}, f_max={self.f_max}, dt={self.dt}"
