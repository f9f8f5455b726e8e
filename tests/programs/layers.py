"""Statements that call a neuron, in every way that people do."""

import math

from .draft import SURROGATES, Draft, Layer, Value

# Spiking layers.


def leaky(d: Draft, shape: tuple[int, ...], *extra: str) -> str:
    """The constructor of a spiking layer over neurons of a shape."""
    learned = [f"learn_{name}=True" for name, chance in (("beta", 0.2), ("threshold", 0.15)) if d.chance(chance)]
    options = [f"beta={_per_neuron(d, shape, 0.5, 0.95)}", f"threshold={_per_neuron(d, shape, 0.15, 0.7)}"]
    if d.chance(0.7):
        surrogate = d.pick(*SURROGATES)
        d.note(surrogate.split("(")[0])
        options.append(f"spike_grad={surrogate}")
    reset = d.pick("subtract", "subtract", "zero", "none")
    delay = d.chance(0.65)
    d.note(f"reset {reset}")
    d.note(f"reset_delay={delay}")
    options += [f'reset_mechanism="{reset}"'] if reset != "subtract" else []
    options += [] if delay else ["reset_delay=False"]
    options += ["graded_spikes_factor=1.3"] if d.chance(0.04) else []
    for option in learned:
        d.note(option)
    return f"snn.Leaky({', '.join([*options, *learned, *extra])})"


def _per_neuron(d: Draft, shape: tuple[int, ...], low: float, high: float) -> str:
    if d.chance(0.7):
        return f"{d.rng.uniform(low, high):.2f}"
    d.note("per-neuron parameter")
    sizes = d.pick((shape[-1],), shape, (shape[0], *(1,) * (len(shape) - 1)))
    view = f".view{sizes}" if len(sizes) > 1 else ""
    return f"torch.linspace({low}, {high}, {math.prod(sizes)}){view}"


def start_membrane(d: Draft, lif: str, mem: str, shape: tuple[int, ...]) -> str:
    """The membrane before the first step; returns how it starts."""
    start = d.pick("init_leaky", "init_leaky", "reset_mem", "zeros", "zeros", "none", "late", "learned", "random")
    d.note(f"start {start}")
    d.setup.append(
        {
            "init_leaky": lambda: f"{mem} = {lif}.init_leaky()",
            "reset_mem": lambda: f"{mem} = {lif}.reset_mem()",
            "zeros": lambda: f"{mem} = {d.zeros(shape)}",
            "none": lambda: f"{mem} = None",
            "late": lambda: f"{mem} = None",
            "learned": lambda: (
                f"{mem} = {d.parameter('start', *shape)}.expand(batch, {', '.join(['-1'] * len(shape))})"
            ),
            "random": lambda: f"{mem} = torch.rand_like({d.zeros(shape)})",
        }[start]()
    )
    if start == "late":
        with d.block(f"if {mem} is None:"):
            d.say(f"{mem} = {lif}.reset_mem()")
    return start


CALLS = (
    "{spk}, {mem} = {lif}({cur}, {mem})",
    "{spk}, {mem} = {lif}({cur}, {mem})",
    "{spk}, {mem} = {lif}({cur}, mem={mem})",
    "out = {lif}({cur}, {mem}); {spk} = out[0]; {mem} = out[1]",
)


def explicit_layer(d: Draft, cur: Value) -> Layer:
    """The layer of every tutorial: the loop carries its membrane."""
    constructor = leaky(d, cur.shape)
    lif = d.module("lif", constructor)
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    start = start_membrane(d, lif, mem.name, cur.shape)
    for statement in d.pick(*CALLS).format(lif=lif, cur=cur, spk=spk, mem=mem).split("; "):
        d.say(statement)
    return Layer(lif, cur, spk, mem, start, constructor)


def layer_that_skips_steps(d: Draft, cur: Value) -> Layer:
    """A layer that runs in some steps only."""
    constructor = leaky(d, cur.shape)
    lif = d.module("lif", constructor)
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.setup.append(f"{mem} = {d.zeros(cur.shape)}")
    d.say(f"{spk} = torch.zeros_like({cur})")
    with d.block(d.pick(f"if {d.time()} % 2 == 0:", f"if {d.time()} > 0:", f"if {d.time()} != 1:")):
        d.say(f"{spk}, {mem} = {lif}({cur}, {mem})")
    return Layer(lif, cur, spk, mem, "zeros", constructor)


