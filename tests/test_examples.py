"""The MNIST example as a user runs it: the real command on small data, and its errors."""

import contextlib
import functools
import gzip
import hashlib
import importlib.util
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colors, image

import published
import snnfast

EXAMPLES = Path(__file__).parents[1] / "examples"
EPOCHS = 4
TRAIN, TEST = 300, 64
FIELDS = {
    "recipe",
    "dataset",
    "samples",
    "batch_size",
    "steps",
    "test_steps",
    "encoder",
    "readout",
    "seed",
    "device",
    "processes",
    "library",
    "version",
    "torch",
    "epochs",
    "test_accuracy",
    "seconds_per_epoch",
    "peak_bytes",
    "peak_kind",
    "commit",
    "date",
    "history",
}
MEASURED = {"seconds_per_epoch", "peak_bytes", "date", "history"}
# Few steps on scikit-learn's digits, enough to learn something in an epoch.
SMALL = {
    "rate-fc": ["--steps", "5", "--batch-size", "32"],
    "poisson-fc": ["--steps", "60", "--batch-size", "8"],
    "zero-reset-fc": ["--steps", "5", "--batch-size", "16"],
    "norse-recurrent": ["--steps", "20", "--batch-size", "16"],
    "norse-conv": ["--steps", "40", "--batch-size", "4", "--limit", "320"],
    "current-fc": ["--steps", "10", "--batch-size", "32"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A directory with a small MNIST: label k is a bright block, at the k-th place, in noise."""
    root = tmp_path_factory.mktemp("data")
    write_mnist(root)
    return root


@pytest.fixture(scope="module")
def command():
    """The example's module, for errors that need no process of their own."""
    sys.path.insert(0, str(EXAMPLES))
    import mnist

    yield mnist
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """Directory and standard output of a run from start to end."""
    out = tmp_path_factory.mktemp("straight")
    return out, finished(start(out, "--data", data, "--epochs", EPOCHS))


@pytest.fixture
def one_thread():
    """As many threads as the runs in processes of their own have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def undrawn(command, monkeypatch):
    """Without the pictures, which take longer than the training of these tests."""
    monkeypatch.setattr(command, "_draw", lambda run, directory, animations: None)


@pytest.fixture
def offline(command, monkeypatch, tmp_path):
    """An empty data directory, and no way to download anything into it."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(command.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    directory = tmp_path / "empty"
    directory.mkdir()
    return directory


def test_metrics_describe_the_run(straight):
    out, _ = straight
    row = metrics(out)
    assert set(row) == FIELDS
    assert (row["recipe"], row["library"], row["dataset"]) == ("rate-fc", "snnfast", "MNIST")
    assert (row["samples"], row["batch_size"], row["seed"]) == (TRAIN, 128, 0)
    assert (row["steps"], row["test_steps"], row["encoder"], row["readout"]) == (25, 25, "rate", "count")
    assert row["version"] == snnfast.__version__ and row["torch"] == torch.__version__
    assert row["device"].endswith("1 thread")
    assert row["peak_kind"] == "process peak RSS" and 1e8 < row["peak_bytes"] < 1e11
    assert [epoch["epoch"] for epoch in row["history"]] == [1, 2, 3, 4]
    assert row["epochs"] == EPOCHS
    assert row["test_accuracy"] == row["history"][-1]["test_accuracy"]
    seconds = [epoch["seconds"] for epoch in row["history"]]
    assert min(seconds) > 0 and row["seconds_per_epoch"] == pytest.approx(np.mean(seconds))


def test_a_finished_run_is_kept_when_the_next_one_starts(command, data, straight, undrawn, capsys, tmp_path):
    arguments = ["--data", str(data), "--plots", str(tmp_path), "--epochs", "1", "--limit", "128", "--steps", "2"]
    assert command.main(arguments) == 0
    finished_run = checkpoint(tmp_path)
    (tmp_path / "checkpoint-1.pt").write_text("taken")
    capsys.readouterr()
    assert command.main([*arguments, "--seed", "5"]) == 0
    kept = torch.load(tmp_path / "checkpoint-2.pt", weights_only=True)
    assert torch.equal(kept["order"], finished_run["order"]) and checkpoint(tmp_path)["settings"]["seed"] == 5
    said = f"{tmp_path / 'checkpoint.pt'} is of a finished run, and is now {tmp_path / 'checkpoint-2.pt'}"
    assert capsys.readouterr().out.startswith(said)

    # Of a run that was stopped, which has written no metrics, nothing is kept.
    (tmp_path / "metrics.json").unlink()
    assert command.main(arguments) == 0
    assert not (tmp_path / "checkpoint-3.pt").exists()


def test_the_help_lists_the_values_of_every_recipe(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    printed = capsys.readouterr().out
    for name, recipe in command.RECIPES.items():
        (line,) = re.findall(rf"^  {name} .*$", printed, re.MULTILINE)
        words = re.split(r"[ ,;]+", line.strip())
        steps = recipe.steps, recipe.test_steps or recipe.steps
        values = recipe.original, *steps, recipe.batch_size, recipe.epochs, *recipe.encoders, *recipe.readouts
        assert words == [name, *map(str, values)]


def test_training_learns_and_reports_every_epoch(straight):
    out, stdout = straight
    history = metrics(out)["history"]
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert history[-1]["test_loss"] < 0.5 * history[0]["test_loss"]
    assert history[-1]["test_accuracy"] > 0.9
    for row, line in zip(history, stdout.splitlines(), strict=False):
        assert line.startswith(f"epoch {row['epoch']}/{EPOCHS}: loss {row['train_loss']:.4f}")
        assert f"test accuracy {row['test_accuracy']:.2%}" in line


def test_epoch_loss_is_the_mean_over_samples(straight):
    out, _ = straight
    losses = torch.tensor(checkpoint(out)["losses"], dtype=torch.float64).view(EPOCHS, 3)
    means = (losses * torch.tensor([128, 128, TRAIN - 256])).sum(1) / TRAIN
    assert means.tolist() == pytest.approx([row["train_loss"] for row in metrics(out)["history"]])


@pytest.mark.parametrize("name", ["loss", "raster", "gallery"])
def test_pictures_are_drawn_in_colour(straight, name):
    out, _ = straight
    pixels = image.imread(out / f"{name}.png")
    height, width, _ = pixels.shape
    assert height > 500 and width > 800
    true_class = np.array(colors.to_rgb("#0072B2"))
    assert (np.abs(pixels[..., :3] - true_class).max(-1) < 0.01).sum() > 500


def test_same_seed_same_numbers_with_progress_bars(command, data, straight, undrawn, one_thread, monkeypatch, tmp_path):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    # An epoch may be over before a bar would be drawn a second time.
    training = sys.modules["training"]
    monkeypatch.setattr(training, "tqdm", functools.partial(training.tqdm, mininterval=0))
    assert main(command, tmp_path, "--data", data, "--epochs", EPOCHS) == 0
    bars = terminal.getvalue()
    assert f"epoch 1/{EPOCHS}" in bars and "samples/s" in bars
    assert "loss " in bars and "accuracy " in bars
    assert_same_run(straight[0], tmp_path)


@pytest.mark.long
def test_two_processes_train_as_one(data, tmp_path):
    """Without random spikes and with the same batches, but for the order of sums; one that was stopped goes on."""
    given = ["--recipe", "norse-recurrent", "--steps", "8", "--batch-size", "50", "--data", data]
    finished(start(tmp_path / "one", *given, "--epochs", "2"))
    finished(start(tmp_path / "two", *given, "--epochs", "1", processes=2))
    printed = finished(start(tmp_path / "two", *given, "--epochs", "2", "--resume", processes=2))
    assert printed.count("epoch 2/2") == 1
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    for alone, shared in zip(one["history"], two["history"], strict=True):
        for name in ("train_loss", "test_loss"):
            assert shared[name] == pytest.approx(alone[name], rel=1e-3)
        assert shared["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=1 / TEST)
    losses = [checkpoint(tmp_path / name)["losses"] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_the_seed_decides_start_order_and_spikes(command, data):
    first, again, other = (new_run(command, data, "snnfast", seed) for seed in (3, 3, 4))
    for run in (first, again, other):
        run.epoch(1)
    assert first.losses == again.losses
    assert not set(first.losses) & set(other.losses)
    for name in ("order", "spikes"):
        state = getattr(first, name).get_state()
        assert torch.equal(state, getattr(again, name).get_state())
        assert not torch.equal(state, getattr(other, name).get_state())


def test_stopped_killed_and_resumed_equals_uninterrupted(
    command, data, straight, undrawn, one_thread, capsys, monkeypatch, tmp_path
):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's jobs in the background lack
    with monkeypatch.context() as patch:
        patch.setattr(command, "_report", lambda row, epochs: signal.raise_signal(signal.SIGINT))
        assert main(command, tmp_path, "--data", data, "--epochs", EPOCHS) == 130
    assert f"{tmp_path / 'checkpoint.pt'} continues after epoch 1" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists() and len(checkpoint(tmp_path)["history"]) == 1

    process = start(tmp_path, "--data", data, "--epochs", EPOCHS, "--resume")
    assert process.stdout.readline().startswith("epoch 2/")
    delay = random.random() / 2
    print(f"killed {delay} s after an epoch")
    time.sleep(delay)
    process.kill()
    process.communicate(timeout=60)
    assert len(checkpoint(tmp_path)["history"]) >= 2

    assert main(command, tmp_path, "--data", data, "--epochs", EPOCHS, "--resume") == 0
    assert_same_run(straight[0], tmp_path)


def test_resumed_after_the_last_epoch_it_writes_the_metrics(command, data, straight, undrawn, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((straight[0] / "checkpoint.pt").read_bytes())
    assert main(command, tmp_path, "--data", data, "--epochs", EPOCHS, "--resume") == 0
    for key in ("history", "test_accuracy", "peak_bytes", "seconds_per_epoch"):
        assert metrics(tmp_path)[key] == metrics(straight[0])[key]


@pytest.mark.parametrize("recipe", SMALL)
def test_every_recipe_learns_the_bundled_digits(recipe, command, offline, capsys, monkeypatch, tmp_path):
    drawn = {}
    # Drawing takes longer than the training.
    monkeypatch.setattr(command.pictures, "save_all", lambda *given, **shown: drawn.update(shown))
    assert main(command, tmp_path, "--recipe", recipe, "--data", offline, "--epochs", 1, *SMALL[recipe]) == 0
    download, first, epoch, _ = capsys.readouterr().out.splitlines()
    assert (
        download == f"downloading MNIST, 12 MB, into {offline}"
        and str(offline) in first
        and "8x8 digits" in first
        and epoch.startswith("epoch 1/1: loss ")
    )
    assert not list(offline.iterdir())
    row, losses = metrics(tmp_path), checkpoint(tmp_path)["losses"]
    assert (row["recipe"], row["dataset"]) == (recipe, "digits")
    quarter = len(losses) // 4
    assert np.mean(losses[-quarter:]) < 0.99 * np.mean(losses[:quarter])
    # The convolutional network needs longer than a test to do better than chance.
    assert row["test_accuracy"] > 0.4 or recipe == "norse-conv"
    # Norse's readouts do not fire, and currents are no spikes.
    absent = {"norse-recurrent": {"spikes"}, "norse-conv": {"spikes"}, "current-fc": {"input_spikes"}}
    with_membranes = (*(name for name in SMALL if name.startswith("norse")), "current-fc")
    absent = absent.get(recipe, set()) | (set() if recipe in with_membranes else {"membranes"})
    shown = {name: drawn[name] for name in ("input_spikes", "spikes", "membranes")}
    assert {name for name, value in shown.items() if value is None} == absent
    for name, value in shown.items():
        assert value is None or value.shape[:2] == (row["test_steps"], 16)
        assert value is None or name == "membranes" or set(value.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("recipe", SMALL)
@pytest.mark.parametrize("other", ["author", "reference"])
def test_recipes_put_out_what_their_authors_and_reference_do(recipe, other, command):
    ours, theirs = first_batch(command, recipe, "snnfast"), first_batch(command, recipe, other)
    # A product over all steps may round differently from one per step, which now and then flips a spike.
    for our, their in zip(ours, theirs, strict=True):
        assert our.count_nonzero() > 20 and our.shape == their.shape
        assert ((our - their).abs() > 1e-4).float().mean() < 0.01


@pytest.mark.parametrize("recipe", ["poisson-fc", "norse-recurrent"])
def test_saved_and_restored_trains_on_as_if_never_stopped(recipe, command, data, tmp_path):
    through, stopped, resumed = (new_run(command, data, "snnfast", recipe=recipe, batch_size=16) for _ in range(3))
    for run in (through, through, stopped):
        run.epoch(2)
    stopped.save(tmp_path / "checkpoint.pt")
    resumed.restore(tmp_path / "checkpoint.pt")
    resumed.epoch(2)
    assert resumed.losses == through.losses and len(set(through.losses)) > 2
    for key in ("train_accuracy", "test_loss", "test_accuracy"):
        assert [row[key] for row in resumed.history] == [row[key] for row in through.history]
    for name, tensor in through.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[name], tensor), name


@pytest.mark.parametrize("encoder, readout", [("poisson", "last"), ("spike-latency", "maximum")])
def test_variants_of_norse(encoder, readout, command, data, capsys, tmp_path):
    arguments = ["--recipe", "norse-recurrent", "--data", data, "--steps", 12, "--epochs", 2, "--readout", readout]
    assert main(command, tmp_path, *arguments, "--encoder", encoder) == 0
    row = metrics(tmp_path)
    assert (row["encoder"], row["readout"], row["steps"], row["test_steps"]) == (encoder, readout, 12, 12)
    assert row["history"][1]["train_loss"] < row["history"][0]["train_loss"]
    with pytest.raises(SystemExit) as stop:
        main(command, tmp_path, *arguments, "--resume")
    assert_one_line(stop.value.code, capsys.readouterr().err, "argument --encoder: this run has encoder constant")


def test_encoders_of_norse(command):
    images = torch.linspace(0, 1, 20).view(1, 4, 5).expand(500, 4, 5)
    encoders = command.RECIPES["norse-conv"].encoders
    constant, poisson, latency = (
        encoders[name](images, 30, torch.Generator().manual_seed(2), "snnfast")
        for name in ("constant-current", "poisson", "spike-latency")
    )
    assert constant.shape == poisson.shape == latency.shape == (30, 500, 4, 5)
    assert torch.equal(latency.sum(0), constant.amax(0))
    assert torch.equal(latency.argmax(0), constant.argmax(0))
    rates = ((images[0] - 0.1307) / 0.3081 * 20 * 1e-3).clamp(0)
    assert torch.allclose(poisson.mean((0, 1)), rates, atol=0.01)


def test_zero_reset_fc_is_evaluated_with_more_steps(command, data):
    recipe = command.RECIPES["zero-reset-fc"]
    assert (recipe.steps, recipe.test_steps, recipe.seed) == (10, 100, 42)
    run = new_run(command, data, "snnfast", recipe="zero-reset-fc", steps=3, test_steps=7)
    seen = []
    run.net.register_forward_hook(lambda net, given, output: seen.append((net.training, len(given[0]), len(output))))
    run.epoch(1)
    assert seen == [(True, 3, 3)] * 3 + [(False, 7, 7)]
    shown = run.shown(run.digits.test_images[:5])
    assert shown["spikes"].shape == (7, 5, 10) and shown["input_spikes"].shape[:2] == (7, 5)


def test_current_fc_trains_on_whole_batches(command, data):
    run = new_run(command, data, "snnfast", recipe="current-fc", steps=3, test_steps=3)
    seen = []
    run.net.register_forward_hook(lambda net, given, output: seen.append((net.training, given[0].shape[1])))
    row = run.epoch(1)
    assert seen == [(True, 128), (True, 128), (False, TEST)]
    assert row["train_loss"] == pytest.approx(np.mean(run.losses)) and len(run.losses) == 2


def test_poisson_fc_trains_on_images_drawn_by_the_seed(command, data):
    assert command.RECIPES["poisson-fc"].subset == 10_000
    digits = command.datasets.mnist(data)
    digits = digits._replace(train_labels=torch.arange(TRAIN))
    first, again, other = (digits.drawn(50, seed) for seed in (3, 3, 4))
    assert torch.equal(first.train_labels, again.train_labels) and len(first.train_labels.unique()) == 50
    assert not torch.equal(first.train_labels, other.train_labels)
    assert torch.equal(first.train_images, digits.train_images[first.train_labels])
    assert torch.equal(first.test_images, digits.test_images)


@pytest.mark.long
def test_compare_trains_both_libraries_and_prints_them_side_by_side(command, data, capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(Path(snnfast.__file__).parents[1]))
    arguments = ["--recipe", "zero-reset-fc", "--compare", "--threads", 1, "--data", data, "--steps", 10, "--epochs", 1]
    assert main(command, tmp_path, *arguments) == 0
    rows = {library: metrics(tmp_path / library) for library in ("snnfast", "torch")}
    lines = capfd.readouterr().out.splitlines()
    heading = lines.index(next(line for line in lines if line.startswith("library ")))
    for line, (library, row) in zip(lines[heading + 1 :], rows.items(), strict=False):
        assert row["library"] == library
        assert line.split() == [
            library,
            row["version"],
            f"{row['seconds_per_epoch']:.2f}",
            f"{row['test_accuracy']:.2%}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            "MB",
        ]
    speedup = rows["torch"]["seconds_per_epoch"] / rows["snnfast"]["seconds_per_epoch"]
    assert f"{speedup:.2f} times as fast" in lines[-1]
    fast, theirs = (checkpoint(tmp_path / library)["losses"] for library in rows)
    # One large matrix product may round differently from one per step, which flips single spikes.
    assert fast[0] == pytest.approx(theirs[0], abs=0.02)


def test_snnfast_equals_its_reference_bit_for_bit(command, data):
    fast, reference = (new_run(command, data, name) for name in ("snnfast", "reference"))
    for run in (fast, reference):
        run.epoch(1)
    assert fast.losses == reference.losses
    for ours, theirs in zip(fast.net.parameters(), reference.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_of_one_library_continues_in_another(command, data, tmp_path):
    theirs = new_run(command, data, "snntorch")
    theirs.epoch(2)
    theirs.save(tmp_path / "checkpoint.pt")
    ours = new_run(command, data, "snnfast")
    ours.restore(tmp_path / "checkpoint.pt")
    for name, tensor in theirs.net.state_dict().items():
        assert torch.equal(ours.net.state_dict()[name], tensor), name
    ours.epoch(2)
    theirs.epoch(2)
    assert ours.history[0] == theirs.history[0]
    assert ours.losses[3] == pytest.approx(theirs.losses[3], abs=0.02)
    assert ours.history[1]["test_accuracy"] == pytest.approx(theirs.history[1]["test_accuracy"], abs=0.05)


def test_raster_and_gallery_show_the_spikes_given(command):
    spikes = torch.zeros(5, 3, 4)
    spikes[[0, 2, 3], 0, 1] = 1
    spikes[1, 0, 2] = 1
    spikes[:, 1, 3] = 1
    labels = torch.tensor([1, 0, 2])
    images = torch.randint(256, (3, 6, 6), dtype=torch.uint8)
    blue, orange, grey = "#0072B2", "#D55E00", "#AAAAAA"

    figure = command.pictures.output_raster(spikes, images, labels)
    _, _, raster, bars = figure.axes
    assert [bar.get_width() for bar in bars.patches] == [0, 3, 1, 0]
    assert bar_colours(bars) == [grey, blue, grey, grey]
    assert [len(lines.get_segments()) for lines in raster.collections] == [0, 3, 1, 0]
    assert [segment[0, 0] for segment in raster.collections[1].get_segments()] == [1, 3, 4]

    gallery = command.pictures.gallery(spikes, images, labels, rows=2, columns=2)
    assert len(gallery.axes) == 6
    wrong = gallery.axes[3]
    assert bar_heights(wrong) == [0, 0, 0, 5]
    assert bar_colours(wrong) == [blue, grey, grey, orange]
    assert wrong.get_title() == "true 0, predicted 3"
    assert np.array_equal(gallery.axes[2].images[0].get_array(), images[1].numpy())


WRONG = {
    "unknown recipe": (["--recipe", "rate"], "argument --recipe"),
    "no epochs": (["--epochs", "0"], "argument --epochs"),
    "epochs not a number": (["--epochs", "two"], "argument --epochs"),
    "no batch": (["--batch-size", "-1"], "argument --batch-size"),
    "seed too large": (["--seed", str(2**64)], "argument --seed"),
    "limit over the data": (["--limit", str(TRAIN + 1)], "argument --limit"),
    "unknown device": (["--device", "abacus"], "argument --device"),
    "absent device": (["--device", "cuda:99"], "argument --device"),
    "data is a file": (["--data", "{tmp}/file"], "argument --data"),
    "damaged data": (["--data", "{tmp}/damaged"], "argument --data"),
    "plots below a file": (["--plots", "{tmp}/file/plots"], "argument --plots"),
    "metrics below a file": (["--out", "{tmp}/file/metrics.json"], "argument --out"),
    "metrics a directory": (["--out", "{tmp}/damaged"], "argument --out"),
    "metrics are checkpoint": (["--out", "{tmp}/checkpoint.pt"], "argument --out"),
    "checkpoint a directory": (["--checkpoint", "{tmp}/damaged"], "argument --checkpoint"),
    "checkpoint over a foreign file": (["--checkpoint", "{tmp}/file"], "argument --checkpoint"),
    "no checkpoint": (["--resume", "--checkpoint", "{tmp}/no.pt"], "argument --checkpoint"),
    "foreign checkpoint": (["--resume", "--checkpoint", "{tmp}/file"], "argument --checkpoint"),
    "foreign tensors": (["--resume", "--checkpoint", "{tmp}/foreign.pt"], "argument --checkpoint"),
    "truncated": (["--resume", "--checkpoint", "{tmp}/truncated.pt"], "argument --checkpoint"),
    "incomplete": (["--resume", "--checkpoint", "{tmp}/incomplete.pt"], "argument --checkpoint"),
    "all epochs done": (["--resume", "--epochs", str(EPOCHS - 1)], f"{EPOCHS} epochs done"),
    "resumed with another seed": (["--resume", "--seed", "5"], "argument --seed"),
    "resumed with another batch": (["--resume", "--batch-size", "7"], "argument --batch-size"),
    "resumed on fewer samples": (["--resume", "--limit", "128"], "argument --limit"),
    "resumed with other steps": (["--resume", "--steps", "7"], "argument --steps: this run has steps 7"),
    "resumed as another recipe": (["--resume", "--recipe", "poisson-fc"], "argument --recipe"),
    "one byte wrong": (["--resume", "--checkpoint", "{tmp}/flipped.pt"], "argument --checkpoint"),
    "settings missing": (["--resume", "--checkpoint", "{tmp}/older.pt"], "argument --steps: this run has steps 25"),
    "no steps": (["--steps", "0"], "argument --steps: '0' given, must be a whole number from 1"),
    "no such data": (["--data", "{tmp}/absent"], "argument --data: there is no directory"),
    "encoder of another recipe": (["--encoder", "poisson"], "argument --encoder: rate-fc takes rate (not poisson)"),
    "no such readout": (
        ["--recipe", "norse-conv", "--readout", "mean"],
        "argument --readout: norse-conv takes maximum, last (not mean)",
    ),
    "library of other neurons": (
        ["--recipe", "norse-recurrent", "--library", "snntorch"],
        "argument --library: norse-recurrent runs on snnfast, norse, reference, not on snntorch",
    ),
    "no whole batch": (
        ["--recipe", "current-fc", "--limit", "100"],
        "argument --batch-size: current-fc trains on whole",
    ),
    "comparison of one library": (["--compare", "--library", "snnfast"], "argument --library: not allowed with"),
    "comparison with one metrics file": (["--compare", "--out", "{tmp}/m.json"], "argument --out: not allowed with"),
    "no comparison to resume": (["--compare", "--resume"], "argument --resume: there is no"),
}


def test_the_command_exits_with_2_and_one_line(tmp_path):
    process = start(tmp_path, "--resume")
    stdout, stderr = process.communicate(timeout=60)
    assert not stdout
    assert_one_line(process.returncode, stderr, "argument --checkpoint: there is no checkpoint")


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_loses_nothing(case, data, straight, command, capsys, tmp_path):
    arguments, message = WRONG[case]
    prepare_wrong_files(tmp_path, straight[0])
    before = contents(tmp_path)
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    defaults = ["--device", "cpu", "--data", str(data), "--plots", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        command.main(defaults + given)
    assert_one_line(stop.value.code, capsys.readouterr().err, message)
    assert contents(tmp_path) == before


def test_mnist_is_downloaded_where_it_can_be(command, data, capsys, monkeypatch, tmp_path):
    resources, served = [], tmp_path / "served"
    served.mkdir()
    for source in (data / "MNIST" / "raw").iterdir():
        archive = served / f"{source.name}.gz"
        archive.write_bytes(gzip.compress(source.read_bytes()))
        resources.append((archive.name, hashlib.md5(archive.read_bytes()).hexdigest()))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "*")
        mirror = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(command.datasets.MNIST, "mirrors", [mirror])
        monkeypatch.setattr(command.datasets.MNIST, "resources", resources)
        got = command.datasets.load(tmp_path / "new")
        server.shutdown()
    assert got.name == "MNIST" and "8x8" not in capsys.readouterr().out
    for ours, theirs in zip(got[1:], command.datasets.mnist(data)[1:], strict=True):
        assert torch.equal(ours, theirs)
    assert {path.name for path in contents(tmp_path / "new")} == set(command.datasets.RAW_FILES)


@pytest.mark.parametrize("package, recipe", [("snntorch", "rate-fc"), ("snnfast", "rate-fc"), ("norse", "norse-conv")])
def test_a_library_that_is_absent_is_named(package, recipe, command, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stop:
        command.main(["--recipe", recipe, "--library", package, "--plots", str(tmp_path / "plots")])
    assert_one_line(stop.value.code, capsys.readouterr().err, f"needs the package {package}")
    assert not contents(tmp_path)


def test_a_failed_write_is_one_line_and_keeps_the_checkpoint(command, data, straight, capsys, tmp_path):
    prepare_wrong_files(tmp_path, straight[0])
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(SystemExit) as stop:
            main(command, tmp_path, "--data", data, "--resume", "--epochs", EPOCHS + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_one_line(stop.value.code, capsys.readouterr().err, f"File too large: '{tmp_path / 'checkpoint.pt'}'")
    assert contents(tmp_path) == before


def new_run(command, data, library, seed=0, recipe="rate-fc", **settings):
    system = command.RECIPES[recipe]
    settings = {
        "recipe": recipe,
        "dataset": "MNIST",
        "samples": TRAIN,
        "batch_size": 128,
        "steps": system.steps,
        "test_steps": system.steps,
        "encoder": next(iter(system.encoders)),
        "readout": next(iter(system.readouts)),
        "seed": seed,
        "device": "cpu",
        "processes": 1,
    } | settings
    alone = command.World(0, 1, torch.device("cpu"))
    return command.Run(command.Settings(**settings), library, command.datasets.mnist(data), alone)


def first_batch(command, recipe, library):
    """What an untrained network puts out for a batch of digits, as a tuple; weights are scaled so that it fires.

    "author" is the authors' library or, where that is not installed, the loop in `published`.
    """
    system = command.RECIPES[recipe]
    if library == "author":
        library = system.original if importlib.util.find_spec(system.original) else "published"
    images = command.datasets.bundled_digits().first(24).at_least(system.smallest_image).train_images
    encode = next(iter(system.encoders.values()))
    x = encode(images / 255, 24, torch.Generator().manual_seed(1), library)
    torch.manual_seed(0)
    net = system.network("snnfast" if library == "published" else library, images.shape[1:])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2 * published.LOOPS[recipe].gain)
    if library == "published":
        net, x = published_network(recipe, images.shape[1:], net), x.unsqueeze(2)
    with torch.no_grad(), snnfast.use_reference() if library == "reference" else contextlib.nullcontext():
        output = net(x)
    return output if isinstance(output, tuple) else (output,)


def published_network(recipe, shape, like):
    loop = published.LOOPS[recipe]
    net = loop.build(published.Sizes(24, 24, (shape.numel(), *loop.published.layers[1:])))
    net.load_state_dict(like.state_dict())
    return net


def write_mnist(root):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for split, samples in (("train", TRAIN), ("t10k", TEST)):
        labels = (np.arange(samples) % 10).astype(np.uint8)
        images = random.integers(0, 60, (samples, 28, 28), dtype=np.uint8)
        for picture, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            picture[8 * row : 8 * row + 8, 7 * column : 7 * column + 7] += 190
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([0x800 + array.ndim, *array.shape], dtype=">i4")
            (raw / f"{split}-{kind}-ubyte").write_bytes(header.tobytes() + array.tobytes())


def prepare_wrong_files(directory, good):
    whole = (good / "checkpoint.pt").read_bytes()
    (directory / "checkpoint.pt").write_bytes(whole)
    (directory / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (directory / "flipped.pt").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    older = checkpoint(good)
    del older["settings"]["steps"]
    torch.save(older, directory / "older.pt")
    incomplete = checkpoint(good)
    del incomplete["optimizer"]
    torch.save(incomplete, directory / "incomplete.pt")
    torch.save({"weight": torch.ones(3)}, directory / "foreign.pt")
    (directory / "file").write_text("something of the user's\n")
    write_mnist(directory / "damaged")
    images = directory / "damaged" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])


def start(out, *arguments, processes=1, **options):
    environment = os.environ | {
        "PYTHONPATH": str(Path(snnfast.__file__).parents[1]),
        # No test may download: every attempt is refused at once.
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "no_proxy": "",
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    program = [sys.executable, *launcher, str(EXAMPLES / "mnist.py"), "--device", "cpu", "--threads", "1"]
    given = [str(argument) for argument in ("--plots", out, *arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(program + given, env=environment, **(pipes | options))


def main(command, out, *arguments):
    given = ["--device", "cpu", "--plots", out, *arguments]
    return command.main([str(argument) for argument in given])


def finished(process):
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return stdout


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def checkpoint(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def bar_heights(axes):
    return [bar.get_height() for bar in axes.patches]


def bar_colours(axes):
    return [colors.to_hex(bar.get_facecolor()).upper() for bar in axes.patches]


def assert_one_line(code, stderr, message):
    assert code == 2
    assert len(stderr.splitlines()) == 1 and message in stderr, stderr


def assert_same_run(first, second):
    expected, actual = metrics(first), metrics(second)
    assert {key: expected[key] for key in FIELDS - MEASURED} == {key: actual[key] for key in FIELDS - MEASURED}
    expected, actual = checkpoint(first), checkpoint(second)
    for state in (expected, actual):
        for row in state["history"]:
            del row["seconds"], row["test_seconds"], row["peak_bytes"]
    for key in ("format", "settings"):
        assert actual.pop(key) == expected.pop(key)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
