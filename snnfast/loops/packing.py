"""Packing: what is pending of a period is computed, one call for all steps wherever that is known to do."""

import dataclasses
import itertools
from collections import Counter

import torch
from torch import Tensor

from .. import batch_norm, images, products
from ..compiler import rules
from . import cell, known
from .alone import call
from .batching import filled, rule_of, run_batched
from .linearity import adds_up
from .operation import LITERAL, MADE, NUMBER, REAL, SAME, Operation, Slot, step_outputs
from .period import Period
from .series import Numbers, Series, in_modes

ENOUGH = 4096
"""Numbers of a product that are compared with those of single steps before it is trusted to give their bits."""


class Window:
    """All that is pending of a period's operations, while it is computed. Nothing is changed before it is done."""

    def __init__(self, period: Period, exact: bool, builds: bool = True):
        """builds: whether cells are worth building."""
        self.period, self.exact, self.builds = period, exact, builds
        self.series: dict[tuple[Operation, int], Series] = {}
        self.last: dict[tuple[Operation, int], Tensor] = {}
        self.inner: set[tuple[Operation, int]] = set()
        """What is taken within one call, besides by others."""
        self.taken = set()
        self.done: dict[Operation, tuple[int, int]] = {}
        """Calls over time, and of single steps, that each operation took."""

    def run(self, early: set | None = None, held: set | None = None, as_written: bool = False) -> None:
        """Computes the series. early, held: (operation, output) that others than the loop have, of steps before the
        last, and of any; None: all are wanted."""
        self.early = early
        if as_written or self._adds_up_otherwise():
            self._replay([operation for operation in self.period.operations if operation.count])
            return
        self.uses = Counter(key for keys in self.period.taken for key in keys)
        self.uses.update(held or ())
        for part, keys in zip(self.period.parts, self.period.taken, strict=True):
            self.taken = keys if held is not None else set()
            pending = [operation for operation in part if operation.count]
            if not pending:
                continue
            if len(pending) == len(part) and self._as_cell(part, held):
                pass
            elif len(part) == 1 and part[0].is_chain and self._runs_as_sequence(part[0]):
                self._sequence(part[0])
            elif part[0].function is known.set_item and len(part) == 1 and self._written_at_once(part[0]):
                continue
            elif len(part) > 1 or part[0].is_step or part[0].needs_itself or not self._at_once(part[0]):
                self._replay(pending)
            self._let_go()

    def _adds_up_otherwise(self) -> bool:
        """Whether the gradients of some value would be added in another order than the loop's, to other bits."""
        return any(
            takers + (self.early is None or (operation, output) in self.early) > 2
            for operation, output, takers in self.period.unordered
        )

    def _as_cell(self, part: list[Operation], held: set | None) -> bool:
        """All steps of a neuron of the user's own in one launch; whether there is one."""
        own = self.period.cells.get(part[0])
        return own is not None and self.builds and cell.run(self, own, self.early, held)

    def _is_wanted(self, operation: Operation, output: int) -> bool:
        """Whether more than the last step of an output is wanted by others than the step itself."""
        taken = any(slot.output == output for _, slot in self.period.consumers[operation])
        return self.early is None or taken or (operation, output) in self.early

    def _let_go(self) -> None:
        """What was last taken, and is asked for no more, need not stay."""
        for key in self.taken:
            self.uses[key] -= 1
            if not self.uses[key]:
                self.series.pop(key, None)
        self.taken = set()

    @torch.no_grad()
    def differences(self, other: "Window") -> list[str]:
        """Where another computation of the window gave other values: layer or operation, output, step."""
        found = []
        for (operation, output), series in self.series.items():
            pairs = zip(series.apart(), other.series[operation, output].apart(), strict=True)
            for step, (one, two) in enumerate(pairs):
                if not torch.equal(one.nan_to_num(), two.nan_to_num()):
                    name = step_outputs(operation.function)[output] if operation.is_step else f"output {output}"
                    off = (one.double() - two.double()).abs().max().item()
                    found.append(f"{name} of {operation.name} differs by {off:.3g} at step {operation.start + step}")
                    break
        return found

    def input(self, operation: Operation, number: int):
        """What stands in a slot over the window: a Series, Numbers, or a value that is the same at every step."""
        slot, given = operation.slots[number], operation.given[number]
        if slot.kind in (SAME, LITERAL):
            return slot.what
        if slot.kind == NUMBER:
            return given[0] if all(one == given[0] for one in given) else Numbers(given)
        if slot.kind == REAL:
            summed = self.exact and given[0].requires_grad
            if all(one is given[0] for one in given) and not summed:
                return Series(operation.start, operation.count, steady=given[0])
            return Series(operation.start, operation.count, apart=given)
        rest = operation.count - len(given)
        start = operation.start + len(given)
        if not rest:
            return Series(operation.start, operation.count, apart=given)
        made = self.series[slot.what, slot.output].between(start - slot.lag, rest)
        made = Series(start, rest, made.steady, made._stack, made._apart)
        return made.after(given) if given else made

    def _runs_as_sequence(self, operation: Operation) -> bool:
        """Whether one launch gives a layer's steps to the bit: those with products in them are tried once."""
        layer = operation.function
        if self.exact and operation.modes[0] and any(one.requires_grad for one in layer._parameters_of_model()):
            # One sum over all steps is none of those that a loop adds up.
            return False
        if not layer._sums_otherwise_in_sequence():
            return True
        if not operation.by_steps:
            trial, alone = Window(self.period, self.exact), Window(self.period, self.exact)
            trial.series, alone.series = self.series.copy(), self.series.copy()
            with torch.no_grad():
                trial.early = None
                trial._sequence(operation)
                alone._replay([operation])
            operation.alone = bool(trial.differences(alone))
            operation.by_steps[None] = None
        return not (self.exact or operation.alone)

    def _sequence(self, operation: Operation) -> None:
        """All steps of a layer's in one launch."""
        layer, count = operation.function, operation.count
        current = _laid_as(operation.outputs[0], self.input(operation, 0).stack())
        self._let_go()
        states = [given[0] for given in operation.given[1:]]
        outputs = step_outputs(layer)
        every = any(self._is_wanted(operation, output) for output in range(1, len(outputs)))
        with in_modes(operation.modes):
            spk, last, seqs = layer._sequence(current, tuple(states), every)
        self.done[operation] = 1, 0
        self.series[operation, 0] = Series(operation.start, count, stack=spk)
        for output, name in enumerate(outputs):
            if output and every:
                self.series[operation, output] = Series(operation.start, count, stack=seqs[name])
            if name in last:
                self.last[operation, output] = last[name]

    def _at_once(self, operation: Operation) -> bool:
        """One call for all steps; whether there is one."""
        inputs = [self.input(operation, number) for number in range(len(operation.slots))]
        with in_modes(operation.modes):
            return (
                self._once(operation, inputs)
                or self._part_of_tensor(operation, inputs)
                or self._normalised(operation, inputs)
                or self._by_rule(operation, inputs)
            )

    def _once(self, operation: Operation, inputs: list) -> bool:
        """What is given the same at every step gives the same."""
        if any(isinstance(given, Numbers) or (isinstance(given, Series) and not given.is_steady) for given in inputs):
            return False
        given = [one.steady if isinstance(one, Series) else one for one in inputs]
        learns = any(like.requires_grad for like in operation.outputs)
        if operation.writes or (learns and (self.exact or not adds_up(operation, given))):
            return False
        outs = self.period.remembered(operation, given)
        if outs is None:
            self.done[operation] = 1, 0
            outs = self._alone(operation, given)
            self.period.remember(operation, given, outs)
        for output, out in enumerate(outs):
            self.series[operation, output] = Series(operation.start, operation.count, steady=out)
        return True

    def _alone(self, operation: Operation, given: list) -> tuple:
        """What a step gives, at the cost of snnfast's functions where that is torch's to the bit."""
        ours = None if self.exact else images.SAME.get(operation.function)
        if ours is None:
            return call(operation, given)
        args, kwargs = operation.values(given)
        return (ours(*args, **kwargs),)

    def _part_of_tensor(self, operation: Operation, inputs: list) -> bool:
        """`x[first]`, `x[first + 1]`, ... of one tensor, or `mem[:, 0]` of every step."""
        if operation.function is not Tensor.__getitem__ or not isinstance(inputs[0], Series):
            return False
        source, *index = inputs
        moving = [place for place, entry in enumerate(index) if isinstance(entry, Numbers)]
        if not all(_is_basic(entry) for place, entry in enumerate(index) if place not in moving):
            return False
        if not moving and source._stack is not None:
            made = source.stack()[(slice(None), *index)]
        elif len(moving) == 1 and source.is_steady:
            made = _steps_of_tensor(source.steady, index, moving[0])
        else:
            return False
        if made is None:
            return False
        self.done[operation] = 1, 0
        self.series[operation, 0] = Series(operation.start, operation.count, stack=made)
        return True

    def _written_at_once(self, operation: Operation) -> bool:
        """`x[first] = value`, `x[first + 1] = value`, ... of one tensor, as `x[first : first + T] = values`."""
        if self.exact or len(operation.slots) != 3 or len(operation.given[0]) != 1 or not operation.needs_itself:
            return False
        numbers, value = self.input(operation, 1), self.input(operation, 2)
        if not isinstance(numbers, Numbers) or not isinstance(value, Series):
            return False
        x, count = operation.given[0][0], operation.count
        first = numbers.run_within(len(x))
        if first is None or value.stack().shape[1:] != x.shape[1:]:
            return False
        with in_modes(operation.modes):
            x[first : first + count] = value.stack()
        self.done[operation] = 1, 0
        self.series[operation, 0] = Series(operation.start, count, apart=[x] * count)
        return True

    def _normalised(self, operation: Operation, inputs: list) -> bool:
        """Batch-norm in training, whose steps are normalised by themselves."""
        if self.exact or not rules.trains(operation.function, *operation.values(inputs)):
            return False
        x, *rest = inputs
        rest = [one.steady if isinstance(one, Series) and one.is_steady else one for one in rest]
        given = rules.given_to_batch_norm(operation.function, *operation.values([x, *rest]))
        momentum, eps = given.get("momentum", 0.1), given.get("eps", 1e-5)
        kept = [given.get(name) for name in (*rules.STATISTICS, "weight", "bias")]
        if not isinstance(x, Series) or any(isinstance(one, (Series, Numbers)) for one in (*kept, eps)):
            return False
        lanes = x.steady[None] if x.is_steady else x.stack()
        if not batch_norm.fits(lanes, *kept):
            return False
        # Should it fail, some of its statistics may have been written.
        self.done[operation] = 1, 0
        momenta = momentum if isinstance(momentum, Numbers) else [momentum] * operation.count
        out = batch_norm.over_time(lanes, *kept, momenta, eps)
        made = {"steady": out[0]} if x.is_steady else {"stack": out}
        self.series[operation, 0] = Series(operation.start, operation.count, **made)
        return True

    def _by_rule(self, operation: Operation, inputs: list) -> bool:
        if (
            operation.is_call
            or operation.writes
            or not operation.is_dense
            or any(slot.kind == NUMBER for slot in operation.slots)
        ):
            return False
        key = operation.count, tuple(isinstance(given, Series) and given.is_steady for given in inputs)
        if key not in operation.by_steps:
            operation.by_steps[key] = rule_of(operation, inputs)
        batched = operation.by_steps[key]
        if batched is None or (self.exact and not batched.exact):
            return False
        stacks = dict(enumerate(given for given in inputs if isinstance(given, Series)))
        if operation.function in known.PRODUCTS:
            out = self._product(operation, inputs, batched, stacks)
        else:
            out = run_batched(batched, stacks)
        self.done[operation] = 1, 0
        self.series[operation, 0] = Series(operation.start, operation.count, stack=out)
        return True

    def _product(self, operation: Operation, inputs: list, batched, stacks: dict[int, Series]) -> Tensor:
        """One product for all steps, of the values that they have alone: only its gradients may not be torch's."""
        factors = products.factors(batched.target, *filled(batched, stacks))
        if factors is None:
            out = self._torchs_product(operation, inputs, batched, stacks)
            return _WithValues.apply(out, self._values_of_steps(operation, inputs)) if operation.alone else out
        with torch.no_grad():
            values = self._product_in_order(operation, inputs, factors)
            if values is None and not operation.alone:
                made = self._torchs_product(operation, inputs, batched, stacks)
                values = None if operation.alone else made
            if values is None:
                values = self._values_of_steps(operation, inputs)
        return products.with_values(values, *factors)

    def _torchs_product(self, operation: Operation, inputs: list, batched, stacks: dict[int, Series]) -> Tensor:
        """Torch's product of all steps, and whether its sums are those of each step `alone`."""
        out = run_batched(dataclasses.replace(batched, target=products.torchs(batched.target)), stacks)
        if not operation.alone:
            operation.alone = not self._is_trusted(operation, inputs, out, operation.count)
        return out

    def _product_in_order(self, operation: Operation, inputs: list, factors: tuple) -> Tensor | None:
        """A product behind spikes of all steps, whose sums are added as in each step."""
        if operation.compared.get("in order", 0) is None:
            return None
        out = products.as_torch_adds(*factors, factors[0].shape[1:-1].numel())
        return out if out is not None and self._is_trusted(operation, inputs, out, "in order") else None

    @torch.no_grad()
    def _is_trusted(self, operation: Operation, inputs: list, out: Tensor, way: int | str) -> bool:
        """Whether steps are what they are alone. Seen for ENOUGH numbers: a few are often the same by chance."""
        compared = operation.compared.get(way, 0)
        if compared >= ENOUGH:
            return True
        size = max(1, out[0].numel())
        count = min(operation.count, max(2, -(-ENOUGH // size)))
        steps = {step * (operation.count - 1) // max(1, count - 1) for step in range(count)}
        operation.compared[way] = None
        for step in steps:
            leaves = [given.apart()[step] if isinstance(given, Series) else given for given in inputs]
            (alone,) = call(operation, leaves)
            if not torch.equal(alone, out[step]):
                return False
        operation.compared[way] = compared + len(steps) * size
        return True

    @torch.no_grad()
    def _values_of_steps(self, operation: Operation, inputs: list) -> Tensor:
        """What the steps of a product are alone, whose sums round otherwise than those of a larger one: spikes are to
        be the loop's. Their gradients are the larger one's."""
        columns = [given.apart() if isinstance(given, Series) else itertools.repeat(given) for given in inputs]
        steps = itertools.islice(zip(*columns, strict=False), operation.count)
        return torch.stack([call(operation, leaves)[0] for leaves in steps])

    def _replay(self, operations: list[Operation]) -> None:
        """Step by step, as written."""
        made = self.steps_alone(operations, dict.fromkeys(operations, 0))
        for operation in operations:
            self.done[operation] = 0, operation.count
            steps = [made[operation, operation.start + step] for step in range(operation.count)]
            for output in range(len(operation.outputs)):
                apart = [outs[output] for outs in steps]
                self.series[operation, output] = Series(operation.start, operation.count, apart=apart)

    def steps_alone(
        self,
        operations: list[Operation],
        shift: dict,
        start: int | None = None,
        end: int | None = None,
        made: dict | None = None,
    ) -> dict:
        """What steps give as written, by operation and period, in the order of the operations.

        Args:
            shift: of each operation how much later than its period its step is.
            start, end: the first step that is run, and the first that is not.
            made: what is known of earlier steps.
        """
        made = {} if made is None else made
        steps = [operation.start + shift[operation] for operation in operations]
        first = min(steps) if start is None else start
        if end is None:
            end = max(step + operation.count for step, operation in zip(steps, operations, strict=True))
        inputs = {operation: self._inputs_from_outside(operation, operations) for operation in operations}
        for number, operation in itertools.product(range(first, end), operations):
            period = number - shift[operation]
            step = period - operation.start
            if not 0 <= step < operation.count:
                continue
            leaves = []
            for slot, given, outside in zip(operation.slots, operation.given, inputs[operation], strict=True):
                if outside is not None:
                    leaves.append(outside[step])
                elif slot.kind == MADE and step >= len(given):
                    leaves.append(made[slot.what, period - slot.lag][slot.output])
                else:
                    leaves.append(given[step] if given else slot.what)
            with in_modes(operation.modes):
                made[operation, period] = call(operation, leaves)
        return made

    def _inputs_from_outside(self, operation: Operation, together: list[Operation]) -> list:
        """For each slot its values at every step, where another part of the period makes them."""
        return [
            self._steps_of(operation, slot, given) if slot.kind == MADE and slot.what not in together else None
            for slot, given in zip(operation.slots, operation.given, strict=True)
        ]

    def _steps_of(self, operation: Operation, slot: Slot, given: list) -> list:
        """What another part of the period gives to every step, the same tensors to all who ask."""
        rest = operation.count - len(given)
        if not rest:
            return given
        made = self.series[slot.what, slot.output]
        first = operation.start + len(given) - slot.lag - made.start
        return [*given, *made.apart()[first : first + rest]]


class _WithValues(torch.autograd.Function):
    """A tensor with other values, to rounding, and its own gradient."""

    @staticmethod
    def forward(ctx, x, values):
        return values

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def _laid_as(like, steps: Tensor) -> Tensor:
    """A current from which a layer's spikes and states come to lie as in the loop, where they may be transposed: a sum
    over them goes by that."""
    if steps.stride()[1:] == like.strides or not steps[0].numel():
        return steps
    dims = sorted(range(1, steps.dim()), key=lambda dim: -like.strides[dim - 1])
    order = [0, *dims]
    back = sorted(range(steps.dim()), key=order.__getitem__)
    return steps.permute(order).contiguous().permute(back)


def _is_basic(entry) -> bool:
    return isinstance(entry, (int, slice, type(None))) and not isinstance(entry, bool)


def _steps_of_tensor(x: Tensor, index: list, place: int) -> Tensor | None:
    """`x[..., first, ...]`, `x[..., first + 1, ...]`, ... as [T, ...]: the number stands at `place` of the index."""
    if any(entry != slice(None) for entry in index[:place]):
        return None
    first = index[place].run_within(x.shape[place])
    if first is None:
        return None
    steps = x.narrow(place, first, len(index[place])).movedim(place, 0)
    rest = index[:place] + index[place + 1 :]
    return steps[(slice(None), *rest)] if rest else steps