def layer_without_gradient(d: Draft, cur: Value) -> Layer:
    """A layer, or some of its steps, that autograd does not see."""
    constructor = leaky(d, cur.shape)
    lif = d.module("lif", constructor)
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.setup.append(f"{mem} = {d.zeros(cur.shape)}")
    with d.block(d.pick("with torch.no_grad():", f"with torch.set_grad_enabled({d.time()} > 0):")):
        d.say(f"{spk}, {mem} = {lif}({cur}, {mem})")
    return Layer(lif, cur, spk, mem, "zeros", constructor)


def hidden_layer(d: Draft, cur: Value) -> Layer:
    """A layer that keeps its membrane itself."""
    returns_mem = d.chance(0.4)
    constructor = leaky(d, cur.shape, "init_hidden=True", *(["output=True"] if returns_mem else []))
    lif = d.module("lif", constructor)
    _start_hidden(d, lif)
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.say(f"{spk}, {mem} = {lif}({cur})" if returns_mem else f"{spk} = {lif}({cur})")
    if not returns_mem and d.chance(0.3):
        d.say(f"{mem} = {lif}.mem")
        d.note("reads the hidden membrane")
    elif not returns_mem:
        mem = None
    return Layer(lif, cur, spk, mem, "hidden", constructor)


def _start_hidden(d: Draft, lif: str) -> None:
    start = d.pick("reset_mem", "reset", "carry")
    d.note(f"hidden start {start}")
    if start != "carry":
        d.setup.append("snn.reset(self)" if start == "reset" else f"{lif}.reset_mem()")


def own_membrane_layer(d: Draft, cur: Value) -> Layer:
    """Called without a membrane it goes on from its own, also from one call of the network to the next."""
    constructor = leaky(d, cur.shape)
    lif = d.module("lif", constructor)
    if d.chance(0.5):
        d.setup.append(f"{lif}.reset_mem()")
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.say(f"{spk}, {mem} = {lif}({cur})")
    return Layer(lif, cur, spk, mem, "hidden", constructor)


def layer_in_sequential(d: Draft, cur: Value) -> Layer:
    """A whole block in nn.Sequential, hidden states inside."""
    width, shape = cur.shape[-1], cur.shape
    constructor = leaky(d, shape, "init_hidden=True")
    inner = [f"nn.Linear({cur.shape[-1]}, {width})", *d.pick([], ["nn.ReLU()"], ["nn.Dropout(0.2)"]), constructor]
    block = d.module("block", f"nn.Sequential({', '.join(inner)})")
    _start_hidden(d, f"{block}[-1]")
    spk = Value(d.new("spk"), shape)
    d.say(f"{spk} = {block}({cur})")
    return Layer(f"{block}[-1]", cur, spk, None, "hidden", constructor)


def tower(d: Draft, cur: Value) -> Layer:
    """Layers in ModuleLists, membranes in a list."""
    width = cur.shape[-1]
    constructor = leaky(d, (width,))
    lifs = d.module("lifs", f"nn.ModuleList([{constructor} for _ in range(2)])")
    fcs = d.module("fcs", f"nn.ModuleList([nn.Linear({width}, {width}) for _ in range(2)])")
    mems, spk = d.new("mems"), Value(d.new("spk"), cur.shape)
    d.setup.append(f"{mems} = [lif.reset_mem() for lif in {lifs}]")
    d.say(f"{spk} = {cur}")
    with d.block(f"for i, (fc, lif) in enumerate(zip({fcs}, {lifs})):"):
        d.say(f"{spk}, {mems}[i] = lif(fc({spk}), {mems}[i])")
    return Layer(f"{lifs}[1]", cur, spk, Value(f"{mems}[1]", cur.shape), "list", constructor)


def functional_layer(d: Draft, cur: Value) -> Layer:
    """The neuron without a module."""
    beta = d.module("beta", "nn.Parameter(torch.tensor(0.8))") if d.chance(0.5) else "0.85"
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.setup.append(f"{mem} = {d.zeros(cur.shape)}")
    d.say(f"{spk}, {mem} = snn.functional.leaky_step({cur}, {mem}, beta={beta}, threshold=0.4)")
    return Layer("", cur, spk, mem, "zeros", "functional")


