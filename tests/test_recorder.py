"""A recorded loop is the loop: what users write between its steps, one small case for each."""

import copy
import gc
import io
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import snnfast as snn
from snnfast import ops
from snnfast.loops import reading, recording, report

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


@pytest.fixture(autouse=True)
def _no_recorder_stays():
    report.stories.clear()
    yield
    recording.stop()
    assert stack_depth() == 0


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


class Noting(torch.utils.data.Dataset):
    """Notes how many modes lie on torch's stack while a sample is made, and may use a layer for it."""

    def __init__(self, layer=None):
        self.layer, self.depths = layer, []

    def __len__(self):
        return 6

    def __getitem__(self, number):
        x = inputs(number, torch.float64, batch=1)[:, 0].detach()
        self.depths.append(stack_depth())
        return x if self.layer is None else self.layer(x, torch.zeros_like(x))[1]


@pytest.mark.parametrize("uses_layer", [False, True])
def test_no_recorder_looks_on_while_a_batch_is_loaded(uses_layer):
    torch.manual_seed(0)
    net = Net().double()

    def batches(net):
        data = Noting(snn.Leaky(0.5) if uses_layer else None)
        for x in torch.utils.data.DataLoader(data, batch_size=2):
            yield loop(net, x.transpose(0, 1))[1].detach(), data.depths[-1]

    found = list(batches(snn.accelerate(copy.deepcopy(net))))
    assert recorded_steps() and stack_depth() == 1
    assert [depth for _, depth in found] == [0, 0, 0]
    expected = list(batches(net))
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(found, expected, strict=True))


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


def one_frame(write):
    """A frame that every step writes anew."""

    def case(net, x):
        frame = torch.zeros(B, 5, dtype=x.dtype)
        array = np.zeros((B, 5), dtype=frame.numpy().dtype)
        shared = torch.from_numpy(array)

        def current(net, x, t):
            # A product of its own memory, as a gradient would be of what the frame is at the end.
            return net.fc(write(frame, array, shared, x[t].detach()) * 1)

        return loop(net, x, current)

    case.__name__ = write.__name__
    return case


def copied(frame, array, shared, x):
    return frame.copy_(x)


def through_data(frame, array, shared, x):
    frame.data.copy_(x)
    return frame


def through_a_view(frame, array, shared, x):
    frame.view(-1)[:] = x.reshape(-1)
    return frame


def through_numpy(frame, array, shared, x):
    array[:] = x.numpy()
    return shared


def from_numpy_every_step(frame, array, shared, x):
    array[:] = x.numpy()
    return torch.from_numpy(array)


def numpy_of_a_tensor(frame, array, shared, x):
    frame.numpy()[:] = x.numpy()
    return frame


def through_set(frame, array, shared, x):
    frame.set_(x.clone())
    return frame


def through_assigned_data(frame, array, shared, x):
    frame.data = x.clone()
    return frame


def through_a_list(frame, array, shared, x):
    torch._foreach_copy_([frame], [x])
    return frame


def through_out(frame, array, shared, x):
    return torch.mul(x, 1.5, out=frame)


def through_dlpack(frame, array, shared, x):
    torch.from_dlpack(frame).copy_(x)
    return frame


def parameter_written(write, before=False):
    """Parameters are written to in the middle of the loop, by what is made in it or `before` it."""

    def case(net, x):
        written = write(net) if before else lambda: write(net)

        def middle(net, t, spk, mem):
            if t == 4:
                written()
            return spk, mem

        with torch.no_grad():
            kept = [p.clone() for p in net.parameters()]
            outs = loop(net, x, middle=middle)
            outs = [out + 0 for out in outs]
            for p, value in zip(net.parameters(), kept, strict=True):
                p.copy_(value)
        return outs

    case.__name__ = write.__name__
    return case


def weight_scaled(net):
    net.out.weight.mul_(0.5)


def weight_data_scaled(net):
    net.out.weight.data *= 0.5


def weight_data_assigned(net):
    net.out.weight.data = net.out.weight.data * 0.5


def weight_scaled_by_numpy(net):
    array = net.out.weight.detach().numpy()
    array *= 0.5


def weight_replaced(net):
    net.out.weight = nn.Parameter(net.out.weight.detach() * 0.5)


def beta_scaled(net):
    net.lif.beta.data.mul_(0.5)


def beta_scaled_by_numpy(net):
    array = net.lif.beta.detach().numpy()
    array *= 0.5


