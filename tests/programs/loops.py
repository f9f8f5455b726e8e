"""What a loop records and returns, what it goes over, and the whole program."""

from dataclasses import dataclass

import torch

from .between import IN_LONG_LOOPS, INTERLUDES, OWN_FUNCTION, write_layer
from .draft import IMPORTS, Draft, Input, Program, Value
from .operations import fit, write_current

# Recording.

LIST_FORMS = (
    "torch.stack({s})",
    "torch.stack({s})",
    "torch.stack({s})",
    "torch.stack({s}, dim=1)",
    "torch.stack({s}, dim=-1)",
    "torch.stack({s}, 0)",
    "torch.cat([r.unsqueeze(0) for r in {s}])",
    "torch.cat([r.unsqueeze(0) for r in {s}], dim=0)",
    "torch.cat({s}, dim=1)",
    "torch.cat({s})",
    "torch.stack({s}).sum(0)",
    "torch.stack({s}).mean(dim=0)",
    "torch.stack({s})[-1]",
    "torch.stack({s}[::2])",
    "torch.stack({s}[::-1])",
    "torch.stack({s}[-2:])",
    "torch.stack({s} + {s})",
    "torch.stack([2 * r for r in {s}])",
    "sum({s})",
    "tuple({s})",
    "{s}",
    "{s}[-1]",
    "torch.stack({s}).flatten(0, 1)",
)


def record_list(d: Draft, v: Value) -> str:
    seq = d.new("seq")
    d.setup.append(f"{seq} = []")
    if d.chance(0.15):
        d.note("partial recording")
        with d.block(f"if {d.time()} % 2 == 0:"):
            d.say(f"{seq}.append({v})")
    else:
        d.say(f"{seq}.append({v})")
    for _ in range(d.pick(1, 1, 1, 2)):
        form = d.pick(*LIST_FORMS)
        d.note("record " + form.format(s="s"))
        d.outputs.append(form.format(s=seq))
    return seq


def record_in_a_tensor(d: Draft, v: Value) -> str:
    out, sizes = d.new("out"), ", ".join(map(str, v.shape))
    if d.chance(0.7):
        d.setup.append(f"{out} = torch.zeros({d.steps}, batch, {sizes}, dtype=x.dtype)")
        d.say(f"{out}[{d.time()}] = {v}")
    else:
        d.setup.append(f"{out} = x.new_zeros(batch, {d.steps}, {sizes})")
        d.say(f"{out}[:, {d.time()}] = {v}")
    d.outputs.append(out)
    return out


def record_sum(d: Draft, v: Value) -> str:
    total = d.new("total")
    d.setup.append(f"{total} = {d.pick('0', d.zeros(v.shape))}")
    forms = ("{total} = {total} + {v}", "{total} += {v}", "{total} = {total} + {v} * 0.8**t", "{total} += 2 * {v}")
    statement = d.pick(*forms).format(total=total, v=v)
    if "t" in statement.split("**")[1:]:
        d.time()
    d.say(statement)
    d.outputs.append(total)
    return total


def record_last(d: Draft, v: Value) -> str:
    d.outputs.append(v.name)
    return v.name


def record_extremes(d: Draft, v: Value) -> str:
    peak = d.new("peak")
    d.setup.append(f"{peak} = {d.zeros(v.shape)}")
    d.say(f"{peak} = torch.maximum({peak}, {v})")
    d.outputs.append(peak)
    return peak


def record_concatenated(d: Draft, v: Value) -> str:
    """A tensor that grows by a step at a time."""
    grown = d.new("grown")
    d.setup.append(f"{grown} = {d.zeros(v.shape)}.unsqueeze(0)")
    d.say(f"{grown} = torch.cat([{grown}, {v}.unsqueeze(0)])")
    d.outputs.append(grown)
    return grown


