"""Random Leaky cases over every option, shared by the tests; a case prints itself with its seed."""

import itertools
from dataclasses import dataclass, field

import torch

import snnfast.surrogate as ours

RESETS = ("subtract", "zero", "none")
LAYOUTS = ("scalar", "neuron", "channel", "full")

EXACT_SURROGATES = {
    "atan": {},
    "fast_sigmoid": {"slope": 25},
    "straight_through_estimator": {},
    "triangular": {},
    "heaviside": {},
    "SFS": {"slope": 25, "B": 0.1},
}
ROUNDED_SURROGATES = {"sigmoid": {"slope": 5}, "spike_rate_escape": {}}
VARIED = {
    "atan": {"alpha": 1.1},
    "fast_sigmoid": {"slope": 7.3},
    "triangular": {"threshold": 0.3},
}


@dataclass
class Case:
    """One call of Leaky: options, and tensors drawn from its seed."""

    seed: int
    steps: int
    shape: tuple[int, ...]
    reset_mechanism: str
    reset_delay: bool
    surrogate: str
    constants: dict
    layout: dict = field(default_factory=dict)
    loss: str = "both"
    initial: bool = True
    scale: float = 1.0

    def tensors(self, dtype=torch.float32, device="cpu"):
        """x [T, ...], mem0 [...] or None, {name: parameter}, and the weights of the loss on spikes and membranes."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        x = normal(self.steps, *self.shape) * self.scale
        mem = normal(*self.shape) if self.initial else None
        params = {
            "beta": self._param("beta", normal) * 0.3 + 0.8,
            "threshold": self._param("threshold", normal).abs() * 0.5 + 0.4,
            "graded_spikes_factor": self._param("graded_spikes_factor", normal).abs() + 0.5,
        }
        on_spk = normal(self.steps, *self.shape) if self.loss in ("spk", "both") else None
        on_mem = normal(self.steps, *self.shape) if self.loss in ("mem", "both") else None

        def cast(tensor):
            return None if tensor is None else tensor.to(device=device, dtype=dtype)

        return (
            cast(x),
            cast(mem),
            {name: cast(param) for name, param in params.items()},
            cast(on_spk),
            cast(on_mem),
        )

    def _param(self, name, normal):
        layout = self.layout.get(name, "scalar")
        if layout == "scalar" or not self.shape:
            return normal()
        if layout == "neuron":
            return normal(self.shape[-1])
        if layout == "channel":
            return normal(self.shape[1 if len(self.shape) > 1 else 0], *(1,) * (len(self.shape) - 2))
        return normal(*self.shape)

    def surrogates(self, module=ours):
        """This case's surrogate, from snnfast.surrogate or snntorch.surrogate."""
        return getattr(module, self.surrogate)(**self.constants)


def random_cases(count: int, seed: int, surrogates=None) -> list[Case]:
    """`count` cases; the options of reset, delay and surrogate are walked through, the rest is drawn."""
    surrogates = surrogates or {**EXACT_SURROGATES}
    grid = list(itertools.product(RESETS, (True, False), surrogates.items()))
    generator = torch.Generator().manual_seed(seed)

    def pick(options):
        return options[torch.randint(len(options), (), generator=generator).item()]

    shapes = [(3,), (1, 5), (7, 33), (2, 600), (4, 3, 5), (2, 3, 4, 6), (1, 1), (5, 1031), ()]
    cases = []
    for index in range(count):
        reset_mechanism, reset_delay, (surrogate, constants) = grid[index % len(grid)]
        cases.append(
            Case(
                seed=seed * 100_003 + index,
                steps=pick([1, 2, 3, 10, 50]),
                shape=pick(shapes),
                reset_mechanism=reset_mechanism,
                reset_delay=reset_delay,
                surrogate=surrogate,
                constants=pick([constants, VARIED.get(surrogate, constants)]),
                layout={name: pick(LAYOUTS) for name in ("beta", "threshold", "graded_spikes_factor")},
                loss=pick(["spk", "mem", "both"]),
                initial=pick([True, False]),
                scale=pick([0.3, 1.0, 3.0]),
            )
        )
    return cases


def identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, but for NaN's payload and the sign of zero."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def moved(tensor):
    """The same values at an address that is a multiple of no more than the size of one."""
    place = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape)
    return place.copy_(tensor.detach())


def each_saved_tensor_moved(run):
    """run() as it is, then once for each tensor it saves for backward, that one given back at another address."""
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return len(kept) - 1

    def unpack(place):
        return moved(kept[place]) if place == chosen else kept[place]

    chosen, saved = None, 1
    while chosen is None or chosen < saved:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield run()
        chosen, saved = 0 if chosen is None else chosen + 1, len(kept)


def step_loop(layer, x, mem=None):
    """The loop every tutorial writes."""
    spk_seq, mem_seq = [], []
    mem = layer.init_leaky() if mem is None else mem
    for current in x.unbind(0):
        spk, mem = layer(current, mem)
        spk_seq.append(spk)
        mem_seq.append(mem)
    return torch.stack(spk_seq), torch.stack(mem_seq)