def handwritten_layer(d: Draft, cur: Value) -> Layer:
    """A leaky integrator in plain torch."""
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.setup.append(f"{mem} = {d.zeros(cur.shape)}")
    d.say(f"{mem} = 0.8 * {mem} + {cur}")
    d.say(f"{spk} = ({mem} > 0.5).to({mem}.dtype)")
    d.say(f"{mem} = {mem} - 0.5 * {spk}")
    return Layer("", cur, spk, mem, "zeros", "handwritten")


def recurrent_layer(d: Draft, cur: Value) -> Layer:
    """A layer that hears its own spikes, all of them through weights or each its own."""
    name, width = d.pick("RLeaky", "RSynaptic"), cur.shape[-1]
    constructor = leaky(d, cur.shape, *_recurrence(d, cur)).replace("graded_spikes_factor=1.3, ", "")
    constructor = constructor.replace("snn.Leaky(", f"snn.{name}(" + ("alpha=0.7, " if name == "RSynaptic" else ""))
    lif = d.module("lif", constructor)
    if "linear_features" in constructor and d.chance(0.15):
        d.note("changed on the way back")
        other = d.pick("nn.Dropout(0.2)", "nn.Tanh()", f"nn.Linear({width}, {width})")
        pair = d.rng.sample([other, f"nn.Linear({width}, {width})"], 2)
        d.init.append(f"{lif}.recurrent = nn.Sequential({', '.join(pair)})")
    states = [Value(d.new(stem), cur.shape) for stem in ("spk", *["syn"] * (name == "RSynaptic"), "mem")]
    spk, *_, mem = states
    if "init_hidden" in constructor:
        _start_hidden(d, lif)
        d.say(f"{spk} = {lif}({cur})")
        return Layer(lif, cur, spk, None, "hidden", constructor)
    names = ", ".join(map(str, states))
    if d.chance(0.5) and not any(line.startswith(f"{spk} = ") for line in d.setup):
        d.setup.append(f"{names} = {lif}.reset_mem()")
    else:
        d.setup += [f"{state} = {d.zeros(cur.shape)}" for state in states]
    d.say(f"{names} = {lif}({cur}, {names})")
    _change_spikes(d, spk)
    d.scope += states[1:-1]
    # The games know calls that return a membrane alone.
    return Layer(lif if name == "RLeaky" else "", cur, spk, mem, "recurrent", constructor)


def _recurrence(d: Draft, cur: Value) -> list[str]:
    options = ["init_hidden=True"] if d.chance(0.25) else []
    options += ["learn_recurrent=False"] if d.chance(0.2) else []
    if d.chance(0.7):
        return [f"linear_features={cur.shape[-1]}", *options]
    return [f"V={_per_neuron(d, cur.shape, -0.5, 0.7)}", "all_to_all=False", *options]


def _change_spikes(d: Draft, spk: Value) -> None:
    """What comes back may be no more the spikes."""
    if d.chance(0.15):
        form = d.pick("{spk}.detach()", "0.5 * {spk}", "F.dropout({spk}, 0.2)", "{spk}.clone()", "{spk}.view_as({spk})")
        d.note("spikes back: " + form)
        d.closing.append(f"{spk} = " + form.format(spk=spk))


def norse_layer(d: Draft, cur: Value) -> Layer:
    """Norse's recurrent cell, which has weights for its input too."""
    width = cur.shape[-1]
    parameters = f"norse.LIFParameters(v_th=torch.tensor({d.rng.uniform(0.05, 0.3):.2f}))"
    autapses = d.pick("", ", autapses=True")
    cell = d.module("cell", f"norse.LIFRecurrentCell({width}, {width}, p={parameters}{autapses})")
    spk, mem, i = (Value(d.new(stem), cur.shape) for stem in ("spk", "mem", "i"))
    d.setup += [f"{state} = {d.zeros(cur.shape)}" for state in (spk, mem, i)]
    d.say(f"{spk}, (_, {mem}, {i}) = {cell}({cur}, norse.LIFState({spk}, {mem}, {i}))")
    _change_spikes(d, spk)
    d.scope.append(i)
    return Layer("", cur, spk, mem, "recurrent", "norse")


LAYERS = [explicit_layer] * 9 + [layer_that_skips_steps, hidden_layer, hidden_layer, hidden_layer, own_membrane_layer]


LAYERS += [layer_without_gradient, layer_in_sequential, tower, functional_layer, handwritten_layer]
