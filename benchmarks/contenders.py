"""The contenders: for each library its layers, its networks of Linears and LIFs, and the published loops on it.

Layers and networks run over whole sequences, time first, and return spikes only. A library is imported when its
contender is constructed, so a machine may lack any of them.
"""

import functools
import math
import types
from collections.abc import Callable
from importlib import import_module, metadata

import torch
from torch import nn

import published
from published import Loop

BETA = 0.95
THRESHOLD = 1.0
# With Norse's own initial weights, 8 to 11 % of its recurrent neurons fire on the bench's input.
NORSE_THRESHOLD = 0.5


class Refused(Exception):
    """A contender is not run at this size, or on this device."""


class Contender:
    """One way to run a network.

    Attributes:
        package: the library whose version stands beside the name.
        same_neuron: whether its LIF layer computes Leaky.
        exact: whether its bits must be the specification's, where both do the same matrix products.
        wide_state: whether its membranes are float32 where its input is float16 or bfloat16.
        devices: the types of device that it runs on.
        compiles: whether the first call compiles.
        unrolls: whether that compiles a graph of all T steps.
        counted: whether its memory is torch's, and so is known.
        waits: whether its operations wait, as none does while hooks on saved tensors are set.
        autocasts: whether torch's autocast reaches its products.
        steps_at_most: beyond so many it would not end within minutes.
    """

    name: str
    package: str
    same_neuron = True
    exact = True
    wide_state = True
    devices = ("cpu", "cuda")
    compiles = False
    unrolls = False
    counted = True
    waits = False
    autocasts = True
    steps_at_most: float = math.inf

    def __init__(self):
        self.library = import_module(self.package)

    @classmethod
    def on(cls, device: torch.device) -> "Contender":
        """The contender, refused where it has no form for the device."""
        if device.type not in cls.devices:
            raise Refused(f"not on {device.type}")
        return cls()

    @property
    def version(self) -> str | None:
        """The installed version; a library used from its source tree may have none."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return getattr(self.library, "__version__", None)

    def lif(self) -> nn.Module:
        """The layer alone: currents [T, B, N] -> spikes [T, B, N]."""
        raise NotImplementedError

    def network(self, *linears: nn.Module) -> nn.Module:
        """Given Linears, or other layers without time, a LIF layer behind each: [T, B, ...] -> spikes [T, B, ...]."""
        over_time = [each if isinstance(each, nn.Linear) else AllSteps(each) for each in linears]
        return nn.Sequential(*each_before(self.lif, over_time))

    def deep(self, build: Callable[[Callable[[], nn.Module]], nn.Module]) -> nn.Module:
        """A network over [T, B, ...] that takes its LIF layers, new ones, from what `build` is given."""
        return build(self.lif)

    def step(self) -> Callable[[torch.Tensor, object], tuple[torch.Tensor, object]]:
        """One step of the layer: (current [B, N], state or None) -> (spikes [B, N], state)."""
        raise NotImplementedError

    def rlif(self, features: int) -> nn.Module:
        """The recurrent layer, all-to-all, behind input weights as wide: spikes [T, B, N] -> spikes [T, B, N]."""
        raise NotImplementedError

    @classmethod
    def runs(cls, loop: Loop) -> bool:
        """Whether this contender has a form of a published loop: by default, of those on its own neurons."""
        return loop.library == cls.package

    def neurons(self, loop: Loop) -> types.ModuleType | None:
        """The module whose neurons the published loop takes; None for its author's own."""
        return self.library

    def prepared(self, network: nn.Module) -> nn.Module:
        """What is called in place of the published network."""
        return network

    def specification(self) -> nn.Module:
        """What `lif` must compute: currents [T, B, N] -> spikes [T, B, N], differentiable."""
        return Reference().lif()

    def rlif_step(self, features: int) -> nn.Module | None:
        """One step of what `rlif` must compute: (spikes [B, N], state or None) -> (spikes, state).

        Parameters are those of `rlif` in order, the first state is the spikes. None: there is nothing to check against.
        """
        raise NotImplementedError

    def scanned(self, name: str, cell: Callable) -> Callable:
        """A neuron in plain PyTorch over a whole sequence: (x [T, ...], state) -> (out [T, ...], state).

        Args:
            name: the neuron's in benchmarks/neurons.py.
            cell: one step of it.
        """
        raise NotImplementedError

    def encoders(self) -> types.ModuleType:
        """The module of `rate`, `latency` and `delta`, with snnTorch's arguments."""
        raise NotImplementedError

    def reset(self, module: nn.Module) -> None:
        """Forgets the state that a run left in `module`."""