def loss_per_step(d: Draft, v: Value) -> str:
    loss = d.new("loss")
    forms = [
        f"F.mse_loss({v}, torch.full_like({v}, 0.3))",
        f"({v} ** 2).mean()",
        f"({v} - 0.2).abs().sum() / {d.steps}",
    ]
    if len(v.shape) == 1 and v.shape[0] >= 2:
        if not any(a.name == "labels" for a in d.arguments):
            d.arguments.append(Input("labels", ("B",), "labels"))
        forms += [f"F.cross_entropy({v}, labels)"] * 3
    if d.chance(0.3):
        d.setup.append(f"{loss} = []")
        d.say(f"{loss}.append({d.pick(*forms)})")
        d.outputs.append(d.pick(f"torch.stack({loss}).mean()", f"sum({loss}) / len({loss})"))
    else:
        d.setup.append(f"{loss} = {d.pick('0.0', 'torch.zeros((), dtype=x.dtype)')}")
        d.say(d.pick(f"{loss} = {loss} + {d.pick(*forms)}", f"{loss} += {d.pick(*forms)}"))
        d.outputs.append(loss)
    return loss


RECORDS = [record_list] * 6 + [record_in_a_tensor, record_in_a_tensor, record_sum, record_sum, record_last]


RECORDS += [record_extremes, record_concatenated, loss_per_step, loss_per_step]


def write_records(d: Draft) -> None:
    """What the program keeps of a step: spikes and membranes mostly."""
    records = RECORDS if not d.long or d.chance(0.15) else [r for r in RECORDS if r is not record_in_a_tensor]
    states = [v for layer in d.layers for v in (layer.spk, layer.mem) if v is not None]
    fresh = [v for v in states if v in d.scope]
    d.choose(records, d.layers[-1].spk if d.chance(0.6) else d.rng.choice(fresh or states))
    for _ in range(d.pick(0, 1, 1, 2)):
        d.choose(records, d.rng.choice([*fresh, *fresh, *(v for v in d.scope if v.name.isidentifier())]))


# Inputs and loops over time.


@dataclass(frozen=True)
class Frames:
    """How a step gets at its frame: the name that runs over `iterable`, or an expression in t."""

    value: Value
    iterable: str | None = None


def write_frames(d: Draft, name: str, layout: str, shape: tuple[int, ...]) -> Frames:
    """A way to walk through an input."""
    value, last = f"{name}_t", d.steps - 1
    if layout == "static":
        return Frames(Value(name, shape))
    iterables = {
        "time first": (f"{name}", f"{name}.unbind(0)", f"torch.unbind({name})", f"{name}.flip(0)", f"[*{name}]"),
        "batch first": (
            f"{name}.unbind(1)",
            f"{name}.transpose(0, 1)",
            f"{name}.movedim(1, 0)",
            f"{name}.unbind(dim=1)",
        ),
        "time last": (f"{name}.unbind(-1)", f"{name}.movedim(-1, 0)"),
    }
    indexed = {
        "time first": (
            f"{name}[t]",
            f"{name}[t]",
            f"{name}[t]",
            f"{name}.select(0, t)",
            f"{name}[{last} - t]",
            f"{name}[-1 - t]",
            f"{name}[t, ...]",
            f"{name}[t // 2]",
            f"{name}[t : t + 1].squeeze(0)",
            f"{name}.narrow(0, t, 1)[0]",
        ),
        "batch first": (f"{name}[:, t]", f"{name}[:, t]", f"{name}.select(1, t)", f"{name}[:, t, ...]"),
        "time last": (f"{name}[..., t]", f"{name}.select(-1, t)"),
    }
    if d.chance(0.75 if d.running else 0.4):
        d.running = True
        iterable = d.pick(*iterables[layout])
        d.note("for x_t in " + iterable.replace(name, "x"))
        return Frames(Value(value, shape), iterable)
    expression = d.pick(*indexed[layout])
    d.note(expression.replace(name, "x").replace(f"{last} - t", "last - t"))
    if d.chance(0.3):
        d.say(f"{value} = {expression}")
        d.time()
        return Frames(Value(value, shape))
    d.time()
    return Frames(Value(expression, shape))


