"""What the compiler may move past what: order, effects, and random programs."""

import copy
import operator
import random
from collections import Counter

import pytest
import torch
from torch import nn
from torch.fx import Graph
from torch.nn import functional as F

import snnfast as snn
from compiled import B, Graphs, T, assert_same, everything_of, normal
from fuzz_compiler import Raised, check, random_options
from programs import random_program
from snnfast.compiler import graph as g
from snnfast.compiler.effects import FENCE, NONE, Effects, Watcher
from snnfast.compiler.order import Order, effect_edges

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


PROGRAMS = 60


ONCE_WRONG = (94, 1025, 1043, 9041, 11147, 20739, 20823, 20945, 20946, 21315, 21838, 31200, 31863)


def diamond():
    """a -> b -> d and a -> c -> d, with e, f beside it: e reads x, f reads e and d."""
    graph = Graph()
    x = graph.placeholder("x")
    a = graph.call_function(torch.neg, (x,))
    b, c = graph.call_function(torch.abs, (a,)), graph.call_function(torch.exp, (a,))
    d = graph.call_function(torch.add, (b, c))
    e = graph.call_function(torch.neg, (x,))
    f = graph.call_function(torch.add, (e, d))
    graph.output(f)
    return graph, (a, b, c, d, e, f)


def assert_runs(order, edges) -> None:
    """Every node is there once, and every edge leads forward or stays within its group."""
    groups = order.groups()
    place = {node: index for index, group in enumerate(groups) for node in group}
    assert len(place) == sum(map(len, groups))
    assert all(place[before] <= place[after] for before, after in edges)
    assert all(place[before] != place[after] or len(groups[place[before]]) > 1 for before, after in edges)


def edges_of(graph):
    return [(before, node) for node in graph.nodes for before in node.all_input_nodes]


def test_order_groups_what_does_not_depend_on_each_other():
    graph, (a, b, c, d, e, f) = diamond()
    order = Order(graph, [])
    assert order.contract([a, e]) is None and order.contract([b, c]) is None and order.contract([d, f]) is None
    assert [set(group) for group in order.groups()[1:4]] == [{a, e}, {b, c}, {d, f}]
    assert_runs(order, edges_of(graph))


def test_order_names_the_way_back():
    graph, (a, b, c, d, e, f) = diamond()
    order = Order(graph, [])
    path = order.contract([a, d])
    assert path[0] is a and path[1] in (b, c) and path[2:] == [d]
    assert order.contract([a, f]) is not None and order.contract([b, e]) is None
    # b stands for e now, on which f depends.
    assert order.contract([a, f])[0] is a
    assert_runs(order, edges_of(graph))


def test_order_keeps_extra_edges():
    graph, (a, b, c, d, e, f) = diamond()
    order = Order(graph, [(d, e)])
    path = order.contract([a, e])
    assert path[0] is a and path[-2:] == [d, e] and order.contract([b, c]) is None
    assert_runs(order, [*edges_of(graph), (d, e)])


def random_graph(rng, size):
    """A graph whose nodes read one or two earlier ones, and a few edges more."""
    graph = Graph()
    nodes = [graph.placeholder("x")]
    for _ in range(size):
        nodes.append(graph.call_function(torch.add, (rng.choice(nodes[-6:]), rng.choice(nodes))))
    extra = [tuple(nodes[k] for k in sorted(rng.sample(range(len(nodes)), 2))) for _ in range(3)]
    return graph, nodes, extra


def is_acyclic(groups, edges) -> bool:
    """Whether the groups can be put in order, by taking away what depends on nothing left."""
    group_of = {node: index for index, group in enumerate(groups) for node in group}
    before = {index: set() for index in range(len(groups))}
    for earlier, later in edges:
        if group_of[earlier] != group_of[later]:
            before[group_of[later]].add(group_of[earlier])
    while free := [group for group, waits_for in before.items() if not waits_for & before.keys()]:
        for group in free:
            del before[group]
    return not before


def test_order_accepts_exactly_what_stays_acyclic():
    rng = random.Random(0)
    accepted = refused = 0
    for _ in range(60):
        graph, nodes, extra = random_graph(rng, 14)
        order, edges = Order(graph, extra), [*edges_of(graph), *extra]
        groups, free = [[node] for node in graph.nodes], nodes[1:]
        for _ in range(6):
            wanted = rng.sample(free, min(len(free), rng.choice([2, 2, 3])))
            contracted = [group for group in groups if group[0] not in wanted] + [wanted]
            path = order.contract(wanted)
            assert (path is None) == is_acyclic(contracted, edges)
            assert path is None or (path[0] in wanted and path[-1] in wanted and len(path) > 2)
            if path is None:
                groups, free = contracted, [node for node in free if node not in wanted]
            accepted, refused = accepted + (path is None), refused + (path is not None)
            assert_runs(order, edges)
    assert accepted > 50 and refused > 50


def captured(function, *inputs) -> Graph:
    """The graph that Dynamo makes of a function."""
    graphs = Graphs()
    torch.compile(function, backend=graphs, fullgraph=True)(*inputs)
    return graphs[0].graph


