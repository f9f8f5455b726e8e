"""Bad input: every mistake gets an error that says which argument, what is allowed and what came; nothing crashes."""

import re
import types

import numpy as np
import pytest
import torch
from torch import nn

import snnfast as snn
from snnfast import _ext, functional, ops
from snnfast.functional import leaky, leaky_step

X = torch.randn(4, 2, 3)

NN = float("nan")
MISTAKES = {
    "x is no tensor": (TypeError, "x must be a tensor, got list", lambda: leaky([1.0], beta=0.9)),
    "x is an array": (TypeError, "x must be a tensor, got ndarray", lambda: leaky(np.ones((2, 2)), beta=0.9)),
    "x is None": (TypeError, "x must be a tensor, got NoneType", lambda: leaky(None, beta=0.9)),
    "x has no time": (ValueError, "x must have a time dimension", lambda: leaky(torch.tensor(1.0), beta=0.9)),
    "x is sparse": (ValueError, "x must be a dense tensor", lambda: leaky(X.to_sparse(), beta=0.9)),
    "x is sparse csr": (ValueError, "x must be a dense tensor", lambda: leaky_step(X[0].to_sparse_csr(), beta=0.9)),
    "x is bool": (TypeError, "x must have dtype float32", lambda: leaky(X > 0, beta=0.9)),
    "x is complex": (TypeError, "x must have dtype float32", lambda: leaky(X.to(torch.complex64), beta=0.9)),
    "x is float8": (TypeError, "x must have dtype float32", lambda: leaky(X.to(torch.float8_e4m3fn), beta=0.9)),
    "x is quantised": (
        TypeError,
        "x must have dtype float32",
        lambda: leaky(torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), beta=0.9),
    ),
    "mem is no tensor": (TypeError, "mem must be a tensor or None, got float", lambda: leaky(X, 0.5, beta=0.9)),
    "mem has the sequence's shape": (
        ValueError,
        r"mem must have shape (2, 3), got (4, 2, 3)",
        lambda: leaky(X, X, beta=0.9),
    ),
    "mem merely broadcasts": (ValueError, "mem must have shape (2, 3), got (3,)", lambda: leaky(X, X[0, 0], beta=0.9)),
    "mem is empty": (ValueError, "mem must have shape (2, 3), got (0,)", lambda: leaky(X, torch.zeros(0), beta=0.9)),
    "mem is integer": (TypeError, "mem must have dtype", lambda: leaky(X, X[0].int(), beta=0.9)),
    "mem is bool": (TypeError, "mem must have dtype", lambda: leaky_step(X[0], X[0] > 0, beta=0.9)),
    "mem is complex": (TypeError, "mem must have dtype", lambda: leaky(X, X[0].to(torch.complex64), beta=0.9)),
    "mem is sparse": (ValueError, "mem must be a dense tensor", lambda: leaky(X, X[0].to_sparse(), beta=0.9)),
    "mem is elsewhere": (
        ValueError,
        "mem must be on cpu as x is, got meta",
        lambda: leaky(X, X[0].to("meta"), beta=0.9),
    ),
    "step mem of another shape": (
        ValueError,
        "mem must have shape (2, 3), got (2,)",
        lambda: leaky_step(X[0], X[0, :, 0], beta=0.9),
    ),
    "beta missing": (TypeError, "beta", lambda: leaky(X)),
    "beta is text": (TypeError, "beta must be a number or a tensor, got str", lambda: leaky(X, beta="0.9")),
    "beta is None": (TypeError, "beta must be a number or a tensor, got NoneType", lambda: leaky(X, beta=None)),
    "beta is bool": (TypeError, "beta must be a number or a tensor, got bool", lambda: leaky(X, beta=True)),
    "beta does not fit": (
        ValueError,
        "beta must broadcast over one step's shape (2, 3), got shape (2,)",
        lambda: leaky(X, beta=torch.ones(2)),
    ),
    "beta is wider": (
        ValueError,
        "beta must broadcast over one step's shape",
        lambda: leaky(X, beta=torch.ones(5, 2, 3)),
    ),
    "beta is empty": (ValueError, "beta must broadcast over one step's shape", lambda: leaky(X, beta=torch.ones(0))),
    "beta is complex": (TypeError, "beta must have a real dtype", lambda: leaky(X, beta=torch.tensor(1j))),
    "beta is a bool tensor": (TypeError, "beta must have a real dtype", lambda: leaky(X, beta=torch.tensor(True))),
    "beta is sparse": (ValueError, "beta must be a dense tensor", lambda: leaky(X, beta=torch.ones(3).to_sparse())),
    "beta is elsewhere": (
        ValueError,
        "beta must be on cpu as x is, got meta",
        lambda: leaky(X, beta=torch.ones(3, device="meta")),
    ),
    "threshold does not fit": (
        ValueError,
        "threshold must broadcast over one step's shape",
        lambda: leaky(X, beta=0.9, threshold=torch.ones(4)),
    ),
    "threshold is a list": (
        TypeError,
        "threshold must be a number or a tensor, got list",
        lambda: leaky(X, beta=0.9, threshold=[1.0]),
    ),
    "factor does not fit": (
        ValueError,
        "graded_spikes_factor must broadcast",
        lambda: leaky(X, beta=0.9, graded_spikes_factor=torch.ones(3, 2)),
    ),
    "unknown reset": (
        ValueError,
        "reset_mechanism must be one of subtract, zero, none; got 'sub'",
        lambda: leaky(X, beta=0.9, reset_mechanism="sub"),
    ),
    "reset is a number": (
        ValueError,
        "reset_mechanism must be one of subtract, zero, none; got 0",
        lambda: leaky(X, beta=0.9, reset_mechanism=0),
    ),
    "reset is unhashable": (
        ValueError,
        "reset_mechanism must be one of",
        lambda: leaky(X, beta=0.9, reset_mechanism=["zero"]),
    ),
    "surrogate by name": (
        TypeError,
        "spike_grad must be callable or None, got str",
        lambda: leaky(X, beta=0.9, surrogate="atan"),
    ),
    "unknown return_mem": (
        ValueError,
        "return_mem must be 'all' or 'last', got 'none'",
        lambda: leaky(X, beta=0.9, return_mem="none"),
    ),
    "misspelt option": (TypeError, "reset_mechanisms", lambda: leaky(X, beta=0.9, reset_mechanisms="zero")),
    "layer without beta": (TypeError, "beta", lambda: snn.Leaky()),
    "layer beta is text": (TypeError, "beta must be a number or a tensor, got str", lambda: snn.Leaky("0.9")),
    "layer beta is None": (TypeError, "beta must be a number or a tensor, got NoneType", lambda: snn.Leaky(None)),
    "layer threshold is a module": (
        TypeError,
        "threshold must be a number or a tensor",
        lambda: snn.Leaky(0.9, threshold=nn.ReLU()),
    ),
    "layer beta is complex": (TypeError, "beta must have a real dtype", lambda: snn.Leaky(1j)),
    "layer beta is bool": (TypeError, "beta must have a real dtype", lambda: snn.Leaky(True)),
    "layer unknown reset": (
        ValueError,
        "reset_mechanism must be one of",
        lambda: snn.Leaky(0.9, reset_mechanism="hard"),
    ),
    "layer set to unknown reset": (
        ValueError,
        "reset_mechanism must be one of",
        lambda: setattr(snn.Leaky(0.9), "reset_mechanism", "x"),
    ),
    "layer spike_grad is a number": (
        TypeError,
        "spike_grad must be callable or None, got int",
        lambda: snn.Leaky(0.9, spike_grad=25),
    ),
    "layer state_quant is a number": (
        TypeError,
        "state_quant must be callable or False, got int",
        lambda: snn.Leaky(0.9, state_quant=8),
    ),
    "layer hidden and mem": (
        TypeError,
        "mem must not be passed while init_hidden=True",
        lambda: snn.Leaky(0.9, init_hidden=True)(X[0], X[0]),
    ),
    "layer hidden and mem, unrolled": (
        TypeError,
        "mem must not be passed",
        lambda: snn.Leaky(0.9, init_hidden=True).unroll(X, X[0]),
    ),
    "layer input is a list": (TypeError, "x must be a tensor, got list", lambda: snn.Leaky(0.9)([1.0])),
    "layer input is bool": (TypeError, "x must have dtype", lambda: snn.Leaky(0.9)(X[0] > 0)),
    "layer unrolled without time": (
        ValueError,
        "x must have a time dimension",
        lambda: snn.Leaky(0.9).unroll(torch.tensor(0.5)),
    ),
    "layer unrolled hidden without time": (
        ValueError,
        "x must have a time dimension",
        lambda: snn.Leaky(0.9, init_hidden=True).unroll(torch.tensor(0.5)),
    ),
    "layer mem is a number": (TypeError, "mem must be a tensor, got float", lambda: snn.Leaky(0.9)(X[0], 0.0)),
    "layer beta does not fit input": (ValueError, "beta must broadcast", lambda: snn.Leaky(torch.ones(7))(X[0])),
    "layer inhibits a vector": (
        ValueError,
        "batch and a neuron dimension for inhibition",
        lambda: snn.Leaky(0.9, inhibition=True)(X[0, 0]),
    ),
    "unroll of a vector": (
        ValueError,
        "x must be a tensor [T, B, ...], got (3,)",
        lambda: snn.Unroll(nn.ReLU())(X[0, 0]),
    ),
    "unroll without time": (
        ValueError,
        "x must be a tensor [T, B, features], got (32, 784)",
        lambda: snn.Unroll(nn.Linear(784, 3), snn.Leaky(0.9))(torch.rand(32, 784)),
    ),
    "unroll of no tensor": (ValueError, "x must be a tensor [T, B, ...], got list", lambda: snn.Unroll(nn.ReLU())([X])),
    "unroll over an rnn": (TypeError, "layer 0 (LSTM) must be stateless", lambda: snn.Unroll(nn.LSTM(3, 3))),
    "unroll over hidden neurons": (
        TypeError,
        "layer 0 (ModuleList) must be stateless",
        lambda: snn.Unroll(nn.ModuleList([snn.Leaky(0.9)])),
    ),
    "convert no module": (TypeError, "net must be a torch.nn.Module, got function", lambda: snn.convert(leaky)),
    "reset no module": (TypeError, "net must be a torch.nn.Module, got Tensor", lambda: snn.reset(X)),
    "foreign reset value in a checkpoint": (
        RuntimeError,
        "reset_mechanism_val must be 0, 1 or 2, got 7",
        lambda: snn.Leaky(0.9).load_state_dict({**snn.Leaky(0.9).state_dict(), "reset_mechanism_val": torch.tensor(7)}),
    ),
    "checkpoint with vector beta": (
        RuntimeError,
        "size mismatch for beta",
        lambda: snn.Leaky(0.9).load_state_dict(snn.Leaky(torch.ones(3)).state_dict()),
    ),
    "checkpoint without beta": (RuntimeError, "Missing key", lambda: snn.Leaky(0.9).load_state_dict({})),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake):
    error, message, call = MISTAKES[mistake]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_there_are_at_least_forty():
    assert len({message for _, message, _ in MISTAKES.values()}) >= 40


