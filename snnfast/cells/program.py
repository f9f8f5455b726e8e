"""A traced cell as two kernels over whole sequences, and their autograd."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from .. import ops, transforms
from .backward import Backward
from .building import BuildFailed
from .cuda import CudaKernel
from .kernel import NO_ROWS, CpuKernel, Kernel, contiguous, rows
from .lanes import Lanes
from .recurrence import Call as RecurrenceCall
from .recurrence import Recurrence
from .surroundings import Surroundings
from .tracing import Present, Refused, Step, Tracer, lock

KERNELS: dict[str, type[Kernel]] = {"cpu": CpuKernel, "cuda": CudaKernel}
"""By type of device."""

_STEPS_TRIED = 3

_STATES_RUN_AGAIN = 256
"""Bytes of a neuron's states that backward has again at a time: a tile of them (csrc/cpu/rows.h) stays in the cache."""

Cell = tuple[Step, Surroundings]
"""A cell that runs, with the key of its program's."""


class Program:
    """One step of a cell for inputs and states of these shapes and dtypes, which any cell with equal surroundings runs.

    Args:
        step: the cell, on tuples of tensors.
        xs, states: a step's, all of one shape.
        surroundings: of the cell.

    Raises:
        Refused: the cell cannot be fused.
        BuildFailed: there is no compiler, or it failed.
    """

    def __init__(self, step: Step, xs: Sequence[Tensor], states: Sequence[Tensor], surroundings: Surroundings):
        self.shape, self.device = xs[0].shape, xs[0].device
        self._check(xs, states)
        self.kernels = KERNELS[self.device.type]
        self._tracer = Tracer(xs, states, surroundings.tensors)
        self._traced = self._tracer.forward(step, surroundings)
        if self._tracer.forward(step, surroundings).module.code != self._traced.module.code:
            raise Refused("its step reads, or draws in Python, what changes from step to step")
        ins, count = len(xs), len(states)
        self._names = [*(f"rows.x[{k}]" for k in range(ins)), *(f"rows.previous[{k}]" for k in range(count))]
        self._names += [None] * len(surroundings.tensors)
        self._lanes = Lanes(self._traced.module, self._names, self.shape, self.kernels.operators)
        self.dtype = self._lanes.dtype
        self.places = self._traced.out_is_state
        outs = len(self.places)
        self._out_dtypes = [node.meta["val"].dtype for node in self._lanes.outputs]
        self._out_names = [f"rows.grad_out[{k}]" for k in range(sum(place is None for place in self.places))]
        self.recurrence = Recurrence(self._lanes, ins)
        if len(self.recurrence) and not self.kernels.multiplies:
            raise Refused(f"its states come back through weights, of which there is no kernel on {self.device.type}")
        self.ins, products = ins, len(self.recurrence)
        self.counts = {"ins": ins + products, "outs": len(self._out_names), "states": count}
        self.counts |= {"products": products, "first_product": ins}
        if self._lanes.written:
            self._refuse_written(ins)
        own = [node for node, place in zip(self._lanes.outputs[:outs], self.places, strict=True) if place is None]
        self.in_dtype = self.kernels.storage([x.dtype for x in xs], self.dtype)
        self.out_dtype = self.kernels.storage([node.meta["val"].dtype for node in own], self.dtype)
        stores = [(node, f"rows.out[{k}]") for k, node in enumerate(own)]
        stores += [(node, f"rows.next[{k}]") for k, node in enumerate(self._lanes.outputs[outs:])]
        kept, names = self._lanes.row_functions(), self._lanes.identities()
        self._kept = {names[node]: k for k, node in enumerate(kept)}
        stores += [(node, f"rows.out[{k}]") for k, node in enumerate(kept, len(own))]
        self._forward = self.kernel([self._lanes], [stores], {**self.counts, "outs": len(own) + len(kept)})
        # Storing states costs more than running a few cheap operations again.
        seen = products or kept or self._lanes.written or any(place is not None for place in self.places)
        self.rerun = (self._lanes, stores) if self.kernels.reruns and count and not seen else None
        self.every = max(4, _STATES_RUN_AGAIN // (count * self.dtype.itemsize)) if self.rerun else 1
        self.counts_back = {**self.counts, "ins": self.counts["ins"] + len(kept)}
        self._reread: set[int] | None = None
        self._joints = {}
        self._backwards = {}
        self._differentiated = None
        self._tried: dict[tuple, str | None] = {}
        self.out_form = None  # how `scan` nests the outputs
        self.learns = [tensor.requires_grad for tensor in surroundings.tensors]

    @property
    def writes_states(self) -> bool:
        """Whether the step writes to its states in place, as a loop's first one does to the user's."""
        return bool(self._lanes.written)

    def _check(self, xs, states) -> None:
        for tensor in (*xs, *states):
            if tensor.device.type not in KERNELS or tensor.layout != torch.strided:
                raise Refused(f"it runs on {tensor.device.type}")
            if tensor.device != self.device:
                raise Refused(f"an input or state is on {tensor.device}, another on {self.device}")
            if tensor.shape != self.shape:
                raise Refused(f"an input or state has shape {tuple(tensor.shape)}, another {tuple(self.shape)}")

    def _refuse_written(self, ins: int) -> None:
        if any(self._lanes.rows.get(node, "rows.x").startswith("rows.x") for node in self._lanes.written):
            raise Refused("its step writes to its input, or to a tensor it shares, in place")
        shared = [node for node in self._lanes.outputs[: len(self.places)] if node in self._lanes.rows]
        if shared or any(place is not None for place in self.places):
            raise Refused("its step writes in place to states that it has given out")

    def kernel(self, variants: Sequence[Lanes], stores: Sequence[list], counts: dict, terms=None, *rest) -> Kernel:
        """A kernel of this program's."""
        return self.kernels(variants, stores, counts, terms, (self.in_dtype, self.out_dtype), self.device, *rest)

    def run(self, cell: Cell, xs: Sequence[Tensor], states: Sequence[Tensor], heads: Sequence[Tensor] = ()):
        """All steps: outputs [T, ...] and the last states.

        Args:
            xs: [T, ...]; states: those before the first step.
            heads: outputs of a step before the first, to stand before the others [1 + T, ...]. Those that are states of
                the cell's are those that `states` holds: their gradient comes with that of the states, in a loop's
                order.
        """
        if not all(states[k].is_contiguous() for k in self.recurrence.states):
            raise Refused("a product takes a first state that does not lie in memory row by row")
        self.check_layout(xs, states)
        tensors = cell[1].tensors
        differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (*xs, *states, *tensors, *heads))
        self._try(cell, xs, states, differentiated)
        ops.tell("cell", (*xs, *states), len(xs[0]))
        return self._run(cell, xs, states, tensors, differentiated, heads)

    def check_layout(self, xs: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        """Raises Refused where ATen would compute something otherwise for how these lie in memory."""
        if self._forward.tails and not all(x[:1].is_contiguous() for x in (*xs, *(state[None] for state in states))):
            names = ", ".join(map(str, self._forward.tails))
            raise Refused(f"{names}: ATen rounds it otherwise where inputs and states do not lie row by row")

    def _run(self, cell, xs, states, tensors, differentiated, heads=()):
        if differentiated:
            counts = len(xs), len(states), len(tensors)
            found = _Sequence.apply(self, cell, counts, *xs, *states, *tensors, *heads)
        else:
            outs, last, _ = self.forward(xs, states, tensors, heads)
            found = *outs, *last
        return found[: len(self.places)], found[len(self.places) :]

    def _try(self, cell, xs, states, differentiated) -> None:
        """Compares a few steps with the loop's, once: nobody has seen this cell in this torch on this machine."""
        how = differentiated, torch.get_num_threads()
        if how not in self._tried and len(xs[0]) and self.shape.numel():
            try:
                self._tried[how] = self._trial(cell, xs, states, differentiated)
            except Refused as refused:
                self._tried[how] = str(refused)
        if self._tried.get(how):
            raise Refused(self._tried[how])

    def _trial(self, cell, xs, states, differentiated) -> str | None:
        """What differs."""
        step, surroundings = cell
        given = [x[:_STEPS_TRIED].detach() for x in xs], [state.detach() for state in states]

        def leaves(tensors):
            return [t.clone().requires_grad_(differentiated and t.is_floating_point()) for t in tensors]

        results = []
        for fused in (False, True):
            xs, states = map(leaves, given)
            try:
                if fused:
                    outs, last = self._run(cell, xs, states, surroundings.tensors, differentiated)
                else:
                    outs, last = run_loop(step, xs, [state.clone() for state in states])
                # Those of the tensors are sums, which round otherwise.
                grads = self._gradients_tried(outs, [*xs, *states]) if differentiated else []
            except (Refused, BuildFailed):
                raise
            except Exception as error:  # noqa: BLE001
                return f"a trial of it failed: {type(error).__name__}: {error}"
            finally:
                surroundings.restore()
            results.append([*outs, *last, *grads])
        for place, (a, b) in enumerate(zip(*results, strict=True)):
            if not _same(a, b):
                return f"its numbers differ from the loop's in this torch (result {place} of a trial)"
        return None

    @staticmethod
    def _gradients_tried(outs, leaves) -> list[Tensor | None]:
        generator = torch.Generator().manual_seed(0)
        roots = [out for out in outs if out.requires_grad]
        grads = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out) for out in roots]
        leaves = [leaf for leaf in leaves if leaf.requires_grad]
        if not roots:
            return []
        return list(torch.autograd.grad(roots, leaves, grads, allow_unused=True))

    def forward(self, xs, states, tensors, heads, reread: set[int] | None = None):
        """Outputs, last states, and what backward reads, which is nothing unless `reread` (`rereads`) is given.

        Backward reads the states after every so many steps (`every`), some behind heads, then what products gave, and
        what is to be read again, in the program's dtype.
        """
        xs, states = [rows(x, self.in_dtype) for x in xs], [contiguous(state, self.dtype) for state in states]
        steps, before = xs[0].steps, int(bool(heads))

        def empty(shape, dtype=self.dtype):
            return self.kernels.empty(shape, dtype, self.device)

        own = [empty((before + steps, *self.shape), self.out_dtype) for place in self.places if place is None]
        given = {place for place in self.places if place is not None}
        whole = {k: empty((before + steps, *self.shape)) for k in given}
        keep = range(len(states)) if reread is not None else ()
        kept = {k: empty((steps // self.every, *self.shape)) for k in keep if k not in given}
        again = [empty((steps, *self.shape)) if k in (reread or ()) else None for k in range(len(self._kept))]
        rec = [empty((steps, *self.shape)) if reread is not None else None for _ in range(len(self.recurrence))]
        seqs = [whole[k][before:] if k in given else kept.get(k) for k in range(len(states))]
        last = [empty(self.shape) for _ in states]
        if steps and self.shape.numel():
            self._forward.run(
                steps,
                self.shape,
                tensors,
                recurrence=self.recurrence_of(tensors, rec),
                every=self.every,
                x=[*xs, *[NO_ROWS] * len(rec)],
                initial=states,
                out=[*(out[before:] for out in own), *again],
                states=seqs,
                last=last,
            )
        else:
            last = [state.clone() for state in states]
        rest = iter(own)
        outs = [next(rest) if place is None else whole[place] for place in self.places]
        for out, head in zip(outs, heads, strict=False):
            out[0].copy_(head)
        outs = [out.to(dtype) for out, dtype in zip(outs, self._out_dtypes, strict=False)]
        last = [state.to(dtype) for state, dtype in zip(last, self._out_dtypes[len(outs) :], strict=True)]
        return outs, last, [*(whole.get(k, kept.get(k)) for k in range(len(states))), *rec, *again]

    def recurrence_of(self, tensors: Sequence[Tensor], rec: Sequence[Tensor | None]) -> RecurrenceCall | None:
        """What a kernel is given of the products of a step; None where there are none."""
        return self.recurrence.call(self.shape, tensors, rec) if rec else None

    def joint(self, cell: Cell, present: Present) -> tuple[Lanes, Sequence[Node | None], list[bool], list[bool]]:
        """A step's backward: its lanes, gradients of inputs, states and tensors, and what is differentiated."""
        with lock:
            if present not in self._joints:
                joint = self._tracer.joint(*cell, self._traced, present, self.writes_states)
                ins, count = self.ins, self.counts["states"]
                rest = iter(self._out_names)
                names = [*self._names, *(next(rest) if p is None else "rows.unused" for p in self.places)]
                names += [f"rows.grad_next[{k}]" for k in range(count)] + [f"rows.outer[{k}]" for k in range(count)]
                lanes = Lanes(joint.module, names, self.shape, self.kernels.operators)
                self.recurrence.place(lanes)
                grads = lanes.outputs[: ins + count + len(self.learns)]
                for k, node in enumerate(lanes.outputs[len(grads) :]):
                    # Read, not computed again: the step after it has just had it.
                    if lanes.kind[node] == "lane":
                        lanes.rows.setdefault(node, f"rows.next[{k}]")
                self._read_again(cell, present, lanes, grads)
                self._joints[present] = lanes, grads, joint.outs, joint.states
            return self._joints[present]

    def _read_again(self, cell: Cell, present: Present, lanes: Lanes, grads: Sequence[Node | None]) -> None:
        """Has a step's backward read what forward wrote of the values that a library's functions compute."""
        if not self._kept:
            return
        needed, names = {*lanes.needed(grads)}, lanes.identities()
        places = {node: self._kept[name] for node, name in names.items() if node in needed and name in self._kept}
        if present == self.all_present():
            self._reread = {*places.values()}
        reread = self.rereads(cell)
        for node, place in places.items():
            if place in reread:
                lanes.rows.setdefault(node, f"rows.x[{self.counts['ins'] + place}]")

    def rereads(self, cell: Cell) -> set[int]:
        """Which of the values that a library's functions compute in a step some backward reads again."""
        if self._kept and self._reread is None:
            self.joint(cell, self.all_present())
        return self._reread or set()

    def all_present(self) -> Present:
        """Every gradient that there can be."""
        outer = tuple(k in self.places for k in range(self.counts["states"]))
        return Present((True,) * len(self.places), (True,) * len(outer), outer)

    def backward(self, cell: Cell, outs: tuple[bool, ...], last: tuple[bool, ...]) -> Backward:
        """The kernel for these gradients of outputs and last states."""
        with lock:
            if (outs, last) not in self._backwards:
                self._backwards[outs, last] = Backward(self, cell, outs, last)
            return self._backwards[outs, last]

    def differentiated(self, cell: Cell) -> list[bool]:
        """Which outputs and last states autograd differentiates."""
        if self._differentiated is None:
            _, _, outs, states = self.joint(cell, self.all_present())
            self._differentiated = [*outs, *states]
        return self._differentiated

    def gradients(
        self, cell: Cell, xs, states, seqs, tensors, grads, wanted, headed: bool
    ) -> list[Tensor | None] | None:
        """Of inputs, states and tensors; None, and a word of warning, where these have no kernel."""
        split = len(self.places)
        present = tuple(tuple(grad is not None for grad in part) for part in (grads[:split], grads[split:]))
        try:
            backward = self.backward(cell, *present)
        except (Refused, BuildFailed) as refused:
            warnings.warn(
                f"the backward of {getattr(cell[0], 'name', 'a cell')} runs step by step: {refused}", stacklevel=2
            )
            return None
        groups = backward.run(xs, states, seqs, tensors, grads[:split], grads[split:], wanted[: len(xs)], headed)
        inputs = *xs, *states, *tensors
        found = [grad for group in groups for grad in group]
        return [None if grad is None else grad.to(tensor.dtype) for grad, tensor in zip(found, inputs, strict=True)]


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, program: Program, cell: Cell, counts: tuple[int, int, int], *inputs: Tensor):
        ctx.program, ctx.cell, ctx.counts = program, cell, counts
        xs, states, tensors, heads = _split(inputs, counts)
        outs, last, seqs = program.forward(xs, states, tensors, heads, program.rereads(cell))
        ctx.set_materialize_grads(False)
        differentiated = zip((*outs, *last), program.differentiated(cell), strict=True)
        ctx.mark_non_differentiable(*(tensor for tensor, has in differentiated if not has))
        ctx.inputs = len(inputs)
        ctx.save_for_backward(*inputs, *seqs)
        return *outs, *last

    @staticmethod
    def backward(ctx, *grads):
        program, places = ctx.program, ctx.program.places
        inputs, seqs = ctx.saved_tensors[: ctx.inputs], ctx.saved_tensors[ctx.inputs :]
        wanted, found = ctx.needs_input_grad[3:], None
        xs, states, tensors, heads = _split(inputs, ctx.counts)
        if not torch.is_grad_enabled() and not transforms.any_batched(grads, legacy=True):
            found = program.gradients(ctx.cell, xs, states, seqs, tensors, grads, wanted, bool(heads))
        if found is None:
            found = _gradients_by_loop(ctx.cell, inputs, ctx.counts, grads)
        elif heads:
            found += [None if g is None or place is not None else g[0] for g, place in zip(grads, places, strict=False)]
        return None, None, None, *(grad if has else None for grad, has in zip(found, wanted, strict=True))


def _split(inputs: Sequence[Tensor], counts: Sequence[int]) -> list[Sequence[Tensor]]:
    """Inputs, states, tensors and heads."""
    ends = [sum(counts[:k]) for k in range(len(counts) + 1)]
    return [inputs[first:end] for first, end in zip(ends, [*ends[1:], len(inputs)], strict=True)]


def _gradients_by_loop(cell: Cell, inputs: Sequence[Tensor], counts: Sequence[int], grads) -> list[Tensor | None]:
    """What can be differentiated again, or has no kernel."""
    step, surroundings = cell
    floating = [k for k, tensor in enumerate(inputs) if tensor.is_floating_point()]

    def function(*given):
        found = list(inputs)
        for k, tensor in zip(floating, given, strict=True):
            found[k] = tensor
        xs, states, tensors, heads = _split(found, counts)
        with surroundings.as_seen(), surroundings.substituted(tensors):
            outs, last = run_loop(step, xs, states)
        if heads:
            outs = [torch.cat([head.unsqueeze(0), out]) for head, out in zip(heads, outs, strict=True)]
        return *outs, *last

    found = dict(zip(floating, transforms.vjp(function, [inputs[k] for k in floating], grads), strict=True))
    return [found.get(k) for k in range(len(inputs))]


def run_loop(step: Step, xs: Sequence[Tensor], states: Sequence[Tensor]):
    """What a program computes, by calls of the step."""
    columns = []
    for inputs in zip(*(x.unbind(0) for x in xs), strict=True):
        outs, states = step(inputs, tuple(states))
        columns.append(outs)
    return tuple(map(torch.stack, zip(*columns, strict=True))), tuple(states)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        rest = b if a is None else a
        return rest is None or not rest.any()
    return a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())
