"""What torch calls private and snnfast needs, one name each; tests/test_house.py sees that they stand nowhere else.

What of torch._dynamo is needed, which takes long to import, stands in `snnfast.compiler`, which imports it.
"""

import torch
from torch._functorch import eager_transforms, vmap

transforms_at_work = torch._C._are_functorch_transforms_active  # whether grad, vmap, jvp ... of torch.func are
is_mapped = torch._C._functorch.is_batchedtensor  # whether vmap maps over a tensor
is_mapped_by_autograd = torch._C._functorch.is_legacy_batchedtensor  # whether autograd.grad(is_grads_batched=True) does
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # whether a tensor is a transform's
vmap_falls_back = torch._C._functorch._is_vmap_fallback_enabled  # whether vmap may run an operator sample by sample
let_vmap_fall_back = torch._C._functorch._set_vmap_fallback_enabled  # says so
unwrap_dead_wrappers = torch._functorch.utils.unwrap_dead_wrappers  # tensors without those of ended transforms

saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # the innermost; None: none
unwatched = torch._C.DisableTorchFunction  # a context in which neither modes nor subclasses see torch's functions
unwatched_by_subclasses = torch._C.DisableTorchFunctionSubclass  # one in which modes do
dispatch_modes = torch._C._len_torch_dispatch_stack  # how many TorchDispatchModes are at work
traced_by_jit = torch._C._get_tracing_state  # what torch.jit.trace notes; None: it does not
any_autocast = torch._C._is_any_autocast_enabled  # whether autocast is, for any device
function_modes = torch._C._len_torch_function_stack  # how many TorchFunctionModes are at work
pop_function_mode = torch._C._pop_torch_function_stack  # takes the innermost away
push_function_mode = torch._C._push_on_torch_function_stack  # puts one within all others

swap_tensors = torch._C._swap_tensor_impl  # what each of two tensors is becomes the other's
storage_users = torch._C._storage_Use_Count  # how many objects share a storage, by its `_cdata`
script_calls = torch._C.ScriptFunction, torch._C.ScriptMethod  # what torch.jit.script makes, which no mode sees
transforms_begin = (  # what torch.func's transforms call first
    (vmap, "_vmap_increment_nesting"),
    (eager_transforms, "_grad_increment_nesting"),
    (eager_transforms, "_jvp_increment_nesting"),
)
switches_grad = torch._C._set_grad_enabled, torch.autograd.grad_mode._enter_inference_mode  # as graphs hold them
function_calls = torch.autograd.function._SingleLevelFunction  # what `apply` of an autograd function comes to
apply = vars(torch._C._FunctionBase)["apply"]  # and that
functions = torch._C._nn  # what of torch.nn.functional is C++, under the names that graphs have
Packet, Operator = torch._ops.OpOverloadPacket, torch._ops.OperatorBase  # a name under torch.ops, what it calls


def is_exporting() -> bool:
    """As `torch.compiler.is_exporting()`, which torch.compile before torch 2.13 takes for True."""
    return torch.compiler._is_exporting_flag
