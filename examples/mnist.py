"""Train one of the reference systems on MNIST: python examples/mnist.py --recipe rate-fc."""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

import datasets
import pictures
from compare import compare
from distributed import World, world
from files import InputError, check_writable, replacing
from recipes import RECIPES
from training import PACKAGES, Run, Settings, import_library, metrics, read_checkpoint

INTERRUPTED = 130
PICTURED = 16


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is there for --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: sys.argv) and return the exit code.

    Bad input raises SystemExit(2) after one line on standard error.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        return (compare if args.compare else _train)(args)
    except InputError as error:
        parser.error(str(error))
    except torch.OutOfMemoryError:
        parser.error("argument --batch-size: out of GPU memory, give a smaller one")
    except OSError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted before the training began", file=sys.stderr)
        return INTERRUPTED


def _parser() -> Parser:
    parser = Parser(
        description="Train a reference system on MNIST, evaluate it every epoch and draw it.",
        epilog="\n".join(_values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--recipe", choices=RECIPES, default="rate-fc", help="system to train (%(default)s)")
    add("--library", choices=PACKAGES, help="whose neurons (snnfast)")
    add("--compare", action="store_true", help="train on snnfast and on the authors' library, side by side")
    add("--device", help="cpu, cuda or cuda:N (cuda where there is one, else cpu)")
    add("--seed", type=_whole(0), help="fixes the result on a machine (the recipe's)")
    add("--epochs", type=_whole(1), help="epochs in all, with those resumed (the recipe's)")
    add("--batch-size", type=_whole(1), metavar="N", help="samples per step (the recipe's)")
    add("--limit", type=_whole(1), metavar="N", help="train on N samples only (the recipe's)")
    add("--steps", type=_whole(1), metavar="T", help="time steps, in evaluation too (the recipe's)")
    add("--encoder", metavar="NAME", help="how images become input over time (the recipe's)")
    add("--readout", metavar="NAME", help="how the output becomes a prediction (the recipe's)")
    add("--threads", type=_whole(1, os.cpu_count()), metavar="N", help="CPU threads (PyTorch's choice)")
    add("--data", type=Path, metavar="DIR", help="holds MNIST/raw ($SNNFAST_DATA or ./data, made if need be)")
    add("--plots", type=Path, metavar="DIR", help="pictures go here (runs/RECIPE)")
    add("--animations", action="store_true", help="draw moving pictures too")
    add("--checkpoint", type=Path, metavar="FILE", help="saved every epoch (PLOTS/checkpoint.pt)")
    add("--out", type=Path, metavar="FILE", help="metrics go here (PLOTS/metrics.json)")
    add("--resume", action="store_true", help="continue from the checkpoint")
    return parser


def _values() -> Iterator[str]:
    """What the recipes train with, and which encoders and readouts they take, each its own first."""
    yield "the recipes' values:"
    yield f"  {'recipe':16} {'library':9} {'T':>4} {'T,test':>6} {'batch':>5} {'epochs':>6}  encoders; readouts"
    for name, recipe in RECIPES.items():
        numbers = f"{recipe.steps:4} {recipe.test_steps or recipe.steps:6} {recipe.batch_size:5} {recipe.epochs:6}"
        yield f"  {name:16} {recipe.original:9} {numbers}  {', '.join(recipe.encoders)}; {', '.join(recipe.readouts)}"


def _train(args: argparse.Namespace) -> int:
    args.library = args.library or "snnfast"
    version = getattr(import_library(args.library, args.recipe), "__version__", "unknown")
    device = _device(args.device)
    _prepare_outputs(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    with world(device) as processes:
        return _train_in(processes, args, version)


def _train_in(world: World, args: argparse.Namespace, version: str) -> int:
    run = _run(args, world)
    epochs = _epochs(args, run)
    saved = len(run.history)
    if world.main and not args.resume:
        _keep_finished(args.checkpoint, args.out)
    try:
        while saved < epochs:
            row = run.epoch(epochs)
            run.save(args.checkpoint)
            saved = len(run.history)
            if world.main:
                _report(row, epochs)
        if world.main:
            _write_json(metrics(run, version), args.out)
            _draw(run, args.plots, args.animations)
        # A process that leaves earlier takes its connections with it.
        world.wait()
    except KeyboardInterrupt:
        state = f"{args.checkpoint} continues after epoch {saved} with --resume"
        print(f"interrupted; {state if saved else 'no epoch was finished'}", file=sys.stderr)
        return INTERRUPTED
    if world.main:
        print(f"metrics {args.out}, pictures {args.plots}, checkpoint {args.checkpoint}")
    return 0


def _device(name: str | None) -> torch.device:
    allowed = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name is None:
        name = "cuda" if len(allowed) > 1 else "cpu"
    if (f"{name}:0" if name == "cuda" else name) not in allowed:
        raise InputError(f"argument --device: {name} is not available here; available: {', '.join(allowed)}")
    return torch.device(name)


def _prepare_outputs(args: argparse.Namespace) -> None:
    args.plots = args.plots or Path("runs") / args.recipe
    args.checkpoint = args.checkpoint or args.plots / "checkpoint.pt"
    args.out = args.out or args.plots / "metrics.json"
    if args.checkpoint.resolve() == args.out.resolve():
        raise InputError(f"argument --out: {args.out} is the checkpoint, give another file")
    # A new run replaces the checkpoint of one that was stopped, but never a file that is something else.
    if args.resume or args.checkpoint.exists():
        read_checkpoint(args.checkpoint)
    check_writable(args.plots / "loss.png", "--plots")
    check_writable(args.checkpoint, "--checkpoint")
    check_writable(args.out, "--out")


def _keep_finished(checkpoint: Path, out: Path) -> None:
    """Puts the checkpoint of a run that has written its metrics aside, under the first name that is free."""
    if not checkpoint.exists() or not out.exists():
        return
    names = (checkpoint.with_stem(f"{checkpoint.stem}-{number}") for number in itertools.count(1))
    kept = next(name for name in names if not name.exists())
    checkpoint.rename(kept)
    print(f"{checkpoint} is of a finished run, and is now {kept}; --resume goes on with one", flush=True)


def _run(args: argparse.Namespace, world: World) -> Run:
    recipe = RECIPES[args.recipe]
    encoder = _variant("encoder", args.encoder, recipe.encoders, args.recipe)
    readout = _variant("readout", args.readout, recipe.readouts, args.recipe)
    if not world.main:
        world.wait()  # for the files that the main process may have to download
    digits = datasets.load(_data(args.data))
    if world.main:
        world.wait()
    samples = len(digits.train_images)
    if args.limit is not None and args.limit > samples:
        raise InputError(f"argument --limit: {args.limit} asked for, {digits.name} has {samples}")
    settings = Settings(
        recipe=args.recipe,
        dataset=digits.name,
        samples=args.limit or min(recipe.subset or samples, samples),
        batch_size=args.batch_size or recipe.batch_size,
        steps=args.steps or recipe.steps,
        test_steps=args.steps or recipe.test_steps or recipe.steps,
        encoder=encoder,
        readout=readout,
        seed=recipe.seed if args.seed is None else args.seed,
        device=world.device.type,
        processes=world.size,
    )
    if recipe.drop_last and settings.samples < settings.batch_size:
        raise InputError(
            f"argument --batch-size: {args.recipe} trains on whole batches, and {settings.samples} samples "
            f"make none of {settings.batch_size}; give at most {settings.samples}"
        )
    chosen = digits.drawn(settings.samples, settings.seed) if recipe.subset else digits.first(settings.samples)
    run = Run(settings, args.library, chosen.at_least(recipe.smallest_image).to(world.device), world)
    if args.resume:
        run.restore(args.checkpoint)
    return run


def _variant(argument: str, name: str | None, variants: Iterable[str], recipe: str) -> str:
    allowed = list(variants)
    if name is not None and name not in allowed:
        raise InputError(f"argument --{argument}: {recipe} takes {', '.join(allowed)} (not {name})")
    return name or allowed[0]


def _data(named: Path | None) -> Path:
    # Where a folder is named that is not there, a typing error must not train on other data.
    if named is not None and not named.exists():
        raise InputError(f"argument --data: there is no directory {named}; make it to have MNIST downloaded into it")
    return named or Path(os.environ.get("SNNFAST_DATA") or "data")


def _epochs(args: argparse.Namespace, run: Run) -> int:
    # A run that was stopped between its last epoch and the metrics has none left to train.
    epochs, done = args.epochs or run.recipe.epochs, len(run.history)
    if epochs < done:
        raise InputError(f"argument --epochs: {args.checkpoint} already has {done} epochs done (not {epochs})")
    return epochs


def _report(row: dict[str, float], epochs: int) -> None:
    print(
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, "
        f"accuracy {row['train_accuracy']:.2%}, test loss {row['test_loss']:.4f}, "
        f"test accuracy {row['test_accuracy']:.2%}, {row['seconds']:.1f} s",
        flush=True,
    )


def _write_json(row: dict[str, Any], path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(row, indent=2) + "\n")


def _draw(run: Run, directory: Path, animations: bool) -> None:
    images, labels = run.digits.test_images[:PICTURED], run.digits.test_labels[:PICTURED]
    accuracy, epochs = run.history[-1]["test_accuracy"], len(run.history)
    title = (
        f"{run.settings.recipe} on {run.settings.dataset}, {run.library}: {accuracy:.2%} after {epochs} "
        f"epoch{'s' if epochs > 1 else ''}"
    )
    if run.settings.test_steps != run.settings.steps:
        title += f" of T={run.settings.steps}, tested at T={run.settings.test_steps}"
    pictures.save_all(
        *(directory, images, labels),
        **run.shown(images),
        losses=run.losses,
        history=run.history,
        title=title,
        animated=animations,
    )


def _whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} given, must be a whole number from {least} to {most}")
        return int(text)

    return parse


if __name__ == "__main__":
    sys.exit(main())