def write_inputs(d: Draft) -> list[Frames]:
    """The arguments of forward."""
    shape = d.pick((4,), (3,), (6,), (5,), (4,), (2, 4), (2, 4), (1, 4, 4), (2, 3, 3), (1, 4, 4))
    frames = []
    for name in ("x", "y")[: d.pick(1, 1, 1, 1, 2)]:
        layout = d.pick(*["time first"] * 6, "batch first", "batch first", "static", "time last")
        d.note(layout)
        sizes = {
            "time first": (d.steps, "B", *shape),
            "batch first": ("B", d.steps, *shape),
            "static": ("B", *shape),
            "time last": ("B", *shape, d.steps),
        }[layout]
        d.arguments.append(Input(name, sizes, requires_grad=not d.no_grad and d.chance(0.4)))
        whole = whole_sequence(d, name, layout, shape) if layout != "static" and d.chance(0.2) else name
        frames.append(write_frames(d, whole, layout, shape))
    d.note(f"{len(frames)} inputs")
    return frames


def whole_sequence(d: Draft, name: str, layout: str, shape: tuple[int, ...]) -> str:
    """Something done to the whole input before the loop."""
    forms = [
        f"torch.tanh({name})",
        f"1.2 * {name}",
        f"F.dropout({name}, 0.2, self.training)",
        f"torch.bernoulli({name}.sigmoid())",
    ]
    if layout != "time last":
        forms += [f"{d.module('fc', f'nn.Linear({shape[-1]}, {shape[-1]})')}({name})"]
    whole = d.new("whole")
    d.setup.append(f"{whole} = {d.pick(*forms)}")
    d.note("whole sequence before the loop")
    return whole


def write_header(d: Draft, frames: list[Frames], steps: str) -> str:
    """The head of the time loop."""
    running = [f for f in frames if f.iterable]
    if not running:
        options = [f"range({steps})"] * 3 + ["range(self.num_steps)"]
        header = f"reversed(range({steps}))" if d.reversed else d.pick(*options)
        return f"for t in {header}:"
    names = ", ".join(f.value.name for f in running)
    iterable = running[0].iterable
    if len(running) > 1:
        iterable = f"zip({', '.join(f.iterable for f in running)})"
    if not d.uses_t:
        return f"for {names} in {iterable}:"
    return f"for t, {f'({names})' if len(running) > 1 else names} in enumerate({iterable}):"


def write_loop(d: Draft, frames: list[Frames], depth: int) -> None:
    """A loop over time with `depth` spiking layers."""
    d.reversed = not any(f.iterable for f in frames) and d.chance(0.08)
    d.scope += [f.value for f in frames]
    v = d.rng.choice(frames).value
    for other in frames:
        if other.value != v:
            v = d.let("h", f"{v} + 0.5 * {fit(d, other.value, v.shape)}", v.shape)
    for _ in range(depth):
        v = write_layer(d, write_current(d, v))
        if d.chance(0.2):
            v = d.choose(INTERLUDES, v)
        if d.long and d.chance(0.4):
            v = d.choose(IN_LONG_LOOPS, v)
    write_records(d)
    close_loop(d, frames)
    d.scope = [v for v in d.scope if v.name.isidentifier()]


