"""A recorded loop is the loop: what users write between its steps, one small case for each."""

import copy
import gc
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import snnfast as snn
from recorded import (
    CALLS,
    STEPS,
    B,
    Forward,
    Net,
    assert_recorded_as_written,
    given,
    inputs,
    loop,
    recorded_steps,
    stack_depth,
)

pytestmark = pytest.mark.usefixtures("no_recorder_stays")


class SeesOperators(TorchDispatchMode):
    """Notes what torch calls below its functions."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.log.append(func)
        return func(*args, **(kwargs or {}))


class SeesSaved(torch.autograd.graph.saved_tensors_hooks):
    """Notes the shapes of what is kept for backward."""

    def __init__(self, log):
        super().__init__(lambda tensor: log.append(tensor.shape) or tensor, lambda tensor: tensor)


# What is given to `loop`.


def rewritten(net, t, spk, mem):
    return spk, mem * 0.5 + 0.1


def detached(net, t, spk, mem):
    return spk.detach() if t % 3 == 2 else spk, mem.detach()


def detached_in_place(net, t, spk, mem):
    if t == 4:
        mem.detach_()
    return spk, mem


def reset_where_it_fired(net, t, spk, mem):
    mem = mem.clone()
    mem[spk > 0] = 0
    return spk, mem


def written_at_one_step(net, t, spk, mem):
    if t == 5:
        mem = mem * 1
        mem[:, 0] = 0.2
    return spk, mem


def multiplied_in_place(net, t, spk, mem):
    mem = mem + 0
    mem *= 0.9
    mem.add_(0.1).clamp_(max=1.5)
    return spk, mem


def branch(net, t, spk, mem):
    if spk.sum() > 3:
        mem = mem - 0.1
    return spk, mem


def branch_at_one_step(net, t, spk, mem):
    if t == 6 and float(mem.mean()) > 0.1:
        mem = mem - 0.1
    return spk, mem


def without_grad(net, t, spk, mem):
    with torch.no_grad():
        rate = spk.mean(0, keepdim=True)
    return spk * (1 - 0.5 * rate), mem


def in_inference(net, t, spk, mem):
    with torch.inference_mode():
        spk.mean() + mem.max()
    return spk, mem


def layer_without_grad(net, x, t):
    with torch.no_grad():
        return net.fc(x[t])


def grad_switched(net, t, spk, mem):
    with torch.set_grad_enabled(t < 6):
        return spk * 1.0, mem * 0.9


def in_autocast(net, x, t):
    with torch.autocast("cpu", torch.bfloat16):
        return net.fc(x[t]).to(x.dtype)


def conv_in_autocast_at_times(net, x, t):
    with torch.autocast("cpu", torch.bfloat16, enabled=t == 4):
        return net.fc(x[t]).to(x.dtype)


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, scale):
        ctx.save_for_backward(weight)
        return weight.sign() * scale

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return grad * (weight.abs() <= 0.3) * 0.5, None


def function_of_weights(net, x, t):
    return F.linear(x[t], Sign.apply(net.fc.weight, 0.5), net.fc.bias)


def function_of_spikes(net, t, spk, mem):
    return Sign.apply(spk - 0.5, 0.7), mem


def dropped(net, t, spk, mem):
    return F.dropout(spk, 0.4), mem


def dropped_in_eval(net, t, spk, mem):
    return F.dropout(spk, 0.4, training=False), mem


def dropped_in_place(net, x, t):
    return F.dropout(net.fc(x[t]), 0.4, inplace=True)


def dropped_by(drop, *shape):
    def current(net, x, t):
        h = net.fc(x[t]).view(B, *shape)
        return drop(h, 0.4, True).flatten(1)

    current.__name__ = drop.__name__
    return current


def noise(net, t, spk, mem):
    return spk + 0.2 * torch.rand_like(spk), mem + 0.1 * torch.randn(B, 6, dtype=mem.dtype)


def bernoulli(net, x, t):
    return net.fc(torch.bernoulli(x[t] / 2))


def normalised(net, x, t):
    return net.norm(net.fc(x[t]))


def normalised_twice(net, x, t):
    return net.norm(net.norm(net.fc(x[t])))


def normalised_cumulatively(net, x, t):
    return net.cumulative(net.fc(x[t]))


def normalised_in_eval(net, x, t):
    net.norm.eval()
    return net.norm(net.fc(x[t]))


def statistics_looked_at(net, x, t):
    h = net.norm(net.fc(x[t]))
    return h + net.norm.running_mean.clone()


def convolved(net, x, t):
    h = torch.cat([x[t], x[t][:, :1]], 1).view(B, 2, 3)
    return net.conv(h)[:, :2].flatten(1)


def retained_in_the_loop(net, x):
    kept = []

    def end(net, t, spk, mem):
        mem.retain_grad()
        kept.append(mem)
        return spk, mem

    return gradients_of(loop(net, x, end=end), kept)


def retained_at_one_step(net, x):
    kept = []
    mem, mem2, total = net.lif.init_leaky(), net.last.init_leaky(), 0
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t]), mem)
        out, mem2 = net.last(net.out(spk), mem2)
        total = total + out.sum() + mem2.sum() * 0.1
        if t == 5:
            for value in (spk, mem, mem2):
                value.retain_grad()
                kept.append(value)
    total.backward(retain_graph=True)
    return total, *(value.grad for value in kept)


def hooked_at_one_step(net, x):
    seen = []
    mem, mem2, total = net.lif.init_leaky(), net.last.init_leaky(), 0
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t]), mem)
        out, mem2 = net.last(net.out(spk), mem2)
        total = total + out.sum() + mem2.sum() * 0.1
        if t == 5:
            spk.register_hook(lambda grad: seen.append(grad) or grad * 2)
    total.backward(retain_graph=True)
    return total, *seen


def gradients_of(outs, kept):
    loss = sum(out.sum() * (k + 1) for k, out in enumerate(outs))
    loss.backward(retain_graph=True)
    return *outs, *(value.grad for value in kept if value.grad is not None)


def feedback(net, x):
    mem, mem2, spikes = net.lif.init_leaky(), net.last.init_leaky(), []
    back = torch.zeros(B, 5, dtype=x.dtype)
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t] + 0.5 * back), mem)
        back, mem2 = net.last(net.out(spk), mem2)
        spikes.append(back)
    return (torch.stack(spikes),)


def one_layer_twice(net, x):
    mem, mem2, spikes = net.lif.init_leaky(), net.lif.init_leaky(), []
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t]), mem)
        spk2, mem2 = net.lif(0.8 * spk + 0.1, mem2)
        spikes.append(spk + spk2)
    return torch.stack(spikes), mem, mem2


def inner_steps(net, x):
    """Each frame is shown three times."""
    mem, mem2, spikes = net.lif.init_leaky(), net.last.init_leaky(), []
    for t in range(STEPS):
        h = net.fc(x[t])
        for _ in range(3):
            spk, mem = net.lif(h, mem)
        out, mem2 = net.last(net.out(spk), mem2)
        spikes.append(out)
    return (torch.stack(spikes),)


def truncated(net, x):
    """Backward every three steps, the state detached."""
    mem, mem2, losses = net.lif.init_leaky(), net.last.init_leaky(), []
    for start in range(0, STEPS, 3):
        loss = 0
        for t in range(start, start + 3):
            spk, mem = net.lif(net.fc(x[t]), mem)
            out, mem2 = net.last(net.out(spk), mem2)
            loss = loss + out.sum() + mem2.mean()
        loss.backward()
        mem, mem2 = mem.detach(), mem2.detach()
        losses.append(loss.detach())
    return (torch.stack(losses),)


def trained_every_step(net, x):
    """Online: a step of the optimiser in each step of the loop."""
    kept = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    mem, losses = net.lif.init_leaky(), []
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t].detach()), mem)
        loss = F.mse_loss(mem, torch.full_like(mem, 0.3)) + spk.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mem = mem.detach()
        losses.append(loss.detach())
    with torch.no_grad():
        found = [p.detach().clone() for p in net.parameters()]
        for p, value in zip(net.parameters(), kept, strict=True):
            p.copy_(value)
    return torch.stack(losses), *found


def generated(net, x):
    def spikes():
        mem = net.lif.init_leaky()
        for t in range(STEPS):
            spk, mem = net.lif(net.fc(x[t]), mem)
            yield spk

    mem2, outs = net.last.init_leaky(), []
    for spk in spikes():
        out, mem2 = net.last(net.out(spk), mem2)
        outs.append(out)
    return (torch.stack(outs),)


def left_early(net, x):
    mem, spikes = net.lif.init_leaky(), []
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t]), mem)
        spikes.append(spk)
        if t == 6:
            break
    return torch.stack(spikes), mem


def some_steps_skipped(net, x):
    mem, spikes = net.lif.init_leaky(), []
    for t in range(STEPS):
        h = net.fc(x[t])
        if t == 5:
            continue
        if t == 7:
            h = h.tanh()
        spk, mem = net.lif(h, mem)
        spikes.append(spk)
    return torch.stack(spikes), mem


def losses_in_the_loop(net, x):
    labels = torch.tensor([1, 3])
    loss, correct = torch.zeros((), dtype=x.dtype), 0
    mem, mem2 = net.lif.init_leaky(), net.last.init_leaky()
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t]), mem)
        out, mem2 = net.last(net.out(spk), mem2)
        loss += F.cross_entropy(mem2, labels)
        with torch.no_grad():
            correct = correct + (out.argmax(1) == labels).sum()
    return loss / STEPS + out.mean() * 0, correct.to(x.dtype), out


def copied_values(copy_of):
    def case(net, x):
        kept = []

        def end(net, t, spk, mem):
            if t == 6:
                kept.append(copy_of(spk.detach()))
                kept.append(copy_of(mem.detach()))
                assert all(type(one) is torch.Tensor for one in kept)
            return spk, mem

        return *loop(net, x, end=end), *kept

    return case


def saved(value):
    torch.save(value, file := io.BytesIO())
    file.seek(0)
    return torch.load(file)


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def net_copied(copy_of):
    """A copy of the network, in the middle of a loop, has the state that it has by then."""

    def case(net, x):
        kept = []

        def end(net, t, spk, mem):
            if t == 6:
                other = copy_of(net)
                kept.extend([other.lif.mem.detach(), other.last.mem.detach(), other.norm.running_mean])
            return spk, mem

        return *loop(net, x, end=end), *kept

    return case


def state_saved(net, x):
    kept = []

    def current(net, x, t):
        if t == 6:
            kept.extend(value.clone() for value in net.state_dict().values())
        return net.norm(net.fc(x[t]))

    return *loop(net, x, current), *kept


@torch.jit.script
def scripted_tanh(x: torch.Tensor):
    return torch.tanh(x) * 0.9


def scripted(net, x, t):
    return scripted_tanh(net.fc(x[t]))


def vectorised(net, x, t):
    return torch.func.vmap(net.fc)(x[t])


def differentiated(net, t, spk, mem):
    return spk + torch.func.grad(lambda s: (s**2).sum())(spk.detach() + 0.5), mem


def jacobian(net, t, spk, mem):
    return spk + torch.func.jacrev(lambda s: s.sum(0))(spk.detach()).mean(), mem


def checkpointed(net, x, t):
    return checkpoint(lambda h: net.fc(h).tanh() * 1.4, x[t], use_reentrant=False)


def checkpointed_step(net, x):
    mem, spikes = torch.zeros(B, 6, dtype=x.dtype), []
    for t in range(STEPS):
        spk, mem = checkpoint(lambda h, mem: net.lif(net.fc(h), mem), x[t], mem, use_reentrant=False)
        spikes.append(spk)
    return torch.stack(spikes), mem


class Doubled(TorchFunctionMode):
    """A mode of the user's, which changes what linear gives."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is F.linear else out


