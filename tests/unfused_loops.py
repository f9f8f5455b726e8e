"""Loops whose layers must not be fused, each with a word of why."""

import snntorch
import torch
from torch import nn

import snnfast as snn
from compiled import APART, FUSED, LIF, B, T, apart, fused, normal, one_layer, two_layers
from fused_loops import norse_cell, recurrent_leaky, spikes_back_through_weights

__all__ = ["APART", "FUSED"]


@apart({"lif1": "depends on an earlier one through .*lif2", "lif2": "depends on an earlier one"}, two_layers())
def fed_back_to_an_earlier_layer(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk2 = torch.zeros(x.shape[1], 5, dtype=x.dtype)
    spk_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]) + spk2.sum(1, keepdim=True), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem1


@apart(
    {"lif": "depends on an earlier one through .*recurrent"},
    lambda: {**one_layer()(), "recurrent": nn.Linear(8, 8)},
)
def fed_back_to_itself(net, x):
    mem = net.lif.init_leaky()
    spk = torch.zeros(x.shape[1], 8, dtype=x.dtype)
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]) + net.recurrent(spk), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({"lif": "state passes through mul"}, one_layer(), lambda: (normal(T, B, 6), torch.randint(2, (T, B, 8))))
def membrane_masked_each_step(net, x, mask):
    mem = torch.zeros(x.shape[1], 8, dtype=x.dtype)
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), mem * mask[step])
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({"lif1": "state passes through detach"}, two_layers())
def detached_each_step(net, x):
    mem1, mem2 = torch.zeros(x.shape[1], 8, dtype=x.dtype), net.lif2.init_leaky()
    spk_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1.detach())
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem1, mem2


