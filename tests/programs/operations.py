"""Statements on a value: elementwise, reshapings, products, writes."""

import math

from .draft import MAX_NEURONS, Draft, Value

# Operations on a value v of any shape.

ACTIVATIONS = (
    "torch.relu({v})",
    "F.relu({v})",
    "F.leaky_relu({v}, 0.1)",
    "torch.tanh({v})",
    "{v}.sigmoid() * 2",
    "F.gelu({v})",
    "F.softplus({v})",
    "F.elu({v})",
    "F.hardtanh({v}, -1.0, 1.5)",
    "torch.exp(-{v}.abs())",
)


ACTIVATION_MODULES = (
    "nn.ReLU()",
    "nn.Tanh()",
    "nn.GELU()",
    "nn.LeakyReLU(0.2)",
    "nn.PReLU()",
    "nn.Identity()",
)


ARITHMETIC = (
    "{v} * 1.3",
    "0.7 * {v} + 0.1",
    "1 - {v}",
    "{v} / 1.5",
    "-{v}",
    "{v}.abs()",
    "{v} + {v}.detach()",
    "{v} ** 2",
    "torch.add({v}, 0.2)",
    "torch.mul(input={v}, other=0.9)",
    "{v}.clamp(-1.0, 1.5)",
    "{v}.clamp(min=-0.5)",
    "{v}.clone()",
    "{v}.contiguous()",
)


COMPARISONS = (
    "torch.where({v} > 0.05, {v}, 0.2 * {v})",
    "torch.where({v} > 0.3, 1.0, {v})",
    "({v} > 0.1).to({v}.dtype) * {v} + 0.3",
    "{v}.masked_fill({v} < -0.5, 0.4)",
    "torch.maximum({v}, 0.1 - {v})",
    "{v} * ({v} < 1.0)",
)


ACROSS_FEATURES = (
    "torch.softmax({v}, dim=-1) * 2",
    "{v}.softmax(1)",
    "{v} - 0.5 * {v}.mean(-1, keepdim=True)",
    "{v} / (1 + {v}.abs().sum(1, keepdim=True))",
    "{v}.cumsum(-1)",
    "{v}.flip(-1)",
    "{v}.roll(1, dims=-1)",
    "{v} + {v}.amax(dim=1, keepdim=True)",
    "F.layer_norm({v}, {v}.shape[1:])",
    "F.normalize({v}, dim=1)",
)


ACROSS_BATCH = (
    "{v} - 0.5 * {v}.mean(0, keepdim=True)",
    "{v} - 0.5 * {v}.mean()",
    "{v} / (1 + {v}.norm())",
    "{v} + {v}.sum(0)",
    "{v}.flip(0)",
    "{v}.roll(1, 0)",
    "{v}.cumsum(0) * 0.7",
    "{v}[torch.arange({v}.shape[0] - 1, -1, -1)]",
)


RANDOM = (
    "F.dropout({v}, 0.3)",
    "torch.bernoulli({v}.sigmoid())",
    "{v} + 0.2 * torch.rand_like({v})",
    "{v} + 0.1 * torch.randn({v}.shape, dtype={v}.dtype)",
    "{v} * (torch.rand_like({v}) > 0.2)",
)


def activation(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*ACTIVATIONS).format(v=v), v.shape)


def activation_module(d: Draft, v: Value) -> Value:
    return d.let("h", f"{d.module('act', d.pick(*ACTIVATION_MODULES))}({v})", v.shape)


def arithmetic(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*ARITHMETIC).format(v=v), v.shape)


def comparison(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*COMPARISONS).format(v=v), v.shape)


def across_features(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*ACROSS_FEATURES).format(v=v), v.shape)


def across_batch(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*ACROSS_BATCH).format(v=v), v.shape)


def random_operator(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*RANDOM).format(v=v), v.shape)


def dropout(d: Draft, v: Value) -> Value:
    layer = d.module("dropout", "nn.Dropout2d(0.3)" if len(v.shape) == 3 and d.chance(0.5) else "nn.Dropout(0.3)")
    return d.let("h", f"{layer}({v})", v.shape)