def in_a_mode(net, x, t):
    with Doubled():
        return net.fc(x[t])


def around_a_mode(net, x):
    with Doubled():
        return loop(net, x)


def with_default_device(net, x):
    torch.set_default_device("cpu")
    try:
        return loop(net, x)
    finally:
        torch.set_default_device(None)


def device_in_the_loop(net, x, t):
    with torch.device("cpu"):
        return net.fc(x[t]) + torch.zeros(6, dtype=x.dtype)


def saved_tensors_hooked(net, x):
    with torch.autograd.graph.save_on_cpu():
        return loop(net, x)


def compared(net, t, spk, mem):
    assert isinstance(spk, torch.Tensor) and torch.is_tensor(mem) and spk.shape == (B, 6) and len(mem) == B
    assert mem.requires_grad and mem.dtype == spk.dtype and mem.device.type == "cpu" and not mem.is_leaf
    return spk, mem


def attributes_of_tensors(net, t, spk, mem):
    return spk + mem.T.mT.shape[0] * 0.01 + mem.real * 0.1 + spk.data * 0.1, mem


def data_taken(net, t, spk, mem):
    return spk, mem * 0.5 + mem.data * 0.25


def grad_asked_for(net, t, spk, mem):
    assert mem.grad_fn is not None and mem.grad is None if not mem.is_leaf else True
    return spk, mem


