"""What pictures and animations share: style, colours, checks, and the parts that are drawn into axes.

A spike is any value but zero; tensors may have any real dtype or bool and live on any device.
"""

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional

# Okabe and Ito's colours, which people with any colour vision can tell apart.
TRUE, WRONG, OTHER = "#0072B2", "#D55E00", "#AAAAAA"
TICKED_CLASSES = 20
DOTTED_STEPS = 50
SPARSE_SPIKES = 2000
MOST_DOTS = 20_000
MOST_PATCHES = 100
WIDTH_INCHES = 6
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "figure.dpi": 120,
    "font.size": 10,
    "legend.frameon": False,
}


def train_of(spikes: Tensor, sample: int, name: str = "spikes") -> Tensor:
    """Spikes [T, N] of one sample of [T, B, ...], float32 on the CPU; ValueError names what is wrong with `name`."""
    if spikes.dim() < 3 or not spikes.numel():
        raise ValueError(
            f"{name} must be [T, B, ...] with at least one step, sample and neuron, got shape {tuple(spikes.shape)}"
        )
    if not 0 <= sample < spikes.shape[1]:
        raise ValueError(f"sample must be from 0 to {spikes.shape[1] - 1} for these {name}, got {sample}")
    return spikes[:, sample].detach().float().cpu().flatten(1)


def counts_of(train: Tensor) -> Tensor:
    """Spike count [N] of a train [T, N]."""
    return (train != 0).sum(0)


def series_of(values: Tensor, name: str, steps: int | None = None) -> Tensor:
    """Values [T] over time, float32 on the CPU; ValueError if it is no such thing, or not `steps` long."""
    if values.dim() != 1 or not values.numel() or steps not in (None, len(values)):
        length = "T at least 1" if steps is None else f"T = {steps}"
        raise ValueError(f"{name} must be [T] with {length}, got shape {tuple(values.shape)}")
    return values.detach().float().cpu()


def image_of(images: Tensor, sample: int, pixels: int | None = None) -> Tensor:
    """Image [H, W] of one sample of [B, H, W] or [B, 1, H, W]; ValueError if it has not `pixels` pixels."""
    shape = tuple(images.shape)
    if images.dim() == 4 and images.shape[1] == 1:
        images = images.squeeze(1)
    if images.dim() != 3 or not 0 <= sample < len(images):
        raise ValueError(f"images must be [B, H, W] or [B, 1, H, W] with a sample {sample}, got shape {shape}")
    image = images[sample].detach().float().cpu()
    if pixels not in (None, image.numel()):
        raise ValueError(f"images must have {pixels} pixels, as many as the spikes, got shape {shape}")
    return image


def label_of(labels: Tensor, sample: int, classes: int) -> int:
    """Class of one sample of labels [B]; ValueError if there is none below `classes`."""
    if labels.dim() != 1 or not 0 <= sample < len(labels):
        raise ValueError(f"labels must be [B] with a sample {sample}, got shape {tuple(labels.shape)}")
    label = int(labels[sample])
    if not 0 <= label < classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, as many as output neurons, got {label}")
    return label


def predicted(counts: Tensor) -> int | None:
    """The class that fired most often; None in a tie, and if no neuron fired."""
    return int(counts.argmax()) if (counts == counts.max()).sum() == 1 else None


def class_colours(classes: int, label: int, prediction: int | None) -> list[str]:
    """Colour of every class: the true one, the predicted one if that is wrong, and the others."""
    colours = [OTHER] * classes
    if prediction is not None:
        colours[prediction] = WRONG
    colours[label] = TRUE
    return colours


def verdict(label: int, counts: Tensor) -> str:
    """What is true and what the counts (or other scores) [C] say, as a title: a prediction, a tie, or nothing."""
    if not counts.any():
        return f"true {label}, no spikes"
    if (prediction := predicted(counts)) is not None:
        return f"true {label}, predicted {prediction}"
    best = (counts == counts.max()).nonzero().flatten().tolist()
    return f"true {label}, a tie of {' and '.join(map(str, best)) if len(best) < 4 else f'{len(best)} classes'}"


def class_legend() -> list[Patch]:
    """Handles of a legend for `class_colours`."""
    names = {TRUE: "true class", WRONG: "predicted, but wrong", OTHER: "other classes"}
    return [Patch(color=colour, label=name) for colour, name in names.items()]


def draw_image(axes: Axes, image: Tensor, title: str = "", **options) -> None:
    """Draw an image [H, W], large values dark. `options` are those of `Axes.imshow`."""
    axes.imshow(image.numpy(), **({"cmap": "gray_r", "interpolation": "nearest"} | options))
    axes.set_title(title)
    axes.axis("off")


def draw_bars(axes: Axes, counts: Tensor, label: int) -> None:
    """Draw spike counts [C] as bars in the colours of their classes."""
    colours = class_colours(len(counts), label, predicted(counts))
    axes.bar(range(len(counts)), counts.tolist(), color=colours)
    axes.set_ylim(0, 1.05 * max(1, int(counts.max())))
    axes.set_xticks(range(len(counts)) if len(counts) <= TICKED_CLASSES else _coloured(colours))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    colour_ticks(axes.xaxis, colours)


def colour_ticks(axis: Axis, colours: Sequence[str]) -> None:
    """Give the numbers of true and predicted class their colour: a neuron that never fired has no bar to carry it."""
    for position, tick in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True):
        colour = colours[int(position)]
        tick.set(color="black" if colour == OTHER else colour, fontweight="normal" if colour == OTHER else "bold")