class AllSteps(nn.Module):
    """Layers without time on all steps at once: [T, B, ...] as [T*B, ...]."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x_seq):
        return self.layers(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


def each_before(layer, linears):
    """The Linears, a new layer after each."""
    return [module for linear in linears for module in (linear, layer())]


def _norse_parameters(library):
    return library.LIFParameters(v_th=torch.as_tensor(NORSE_THRESHOLD))


def _norse_cell(library, features):
    return library.LIFRecurrentCell(features, features, p=_norse_parameters(library))


class _OutputOnly(nn.Module):
    """Leaves the last state of a layer that returns (output, state)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x_seq):
        return self.layer(x_seq)[0]


class SnnFast(Contender):
    """snnfast: one launch per layer and direction; its recurrent layer is Norse's."""

    name = package = "snnfast"

    def _leaky(self):
        return self.library.Leaky(beta=BETA)

    def lif(self):
        return self.library.Unroll(self._leaky())

    def network(self, *linears):
        return self.library.Unroll(nn.Sequential(*each_before(self._leaky, linears)))

    def step(self):
        return LeakyStep(self._leaky())

    def rlif(self, features):
        norse = import_module("snnfast.norse")
        return _OutputOnly(norse.LIFRecurrent(features, features, p=_norse_parameters(norse)))

    def rlif_step(self, features):
        return _norse_cell(published, features)

    def scanned(self, name, cell):
        return functools.partial(self.library.scan, cell)

    def encoders(self):
        return self.library.encoding


class LeakyStep(nn.Module):
    """A Leaky of snnTorch's interface, one step: current and membrane, None at first, to (spikes, membrane)."""

    def __init__(self, leaky):
        super().__init__()
        self.leaky = leaky

    def forward(self, x, mem=None):
        return self.leaky(x, torch.zeros_like(x) if mem is None else mem)


class _OnReference(nn.Module):
    def __init__(self, library, module):
        super().__init__()
        self.library, self.module = library, module

    def forward(self, *inputs):
        with self.library.use_reference():
            return self.module(*inputs)


class Reference(SnnFast):
    """The same modules on snnfast's pure-PyTorch loop, the specification."""

    name = "reference"

    def lif(self):
        return _OnReference(self.library, super().lif())

    def network(self, *linears):
        return _OnReference(self.library, super().network(*linears))

    def step(self):
        return _OnReference(self.library, super().step())


class StepLoop(nn.Module):
    """snnTorch's published loop: the whole network once per step.

    `unbind`, because the backward of indexing `x_seq[t]` fills a whole sequence of zeros per step.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x_seq):
        return torch.stack([self.network(x) for x in x_seq.unbind(0)])


class CellLoop(nn.Module):
    """A cell once per step, handed its state: (x, state or None) -> (spikes, state)."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x_seq):
        state, spikes = None, []
        for x in x_seq.unbind(0):
            spk, state = self.cell(x, state)
            spikes.append(spk)
        return torch.stack(spikes)


class RLeakyStep(nn.Module):
    """A Linear and snnTorch's RLeaky, one step: spikes [B, N] and state (spikes, membrane) to (spikes, state)."""

    def __init__(self, library, features):
        super().__init__()
        self.linear = nn.Linear(features, features)
        self.neuron = library.RLeaky(beta=BETA, linear_features=features)
        with torch.no_grad():
            # Gradients through its initial weights grow beyond all numbers in a thousand steps.
            self.neuron.recurrent.weight.mul_(0.5)

    def forward(self, x, state=None):
        spk, mem = self.neuron(self.linear(x), *(state or self.neuron.reset_mem()))
        return spk, (spk, mem)


