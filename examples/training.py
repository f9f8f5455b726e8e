"""The one training loop of every recipe: epochs, evaluation, checkpoints and the metrics row."""

import importlib
import io
import platform
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from datasets import Digits
from distributed import World
from files import InputError, replacing
from recipes import RECIPES
from snnfast import TrainingStep

PACKAGES = {"snnfast": "snnfast", "reference": "snnfast", "snntorch": "snntorch", "norse": "norse", "torch": "torch"}
CHECKPOINT_FORMAT = "snnfast-examples-2"
EVALUATION_SEED = 0


@dataclass(frozen=True)
class Settings:
    """Everything that, with the machine, fixes the numbers of a run.

    A checkpoint continues only a run with equal settings. The library is not among them: all
    libraries train the same parameters, so each can continue what another began.
    """

    recipe: str
    dataset: str
    samples: int
    batch_size: int
    steps: int
    test_steps: int
    encoder: str
    readout: str
    seed: int
    device: str
    processes: int


ARGUMENTS = {"dataset": "--data", "samples": "--limit", "batch_size": "--batch-size", "test_steps": "--steps"}


class Pass(NamedTuple):
    """One pass over a data set: the loss of every batch, and means over the samples seen."""

    losses: Tensor
    loss: float
    accuracy: float
    seconds: float


class Run:
    """A network in training, with all the state that decides how the training continues.

    Args:
        settings: recipe, data and seed. The start, the order of the samples and their random
            spikes depend on nothing else, so every library sees the same.
        library: one of the recipe's.
        digits: the data, on the device of `world`.
        world: where to train, and with which other processes.
        graphs: whether snnfast's steps on a GPU are CUDA graphs.

    Attributes:
        history: one dict per epoch done, of numbers.
        losses: training loss of every iteration done.
    """

    def __init__(self, settings: Settings, library: str, digits: Digits, world: World, graphs: bool = True) -> None:
        self.settings, self.library, self.digits, self.world = settings, library, digits, world
        self.recipe = RECIPES[settings.recipe]
        self.encoder = self.recipe.encoders[settings.encoder]
        self.readout = self.recipe.readouts[settings.readout]
        # One seed each, so that no two of the three random streams overlap.
        seeder = torch.Generator().manual_seed(settings.seed)
        start, order, spikes = torch.randint(2**62, (3,), generator=seeder).tolist()
        torch.manual_seed(start)
        self.net = self.recipe.network(library, digits.train_images.shape[1:]).to(world.device)
        self.optimizer = self.recipe.optimizer(self.net.parameters())
        self.order = torch.Generator().manual_seed(order)
        self.spikes = torch.Generator(world.device).manual_seed(spikes + world.rank)
        self.step = TrainingStep(
            world.wrap(self.net),
            self.optimizer,
            self.readout.loss,
            encode=lambda images: self._encoded(images, settings.steps, self.spikes),
            scores=self.readout.scores,
            generators=[self.spikes],
            # The loops of other libraries run as their authors run them.
            max_graphs=4 if graphs and library == "snnfast" else 0,
        )
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []

    def epoch(self, epochs: int) -> dict[str, float]:
        """Train one epoch (of `epochs`, for the display), evaluate, and return its history row."""
        epoch = len(self.history) + 1
        with _neurons_of(self.library):
            train = self._train(f"epoch {epoch}/{epochs}")
            test = self._evaluate("test")
        self.losses += train.losses.tolist()
        row = {
            "epoch": epoch,
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            "seconds": train.seconds,
            "test_seconds": test.seconds,
            "peak_bytes": _peak_memory(self.world.device)[0],
        }
        self.history.append(row)
        return row

    @torch.no_grad()
    def shown(self, images: Tensor) -> dict[str, Any]:
        """What `pictures.save_all` draws for uint8 images [B, H, W], with the spikes of the evaluation."""
        recipe = self.recipe
        self.net.eval()
        with _neurons_of(self.library):
            x = self._encoded(images, self.settings.test_steps, self._evaluation_generator())
            output = self.net(x)
        return {
            "input_spikes": x if ((x == 0) | (x == 1)).all() else None,
            "spikes": recipe.spikes and recipe.spikes(output),
            "membranes": recipe.membranes and recipe.membranes(output),
            "threshold": recipe.threshold,
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint that `restore` continues from, bit for bit; of several processes, the main one does."""
        spikes = self.world.gathered(self.spikes.get_state())
        if not self.world.main:
            return
        checkpoint = {
            "format": CHECKPOINT_FORMAT,
            "settings": asdict(self.settings),
            "network": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "spikes": spikes,
            "history": self.history,
            "losses": self.losses,
        }
        # Through memory, because torch.save reports a full disk as an opaque RuntimeError.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def restore(self, path: Path) -> None:
        """Take over the state in a checkpoint; InputError if it belongs to another run."""
        checkpoint = read_checkpoint(path)
        try:
            self._check_settings(path, checkpoint["settings"])
            self.net.load_state_dict(checkpoint["network"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.order.set_state(checkpoint["order"])
            self.spikes.set_state(checkpoint["spikes"][self.world.rank])
            self.history, self.losses = checkpoint["history"], checkpoint["losses"]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"argument --checkpoint: {path} is damaged ({type(error).__name__})") from error

    def _check_settings(self, path: Path, saved: dict[str, Any]) -> None:
        for name, value in asdict(self.settings).items():
            # Older checkpoints do not name all settings.
            if saved.get(name) != value:
                raise InputError(
                    f"argument {ARGUMENTS.get(name, '--' + name)}: this run has {name} {value}, "
                    f"but {path} continues a run with {saved.get(name, 'an unknown one')}"
                )

    def _train(self, title: str) -> Pass:
        images, labels = self.digits.train_images, self.digits.train_labels
        order = torch.randperm(len(images), generator=self.order)
        if self.recipe.drop_last:
            order = order[: len(order) - len(order) % self.settings.batch_size]
        self.net.train()
        batches = self.world.shard(order.to(self.world.device), self.settings.batch_size)
        done = self._pass(title, self.step, images, labels, batches)
        # The loss of a batch is the mean of the equal parts that the processes had.
        return done._replace(losses=self.world.total(done.losses) / self.world.size)

    @torch.no_grad()
    def _evaluate(self, title: str) -> Pass:
        images, labels = self.digits.test_images, self.digits.test_labels
        self.net.eval()
        generator = self._evaluation_generator()

        def step(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            output = self.net(self._encoded(images, self.settings.test_steps, generator))
            return self.readout.loss(output, target), (self.readout.scores(output).argmax(1) == target).sum()

        batches = self.world.part(torch.arange(len(images), device=self.world.device), self.settings.batch_size)
        return self._pass(title, step, images, labels, batches)

    def _encoded(self, images: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        return self.encoder(images.float() / 255, steps, generator, self.library)

    def _pass(
        self,
        title: str,
        step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        images: Tensor,
        labels: Tensor,
        batches: Sequence[Tensor],
    ) -> Pass:
        losses = []
        # Loss, right answers and samples, summed.
        sums = torch.zeros(3, device=self.world.device, dtype=torch.float64)
        begin = time.perf_counter()
        disable = None if self.world.main else True
        with tqdm(total=sum(map(len, batches)), desc=title, unit=" samples", leave=False, disable=disable) as bar:
            for index in batches:
                loss, hits = step(images[index], labels[index])
                losses.append(loss)
                sums += torch.stack([loss * len(index), hits, torch.full_like(loss, len(index))])
                # Reading a number waits for the GPU: only when the bar is redrawn anyway.
                if bar.update(len(index)):
                    accuracy = sums[1].item() / bar.n
                    bar.set_postfix_str(f"loss {losses[-1]:.3f}, accuracy {accuracy:.1%}", False)
        loss, right, samples = self.world.total(sums).tolist()
        seconds = time.perf_counter() - begin
        return Pass(torch.stack(losses), loss / samples, right / samples, seconds)

    def _evaluation_generator(self) -> torch.Generator:
        return torch.Generator(self.world.device).manual_seed(EVALUATION_SEED + self.world.rank)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load what `Run.save` wrote; InputError if there is no such file or it is something else."""
    if not path.is_file():
        raise InputError(f"argument --checkpoint: there is no checkpoint {path} to resume from")
    # torch.load raises whatever the bytes of a foreign or truncated file lead it to.
    try:
        # torch.load does not look at the checksums that are in the file.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _foreign(path) from error
    if damaged or not isinstance(checkpoint, dict) or checkpoint.get("format") != CHECKPOINT_FORMAT:
        raise _foreign(path)
    return checkpoint


def import_library(library: str, recipe: str) -> Any:
    """Import the package behind one of a recipe's libraries; InputError if it cannot be, or is none of them."""
    allowed = RECIPES[recipe].libraries
    if library not in allowed:
        raise InputError(f"argument --library: {recipe} runs on {', '.join(allowed)}, not on {library}")
    package = PACKAGES[library]
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"argument --library: {library} needs the package {package}, which cannot be "
            f"imported ({reason}); install it or choose {' or '.join(name for name in allowed if name != library)}"
        ) from error


