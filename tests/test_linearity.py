"""Autograd functions of weights, the same at every step: one call for all where that gives the loop's gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnfast as snn
from snnfast.loops import functions
from snnfast.loops.linearity import is_linear


def function(back):
    """Sign, with a backward of its own."""

    class Binary(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight, height):
            ctx.save_for_backward(weight)
            return weight.sign() * height

        @staticmethod
        def backward(ctx, grad):
            return back(grad, *ctx.saved_tensors), None

    return Binary


def written_where(value):
    def back(grad, weight):
        grad = grad.clone()
        grad[weight.abs() > 0.5] = value
        return grad

    return back


def written_into(start):
    def back(grad, weight):
        given = start(grad)
        given[weight > 0] = grad[weight > 0]
        return given

    return back


def weight_written(grad, weight):
    weight.data.add_(1)
    return grad


LINEAR = {
    "as it is": lambda grad, weight: grad,
    "clone": lambda grad, weight: grad.clone(),
    "within bounds": lambda grad, weight: grad * (weight.abs() < 0.5),
    "written zeros": written_where(0),
    "written into zeros": written_into(torch.zeros_like),
    "where": lambda grad, weight: torch.where(weight.abs() < 0.5, grad, 0.0),
    "where not zeros": lambda grad, weight: torch.where(weight > 0, grad, torch.zeros_like(grad)),
    "smooth": lambda grad, weight: -grad / (1 + weight.abs()) ** 2,
    "centred": lambda grad, weight: grad - grad.mean(),
    "in place": lambda grad, weight: grad.mul_(weight),
    "product": lambda grad, weight: grad @ weight.T @ weight,
}
OTHERS = {
    "clipped": lambda grad, weight: grad.clamp(-1, 1),
    "its sign": lambda grad, weight: grad.sign(),
    "normed": lambda grad, weight: grad / grad.norm(),
    "constant": lambda grad, weight: torch.ones_like(grad),
    "plus weight": lambda grad, weight: grad + weight,
    "plus one": lambda grad, weight: grad + 1,
    "squared": lambda grad, weight: grad * grad,
    "written ones": written_where(1),
    "written into ones": written_into(torch.ones_like),
    "where else the weight": lambda grad, weight: torch.where(weight > 0, grad, weight),
    "by its own sign": lambda grad, weight: torch.where(grad > 0, grad, 0.0),
    "branch": lambda grad, weight: grad * 2 if weight.sum() > 0 else grad,
    "noise": lambda grad, weight: grad * torch.rand_like(weight),
    "rounded": lambda grad, weight: torch.div(grad, weight, rounding_mode="floor"),
    "whole numbers": lambda grad, weight: grad.int() * 1.0,
    "weight written": weight_written,
    "elsewhere": lambda grad, weight: torch.mul(grad, weight, out=torch.empty(4, 4)),
}


@pytest.mark.parametrize("name", [*LINEAR, *OTHERS])
def test_what_is_linear_is_seen(name):
    weight = torch.linspace(-1, 1, 16).view(4, 4).requires_grad_()
    assert is_linear(function((LINEAR | OTHERS)[name]), [weight, 1.0]) == (name in LINEAR)


class Binarized(nn.Module):
    """A convolution of binary weights and batch-norm, of an image that is the same at every step."""

    def __init__(self, binary):
        super().__init__()
        self.binary, self.conv, self.norm = binary, nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.lif = snn.Leaky(0.5, threshold=0.6)
        self.out, self.last = nn.Linear(4 * 36, 3), snn.Leaky(0.5)

    def forward(self, x):
        mem, last, spikes = self.lif.init_leaky(), self.last.init_leaky(), []
        for _ in range(6):
            current = F.conv2d(x, self.binary.apply(self.conv.weight, 1.0))
            spk, mem = self.lif(self.norm(current), mem)
            out, last = self.last(F.linear(spk.flatten(1), self.binary.apply(self.out.weight, 0.2)), last)
            spikes.append(out)
        return torch.stack(spikes), last


def trained(binary, recorded):
    torch.manual_seed(0)
    net = Binarized(binary)
    if recorded:
        snn.accelerate(net)
    outs, grads = [], []
    for _ in range(2):
        net.zero_grad()
        spikes, last = net(torch.rand(2, 1, 8, 8))
        (spikes.sum(0).square().sum() + last.square().sum()).backward()
        outs += [spikes.detach(), last.detach(), *(value.clone() for value in net.buffers())]
        grads += [one.grad for one in net.parameters() if one.grad is not None]
    return outs, grads


@pytest.mark.parametrize("back", [LINEAR["within bounds"], OTHERS["clipped"]], ids=["linear", "clipped"])
def test_a_loop_of_binary_weights_is_the_loop(back, monkeypatch):
    binary, ran = function(back), []
    plain = trained(binary, recorded=False)
    run = functions.run
    monkeypatch.setattr(functions, "run", lambda called, args: ran.append(called) or run(called, args))
    outs, grads = trained(binary, recorded=True)
    assert all(map(torch.equal, outs, plain[0]))
    for one, two in zip(grads, plain[1], strict=True):
        assert (one - two).norm() <= 1e-5 * two.norm()
    # Two steps of the first loop and a trial of each call, then once a window.
    assert (len(ran) < 2 * 6) == (back is LINEAR["within bounds"])