def beta_replaced(net):
    net.last.beta = torch.tensor(0.4)
    net.last.threshold = net.last.threshold.new_tensor(0.5)


def weight_known_to_numpy(net):
    array = net.out.weight.detach().numpy()

    def write():
        array[:] *= 0.5

    return write


def threshold_known_to_numpy(net):
    array = net.last.threshold.numpy()

    def write():
        array[...] = 0.6

    return write


def threshold_filled(net):
    net.last.threshold.fill_(0.5)


def mechanism_changed(net):
    net.last.reset_mechanism = "subtract"


def by_loading(net):
    scaled = {name: value * 0.7 for name, value in net.state_dict().items() if value.is_floating_point()}
    net.load_state_dict(scaled, strict=False)


def by_vector(net):
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(net.parameters()) * 0.6, net.parameters())


def scale_known_to_numpy(net, x):
    """A buffer that NumPy knows."""
    array = net.scale.numpy()
    array[:] = 1

    def current(net, x, t):
        array[t % 5] += 0.5
        return net.fc(x[t] + net.scale)

    return loop(net, x, current)


def written_through_a_view(net, x, t):
    h = net.fc(x[t])
    h.view(-1)[:3] = 0.3
    h[:, 1] += 0.2
    return h


def views_kept(net, x):
    """A view of what the loop made is written to after it."""
    hs, views = [], []

    def current(net, x, t):
        h = net.fc(x[t]) * 1
        hs.append(h)
        views.append(h.view(-1))
        return h

    outs = loop(net, x, current)
    with torch.no_grad():
        views[5].zero_()
        hs[6].view(-1)[0] = 7
    return *outs, *(h.detach() for h in hs), *(v.detach() for v in views)


def values_written_after(net, x):
    """What the loop recorded is written to after it."""
    kept = []

    def end(net, t, spk, mem):
        kept.append(mem * 1)
        return spk, mem

    outs = loop(net, x, end=end)
    with torch.no_grad():
        kept[5].mul_(2)
    kept[6].detach()[:] = 4
    return *outs, *(mem.detach() for mem in kept)


def written_with_gradients_after(net, x):
    kept = []

    def middle(net, t, spk, mem):
        kept.append(spk * 2)
        return spk, mem

    outs = loop(net, x, middle=middle)
    kept[5].mul_(3)
    kept[6] += 1
    return *outs, *kept


def into_a_tensor(net, x):
    out, mems = torch.zeros(STEPS, B, 5, dtype=x.dtype), torch.zeros(B, STEPS, 6, dtype=x.dtype)
    mem = mem2 = None
    mem, mem2 = net.lif.init_leaky(), net.last.init_leaky()
    for t in range(STEPS):
        spk, mem = net.lif(net.fc(x[t]), mem)
        out[t], mem2 = net.last(net.out(spk), mem2)
        mems[:, t] = mem
    return out, mems


def relu_in_place(net, x, t):
    return F.relu(net.fc(x[t]), inplace=True)


def many_in_place(net, x, t):
    h = net.fc(x[t])
    h *= 1.5
    h += 0.1
    h.sub_(0.05).clamp_(-2, 2)
    h.masked_fill_(h > 1.5, 0.2)
    return h


def in_place_twice_seen(net, x, t):
    h = net.fc(x[t])
    old = h * 1
    h.mul_(2)
    return h + old


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


def thresholds_adapted(net, x):
    """STDP as people write it: weights are written to in every step."""
    kept = net.fc.weight.detach().clone()
    mem, spikes = net.lif.init_leaky(), []
    with torch.no_grad():
        for t in range(STEPS):
            spk, mem = net.lif(net.fc(x[t]), mem)
            net.fc.weight += 0.01 * spk.t() @ x[t]
            spikes.append(spk)
        out, weight = torch.stack(spikes), net.fc.weight.clone()
        net.fc.weight.copy_(kept)
    return out, weight


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