def metrics(run: Run, version: str) -> dict[str, Any]:
    """Summarise a run as one flat row plus its history; times in seconds, memory in bytes."""
    peak_kind = _peak_memory(run.world.device)[1]
    seconds = [row["seconds"] for row in run.history]
    settings = asdict(run.settings) | {"device": _hardware(run.world.device)}
    return settings | {
        "library": run.library,
        "version": version,
        "torch": torch.__version__,
        "epochs": len(run.history),
        "test_accuracy": run.history[-1]["test_accuracy"],
        "seconds_per_epoch": sum(seconds) / len(seconds),
        "peak_bytes": max(row["peak_bytes"] for row in run.history),
        "peak_kind": peak_kind,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "history": run.history,
    }


def _neurons_of(library: str) -> AbstractContextManager[Any]:
    if library != "reference":
        return nullcontext()
    import snnfast

    return snnfast.use_reference()


def _foreign(path: Path) -> InputError:
    return InputError(f"argument --checkpoint: {path} is not a checkpoint of these examples, or is damaged")


def _peak_memory(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda max_memory_allocated"
    import resource

    # Linux counts kibibytes here, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process peak RSS"


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_model()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    commit = _git("rev-parse", "--short", "HEAD")
    return commit and commit + ("-dirty" if _git("status", "--porcelain", "-uno") else "")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
