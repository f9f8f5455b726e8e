"""Pictures of spiking networks, as functions of your own tensors.

Every function returns a matplotlib Figure that needs no display: `figure.savefig("raster.png")`.
Output spikes are [T, B, C] (steps, samples, classes), images [B, H, W] with large values as ink,
labels [B]; tensors may live on any device.
"""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

# Okabe and Ito's colours, which people with any colour vision can tell apart.
TRUE, WRONG, OTHER = "#0072B2", "#D55E00", "#AAAAAA"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "figure.dpi": 120,
    "font.size": 10,
    "legend.frameon": False,
}


def loss_curve(
    losses: Sequence[float],
    history: Sequence[Mapping[str, float]],
    title: str = "Loss and accuracy in training",
) -> Figure:
    """Draw the loss of every iteration, and the mean loss and accuracy of every epoch.

    Args:
        losses: training loss of each iteration, all epochs one after the other.
        history: per epoch, `train_loss`, `test_loss`, and `train_accuracy`, `test_accuracy`
            from 0 to 1.
        title: what was trained.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 5.5), layout="constrained")
        loss, accuracy = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        ends = [len(losses) * (epoch + 1) / len(history) for epoch in range(len(history))]
        loss.plot(range(1, len(losses) + 1), losses, color=OTHER, linewidth=0.8, label="iteration")
        for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
            for split, colour, marker in (("train", TRUE, "o"), ("test", WRONG, "s")):
                scale = 100 if quantity == "accuracy" else 1
                values = [scale * row[f"{split}_{quantity}"] for row in history]
                label = f"{split}, mean of the epoch"
                axes.plot(ends, values, color=colour, marker=marker, markersize=5, label=label)
        loss.set(ylabel="cross-entropy", ylim=(0, None), title=title)
        loss.legend()
        per_epoch = len(losses) // len(history)
        accuracy.set(ylabel="accuracy (%)", xlabel=f"iteration ({per_epoch} per epoch)")
    return figure


def output_raster(spikes: Tensor, images: Tensor, labels: Tensor, sample: int = 0) -> Figure:
    """Draw one sample: its image, and its output spikes over time below their counts."""
    train, counts = _of_sample(spikes, sample)
    label = int(labels[sample])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 5), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 2), height_ratios=(2, 3))
        _draw_image(figure.add_subplot(grid[0, 0]), images[sample])
        legend = figure.add_subplot(grid[1, 0])
        legend.axis("off")
        legend.legend(handles=_legend(), loc="upper center")
        bars = figure.add_subplot(grid[0, 1])
        _draw_bars(bars, counts, label)
        bars.set(ylabel="spikes", title=_verdict(counts, label))
        raster = figure.add_subplot(grid[1, 1], sharex=bars)
        _draw_raster(raster, train, _colours(counts, label))
    return figure


def gallery(spikes: Tensor, images: Tensor, labels: Tensor, rows: int = 4, columns: int = 4) -> Figure:
    """Draw the first rows * columns samples: each image beside the spike counts of its outputs."""
    shown = min(rows * columns, len(labels))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3 * columns, 1.9 * rows + 0.6), layout="constrained")
        figure.suptitle(f"Output spikes in {len(spikes)} steps")
        figure.legend(handles=_legend(), loc="outside lower center", ncols=3)
        cells = figure.add_gridspec(rows, columns)
        tallest = int(spikes[:, :shown].sum(0).max())
        for sample in range(shown):
            _draw_cell(figure, cells[divmod(sample, columns)], spikes, images, labels, sample, tallest)
    return figure


def _draw_cell(
    figure: Figure,
    cell: SubplotSpec,
    spikes: Tensor,
    images: Tensor,
    labels: Tensor,
    sample: int,
    tallest: int,
) -> None:
    label = int(labels[sample])
    _, counts = _of_sample(spikes, sample)
    image, bars = cell.subgridspec(1, 2, width_ratios=(2, 3)).subplots()
    _draw_image(image, images[sample])
    _draw_bars(bars, counts, label)
    bars.set(ylim=(0, 1.05 * tallest))
    bars.set_title(_verdict(counts, label), fontsize="small")
    bars.tick_params(labelsize="x-small")


def _draw_image(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.cpu().numpy(), cmap="gray_r", interpolation="nearest")
    axes.axis("off")


def _draw_bars(axes: Axes, counts: Tensor, label: int) -> None:
    classes = range(len(counts))
    colours = _colours(counts, label)
    axes.bar(classes, counts.tolist(), color=colours)
    axes.set_xticks(classes)
    # A neuron that never fired has no bar, so its number carries the colour too.
    for tick, colour in zip(axes.get_xticklabels(), colours, strict=True):
        if colour != OTHER:
            tick.set(color=colour, fontweight="bold")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def _draw_raster(axes: Axes, train: Tensor, colours: Sequence[str]) -> None:
    steps = len(train)
    for unit, colour in enumerate(colours):
        fired = train[:, unit].nonzero().flatten() + 1
        axes.hlines(fired.tolist(), unit - 0.4, unit + 0.4, color=colour, linewidth=2)
    axes.set(xlabel="output neuron (class)", ylabel="time step", ylim=(steps + 1, 0))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _of_sample(spikes: Tensor, sample: int) -> tuple[Tensor, Tensor]:
    train = spikes[:, sample].detach().cpu()
    return train, train.sum(0)


def _colours(counts: Tensor, label: int) -> list[str]:
    colours = [OTHER] * len(counts)
    colours[int(counts.argmax())] = WRONG
    colours[label] = TRUE
    return colours


def _verdict(counts: Tensor, label: int) -> str:
    return f"true {label}, predicted {int(counts.argmax())}"


def _legend() -> list[Patch]:
    names = {TRUE: "true class", WRONG: "predicted, but wrong", OTHER: "other classes"}
    return [Patch(color=colour, label=name) for colour, name in names.items()]
