"""The contenders: for each library its layers, its Linear-LIF-Linear-LIF network, and the published loops on it.

Layers and network run over whole sequences, time first, and return spikes only. A library is imported when its
contender is constructed, so a machine may lack any of them.
"""

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


class Contender:
    """One way to run a network.

    Attributes:
        package: the library whose version stands beside the name.
        same_neuron: whether its LIF layer computes Leaky.
        exact: whether its bits must be the specification's, where both do the same matrix products.
        compiles: whether the first call compiles.
        unrolls: whether that compiles a graph of all T steps.
    """

    name: str
    package: str
    same_neuron = True
    exact = True
    compiles = False
    unrolls = False

    def __init__(self):
        self.library = import_module(self.package)

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

    def rate_fc(self, fc1: nn.Linear, fc2: nn.Linear) -> nn.Module:
        """The network around two given Linears: [T, B, inputs] -> spikes [T, B, outputs]."""
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

    def specification(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What `lif` must compute: currents [T, B, N] -> spikes [T, B, N], differentiable."""
        return Reference().lif()

    def rlif_step(self, features: int) -> nn.Module | None:
        """One step of what `rlif` must compute: (spikes [B, N], state or None) -> (spikes, state).

        Parameters are those of `rlif` in order, the first state is the spikes. None: there is nothing to check against.
        """
        raise NotImplementedError

    def encoders(self) -> types.ModuleType:
        """The module of `rate`, `latency` and `delta`, with snnTorch's arguments."""
        raise NotImplementedError

    def reset(self, module: nn.Module) -> None:
        """Forgets the state that a run left in `module`."""


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

    def lif(self):
        return self.library.Unroll(self.library.Leaky(beta=BETA))

    def rate_fc(self, fc1, fc2):
        leaky = self.library.Leaky
        return self.library.Unroll(nn.Sequential(fc1, leaky(beta=BETA), fc2, leaky(beta=BETA)))

    def rlif(self, features):
        norse = import_module("snnfast.norse")
        return _OutputOnly(norse.LIFRecurrent(features, features, p=_norse_parameters(norse)))

    def rlif_step(self, features):
        return _norse_cell(published, features)

    def encoders(self):
        return self.library.encoding


class _OnReference(nn.Module):
    def __init__(self, library, module):
        super().__init__()
        self.library, self.module = library, module

    def forward(self, x_seq):
        with self.library.use_reference():
            return self.module(x_seq)


class Reference(SnnFast):
    """The same modules on snnfast's pure-PyTorch loop, the specification."""

    name = "reference"

    def lif(self):
        return _OnReference(self.library, super().lif())

    def rate_fc(self, fc1, fc2):
        return _OnReference(self.library, super().rate_fc(fc1, fc2))


class StepLoop(nn.Module):
    """snnTorch's published loop: the whole network once per step.

    `unbind`, because the backward of indexing `x_seq[t]` fills a whole sequence of zeros per step.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x_seq):
        return torch.stack([self.network(x) for x in x_seq.unbind(0)])


class RLeakyStep(nn.Module):
    """A Linear and snnTorch's RLeaky, one step: spikes [B, N] and state (spikes, membrane) to (spikes, state)."""

    def __init__(self, library, features):
        super().__init__()
        self.linear = nn.Linear(features, features)
        self.neuron = library.RLeaky(beta=BETA, linear_features=features)

    def forward(self, x, state=None):
        spk, mem = self.neuron(self.linear(x), *(state or self.neuron.reset_mem()))
        return spk, (spk, mem)


class SnnTorch(Contender):
    """snnTorch's own layers in a Python loop over time."""

    name = package = "snntorch"

    def _leaky(self):
        # A membrane passed as argument breaks the compiled graph: Leaky tests `mem == None`.
        return self.library.Leaky(beta=BETA, init_hidden=True)

    def lif(self):
        return StepLoop(self._leaky())

    def rate_fc(self, fc1, fc2):
        return StepLoop(nn.Sequential(fc1, self._leaky(), fc2, self._leaky()))

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


class SnnTorchCompiled(SnnTorch):
    """The same loops under torch.compile, which unrolls all T steps into one graph."""

    name = "snntorch-compile"
    # Inductor may contract a multiply and an add, which flips a spike now and then.
    exact = False
    compiles = unrolls = True

    def _compile(self, module):
        return torch.compile(module, dynamic=False, fullgraph=True)

    def lif(self):
        return self._compile(super().lif())

    def rate_fc(self, fc1, fc2):
        return self._compile(super().rate_fc(fc1, fc2))

    def rlif(self, features):
        return self._compile(super().rlif(features))

    def prepared(self, network):
        # Without fullgraph: in the published loops the membrane is an argument.
        return torch.compile(_on_own_code(network))


class SpikingJelly(Contender):
    """SpikingJelly's multi-step LIFNode; the library picks the fastest kernel it has built.

    Another neuron than Leaky: it resets in the step that fires and divides by tau, where Leaky
    waits a step and multiplies by beta.
    """

    name = package = "spikingjelly"
    same_neuron = False
    exact = False
    tau = 1 / (1 - BETA)

    def __init__(self):
        super().__init__()
        self.activation_based = import_module("spikingjelly.activation_based")
        for module in ("neuron", "functional", "surrogate"):
            import_module(f"spikingjelly.activation_based.{module}")

    def _surrogate(self):
        return self.activation_based.surrogate.ATan(alpha=2.0)

    def lif(self):
        return self.activation_based.neuron.LIFNode(
            tau=self.tau,
            decay_input=False,
            v_threshold=THRESHOLD,
            v_reset=None,
            surrogate_function=self._surrogate(),
            detach_reset=True,
            step_mode="m",
            store_v_seq=False,
        )

    def rate_fc(self, fc1, fc2):
        return nn.Sequential(fc1, self.lif(), fc2, self.lif())

    def specification(self):
        """The recurrence that SpikingJelly documents for these options."""
        fire = self._surrogate()

        def recurrence(x_seq):
            v = x_seq.new_zeros(x_seq.shape[1:])
            spikes = []
            for x in x_seq.unbind(0):
                h = v - v / self.tau + x
                spk = fire(h - THRESHOLD)
                v = h - spk.detach() * THRESHOLD
                spikes.append(spk)
            return torch.stack(spikes)

        return recurrence

    def reset(self, module):
        self.activation_based.functional.reset_net(module)


class SnnFastRLeaky(SnnFast):
    """snnfast's recurrent layer of snnTorch's family."""

    name = "snnfast-rleaky"

    def rlif(self, features):
        rleaky = self.library.RLeaky(beta=BETA, linear_features=features)
        return self.library.Unroll(nn.Sequential(nn.Linear(features, features), rleaky))

    def rlif_step(self, features):
        return RLeakyStep(import_module("snntorch"), features)


class CellLoop(nn.Module):
    """Norse's published loop: a cell once per step, handed its state."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x_seq):
        state, spikes = None, []
        for x in x_seq.unbind(0):
            spk, state = self.cell(x, state)
            spikes.append(spk)
        return torch.stack(spikes)


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


class NorseCompiled(Norse):
    """The same loop under torch.compile."""

    name = "norse-compile"
    compiles = unrolls = True

    def rlif(self, features):
        # Without fullgraph: Norse's own cell reads its leak's value for the first state.
        return torch.compile(super().rlif(features), dynamic=False)


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


class SnnFastCompiled(SnnFast):
    """The author's loop, with `import snnfast` for `import snntorch`, compiled by snnfast."""

    name = "snnfast-compile"
    # Products over whole sequences round otherwise than one product per step.
    exact = False
    compiles = True

    @classmethod
    def runs(cls, loop):
        return True

    def neurons(self, loop):
        return self.library if loop.library == "snntorch" else None

    def prepared(self, network):
        return self.library.accelerate(_on_own_code(network))


LAYER_CONTENDERS = (SnnFast, Reference, SnnTorch, SnnTorchCompiled, SpikingJelly)
RLIF_CONTENDERS = (SnnFast, Norse, NorseCompiled, SnnFastRLeaky, SnnTorch, SnnTorchCompiled, TorchRnn)
ENCODING_CONTENDERS = (SnnFast, SnnTorch)
LOOP_CONTENDERS = (SnnTorch, Torch, SnnFastLoop, SnnFastCompiled, SnnTorchCompiled, TorchCompiled)
CONTENDERS = {contender.name: contender for contender in (*LAYER_CONTENDERS, *RLIF_CONTENDERS, *LOOP_CONTENDERS)}