def times(steps: int, dt: float | None) -> Tensor:
    """Time [T] of every step: its number from 1, or milliseconds if a step takes `dt` of them."""
    if dt is not None and not dt > 0:
        raise ValueError(f"dt must be the milliseconds of a step, above 0, or None, got {dt}")
    return torch.arange(1, steps + 1) * (dt or 1)


def label_time(axes: Axes, steps: int, dt: float | None) -> None:
    """Name and limit the time axis."""
    axes.set(xlabel="time step" if dt is None else "time (ms)", xlim=(0.5 * (dt or 1), (steps + 0.5) * (dt or 1)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=dt is None, min_n_ticks=1))


def draw_line(axes: Axes, time: Tensor, values: Tensor, **options) -> None:
    """Draw values [T] over time [T]; few ones with a dot each, as a line alone would hide where the steps are."""
    marker = "." if len(values) <= DOTTED_STEPS else None
    axes.plot(time.numpy(), values.numpy(), marker=marker, linewidth=1, **options)


def draw_spikes(axes: Axes, train: Tensor, time: Tensor, height: float, **options) -> None:
    """Draw spikes of a train [T, N] as dots over the time [T], neuron by neuron downwards in `height` inches."""
    step, neuron = train.nonzero(as_tuple=True)
    # Dots fill their share of the axes, but can be seen however many neurons and steps there are.
    cell = 72 * math.sqrt(WIDTH_INCHES / train.shape[0] * height / train.shape[1])
    diameter = min(4.5, max(2.0 if len(step) < SPARSE_SPIKES else 1.2, 0.8 * cell))
    options = {"color": "black", "s": diameter**2, "linewidths": 0} | options
    axes.scatter(time[step].numpy(), neuron.numpy(), **options)
    axes.set_ylim(train.shape[1] - 0.5, -0.5)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def draw_threshold(axes: Axes, threshold: float) -> None:
    """Draw the threshold as a dashed line, named beside the axes where it hides nothing."""
    axes.axhline(threshold, color=WRONG, linestyle="--", linewidth=1)
    axes.text(
        1.01, threshold, f"threshold {threshold:g}", color=WRONG, va="center", transform=axes.get_yaxis_transform()
    )


def draw_rates(axes: Axes, train: Tensor, time: Tensor) -> None:
    """Draw a train [T, N] that is too full for dots: its rates in patches of steps and neurons, dark where it fires."""
    steps, neurons = train.shape
    patches = min(steps, MOST_PATCHES), min(neurons, MOST_PATCHES)
    rates = functional.adaptive_avg_pool2d((train != 0).float()[None], patches)[0]
    half = float(time[0]) / 2
    edges = (half, float(time[-1]) + half, neurons - 0.5, -0.5)
    axes.imshow(rates.T.numpy(), cmap="gray_r", aspect="auto", interpolation="nearest", extent=edges, vmin=0)
    axes.figure.colorbar(axes.images[0], ax=axes, label="spikes per step", pad=0.01)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def draw_beside_counts(over_time: Axes, bars: Axes, train: Tensor, label: int, dt: float | None) -> None:
    """Draw output spikes [T, C] over time, a row for each class, and beside it their counts."""
    counts = counts_of(train)
    colours = class_colours(len(counts), label, predicted(counts))
    time = times(len(train), dt)
    for neuron, colour in enumerate(colours):
        fired = time[train[:, neuron] != 0]
        over_time.vlines(fired.tolist(), neuron - 0.4, neuron + 0.4, color=colour, linewidth=2)
    bars.barh(range(len(counts)), counts.tolist(), color=colours)
    bars.set(xlabel="spikes", xlim=(0, 1.05 * max(1, int(counts.max()))))
    bars.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    bars.tick_params(labelleft=False)
    over_time.set(ylabel="output neuron (class)", ylim=(len(counts) - 0.5, -0.5))
    over_time.set_yticks(range(len(counts)) if len(counts) <= TICKED_CLASSES else _coloured(colours))
    colour_ticks(over_time.yaxis, colours)
    label_time(over_time, len(train), dt)


def draw_ticks(axes: Axes, spikes: Tensor, dt: float | None) -> None:
    """Spikes [T] of one neuron as upright lines, below their number."""
    time = times(len(spikes), dt)
    axes.vlines(time[spikes > 0].numpy(), 0, 1, color="black", linewidth=1.2)
    axes.vlines(time[spikes < 0].numpy(), -1, 0, color=WRONG, linewidth=1.2)
    signed = bool((spikes < 0).any())
    axes.set(yticks=[], ylim=(-1 if signed else 0, 1))
    axes.set_ylabel("up\ndown" if signed else "spikes", rotation=0, ha="right", va="center")
    axes.set_title(f"{int((spikes != 0).sum())} spikes", fontsize="small")
    label_time(axes, len(spikes), dt)


def draw_on_pixels(axes: Axes, counts: Tensor, most: int, part: int, colour: str) -> None:
    """Counts [H, W] in one third of the time as dots, the thirds side by side in each pixel so that none is hidden."""
    row, column = counts.nonzero(as_tuple=True)
    diameter = 0.3 * 72 * 3.6 / max(counts.shape)
    area = diameter**2 * counts[row, column] / most
    axes.scatter(column + (part - 1) * 0.31, row, s=area.numpy(), color=colour, linewidths=0)


def _coloured(colours: Sequence[str]) -> list[int]:
    return [neuron for neuron, colour in enumerate(colours) if colour != OTHER]
