"""Deep networks of the field, which torch libraries run layer by layer over whole sequences x [T, B, ...].

They take their LIF layers, [T, B, ...] to spikes of that shape, from `lif`. All that has no time sees all steps at
once, batch-norm's statistics included, as the papers' own code has it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contenders import AllSteps, Contender
from published import Sizes


def _convolution(inputs, outputs, kernel, stride, lif):
    """A convolution that keeps the size but for its stride, batch-norm and neurons."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(AllSteps(convolution, nn.BatchNorm2d(outputs)), lif())


class SewBlock(nn.Module):
    """Spike-element-wise residual block that adds (Fang et al. 2021): [T, B, inputs, H, W] to [T, B, outputs, ...]."""

    def __init__(self, inputs, outputs, stride, lif):
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(inputs, outputs, 3, stride, lif), _convolution(outputs, outputs, 3, 1, lif)
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _convolution(inputs, outputs, 1, stride, lif)

    def forward(self, x):
        return self.layers(x) + self.shortcut(x)


class SewResNet18(nn.Module):
    """SEW-ResNet-18 with the first layer for small images: x [T, B, channels, H, W] to logits [B, classes]."""

    def __init__(self, lif, channels, width, classes):
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = _convolution(channels, width, 3, 1, lif)
        self.blocks = nn.Sequential(
            *(
                SewBlock(*pair, stride, lif)
                for k, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False))
                for pair, stride in (((inputs, outputs), 1 if k == 0 else 2), ((outputs, outputs), 1))
            )
        )
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((-2, -1))).mean(0)


class SpikformerBlock(nn.Module):
    """Spiking self-attention and MLP (Zhou et al. 2023), residual: x [T, B, tokens, width] to logits [B, classes]."""

    def __init__(self, lif, width, heads, hidden, classes):
        super().__init__()
        self.heads = heads

        def linear(inputs, outputs):
            # Every token of every step is a sample of batch-norm's.
            dense = nn.Sequential(nn.Linear(inputs, outputs), nn.Flatten(0, 1), nn.BatchNorm1d(outputs))
            return _Tokens(dense, lif())

        self.query, self.key, self.value = (linear(width, width) for _ in range(3))
        self.attend, self.project = lif(), linear(width, width)
        self.mlp = nn.Sequential(linear(width, hidden), linear(hidden, width))
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        heads = 0.125 * (query @ key.transpose(-2, -1) @ value)
        x = x + self.project(self.attend(heads.transpose(2, 3).flatten(3)))
        x = x + self.mlp(x)
        return self.fc(x.mean((0, 2)))

    def _split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(2, 3)


class _Tokens(nn.Module):
    def __init__(self, dense, lif):
        super().__init__()
        self.dense, self.lif = dense, lif

    def forward(self, x):
        return self.lif(self.dense(x.flatten(0, 1)).unflatten(0, x.shape[:3]))


class Counts(nn.Module):
    """How often each output fires, of a network of spikes [T, B, classes]."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).sum(0)


def conv_net(contender: Contender, sizes: Sizes) -> nn.Module:
    """snnTorch's convolutional tutorial: 5x5 convolutions and pooling twice, and a Linear, neurons behind each."""
    side, first, second, classes = sizes.layers
    left = ((side - 4) // 2 - 4) // 2
    return contender.network(
        nn.Sequential(nn.Conv2d(1, first, 5), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(first, second, 5), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(second * left**2, classes)),
    )


@dataclass(frozen=True)
class Deep:
    """A network for any contender.

    Attributes:
        build: (contender, sizes) to a module from x [T, B, *shape] to logits [B, classes], the last of the layers.
        shape: sizes to that of a step of a sample.
        rate: of the input's spikes; 0: normal numbers.
        full, small: its sizes, and some for tests.
    """

    build: Callable[[Contender, Sizes], nn.Module]
    shape: Callable[[Sizes], tuple[int, ...]]
    rate: float
    full: Sizes
    small: Sizes

    def inputs(self, sizes: Sizes) -> tuple[Tensor, Tensor]:
        """x [T, B, *shape] and classes [B], the same every time."""
        generator = torch.Generator().manual_seed(0)
        shape = (sizes.T, sizes.B, *self.shape(sizes))
        x = torch.rand(shape, generator=generator) < self.rate if self.rate else torch.randn(shape, generator=generator)
        return x.float(), torch.randint(sizes.layers[-1], (sizes.B,), generator=generator)

    def network(self, contender: Contender, sizes: Sizes) -> nn.Module:
        """The contender's form of it, with the same weights for every contender."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build(contender, sizes)


DEEP = {
    # layers: side, width of the first stage, classes
    "sew-resnet18": Deep(
        build=lambda contender, sizes: contender.deep(lambda lif: SewResNet18(lif, 3, *sizes.layers[1:])),
        shape=lambda sizes: (3, sizes.layers[0], sizes.layers[0]),
        rate=0.0,
        full=Sizes(4, 4, (32, 64, 10)),
        # Not 4 channels: there torch 2.11's compiled backward of such a network, of ReLUs too, corrupts a CPU's heap.
        small=Sizes(2, 2, (16, 16, 10)),
    ),
    # layers: tokens, width, heads, the MLP's width, classes
    "spikformer": Deep(
        build=lambda contender, sizes: contender.deep(lambda lif: SpikformerBlock(lif, *sizes.layers[1:])),
        shape=lambda sizes: sizes.layers[:2],
        rate=0.2,
        full=Sizes(4, 16, (64, 256, 8, 1024, 10)),
        small=Sizes(2, 2, (16, 16, 2, 32, 10)),
    ),
    # layers: side, channels twice, classes
    "conv": Deep(
        build=lambda contender, sizes: Counts(conv_net(contender, sizes)),
        shape=lambda sizes: (1, sizes.layers[0], sizes.layers[0]),
        rate=0.3,
        full=Sizes(25, 32, (28, 12, 64, 10)),
        small=Sizes(5, 2, (16, 4, 5, 10)),
    ),
}
