"""examples/distributed.py: two processes that torchrun starts train as one does on the same batches.

Run by torchrun this file is the training script; the tests start it and compare what the processes saved.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnfast as snn

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
import distributed  # noqa: E402
from files import InputError  # noqa: E402

sys.path.remove(str(EXAMPLES))

pytestmark = pytest.mark.long

PROCESSES, STEPS, BATCH_SIZE, EPOCHS = 2, 5, 64, 2


def train(world, images, labels, samples=602):
    """Train on the first `samples` images [N, 64]; returns everything that may not depend on the world's size.

    Sums over a batch differ in their order. In float64 no membrane is so near its threshold that this flips a spike.
    """
    torch.manual_seed(world.rank)  # DistributedDataParallel hands rank 0's start to all
    layers = [nn.Linear(64, 50), snn.Leaky(0.9), nn.Linear(50, 10), snn.Leaky(0.9)]
    net = world.wrap(snn.Unroll(*layers).double())
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)

    def encode(x):
        return x.expand(STEPS, *x.shape)

    def scores(spk):
        return spk.sum(0)

    step = snn.TrainingStep(net, optimizer, lambda spk, y: F.cross_entropy(scores(spk), y), encode, scores=scores)
    losses, correct, order = [], torch.zeros((), dtype=torch.int64), torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for index in world.shard(torch.randperm(samples, generator=order), BATCH_SIZE):
            loss, right = step(images[index], labels[index])
            losses.append(world.total(loss) / world.size)
            correct += right
    model, held_out = distributed.plain(net).eval(), torch.arange(samples, len(labels))
    with torch.no_grad():
        parts = world.part(held_out, BATCH_SIZE)
        right = sum((scores(model(encode(images[i]))).argmax(1) == labels[i]).sum() for i in parts)
    return {
        "parameters": model.state_dict(),
        "losses": torch.stack(losses),
        "correct": world.total(correct),
        "held out": world.total(right),
        "rank": (world.rank, world.main, world.size),
    }


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's: float64 images [N, 64] from 0 to 1, and labels."""
    from sklearn.datasets import load_digits  # not above: each of the processes would spend a second on it

    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    return images / 16, labels


@pytest.fixture(scope="module")
def ranks(digits, tmp_path_factory):
    """What each of two gloo processes under torchrun saved."""
    out = tmp_path_factory.mktemp("ranks")
    torch.save(digits, out / "digits.pt")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    run = subprocess.run([*launcher, __file__, str(out)], capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone(digits):
    torch.manual_seed(0)
    with distributed.world(torch.device("cpu")) as world:
        return train(world, *digits)


def test_each_process_knows_its_place(ranks, alone):
    assert [run["rank"] for run in ranks] == [(0, True, 2), (1, False, 2)]
    assert alone["rank"] == (0, True, 1)


def test_all_processes_end_with_the_same_parameters(ranks):
    first, second = (run["parameters"] for run in ranks)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_two_processes_train_as_one(ranks, alone):
    assert len(alone["losses"]) == 2 * 10 and alone["losses"][-2] < 0.8 * alone["losses"][0]
    for run in ranks:
        torch.testing.assert_close(run["losses"], alone["losses"], rtol=1e-9, atol=1e-9)
        assert run["correct"] == alone["correct"] and run["held out"] == alone["held out"]
        assert run["parameters"].keys() == alone["parameters"].keys()
        for name, value in alone["parameters"].items():
            torch.testing.assert_close(run["parameters"][name], value, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("samples", [0, 1, 7, 8, 21, 24])
def test_shards_make_up_the_batches_of_one_process(samples):
    order = torch.randperm(samples)
    parts = [distributed.World(rank, 4, torch.device("cpu")).shard(order, 8) for rank in range(4)]
    for together, whole in zip(zip(*parts, strict=True), order[: samples // 4 * 4].split(8), strict=True):
        assert torch.equal(torch.cat(together), whole) and len({len(part) for part in together}) == 1
    seen = [distributed.World(rank, 4, torch.device("cpu")).part(order, 8) for rank in range(4)]
    assert sorted(torch.cat([torch.cat(batches) for batches in seen]).tolist()) == list(range(samples))


def test_a_batch_that_cannot_be_shared_out_is_an_input_error():
    with pytest.raises(InputError, match="--batch-size: 10 given, must be a multiple of the 4 processes"):
        distributed.World(0, 4, torch.device("cpu")).shard(torch.arange(100), 10)


def test_more_processes_than_gpus_are_an_input_error(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(InputError, match="--nproc-per-node: 2 processes here, must be at most the 1 GPUs"),
        distributed.world(torch.device("cuda")),
    ):
        pass


def test_alone_nothing_is_wrapped_or_reduced():
    with distributed.world(torch.device("cpu")) as world:
        net, value = nn.Linear(2, 2), torch.tensor(3)
        assert world.wrap(net) is net and distributed.plain(net) is net and world.total(value) is value
    assert not torch.distributed.is_initialized()


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    with distributed.world(torch.device("cpu")) as joined:
        torch.save(train(joined, *torch.load(directory / "digits.pt")), directory / f"{joined.rank}.pt")