class SnnTorch(Contender):
    """snnTorch's own layers in a Python loop over time."""

    name = package = "snntorch"
    wide_state = False

    def _leaky(self):
        # A membrane passed as argument breaks the compiled graph: Leaky tests `mem == None`.
        return self.library.Leaky(beta=BETA, init_hidden=True)

    def lif(self):
        return StepLoop(self._leaky())

    def network(self, *linears):
        return StepLoop(nn.Sequential(*each_before(self._leaky, linears)))

    def step(self):
        return LeakyStep(self.library.Leaky(beta=BETA))

    def rlif(self, features):
        rleaky = self.library.RLeaky(beta=BETA, linear_features=features, init_hidden=True)
        return StepLoop(nn.Sequential(nn.Linear(features, features), rleaky))

    def rlif_step(self, features):
        return RLeakyStep(self.library, features)

    def encoders(self):
        return import_module("snntorch.spikegen")

    def reset(self, module):
        # The neurons replace a state of another shape than their input's by zeros.
        for layer in module.modules():
            if isinstance(layer, self.library.SpikingNeuron):
                for name in ("spk", "mem"):
                    if hasattr(layer, name):
                        setattr(layer, name, getattr(layer, name).new_zeros(0))


class Compiled(Contender):
    """Before a contender: the same under torch.compile, which unrolls all T steps into one graph."""

    # Inductor may contract a multiply and an add, which flips a spike now and then.
    exact = False
    compiles = unrolls = True
    fullgraph = True

    def _compile(self, module):
        return torch.compile(module, dynamic=False, fullgraph=self.fullgraph)

    def lif(self):
        return self._compile(super().lif())

    def network(self, *linears):
        return self._compile(super().network(*linears))

    def deep(self, build):
        return self._compile(build(super().lif))

    def step(self):
        # Without fullgraph: snnTorch's membrane is an argument.
        return torch.compile(super().step(), dynamic=False)

    def rlif(self, features):
        return self._compile(super().rlif(features))


class SnnTorchCompiled(Compiled, SnnTorch):
    """snnTorch's loops, compiled."""

    name = "snntorch-compile"

    def prepared(self, network):
        # Without fullgraph: in the published loops the membrane is an argument.
        return torch.compile(_on_own_code(network))


class SnnTorchState(SnnTorch):
    """snnTorch's StateLeaky: a convolution over time, whose work grows with T squared. Another neuron: no reset."""

    name = "snntorch-state"
    same_neuron = False
    exact = False
    steps_at_most = 500

    def lif(self):
        return _StateLeaky(self.library)

    def network(self, *linears):
        return Contender.network(self, *linears)

    def step(self):
        raise NotImplementedError("StateLeaky has no call of one step")

    def specification(self):
        """A sum that decays by its exp(beta - 1) a step."""
        decay, fire = math.exp(BETA - 1), self.library.surrogate.atan()

        def step(x, v):
            v = x if v is None else decay * v + x
            return fire(v - THRESHOLD), v

        return CellLoop(step)

    def reset(self, module):
        pass


class _StateLeaky(nn.Module):
    """It asks for the number of channels, which the first input tells."""

    def __init__(self, library):
        super().__init__()
        self.library, self.layer = library, None

    def forward(self, x_seq):
        if self.layer is None:
            self.layer = self.library.StateLeaky(beta=BETA, channels=x_seq.shape[-1]).to(x_seq.device)
        return self.layer(x_seq)[0]


