"""What stands between layers: what comes back, what is skipped, what is looked at."""

from .draft import Draft, Layer, Value
from .layers import LAYERS, leaky, norse_layer, recurrent_layer
from .states import (
    GAMES,
    HIDDEN_GAMES,
    OVERWRITES,
    change_membrane,
    detach_some_steps,
    membrane_of_another_layer,
    second_stream,
    trace_of_spikes,
)

# Connections through time.


def own_spikes_back(d: Draft, cur: Value, spk: str) -> Value:
    """Recurrence: a layer hears its own spikes of the step before."""
    d.note("own_spikes_back")
    d.setup.append(f"{spk} = {d.zeros(cur.shape)}")
    width = cur.shape[-1]
    if d.chance(0.7):
        return d.let("cur", f"{cur} + {d.module('rec', f'nn.Linear({width}, {width})')}({spk})", cur.shape)
    return d.let("cur", f"{cur} - 0.3 * {spk}", cur.shape)


def leave_slot(d: Draft, cur: Value) -> Value:
    """A place at which a later layer's spikes of the step before may be added to this current."""
    here = d.let("cur", f"{cur} + 0.0", cur.shape)
    d.slots.append((len(d.body), here))
    return here


def fill_slot(d: Draft, layer: Layer) -> None:
    """Feedback from a later layer to an earlier one, over one step."""
    position, cur = d.slots.pop()
    d.note("feedback to an earlier layer")
    d.setup.append(f"{layer.spk} = {d.zeros(layer.spk.shape)}")
    back = d.module("back", f"nn.Linear({layer.spk.size}, {cur.size})")
    folded = f".view_as({cur})" if len(cur.shape) > 1 else ""
    d.body.insert(position, f"{cur} = {cur} + {back}({layer.spk}.flatten(1)){folded}")


def delay(d: Draft, v: Value) -> Value:
    """The next layer hears the step before."""
    d.note("delayed connection")
    late = Value(d.new("late"), v.shape)
    d.setup.append(f"{late} = {d.zeros(v.shape)}")
    d.closing.append(f"{late} = {v}")
    return late


def write_layer(d: Draft, cur: Value) -> Value:
    """A spiking layer with what surrounds it; returns what the next layer gets."""
    if d.chance(0.15):
        cur = own_spikes_back(d, cur, f"spk{d.numbers['spk']}")
    elif d.chance(0.12):
        cur = leave_slot(d, cur)
    layer = d.choose([recurrent_layer, recurrent_layer, norse_layer] if d.recurrent and d.chance(0.7) else LAYERS, cur)
    d.layers.append(layer)
    games = HIDDEN_GAMES if layer.start == "hidden" else GAMES
    if d.no_grad and layer.mem:
        games = games + OVERWRITES * (1 if d.long else 4)
    if d.long and layer.start != "hidden" and d.chance(0.7):
        games = [change_membrane, trace_of_spikes, membrane_of_another_layer, second_stream, detach_some_steps]
    for _ in range(d.pick(0, 0, 0, 1, 1, 2) if layer.start != "list" else 0):
        d.choose(games, layer)
    d.scope += [value for value in (layer.spk, layer.mem) if value is not None]
    if d.slots and d.slots[-1][0] < len(d.body) and d.chance(0.5):
        fill_slot(d, layer)
    passed = layer.mem if layer.mem and d.chance(0.1) else layer.spk
    return delay(d, passed) if d.chance(0.06) else passed


# Statements between two layers.


def dead_code(d: Draft, v: Value) -> Value:
    d.say(
        d.pick(f"unused = torch.tanh({v}) * 2", f"unused = torch.rand_like({v})", f"unused = [{v}.sum(), {v}.mean()]")
    )
    return v


def dead_layer(d: Draft, v: Value) -> Value:
    lif = d.module("lif", leaky(d, v.shape, "init_hidden=True"))
    d.say(f"{lif}({v})")
    return v


def skip_the_rest(d: Draft, v: Value) -> Value | None:
    if d.skips:
        return None
    d.skips = True
    how = "continue" if d.reversed or d.chance(0.6) else "break"
    d.note(how)
    with d.block(f"if {d.time()} == {d.pick(1, d.steps - 1)}:"):
        d.say(how)
    return v


def count_steps(d: Draft, v: Value) -> Value:
    d.say(f"{d.buffer('count', 'torch.zeros(())')} += 1")
    return v