def seen_by_numpy(net, t, spk, mem):
    return spk + float(np.asarray(mem.detach()).mean()), mem


def listed(net, t, spk, mem):
    rows = [row * 2 for row in mem]
    return spk, torch.stack(rows) * 0.5


def asked_at_one_step(net, t, spk, mem):
    if t == 5:
        assert mem.tolist() and mem.sum().item() is not None and repr(spk) and f"{mem.mean():.3f}"
        assert spk.any() or not spk.any()
    return spk, mem


def iterated_frames(net, x):
    mem, spikes = net.lif.init_leaky(), []
    for frame in x:
        spk, mem = net.lif(net.fc(frame), mem)
        spikes.append(spk)
    return (torch.stack(spikes, 1),)


def sums_kept(net, x):
    mem, total, peak = net.lif.init_leaky(), 0, None
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t]), mem)
        total += spk
        peak = mem if peak is None else torch.maximum(peak, mem)
    return total, peak, mem


def trace_kept(net, x):
    """A trace of the user's own, by which the next step's current is changed."""
    trace = torch.zeros(B, 6, dtype=x.dtype)
    mem, spikes = net.lif.init_leaky(), []
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t]) - 0.3 * trace, mem)
        trace = 0.8 * trace + spk
        spikes.append(spk)
    return torch.stack(spikes), trace