class SpikingJelly(Contender):
    """SpikingJelly's multi-step LIFNode, on a CPU its loop in PyTorch; a GPU has its kernels, contenders of their own.

    Another neuron than Leaky: it resets in the step that fires and divides by tau, where Leaky
    waits a step and multiplies by beta.
    """

    name = package = "spikingjelly"
    same_neuron = False
    exact = False
    wide_state = False
    devices = ("cpu",)
    tau = 1 / (1 - BETA)

    def __init__(self):
        super().__init__()
        for module in ("neuron", "functional", "surrogate"):
            setattr(self, module, import_module(f"{self.package}.activation_based.{module}"))

    def _surrogate(self):
        return self.surrogate.ATan(alpha=2.0)

    def _node(self, step_mode, **options):
        return self.neuron.LIFNode(
            tau=self.tau,
            decay_input=False,
            v_threshold=THRESHOLD,
            v_reset=None,
            surrogate_function=self._surrogate(),
            detach_reset=True,
            step_mode=step_mode,
            store_v_seq=False,
            **options,
        )

    def lif(self):
        return self._node("m")

    def step(self):
        return KeptState(self._node("s"), self.functional.reset_net)

    def specification(self):
        """The recurrence that SpikingJelly documents for these options."""
        fire = self._surrogate()

        def step(x, v):
            v = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) if v is None else v
            h = v - v / self.tau + x
            spk = fire(h - THRESHOLD)
            return spk, h - spk.detach() * THRESHOLD

        return CellLoop(step)

    def reset(self, module):
        self.functional.reset_net(module)


class SpikingJellyCompiled(Compiled, SpikingJelly):
    """The same loop compiled, at few steps its fastest form."""

    name = "spikingjelly-compile"


class KeptState(nn.Module):
    """One step of a neuron that keeps its state: (current, None at first) to (spikes, anything else)."""

    def __init__(self, neuron, forget):
        super().__init__()
        self.neuron, self._forget = neuron, forget

    def forward(self, x, state=None):
        if state is None:
            self._forget(self.neuron)
        return self.neuron(x), True


class SpikingJellyKernel(SpikingJelly):
    """Base of one of the kernels of SpikingJelly 2.0.0, called with a float32 membrane, without which it falls back.

    A process has one selection, made before every pass. A named kernel that cannot run raises, and so does another that
    SpikingJelly would run in its place.
    """

    wide_state = True
    devices = ("cuda",)
    implementation: str
    # Whether what the backward needs is stored in the input's dtype, by SpikingJelly's precision setting.
    narrow_storage = False

    def __init__(self):
        super().__init__()
        self._selection = import_module("spikingjelly._ops.lif")._selection
        self._selected = None

    def _select(self):
        device = torch.device("cuda", torch.cuda.current_device())
        self._selection._requested = self.implementation
        if self._selected is None:
            self._selected = self._selection._select(device.index)
        self._selection._selections[device.index] = self._selected
        active = self.functional.neuron_implementation("lif", device)["implementation"]
        if active != self.implementation:
            raise RuntimeError(f"SpikingJelly runs {active!r} in place of {self.implementation!r}")

    def lif(self):
        self._select()
        return WideLif(self.functional.lif_multi_step, self._node("m"), self.narrow_storage)

    def step(self):
        self._select()
        return super().step()

    def reset(self, module):
        self._select()


class WideLif(nn.Module):
    """SpikingJelly's function behind a LIFNode, from a float32 membrane where the node's has the input's dtype."""

    def __init__(self, lif_multi_step, node, narrow_storage):
        super().__init__()
        self.lif_multi_step, self.node, self.narrow_storage = lif_multi_step, node, narrow_storage

    def forward(self, x_seq):
        node, v = self.node, torch.zeros_like(x_seq[0], dtype=torch.float32, requires_grad=False)
        reset = (node.v_threshold, node.v_reset, node.surrogate_function, node.detach_reset)
        storage = {"neuron_storage": x_seq.dtype} if self.narrow_storage else {}
        return self.lif_multi_step(x_seq, v, node.tau, node.decay_input, *reset, node.store_v_seq, **storage)[0]


class SpikingJellyTriton(SpikingJellyKernel):
    """The Triton kernels, which any install has."""

    name = "spikingjelly-triton"
    implementation = "triton"


class SpikingJellyPrecision(SpikingJellyTriton):
    """The same with narrow storage, the fewest bytes that SpikingJelly moves in 16 bits."""

    name = "spikingjelly-precision"
    narrow_storage = True


class SpikingJellyNative(SpikingJellyKernel):
    """The CUDA kernels, which its sdist builds under SJ_BUILD_NATIVE_CUDA=1."""

    name = "spikingjelly-native"
    implementation = "cuda"


