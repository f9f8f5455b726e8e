"""Loops over time as people write them, each with the layers that must come out as sequences."""

import torch
from torch import nn
from torch.nn import functional as F

import snnfast as snn
import snnfast.norse as norse
from compiled import LIF, B, T, fused, normal, one_layer, two_layers


@fused(two_layers())
def linear(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk2_rec, mem2_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk2_rec.append(spk2)
        mem2_rec.append(mem2)
    return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


@fused(two_layers())
def everything_recorded(net, x):
    mem1, mem2 = net.lif1.reset_mem(), net.lif2.reset_mem()
    records = [], [], [], []
    for step in range(x.shape[0]):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        for record, value in zip(records, (spk1, mem1, spk2, mem2), strict=True):
            record.append(value)
    return [torch.stack(record) for record in records], records[3][-1]


@fused(lambda: {"fc": nn.Linear(6, 8), "lif": snn.ALIF(0.9, 0.8, 0.3, threshold=0.6)})
def adaptive(net, x):
    mem, adaptation = net.lif.reset_mem()
    spikes, adaptations = [], []
    for step in range(T):
        spk, mem, adaptation = net.lif(net.fc(x[step]), mem, adaptation)
        spikes.append(spk)
        adaptations.append(adaptation)
    return torch.stack(spikes), torch.stack(adaptations)


@fused(
    lambda: {
        "conv1": nn.Conv2d(1, 3, 3),
        "lif1": snn.Leaky(beta=0.5, threshold=3.0),
        "conv2": nn.Conv2d(3, 4, 3, padding=1),
        "lif2": snn.Leaky(**LIF),
        "fc": nn.Linear(4, 5),
        "lif3": snn.Leaky(**LIF),
    },
    inputs=lambda: (normal(T, B, 1, 8, 8),),
)
def convolutions(net, x):
    mem1, mem2, mem3 = net.lif1.init_leaky(), net.lif2.init_leaky(), net.lif3.init_leaky()
    spk_rec, mem_rec = [], []
    for step in range(x.size(0)):
        spk1, mem1 = net.lif1(F.max_pool2d(net.conv1(x[step]), 2), mem1)
        spk2, mem2 = net.lif2(F.avg_pool2d(net.conv2(spk1), 2), mem2)
        spk3, mem3 = net.lif3(net.fc(spk2.view(spk2.size(0), -1)), mem3)
        spk_rec.append(spk3)
        mem_rec.append(mem3)
    return torch.stack(spk_rec), torch.stack(mem_rec)


@fused(
    lambda: {
        "features": nn.Sequential(nn.Conv1d(2, 3, 3), nn.MaxPool1d(2), nn.Flatten()),
        "lif1": snn.Leaky(**LIF),
        "pooled": nn.Sequential(nn.Unflatten(1, (3, 3)), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(6, 4)),
        "lif2": snn.Leaky(**LIF),
    },
    inputs=lambda: (normal(T, B, 2, 8),),
)
def convolutions_in_1d(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec = []
    for frame in x:
        spk1, mem1 = net.lif1(net.features(frame), mem1)
        spk2, mem2 = net.lif2(net.pooled(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem2


@fused(
    lambda: {
        "conv": nn.Conv2d(1, 3, 3),
        "bn1": nn.BatchNorm2d(3),
        "lif1": snn.Leaky(**LIF),
        "fc": nn.Linear(27, 5),
        "bn2": nn.BatchNorm1d(5),
        "lif2": snn.Leaky(**LIF),
    },
    inputs=lambda: (normal(T, B, 1, 5, 5),),
    training=(True, False),
)
def batch_norm(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec, mem_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.bn1(net.conv(x[step])), mem1)
        spk2, mem2 = net.lif2(net.bn2(net.fc(spk1.flatten(1))), mem2)
        spk_rec.append(spk2)
        mem_rec.append(mem2)
    return torch.stack(spk_rec), torch.stack(mem_rec)


@fused(
    lambda: {
        "fc": nn.Linear(6, 8),
        "norms": nn.ModuleList(nn.BatchNorm1d(8) for _ in range(T)),
        "lif": snn.Leaky(**LIF),
    },
    training=(True, False),
)
def a_norm_for_each_step(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.norms[step](net.fc(x[step])), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(
    lambda: {**two_layers()(), "dropout1": nn.Dropout(0.4), "dropout2": nn.Dropout(0.2)},
    training=(True, False),
)
def dropout(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec, mem_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.dropout1(net.fc1(x[step])), mem1)
        spk2, mem2 = net.lif2(net.dropout2(net.fc2(spk1)), mem2)
        spk_rec.append(spk2)
        mem_rec.append(mem2)
    return torch.stack(spk_rec), torch.stack(mem_rec)


@fused(lambda: {**two_layers()(), "dropout": nn.Dropout(0.4)})
def dropout_of_the_spikes(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(net.dropout(spk1)), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem1, mem2


@fused(
    lambda: {
        "fc1": nn.Linear(6, 8),
        "lif1": snn.Leaky(**LIF),
        "fc2": nn.Linear(8, 8),
        "lif2": snn.Leaky(**LIF),
        "out": nn.Linear(8, 4),
    }
)
def residual(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    out_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(spk1 + net.fc2(spk1), mem2)
        out_rec.append(net.out(spk1 + spk2))
    return torch.stack(out_rec)


@fused(lambda: {**two_layers()(), "act": nn.Sequential(nn.GELU(), nn.LayerNorm(8), nn.LeakyReLU(0.1))})
def activations(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    out_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.act(net.fc1(torch.tanh(x[step]))), mem1)
        _, mem2 = net.lif2(net.fc2(spk1).sigmoid() * 2 - 0.5, mem2)
        out_rec.append(F.log_softmax(mem2, dim=-1))
    return torch.stack(out_rec)


@fused(lambda: {**one_layer()(), "relu": nn.ReLU(inplace=True), "bias": nn.Linear(8, 8)})
def written_in_place(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        cur = net.fc(x[step])
        cur += net.bias.bias
        cur.mul_(1.5)
        spk, mem = net.lif(net.relu(cur), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(one_layer())
def seen_through_a_view(net, x):
    mem = net.lif.init_leaky()
    spk_rec, head_rec = [], []
    for step in range(T):
        cur = net.fc(x[step])
        head = cur[:, :3]
        cur.mul_(1.5)
        spk, mem = net.lif(cur, mem)
        spk_rec.append(spk)
        head_rec.append(head + 0.5)
    return torch.stack(spk_rec), torch.stack(head_rec)


@fused(one_layer())
def written_in_part(net, x):
    mem = net.lif.init_leaky()
    spk_rec, cur_rec = [], []
    for step in range(T):
        cur = net.fc(x[step])
        cur[:, 0] = 0.5
        spk, mem = net.lif(cur, mem)
        cur[:, 1:3].zero_()
        spk_rec.append(spk)
        cur_rec.append(cur)
    return torch.stack(spk_rec), torch.stack(cur_rec)


@fused(
    lambda: {
        "fc": nn.Linear(6, 8),
        "lif": snn.Leaky(**LIF),
        "left": nn.Linear(8, 3),
        "right": nn.Linear(8, 3),
    },
    inputs=lambda: (normal(T, B, 6), torch.randint(3, (B,))),
)
def two_readouts(net, x, targets):
    mem, loss = net.lif.init_leaky(), 0
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), mem)
        loss = loss + F.cross_entropy(net.left(spk), targets) - F.cross_entropy(net.right(spk), targets)
    return loss


@fused(two_layers())
def stacked_after_the_batch(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec, mem_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
        mem_rec.append(mem1)
    return torch.stack(spk_rec, dim=1), torch.stack(mem_rec, dim=-1)


@fused(two_layers())
def concatenated(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec, mem_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2.unsqueeze(0))
        mem_rec.append(mem2[None])
    return torch.cat(spk_rec), torch.cat(mem_rec, dim=0)


@fused(two_layers(), inputs=lambda: (normal(B, 6),))
def static_input(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec = []
    for _ in range(T):
        spk1, mem1 = net.lif1(net.fc1(x), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem2


@fused(two_layers(), inputs=lambda: (normal(B, T, 6),))
def batch_first(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec = []
    for t in range(x.shape[1]):
        spk1, mem1 = net.lif1(net.fc1(x[:, t]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec, 1), mem2


@fused(one_layer(), inputs=lambda: (normal(B, T, 6),))
def unbound(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in x.unbind(1):
        spk, mem = net.lif(net.fc(step), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(
    lambda: {**two_layers()(), "other": nn.Linear(4, 8)},
    inputs=lambda: (normal(T, B, 6), normal(B, T, 4), normal(B, 8)),
)
def several_inputs(net, x, events, bias):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]) + net.other(events[:, step]) + bias, mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem2


@fused(
    lambda: {
        "fc": nn.Linear(6, 8),
        "late": nn.Linear(6, 8),
        "lif": snn.Leaky(**LIF),
        "gain": nn.ParameterList([torch.linspace(0.5, 1.5, 8).repeat(T, 1)]),
    },
    # As many samples as steps: neither a gain [T, 8] nor a drive [T] may be taken for one of the samples.
    inputs=lambda: (normal(2 * T, T, 6), normal(T)),
)
def other_numbers_at_each_step(net, x, drive):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        cur = net.gain[0][step] * net.fc(x[2 * step + 1]) + net.late(x[T - 1 - step]) * drive[step] + 0.1
        spk, mem = net.lif(cur, mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(two_layers(), inputs=lambda: (normal(T, B, 6), torch.randint(5, (B,))))
def loss_of_each_step(net, x, targets):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    loss = torch.zeros((), dtype=x.dtype)
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        _, mem2 = net.lif2(net.fc2(spk1), mem2)
        loss = loss + F.cross_entropy(mem2, targets)
    return loss


@fused(two_layers(), pieces=2)
def truncated_backpropagation(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    mem_rec = []
    for step in range(T):
        if step == T // 2:
            mem1, mem2 = mem1.detach(), mem2.detach()
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        _, mem2 = net.lif2(net.fc2(spk1), mem2)
        mem_rec.append(mem2)
    return torch.stack(mem_rec)


@fused(
    lambda: {
        "encoder": nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 6), nn.Tanh()),
        **one_layer()(),
    },
    inputs=lambda: (normal(T, B, 1, 5, 5),),
)
def early_layers_without_neurons(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(net.encoder(x[step])), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


def hidden_sequential():
    first, last = snn.Leaky(**LIF, init_hidden=True), snn.Leaky(**LIF, init_hidden=True, output=True)
    return {"seq": nn.Sequential(nn.Linear(6, 8), first, nn.Linear(8, 5), last)}


@fused(hidden_sequential)
def hidden_states(net, x):
    snn.reset(net)
    spk_rec, mem_rec = [], []
    for step in range(T):
        spk, mem = net.seq(x[step])
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


@fused(hidden_sequential)
def hidden_states_without_a_reset(net, x):
    mem_rec = []
    for step in x:
        _, mem = net.seq(step)
        mem_rec.append(mem)
    return torch.stack(mem_rec), net.seq[1].mem


@fused(one_layer(), inputs=lambda: (normal(T, B, 6), normal(B, 8)))
def given_state(net, x, mem):
    spk_rec = []
    for step in x:
        spk, mem = net.lif(net.fc(step), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(two_layers(learn_beta=True, learn_threshold=True, learn_graded_spikes_factor=True))
def learned_parameters(net, x):
    return linear(net, x)


@fused(
    lambda: {
        "fc1": nn.Linear(6, 8),
        "lif1": snn.Leaky(torch.linspace(0.5, 0.95, 8), torch.linspace(0.4, 0.9, 8), learn_beta=True),
        "fc2": nn.Linear(8, 5),
        "lif2": snn.Leaky(torch.linspace(0.5, 0.95, 5), 0.6, learn_beta=True, learn_threshold=True),
    }
)
def parameters_of_each_neuron(net, x):
    return linear(net, x)


@fused(two_layers(spike_grad=snn.surrogate.fast_sigmoid(slope=5), surrogate_disable=False))
def another_surrogate(net, x):
    return linear(net, x)


@fused(one_layer(), pieces=2)
def a_layer_called_twice_a_step(net, x):
    left, right = (torch.zeros(x.shape[1], 8, dtype=x.dtype) for _ in range(2))
    spk_rec = []
    for step in range(T):
        cur = net.fc(x[step])
        spk_left, left = net.lif(cur, left)
        spk_right, right = net.lif(-cur, right)
        spk_rec.append(spk_left + spk_right)
    return torch.stack(spk_rec), left, right


@fused(one_layer())
def weights_used_twice_a_step(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]) * 0.5 + net.fc(x[0].sin()).relu(), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(two_layers())
def recorded_every_second_step(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk1_rec, spk2_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk2_rec.append(spk2)
        if step % 2:
            spk1_rec.append(spk1)
    return torch.stack(spk1_rec), torch.stack(spk2_rec), mem2


@fused(two_layers())
def spike_count(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    count = 0
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        count = count + spk2
    return count, mem2


@fused(two_layers())
def counted_in_place(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    count = torch.zeros(x.shape[1], 5, dtype=x.dtype)
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        count += spk2
    return count, mem2


@fused(lambda: {**one_layer()(), "offset": nn.BatchNorm1d(8)})
def a_buffer_written_each_step(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]) + net.offset.running_mean.sin(), mem)
        net.offset.running_mean.mul_(-0.9)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem, net.offset.running_mean.clone()


@fused(two_layers())
def preallocated(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    out = torch.zeros(T, x.shape[1], 5, dtype=x.dtype)
    for t in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[t]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        out[t] = spk2
    return out, mem2


def recurrent_leaky(**options):
    return lambda: {"fc": nn.Linear(6, 8), "lif": snn.RLeaky(0.8, linear_features=8, threshold=0.6, **options)}


@fused(recurrent_leaky(learn_beta=True, learn_threshold=True), recurrent=("lif",))
def spikes_back_through_weights(net, x):
    spk, mem = net.lif.init_rleaky()
    spk_rec, mem_rec = [], []
    for step in x:
        spk, mem = net.lif(net.fc(step), spk, mem)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec), spk, mem


@fused(recurrent_leaky(learn_recurrent=False, reset_mechanism="zero", reset_delay=False), recurrent=("lif",))
def spikes_back_through_frozen_weights(net, x):
    return spikes_back_through_weights(net, x)


@fused(
    recurrent_leaky(),
    inputs=lambda: (normal(T, B, 6), torch.randint(2, (B, 8)).double(), normal(B, 8)),
    recurrent=("lif",),
)
def spikes_back_from_a_given_state(net, x, spk, mem):
    spk_rec = []
    for step in x:
        spk, mem = net.lif(net.fc(step), spk, mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(
    lambda: {
        "fc1": nn.Linear(6, 8),
        "lif1": snn.RSynaptic(0.7, 0.8, linear_features=8, threshold=0.6, learn_alpha=True),
        "fc2": nn.Linear(8, 5),
        "lif2": snn.RLeaky(torch.linspace(0.5, 0.9, 5), linear_features=5, threshold=0.4),
        "out": nn.Linear(8, 4),
    },
    recurrent=("lif1", "lif2"),
)
def recurrent_layers(net, x):
    """Each layer's spikes go back, on to the next layer, to a readout, and to what is returned."""
    spk1, syn1, mem1 = net.lif1.init_rsynaptic()
    spk2, mem2 = net.lif2.init_rleaky()
    records = [], [], []
    for step in x:
        spk1, syn1, mem1 = net.lif1(net.fc1(step), spk1, syn1, mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), spk2, mem2)
        for record, value in zip(records, (spk2, syn1, net.out(spk1)), strict=True):
            record.append(value)
    return *map(torch.stack, records), spk1, mem2


@fused(
    lambda: {
        "seq": nn.Sequential(
            nn.Linear(6, 8),
            snn.RLeaky(0.8, linear_features=8, threshold=0.6, init_hidden=True),
            nn.Linear(8, 5),
            snn.RSynaptic(0.7, 0.8, linear_features=5, threshold=0.4, init_hidden=True, output=True),
        )
    },
    recurrent=("seq.1", "seq.3"),
)
def hidden_recurrent_states(net, x):
    snn.reset(net)
    spk_rec = []
    for step in x:
        spk, syn, mem = net.seq(step)
        spk_rec.append(spk)
    return torch.stack(spk_rec), syn, mem, net.seq[1].spk


def norse_cell():
    return {"cell": norse.LIFRecurrentCell(6, 8, p=norse.LIFParameters(v_th=torch.tensor(0.3)))}


@fused(norse_cell, recurrent=("cell",))
def norse_recurrent_cell(net, x):
    state, spk_rec, i_rec = None, [], []
    for step in x:
        spk, state = net.cell(step, state)
        spk_rec.append(spk)
        i_rec.append(state.i)
    return torch.stack(spk_rec), torch.stack(i_rec), state


@fused(
    norse_cell,
    inputs=lambda: (normal(T, B, 6), torch.randint(2, (B, 8)).double(), normal(B, 8), normal(B, 8)),
    recurrent=("cell",),
)
def norse_recurrent_cell_from_a_given_state(net, x, z, v, i):
    state, spk_rec = norse.LIFState(z, v, i), []
    for step in x:
        spk, state = net.cell(step, state)
        spk_rec.append(spk)
    return torch.stack(spk_rec), state.v


def each_to_itself(**options):
    return lambda: {
        "fc1": nn.Linear(6, 8),
        "lif1": snn.RLeaky(0.8, V=torch.linspace(-0.5, 0.5, 8), all_to_all=False, threshold=0.6, **options),
        "fc2": nn.Linear(8, 5),
        "lif2": snn.RSynaptic(0.7, 0.8, V=0.3, all_to_all=False, threshold=0.4, **options),
    }


@fused(each_to_itself(learn_beta=True))
def spikes_back_to_themselves(net, x):
    spk1, mem1 = net.lif1.init_rleaky()
    spk2, syn2, mem2 = net.lif2.init_rsynaptic()
    spk_rec, mem_rec = [], []
    for step in x:
        spk1, mem1 = net.lif1(net.fc1(step), spk1, mem1)
        spk2, syn2, mem2 = net.lif2(net.fc2(spk1), spk2, syn2, mem2)
        spk_rec.append(spk2)
        mem_rec.append(mem1)
    return torch.stack(spk_rec), torch.stack(mem_rec), syn2, spk1


@fused(each_to_itself(init_hidden=True))
def hidden_spikes_back_to_themselves(net, x):
    snn.reset(net)
    spk_rec = [net.lif2(net.fc2(net.lif1(net.fc1(step)))) for step in x]
    return torch.stack(spk_rec), net.lif1.mem, net.lif2.spk
