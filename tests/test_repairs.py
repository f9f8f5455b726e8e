"""Each repaired defect of snnTorch 1.0.0: a check that fails there."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import snntorch
import snntorch.surrogate
import torch
from snntorch import utils
from torch import nn

import snnfast as snn
from cases import identical, step_loop

X = torch.randn(7, 4, 10, generator=torch.Generator().manual_seed(1)) * 2


def check_state_on_the_inputs_device(library):
    layer = library.Leaky(0.9)
    layer.beta, layer.threshold, layer.graded_spikes_factor = (
        t.to("meta") for t in (layer.beta, layer.threshold, layer.graded_spikes_factor)
    )
    assert layer(X[0].to("meta"))[1].device.type == "meta"


def check_membranes_are_no_buffers(library):
    assert "mem" not in dict(library.Leaky(0.9).named_buffers())


def check_pickles(library):
    net = nn.Sequential(nn.Linear(10, 3), library.Leaky(0.9, init_hidden=True))
    net(X[0])
    again = pickle.loads(pickle.dumps(net))
    assert identical(again(X[1]), net(X[1]))


def check_torch_save_of_a_model(library):
    buffer = io.BytesIO()
    torch.save(library.Leaky(0.9, spike_grad=snntorch.surrogate.fast_sigmoid()), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=False)(X[0])[0].shape == (4, 10)


def check_deepcopy_after_a_step_with_gradient(library):
    layer = library.Leaky(0.9, init_hidden=True)
    layer(X[0].clone().requires_grad_())
    assert identical(copy.deepcopy(layer).mem, layer.mem.detach())


def check_copies_are_reset(library):
    net = copy.deepcopy(nn.Sequential(library.Leaky(0.9, init_hidden=True)))
    net(X[0])
    utils.reset(net)
    assert (net[0].mem == 0).all()


def check_no_class_list_keeps_layers_alive(library):
    layer = library.Leaky(0.9)
    alive = weakref.ref(layer)
    del layer
    gc.collect()
    assert alive() is None


def check_setting_the_reset_changes_the_dynamics(library):
    layer, expected = library.Leaky(0.9), library.Leaky(0.9, reset_mechanism="zero")
    layer.reset_mechanism = "zero"
    assert identical(step_loop(layer, X)[1], step_loop(expected, X)[1])


def check_loading_the_reset_changes_the_dynamics(library):
    layer, expected = library.Leaky(0.9), library.Leaky(0.9, reset_mechanism="none")
    layer.load_state_dict(expected.state_dict())
    assert layer.reset_mechanism == "none"
    assert identical(step_loop(layer, X)[1], step_loop(expected, X)[1])


def check_reset_finds_nested_layers(library):
    net = nn.Sequential(nn.Sequential(library.Leaky(0.9, init_hidden=True)))
    net(X[0])
    (snn.reset if library is snn else utils.reset)(net)
    assert (net[0][0].mem == 0).all()


def check_reset_leaves_other_nets_alone(library):
    nets = [nn.Sequential(library.Leaky(0.9, init_hidden=True)) for _ in range(2)]
    for net in nets:
        net(X[0])
    (snn.reset if library is snn else utils.reset)(nets[0])
    assert (nets[1][0].mem != 0).any()


def check_refused_membrane_leaves_the_state_alone(library):
    layer = library.Leaky(0.9, init_hidden=True)
    layer(X[0])
    mem = layer.mem
    with pytest.raises(TypeError):
        layer(X[0], torch.ones(4, 10))
    assert layer.mem is mem


def check_old_checkpoints_load(library):
    state = library.Leaky(0.9).state_dict()
    del state["graded_spikes_factor"]
    library.Leaky(0.5).load_state_dict(state)


def check_integer_parameters_can_learn(library):
    layer = library.Leaky(0.9, threshold=1, learn_threshold=True)
    assert layer.threshold.is_floating_point()


def check_inhibition_of_feature_maps(library):
    spk, _ = library.Leaky(0.9, inhibition=True)(torch.randn(2, 3, 4, 4) + 2)
    assert (spk.sum(1) <= 1).all() and spk.sum() > 0


def check_no_sync_or_break_without_delay(library):
    torch._dynamo.reset()
    layer = library.Leaky(0.9, reset_delay=False)
    torch.compile(layer, fullgraph=True, backend="eager")(X[0], torch.zeros(4, 10))


def check_half_precision_network(library):
    net = nn.Sequential(nn.Linear(10, 5), library.Leaky(0.9, init_hidden=True), nn.Linear(5, 2)).bfloat16()
    assert net(X[0].bfloat16()).dtype == torch.bfloat16


def check_float64_spikes(library):
    assert library.Leaky(0.9)(X[0].double())[0].dtype == torch.float64


REPAIRS = {name: check for name, check in globals().items() if name.startswith("check_")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REPAIRS)
def test_repaired_defect(name):
    REPAIRS[name](snn)
    with pytest.raises(Exception):  # noqa: B017 - each fails in its own way there
        REPAIRS[name](snntorch)
