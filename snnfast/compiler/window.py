"""How many steps of a captured loop run at once."""

from torch import Tensor, nn
from torch.fx import Graph, Node

from ..loops.window import Stage, Windows, choose
from . import graph as g
from .chains import Chain


def choose_windows(graph: Graph, chains: list[Chain]) -> tuple[Windows, str]:
    """The windows in which steps run as one call, the same for all layers so that they meet; and why these."""
    longest = max(chains, key=lambda chain: len(chain.steps))
    device = g.value(longest.steps[0].args[0]).device
    return choose(_stages(graph, chains), len(longest.steps), device)


def _learned(node: Node) -> int:
    """The bytes of weights that an operation is given."""
    given = [tensor for one in node.all_input_nodes if one.op == "placeholder" for tensor in g.tensors(one)]
    return sum(tensor.nbytes for tensor in given if isinstance(tensor, nn.Parameter) and tensor.requires_grad)


def is_light(chain: Chain, chains: list[Chain]) -> bool:
    """Whether a layer is so small beside the others, as readouts are, that all of its steps may run as one call."""
    return 8 * _bytes_of_currents(chain) <= sum(map(_bytes_of_currents, chains))


def _bytes_of_currents(chain: Chain) -> int:
    return len(chain.steps) * _bytes(g.value(chain.steps[0].args[0]))


def _stages(graph: Graph, chains: list[Chain]) -> list[Stage]:
    """The operations of one step: those up to the last layer's second one, from its first on."""
    steps = {step: chain for chain in chains for step in chain.steps}
    last = max(chains, key=lambda chain: (len(chain.steps), chain.steps[0]))
    start, end = last.steps[0], last.steps[min(1, len(last.steps) - 1)]
    stages = []
    for node in graph.nodes:
        if not (start < node <= end) or not g.is_call(node):
            continue
        before = set().union(*(g.storages(given) for given in node.all_input_nodes))
        made = [tensor for tensor in g.tensors(node) if tensor.untyped_storage()._cdata not in before]
        if not made:
            continue
        if node in steps:
            # Backward of a recurrent layer holds the gradients of both of its currents and of what comes back.
            made, kept = made[:1] * (3 if steps[node].neuron.recurrent else 1), made[1:]
        else:
            kept = [tensor for one in node.all_input_nodes if g.is_call(one) for tensor in g.tensors(one)]
        kept = sum(_bytes(tensor) for tensor in kept if tensor.requires_grad)
        stages.append(Stage(sum(map(_bytes, made)), kept, _learned(node), node in steps))
    return stages


def _bytes(tensor: Tensor) -> int:
    count = tensor.element_size()
    for size in tensor.shape:
        count *= size if isinstance(size, int) else size.node.hint or 1
    return count