def test_effects_of_calls():
    def function(x, out, mean, var):
        y = x + 1
        added = y.sin()
        added += x
        out[0] = x[0]
        dropped = F.dropout(added, 0.5, training=True)
        kept = F.dropout(added, 0.5, training=False)
        normed = F.batch_norm(dropped, mean, var, training=True)
        again = F.batch_norm(dropped, mean, var, training=False)
        with torch.no_grad():
            doubled = x * 2
        y.view(-1).zero_()
        return normed + again + kept + doubled + torch.rand_like(x) + y

    graph = captured(function, torch.randn(3, 4), torch.zeros(3, 4), torch.zeros(4), torch.ones(4))
    watcher = Watcher(graph)
    calls = [node for node in graph.nodes if g.is_call(node)]
    found = {(node.target, watcher.effects(node)) for node in calls if watcher.effects(node)}
    assert found == {
        (operator.iadd, Effects(writes=(0,))),
        (operator.setitem, Effects(writes=(0,))),
        (F.dropout, Effects(random=True)),
        (F.batch_norm, Effects(writes=(1, 2))),
        (torch._C._set_grad_enabled, FENCE),
        ("zero_", Effects(writes=(0,))),
        (torch.rand_like, Effects(random=True)),
    }
    # Of the two, the one in evaluation does nothing.
    assert [watcher.effects(node) for node in calls if node.target is F.dropout][1] == NONE
    assert [watcher.effects(node) for node in calls if node.target is F.batch_norm][1] == NONE
    viewed = next(node for node in calls if node.target == "zero_")
    added = next(node for node in calls if node.target is operator.add)
    assert watcher.written(viewed) == g.storages(added)


def effect_order(function, *inputs):
    """The order of a captured function, and its calls by target."""
    graph = captured(function, *inputs)
    calls = {}
    for node in graph.nodes:
        calls.setdefault(node.target, []).append(node)
    return Order(graph, effect_edges(graph, Watcher(graph))), calls


def test_reads_around_a_write_stay_apart():
    def function(x):
        y = x.sin()
        before, twice = y.exp(), y.cos()
        y += 1
        after, late = y.exp(), y.cos()
        return before, twice, after, late

    order, calls = effect_order(function, torch.randn(3))
    assert operator.iadd in [node.target for node in order.contract(calls["exp"])]
    assert order.contract([calls["exp"][0], calls["cos"][0]]) is None
    assert order.contract([calls["exp"][1], calls["cos"][1]]) is None


def test_random_draws_stay_in_order():
    def function(x):
        return [F.dropout(x), torch.rand_like(x), F.dropout(x)]

    order, calls = effect_order(function, torch.randn(3))
    first, last = calls[F.dropout]
    assert order.contract([first, last]) == [first, *calls[torch.rand_like], last]
    assert order.contract([first, *calls[torch.rand_like]]) is None


def test_nothing_crosses_a_change_of_mode():
    def function(x):
        inside = x.exp()
        with torch.no_grad():
            constant = x.exp()
        return inside, constant, x.exp()

    order, calls = effect_order(function, torch.randn(3))
    first, constant, last = calls["exp"]
    for pair in ([first, constant], [constant, last], [first, last]):
        assert torch._C._set_grad_enabled in [node.target for node in order.contract(pair)]


@pytest.mark.parametrize("products", ["batched", "per-step"])
def test_a_weight_whose_data_is_assigned_in_the_loop(products):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(6, 8), snn.Leaky(beta=0.85, threshold=0.4)

        def forward(self, x):
            mem, spikes = self.lif.init_leaky(), []
            for step, x_t in enumerate(x):
                spk, mem = self.lif(self.fc(x_t), mem)
                if step == 1:
                    self.fc.weight.data *= 1.1
                spikes.append(spk)
            return torch.stack(spikes), mem

    torch.manual_seed(0)
    plain, given = Net().double(), normal(T, B, 6)
    compiled = snn.accelerate(copy.deepcopy(plain), compile=True, products=products)
    for _ in range(2):
        found = []
        for net in (plain, compiled):
            net.zero_grad()
            x = given.clone().requires_grad_()
            spk, mem = net(x)
            (spk.sum() + (mem * mem).sum()).backward()
            found.append([spk, mem, x.grad, *net.parameters(), *(p.grad for p in net.parameters())])
        torch.testing.assert_close(found[1], found[0])


def test_functional_steps_are_fused():
    """Numbers for parameters, no module, and gradients in float64."""

    def function(x, weight):
        mem, spk_rec = None, []
        for step in x:
            spk, mem = snn.functional.leaky_step(step @ weight, mem, beta=0.85, threshold=0.4)
            spk_rec.append(spk)
        return torch.stack(spk_rec), mem

    inputs, nothing, graphs = (normal(T, B, 6), normal(6, 8)), nn.Module(), Graphs()
    compiled = torch.compile(function, backend="snnfast", options={"inner": graphs})
    assert_same(everything_of(nothing, compiled, inputs), everything_of(nothing, function, inputs), exact=False)
    assert sum(graphs.calls().values()) == sum(graphs.sequences().values()) == 1


@pytest.mark.parametrize(
    "seeds", [range(PROGRAMS // 4), pytest.param((*range(PROGRAMS), *ONCE_WRONG), marks=pytest.mark.long)]
)
def test_random_programs(seeds):
    """Some programs, and those that found a mistake; `tests/fuzz_compiler.py` runs more of them."""
    counts, failures, skipped = Counter(), [], 0
    for seed in seeds:
        try:
            counts.update(check(random_program(seed), random_options(seed)))
        except Raised:
            skipped += 1
        except AssertionError as error:
            failures.append(f"seed {seed}: {error}")
    assert not failures, "\n\n".join(failures)
    # What is left: windows of one step, feedback, states that a program changes between the steps.
    assert skipped < len(seeds) / 5 and counts["layers fused"] > counts["layers"] / 5