def given(**points):
    def case(net, x):
        return loop(net, x, **points)

    return case


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
    "frame copied": (one_frame(copied), False),
    "frame data": (one_frame(through_data), False),
    "frame view": (one_frame(through_a_view), False),
    "frame of NumPy": (one_frame(through_numpy), False),
    "frame from_numpy": (one_frame(from_numpy_every_step), False),
    "frame to NumPy": (one_frame(numpy_of_a_tensor), False),
    "frame data assigned": (one_frame(through_assigned_data), False),
    "frame foreach": (one_frame(through_a_list), False),
    "frame out": (one_frame(through_out), False),
    "frame dlpack": (one_frame(through_dlpack), False),
    "buffer of NumPy": (scale_known_to_numpy, False),
    "written through a view": (given(current=written_through_a_view), False),
    "views written after": (views_kept, True),
    "values written after": (values_written_after, True),
    "values written with gradients after": (written_with_gradients_after, True),
    "into a tensor": (into_a_tensor, False),
    "relu in place": (given(current=relu_in_place), True),
    "many in place": (given(current=many_in_place), True),
    "in place, the old value used": (given(current=in_place_twice_seen), False),
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
    "weights written at every step": (thresholds_adapted, False),
    "reset in the middle": (reset_in_the_middle, True),
    "initial state": (state_given_once, True),
    "turns": (given(middle=taking_turns), True),
    "numbers": (given(middle=numbers_of_a_step), True),
    "weights of steps": (weighted_by_a_tensor, True),
    "delay": (delayed, False),
    "delay by one": (delayed_by_one, True),
    **{
        write.__name__.replace("_", " "): (parameter_written(write), True)
        for write in (
            weight_scaled, weight_data_scaled, weight_data_assigned, weight_scaled_by_numpy, weight_replaced,
            beta_scaled, beta_scaled_by_numpy, beta_replaced, threshold_filled, mechanism_changed,
            by_loading, by_vector,
        )
    },
    **{
        write.__name__.replace("_", " "): (parameter_written(write, before=True), True)
        for write in (weight_known_to_numpy, threshold_known_to_numpy)
    },
}  # fmt: skip


@pytest.mark.parametrize("numbers", ["forward", "exact"])
@pytest.mark.parametrize("name", CASES)
def test_a_recorded_loop_is_the_loop(name, numbers):
    case, recorded = CASES[name]
    assert_recorded_as_written(case, numbers, recorded=recorded)


def test_what_no_override_sees_is_refused():
    """`set_` gives a tensor other memory: the loop is right or says so."""
    net = snn.accelerate(Net().double())
    with pytest.raises(RuntimeError, match="recorded loop"):
        ran(net, one_frame(through_set), torch.float64)
    recording.stop()
    ran(net, loop, torch.float64)


def after(ask, within=False):
    """What is asked of a step's value when the loop is over; with `within`, once all of it has been computed."""

    def case(net, x):
        mem, mem2, spikes, loss = net.lif.init_leaky(), net.last.init_leaky(), [], 0
        currents, outs = [], []
        for t in range(STEPS):
            currents.append(net.fc(x[t]))
            spk, mem = net.lif(currents[-1], mem)
            spikes.append(spk)
            out, mem2 = net.last(net.out(spk), mem2)
            outs.append(out)
        loss = (torch.stack(outs) * 0.5).sum() + mem2.sum()
        if within:
            loss.item()
        return loss, *ask(loss, spikes, currents)

    return case


def asked_of_grad(loss, spikes, currents):
    return torch.autograd.grad(loss, [spikes[3], currents[5], spikes[-1]], retain_graph=True)


def asked_of_one(loss, spikes, currents):
    return torch.autograd.grad(loss, spikes[4], retain_graph=True)


def asked_of_all(loss, spikes, currents):
    return torch.autograd.grad(loss, spikes, retain_graph=True)


def asked_by_retaining(loss, spikes, currents):
    for value in (spikes[3], currents[5]):
        value.retain_grad()
    loss.backward(retain_graph=True)
    return spikes[3].grad, currents[5].grad


def asked_by_hooks(loss, spikes, currents):
    seen = []
    spikes[3].register_hook(seen.append)
    currents[5].register_hook(lambda grad: grad * 2)
    loss.backward(retain_graph=True)
    return seen


@pytest.mark.parametrize("numbers", ["forward", "exact"])
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("ask", [asked_of_grad, asked_of_one, asked_of_all, asked_by_retaining, asked_by_hooks])
def test_gradients_of_steps_are_whole(ask, within, numbers):
    assert_recorded_as_written(after(ask, within), numbers)