def learned_scale(d: Draft, v: Value) -> Value:
    gain = d.parameter("gain", v.shape[-1]) if d.chance(0.6) else d.module("gain", "nn.Parameter(torch.tensor(1.2))")
    return d.let(
        "h", d.pick("{v} * {gain}", "{gain} * {v}", "{v} + {gain}", "{gain} - {v}").format(v=v, gain=gain), v.shape
    )


def scalar_of_the_step(d: Draft, v: Value) -> Value:
    t = d.time()
    return d.let("h", d.pick(f"{v} * 0.9**{t}", f"{v} * ({t} + 1) / 2", f"{v} + 0.1 * {t}"), v.shape)


def tensor_of_the_step(d: Draft, v: Value) -> Value:
    code = d.parameter("code", d.steps, v.shape[-1])
    return d.let("h", d.pick(f"{v} + {code}[{d.time()}]", f"{code}[{d.time()}] * {v}"), v.shape)


def layer_norm(d: Draft, v: Value) -> Value | None:
    if v.shape[-1] == 1:
        return None
    return d.let("h", f"{d.module('norm', f'nn.LayerNorm({v.shape[-1]})')}({v})", v.shape)


def group_norm(d: Draft, v: Value) -> Value | None:
    if len(v.shape) < 2:
        return None
    return d.let("h", f"{d.module('norm', f'nn.GroupNorm(1, {v.shape[0]})')}({v})", v.shape)


def _batch_norm_of(v: Value) -> str:
    return f"nn.BatchNorm{'2d' if len(v.shape) == 3 else '1d'}({v.shape[0]})"


def batch_norm(d: Draft, v: Value) -> Value:
    """In training mode its statistics mix the batch, and its running buffers order the steps."""
    d.min_batch = 2
    d.note(f"batch_norm {'training' if d.training else 'eval'}")
    return d.let("h", f"{d.module('bn', _batch_norm_of(v))}({v})", v.shape)


def frozen_batch_norm(d: Draft, v: Value) -> Value:
    return d.let("h", f"{d.module('bn', f'{_batch_norm_of(v)}.requires_grad_(False)')}.eval()({v})", v.shape)


def batch_norm_per_step(d: Draft, v: Value) -> Value:
    d.min_batch = 2
    norms = d.module("bns", f"nn.ModuleList([{_batch_norm_of(v)} for _ in range({d.steps})])")
    return d.let("h", f"{norms}[{d.time()}]({v})", v.shape)


def residual(d: Draft, v: Value) -> Value | None:
    """A value of the same shape computed before: a skip connection, a membrane as a current."""
    others = [other for other in d.scope if other.shape == v.shape and other.name != v.name]
    if not others:
        return None
    other = d.rng.choice(others)
    forms = ("{v} + {o}", "{o} + {v}", "{v} * {o}", "torch.add({v}, {o}, alpha=0.5)", "torch.where({v} > 0, {v}, {o})")
    return d.let("h", d.pick(*forms).format(v=v, o=other), v.shape)


def shared_with_outside(d: Draft, v: Value) -> Value:
    """A value computed before the loop, used in every step and returned."""
    shared = d.new("shared")
    d.setup.append(f"{shared} = torch.tanh({d.parameter('w', v.shape[-1])})")
    d.outputs.append(f"{shared} * 2")
    return d.let("h", d.pick(f"{v} * {shared}", f"{v} + {shared}"), v.shape)


def history(d: Draft, v: Value) -> Value:
    """Steps that read what earlier steps left in a list."""
    past = d.new("past")
    d.setup.append(f"{past} = []")
    d.say(f"{past}.append({v})")
    return d.let("h", f"{v} + 0.5 * {d.pick(f'{past}[0]', f'sum({past})', f'{past}[len({past}) // 2]')}", v.shape)


def tensor_of_the_past(d: Draft, v: Value) -> Value:
    """Steps that read what earlier steps wrote into a tensor."""
    past = d.new("past")
    d.setup.append(f"{past} = torch.zeros({d.steps}, batch, {', '.join(map(str, v.shape))}, dtype=x.dtype)")
    h = d.let("h", f"{v} + 0.5 * {past}[{d.time()} - 1]", v.shape)
    d.say(f"{past}[t] = {h}")
    return h