@apart(
    dict.fromkeys(["lif1", "lif2"], "goes on from the state of another layer"),
    lambda: {"fc": nn.Linear(6, 8), "lif1": snn.Leaky(0.9, 0.6), "lif2": snn.Leaky(0.5, 0.4)},
)
def layers_in_turn_on_one_state(net, x):
    mem = torch.zeros(x.shape[1], 8, dtype=x.dtype)
    spk_rec = []
    for step in range(T):
        lif = net.lif2 if step % 2 else net.lif1
        spk, mem = lif(net.fc(x[step]), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart(
    {"lif": "depends on an earlier one through .*set_grad_enabled"},
    lambda: {**one_layer()(), "eyes": nn.Linear(6, 6)},
)
def frozen_encoder(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        with torch.no_grad():
            seen = net.eyes(x[step])
        spk, mem = net.lif(net.fc(seen), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({"lif": "depends on an earlier one through lif, (add|sub)"}, one_layer())
def crossed_states(net, x):
    """The layer steps twice, and each call takes the other's membrane and spikes of the step before."""
    left = right = torch.zeros(x.shape[1], 8, dtype=x.dtype)
    spk_left = spk_right = left
    spk_rec = []
    for step in range(T):
        cur = net.fc(x[step])
        (spk_left, left), (spk_right, right) = net.lif(cur + spk_right, right), net.lif(cur - spk_left, left)
        spk_rec.append(spk_left + 2 * spk_right)
    return torch.stack(spk_rec), left, right


@apart({"lif": "state_quant"}, one_layer(state_quant=lambda mem: (mem * 8).round() / 8))
def quantised(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({}, one_layer(inhibition=True))
def inhibited(net, x):
    return quantised(net, x)


def steep(u):
    """A surrogate by the straight-through trick, under no name of snnfast's."""
    smooth = torch.sigmoid(4 * u)
    return smooth + ((u > 0).to(u.dtype) - smooth).detach()


@fused(one_layer(spike_grad=steep))
def custom_surrogate(net, x):
    return quantised(net, x)


@apart({"lif": "snnTorch"}, lambda: {"fc": nn.Linear(6, 8), "lif": snntorch.Leaky(**LIF)})
def unconverted(net, x):
    return quantised(net, x)


@apart({"lif": "steps are in different graphs"}, one_layer())
def printed_each_step(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), mem)
        print(step, end=" ")
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({"lif": "steps are in different graphs"}, one_layer())
def stopped_when_silent(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), mem)
        spk_rec.append(spk)
        if spk.sum().item() < 0:
            break
    return torch.stack(spk_rec), mem


def recurrent_through(*modules):
    """A layer whose spikes come back through these modules."""

    def layers():
        made = recurrent_leaky()()
        made["lif"].recurrent = nn.Sequential(*(module() for module in modules))
        return made

    return layers


@apart({"lif": "come back through mul"}, recurrent_through(lambda: nn.Linear(8, 8), lambda: nn.Dropout(0.3)))
def spikes_back_through_weights_and_dropout(net, x):
    return spikes_back_through_weights(net, x)


@apart({"lif": "no spikes of the step before"}, recurrent_through(lambda: nn.Dropout(0.3), lambda: nn.Linear(8, 8)))
def spikes_back_through_dropout_and_weights(net, x):
    return spikes_back_through_weights(net, x)


@apart(
    {"lif": "come back through conv2d"},
    lambda: {"lif": snn.RLeaky(0.8, conv2d_channels=2, kernel_size=3, threshold=0.6)},
    inputs=lambda: (normal(T, B, 2, 4, 4),),
)
def spikes_back_through_a_convolution(net, x):
    spk, mem = net.lif.init_rleaky()
    spk_rec = []
    for step in x:
        spk, mem = net.lif(step, spk, mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({"lif": "no spikes of the step before"}, recurrent_leaky(), lambda: (normal(T, B, 6), normal(T, B, 8)))
def spikes_changed_on_their_way_back(net, x, drive):
    spk, mem = net.lif.init_rleaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), spk, mem)
        spk_rec.append(spk)
        spk = spk + drive[step]
    return torch.stack(spk_rec), mem


@apart({"lif": "state passes through detach"}, recurrent_leaky())
def recurrent_states_detached(net, x):
    spk, mem = net.lif.init_rleaky()
    spk_rec = []
    for step in x:
        spk, mem = net.lif(net.fc(step), spk, mem.detach())
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


def watched():
    """What the recurrent weights make is the loop's to see."""
    layers = recurrent_leaky()()
    layers["lif"].recurrent.register_forward_hook(lambda module, _, output: module.seen.append(output))
    layers["lif"].recurrent.seen = []
    return layers


@apart({"lif": "what comes back is used elsewhere too"}, watched)
def recurrent_current_seen(net, x):
    net.lif.recurrent.seen.clear()
    spk_rec, _, _, mem = spikes_back_through_weights(net, x)
    seen = torch.stack(net.lif.recurrent.seen)
    net.lif.recurrent.seen.clear()
    return spk_rec, mem, seen


@apart(
    dict.fromkeys(["lif", "other"], "no spikes of the step before"),
    lambda: {**recurrent_leaky()(), "other": snn.RLeaky(0.8, linear_features=8, threshold=0.6)},
)
def spikes_of_another_layer(net, x):
    (spk, mem), (_, other) = net.lif.init_rleaky(), net.other.init_rleaky()
    spk_rec = []
    for step in x:
        heard, other = net.other(net.fc(step), spk, other)
        spk, mem = net.lif(net.fc(step), heard, mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem, other


def cells_alike_but_for_their_weights():
    even, odd = norse_cell()["cell"], norse_cell()["cell"]
    odd.p = even.p
    return {"even": even, "odd": odd}


@apart(dict.fromkeys(["even", "odd"], "with other parameters"), cells_alike_but_for_their_weights)
def recurrent_cells_in_turn_on_one_state(net, x):
    state, spk_rec = None, []
    for step in range(T):
        spk, state = (net.odd if step % 2 else net.even)(x[step], state)
        spk_rec.append(spk)
    return torch.stack(spk_rec), state


@apart({"lif": "depends on an earlier one through .*back"}, lambda: {**recurrent_leaky()(), "back": nn.Linear(8, 8)})
def fed_back_besides_the_recurrent_weights(net, x):
    spk, mem = torch.zeros(B, 8, dtype=x.dtype), None
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]) + net.back(spk), spk, mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem
