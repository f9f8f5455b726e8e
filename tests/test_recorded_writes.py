"""What a loop writes to while its steps wait: frames, parameters, views, its own results."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnfast as snn
from recorded import CALLS, STEPS, B, Net, assert_recorded_as_written, given, inputs, loop, ran
from snnfast.loops import pieces, reading, recording
from snnfast.loops.settings import Settings

pytestmark = pytest.mark.usefixtures("no_recorder_stays")


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


def test_what_no_override_sees_is_refused():
    """`set_` gives a tensor other memory: the loop is right or says so."""
    net = snn.accelerate(Net().double())
    with pytest.raises(RuntimeError, match="recorded loop"):
        ran(net, one_frame(through_set), torch.float64)
    recording.stop()
    ran(net, loop, torch.float64)


# Whether it is recorded at all.
CASES = {
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
    "weights written at every step": (thresholds_adapted, False),
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
def test_what_is_written_to_is_what_the_loop_reads(name, numbers):
    case, recorded = CASES[name]
    assert_recorded_as_written(case, numbers, recorded=recorded)


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


VIEWS = {
    "detach": lambda mem: mem.detach(),
    "slice": lambda mem: mem[:, :3],
    "view": lambda mem: mem.view(-1),
    "transposed": lambda mem: mem.t(),
    "unsqueeze": lambda mem: mem.unsqueeze(0),
    "chunk": lambda mem: mem.chunk(2, 1)[0],
    "reshape": lambda mem: mem.reshape(2, 12),
    "narrow of a detached one": lambda mem: mem.detach().narrow(1, 0, 2),
    "contiguous": lambda mem: mem.contiguous(),
}
WRITES = {
    "in place": lambda view, mem: view.mul_(0.5),
    "an item": lambda view, mem: view.__setitem__(0, 9.0),
    "out=": lambda view, mem: torch.add(view, 1, out=view),
    "NumPy": lambda view, mem: view.numpy().__setitem__(0, 3.0),
    "the base": lambda view, mem: mem.mul_(0.5),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_a_membrane_is_of_its_memory(view, write):
    def run(accelerate, at):
        torch.manual_seed(0)
        net = accelerate(nn.Sequential(nn.Linear(8, 6), snn.Leaky(beta=0.9)))
        mem, found = torch.zeros(4, 6), []
        with torch.no_grad():
            for step, x in enumerate(3 * torch.rand(20, 4, 8)):
                _, mem = net[1](net[0](x), mem)
                seen = VIEWS[view](mem)
                if step == at:
                    WRITES[write](seen, mem)
                found += [mem, seen]
        return found

    for at in (4, 12, 19):
        for one, other in zip(run(snn.accelerate, at), run(lambda net: net, at), strict=True):
            assert torch.equal(one, other)


def test_memory_that_another_process_may_write_to_is_read_when_it_is_given():
    def run(accelerate):
        torch.manual_seed(0)
        net = accelerate(nn.Sequential(nn.Linear(8, 6), snn.Leaky(beta=0.9)))
        frame, mem, found = torch.zeros(4, 8).share_memory_(), torch.zeros(4, 6), []
        with torch.no_grad():
            for step in range(12):
                frame.numpy()[:] = step % 3
                _, mem = net[1](net[0](frame), mem)
                found.append(mem)
        return torch.stack(found)

    assert torch.equal(run(snn.accelerate), run(lambda net: net))


def test_a_weight_written_through_its_data_while_a_loop_is_learnt():
    """What ran before the loop's first step is not taken for what later steps compute from the weight as it is then."""

    def run():
        torch.manual_seed(0)
        fc, lif, found = nn.Linear(16, 2), snn.Leaky(beta=0.56, threshold=0.34), []
        for call in range(3):
            mem = lif.init_leaky()
            x = torch.rand(1 + call, 16)
            for step in range(12):
                spk, mem = lif(fc(x), mem)
                if step == 0:
                    fc.weight.data *= 1.1
                found += [spk, mem]
        return [one.detach() for one in found]

    plain = run()
    recording.record_everywhere(Settings("forward"))
    try:
        found = run()
        assert all(map(torch.equal, found, plain))
    finally:
        recording.record_everywhere(None)


def test_a_step_that_is_written_to_after_the_views_of_earlier_ones_were_saved():
    def run(accelerate):
        torch.manual_seed(0)
        net = accelerate(nn.Sequential(nn.Linear(4, 7), snn.Leaky(beta=0.9), nn.Linear(7, 5), snn.Leaky(beta=0.8)))
        fc1, lif1, fc2, lif2 = net
        found = []
        for _ in range(3):
            net.zero_grad()
            late, mem1, mem2, total = torch.zeros(3, 1, 7), torch.zeros(3, 1, 7), torch.zeros(3, 5), 0
            for step, x in enumerate(3 * torch.rand(12, 3, 1, 4)):
                spk1, mem1 = lif1(fc1(x), mem1)
                scaled = late * 1.1
                if step == 8:
                    scaled.mul_(0.5)
                spk2, mem2 = lif2(fc2(scaled.flatten(1)), mem2)
                total, late = total + mem2, spk1
            total.sum().backward()
            found += [total.detach(), fc1.weight.grad.clone(), fc2.weight.grad.clone()]
        return found

    for one, other in zip(run(snn.accelerate), run(lambda net: net), strict=True):
        torch.testing.assert_close(one, other)


def test_views_of_what_lives_long_are_forgotten():
    """One of each loop's views lives until the next loop; their base for good."""
    fc, lif, data, kept = nn.Linear(8, 6), snn.Leaky(beta=0.9), torch.rand(4, 2, 4), pieces._views_of
    with snn.accelerated(), torch.no_grad():
        for _ in range(12):
            mem, out = torch.zeros(4, 6), []
            for _ in range(8):
                frame = data.flatten(1)
                spk, mem = lif(fc(frame), mem)
                out.append(spk)
            torch.stack(out)
    assert len(kept.get(id(data), ())) <= 2