def test_gradients_of_states_are_whole_or_refused():
    net = snn.accelerate(Net().double())
    for _ in range(2):
        mem, mems = net.lif.init_leaky(), []
        for frame in inputs(0, torch.float64):
            spk, mem = net.lif(net.fc(frame), mem)
            mems.append(mem)
        loss = torch.stack(mems).sum() + spk.sum()
    loss.item()
    with pytest.raises(RuntimeError, match="gradient of a step's state"):
        torch.autograd.grad(loss, mems[4], retain_graph=True)
    with pytest.raises(RuntimeError, match="gradient of a step's state"):
        mems[4].retain_grad()


class Forward(Net):
    def forward(self, x):
        return loop(self, x)


def test_what_torch_compiles_meets_no_recorder():
    """A recorder that stays after a loop is gone before a compiled one runs, which would trace it."""
    recorded, compiled = snn.accelerate(Forward()), snn.accelerate(Forward(), compile=True)
    x = inputs(0, torch.float32)
    for _ in range(3):
        recorded(x)
        compiled(x)
    recorded(x)
    called = []
    with ops.listening(lambda name, arguments, steps: called.append(name)):
        compiled(x)
    assert called.count("leaky_fwd") == 2 and "leaky_step" not in called, called


def test_a_loop_is_as_long_as_it_was_whatever_runs_in_between():
    """What begins like a step after a loop, but belongs to another network, is no loop of one step."""
    net, other = snn.accelerate(Forward()), nn.Linear(5, 6)
    windows = []
    for call in range(6):
        net(inputs(call, torch.float32))
        windows.append(net.lif._loops.story.windows)
        other(inputs(call, torch.float32)[0])
    assert windows[5] - windows[4] == windows[4] - windows[3] <= 3, windows


# Modules of other kinds, and what is put on them.


def parametrised():
    net = Net()
    nn.utils.parametrize.register_parametrization(net.fc, "weight", nn.Tanh())
    return net


def weight_normed():
    net = Net()
    nn.utils.parametrizations.weight_norm(net.fc)
    nn.utils.parametrizations.orthogonal(net.out, orthogonal_map="householder")
    return net


def spectral_normed():
    net = Net()
    nn.utils.parametrizations.spectral_norm(net.fc)
    return net


def hooked():
    net = Net()
    net.fc.register_forward_pre_hook(lambda module, args: (args[0] * 1.2,))
    net.fc.register_forward_hook(lambda module, args, out: out - 0.1)
    net.lif.register_forward_hook(lambda module, args, out: None)
    return net


def hooked_backward():
    net = Net()
    net.out.register_full_backward_hook(lambda module, grads, outs: (grads[0] * 0.5,))
    return net


def hooked_parameters():
    net = Net()
    net.fc.weight.register_hook(lambda grad: grad * 2)
    return net


def dropping():
    net = Net()
    net.fc = nn.Sequential(net.fc, nn.Dropout(0.3), nn.BatchNorm1d(6, track_running_stats=False))
    return net


def frozen():
    net = Net()
    net.fc.requires_grad_(False)
    return net


def tied():
    net = Net()
    net.fc, net.out = nn.Linear(5, 5), nn.Linear(5, 5)
    net.out.weight, net.lif = net.fc.weight, snn.Leaky(0.9, threshold=0.4)
    return net


def recurrent():
    net = Net()
    net.fc = nn.Sequential(net.fc, snn.RLeaky(0.9, linear_features=6, threshold=0.3, init_hidden=True))
    return net


def hidden():
    net = Net()
    net.fc = nn.Sequential(net.fc, snn.Synaptic(0.8, 0.7, threshold=0.3, init_hidden=True), nn.Linear(6, 6))
    return net


def not_fused():
    net = Net()
    net.fc = nn.Sequential(net.fc, snn.Leaky(0.9, threshold=0.3, init_hidden=True, state_quant=lambda mem: mem))
    return net