def reset_in_the_middle(net, x):
    mem, spikes = net.lif.init_leaky(), []
    for t in range(STEPS):
        if t == 5:
            mem = net.lif.init_leaky()
        spk, mem = net.lif(net.fc(x[t]), mem)
        spikes.append(spk)
    return torch.stack(spikes), mem


def state_given_once(net, x):
    """A state that requires a gradient, of a leaf and not."""
    start = torch.full((B, 6), 0.2, dtype=x.dtype, requires_grad=True)
    mem, spikes = start * 1.5, []
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t]), mem)
        spikes.append(spk)
    outs = torch.stack(spikes), mem
    (grad,) = torch.autograd.grad(mem.sum() + outs[0].sum(), start, retain_graph=True)
    return *outs, grad


def taking_turns(net, t, spk, mem):
    return (spk * 0.5, mem) if t % 2 else (spk, mem + 0.05)


def numbers_of_a_step(net, t, spk, mem):
    return spk * (1 + 0.1 * t), mem * 0.9**t


def weighted_by_a_tensor(net, x):
    weights = torch.linspace(0.5, 1.5, STEPS, dtype=x.dtype)

    def end(net, t, spk, mem):
        return spk * weights[t], mem

    return loop(net, x, end=end)


def delayed(net, x):
    """The second layer sees the spikes of two steps before."""
    mem, mem2, spikes, outs = net.lif.init_leaky(), net.last.init_leaky(), [], []
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t]), mem)
        spikes.append(spk)
        out, mem2 = net.last(net.out(spikes[max(0, t - 2)]), mem2)
        outs.append(out)
    return (torch.stack(outs),)


def delayed_by_one(net, x):
    mem, mem2, outs = net.lif.init_leaky(), net.last.init_leaky(), []
    spk = torch.zeros(B, 6, dtype=x.dtype)
    for t in range(STEPS):
        out, mem2 = net.last(net.out(spk), mem2)
        spk, mem = net.lif(net.fc(x[t]), mem)
        outs.append(out + 0.1 * mem2)
    return (torch.stack(outs),)


