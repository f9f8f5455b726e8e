"""Surrogate gradients, named and parametrised as in `snntorch.surrogate`.

A spike is a Heaviside step of `u = mem - threshold`: 1 where u > 0, else 0. Its derivative is replaced in backward by a
surrogate. Here a surrogate is a small frozen object: callable like snnTorch's closures (`surrogate(u) -> spikes`, any
floating dtype, same shape), picklable, and known by name to the kernels. Formulas are those that snnTorch 1.0.0
computes (snntorch/surrogate.py), which now and then differ from its documentation, and for `triangle`, `tanh`, `circ`
and `erfc` those of Norse 1.1.0 (norse/torch/functional/threshold.py). `go` is the gradient arriving at the spike.
"""

import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import transforms
from .snntorchs import fallback
from .spike import derivative, fire, inclusive_step, maker_and_numbers

_from_snntorch, __dir__ = fallback(__name__)
__path__ = []

__all__ = [
    "SFS",
    "Surrogate",
    "atan",
    "circ",
    "disabled",
    "erfc",
    "evaluated",
    "fast_sigmoid",
    "heaviside",
    "logistic",
    "resolve",
    "sigmoid",
    "spike_rate_escape",
    "straight_through_estimator",
    "tanh",
    "triangle",
    "triangular",
]


def __getattr__(name: str) -> Any:
    return _from_snntorch(name)


@dataclass(frozen=True)
class Surrogate:
    """Base class. Calling one fires spikes whose backward is `gradient`.

    Examples:
        >>> u = torch.tensor([-0.5, 0.5], requires_grad=True)
        >>> snn.surrogate.fast_sigmoid(25)(u).sum().backward()
        >>> u.grad
        tensor([0.0055, 0.0055])
    """

    @property
    def name(self) -> str:
        """The name by which the kernels know it."""
        return type(self).__name__

    @property
    def key(self) -> tuple[str, list[float]]:
        """Name and numbers by which `named` finds it again in this process."""
        return type(self).__name__, [float(getattr(self, field.name)) for field in fields(self)]

    @property
    def constants(self) -> list[float]:
        """What the kernel computes with, folded in double as Python folds it in snnTorch's expressions."""
        return [float(getattr(self, field.name)) for field in fields(self)]

    # Without an annotation, which would put it first among the fields of the subclasses where it is one.
    inclusive = False
    """Whether it fires at the threshold too, as u >= 0 does, and not only above it."""

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        """dL/du from `u = mem - threshold` and `go` = dL/dspike, all of one shape, in differentiable operations."""
        raise NotImplementedError

    def fires(self, u: Tensor) -> Tensor:
        """The step function of u, without gradient."""
        return ((u >= 0) if self.inclusive else (u > 0)).to(u.dtype)

    def __call__(self, u: Tensor) -> Tensor:
        return fire(u, self)


@dataclass(frozen=True)
class atan(Surrogate):
    """`alpha/2 / (1 + (pi/2 * alpha * u)**2) * go`: snnTorch's default.

    Source: W. Fang et al., "Incorporating Learnable Membrane Time Constant to Enhance Learning of Spiking Neural
    Networks", ICCV (2021).

    Examples:
        >>> snn.surrogate.atan()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    alpha: float = 2.0

    @property
    def constants(self) -> list[float]:
        return [math.pi / 2 * self.alpha, self.alpha / 2]

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u) ** 2) * go


@dataclass(frozen=True)
class fast_sigmoid(Surrogate):
    """`go / (slope * |u| + 1)**2`.

    Source: F. Zenke and S. Ganguli, "SuperSpike: Supervised Learning in Multilayer Spiking Neural Networks", Neural
    Computation 30 (2018).

    Examples:
        >>> snn.surrogate.fast_sigmoid()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    slope: float = 25.0

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        return go / (self.slope * u.abs() + 1.0) ** 2


@dataclass(frozen=True)
class sigmoid(Surrogate):
    """`go * slope * e / (e + 1)**2` with `e = exp(-|slope * u|)`: finite where snnTorch 1.0.0 overflows to NaN.

    Source: F. Zenke and S. Ganguli, "SuperSpike", Neural Computation 30 (2018).

    Examples:
        >>> snn.surrogate.sigmoid()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    slope: float = 25.0

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        e = torch.exp(-(self.slope * u).abs())
        return go * self.slope * e / (e + 1) ** 2


@dataclass(frozen=True)
class straight_through_estimator(Surrogate):
    """`go`.

    Source: Y. Bengio, N. Léonard and A. Courville, "Estimating or Propagating Gradients Through Stochastic Neurons",
    arXiv:1308.3432 (2013).

    Examples:
        >>> snn.surrogate.straight_through_estimator()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        return go