ONE = torch.ones(())
FWD = {
    "x": X,
    "rec": None,
    "states": [],
    "params": [ONE, ONE, ONE],
    "unroll": True,
    "reset_mechanism": "subtract",
    "reset_delay": True,
    "inclusive": False,
    "saved": 1,
    "every": 1,
    "save_extras": False,
}
BWD = {
    "like": X,
    "x": None,
    "grad_spk": X,
    "grad_last": [],
    "grad_seqs": [],
    "seqs": [X],
    "extras": [],
    "states": [],
    "params": [ONE, ONE, ONE],
    "evaluated": None,
    "unroll": True,
    "reset_mechanism": "subtract",
    "reset_delay": True,
    "inclusive": False,
    "surrogate": "atan",
    "constants": [3.0, 1.0],
    "dtype": torch.float32,
    "want_states": True,
    "want_params": True,
}
DIVIDES = "must have a number of elements that divides the 6 neurons, got"
RAW_MISTAKES = [
    ("leaky_fwd", {"x": torch.tensor(1.0)}, "x must have a time dimension"),
    ("leaky_fwd", {"x": X.int()}, "dtype must be one of"),
    ("leaky_fwd", {"rec": X[0]}, "rec must have 24 elements, got 6"),
    ("leaky_fwd", {"rec": X.double()}, "rec must have dtype Float, got Double"),
    ("leaky_fwd", {"states": [X]}, "mem must have 6 elements, got 24"),
    ("leaky_fwd", {"states": [X[0].double()]}, "mem must have dtype Float, got Double"),
    ("leaky_fwd", {"states": [X[0], X[0]]}, "states must have none or 1 tensors, got 2"),
    ("leaky_fwd", {"params": []}, "params must have 3 tensors, got 0"),
    ("leaky_fwd", {"params": [ONE, ONE]}, "params must have 3 tensors, got 2"),
    ("leaky_fwd", {"params": [ONE, ONE, ONE, ONE]}, "params must have 3 tensors, got 4"),
    ("leaky_fwd", {"params": [torch.ones(4), ONE, ONE]}, f"beta {DIVIDES} 4"),
    ("leaky_fwd", {"params": [torch.ones(0), ONE, ONE]}, f"beta {DIVIDES} 0"),
    ("leaky_fwd", {"params": [ONE, ONE.double(), ONE]}, "threshold must have dtype Float, got Double"),
    ("leaky_fwd", {"params": [ONE, ONE, torch.ones(12)]}, f"graded_spikes_factor {DIVIDES} 12"),
    ("leaky_fwd", {"reset_mechanism": "sub"}, "reset_mechanism must be one of subtract, zero, none; got 'sub'"),
    ("leaky_fwd", {"saved": 2}, "saved must be from 0 to 1, got 2"),
    ("leaky_fwd", {"saved": -1}, "saved must be from 0 to 1, got -1"),
    ("leaky_fwd", {"every": 16}, "every must be 1, got 16"),
    ("leaky_fwd", {"every": 0}, "every must be 1, got 0"),
    ("leaky_bwd", {"x": X}, "x must not be given for a model, dtype or device whose steps are not run again"),
    ("leaky_bwd", {"like": torch.tensor(1.0)}, "x must have a time dimension"),
    ("leaky_bwd", {"grad_spk": X[0]}, "grad_spk must have 24 elements, got 6"),
    ("leaky_bwd", {"grad_last": [X]}, "grad_last must have 6 elements, got 24"),
    ("leaky_bwd", {"grad_last": [None, X[0]]}, "grad_last, grad_seqs and seqs must have at most 1 tensors"),
    ("leaky_bwd", {"grad_seqs": [X.double()]}, "grad_seqs must have dtype Float, got Double"),
    ("leaky_fwd", {"weight": torch.ones(3, 3)}, "weight must be given for a recurrent model's sequence alone"),
    ("leaky_fwd", {"bias": torch.ones(3)}, "bias and spk must be given with weight alone, and rec without it"),
    ("leaky_bwd", {"weight": torch.ones(3, 3)}, "weight must be given for a recurrent model's sequence alone"),
    ("leaky_bwd", {"grad_seqs": [X[0]]}, "grad_seqs must have 24 elements, got 6"),
    ("leaky_bwd", {"grad_seqs": [None, None]}, "grad_last, grad_seqs and seqs must have at most 1 tensors"),
    ("leaky_bwd", {"seqs": [X[1:]]}, "seqs must have 24 elements, got 18"),
    ("leaky_bwd", {"seqs": [X.double()]}, "seqs must have dtype Float, got Double"),
    ("leaky_bwd", {"seqs": [X, X]}, "grad_last, grad_seqs and seqs must have at most 1 tensors"),
    ("leaky_bwd", {"extras": [X[:2]], "reset_delay": False}, "extras must have 24 elements, got 12"),
    ("leaky_bwd", {"reset_delay": False}, "extras must have 1 tensors, got 0"),
    ("leaky_bwd", {"extras": [X]}, "extras must have 0 tensors, got 1"),
    ("leaky_bwd", {"states": [X]}, "mem must have 6 elements, got 24"),
    ("leaky_bwd", {"states": [X[0], X[0]]}, "states must have none or 1 tensors, got 2"),
    ("leaky_bwd", {"params": [ONE]}, "params must have 3 tensors, got 1"),
    ("leaky_bwd", {"params": [torch.ones(4), ONE, ONE]}, f"beta {DIVIDES} 4"),
    ("leaky_bwd", {"evaluated": X[:1]}, "evaluated must have 24 elements, got 6"),
    (
        "leaky_bwd",
        {"evaluated": X},
        "evaluated must be given with surrogate evaluated and with no other, got surrogate",
    ),
    ("leaky_bwd", {"reset_mechanism": "sub"}, "reset_mechanism must be one of subtract, zero, none; got 'sub'"),
    ("leaky_bwd", {"surrogate": "tan"}, "surrogate must be one of atan, fast_sigmoid"),
    ("leaky_bwd", {"constants": [1.0]}, "surrogate atan must have 2 constants, got 1"),
    ("leaky_bwd", {"surrogate": "evaluated", "constants": []}, "evaluated must be given"),
    ("leaky_bwd", {"dtype": torch.float64}, "grad_spk must have dtype Double, got Float"),
    ("leaky_bwd", {"dtype": torch.float64, "grad_spk": None}, "seqs must have dtype Double, got Float"),
    ("leaky_bwd", {"dtype": torch.int32}, "grad_spk must have dtype"),
    ("leaky_bwd", {"dtype": torch.int32, "grad_spk": None}, "dtype must be one of"),
]