def close_loop(d: Draft, frames: list[Frames]) -> None:
    """Puts the loop's lines together: setup, head, body."""
    header = write_header(d, frames, str(d.steps))
    body = d.body + d.closing
    d.forward += d.setup
    if header == f"for t in range({d.steps}):" and not d.skips and d.chance(0.08):
        d.note("while")
        loops = [("t = 0", f"while t < {d.steps}:", [*body, "t += 1"])]
    elif header == f"for t in range({d.steps}):" and d.steps > 2 and "break" not in d.features and d.chance(0.1):
        d.note("two loops over parts of the sequence")
        loops = [(None, f"for t in range({a}, {b}):", body) for a, b in ((0, 2), (2, d.steps))]
    else:
        d.note("for " + next((k for k in ("reversed", "range", "zip", "enumerate") if k in header), "frames"))
        loops = [(None, header, body)]
    for before, head, lines in loops:
        d.forward += [before] if before else []
        d.forward += [head, *("    " + line for line in lines)]
    d.setup, d.body, d.closing, d.slots, d.uses_t, d.skips = [], [], [], [], False, False


def loop_over_the_recording(d: Draft) -> None:
    """Layer by layer: another loop over what the first one recorded."""
    source = d.layers[-1].spk
    seq = d.new("seq")
    # The recording belongs at the end of the first loop's body, which is the last line of forward.
    d.forward.insert(0, f"{seq} = []")
    d.forward.append(f"    {seq}.append({source})")
    d.note("layer by layer")
    name = seq
    if d.chance(0.4):
        name = d.new("whole")
        d.setup.append(f"{name} = torch.stack({seq})")
    d.scope = [v for v in d.scope if not v.name.endswith("_t")]
    frames = Frames(Value(f"{seq}_t", source.shape), name)
    write_loop(d, [frames], 1)


def random_program(seed: int, long: bool = False, captured: bool = False) -> Program:
    """The program of a seed; the same seed gives the same program.

    long: of more steps, most of them alike; captured: without asking for gradients of single steps, which torch.compile
    does not give (docs/limits.md).
    """
    d = Draft(seed, long, captured)
    frames = write_inputs(d)
    depth = d.pick(1, 1, 1, 2, 2, 3)
    write_loop(d, frames, depth)
    if depth < 3 and d.forward[-1].strip() != "t += 1" and d.chance(0.12):
        loop_over_the_recording(d)
    d.note(f"{len(d.layers)} layers")
    batches = d.pick((2, 2), (3, 3), (1, 1), (4, 4), (2, 2), (2, 3), (1, 2), (4, 2))
    batches = tuple(max(batch, d.min_batch) for batch in batches)
    return Program(
        seed,
        assemble(d),
        tuple(d.arguments),
        d.steps,
        batches,
        d.training,
        torch.float32 if d.autocast else torch.float64,
        frozenset(d.features | {"training" if d.training else "eval"}),
    )


def assemble(d: Draft) -> str:
    """The module's text."""
    forward = [*d.forward, write_return(d)]
    if any("batch" in line for line in forward):
        forward.insert(0, f"batch = x.size({d.arguments[0].shape.index('B')})")
    if d.autocast == "loop":
        d.note("autocast around the loop")
        forward = ['with torch.autocast("cpu", dtype=torch.bfloat16):', *("    " + line for line in forward)]
    if d.no_grad:
        d.note("no_grad")
    lines = ["class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        self.num_steps = {d.steps}"] if any("self.num_steps" in line for line in forward) else []
    lines += ["        " + line for line in d.init] + [""]
    lines += ["    @torch.no_grad()"] if d.no_grad else []
    lines += [f"    def forward(self, {', '.join(a.name for a in d.arguments)}):"]
    lines += ["        " + line for line in forward]
    return IMPORTS + (OWN_FUNCTION if d.long else "") + "\n".join(lines) + "\n"


def write_return(d: Draft) -> str:
    """Outputs in one of the containers people return."""
    outputs = d.outputs
    if len(outputs) == 1:
        return f"return {outputs[0]}"
    if d.chance(0.1):
        d.note("returns a dict")
        return "return {" + ", ".join(f'"{k}": {output}' for k, output in enumerate(outputs)) + "}"
    return f"return {', '.join(outputs)}" if d.chance(0.8) else f"return [{', '.join(outputs)}]"