def sequence_written_in_place(d: Draft, v: Value) -> Value | None:
    """A step writes into the frame of the next."""
    first = d.arguments[0]
    if first.shape[:2] != (d.steps, "B"):
        return None
    field, shape = d.new("field"), first.shape[2:]
    d.setup.append(f"{field} = {first.name}.clone()")
    h = d.let("h", f"{field}[{d.time()}] * 0.8 + 0.1", shape)
    d.say(f"{field}[(t + 1) % {d.steps}] += 0.2 * {fit(d, v, shape)}")
    return d.let("h", f"{v} + {fit(d, h, v.shape)}", v.shape)


def step_of_no_grad(d: Draft, v: Value) -> Value:
    """Part of a step that autograd does not see."""
    with d.block("with torch.no_grad():"):
        scale = d.let("scale", d.pick(f"1 / (1 + {v}.abs().mean())", f"1 + 0.1 * torch.rand_like({v})"), ())
    d.scope.remove(scale)
    return d.let("h", f"{v} * {scale}", v.shape)


def chosen_by_step(d: Draft, v: Value) -> Value:
    """Another operation in some steps."""
    value = Value(d.new("h"), v.shape)
    first, second = (d.pick(*ARITHMETIC, *ACTIVATIONS).format(v=v) for _ in range(2))
    d.say(f"{value} = {first} if {d.time()} % 2 == 0 else {second}")
    d.scope.append(value)
    return value


# Operations that give another shape: {rank: [(template, sizes -> new shape, or None where it does not apply)]}.

