"""A traced cell's backward as a kernel: a step's gradients at the last steps, and at all before them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Node

from .kernel import NO_ROWS, contiguous, rows
from .products import WEIGHT
from .recurrence import rest, split
from .tracing import Present, Refused

if TYPE_CHECKING:
    from .program import Cell, Program


class Backward:
    """Backward for one choice of gradients that are there: variants of a step, the last ones first.

    At the last steps autograd may have no gradient for some states: until what comes back to them is always the same,
    every step has a graph of its own.
    """

    def __init__(self, program: "Program", cell: "Cell", outs: tuple[bool, ...], last: tuple[bool, ...]):
        self._program = program
        counts = program.counts
        given = {place for place, has in zip(program.places, outs, strict=True) if has and place is not None}
        outer = tuple(k in given for k in range(len(last)))
        states = tuple(map(max, last, outer))
        seen, self._variants = [], []
        while (present := Present(outs, states, outer)) not in seen:
            seen.append(present)
            lanes, grads, *_ = program.joint(cell, present)
            self._variants.append((lanes, grads))
            states = tuple(grad is not None for grad in grads[program.ins : program.ins + counts["states"]])
        if present != seen[-1]:
            raise Refused("its states take turns in having a gradient")
        self.has_initial, self._steps_to = [p.states for p in seen[1:]] + [states], len(seen)
        ins, count = program.ins, counts["states"]
        self._terms, stores, late, first, bridges = [], [], [], 0, 0
        has_rec = [False] * counts["products"]
        for lanes, grads in self._variants:
            terms = [node for node in lanes.terms(grads[ins + count :]) if node.target is not WEIGHT]
            self._terms.append(terms)
            of_products = program.recurrence.place(lanes)
            has_rec = [has or grad is not None for has, grad in zip(has_rec, of_products, strict=True)]
            taken, after = split(lanes, grads[ins : ins + count], [*grads[:ins], *of_products, *terms])
            late.append((rest(lanes, taken), [(n, f"rows.grad_late[{k}]") for k, n in enumerate(after) if n]))
            bridges = max(bridges, len(taken))
            stored = [(node, f"rows.grad_x[{k}]") for k, node in enumerate([*grads[:ins], *of_products])]
            before = zip(grads[ins : ins + count], after, strict=True)
            stored += [(node, f"rows.grad_previous[{k}]") for k, (node, is_late) in enumerate(before) if not is_late]
            stored += [(node, f"rows.bridges[{k}]") for k, node in enumerate(taken)]
            for place, node in enumerate(terms, first):
                stored.append((node.args[0] if lanes.kind[node] == "sum" else node, f"rows.terms[{place}]"))
            stores.append(stored)
            first += len(terms)
        self.has_x = [any(grads[k] is not None for _, grads in self._variants) for k in range(ins)]
        self._has_rec = has_rec
        variants = [lanes for lanes, _ in self._variants]
        counts = {**program.counts_back, "bridges": bridges}
        self._kernel = program.kernel(variants, stores, counts, [*map(len, self._terms)], late, program.rerun)

    def run(self, xs, states, seqs, tensors, grad_outs, grad_last, wants_x, headed: bool):
        """Gradients of inputs, states and tensors. headed: gradients of outputs have a row before the first step's."""
        program, shape, dtype = self._program, self._program.shape, self._program.dtype
        steps = len(xs[0])
        sequence = (steps, *shape)
        grad_outs = [
            rows(grad, program.out_dtype if place is None else dtype)
            for grad, place in zip(grad_outs, program.places, strict=True)
        ]
        if headed:
            grad_outs = [grad.without_first() for grad in grad_outs]
        own = [grad for grad, place in zip(grad_outs, program.places, strict=True) if place is None]
        outer = [NO_ROWS] * len(states)
        for grad, place in zip(grad_outs, program.places, strict=True):
            if place is not None:
                outer[place] = grad

        def new(shape, dtype=dtype):
            return program.kernels.empty(shape, dtype, program.device)

        grad_x = [
            new(sequence, program.in_dtype) if wanted and has else None
            for wanted, has in zip(wants_x, self.has_x, strict=True)
        ]
        rec = seqs[len(states) : len(states) + len(self._has_rec)]
        grad_rec = [new(sequence) if has else None for has in self._has_rec]
        grad_initial = [new(shape) for _ in states]
        totals = [new(shape) for terms in self._terms for _ in terms]
        if steps and shape.numel():
            self._kernel.run(
                steps,
                shape,
                tensors,
                headed=headed,
                recurrence=program.recurrence_of(tensors, rec),
                x=[*(rows(x, program.in_dtype) for x in xs), *(rows(again, dtype) for again in seqs[len(states) :])],
                initial=[contiguous(state, dtype) for state in states],
                every=program.every,
                states=[seq[len(seq) - steps // program.every :] for seq in seqs[: len(states)]],
                grad_out=own,
                outer=outer,
                grad_last=[contiguous(grad, dtype) for grad in grad_last],
                grad_x=[*grad_x, *grad_rec, *[None] * (len(seqs) - len(states) - len(rec))],
                grad_initial=grad_initial,
                terms=totals,
            )
        present = self.has_initial[min(steps, self._steps_to) - 1]
        grad_initial = [grad if has else None for grad, has in zip(grad_initial, present, strict=True)]
        of_weights = self._gradients_of_weights(min(steps, len(self._variants)), grad_rec, states, seqs)
        of_tensors = self._gradients_of_tensors(steps, totals, of_weights, tensors, len(states) + len(xs))
        return grad_x, grad_initial, of_tensors

    def _gradients_of_weights(self, variants: int, grad_rec, states, seqs) -> dict[Node, Tensor]:
        """Of the weights of products: of all steps, for the last of the variants that has it, and for the others 0."""
        found, seen = {}, set()
        if not self._has_rec:
            return found
        for lanes, _ in reversed(self._variants[:variants]):
            for node in (node for node in lanes.graph.nodes if node.target is WEIGHT):
                if node.args[2] in seen:
                    found[node] = torch.zeros(node.meta["val"].shape, dtype=self._program.dtype)
                else:
                    found[node] = self._program.recurrence.grad_weight(node, grad_rec, states, seqs)
                    seen.add(node.args[2])
        return found

    def _gradients_of_tensors(self, steps: int, totals, of_weights, tensors, first: int) -> list[Tensor | None]:
        """The terms, summed over time, summed over the neurons that share a tensor, in double, and what follows."""
        found = [None] * len(tensors)
        totals = iter(totals)
        for variant, ((lanes, grads), terms) in enumerate(zip(self._variants, self._terms, strict=True)):
            values = [next(totals).double() for _ in terms]
            if variant >= steps:
                continue
            known = {
                node: node.target(value, *node.args[1:], **node.kwargs) if lanes.kind[node] == "sum" else value
                for node, value in zip(terms, values, strict=True)
            }
            known |= of_weights
            places = [place for place, node in enumerate(grads[first:]) if node is not None]
            parts = lanes.computed([grads[first + place] for place in places], tensors, known)
            for place, part in zip(places, parts, strict=True):
                found[place] = part if found[place] is None else found[place] + part
        return [
            None if grad is None else grad.to(tensor.dtype).reshape(tensor.shape)
            for grad, tensor in zip(found, tensors, strict=True)
        ]
