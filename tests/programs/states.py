"""What people do to a layer's states between two steps."""

from .draft import Draft, Layer, Value

# What happens to a state between two steps. Each emitter returns True where it applied.


def detach_every_step(d: Draft, layer: Layer) -> bool:
    d.say(f"{layer.mem} = {layer.mem}.detach()")
    return True


def detach_some_steps(d: Draft, layer: Layer) -> bool:
    with d.block(f"if {d.time()} % {d.pick(2, 3)} == {d.pick(0, 1)}:"):
        d.say(f"{layer.mem} = {layer.mem}.detach()")
    return True


MEMBRANE_FORMS = (
    "{mem} * {mask}",
    "{mask} * {mem}",
    "{mem}.clone()",
    "{mem}.clamp(-1.0, 1.2)",
    "torch.where({spk} > 0, 0.5 * {mem}, {mem})",
    "{mem} * (1 - {spk}.detach())",
    "{mem} + 0.1 * {cur}",
    "{mem} - 0.2 * {mem}.mean(1, keepdim=True)",
    "F.dropout({mem}, 0.2, self.training)",
    "{mem}.view_as({mem})",
)


def change_membrane(d: Draft, layer: Layer) -> bool:
    mask = d.buffer("mask", f"torch.linspace(0.2, 1.0, {layer.spk.shape[-1]})")
    form = d.pick(*MEMBRANE_FORMS)
    d.note("membrane: " + form.format(mem="mem", spk="spk", cur="cur", mask="mask"))
    d.say(f"{layer.mem} = " + form.format(mem=layer.mem, spk=layer.spk, cur=layer.cur, mask=mask))
    return True


def scale_a_copy(d: Draft, layer: Layer) -> bool:
    copy = d.let("copy", f"{layer.mem} + 0", layer.spk.shape)
    d.say(d.pick(f"{copy}.mul_(0.5)", f"{copy}[:, 0] = 0.0", f"{copy} += {layer.spk}"))
    if d.chance(0.5):
        d.say(f"{layer.mem} = {copy}")
    return True


def restart_within_the_sequence(d: Draft, layer: Layer) -> bool:
    with d.block(f"if {d.time()} == 1:"):
        d.say(f"{layer.mem} = torch.zeros_like({layer.mem})")
    return True


def swap_states(d: Draft, layer: Layer) -> bool | None:
    others = [
        o for o in d.layers if o is not layer and o.mem and o.start != "hidden" and o.spk.shape == layer.spk.shape
    ]
    if not others:
        return None
    other = d.rng.choice(others)
    d.say(f"{layer.mem}, {other.mem} = {other.mem}, {layer.mem}")
    return True


def second_stream(d: Draft, layer: Layer) -> bool | None:
    """The same layer on another current, with a membrane of its own; now and then the membranes cross."""
    if not layer.lif:
        return None
    shape = layer.spk.shape
    candidates = [v for v in d.scope if v.shape == shape]
    other = d.rng.choice(candidates) if candidates else d.let("h", f"0.6 * {layer.cur} + 0.2", shape)
    spk, mem = Value(d.new("spk"), shape), Value(d.new("mem"), shape)
    d.setup.append(f"{mem} = {d.zeros(shape)}")
    d.say(f"{spk}, {mem} = {layer.lif}({other}, {mem})")
    if d.chance(0.4):
        d.note("streams cross")
        d.say(f"{layer.mem}, {mem} = {mem}, {layer.mem}")
    d.scope += [spk, mem]
    return True


def second_call_on_the_state(d: Draft, layer: Layer) -> bool | None:
    if not layer.lif:
        return None
    d.say(f"{layer.spk}, {layer.mem} = {layer.lif}(0.5 * {layer.cur}, {layer.mem})")
    return True


def peek_ahead(d: Draft, layer: Layer) -> bool | None:
    """A call whose membrane goes nowhere: the state forks."""
    if not layer.lif:
        return None
    peek = Value(d.new("peek"), layer.spk.shape)
    d.say(f"{peek}, _ = {layer.lif}({layer.cur} + 0.3, {layer.mem})")
    d.scope.append(peek)
    return True


