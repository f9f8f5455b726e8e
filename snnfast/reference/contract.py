"""Whether a model's functions do what the model says of them; where they do not, gradients elsewhere would be wrong."""

import torch

from .firing import Call

NEURONS = 16


def check(model) -> None:
    """Runs steps of a `Model` on a few numbers.

    Raises:
        ValueError: the model is not as it says, with the name of the function or attribute at fault.
    """
    _check_names(model)
    with torch.inference_mode(False), torch.enable_grad():
        for reset_mechanism in ("subtract", "zero"):
            for reset_delay in (True, False) if model.delay_optional else (True,):
                _Step(model, reset_mechanism, reset_delay).check()


def _require(holds: bool, model, rule: str) -> None:
    if not holds:
        raise ValueError(f"model {model.name}: {rule}")


def _check_names(model) -> None:
    for kind in ("states", "params", "needed", "changed", "held"):
        names = getattr(model, kind)
        distinct = isinstance(names, tuple) and len(set(names)) == len(names) and all(map(str.isidentifier, names))
        _require(distinct, model, f"{kind} must be a tuple of distinct names, got {names!r}")
    _require(len(model.states) > 0, model, "states must not be empty")
    for kind in ("needed", "changed", "held"):
        names = getattr(model, kind)
        _require({*names} <= {*model.states}, model, f"{kind} must be among states, {model.states}; got {names}")
    first, last = model.states[: len(model.needed)], model.states[-1]
    _require(model.needed == first, model, f"needed must be the first of states, {model.states}; got {model.needed}")
    known = model.output in (None, last)
    _require(known, model, f"output must be {last!r}, the last of states, or None; got {model.output!r}")


class _Step:
    """A step of 16 neurons, whose surrogate keeps what it is asked."""

    def __init__(self, model, reset_mechanism: str, reset_delay: bool):
        self.model = model
        self.asked = []
        self.call = Call(self._spike_grad, reset_mechanism, reset_delay)
        self.kept = model.kept(reset_delay)
        self.x = _numbers(1 + model.recurrent, 1)
        self.before = [state.requires_grad_() for state in _numbers(len(model.states), 2)]
        self.params = tuple(number.abs() * 0.4 + 0.3 for number in _numbers(len(model.params), 3))
        self.reset = self._reset(self.before)

    def check(self) -> None:
        charged = self._charge(1)
        self._check_reset()
        self._check_charge(charged)
        self._check_current(charged)
        self._check_fire(charged)

    def _require(self, holds: bool, rule: str) -> None:
        _require(holds, self.model, rule)

    def _spike_grad(self, u):
        self.asked.append(u)
        smooth = torch.sigmoid(u)
        return (smooth - smooth.detach()) + (u > 0)

    def _reset(self, states):
        return self.model.reset(tuple(states), self.params, self.call)

    def _charge(self, factor: int) -> tuple:
        x, before = (tuple(factor * tensor for tensor in tensors) for tensors in (self.x, self.before))
        return self.model.charge(x if self.model.recurrent else x[0], before, self.params, self.reset, self.call)

    def _fire(self, charged) -> tuple:
        return self.model.fire(tuple(charged), self.reset, self.params, self.call)

    def _check_reset(self) -> None:
        if self.reset is None:
            return
        self._require(not self.reset.requires_grad, "reset must have no gradient")
        same = torch.equal(self.reset, self._reset(self._with_other_values(self.before, ())))
        self._require(same, f"reset reads states that are not needed; needed are {self.model.needed}")

    def _check_charge(self, charged) -> None:
        count = len(self.model.states)
        self._require(len(charged) == count, f"charge must return {count} states, got {len(charged)}")
        for name, earlier, later in zip(self.model.states, self.before, charged, strict=True):
            same = name not in self.model.held or torch.equal(earlier, later)
            self._require(same, f"charge changes {name}, which is said to be held")
        columns = zip(charged, self._charge(2), self._charge(0), strict=True)
        linear = all(torch.allclose(once + once, twice + none) for once, twice, none in columns)
        self._require(linear, "charge must be linear in x and states")

    def _check_current(self, charged) -> None:
        """The parameters' gradients at the current that backward has."""
        found = [torch.zeros_like(x) for x in self.x]
        if self.model.current is not None:
            current = self.model.current(tuple(self.before), charged, self.params, self.reset, self.call)
            found = [current / len(self.x)] * len(self.x)
        pairs = zip(self._gradients_of_params(self.x), self._gradients_of_params(found), strict=True)
        same = all(torch.allclose(right, ours) for right, ours in pairs)
        self._require(same, "current must be the step's current where the parameters' gradients depend on it")

    def _gradients_of_params(self, x) -> list:
        params = [param.detach().requires_grad_() for param in self.params]
        current = tuple(x) if self.model.recurrent else x[0]
        before = tuple(state.detach() for state in self.before)
        charged = self.model.charge(current, before, tuple(params), self.reset, self.call)
        return _gradients(charged, params)

    def _check_fire(self, charged) -> None:
        model, count = self.model, len(self.model.states)
        self.asked.clear()
        _, after = self._fire(charged)
        self._require(len(after) == count, f"fire must return {count} states, got {len(after)}")
        expected = [charged[0] - model.threshold(tuple(charged), self.params)] if model.spikes else []
        asks = len(self.asked) == len(expected) and all(map(torch.equal, self.asked, expected))
        rule = f"once, on {model.states[0]} less threshold(...)" if model.spikes else "not at all"
        self._require(asks, f"fire must call spike_grad {rule}")
        for name, earlier, later in zip(model.states, charged, after, strict=True):
            same = name in (*model.changed, *self.kept) or torch.equal(earlier, later)
            self._require(same, f"fire changes {name}; changed are {model.changed}")
        others = self._with_other_values(charged, self.kept)
        same = all(map(torch.equal, self._gradients(charged), self._gradients(others)))
        self._require(same, f"fire's gradients depend on states that are not needed; needed are {model.needed}")

    def _with_other_values(self, states, kept) -> list:
        """The states, but for other values of those that backward has not."""
        known = {*self.model.needed, *kept}
        pairs = zip(self.model.states, states, strict=True)
        return [state if name in known else state + 0.7 for name, state in pairs]

    def _gradients(self, charged) -> list:
        leaves = [state.detach().requires_grad_() for state in charged]
        spk, after = self._fire(leaves)
        return _gradients((spk, *after), leaves)


def _gradients(outputs, leaves) -> list:
    outputs = [output for output in outputs if output.requires_grad]
    weights = _numbers(len(outputs), 5)
    return list(torch.autograd.grad(outputs, leaves, weights, allow_unused=True, materialize_grads=True))


def _numbers(count: int, seed: int) -> list:
    """Tensors [NEURONS] of numbers around 0, from no generator: whose state is the user's."""
    turns = torch.arange(count * NEURONS, dtype=torch.float64, device="cpu").view(count, NEURONS)
    return list(torch.sin(turns * 1.7 + seed) * 1.5)