def loop_from_reset(net, x):
    snn.reset(net)
    return loop(net, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("numbers", ["forward", "exact"])
@pytest.mark.parametrize(
    ("make", "recorded"),
    [
        (parametrised, True),
        (weight_normed, False),
        (spectral_normed, False),
        (hooked, True),
        (hooked_backward, False),
        (hooked_parameters, True),
        (dropping, True),
        (frozen, True),
        (tied, True),
        (recurrent, True),
        (hidden, True),
        (not_fused, False),
    ],
)
def test_networks(make, recorded, numbers):
    assert_recorded_as_written(loop_from_reset, numbers, make, recorded)


@pytest.mark.parametrize("numbers", ["forward", "exact"])
def test_two_networks_in_one_loop(numbers):
    def case(net, x):
        snn.reset(net)
        mem, mem2, outs = net.lif.init_leaky(), net.norm.lif.init_leaky(), []
        for t in range(STEPS):
            spk, mem = net.lif(net.fc(x[t]), mem)
            spk2, mem2 = net.norm.lif(net.norm.fc(x[t]), mem2)
            outs.append(spk - 0.5 * spk2)
        return torch.stack(outs), mem, mem2

    def make():
        net = Net()
        net.norm = Net()
        return net

    assert_recorded_as_written(case, numbers, make)


# Sizes.


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


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("way", ["net", "region"])
@pytest.mark.parametrize("at", [1, 5])
def test_after_an_exception_everything_works(error, way, at):
    def failing(net, t, spk, mem):
        if failing.now and t == at:
            raise error
        return spk, mem

    torch.manual_seed(0)
    net = Net().double()
    expected = ran(copy.deepcopy(net), loop, torch.float64)
    case = given(middle=failing)
    if way == "net":
        snn.accelerate(net)
    else:
        case = snn.accelerate(case)
    failing.now = False
    case(net, inputs(0, torch.float64))
    failing.now = True
    for _ in range(2):
        with pytest.raises(error):
            case(net, inputs(0, torch.float64))
    if way == "region":
        assert stack_depth() == 0
    failing.now = False
    torch.manual_seed(0)
    snn.reset(net)
    assert_same(ran(net, case, torch.float64), expected, exact=False)


def test_an_error_of_a_step_comes_where_it_is_made():
    net = snn.accelerate(Net().double())
    x = inputs(0, torch.float64)
    loop(net, x)
    frames = [*x[:6].detach().unbind(0), torch.ones(B, 4, dtype=torch.float64)]
    mem, count = net.lif.init_leaky(), 0
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        for frame in frames:
            _, mem = net.lif(net.fc(frame), mem)
            count += 1
    assert count == 6 and mem.sum().isfinite()


def test_threads_record_at_once():
    torch.manual_seed(0)
    nets = [Net().double() for _ in range(3)]
    expected = [ran(copy.deepcopy(net), given(), torch.float64, calls=5) for net in nets]
    found, threads = {}, []

    def work(place):
        accelerated = snn.accelerate(copy.deepcopy(nets[place]))
        # The generator is the process's.
        found[place] = ran(accelerated, given(), torch.float64, calls=5)
        recording.stop()
        assert stack_depth() == 0

    for place in range(3):
        threads.append(threading.Thread(target=work, args=(place,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    for place, wanted in enumerate(expected):
        without = {name: value for name, value in wanted.items() if "generator" not in name}
        assert_same({name: found[place][name] for name in without}, without, exact=False)


def test_a_placeholder_in_another_thread():
    torch.manual_seed(0)
    net = snn.accelerate(Net().double())
    x = inputs(0, torch.float64).detach()
    expected = loop(net, x)[0].sum(0)
    for _ in range(3):
        mem, mem2, outs, sums = net.lif.init_leaky(), net.last.init_leaky(), [], []
        for t in range(STEPS):
            spk, mem = net.lif(net.fc(x[t]), mem)
            out, mem2 = net.last(net.out(spk), mem2)
            outs.append(out)
        thread = threading.Thread(target=lambda outs=outs, sums=sums: sums.append(sum(outs)))
        thread.start()
        thread.join()
        assert torch.equal(sums[0], expected)


def test_backward_in_another_thread():
    torch.manual_seed(0)
    net = snn.accelerate(Net().double())
    for call in range(3):
        x = inputs(call, torch.float64)
        loss = sum(out.sum() for out in loop(net, x))
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        assert x.grad is not None and x.grad.any()


def test_a_compiled_submodule():
    torch._dynamo.reset()

    def case(net, x):
        if not hasattr(case, "module"):
            case.module = torch.compile(lambda h: h.tanh() * 1.5, backend="eager")
        return loop(net, x, lambda net, x, t: case.module(net.fc(x[t])))

    assert_recorded_as_written(case, "forward", recorded=False)


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


def test_distributed(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        plain = Looped().double()
        parallel = nn.parallel.DistributedDataParallel(snn.accelerate(copy.deepcopy(plain)))
        for call in range(3):
            x = inputs(call, torch.float64)
            for net in (plain, parallel):
                sum(out.sum() for out in net(x)).backward()
        for one, other in zip(plain.parameters(), parallel.parameters(), strict=True):
            if one.grad is not None:
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-9)
        assert recorded_steps()
    finally:
        torch.distributed.destroy_process_group()


class Looped(Net):
    def __init__(self):
        super().__init__()
        del self.conv, self.norm, self.cumulative

    def forward(self, x):
        return loop(self, x)


def test_batches_of_workers():
    torch.manual_seed(0)
    plain = Net().double()
    net = snn.accelerate(copy.deepcopy(plain))
    loop(net, inputs(0, torch.float64))
    frames = torch.rand(6, STEPS, 5, dtype=torch.float64)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(frames), 2, num_workers=1)
    for (batch,) in batches:
        x = batch.transpose(0, 1)
        for one, other in zip(loop(net, x), loop(plain, x), strict=True):
            assert torch.equal(one, other)
    assert recorded_steps()


# Memory.


def live_bytes() -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def test_iterations_leave_nothing_behind():
    net = snn.accelerate(Net().double())
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    seen = []
    for call in range(24):
        optimizer.zero_grad()
        sum(out.sum() for out in loop(net, inputs(call, torch.float64))).backward()
        optimizer.step()
        snn.reset(net)
        if call % 8 == 7:
            seen.append(live_bytes())
    assert seen[0] == seen[1] == seen[2] and recorded_steps()


def test_the_last_state_keeps_no_window():
    net, x = snn.accelerate(Net().double()), torch.rand(100, B, 5, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(2):
            mem, spikes, mems = net.lif.init_leaky(), [], []
            for frame in x:
                spk, mem = net.lif(net.fc(frame), mem)
                spikes.append(spk)
                mems.append(mem)
            rate, last = torch.stack(spikes).mean(0), torch.stack(mems)[-1].clone()
            assert torch.equal(last, mem)
            value = mem
            snn.reset(net)
            del spikes, mems, mem, spk, rate, last, frame
            recording.stop()
            assert value.untyped_storage().nbytes() <= 4 * value.nbytes


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


class Preallocated(Net):
    """What many loops record into: a tensor made beforehand, and a sum."""

    def forward(self, x):
        mem, mem2 = self.lif.init_leaky(), self.last.init_leaky()
        mems, counts, across = x.new_zeros(len(x), B, 5), x.new_zeros(B, 6), x.new_zeros(B, len(x), 5)
        for t in range(len(x)):
            spk, mem = self.lif(self.fc(x[t]), mem)
            out, mem2 = self.last(self.out(spk), mem2)
            mems[t] = mem2
            counts += spk
            across[:, t] = out
        return mems, counts, across


@pytest.mark.parametrize("numbers", ["forward", "exact"])
def test_records_written_into_tensors_wait(numbers):
    plain = Preallocated().double()
    net = snn.accelerate(copy.deepcopy(plain), numbers=numbers)
    for call in range(CALLS):
        x = inputs(call, torch.float64)
        outcomes = []
        for one in (plain, net):
            one.zero_grad()
            outputs = one(x)
            sum(output.square().sum() for output in outputs).backward()
            outcomes.append([*outputs, *(p.grad for p in one.parameters() if p.grad is not None)])
        for found, wanted in zip(outcomes[1][:3], outcomes[0][:3], strict=True):
            assert torch.equal(found, wanted) and type(found) is torch.Tensor
        for found, wanted in zip(outcomes[1][3:], outcomes[0][3:], strict=True):
            torch.testing.assert_close(found, wanted, rtol=0 if numbers == "exact" else 1e-9, atol=0)
    story = net.lif._loops.story
    assert story.recorded >= CALLS * STEPS - 2 and not story.why, story.text()


def test_snnfasts_own_memory_is_known_to_nobody_else():
    """Results in blocks of snnfast's own are read where they are, as those of torch's are: NumPy's would be copied."""
    x = snn.Leaky(0.5).unroll(torch.rand(STEPS, 64, 1024))[0]
    assert snn.memory.is_own(x.untyped_storage()) and not reading.is_shared_with_others(x)
    assert reading.is_shared_with_others(torch.from_numpy(np.ones(3)))


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

    for loop in (kept, crossed):
        expected = loop(x)
        for _ in range(3):
            with snn.accelerated():
                found = loop(x)
            assert all(map(torch.equal, sum(found, ()), sum(expected, ())))
