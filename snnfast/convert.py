"""From a network written for snnTorch to a fused one, and its hidden states back to zero."""

import torch
from torch import nn

from . import surrogate
from .annotations import Net
from .checks import RESET_MECHANISMS
from .neurons import SpikingNeuron, fused_class, own, state_names


def convert(net: Net) -> Net:
    """Swaps every neuron of snnTorch in `net` that snnfast has fused for its own, in place, and returns `net`.

    The layer objects stay who they are, whoever refers to them: parameters, buffers, hidden state, hooks and options
    are kept, so optimisers and checkpoints go on working; so are methods that were set on a layer, which then run as
    they would in snnTorch. A layer that loaded another reset mechanism than it was made
    with (and goes on ignoring it in snnTorch) follows what it loaded. Subclasses of snnTorch's layers and other neurons
    are left alone.

    Raises:
        TypeError: `net` is no module.

    Examples:
        >>> import snntorch
        >>> net = nn.Sequential(nn.Linear(4, 8), snntorch.Leaky(beta=0.9, init_hidden=True))
        >>> snn.convert(net)[1]
        Leaky(beta=0.9, reset_mechanism='subtract', reset_delay=True)
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    for module in net.modules():
        layer = fused_class(module)
        if layer is not None:
            _fuse(module, layer)
    return net


def _fuse(layer: nn.Module, fused: type[SpikingNeuron]) -> None:
    spike_grad = surrogate.disabled() if layer.surrogate_disable else layer.spike_grad
    # What could fail comes before anything is changed.
    surrogate.resolve(spike_grad)
    reset_mechanism = RESET_MECHANISMS[int(layer.reset_mechanism_val)]
    if _is_snntorchs(layer.__dict__.get("state_function"), layer):
        del layer.__dict__["state_function"]
    layer.__dict__.pop("reset", None)
    instances = type(layer).instances
    instances[:] = [instance for instance in instances if instance is not layer]
    layer.__class__ = fused
    layer._keep_buffers_as_states()
    layer.spike_grad = spike_grad
    layer.reset_mechanism = reset_mechanism
    layer._register_instance()


def _is_snntorchs(state_function, layer: nn.Module) -> bool:
    """Whether it is what snnTorch's constructor put there: a method of its own, that `reset_mechanism` now chooses."""
    if getattr(state_function, "__self__", None) is not layer:
        return False
    return any(own.is_function(state_function.__func__, type(layer), name) for name in own.CHARGES.values())


def reset(net: nn.Module) -> None:
    """Sets the hidden state of every spiking layer inside `net`, however deep, to zeros cut off from any graph.

    Raises:
        TypeError: `net` is no module.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True))
        >>> spk = net(torch.rand(16, 4))
        >>> snn.reset(net)
        >>> net[1].mem.abs().sum()
        tensor(0.)
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    with torch.no_grad():
        for module in net.modules():
            if hasattr(module, "reset_mem"):
                module.reset_mem()


def detach(net: nn.Module) -> None:
    """Cuts the hidden state of every spiking layer inside `net` off from its graph: truncated backpropagation.

    Layers of snnfast (`Cell` included) and snnTorch's own go on from the same values; gradients end there. Tensors that
    you hold, earlier states among them, keep their graph. States that you pass yourself, such as Norse's, are yours to
    cut off: `mem = mem.detach()`.

    Raises:
        TypeError: `net` is no module.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True))
        >>> for chunk in torch.rand(30, 16, 4).split(10):
        ...     loss = sum(net(x).mean() for x in chunk)
        ...     loss.backward()
        ...     snn.detach(net)
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    for module in net.modules():
        for name in state_names(module):
            setattr(module, name, getattr(module, name).detach())