def look_at_numbers(d: Draft, v: Value) -> Value | None:
    """A branch on the data, which Dynamo cannot capture in one graph."""
    if d.chance(0.85):
        return None
    value = d.let("h", f"{v} * 1.1", v.shape)
    with d.block(f"if {v}.mean() > 0.3:"):
        d.say(f"{value} = {value} - 0.1")
    return value


INTERLUDES = [dead_code, dead_code, dead_layer, skip_the_rest, skip_the_rest, count_steps]


INTERLUDES += [look_at_numbers]


# What a recorder of a loop meets: statements of single steps, and such that it does not see.


def look_once(d: Draft, v: Value) -> Value:
    value = d.let("h", f"{v} * 1.1", v.shape)
    with d.block(f"if {d.time()} == {d.rng.randrange(d.steps)}:"):
        d.say(
            d.pick(
                f"{value} = {value} + 0.1 * float({v}.detach().mean())",
                f"{value} = {value} * (2 if bool(({v} > 0.2).any()) else 1)",
                f"{value} = {value} - {v}.detach().numpy().mean()",
                f"{value} = __import__('copy').deepcopy({value}.detach())",
                f"{value} = torch.tensor({value}.tolist(), dtype=x.dtype)",
            )
        )
    return value


def write_once(d: Draft, v: Value) -> Value:
    value = d.let("h", f"{v} * 1.1", v.shape)
    with d.block(f"if {d.time()} == {d.rng.randrange(d.steps)}:"):
        d.say(d.pick(f"{value}[:, 0] = 0.1", f"{value}.mul_(0.5)", f"{value} += 0.2", f"{value}.data.mul_(0.9)"))
    return value


def weight_written_once(d: Draft, v: Value) -> Value | None:
    """Through `data`, as what autograd has saved would else be refused."""
    layers = [line.split(" = ")[0] for line in d.init if " = nn.Linear(" in line]
    if not layers:
        return None
    with d.block(f"if {d.time()} == {d.rng.randrange(d.steps)}:"):
        d.say(d.pick(*layers) + d.pick(".weight.data.mul_(0.9)", ".weight.data *= 1.1", ".bias.data[0] = 0.3"))
    return v


def backward_within(d: Draft, v: Value) -> Value | None:
    if d.no_grad:
        return None
    with d.block(f"if {d.time()} % {d.pick(3, 4)} == 2 and {v}.requires_grad:"):
        d.say(f"({v} ** 2).sum().backward(retain_graph=True)")
    return v


def gradient_of_a_step(d: Draft, v: Value) -> Value | None:
    """Asked for when the loop is over."""
    spk = d.layers[-1].spk
    if d.no_grad or d.skips or v is not spk or d.layers[-1].start == "recurrent":
        return None
    seq = d.new("seq")
    d.setup.append(f"{seq} = []")
    d.say(f"{seq}.append({spk})")
    step = f"{seq}[{d.rng.randrange(d.steps)}]"
    total = f"({seq}[-1].sum() + ({step} ** 2).sum())"
    asked = f"torch.autograd.grad({total}, {step}, retain_graph=True)[0]"
    if d.captured:
        asked = step
    d.outputs.append(f"({asked} if {step}.requires_grad and torch.is_grad_enabled() else {step})")
    return v


def user_function(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(f"Halved.apply({v})", f"{v} + Halved.apply({d.parameter('code', v.shape[-1])})"), v.shape)


def hits_counted(d: Draft, v: Value) -> Value:
    hits = d.new("hits")
    d.setup.append(f"{hits} = 0")
    with d.block("with torch.no_grad():"):
        d.say(f"{hits} = {hits} + ({v}.argmax(-1) == 0).sum()")
    d.outputs.append(f"torch.as_tensor({hits})")
    return v


def noise_of_the_step(d: Draft, v: Value) -> Value:
    return d.let("h", f"{v} + 0.1 * torch.randn_like({v}.detach())", v.shape)


IN_LONG_LOOPS = [look_once, write_once, weight_written_once, backward_within, gradient_of_a_step, gradient_of_a_step]


IN_LONG_LOOPS += [user_function, hits_counted, noise_of_the_step]


OWN_FUNCTION = """class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 0.5

    @staticmethod
    def backward(ctx, grad):
        return grad * 0.25


"""
