"""Training on several devices: a script started by `torchrun --nproc-per-node N` runs as N processes, one a device.

    with distributed.world(device) as world:
        net = world.wrap(network.to(world.device))
        for index in world.shard(order, batch_size):
            loss, correct = step(images[index], labels[index])
        accuracy = world.total(correct).item() / len(order)

Started without torchrun, the same lines train in one process. Each process holds the whole data set.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from files import InputError
from snnfast.step import side_stream

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        rank: from 0 to size - 1; rank 0 (`main`) alone writes files and shows progress.
        size: how many processes there are.
        device: where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress: `tqdm(disable=None if world.main else True)`."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """A DistributedDataParallel of `model`, which averages gradients; alone, `model` itself.

        All processes start from rank 0's parameters. Evaluate and save `plain(wrapped)`: a forward of the wrapper
        waits for the other processes.
        """
        if self.size == 1:
            return model
        if self.device.type != "cuda":
            return DistributedDataParallel(model)
        stream = side_stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            wrapped = DistributedDataParallel(model, device_ids=[self.device.index])
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return wrapped

    def shard(self, order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
        """This process's part of every batch of a training epoch.

        The k-th parts of all processes together are the k-th `batch_size` samples of `order` [N], the same permutation
        in all of them, so the mean over processes of a mean loss, and of its gradient, is that of the whole batch.
        For that the parts are equal: up to size - 1 samples at the end of `order` are left out.
        """
        if batch_size % self.size:
            raise InputError(
                f"argument --batch-size: {batch_size} given, must be a multiple of the {self.size} processes"
            )
        even = order[: len(order) - len(order) % self.size]
        return tuple(batch.chunk(self.size)[self.rank] for batch in even.split(batch_size))

    def part(self, order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
        """This process's batches of an evaluation, where every sample counts once; of the size that `shard` gives."""
        return order[self.rank :: self.size].split(max(1, batch_size // self.size))

    def gathered(self, value: Tensor) -> list[Tensor]:
        """`value` of every process, by rank, on the CPU."""
        values = [value.cpu()]
        if self.size > 1:
            values *= self.size
            dist.all_gather_object(values, value.cpu())
        return values

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes of `value` (a loss sum, a count of right answers), the same in each."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value


def plain(model: nn.Module) -> nn.Module:
    """The model inside `World.wrap`'s, with the same parameters and a state_dict that any run can load."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started (NCCL between GPUs, gloo between CPUs), or be alone.

    On GPUs each process takes the one of its local rank, whatever index `device` has. InputError if there are fewer.
    """
    if not dist.is_torchelastic_launched():
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        device = _own_gpu()
    # As PyTorch's notes on CUDA graphs ask for before a step under DistributedDataParallel is captured.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        # What still refers to a DistributedDataParallel would keep its threads alive beyond their process group.
        gc.collect()
        dist.destroy_process_group()


def _own_gpu() -> torch.device:
    index, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= available:
        processes = os.environ["LOCAL_WORLD_SIZE"]
        raise InputError(f"torchrun --nproc-per-node: {processes} processes here, must be at most the {available} GPUs")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