class SpikingJellyCupy(SpikingJelly):
    """The CuPy kernels of 0.0.0.0.14, whose package goes by another name, since a process can also hold 2.0.0.

    `pip install --no-deps --target DIR spikingjelly==0.0.0.0.14`, `DIR/spikingjelly` renamed to `spikingjelly_cupy`,
    and `DIR` on PYTHONPATH.
    """

    name = "spikingjelly-cupy"
    package = "spikingjelly_cupy"
    devices = ("cuda",)

    def __init__(self):
        import_module("cupy")
        super().__init__()

    @property
    def version(self):
        return "0.0.0.0.14"

    def lif(self):
        # Its setter refuses a backend that the node does not support.
        return self._node("m", backend="cupy")


class SinabsExodus(Contender):
    """EXODUS' kernels behind sinabs' LIF, batch first. Another neuron: it resets in the step that fires."""

    name = "sinabs-exodus"
    package = "sinabs.exodus"
    same_neuron = False
    exact = False
    devices = ("cuda",)

    def __init__(self):
        super().__init__()
        self.activation = import_module("sinabs.activation")

    @property
    def version(self):
        return metadata.version("sinabs-exodus")

    def _batch_first(self, layers):
        return BatchFirst(
            import_module(layers).LIF(
                tau_mem=-1 / math.log(BETA),
                spike_threshold=THRESHOLD,
                spike_fn=self.activation.SingleSpike,
                reset_fn=self.activation.MembraneSubtract(),
                norm_input=False,
            )
        )

    def lif(self):
        return self._batch_first("sinabs.exodus.layers")

    def step(self):
        raise NotImplementedError("EXODUS has no call of one step")

    def specification(self):
        """Sinabs' own layer, in plain PyTorch."""
        return self._batch_first("sinabs.layers")

    def reset(self, module):
        for layer in module.modules():
            if isinstance(layer, BatchFirst):
                layer.layer.reset_states()


class BatchFirst(nn.Module):
    """A layer of [B, T, ...] as one of [T, B, ...]."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x_seq):
        return self.layer(x_seq.transpose(0, 1)).transpose(0, 1)


class SnnFastRLeaky(SnnFast):
    """snnfast's recurrent layer of snnTorch's family."""

    name = "snnfast-rleaky"

    def rlif(self, features):
        rleaky = self.library.RLeaky(beta=BETA, linear_features=features)
        return self.library.Unroll(nn.Sequential(nn.Linear(features, features), rleaky))

    def rlif_step(self, features):
        return RLeakyStep(import_module("snntorch"), features)


class Norse(Contender):
    """Norse's cell in a Python loop over time; where Norse is not installed, the one that published.py has of it."""

    name = package = "norse"

    def __init__(self):
        try:
            self.library = import_module("norse.torch")
        except ImportError:
            self.library = published

    @property
    def version(self):
        return "1.1.0 in plain PyTorch" if self.library is published else super().version

    def rlif(self, features):
        return CellLoop(_norse_cell(self.library, features))

    def rlif_step(self, features):
        return _norse_cell(published, features)


class NorseBox(Contender):
    """Norse's LIF without a synaptic current, a cell once per step; its Linears go over whole sequences.

    Another neuron than Leaky: it fires and resets in one step, with a gradient through the reset, by SuperSpike. Norse
    scales the input by 1 - beta, and so is the threshold.
    """

    name = "norse-lifbox"
    package = "norse"
    same_neuron = False
    exact = False
    wide_state = False
    dt = 0.001

    def __init__(self):
        super().__init__()
        self.norse = import_module("norse.torch")
        functional = import_module("norse.torch.functional.reset")
        self.parameters = self.norse.LIFBoxParameters(
            tau_mem_inv=torch.as_tensor((1 - BETA) / self.dt),
            v_th=torch.as_tensor((1 - BETA) * THRESHOLD),
            reset_method=functional.reset_subtract,
        )

    def _cell(self):
        return self.norse.LIFBoxCell(self.parameters, dt=self.dt)

    def lif(self):
        return CellLoop(self._cell())

    def step(self):
        return self._cell()

    def specification(self):
        """The Euler step that Norse documents, in units of the membrane."""
        fire, v_th = self.norse.functional.superspike.super_fn, (1 - BETA) * THRESHOLD

        def step(x, v):
            v = torch.zeros_like(x) if v is None else v
            decayed = v + (1 - BETA) * (x - v)
            spk = fire(decayed - v_th)
            return spk, decayed - spk * v_th

        return CellLoop(step)


