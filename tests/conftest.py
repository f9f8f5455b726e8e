"""Every test with the `device` fixture runs on the CPU and, where there is one, on the GPU."""

import pytest
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed_and_poison():
    """Fixed random numbers; deterministic mode fills fresh memory with NaN, which shows any output left unwritten."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