# Whether it is recorded at all: what must see its values at every step, or writes to them, is not.
CASES = {
    "plain": (loop, True),
    "state rewritten": (given(middle=rewritten), True),
    "state detached": (given(middle=detached), False),
    "state detached in place": (given(middle=detached_in_place), True),
    "reset where it fired": (given(middle=reset_where_it_fired), False),
    "written at one step": (given(middle=written_at_one_step), True),
    "state multiplied in place": (given(middle=multiplied_in_place), True),
    "branch": (given(middle=branch), False),
    "branch at one step": (given(middle=branch_at_one_step), True),
    "no_grad": (given(middle=without_grad), True),
    "no_grad around a product": (given(current=layer_without_grad), True),
    "inference_mode": (given(middle=in_inference), True),
    "set_grad_enabled": (given(middle=grad_switched), True),
    "autocast": (given(current=in_autocast), False),
    "autocast at one step": (given(current=conv_in_autocast_at_times), True),
    "Function of weights": (given(current=function_of_weights), False),
    "Function of spikes": (given(middle=function_of_spikes), False),
    "dropout": (given(middle=dropped), True),
    "dropout in eval": (given(middle=dropped_in_eval), True),
    "dropout in place": (given(current=dropped_in_place), False),
    "dropout1d": (given(current=dropped_by(F.dropout1d, 2, 3)), True),
    "dropout2d": (given(current=dropped_by(F.dropout2d, 2, 3, 1)), True),
    "dropout3d": (given(current=dropped_by(F.dropout3d, 2, 3, 1, 1)), True),
    "alpha_dropout": (given(current=dropped_by(F.alpha_dropout, 6)), False),
    "feature_alpha_dropout": (given(current=dropped_by(F.feature_alpha_dropout, 6)), False),
    "noise": (given(middle=noise), True),
    "bernoulli": (given(current=bernoulli), False),
    "batch-norm": (given(current=normalised), True),
    "batch-norm twice": (given(current=normalised_twice), False),
    "batch-norm, cumulative": (given(current=normalised_cumulatively), False),
    "batch-norm in eval": (given(current=normalised_in_eval), False),
    "batch-norm looked at": (given(current=statistics_looked_at), False),
    "conv": (given(current=convolved), True),
    "retain_grad in the loop": (retained_in_the_loop, False),
    "retain_grad at one step": (retained_at_one_step, False),
    "hook at one step": (hooked_at_one_step, False),
    "feedback": (feedback, True),
    "one layer twice": (one_layer_twice, True),
    "inner steps": (inner_steps, False),
    "truncated": (truncated, False),
    "trained at every step": (trained_every_step, False),
    "generator": (generated, True),
    "left early": (left_early, True),
    "some steps skipped": (some_steps_skipped, True),
    "losses in the loop": (losses_in_the_loop, True),
    "copy": (copied_values(copy.copy), True),
    "deepcopy": (copied_values(copy.deepcopy), True),
    "pickle": (copied_values(pickled), True),
    "torch.save": (copied_values(saved), True),
    "deepcopy of the net": (net_copied(copy.deepcopy), True),
    "pickle of the net": (net_copied(pickled), True),
    "state_dict": (state_saved, True),
    "jit.script": (given(current=scripted), False),
    "vmap": (given(current=vectorised), False),
    "func.grad": (given(middle=differentiated), False),
    "jacrev": (given(middle=jacobian), False),
    "checkpoint": (given(current=checkpointed), False),
    "checkpointed steps": (checkpointed_step, False),
    "mode in the loop": (given(current=in_a_mode), True),
    "mode around the loop": (around_a_mode, False),
    "default device": (with_default_device, False),
    "device in the loop": (given(current=device_in_the_loop), True),
    "saved tensors' hooks": (saved_tensors_hooked, False),
    "descriptions": (given(middle=compared), False),
    "attributes": (given(middle=attributes_of_tensors), False),
    "data": (given(middle=data_taken), False),
    "grad_fn": (given(middle=grad_asked_for), False),
    "numpy": (given(middle=seen_by_numpy), False),
    "rows": (given(middle=listed), False),
    "asked at one step": (given(middle=asked_at_one_step), True),
    "frames": (iterated_frames, True),
    "sums": (sums_kept, True),
    "trace": (trace_kept, True),
    "reset in the middle": (reset_in_the_middle, True),
    "initial state": (state_given_once, True),
    "turns": (given(middle=taking_turns), True),
    "numbers": (given(middle=numbers_of_a_step), True),
    "weights of steps": (weighted_by_a_tensor, True),
    "delay": (delayed, False),
    "delay by one": (delayed_by_one, True),
}


