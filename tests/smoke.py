"""What has to work under any torch and Python, without pytest and without snnTorch: python tests/smoke.py [cuda]

Layers, sequences, gradients, `Unroll`, `accelerate` and the encoders, held to the reference loop.
"""

import platform
import sys

import torch
from torch import nn

import snnfast as snn

LAYERS = {
    "Leaky": lambda: snn.Leaky(0.9, learn_beta=True, reset_delay=False),
    "Synaptic": lambda: snn.Synaptic(0.8, 0.9, learn_alpha=True, reset_mechanism="zero"),
    "Alpha": lambda: snn.Alpha(0.9, 0.8, learn_beta=True),
    "Lapicque": lambda: snn.Lapicque(0.9),
    "RLeaky": lambda: snn.RLeaky(0.9, V=0.3, all_to_all=False),
    "RSynaptic": lambda: snn.RSynaptic(0.8, 0.9, linear_features=5),
}


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.first, self.second = nn.Linear(5, 7), snn.Leaky(0.9), snn.Leaky(0.8)

    def forward(self, x):
        first, second, record = self.first.reset_mem(), self.second.reset_mem(), []
        for step in x:
            spk, first = self.first(self.linear(step), first)
            spk, second = self.second(spk, second)
            record.append(spk)
        return torch.stack(record)


def with_gradients(function, x, module):
    x = x.clone().requires_grad_()
    outputs = function(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    inputs = (x, *module.parameters())
    return (*outputs, *torch.autograd.grad(sum((o * o).sum() for o in outputs), inputs, allow_unused=True))


def check(name, ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        if a is not None or b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda said: f"{name}: {said}")
    print(f"{name}: same")


def main(device="cpu"):
    torch.manual_seed(0)
    x = torch.rand(6, 3, 5).to(device) * 2
    for name, make in LAYERS.items():
        layer = make().to(device)
        fused = with_gradients(layer.unroll, x, layer)
        with snn.use_reference():
            check(name, fused, with_gradients(layer.unroll, x, layer))
        layer(x[0], *layer.reset_mem() if isinstance(layer.reset_mem(), tuple) else (layer.reset_mem(),))
    loop = Loop().to(device)
    expected = with_gradients(loop, x, loop)
    unrolled = snn.Unroll(nn.Sequential(loop.linear, loop.first, loop.second))
    check("Unroll", with_gradients(unrolled, x, loop), expected)
    check("accelerate", with_gradients(snn.accelerate(loop), x, loop), expected)
    data = torch.rand(2, 5).to(device)
    spk = [snn.encoding.rate(data, 4), snn.encoding.latency(data, 4), snn.encoding.delta(data, 0.1)]
    assert all(((s == 0) | (s == 1)).all() for s in spk) and all(s.any() for s in spk)
    print(f"encoders: spikes\nsnnfast under torch {torch.__version__}, Python {platform.python_version()}: works")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
