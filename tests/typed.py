"""Every public name as a user's typed program uses it: `mypy --strict` passes over it, and it runs."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

import snnfast as snn
import snnfast.norse as norse
from snnfast import encoding, functional, reference, surrogate
from snnfast.benchmark import Benchmark, Timing
from snnfast.cells import fused, why_not_fused
from snnfast.compiler.explain import Explanation
from snnfast.probe import Recording

T, B, N = 4, 2, 3
x = torch.rand(T, B, N)


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, u: Tensor) -> Tensor:
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0]


class Mine(snn.Cell):
    states = ("mem",)

    def step(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        mem = 0.9 * mem + x
        spk: Tensor = Spike.apply(mem - 1.0)  # type: ignore[no-untyped-call]
        return spk, mem * (1 - spk)


class Doubled(snn.Leaky):
    def fire(self, mem: Tensor) -> Tensor:
        return 2 * self.spike_grad(mem - self.threshold)


def neurons() -> Iterator[snn.SpikingNeuron]:
    yield snn.Leaky(0.9, threshold=torch.ones(N), spike_grad=surrogate.fast_sigmoid(25), learn_beta=True)
    yield snn.Leaky(beta=np.full(N, 0.9), reset_mechanism="zero", reset_delay=False, state_quant=False)
    yield snn.Synaptic(alpha=0.8, beta=0.9, learn_alpha=True, init_hidden=True, output=True)
    yield snn.Alpha(alpha=0.9, beta=0.8)
    yield snn.Lapicque(R=2.0, C=1.5, time_step=1)
    yield snn.RLeaky(0.9, linear_features=N)
    yield snn.RSynaptic(0.8, 0.9, V=0.5, all_to_all=False)
    yield snn.ALIF(0.9, rho=0.97, strength=0.2)
    yield Mine()
    yield Doubled(0.9)


def layers() -> None:
    for neuron in neurons():
        seq = neuron.unroll(x)
        spk: Tensor = neuron.unroll_spikes(x)
        states = neuron.reset_mem()
        neuron.reset_state()
        neuron.detach_state()
        name: str = repr(neuron)
        assert len(seq) and spk.shape == x.shape and name and states is not None
    mechanism: str = snn.Leaky(0.9).reset_mechanism
    spk, mem = snn.Leaky(0.9)(x[0], torch.zeros(B, N))
    step = snn.Leaky(0.9).forward(x[0])
    assert mechanism == "subtract" and spk.shape == mem.shape == step[0].shape


def networks() -> None:
    net = snn.Unroll(nn.Linear(N, 8), snn.Leaky(0.9), nn.Linear(8, 2), snn.Leaky(0.9), recompute=True)
    out = net(x)
    same: nn.Sequential = snn.convert(nn.Sequential(nn.Linear(N, 8), snn.Leaky(0.9, init_hidden=True)))
    stepped: nn.Sequential = snn.accelerate(same, numbers="exact", verify=1)

    @snn.accelerate
    def forward_pass(net: nn.Module, steps: Tensor) -> Tensor:
        return torch.stack([net(step) for step in steps])

    with snn.accelerated(numbers="forward", verify=0):
        spk = forward_pass(stepped, x)
    with snn.record(net, "1") as seen:
        net(x)
    recording: Recording = seen
    rate: Tensor = sum((spk.mean() for spk in recording.spk.values()), torch.zeros(()))
    seen.clear()
    snn.reset(stepped)
    snn.detach(stepped)
    with snn.use_reference():
        net(x)
    explanation: Explanation = snn.explain(net, x)
    result: Benchmark = snn.benchmark(net, x, loss=lambda out: out.sum(), seconds=1e-3)
    timing: Timing = result.fastest
    assert out.shape == (T, B, 2) and spk.shape == (T, B, 8) and rate >= 0
    assert str(explanation) and timing.total > 0 and isinstance(result.advice, str)
    snn.empty_cache()
    snn.products.choose("auto")
    way: str = snn.products.chosen()
    assert way == "auto"


def training() -> None:
    net = snn.Unroll(nn.Linear(N, 2), snn.Leaky(0.9))
    loss = functional.ce_rate_loss()
    step = snn.TrainingStep(
        net,
        torch.optim.Adam(net.parameters()),
        lambda spk, target: nn.functional.cross_entropy(spk.sum(0), target),
        encode=lambda image: encoding.rate(image, num_steps=T),
        scores=lambda spk: spk.sum(0),
    )
    value, correct = step(torch.rand(B, N), torch.zeros(B, dtype=torch.int64))
    assert value.dim() == 0 and correct <= B and loss is not None


def encoders() -> None:
    image = torch.rand(B, N)
    spikes: list[Tensor] = [
        encoding.rate(image, num_steps=T, gain=0.5, generator=torch.Generator()),
        encoding.poisson(image, num_steps=T, max_rate_hz=200.0, dt=1e-3, dtype=torch.bool),
        encoding.latency(image, num_steps=T, normalize=True, linear=True),
        encoding.delta(x, threshold=0.1, off_spike=True),
    ]
    t, column = torch.rand(5), torch.randint(2, (5,))
    frames: Tensor = snn.bin_events(t, column, column, column, steps=T, size=(2, 2), span=(0.0, 1.0))
    assert all(spike.shape == (T, B, N) for spike in spikes) and frames.shape == (T, 2, 2, 2)
    assert snn.encoding is encoding and encoding.bin_events is snn.bin_events


def functions() -> None:
    spk, mem = functional.leaky(x, beta=0.9, threshold=1.0, surrogate=surrogate.atan(2.0), return_mem="last")
    one, mem = functional.leaky_step(x[0], mem, beta=torch.full((N,), 0.9), reset_mechanism="none")
    known = (
        *(surrogate.atan(), surrogate.fast_sigmoid(), surrogate.sigmoid(), surrogate.straight_through_estimator()),
        *(surrogate.triangular(), surrogate.heaviside(), surrogate.spike_rate_escape(), surrogate.SFS()),
        *(surrogate.logistic(10, inclusive=True), surrogate.triangle(), surrogate.tanh(), surrogate.circ()),
        *(surrogate.erfc(), surrogate.disabled(), surrogate.evaluated(surrogate.atan())),
    )
    for spike_grad in known:
        base: surrogate.Surrogate = spike_grad
        gradient: Tensor = base.gradient(x, torch.ones_like(x))
        assert base(x).shape == gradient.shape and surrogate.resolve(spike_grad) is spike_grad
    ones = torch.ones(())
    again, _ = reference.leaky(x, torch.zeros(B, N), 0.9 * ones, ones, ones, surrogate.atan())
    assert torch.equal(spk, again) and one.shape == (B, N)
    assert snn.functional is functional and snn.surrogate is surrogate and snn.reference is reference


def cells() -> None:
    def cell(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        mem = 0.9 * mem + x
        return torch.tanh(mem), mem

    out, state = snn.scan(cell, x, torch.zeros(B, N))
    why: str | None = why_not_fused(cell, x, torch.zeros(B, N))
    mine: str | None = Mine().why_not_fused(x)
    assert out.shape == x.shape and state.shape == (B, N) and why is mine is None and fused is not None


def norses() -> None:
    p = norse.LIFParameters(v_th=torch.tensor(0.5), method="super", alpha=100.0)
    spk, state = norse.LIFCell(p, dt=0.001)(x[0])
    feed_forward: norse.LIFFeedForwardState = norse.LIFCell().forward(x[0])[1]
    spk, state = norse.LIF(p, record_states=True)(x)
    v, _ = norse.LI(norse.LIParameters())(x)
    v, li = norse.LICell()(x[0])
    v, li = norse.LILinearCell(N, 5).forward(x[0])
    leaky: norse.LIState = li
    spk, recurrent = norse.LIFRecurrentCell(N, 5).forward(x[0])
    lif: norse.LIFState = recurrent
    spk, _ = norse.LIFRecurrent(N, 5)(x)
    image = torch.rand(B, N)
    norse.ConstantCurrentLIFEncoder(T)(image)
    norse.PoissonEncoder(T)(image)
    norse.SpikeLatencyLIFEncoder(T)(image)
    norse.SpikeLatencyEncoder()(x)
    assert spk.shape == (T, B, 5) and v.shape == leaky.v.shape == lif.z.shape and feed_forward.v.shape == (B, N)
    assert state is not None


def scripts() -> None:
    snn.install(numbers="forward", encoders="exact")
    snn.uninstall()
    snn.load_ipython_extension(None)
    snn.unload_ipython_extension(None)
    version: str = snn.__version__
    assert version and snn.utils is not None


if __name__ == "__main__":
    for part in (layers, networks, training, encoders, functions, cells, norses, scripts):
        part()