@pytest.mark.parametrize("numbers", ["forward", "exact"])
@pytest.mark.parametrize("name", CASES)
def test_a_recorded_loop_is_the_loop(name, numbers):
    case, recorded = CASES[name]
    assert_recorded_as_written(case, numbers, recorded=recorded)


def test_a_loop_is_as_long_as_it_was_whatever_runs_in_between():
    """What begins like a step after a loop, but belongs to another network, is no loop of one step."""
    net, other = snn.accelerate(Forward()), nn.Linear(5, 6)
    windows = []
    for call in range(6):
        net(inputs(call, torch.float32))
        windows.append(net.lif._loops.story.windows)
        other(inputs(call, torch.float32)[0])
    assert windows[5] - windows[4] == windows[4] - windows[3] <= 3, windows


def test_every_number_of_steps_and_any_batch():
    torch.manual_seed(0)
    plain = Net().double()
    net = snn.accelerate(copy.deepcopy(plain))
    for steps in [*range(1, 33), 47, 64, 96, 100, 128, 160, 199, 200]:
        x = inputs(steps, torch.float64, steps, 1 + steps % 3)
        found, expected = loop(net, x), loop(plain, x.detach())
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
    assert recorded_steps() > 1500


# What ends a loop, and what goes on around it.


def test_values_are_tensors_after():
    net = snn.accelerate(Net().double())
    for _ in range(2):
        mem, kept = net.lif.init_leaky(), []
        for frame in inputs(0, torch.float64):
            spk, mem = net.lif(net.fc(frame), mem)
            assert isinstance(spk, torch.Tensor)
            kept += [spk, mem]
    kept[0].sum().item()
    kept[-1].sum().item()
    assert {type(value) for value in kept} == {torch.Tensor}
    assert stack_depth() == 1


# Memory.


@pytest.mark.parametrize("steps", [3, 4, 5, 8])
def test_frames_are_views_of_the_input(steps):
    net, x = snn.accelerate(Net().double()), inputs(0, torch.float64, steps).detach()
    for _ in range(3):
        mem, kept = net.lif.init_leaky(), []
        for t in range(steps):
            frame = x[:, 0] if steps == 3 else x[t]
            kept.append(frame)
            spk, mem = net.lif(net.fc(frame), mem) if steps > 3 else net.lif(net.fc(frame[:B]), mem)
        spk.sum().item()
        assert {frame.untyped_storage().data_ptr() for frame in kept} == {x.untyped_storage().data_ptr()}


@pytest.mark.parametrize("draw", ["rand_like", "dropout"])
def test_draws_for_steps_that_lie_across_memory_are_the_loops(draw):
    """Random numbers fill memory in its order: a transposed step's are others than a contiguous one's."""

    def across(net, x, t):
        step = (net.fc.weight @ x[t].t()).t()
        return step + torch.rand_like(step) if draw == "rand_like" else F.dropout(step, 0.3)

    net = Forward()
    plain, recorded = copy.deepcopy(net), snn.accelerate(net)
    for call in range(CALLS):
        outcomes = []
        for one in (plain, recorded):
            torch.manual_seed(call)
            outcomes.append(loop(one, inputs(call, torch.float32), current=across))
        for found, wanted in zip(*outcomes, strict=True):
            assert torch.equal(found, wanted)
    assert net.lif._loops.story.recorded > STEPS