def every_other_state(d: Draft, layer: Layer) -> bool | None:
    """Two interleaved membranes: a step goes on from the one before the last."""
    if layer.start != "zeros":
        return None
    older = d.new("older")
    d.setup.append(f"{older} = {d.zeros(layer.spk.shape)}")
    d.say(f"{layer.mem}, {older} = {older}, {layer.mem}")
    return True


def membrane_of_another_layer(d: Draft, layer: Layer) -> bool | None:
    """The other layer's membrane is where this one starts from in the next step."""
    others = [o for o in d.layers if o is not layer and o.mem and o.spk.shape == layer.spk.shape]
    if not others:
        return None
    d.closing.append(f"{layer.mem} = 0.5 * ({layer.mem} + {d.rng.choice(others).mem})")
    return True


def adapt_threshold(d: Draft, layer: Layer) -> bool | None:
    """A buffer of the layer that changes from step to step."""
    if not layer.lif or "[" in layer.lif or "learn_threshold" in layer.constructor:
        return None
    d.say(f"{layer.lif}.threshold = {layer.lif}.threshold * 1.05")
    return True


def overwrite_membrane(d: Draft, layer: Layer) -> bool:
    """Without autograd a membrane may be written in place; it is the layer's own too."""
    d.say(d.pick(f"{layer.mem}.mul_(0.7)", f"{layer.mem}[:, 0] = 0.0", f"{layer.mem} -= 0.1 * {layer.spk}"))
    return True


def overwrite_spikes(d: Draft, layer: Layer) -> bool:
    d.say(d.pick(f"{layer.spk}.mul_(0.5)", f"{layer.spk}[:, 0] = 1.0"))
    return True


def overwrite_beta(d: Draft, layer: Layer) -> bool | None:
    if not layer.lif or "[" in layer.lif:
        return None
    d.say(f"{layer.lif}.beta.mul_(0.9)")
    return True


def trace_of_spikes(d: Draft, layer: Layer) -> bool:
    """A buffer that follows the spikes in place, read in this step or in the next."""
    trace = d.buffer("trace", f"torch.zeros({layer.spk.shape[-1]})")
    update = f"{trace}.mul_(0.9).add_({layer.spk}.detach().mean({tuple(range(len(layer.spk.shape)))}))"
    read = f"{layer.cur} + {trace}"
    if d.chance(0.5):
        d.say(update)
    else:
        d.closing.append(update)
    d.let("adapted", read if d.chance(0.6) else f"{layer.cur} * {trace}.clone()", layer.spk.shape)
    return True


GAMES = [detach_every_step, detach_some_steps, change_membrane, change_membrane, change_membrane, scale_a_copy]


GAMES += [restart_within_the_sequence, swap_states, swap_states, second_stream, second_call_on_the_state, peek_ahead]


GAMES += [every_other_state, membrane_of_another_layer, adapt_threshold, trace_of_spikes]


OVERWRITES = [overwrite_membrane, overwrite_spikes, overwrite_beta]


def set_hidden_membrane(d: Draft, layer: Layer) -> bool | None:
    if "[" in layer.lif:
        return None
    d.say(f"{layer.lif}.mem = {layer.lif}.mem" + d.pick(" * 0.8", ".detach()", ".clone()", ".clamp(max=1.0)"))
    return True


def reset_hidden_within_the_sequence(d: Draft, layer: Layer) -> bool:
    with d.block(f"if {d.time()} == 1:"):
        d.say(f"{layer.lif}.reset_mem()")
    return True


def detach_hidden(d: Draft, layer: Layer) -> bool | None:
    """Dynamo breaks its graph here."""
    if d.chance(0.7):
        return None
    d.say(f"{layer.lif}.detach_state()")
    return True


HIDDEN_GAMES = [set_hidden_membrane, set_hidden_membrane, reset_hidden_within_the_sequence, trace_of_spikes]


HIDDEN_GAMES += [detach_hidden, adapt_threshold]