@pytest.mark.parametrize("op, change, message", RAW_MISTAKES, ids=lambda v: v if isinstance(v, str) else None)
def test_operators_refuse_what_would_touch_foreign_memory(op, change, message):
    """The second line of defence: torch.ops.snnfast called directly."""
    operator = getattr(torch.ops.snnfast, op)
    arguments = {**(FWD if op == "leaky_fwd" else BWD), **change}
    with pytest.raises(RuntimeError, match=re.escape(message)):
        operator(**arguments)


ENDLESS = torch.ones(1, 1).expand(1 << 24, 1 << 24)
MEMORY = {
    "unroll": lambda: snn.Leaky(0.9).unroll(ENDLESS),
    "unroll in training": lambda: snn.Synaptic(0.9, 0.8, learn_beta=True).unroll(ENDLESS),
    "step": lambda: snn.Leaky(0.9)(ENDLESS),
    "one to one": lambda: snn.RLeaky(0.9, all_to_all=False).unroll(ENDLESS),
    "all to all": lambda: snn.RLeaky(0.9, linear_features=1).unroll(ENDLESS.unsqueeze(-1)),
    "rate": lambda: snn.encoding.rate(X[0], 1 << 48),
    "latency": lambda: snn.encoding.latency(X[0].sigmoid(), 1 << 48),
    "delta": lambda: snn.encoding.delta(ENDLESS),
    "bits": lambda: ops.pack_spikes(ENDLESS.expand(1 << 12, *ENDLESS.shape)),
}


