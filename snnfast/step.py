"""TrainingStep: encoding, forward, loss, backward and optimiser as one call, on a GPU as one CUDA graph."""

import contextlib
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

WARMUP = 3
# DistributedDataParallel arranges its buckets and samples its timings in its first iterations.
WARMUP_DISTRIBUTED = 11


class TrainingStep:
    """One optimiser step on a batch, of your own model, loss and optimiser; on a GPU captured and replayed.

        >>> net = snn.Unroll(nn.Linear(20, 2), snn.Leaky(0.9))
        >>> def loss(spk, target):
        ...     return nn.functional.cross_entropy(spk.sum(0), target)
        >>> def encode(x):
        ...     return x.expand(10, *x.shape)
        >>> step = snn.TrainingStep(net, torch.optim.Adam(net.parameters()), loss, encode)
        >>> value, spk = step(torch.rand(32, 20), torch.randint(2, (32,)))

    A call runs `output = model(encode(x))`, `loss(output, target)`, backward, and the optimiser. On the CPU it does
    just that. On a CUDA device the first calls with a batch of some shapes and dtypes run eagerly on a side stream (3
    of them, 11 under DistributedDataParallel), the next one captures the whole step in a `torch.cuda.CUDAGraph`, and it
    and all later ones replay that: one launch. Every call is one step on its own batch. The smaller last batch of an
    epoch gets a graph of its own once it has come often enough; batches of shapes beyond the first `max_graphs` run
    eagerly. Nothing waits for the device, as long as what you pass in does not. The CUDA part follows PyTorch's notes
    on capturing a whole network and has not run on a GPU yet.

    What the graph asks of the step (anything else raises at the call that captures, or is frozen in the graph):

    - It reads no number back (`.item()`, `print`, `if tensor > 0`) and its control flow is the same in every call.
    - Python state that the model carries from call to call, as `init_hidden=True` membranes, is reset in `forward`.
    - Random numbers come from the device's default generator or from `generators`; they are drawn anew in every call.
    - Whatever else is to happen to gradients goes into the graph by `optimizer.register_step_pre_hook`.

    The step notices when parameters, buffers or optimiser state lie elsewhere (`optimizer.load_state_dict`,
    `model.to`), when a module's mode, `requires_grad` or an option of the optimiser has changed, and captures anew.

    Args:
        model: on the device where it shall train; all its parameters on one.
        optimizer: of `model`'s parameters. On CUDA `torch.optim.SGD`, or one with the option `capturable`, which is
            switched on, as is `fused` where the optimiser has it and you chose neither it nor `foreach`. A fused
            optimiser's `lr` becomes a tensor, through which schedulers reach the graph; in the others (and when you
            assign a number) a new learning rate costs a new capture.
        loss: `loss(output, target)` -> scalar tensor.
        encode: `encode(x)` -> the model's input, or None to pass x on.
        autocast: None, `torch.bfloat16` or `torch.float16`: forward and loss run in `torch.autocast`. With float16 the
            loss is scaled by the attribute `scaler`, a `torch.amp.GradScaler`, whose state_dict belongs in checkpoints;
            to be captured, it wants an optimiser that can be `fused`.
        accumulate: so many calls make one step of the optimiser, on the mean of their gradients; `finish` makes one of
            those that wait at the end of an epoch. Under DistributedDataParallel the last of them exchanges gradients.
        clip: the largest norm of all gradients together, to which they are scaled down before the step, or None.
        scores: `scores(output)` -> [B, classes], or None; see Returns.
        generators: the `torch.Generator`s on the device that `encode`, model or loss draw from.
        max_graphs: how many batch shapes are captured; 0: every call runs eagerly.

    On the CPU any optimiser does, also one whose step evaluates the loss several times (`torch.optim.LBFGS`).

    Raises:
        TypeError, ValueError: an argument that is none of the above.
        RuntimeError: a step that CUDA cannot capture.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[Any, Any], Tensor],
        encode: Callable[[Any], Any] | None = None,
        autocast: torch.dtype | None = None,
        scores: Callable[[Any], Tensor] | None = None,
        generators: Iterable[torch.Generator] = (),
        max_graphs: int = 4,
        accumulate: int = 1,
        clip: float | None = None,
    ):
        self.model, self.optimizer, self.loss, self.encode, self.scores = model, optimizer, loss, encode, scores
        self.autocast, self.generators, self.max_graphs = autocast, tuple(generators), max_graphs
        self.accumulate, self.clip = accumulate, clip
        self._check_arguments()
        self.device = _device(model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=autocast is torch.float16)
        self._waiting = 0
        for generator in self.generators:
            if generator.device.type != self.device.type:
                raise ValueError(f"generators must be on {self.device} as the model is, got one on {generator.device}")
        distributed = any(isinstance(module, DistributedDataParallel) for module in model.modules())
        self._warmup = WARMUP_DISTRIBUTED if distributed else WARMUP
        self._evaluates_again = _needs_closure(optimizer)
        self._backend = _BACKENDS.get(self.device.type) if max_graphs else None
        if self._backend is not None:
            _check_capturable(optimizer)
            self._forget_graphs()

    def __call__(self, x: Any, target: Any) -> tuple[Tensor, Any]:
        """Train on one batch.

        Args:
            x: a tensor, or tuples, lists and dicts of them; copied to the device if it is elsewhere.
            target: likewise.

        Returns:
            (loss, output), detached and yours to keep: the scalar loss before the step, and the model's output; with
            `scores`, instead of the output the number of samples, an int64 scalar, whose largest score is at `target`
            [B]. All stay on the device.
        """
        leaves, layout = tree_flatten((x, target))
        self._check_call(leaves)
        results = self._called(leaves, layout)
        self._waiting = (self._waiting + 1) % self.accumulate
        return results

    def finish(self) -> None:
        """Steps on the mean gradient of the calls that wait for more of them (`accumulate`), if there are any."""
        if not self._waiting:
            return
        for parameter in self._parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(self.accumulate / self._waiting)
        self._waiting = 0
        self._update()

    def _called(self, leaves: list[Any], layout: Any) -> tuple[Tensor, Any]:
        if self._backend is None:
            return self._run(*tree_unflatten(_on(self.device, leaves), layout))
        kind = (layout, *((leaf.shape, leaf.dtype) for leaf in leaves), *self._begins_and_ends())
        graph = self._graphs.get(kind)
        if graph is not None and graph.frozen != self._frozen():
            self._warn_of_constant_change()
            self._forget_graphs()
            graph = None
        if graph is None and self._to_be_captured(kind):
            graph = self._graphs[kind] = self._capture(leaves, layout)
        if graph is None:
            _make_capturable(self.optimizer, self.device)
            batch = tree_unflatten(_on(self.device, leaves), layout)
            return self._capturer.eager(lambda: self._run(*batch))
        return self._replay(graph, leaves)

    def _begins_and_ends(self) -> tuple[bool, bool]:
        """Whether a call is the first, and the last, of those that make a step."""
        return self._waiting == 0, self._waiting == self.accumulate - 1

    def _run(self, x: Any, target: Any) -> tuple[Tensor, Any]:
        if self._evaluates_again:
            return self._run_by_closure(x, target)
        begins, ends = self._begins_and_ends()
        if begins:
            # Gradients that several graphs add to stay where they are.
            self.optimizer.zero_grad(set_to_none=self.accumulate == 1)
        with contextlib.nullcontext() if ends else _without_exchange(self.model):
            loss, output = self._evaluated(x, target)
            self.scaler.scale(loss / self.accumulate if self.accumulate > 1 else loss).backward()
        if ends:
            self._update()
        return self._results(loss, output, target)

    def _run_by_closure(self, x: Any, target: Any) -> tuple[Tensor, Any]:
        results: list[tuple[Tensor, Any]] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss, output = self._evaluated(x, target)
            loss.backward()
            self._clip()
            results.append((loss, output))
            return loss

        self.optimizer.step(closure)
        return self._results(*results[0], target)

    def _evaluated(self, x: Any, target: Any) -> tuple[Tensor, Any]:
        """Loss and output."""
        x = x if self.encode is None else self.encode(x)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = self.model(x)
            loss = self.loss(output, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss must return a scalar tensor, got {got}")
        return loss, output

    def _update(self) -> None:
        """The optimiser's step."""
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _clip(self) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self._parameters(), self.clip)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def _results(self, loss: Tensor, output: Any, target: Any) -> tuple[Tensor, Any]:
        if self.scores is not None:
            return loss.detach(), (self.scores(output).argmax(1) == target).sum()
        return loss.detach(), tree_map(_detached, output)

    def _to_be_captured(self, kind: Hashable) -> bool:
        if len(self._graphs) >= self.max_graphs:
            return False
        self._seen[kind] += 1
        return self._seen[kind] > self._warmup

    def _capture(self, leaves: list[Tensor], layout: Any) -> "_Graph":
        inputs = [leaf.detach().to(self.device, copy=True) for leaf in leaves]
        batch = tree_unflatten(inputs, layout)
        try:
            replay, results = self._capturer.capture(lambda: self._run(*batch), self.generators)
        except RuntimeError as error:
            self.optimizer.zero_grad(set_to_none=True)
            self._forget_graphs()
            # Ending a broken capture raises too; the reason is what broke it.
            cause = error.__context__ or error
            for memory in (error, cause):
                if isinstance(memory, torch.OutOfMemoryError):
                    raise memory from None
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            raise RuntimeError(
                f"the training step cannot be captured in a CUDA graph ({reason}); it must not wait for the GPU or "
                f"use data from the CPU (see TrainingStep); max_graphs=0 runs it eagerly"
            ) from error
        gradients = [(p, p.grad) for group in self.optimizer.param_groups for p in group["params"]]
        return _Graph(replay, inputs, results, gradients, self._frozen())

    def _replay(self, graph: "_Graph", leaves: list[Tensor]) -> tuple[Tensor, Any]:
        with torch.no_grad():
            for static, leaf in zip(graph.inputs, leaves, strict=True):
                static.copy_(leaf, non_blocking=True)
            graph.replay()
            self._replays += 1
            # After an eager step, or that of another graph, .grad would be of an earlier batch.
            for parameter, gradient in graph.gradients:
                parameter.grad = gradient
            return tree_map(_kept, graph.results)

    def _frozen(self) -> list:
        """What a graph holds fast and a user may change: where tensors lie, modes, and the optimiser's numbers."""
        frozen: list[Any] = []
        # Module by module, because parameters() and buffers() would take several times as long in every call.
        for module in self.model.modules():
            frozen.append(module.training)
            frozen += [p is not None and (p.data_ptr(), p.requires_grad) for p in module._parameters.values()]
            frozen += map(self._identity, module._buffers.values())
        for state in self.optimizer.state.values():
            frozen += map(self._identity, state.values())
        for group in self.optimizer.param_groups:
            frozen += [self._identity(value) for name, value in group.items() if name != "params"]
        if self.accumulate > 1:
            frozen += [None if p.grad is None else p.grad.data_ptr() for p in self._parameters()]
        return frozen

    def _identity(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        # A graph reads a tensor on its device anew each time; of one elsewhere it keeps the numbers.
        return value.data_ptr() if value.device == self.device else value.tolist()

    def _forget_graphs(self) -> None:
        # With them goes their memory pool: PyTorch takes no capture into a pool whose graphs are gone.
        self._capturer = self._backend(self.device)
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: Counter[Hashable] = Counter()
        self._replays = 0

    def _warn_of_constant_change(self) -> None:
        if self._replays <= 1:
            warnings.warn(
                "TrainingStep: model or optimizer changed right after the step was captured, the graph is of no use; "
                "if they change with every step, pass a fused optimizer, whose lr is a tensor, or max_graphs=0",
                stacklevel=3,
            )

    def _check_arguments(self) -> None:
        for name, kind in (("model", nn.Module), ("optimizer", Optimizer)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(getattr(self, name)).__name__}")
        for name in ("loss", "encode", "scores"):
            value = getattr(self, name)
            if not callable(value) and (value is not None or name == "loss"):
                raise TypeError(f"{name} must be callable{'' if name == 'loss' else ' or None'}, got {value!r}")
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast must be None, torch.bfloat16 or torch.float16, got {self.autocast}")
        if type(self.accumulate) is not int or self.accumulate < 1:
            raise ValueError(f"accumulate must be a whole number from 1, got {self.accumulate!r}")
        if self.clip is not None and (isinstance(self.clip, bool) or not isinstance(self.clip, (int, float))):
            raise TypeError(f"clip must be a number or None, got {type(self.clip).__name__}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be more than 0, got {self.clip}")
        if _needs_closure(self.optimizer) and (self.accumulate > 1 or self.autocast is torch.float16):
            name = type(self.optimizer).__name__
            raise ValueError(f"accumulate and float16 are not for {name}, whose step evaluates the loss several times")
        for generator in self.generators:
            if not isinstance(generator, torch.Generator):
                raise TypeError(f"generators must hold torch.Generators, got {type(generator).__name__}")
        if type(self.max_graphs) is not int or self.max_graphs < 0:
            raise ValueError(f"max_graphs must be a whole number from 0, got {self.max_graphs!r}")

    def _check_call(self, leaves: list[Any]) -> None:
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(f"x and target must be tensors or containers of tensors, got {type(leaf).__name__}")
        # Its cache would keep casts of weights that the step then changes.
        if torch.is_autocast_enabled(self.device.type):
            raise RuntimeError(
                "a TrainingStep was called inside torch.autocast: pass it autocast=torch.bfloat16 instead"
            )


class _Graph(NamedTuple):
    """A captured step: the tensors it reads its batch from and writes results and gradients to."""

    replay: Callable[[], None]
    inputs: list[Tensor]
    results: tuple[Tensor, Any]
    gradients: list[tuple[Tensor, Tensor | None]]
    frozen: list


class _CudaCapturer:
    """Runs and captures steps as PyTorch's documentation of CUDA graphs demands; its graphs share one memory pool."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, side_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def eager(self, run: Callable[[], tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
        """Run on the side stream, in order with the current one."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = run()
        current.wait_stream(self._stream)
        return results

    def capture(
        self, run: Callable[[], tuple[Tensor, Any]], generators: tuple[torch.Generator, ...]
    ) -> tuple[Callable[[], None], tuple[Tensor, Any]]:
        """Record `run` without running it; returns what runs it and the tensors that will hold its results."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # "thread_local", because a DataLoader's thread that pins memory meanwhile would break a "global" capture.
        # The outer stream context restores the current stream also where ending a broken capture raises.
        with (
            torch.cuda.device(self._device),
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            results = run()
        return graph.replay, results


_BACKENDS = {"cuda": _CudaCapturer}


@cache
def side_stream(device: torch.device) -> "torch.cuda.Stream":
    """The stream on which every TrainingStep on `device` (with its index) runs eagerly and captures.

    Construct a DistributedDataParallel in it, `with torch.cuda.stream(side_stream(device))`: the nodes that accumulate
    its gradients keep the stream of their construction, and a capture cannot leave its own.
    """
    return torch.cuda.Stream(device)


def _needs_closure(optimizer: Optimizer) -> bool:
    """Whether its step asks for a function that evaluates the loss."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


@contextlib.contextmanager
def _without_exchange(model: nn.Module) -> Iterator[None]:
    """Within it, gradients stay in their process."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield


def _device(model: nn.Module) -> torch.device:
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        places = ", ".join(sorted(map(str, devices))) or "no parameters"
        raise ValueError(f"model must have its parameters on one device, got {places}")
    return devices.pop()


def _check_capturable(optimizer: Optimizer) -> None:
    if isinstance(optimizer, SGD) or all("capturable" in group for group in optimizer.param_groups):
        return
    raise ValueError(
        f"optimizer must be torch.optim.SGD or have the option capturable (Adam, AdamW, RMSprop, ...) to be captured "
        f"in a CUDA graph, got {type(optimizer).__name__}; pass such a one, or max_graphs=0 to run eagerly"
    )


def _make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Let the optimiser keep on the device what changes from step to step; what is so already stays as it is."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        if group.get("fused", False) is None and not group.get("foreach") and not group.get("differentiable"):
            group["fused"] = True
        if group.get("fused"):
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(device, torch.float32)
    # It would tell the user that capturable was meant for graphs, in the eager steps before the first one.
    optimizer._warned_capturable_if_run_uncaptured = True


def _on(device: torch.device, leaves: list[Tensor]) -> list[Tensor]:
    return [leaf.to(device, non_blocking=True) for leaf in leaves]


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _kept(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
