"""Networks of jaxpike and Spyx as modules of torch's: compiled by XLA forward and backward, with torch's parameters.

Tensors are handed over without a copy, and every call waits for its result. What JAX allocates, torch does not see.
"""

import functools
import math
import os

import torch
from torch import nn

# XLA asks once how many threads it may have.
os.environ.setdefault("NPROC", str(torch.get_num_threads()))

import jax  # noqa: E402
from jax import numpy as jnp  # noqa: E402


def _to_jax(tensor):
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pull_back_of(function, wanted, arguments):
    """The result, and what takes its gradient to those of the arguments that are `wanted`."""

    def of(*given):
        given = iter(given)
        return function(*[next(given) if want else each for want, each in zip(wanted, arguments, strict=True)])

    return jax.vjp(of, *[each for want, each in zip(wanted, arguments, strict=True) if want])


_pull_back = jax.jit(lambda pull_back, gradient: pull_back(gradient))


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, *arguments):
        ctx.wanted = ctx.needs_input_grad[1:]
        result, ctx.pull_back = _pull_back_of(function, ctx.wanted, [_to_jax(each) for each in arguments])
        return torch.from_dlpack(result.block_until_ready())

    @staticmethod
    def backward(ctx, gradient):
        found = iter(jax.block_until_ready(_pull_back(ctx.pull_back, _to_jax(gradient))))
        return None, *(torch.from_dlpack(next(found)) if want else None for want in ctx.wanted)


class OverJax(nn.Module):
    """`function(x, *parameters)` of JAX arrays, on the parameters of torch modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.modules_ = function, nn.ModuleList(modules)

    def forward(self, x):
        return _Call.apply(self.function, x, *self.modules_.parameters())


def jaxpike(beta: float, threshold: float, linears=(), recurrent=None) -> OverJax:
    """Each Linear with an LIF behind it, the last one, with `recurrent`'s weight, from its own spikes; or an LIF alone.

    jaxpike scales its input by 1 - beta, and so is the threshold. Linears run over whole sequences.
    """
    import equinox
    import jaxpike

    tau, surrogate = -1 / math.log(beta), jaxpike.ATan(alpha=2.0)

    def lif():
        return jaxpike.LIF(tau=tau, threshold=(1 - beta) * threshold, surrogate=surrogate)

    def dense(linear):
        bias = linear.bias is not None
        return jaxpike.Dense(linear.in_features, linear.out_features, key=jax.random.key(0), use_bias=bias)

    layers = [layer for linear in linears for layer in (dense(linear), lif())] or [lif()]
    if recurrent is not None:
        edges = [("input", "hidden"), ("hidden", "weights"), ("weights", "hidden")]
        layers[-1] = jaxpike.Graph({"hidden": lif(), "weights": dense(recurrent)}, edges, output="hidden")
    net = jaxpike.Sequential(*layers)

    def weights(net):
        found = [layer.nodes["weights"] if hasattr(layer, "nodes") else layer for layer in net.layers]
        denses = [layer for layer in found if isinstance(layer, jaxpike.Dense)]
        return [each for layer in denses for each in (layer.weight, layer.bias) if each is not None]

    def run(x, *parameters):
        weighted = equinox.tree_at(weights, net, list(parameters)) if parameters else net
        # On a CPU its default, 8 steps an iteration and nothing computed again, is several times slower.
        return jaxpike.unroll(weighted, x, scan_unroll=1, remat_step=True)[0]

    return OverJax(run, *linears, *([] if recurrent is None else [recurrent]))


def spyx(beta: float, threshold: float, linears=(), recurrent=None) -> OverJax:
    """The same of Spyx, whose neurons fire in the step after."""
    import spyx
    from flax import nnx

    # snnTorch's atan; Spyx' arctan is it over pi.
    atan = spyx.axn.custom(lambda u: 1 / (1 + (jnp.pi * u) ** 2))

    def fire(current, weight=None):
        kind = spyx.nn.LIF if weight is None else spyx.nn.RLIF
        neuron = kind(current.shape[2:], beta=beta, threshold=threshold, activation=atan, rngs=nnx.Rngs(0))
        if weight is not None:
            neuron.recurrent_w = nnx.Param(weight.T)
        return spyx.nn.run(neuron, current)[0]

    def run(x, *parameters):
        left = list(parameters)
        weight = left.pop() if recurrent is not None else None
        for place, linear in enumerate(linears, 1):
            x = x @ left.pop(0).T
            x = x if linear.bias is None else x + left.pop(0)
            x = fire(x, weight if place == len(linears) else None)
        return x if linears else fire(x)

    return OverJax(run, *linears, *([] if recurrent is None else [recurrent]))