class NorseCompiled(Compiled, Norse):
    """The same loop compiled. Without fullgraph: Norse's own cell reads its leak's value for the first state."""

    name = "norse-compile"
    fullgraph = False


class NorseBoxCompiled(Compiled, NorseBox):
    """The same of Norse's LIF without a synaptic current."""

    name = "norse-lifbox-compile"
    fullgraph = False


class OverJax(Contender):
    """Base of the libraries on JAX: other neurons than Leaky, with a gradient through the reset."""

    same_neuron = False
    exact = False
    devices = ("cpu",)
    compiles = True
    counted = autocasts = False

    def __init__(self):
        super().__init__()
        self.make = functools.partial(getattr(import_module("over_jax"), self.package), BETA, THRESHOLD)

    def lif(self):
        return self.make()

    def network(self, *linears):
        if not all(isinstance(linear, nn.Linear) for linear in linears):
            raise Refused("only its networks of dense layers are written here")
        return self.make(linears)

    def deep(self, build):
        raise Refused("only its networks of dense layers are written here")

    def step(self):
        raise NotImplementedError("a step of JAX within a loop of torch is no form that anybody uses")

    def rlif(self, features):
        return self.make([nn.Linear(features, features)], recurrent=nn.Linear(features, features, bias=False))

    def _fire(self):
        return import_module("snnfast.surrogate").atan(alpha=2.0)


class JaxPike(OverJax):
    """jaxpike's LIF, which resets in the step that fires, its input scaled by 1 - beta, and so is its threshold."""

    name = package = "jaxpike"

    def specification(self):
        """What it documents."""
        return CellLoop(lambda x, v: self._step(x, 0.0 if v is None else v))

    def rlif_step(self, features):
        """The same, its own spikes of the step before through a second weight."""
        return _RecurrentStep(features, lambda current, v, z: self._step(current, v))

    def _step(self, x, v):
        v_th, fire = (1 - BETA) * THRESHOLD, self._fire()
        v = BETA * v + (1 - BETA) * x
        spk = fire(v - v_th)
        return spk, v - spk * v_th


class Spyx(OverJax):
    """Spyx' LIF: Leaky's membranes, whose spikes come out one step later."""

    name = package = "spyx"

    def specification(self):
        """What it documents."""
        fire = self._fire()

        def step(x, v):
            v = torch.zeros_like(x) if v is None else v
            spk = fire(v - THRESHOLD)
            return spk, BETA * v + x - spk * THRESHOLD

        return CellLoop(step)

    def rlif_step(self, features):
        """The same, its own spikes through a second weight."""
        fire = self._fire()

        def update(current, v, z):
            v = BETA * v + current - z * THRESHOLD
            return fire(v - THRESHOLD), v

        return _RecurrentStep(features, update, delayed=True)


class _RecurrentStep(nn.Module):
    """`update(current, v, z)` to (spikes, v), z being the spikes of the step before, which a second weight adds.

    State (spikes, v, what the input weight gave); delayed: its current is heard one step later.
    """

    def __init__(self, features, update, delayed=False):
        super().__init__()
        self.linear = nn.Linear(features, features)
        self.recurrent = nn.Linear(features, features, bias=False)
        self._update, self._delayed = update, delayed

    def forward(self, x, state=None):
        z, v, before = state or (torch.zeros_like(x),) * 3
        now = self.linear(x)
        spk, v = self._update((before if self._delayed else now) + self.recurrent(z), v, z)
        return spk, (spk, v, now)


