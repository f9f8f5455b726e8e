"""The operators as autograd, torch.compile and fake tensors see them.

Arguments arrive checked, in the state's dtype and on one device, from `snnfast.functional`. Every neuron model
(`snnfast.reference.MODELS`) has the same operators under its own name. `calls` calls them, `neuron` has their autograd,
`gradients` what that computes, `captured` the nodes of a captured graph, `spikes` the operators that are no neuron's.
"""

from .. import _ext
from ..capture import constant
from .calls import NO_NEURON, fresh, listening, tell, unheard
from .captured import CAPTURED, captured_run, composite
from .neuron import Options, Recurrence, Result, run
from .spikes import (
    batch_norm,
    conv2d,
    conv2d_grad_input,
    conv2d_grad_weight,
    conv_transpose2d,
    encode_delta,
    encode_latency,
    encode_rate,
    max_pool2d,
    max_pool2d_grad,
    pack_spikes,
    spike_linear,
    unpack_spikes,
)

why_no_kernel_runs = constant(_ext.why_no_kernel_runs)