RESHAPINGS = {
    1: (
        ("{v}.unsqueeze(1)", lambda n: (1, n)),
        ("{v}.unsqueeze(-1)", lambda n: (n, 1)),
        ("{v}[:, 1:]", lambda n: (n - 1,)),
        ("{v}[:, ::2]", lambda n: ((n + 1) // 2,)),
        ("{v}[..., [0, -1]]", lambda n: (2,)),
        ("{v}.reshape({v}.shape[0], 2, -1)", lambda n: (2, n // 2) if n % 2 == 0 else None),
        ("{v}.unflatten(1, (-1, 2))", lambda n: (n // 2, 2) if n % 2 == 0 else None),
        ("{v}.contiguous().view(-1, 1, {n})", lambda n: (1, n)),
        ("F.pad({v}, (1, 0), value=0.5)", lambda n: (n + 1,)),
        ("{v}.repeat(1, 2)", lambda n: (2 * n,)),
        ("{v}.repeat_interleave(2, dim=-1)", lambda n: (2 * n,)),
        ("torch.cat([{v}, -{v}], dim=1)", lambda n: (2 * n,)),
        ("torch.cat(({v}, {v} * 0.5), -1)", lambda n: (2 * n,)),
        ("torch.stack([{v}, 1 - {v}], dim=1)", lambda n: (2, n)),
        ("{v}.mean(1, keepdim=True)", lambda n: (1,)),
        ("{v}.sum(dim=-1, keepdim=True)", lambda n: (1,)),
        ("{v}.unsqueeze(1).expand(-1, 2, -1)", lambda n: (2, n)),
        ("{v}.t().reshape({n}, -1).t()", lambda n: (n,)),
    ),
    2: (
        ("{v}.flatten(1)", lambda c, n: (c * n,)),
        ("{v}.reshape({v}.shape[0], -1)", lambda c, n: (c * n,)),
        ("{v}.transpose(1, 2)", lambda c, n: (n, c)),
        ("{v}.permute(0, 2, 1)", lambda c, n: (n, c)),
        ("{v}.mean(2)", lambda c, n: (c,)),
        ("{v}.sum(dim=1)", lambda c, n: (n,)),
        ("{v}[:, 0]", lambda c, n: (n,)),
        ("{v}[..., -1]", lambda c, n: (c,)),
        ("{v}.squeeze(1)", lambda c, n: (n,) if c == 1 else None),
        ("F.avg_pool1d({v}, 2)", lambda c, n: (c, n // 2)),
        ("F.max_pool1d({v}, 2, stride=1)", lambda c, n: (c, n - 1)),
        ("F.adaptive_avg_pool1d({v}, 2)", lambda c, n: (c, 2)),
        ("{v}.unsqueeze(1)", lambda c, n: (1, c, n)),
        ("{v} @ {v}.transpose(1, 2)", lambda c, n: (c, c)),
    ),
    3: (
        ("{v}.flatten(1)", lambda c, h, w: (c * h * w,)),
        ("{v}.flatten(2)", lambda c, h, w: (c, h * w)),
        ("{v}.reshape({v}.size(0), -1)", lambda c, h, w: (c * h * w,)),
        ("F.max_pool2d({v}, 2)", lambda c, h, w: (c, h // 2, w // 2)),
        ("F.avg_pool2d({v}, 2, stride=1)", lambda c, h, w: (c, h - 1, w - 1)),
        ("F.adaptive_avg_pool2d({v}, (2, 1))", lambda c, h, w: (c, 2, 1)),
        ("F.adaptive_max_pool2d({v}, 1)", lambda c, h, w: (c, 1, 1)),
        ("{v}.mean((2, 3))", lambda c, h, w: (c,)),
        ("{v}.sum(1)", lambda c, h, w: (h, w)),
        ("{v}.permute(0, 2, 3, 1)", lambda c, h, w: (h, w, c)),
        ("{v}.transpose(-1, -2)", lambda c, h, w: (c, w, h)),
        ("{v}[:, :, 0]", lambda c, h, w: (c, w)),
    ),
}


RESHAPING_MODULES = {
    1: (),
    2: (
        ("nn.Flatten()", lambda c, n: (c * n,)),
        ("nn.AvgPool1d(2)", lambda c, n: (c, n // 2)),
    ),
    3: (
        ("nn.Flatten()", lambda c, h, w: (c * h * w,)),
        ("nn.MaxPool2d(2)", lambda c, h, w: (c, h // 2, w // 2)),
        ("nn.AvgPool2d(2)", lambda c, h, w: (c, h // 2, w // 2)),
        ("nn.AdaptiveAvgPool2d(1)", lambda c, h, w: (c, 1, 1)),
    ),
}


def _fitting(table, v: Value):
    """The entries that apply to v, with the shapes they give."""
    shapes = [(form, shape_of(*v.shape)) for form, shape_of in table[len(v.shape)]]
    return [(form, shape) for form, shape in shapes if shape and 0 < math.prod(shape) <= MAX_NEURONS and min(shape) > 0]


def reshaping(d: Draft, v: Value) -> Value:
    form, shape = d.rng.choice(_fitting(RESHAPINGS, v))
    d.note(form.format(v="v", n="n"))
    return d.let("h", form.format(v=v, n=v.shape[0]), shape)


def reshaping_module(d: Draft, v: Value) -> Value | None:
    forms = _fitting(RESHAPING_MODULES, v)
    if not forms:
        return None
    constructor, shape = d.rng.choice(forms)
    return d.let("h", f"{d.module('pool', constructor)}({v})", shape)


def halves(d: Draft, v: Value) -> Value | None:
    if v.shape[0] % 2:
        return None
    shape = (v.shape[0] // 2, *v.shape[1:])
    first, second = Value(d.new("h"), shape), Value(d.new("h"), shape)
    d.say(f"{first}, {second} = " + d.pick(f"{v}.chunk(2, dim=1)", f"torch.split({v}, {shape[0]}, dim=1)"))
    d.scope += [first, second]
    return d.let("h", d.pick(f"{first} + {second}", f"{first} * {second}.sigmoid()"), shape)


# Products with learned weights.


def linear(d: Draft, v: Value) -> Value:
    width = d.rng.randint(2, 8)
    bias = d.pick("", "", ", bias=False")
    layer = d.module("fc", f"nn.Linear({v.shape[-1]}, {width}{bias})")
    return d.let("cur", f"{layer}({v})", (*v.shape[:-1], width))


def matrix_product(d: Draft, v: Value) -> Value:
    width = d.rng.randint(2, 8)
    weight = d.parameter("w", v.shape[-1], width)
    forms = ["{v} @ {w}", "torch.matmul({v}, {w})", "{v} @ {w}.tanh()", "F.linear({v}, {w}.t())"]
    if len(v.shape) == 1:
        forms += ["torch.mm({v}, {w})", "({w}.t() @ {v}.t()).t()", 'torch.einsum("bi,ij->bj", {v}, {w})']
        forms += [f"torch.addmm({d.parameter('b', width)}, {{v}}, {{w}})"] if d.chance(0.3) else []
    return d.let("cur", d.pick(*forms).format(v=v, w=weight), (*v.shape[:-1], width))


def convolution(d: Draft, v: Value) -> Value | None:
    if len(v.shape) < 2:
        return None
    n = len(v.shape) - 1
    channels, kernel = d.rng.randint(1, 3), d.pick(1, 3)
    options = d.pick("", ", bias=False", f", groups={v.shape[0]}", ', padding_mode="circular"')
    if "groups" in options:
        channels = v.shape[0]
    if kernel == 1 or min(v.shape[1:]) == 1:
        options = options.replace(', padding_mode="circular"', "")
    layer = d.module("conv", f"nn.Conv{n}d({v.shape[0]}, {channels}, {kernel}, padding={kernel // 2}{options})")
    return d.let("cur", f"{layer}({v})", (channels, *v.shape[1:]))


def strided_convolution(d: Draft, v: Value) -> Value | None:
    if len(v.shape) != 3 or min(v.shape[1:]) < 3:
        return None
    shape = (2, *((size - 3) // 2 + 1 for size in v.shape[1:]))
    if d.chance(0.5):
        layer = d.module("conv", f"nn.Conv2d({v.shape[0]}, 2, 3, stride=2)")
        return d.let("cur", f"{layer}({v})", shape)
    return d.let("cur", f"F.conv2d({v}, {d.parameter('w', 2, v.shape[0], 3, 3)}, stride=2)", shape)


def linear_per_step(d: Draft, v: Value) -> Value:
    layers = d.module("fcs", f"nn.ModuleList([nn.Linear({v.shape[-1]}, 4) for _ in range({d.steps})])")
    return d.let("cur", f"{layers}[{d.time()}]({v})", (*v.shape[:-1], 4))


def weight_per_step(d: Draft, v: Value) -> Value:
    weight = d.parameter("w", d.steps, v.shape[-1], 4)
    return d.let("cur", f"{v} @ {weight}[{d.time()}]", (*v.shape[:-1], 4))


def linear_twice(d: Draft, v: Value) -> Value:
    """One layer used twice in a step."""
    width = v.shape[-1]
    layer = d.module("fc", f"nn.Linear({width}, {width})")
    hidden = d.let("h", f"torch.relu({layer}({v}))", v.shape)
    return d.let("cur", f"{layer}({hidden})", v.shape)


def sequential_products(d: Draft, v: Value) -> Value:
    layer = d.module("mlp", f"nn.Sequential(nn.Linear({v.shape[-1]}, 5), nn.ReLU(), nn.Linear(5, 4))")
    return d.let("cur", f"{layer}({v})", (*v.shape[:-1], 4))


def product_in_autocast(d: Draft, v: Value) -> Value | None:
    if d.autocast != "product":
        return None
    with d.block('with torch.autocast("cpu", dtype=torch.bfloat16):'):
        cur = linear(d, v)
    d.scope.remove(cur)
    return d.let("cur", f"{cur}.float()", cur.shape)


def fast_weights(d: Draft, v: Value) -> Value | None:
    """A weight that every step reads, then rewrites."""
    if len(v.shape) > 1:
        return None
    weight = d.buffer("fast", f"0.8 * torch.eye({v.shape[0]})")
    cur = d.let("cur", f"{v} @ {weight}", v.shape)
    update = f"0.05 * {v}.detach().t() @ {cur}.detach().tanh()"
    d.say(f"{weight}.add_({update})" if d.no_grad else f"{weight} = {weight} + {update}")
    return cur


def decaying_weight(d: Draft, v: Value) -> Value:
    """A weight that every step scales in place, behind autograd's back."""
    layer = d.module("fc", f"nn.Linear({v.shape[-1]}, 4)")
    cur = d.let("cur", f"{layer}({v})", (*v.shape[:-1], 4))
    d.say(f"{layer}.weight.mul_(0.9)" if d.no_grad else f"{layer}.weight.data.mul_(0.9)")
    return cur


def fit(d: Draft, v: Value, shape: tuple[int, ...]) -> Value:
    """v brought to a wanted shape."""
    if v.shape == shape:
        return v
    flat = f"{v}.flatten(1)" if len(v.shape) > 1 else f"{v}"
    layer = d.module("fc", f"nn.Linear({v.size}, {math.prod(shape)})")
    folded = f".unflatten(1, {shape})" if len(shape) > 1 else ""
    return d.let("cur", f"{layer}({flat}){folded}", shape)


OPERATIONS = [activation, activation_module, arithmetic, comparison, across_features, across_batch, random_operator]


OPERATIONS += [dropout, learned_scale, scalar_of_the_step, tensor_of_the_step, layer_norm, group_norm, batch_norm]


OPERATIONS += [frozen_batch_norm, batch_norm_per_step, residual, residual, shared_with_outside, step_of_no_grad]


OPERATIONS += [history, tensor_of_the_past, sequence_written_in_place]


OPERATIONS += [chosen_by_step, reshaping, reshaping, reshaping, reshaping_module, reshaping_module, halves]


PRODUCTS = [linear, linear, linear, matrix_product, convolution, convolution, strided_convolution, linear_per_step]


PRODUCTS += [weight_per_step, linear_twice, sequential_products, fast_weights, decaying_weight, product_in_autocast]


ALIKE = [activation, activation_module, arithmetic, comparison, across_features, across_batch, dropout, learned_scale]


ALIKE += [scalar_of_the_step, layer_norm, group_norm, batch_norm, frozen_batch_norm, residual, shared_with_outside]


ALIKE += [step_of_no_grad, reshaping, reshaping, reshaping_module, halves]


PRODUCTS_ALIKE = [linear, linear, matrix_product, convolution, sequential_products]


# Writing in place: to v, that nobody has read yet.

IN_PLACE = (
    "{v} += {b}",
    "{v}.add_({b})",
    "{v} -= 0.1",
    "{v}.mul_(0.8)",
    "{v} *= 1.2",
    "{v}[:, 0] = 0.0",
    "{v}[:, 0] += 0.5",
    "{v}[:, -1:].mul_(0.5)",
    "{v}[0].zero_()",
    "{v}.clamp_(-1.0, 2.0)",
    "{v}.relu_()",
    "F.relu({v}, inplace=True)",
    "F.dropout({v}, 0.3, self.training, inplace=True)",
    "{v}.data.mul_(0.9)",
)


def write_in_place(d: Draft, v: Value) -> Value:
    form = d.pick(*IN_PLACE)
    d.note("in place: " + form.format(v="v", b="b"))
    d.say(form.format(v=v, b=d.parameter("bias", v.shape[-1]) if "{b}" in form else ""))
    return v


def inplace_module(d: Draft, v: Value) -> Value:
    return d.let("h", f"{d.module('act', 'nn.ReLU(inplace=True)')}({v})", v.shape)


def write_through_a_view(d: Draft, v: Value) -> Value:
    view = d.new("view")
    d.say(f"{view} = " + d.pick(f"{v}[:, :1]", f"{v}.transpose(0, 1)[0]", f"{v}.flatten(1)", f"{v}.detach()"))
    d.say(d.pick(f"{view}.mul_(0.5)", f"{view} += 0.2", f"{view}.zero_()"))
    return v


def write_after_reading(d: Draft, v: Value) -> Value:
    """What was read before the write keeps the old numbers."""
    old = d.let("old", f"{v} * 0.5 + 0.1", v.shape)
    d.say(d.pick(f"{v}.add_(0.3)", f"{v}[:, 0] = 0.0", f"{v}.mul_(-0.5)"))
    return d.let("cur", f"{v} + {old}", v.shape)


WRITES = [write_in_place, write_in_place, write_in_place, inplace_module, write_through_a_view, write_after_reading]


def write_current(d: Draft, v: Value) -> Value:
    """From what arrives to the current of a layer."""
    operations = ALIKE if d.long and d.chance(0.8) else OPERATIONS
    for _ in range(d.pick(0, 0, 1, 1, 2)):
        v = d.choose(operations, v)
    if d.chance(0.8) or not v.name.isidentifier():
        v = d.choose(PRODUCTS_ALIKE if operations is ALIKE else PRODUCTS, v)
        if d.chance(0.06 if d.long else 0.3) and not d.body[-1].lstrip().startswith("self.fast"):
            v = d.choose(WRITES, v)
    for _ in range(d.pick(0, 0, 0, 0, 1, 1, 2)):
        v = d.choose(operations, v)
    if d.common_shape:
        v = fit(d, v, d.common_shape)
    elif v.size > MAX_NEURONS or d.chance(0.1):
        v = fit(d, v, (d.rng.randint(2, 6),))
    return v