@pytest.mark.parametrize("what", MEMORY)
def test_without_memory_torchs_own_allocator_says_so(what, capfd):
    """In its own words, without a trace of C++ in the error or on the terminal."""
    with pytest.raises(RuntimeError, match=r"DefaultCPUAllocator: can't allocate memory: .* bytes") as raised:
        MEMORY[what]()
    assert "API call" not in str(raised.value) and raised.value.__context__ is None
    assert capfd.readouterr().err == ""


def test_what_fails_within_an_operator_keeps_its_type(monkeypatch):
    """As on a GPU that is nearly full: the stable ABI forgets the type, torch's allocator tells it again."""
    monkeypatch.setattr(ops.calls, "LARGE", 1 << 62)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator") as raised:
        MEMORY["unroll"]()
    assert raised.value.__context__ is None

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(ops.calls.fakes, "leaky_fwd", full)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") as raised:
        MEMORY["unroll"]()
    assert raised.value.__context__ is None


HUGE = 2**63 - 1
SEED = torch.zeros((), dtype=torch.int64)
BYTES = torch.zeros(1, dtype=torch.uint8)
TOO_MANY = [
    (
        "encode_rate",
        (X, SEED, None, HUGE, 1.0, 0.0, torch.float32),
        f"silent must be at most {HUGE - 4} before 4 steps",
    ),
    ("encode_rate", (X, SEED, None, -1, 1.0, 0.0, torch.float32), "silent must be 0 or more, got -1"),
    ("encode_rate", (X, SEED, -1, 0, 1.0, 0.0, torch.float32), "steps must be 0 or more, got -1"),
    (
        "unpack_spikes",
        (BYTES, ONE, [2**32, 2**32]),
        f"shape must have at most {HUGE} elements, got {2**32} times {2**32}",
    ),
    ("unpack_spikes", (BYTES, ONE, [2**62, 3, 5]), f"shape must have at most {HUGE} elements, got {2**62} times 3"),
    ("unpack_spikes", (BYTES, ONE, [HUGE]), f"bits must have {2**60} elements, got 1"),
    ("unpack_spikes", (BYTES, ONE, [2, -3]), "shape must have sizes of 0 or more, got -3"),
]


