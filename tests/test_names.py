"""`import snnfast as snn` in a script for snnTorch: what snnfast has no name for is snnTorch's."""

import importlib
import subprocess
import sys

import pytest
import snntorch
import snntorch.functional
import snntorch.spikegen
import snntorch.utils
import torch
from torch import nn

import snnfast as snn


@pytest.mark.parametrize(
    "name", ["SLSTM", "SConv2dLSTM", "StateLeaky", "LeakyParallel", "DeltaLeaky", "LIF", "GradedSpikes"]
)
def test_layers_of_snntorch(name):
    assert getattr(snn, name) is getattr(snntorch, name) and name in dir(snn)


@pytest.mark.parametrize("name", ["utils", "spikegen", "backprop", "import_nir"])
def test_modules_of_snntorch(name):
    if name != "import_nir":  # which needs nir
        assert (
            getattr(snn, name)
            is importlib.import_module(f"snnfast.{name}")
            is importlib.import_module(f"snntorch.{name}")
        )
        assert sys.modules[f"snntorch.{name}"].__spec__.name == f"snntorch.{name}"
    assert name in dir(snn)


def test_names_beside_those_of_snnfasts_modules():
    from snnfast.functional import accuracy_rate, ce_rate_loss, leaky
    from snnfast.surrogate import atan, custom_surrogate

    assert ce_rate_loss is snntorch.functional.ce_rate_loss and accuracy_rate is snntorch.functional.accuracy_rate
    assert snn.functional.probe is importlib.import_module("snnfast.functional.probe") is snntorch.functional.probe
    assert custom_surrogate is snntorch.surrogate.custom_surrogate and snn.surrogate.LSO is snntorch.surrogate.LSO
    assert leaky is snn.functional.leaky and atan is snn.surrogate.atan and not hasattr(snntorch.surrogate, "logistic")
    assert {"ce_rate_loss", "leaky"} <= set(dir(snn.functional)) and "custom_surrogate" in dir(snn.surrogate)


def test_a_tutorial_with_one_line_changed():
    from snnfast import functional as SF
    from snnfast import spikegen, surrogate, utils

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 5),
        snn.Leaky(beta=0.9, init_hidden=True, spike_grad=surrogate.fast_sigmoid(slope=25)),
        nn.Linear(5, 2),
        snn.Leaky(beta=0.9, init_hidden=True, output=True),
    )
    utils.reset(net)
    spikes = torch.stack([net(step)[0] for step in spikegen.rate(torch.rand(3, 4), num_steps=6)])
    SF.ce_rate_loss()(spikes, torch.tensor([0, 1, 1])).sum().backward()
    assert net[0].weight.grad is not None and 0 <= SF.accuracy_rate(spikes, torch.tensor([0, 1, 1])) <= 1


@pytest.mark.parametrize("module", [snn, snn.functional, snn.surrogate])
def test_unknown_names(module):
    with pytest.raises(
        AttributeError, match=f"module '{module.__name__}' has no attribute 'nonsense', nor is there a snntorch"
    ):
        _ = module.nonsense
    with pytest.raises(AttributeError, match="has no attribute '_nonsense'$"):
        _ = module._nonsense
    with pytest.raises(ImportError, match="nonsense"):
        importlib.import_module(f"{module.__name__}.nonsense")
    assert not hasattr(module, "nonsense")


def test_a_module_that_does_not_import_says_why():
    program = """
import sys
sys.modules["pandas"] = None
import snnfast as snn
try:
    snn.spikeplot
except AttributeError as error:
    assert "snntorch.spikeplot cannot be imported" in str(error) and "pandas" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_snntorch_the_error_names_it():
    program = """
import sys
sys.modules["snntorch"] = None
import snnfast as snn
for wanted in ("snn.utils", "snn.SLSTM", "snn.functional.ce_rate_loss", "snn.surrogate.custom_surrogate"):
    try:
        eval(wanted)
    except AttributeError as error:
        assert "would come from snnTorch: pip install snntorch" in str(error), error
    else:
        raise AssertionError(wanted)
for wanted in (
    "from snnfast import utils",
    "import snnfast.spikegen",
    "from snnfast.functional import ce_rate_loss",
    "from snnfast.surrogate import custom_surrogate",
):
    try:
        exec(wanted)
    except ModuleNotFoundError as error:
        assert "would come from snnTorch: pip install snntorch" in str(error), error
    else:
        raise AssertionError(wanted)
assert "Leaky" in dir(snn) and not hasattr(snn, "_private")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