class TorchRnn(Contender):
    """torch.nn.RNN with tanh, cuDNN's on a GPU: a yardstick, since it is no spiking neuron."""

    name = "torch-rnn"
    package = "torch"
    same_neuron = False

    def __init__(self):
        super().__init__()
        # cuDNN's default is TF32, which no other contender computes in.
        torch.backends.cudnn.allow_tf32 = False

    def rlif(self, features):
        return _OutputOnly(nn.RNN(features, features))

    def rlif_step(self, features):
        return None


def _on_own_code(network):
    """The network on a copy of its forward's code: Dynamo keeps what it decided, such as not to compile, per code."""
    forward = type(network).forward
    copied = types.FunctionType(
        forward.__code__.replace(), forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__
    )
    network.forward = types.MethodType(copied, network)
    return network


class Torch(Contender):
    """A loop whose author writes the neuron in plain PyTorch."""

    name = package = "torch"

    def neurons(self, loop):
        return None

    def scanned(self, name, cell):
        return functools.partial(_looped, cell)


def _looped(cell, x, state):
    outs = []
    for step in x.unbind(0):
        out, state = cell(step, state)
        outs.append(out)
    return torch.stack(outs), state


class TorchCompiled(Torch):
    """The same under torch.compile."""

    name = "torch-compile"
    exact = False
    compiles = unrolls = True

    def prepared(self, network):
        return torch.compile(_on_own_code(network))


class SnnFastLoop(SnnFast):
    """The author's loop with snnfast's neurons: one launch per layer and step."""

    name = "snnfast-loop"

    @classmethod
    def runs(cls, loop):
        return loop.takes_leaky


class SnnFastLayer(SnnFast):
    """snnfast's layer in the place of a neuron in plain PyTorch, where it has one."""

    name = "snnfast-layer"

    def scanned(self, name, cell):
        if name != "leaky":
            raise Refused(f"no layer computes {name}")
        return self._leaky().unroll


class SnnFastRecorded(SnnFast):
    """The author's loop, with `import snnfast` for `import snntorch`, recorded as it runs: nothing is compiled."""

    name = "snnfast-record"
    waits = True
    # Products over whole sequences round otherwise than one product per step.
    exact = False

    @classmethod
    def runs(cls, loop):
        return True

    def neurons(self, loop):
        return self.library if loop.library == "snntorch" else None

    def prepared(self, network):
        return self.library.accelerate(network)


class SnnFastCompiled(SnnFastRecorded):
    """The same loop compiled by snnfast; a deep network, written over time already, by torch alone."""

    name = "snnfast-compile"
    compiles = True

    def prepared(self, network):
        return self.library.accelerate(_on_own_code(network), compile=True)

    def network(self, *linears):
        return torch.compile(super().network(*linears), dynamic=False)

    def deep(self, build):
        return torch.compile(super().deep(build), dynamic=False)


LAYER_CONTENDERS = (
    *(SnnFast, Reference, SnnTorch, SnnTorchCompiled, SnnTorchState, NorseBox, NorseBoxCompiled, JaxPike, Spyx),
    *(SpikingJelly, SpikingJellyCompiled, SpikingJellyTriton, SpikingJellyPrecision, SpikingJellyNative),
    *(SpikingJellyCupy, SinabsExodus),
)
RLIF_CONTENDERS = (
    *(SnnFast, Norse, NorseCompiled, SnnFastRLeaky, SnnTorch, SnnTorchCompiled, JaxPike, Spyx, TorchRnn),
)
ENCODING_CONTENDERS = (SnnFast, SnnTorch)
CELL_CONTENDERS = (SnnFast, SnnFastLayer, Torch)
LOOP_CONTENDERS = (SnnTorch, Torch, SnnFastLoop, SnnFastRecorded, SnnFastCompiled, SnnTorchCompiled, TorchCompiled)
DEEP_CONTENDERS = (
    *(SnnFast, SnnFastCompiled, SnnTorch, SnnTorchCompiled, NorseBox, NorseBoxCompiled),
    *(SpikingJelly, SpikingJellyCompiled, JaxPike, Spyx),
)
_ALL = *LAYER_CONTENDERS, *RLIF_CONTENDERS, *CELL_CONTENDERS, *LOOP_CONTENDERS, *DEEP_CONTENDERS
CONTENDERS = {contender.name: contender for contender in _ALL}