def test_statistics_are_written_once_where_a_window_is_computed_twice():
    """A recurrent layer is tried beside its steps, and what fails as one call runs as written: neither writes again."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc, self.lif = nn.BatchNorm1d(5), nn.Linear(5, 6), snn.RLeaky(0.7, linear_features=6)

        def forward(self, x):
            spk, mem = self.lif.init_rleaky()
            for step in x:
                spk, mem = self.lif(self.fc(self.norm(step)), spk, mem)
            return mem

    net = Normed()
    plain, recorded = copy.deepcopy(net), snn.accelerate(net)
    for call in range(CALLS):
        assert torch.equal(plain(inputs(call, torch.float32)), recorded(inputs(call, torch.float32)))
        assert torch.equal(plain.norm.running_mean, recorded.norm.running_mean)
    assert net.lif._loops.story.recorded > STEPS


def test_loops_of_every_length_are_one_loop():
    """`x[t]` of another number of steps is what waits all the same: nothing is learnt anew, nothing looked at."""
    net = snn.accelerate(Forward())
    for steps in (9, 12, 7, 30, 9):
        net(inputs(0, torch.float32, steps=steps))
    story = net.lif._loops.story
    assert story.plain == 2 and set(story.ends) <= {"stack"}, story.text()


def test_a_layer_whose_own_spikes_are_its_current():
    """Its steps need one another other than by its state: no one launch, and batch-norm beside it is run once."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.lif = nn.BatchNorm1d(5), snn.Leaky(0.9, threshold=0.3)

        def forward(self, x):
            spk, mem, normed = x[0], self.lif.init_leaky(), []
            for step in x:
                spk, mem = self.lif(spk, mem)
                normed.append(self.norm(step) + spk)
            return torch.stack(normed)

    net = Own()
    plain, recorded = copy.deepcopy(net), snn.accelerate(net)
    for call in range(CALLS):
        assert torch.equal(plain(inputs(call, torch.float32)), recorded(inputs(call, torch.float32)))
        assert torch.equal(plain.norm.running_mean, recorded.norm.running_mean)
    assert net.lif._loops.story.recorded > STEPS
    assert not any(period.as_written for _, period in net.lif._loops.periods)


def test_what_a_step_returned_is_kept_as_it_is():
    """In the tuple in which it came, which nobody takes apart before the loop has ended."""
    fc, lif = nn.Linear(5, 6), snn.Leaky(0.9)
    x = torch.rand(STEPS, B, 5)

    def kept(x):
        outs = [(None, lif.init_leaky())]
        for step in x:
            outs.append(lif(fc(step), outs[-1][1]))
        return outs[1:]

    def crossed(x):
        a = b = torch.zeros(B, 6), torch.zeros(B, 6)
        for step in x:
            a, b = lif(fc(step) + b[0], b[1]), lif(fc(step) - a[0], a[1])
        return [a, b]

    for written in (kept, crossed):
        expected = written(x)
        for _ in range(3):
            with snn.accelerated():
                found = written(x)
            assert all(map(torch.equal, sum(found, ()), sum(expected, ())))


# What waits, and how.


def test_what_waits_is_hidden_from_the_garbage_collector_until_it_is_a_value():
    """Full collections come by the number of objects that live: thousands of placeholders would bring them on."""
    net = snn.accelerate(Forward())
    for call in range(3):
        x, mem, waiting = inputs(call, torch.float32), net.lif.init_leaky(), []
        for t in range(STEPS):
            spk, mem = net.lif(net.fc(x[t]), mem)
            waiting.append(spk)
    assert not any(map(gc.is_tracked, waiting[4:]))
    torch.stack(waiting)
    assert all(map(gc.is_tracked, waiting))


def test_numbers_that_are_computed_anew_at_every_step_are_constants():
    net, tau, x = Forward(), 20.0, inputs(0, torch.float32)

    def loop_of(net):
        mem, spikes = net.lif.init_leaky(), []
        for t in range(STEPS):
            spk, mem = net.lif(net.fc(x[t]) * (1 - 5.0 / tau), mem)
            spikes.append(spk)
        return torch.stack(spikes)

    expected = loop_of(net)
    recorded = snn.accelerate(net)
    for _ in range(3):
        assert torch.equal(loop_of(recorded), expected)
    assert recorded.lif._loops.story.ends == {"stack": 3}


@pytest.mark.parametrize("watcher", [SeesOperators, SeesSaved])
def test_who_looks_at_single_operations_in_a_loop_sees_them(watcher):
    """What torch calls below its functions, or keeps for backward, is looked at where it is written."""
    plain = Forward()
    net, x = snn.accelerate(copy.deepcopy(plain)), inputs(0, torch.float32)

    def seen(net):
        mem, log = net.lif.init_leaky(), []
        for t in range(STEPS):
            current = net.fc(x[t])
            with watcher(log):
                current = current * current
                log.append(f"step {t}")
            spk, mem = net.lif(current, mem)
        return log

    expected = seen(plain)
    assert len(expected) > STEPS
    for _ in range(3):
        assert seen(net) == expected