@dataclass(frozen=True)
class triangular(Surrogate):
    """`go * threshold` where u < 0, else `-go * threshold`: what snnTorch computes, which is not a triangle.

    Source: snnTorch 1.0.0; the triangle that it is named after is S. K. Esser et al., PNAS 113 (2016).

    Examples:
        >>> snn.surrogate.triangular()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    threshold: float = 1.0

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        scaled = go * self.threshold
        return torch.where(u >= 0, -scaled, scaled)


@dataclass(frozen=True)
class heaviside(Surrogate):
    """`go * (u > 0)`.

    Source: snnTorch 1.0.0.

    Examples:
        >>> snn.surrogate.heaviside()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        return go * (u > 0).to(u.dtype)


@dataclass(frozen=True)
class spike_rate_escape(Surrogate):
    """`go * slope * exp(-beta * |u - 1|)`.

    Source: W. Gerstner and W. M. Kistler, Spiking Neuron Models, Cambridge University Press (2002).

    Examples:
        >>> snn.surrogate.spike_rate_escape()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    beta: float = 1.0
    slope: float = 25.0

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        return go * self.slope * torch.exp(-self.beta * (u - 1).abs())


@dataclass(frozen=True)
class SFS(Surrogate):
    """Sparse fast sigmoid: `go / (slope * |u| + 1)**2 * (u > B)`.

    Source: N. Perez-Nieves and D. F. M. Goodman, "Sparse Spiking Gradient Descent", NeurIPS (2021).

    Examples:
        >>> snn.surrogate.SFS()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    slope: float = 25.0
    B: float = 1.0

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        return go / (self.slope * u.abs() + 1.0) ** 2 * (u > self.B).to(u.dtype)


@dataclass(frozen=True)
class logistic(Surrogate):
    """`go * s * (1 - s)` with `s = 1 / (1 + exp(-slope * u))`: without the factor slope that its derivative has.

    With `inclusive`, a spike is u >= 0, not u > 0.

    Source: a factor of the derivative of the logistic function, as in E. O. Neftci, H. Mostafa and F. Zenke, "Surrogate
    Gradient Learning in Spiking Neural Networks", IEEE Signal Processing Magazine 36 (2019).

    Examples:
        >>> snn.surrogate.logistic()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    slope: float = 10.0
    inclusive: bool = False

    def __post_init__(self):
        object.__setattr__(self, "inclusive", bool(self.inclusive))

    @property
    def constants(self) -> list[float]:
        return [float(self.slope)]

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        s = torch.sigmoid(self.slope * u)
        return go * s * (1 - s)


@dataclass(frozen=True)
class triangle(Surrogate):
    """`go * alpha * max(0, 1 - |u|)`.

    Source: Norse 1.1.0, after G. Bellec et al., "Long short-term memory and learning-to-learn in networks of spiking
    neurons", NeurIPS (2018).

    Examples:
        >>> snn.surrogate.triangle()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    alpha: float = 100.0

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        return go * self.alpha * torch.relu(1 - u.abs())


@dataclass(frozen=True)
class tanh(Surrogate):
    """`go * (1 - tanh(k * u)**2)`.

    Source: Norse 1.1.0.

    Examples:
        >>> snn.surrogate.tanh()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    k: float = 100.0

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        return go * (1 - torch.tanh(u * self.k) ** 2)


@dataclass(frozen=True)
class circ(Surrogate):
    """`go * alpha**3 / (alpha**2 + u**2)**1.5`, in Norse's two terms.

    Source: Norse 1.1.0.

    Examples:
        >>> snn.surrogate.circ()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    alpha: float = 100.0

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        square = self.alpha**2 + u**2
        return go * (-(u**2 / (2 * square**1.5)) + 1 / (2 * square.sqrt())) * 2 * self.alpha


