"""The MNIST example as a user runs it: the real command on small data, and its errors."""

import fcntl
import functools
import gzip
import hashlib
import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colors, image

import snnfast

EXAMPLES = Path(__file__).parents[1] / "examples"
EPOCHS = 4
TRAIN, TEST = 300, 64
FIELDS = {
    "recipe",
    "dataset",
    "samples",
    "batch_size",
    "seed",
    "device",
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


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Per library, the directory and output of a run where MNIST cannot be had."""
    runs = {}
    for library in ("snnfast", "snntorch"):
        out = tmp_path_factory.mktemp(library)
        arguments = ("--data", out / "absent", "--library", library, "--epochs", 1)
        runs[library] = out, start(out, *arguments)
    return {library: (out, finished(process)) for library, (out, process) in runs.items()}


def test_metrics_describe_the_run(straight):
    out, _ = straight
    row = metrics(out)
    assert set(row) == FIELDS
    assert (row["recipe"], row["library"], row["dataset"]) == ("rate-fc", "snnfast", "MNIST")
    assert (row["samples"], row["batch_size"], row["seed"]) == (TRAIN, 128, 0)
    assert row["version"] == snnfast.__version__ and row["torch"] == torch.__version__
    assert row["device"].endswith("1 thread")
    assert row["peak_kind"] == "process peak RSS" and 1e8 < row["peak_bytes"] < 1e11
    assert [epoch["epoch"] for epoch in row["history"]] == [1, 2, 3, 4]
    assert row["epochs"] == EPOCHS
    assert row["test_accuracy"] == row["history"][-1]["test_accuracy"]
    seconds = [epoch["seconds"] for epoch in row["history"]]
    assert min(seconds) > 0 and row["seconds_per_epoch"] == pytest.approx(np.mean(seconds))


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


def test_same_seed_same_numbers_with_progress_bars(data, straight, tmp_path):
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    os.set_blocking(controller, False)
    process = start(tmp_path, "--data", data, "--epochs", EPOCHS, stderr=terminal)
    process.communicate(timeout=60)
    bars = os.read(controller, 1 << 16).decode()
    os.close(terminal)
    os.close(controller)
    assert process.returncode == 0
    assert f"epoch 1/{EPOCHS}" in bars and "samples/s" in bars
    assert "loss " in bars and "accuracy " in bars
    assert_same_run(straight[0], tmp_path)


def test_the_seed_decides_start_order_and_spikes(command, data):
    first, again, other = (new_run(command, data, "snnfast", seed) for seed in (3, 3, 4))
    for run in (first, again, other):
        run.epoch(1)
    assert first.losses == again.losses
    assert not set(first.losses) & set(other.losses)
    for name in ("order", "spikes"):
        state = first.generators[name].get_state()
        assert torch.equal(state, again.generators[name].get_state())
        assert not torch.equal(state, other.generators[name].get_state())


def test_interrupted_and_resumed_equals_uninterrupted(data, straight, tmp_path):
    process = start(tmp_path, "--data", data, "--epochs", EPOCHS)
    assert process.stdout.readline().startswith("epoch 1/")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert str(tmp_path / "checkpoint.pt") in stderr and "Traceback" not in stderr
    assert not (tmp_path / "metrics.json").exists()
    assert 1 <= len(checkpoint(tmp_path)["history"]) < EPOCHS

    finished(start(tmp_path, "--data", data, "--epochs", EPOCHS, "--resume"))
    assert_same_run(straight[0], tmp_path)


def test_without_mnist_it_trains_on_the_bundled_digits(digits):
    out, stdout = digits["snnfast"]
    first = stdout.splitlines()[0]
    assert str(out / "absent") in first and "8x8 digits" in first
    row = metrics(out)
    assert (row["dataset"], row["samples"]) == ("digits", 1437)
    assert row["test_accuracy"] > 0.5
    assert not (out / "absent").exists()


def test_snnfast_and_snntorch_agree_on_the_digits(digits):
    fast, theirs = (checkpoint(digits[name][0]) for name in ("snnfast", "snntorch"))
    # One large matrix product may round differently from one per step, which flips single spikes:
    # the first batch may differ by a few of them, the trained networks by a few test samples.
    assert fast["losses"][0] == pytest.approx(theirs["losses"][0], abs=0.02)
    fast, theirs = (metrics(digits[name][0])["test_accuracy"] for name in ("snnfast", "snntorch"))
    assert fast == pytest.approx(theirs, abs=0.03)


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


def test_raster_and_gallery_show_the_spikes_given(command):
    spikes = torch.zeros(5, 3, 4)
    spikes[[0, 2, 3], 0, 1] = 1
    spikes[1, 0, 2] = 1
    spikes[:, 1, 3] = 1
    labels = torch.tensor([1, 0, 2])
    images = torch.randint(256, (3, 6, 6), dtype=torch.uint8)
    blue, orange, grey = "#0072B2", "#D55E00", "#AAAAAA"

    figure = command.pictures.output_raster(spikes, images, labels)
    _, _, bars, raster = figure.axes
    assert bar_heights(bars) == [0, 3, 1, 0]
    assert bar_colours(bars) == [grey, blue, grey, grey]
    assert [len(lines.get_segments()) for lines in raster.collections] == [0, 3, 1, 0]
    assert [segment[0, 1] for segment in raster.collections[1].get_segments()] == [1, 3, 4]

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
    "all epochs done": (["--resume", "--epochs", str(EPOCHS)], f"{EPOCHS} epochs done"),
    "resumed with another seed": (["--resume", "--seed", "5"], "argument --seed"),
    "resumed with another batch": (["--resume", "--batch-size", "7"], "argument --batch-size"),
    "resumed on fewer samples": (["--resume", "--limit", "128"], "argument --limit"),
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


@pytest.mark.parametrize("package", ["snntorch", "snnfast"])
def test_a_library_that_is_absent_is_named(package, command, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stop:
        command.main(["--library", package, "--plots", str(tmp_path / "plots")])
    assert_one_line(stop.value.code, capsys.readouterr().err, f"needs the package {package}")
    assert not contents(tmp_path)


def test_a_failed_write_is_one_line_and_keeps_the_checkpoint(command, data, straight, capsys, tmp_path):
    prepare_wrong_files(tmp_path, straight[0])
    before = contents(tmp_path)
    paths = ["--data", data, "--plots", tmp_path]
    arguments = ["--device", "cpu", *paths, "--resume", "--epochs", EPOCHS + 1]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(SystemExit) as stop:
            command.main([str(argument) for argument in arguments])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_one_line(stop.value.code, capsys.readouterr().err, "File too large")
    assert contents(tmp_path) == before


def new_run(command, data, library, seed=0):
    settings = command.Settings("rate-fc", "MNIST", TRAIN, 128, seed, "cpu")
    return command.Run(settings, library, command.datasets.mnist(data), torch.device("cpu"))


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
    incomplete = checkpoint(good)
    del incomplete["optimizer"]
    torch.save(incomplete, directory / "incomplete.pt")
    torch.save({"weight": torch.ones(3)}, directory / "foreign.pt")
    (directory / "file").write_text("something of the user's\n")
    write_mnist(directory / "damaged")
    images = directory / "damaged" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])


def start(out, *arguments, **options):
    environment = os.environ | {
        "PYTHONPATH": str(Path(snnfast.__file__).parents[1]),
        # No test may download: every attempt is refused at once.
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "no_proxy": "",
    }
    program = [sys.executable, str(EXAMPLES / "mnist.py"), "--device", "cpu", "--threads", "1"]
    given = [str(argument) for argument in ("--plots", out, *arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(program + given, env=environment, **(pipes | options))


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
            del row["seconds"], row["test_seconds"]
    for key in ("format", "settings"):
        assert actual.pop(key) == expected.pop(key)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