@pytest.mark.parametrize("op, arguments, message", TOO_MANY, ids=lambda v: v if isinstance(v, str) else "")
def test_sizes_that_64_bits_do_not_count_are_refused(op, arguments, message):
    """Arithmetic of sizes that wrapped round would pass the checks that follow it."""
    with pytest.raises(RuntimeError, match=re.escape(message)):
        getattr(torch.ops.snnfast, op)(*arguments)


def test_more_silent_steps_than_there_are_integers():
    with pytest.raises(RuntimeError, match=re.escape(f"silent must be at most {HUGE - 4} before 4 steps, got {HUGE}")):
        snn.encoding.rate(X.clamp(0, 1), first_spike_time=HUGE, time_var_input=True)


class CudaBuild:
    """A `_C_cuda` without kernels for the GPU at hand."""

    @staticmethod
    def why_no_kernel_runs(index):
        return "no kernel image is available for execution on the device" if index == 1 else None

    @staticmethod
    def architectures():
        return "8.0, 9.0"


def test_a_gpu_without_kernels_is_named_with_what_was_built(monkeypatch):
    """Not "no kernel image" from somewhere: which GPU, what this build is for, and how to build for it."""
    monkeypatch.setattr(_ext, "_cuda", CudaBuild)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(functional, "_said", set())
    _ext.why_no_kernel_runs.cache_clear()
    try:
        of = {index: types.SimpleNamespace(device=torch.device("cuda", index)) for index in (0, 1)}
        assert functional._reasons_not_to_fuse(of[0], snn.surrogate.atan(), False, False) == []
        (reason,) = functional._reasons_not_to_fuse(of[1], snn.surrogate.atan(), False, False)
        assert "device 1, Tesla T4 of compute capability 7.5, runs no kernel" in reason
        assert "compiled for 8.0, 9.0" in reason and "TORCH_CUDA_ARCH_LIST=7.5 compiles for it" in reason
        monkeypatch.setattr(_ext, "_cuda", None)
        monkeypatch.setattr(_ext, "_import_error", "No module named 'snnfast._C_cuda'")
        _ext.why_no_kernel_runs.cache_clear()
        (reason,) = functional._reasons_not_to_fuse(of[0], snn.surrogate.atan(), False, False)
        assert reason == "CUDA, whose kernels did not load (No module named 'snnfast._C_cuda'),"
    finally:
        _ext.why_no_kernel_runs.cache_clear()