@dataclass(frozen=True)
class erfc(Surrogate):
    """`2 * exp(-(k * u)**2) / sqrt(pi) * go`: Norse's "heavi_erfc".

    Source: Norse 1.1.0.

    Examples:
        >>> snn.surrogate.erfc()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    k: float = 100.0

    @property
    def constants(self) -> list[float]:
        return [float(self.k), math.sqrt(math.pi)]

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        return 2 * torch.exp(-((self.k * u) ** 2)) / math.sqrt(math.pi) * go


@dataclass(frozen=True)
class disabled(Surrogate):
    """No gradient through the spike (`surrogate_disable=True`).

    Examples:
        >>> snn.surrogate.disabled()(torch.tensor([-0.5, 0.5]))
        tensor([0., 1.])
    """

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        return torch.zeros_like(go)

    def __call__(self, u: Tensor) -> Tensor:
        return self.fires(u)


@dataclass(frozen=True)
class evaluated(Surrogate):
    """Any other surrogate whose forward is the plain step: its derivative is evaluated by autograd, once for all steps.

    `function` maps u to spikes, u > 0 or with `inclusive` u >= 0; its gradient must be elementwise in u and linear in
    the incoming gradient. In a captured graph a number stands for the function, as long as somebody holds this object.

    Examples:
        >>> snn.surrogate.resolve(snn.surrogate.atan(3.0).__call__)(torch.tensor([-0.5, 0.5])).detach()
        tensor([0., 1.])
    """

    function: Callable[[Tensor], Tensor]
    inclusive: bool = False

    constants: ClassVar[list[float]] = []

    def __post_init__(self):
        object.__setattr__(self, "_number", next(_numbers))
        _evaluated[self._number] = self

    def __reduce__(self):
        return evaluated, (self.function, self.inclusive)

    @property
    def key(self) -> tuple[str, list[float]]:
        return "evaluated", [float(self._number)]

    def derivative(self, u: Tensor) -> Tensor:
        """d spike / du at every element of `u`, with u's shape and dtype."""
        return derivative(self.function, u)

    def gradient(self, u: Tensor, go: Tensor) -> Tensor:
        return self.derivative(u) * go

    def __call__(self, u: Tensor) -> Tensor:
        return super().__call__(u) if transforms.at_work() else self.function(u)


_NAMED = {known.__name__: known for known in Surrogate.__subclasses__() if known not in (disabled, evaluated)}
_KNOWN = {*_NAMED.values(), disabled, evaluated}
_numbers = itertools.count()
_evaluated = weakref.WeakValueDictionary()


def named(name: str, arguments: Sequence[float]) -> Surrogate:
    """The surrogate of a `key`."""
    if name == "evaluated":
        return _evaluated[int(arguments[0])]
    return {**_NAMED, "disabled": disabled}[name](*arguments)


def resolve(spike_grad: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    """Finds the fused form of a surrogate.

    Args:
        spike_grad: None (atan, snnTorch's default), a `Surrogate`, one of snnTorch's closures such as
            `snntorch.surrogate.fast_sigmoid(slope=25)`, or any callable from `mem - threshold` to spikes, which fires
            above the threshold or at it too.

    Returns:
        A `Surrogate`, which the kernels know how to differentiate, or `spike_grad` itself where it does not fire with a
        plain step function or learns parameters of its own; such a layer runs the reference loop.

    Raises:
        TypeError: `spike_grad` is not callable.

    Examples:
        >>> import snntorch
        >>> snn.surrogate.resolve(snntorch.surrogate.fast_sigmoid(slope=10))
        fast_sigmoid(slope=10.0)
    """
    if spike_grad is None:
        return atan()
    if type(spike_grad) in _KNOWN:
        return spike_grad
    if isinstance(spike_grad, type):
        raise TypeError(f"spike_grad must be an instance, such as {spike_grad.__name__}(), got the class")
    if not callable(spike_grad):
        raise TypeError(f"spike_grad must be callable or None, got {type(spike_grad).__name__}")
    named = named_in_snntorch(spike_grad)
    if named is not None:
        return named
    inclusive = inclusive_step(spike_grad)
    return spike_grad if inclusive is None else evaluated(spike_grad, inclusive)


def named_in_snntorch(spike_grad: Any) -> Surrogate | None:
    """The surrogate that snnTorch's own closure stands for."""
    name, numbers = maker_and_numbers(spike_grad, "snntorch.surrogate")
    surrogate = _NAMED.get(name)
    if surrogate is None or set(numbers) != {field.name for field in fields(surrogate)}:
        return None
    return surrogate(**numbers)
