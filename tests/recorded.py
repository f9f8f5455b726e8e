"""Loops over time that the recorder's tests run as written and recorded, and what must be the same."""

import copy

import torch
from torch import nn

import snnfast as snn
from snnfast.loops import recording, report

B, STEPS, CALLS = 2, 9, 3


class Net(nn.Module):
    """Two layers, and what some of the cases put between them."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(5, 6), snn.Leaky(0.9, threshold=0.4, learn_beta=True)
        self.out, self.last = nn.Linear(6, 5), snn.Leaky(0.8, threshold=0.3, reset_mechanism="zero")
        self.conv, self.norm = nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(6)
        self.cumulative = nn.BatchNorm1d(6, momentum=None)
        self.register_buffer("scale", torch.ones(5))


def first(net, x, t):
    return net.fc(x[t])


def as_it_is(net, t, spk, mem):
    return spk, mem


def loop(net, x, current=first, middle=as_it_is, end=as_it_is):
    """Two layers over time; what a case does before, between and after them."""
    mem, mem2, spikes, mems = net.lif.init_leaky(), net.last.init_leaky(), [], []
    for t in range(len(x)):
        spk, mem = net.lif(current(net, x, t), mem)
        spk, mem = middle(net, t, spk, mem)
        out, mem2 = net.last(net.out(spk), mem2)
        out, mem2 = end(net, t, out, mem2)
        spikes.append(out)
        mems.append(mem)
    return torch.stack(spikes), torch.stack(mems)


def inputs(call: int, dtype, steps=STEPS, batch=B):
    generator = torch.Generator().manual_seed(call)
    return (torch.rand(steps, batch, 5, generator=generator, dtype=torch.float64) * 2).to(dtype).requires_grad_()


def ran(net, case, dtype, calls=CALLS) -> dict:
    """What calls of a loop leave behind, by name: outputs, gradients, buffers, states, the generator."""
    seen = {}
    for call in range(calls):
        x = inputs(call, dtype)
        torch.manual_seed(call)
        outputs = [out for out in case(net, x) if isinstance(out, torch.Tensor)]
        kept = {f"output {k}": out for k, out in enumerate(outputs)}
        kept |= dict(net.named_buffers()) | {"lif.mem": net.lif.mem, "last.mem": net.last.mem}
        weighted = [
            (out * torch.linspace(0.1, 1, out.numel()).view(out.shape)).sum() for out in outputs if out.requires_grad
        ]
        loss = sum(weighted)
        kept["generator"] = torch.get_rng_state()
        kept = {name: value.detach().clone() for name, value in kept.items()}
        if isinstance(loss, torch.Tensor):
            loss.backward()
        gradients = {"x": x.grad} | {name: p.grad for name, p in net.named_parameters()}
        kept |= {f"gradient of {name}": grad for name, grad in gradients.items() if grad is not None}
        seen |= {f"call {call} {name}": value for name, value in kept.items()}
        net.zero_grad()
        snn.reset(net)
    return seen


def recorded_steps() -> int:
    return sum(story.recorded for story in report.stories.values())


def assert_same(found: dict, expected: dict, exact: bool) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if "gradient" in name and not exact:
            # The gradient of a decay is a sum over time, of which only the rounding is promised.
            near = 1e-4 if exact else 1e-9
            torch.testing.assert_close(found[name], value, rtol=near, atol=near, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert torch.equal(found[name], value), name


def stack_depth() -> int:
    return torch._C._len_torch_function_stack()


def assert_recorded_as_written(case, numbers, make=Net, recorded=True):
    """A loop of an accelerated network, and one in a region, are the plain one."""
    dtype = torch.float64 if numbers == "forward" else torch.float32
    torch.manual_seed(0)
    net = make().to(dtype)
    expected = ran(copy.deepcopy(net), case, dtype)
    assert expected["call 0 output 0"].unique().numel() > 1 or expected["call 0 output 0"].dim() == 0, "it is silent"
    count = recorded_steps()
    if numbers == "forward":
        found = ran(snn.accelerate(copy.deepcopy(net)), case, dtype)
        recording.stop()
    else:
        found = ran(copy.deepcopy(net), snn.accelerate(case, numbers=numbers), dtype)
    assert_same(found, expected, exact=numbers == "exact")
    assert (recorded_steps() > count) or not recorded, "nothing was recorded"


def given(**points):
    def case(net, x):
        return loop(net, x, **points)

    return case


class Forward(Net):
    def forward(self, x):
        return loop(self, x)