def test_data_on_a_gpu_without_kernels_is_encoded_on_the_cpu(monkeypatch):
    """The same spikes, where the data lie, with one warning. The data's device stands in for such a GPU's."""
    data = torch.rand(5, 3)
    torch.manual_seed(0)
    expected = snn.encoding.rate(data, 4)
    monkeypatch.setattr(snn.encoding, "_lacks_kernels", lambda device: "which has no kernels here")
    torch.manual_seed(0)
    snn.encoding._say_once.cache_clear()
    with pytest.warns(UserWarning, match="encoding: CUDA, which has no kernels here, encodes on the CPU") as said:
        found = [snn.encoding.rate(data, 4), snn.encoding.delta(data)]
    assert torch.equal(found[0], expected) and len(said) == 1


def test_documented_behaviours():
    """Input that is odd but meaningful: integers, NaN parameters, huge and infinite values, mismatched step states."""
    spk, mem = leaky(torch.tensor([[2, 0], [0, 3]]), beta=0.5)
    assert spk.dtype == mem.dtype == torch.float32 and spk.tolist() == [[1, 0], [0, 1]]
    spk, mem = leaky(X, beta=NN)
    assert mem.isnan().all() and (spk == 0).all()
    spk, mem = leaky(X, beta=0.9, threshold=NN)
    assert mem.isnan().all() and (spk == 0).all()
    spk, _ = leaky(X * 0 + 3e38, beta=1.0, reset_mechanism="none")
    assert (spk == 1).all()
    spk, mem = leaky(X, beta=7.0, reset_mechanism="none")
    assert torch.equal(mem, leaky(X, beta=1.0, reset_mechanism="none")[1])
    with pytest.warns(UserWarning, match=re.escape("mem of shape (3,) does not fit the input's (2, 3)")):
        replaced = snn.Leaky(0.9)(X[0], torch.ones(3))
    assert torch.equal(replaced[1], snn.Leaky(0.9)(X[0], torch.zeros(2, 3))[1])


def test_what_a_wrong_argument_is_told():
    with pytest.raises(TypeError, match=r"spike_grad must be an instance, such as atan\(\), got the class"):
        snn.Leaky(0.9, spike_grad=snn.surrogate.atan)
    with pytest.raises(TypeError, match=r"Unroll takes layers, as in Unroll\(\*layers\), got list"):
        snn.Unroll([nn.Linear(4, 5), snn.Leaky(0.9)])
    with pytest.raises(TypeError, match="compile must be True, False or None, got 'yes'"):
        snn.accelerate(nn.Linear(4, 5), compile="yes")
    with pytest.raises(ValueError, match="numbers must be one of forward, exact; got 'x'"):
        snn.accelerated(numbers="x")
