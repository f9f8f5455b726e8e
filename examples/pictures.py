"""Pictures of spiking networks, as functions of your own tensors.

Every function returns a matplotlib Figure that needs no display: `save(figure, "raster.png")`. `save_all` draws
everything there is to see of a trained network; `animations.py` has the pictures that move.

Spikes are [T, B, ...] (steps, samples, neurons), images [B, H, W] or [B, 1, H, W] with large values as ink, labels [B];
`sample` says which of B is drawn. Tensors may have any real dtype, spikes be bool too, and live on any device. Time
steps count from 1; where a function takes `dt`, the milliseconds of a step, its time axis is in milliseconds.

Raises, in every function:
    ValueError: a tensor of another shape, without a step or a sample, or that does not go with the others.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.animation import Animation, writers
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

import animations
from drawing import (
    MOST_DOTS,
    OTHER,
    STYLE,
    TRUE,
    WRONG,
    class_colours,
    class_legend,
    counts_of,
    draw_bars,
    draw_beside_counts,
    draw_image,
    draw_line,
    draw_on_pixels,
    draw_rates,
    draw_spikes,
    draw_threshold,
    draw_ticks,
    image_of,
    label_of,
    label_time,
    predicted,
    series_of,
    times,
    train_of,
    verdict,
)
from files import replacing

# Three colours of matplotlib's plasma: ordered by lightness for any colour vision, as the intervals are in time.
INTERVALS = {"early": "#0D0887", "middle": "#CC4778", "late": "#F89540"}
MOST_FRAMES = 50
WRITERS = {".gif": "pillow", ".mp4": "ffmpeg"}


def loss_curve(
    losses: Sequence[float],
    history: Sequence[Mapping[str, float]],
    title: str = "Loss and accuracy in training",
) -> Figure:
    """Draw the loss of every iteration, and loss and accuracy of every epoch: mean in training, the test's after it.

    Args:
        losses: training loss of each iteration, all epochs one after the other.
        history: per epoch, `train_loss`, `test_loss`, and `train_accuracy`, `test_accuracy`
            from 0 to 1.
        title: what was trained.
    """
    if not len(losses) or not len(history):
        raise ValueError(f"losses and history must not be empty, got {len(losses)} losses and {len(history)} epochs")
    losses = torch.as_tensor(losses).tolist()
    # What is a mean over an epoch stands in its middle, what was measured after it at its end.
    per_epoch = len(losses) / len(history)
    places = {
        "train": [per_epoch * (epoch + 0.5) + 0.5 for epoch in range(len(history))],
        "test": [per_epoch * (epoch + 1) for epoch in range(len(history))],
    }
    labels = {"train": "train, mean of the epoch", "test": "test, after the epoch"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 5.5), layout="constrained")
        loss, accuracy = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        iterations = range(1, len(losses) + 1)
        dot = "." if len(losses) == 1 else None
        loss.plot(iterations, losses, color=OTHER, linewidth=0.8, marker=dot, label="train, every iteration")
        for axes, quantity, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
            for split, colour, marker in (("train", TRUE, "o"), ("test", WRONG, "s")):
                values = [scale * row[f"{split}_{quantity}"] for row in history]
                axes.plot(places[split], values, color=colour, marker=marker, markersize=5, label=labels[split])
        loss.set(ylabel="loss", title=title)
        if min(losses) >= 0:
            loss.set_ylim(0, 1.05 * loss.dataLim.y1)
        figure.legend(handles=loss.lines, loc="outside lower center", ncols=3)
        accuracy.set(ylabel="accuracy (%)", xlabel=f"iteration ({int(per_epoch)} per epoch)")
        accuracy.set_xlim(0, 1.05 * len(losses))
        accuracy.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def raster(
    trains: Tensor | Mapping[str, Tensor], sample: int = 0, title: str = "Spikes", dt: float | None = None
) -> Figure:
    """Draw one sample's spikes over time, neuron by neuron from the top; rates in place of more dots than one can see.

    Args:
        trains: spikes [T, B, ...], or several by name, each in a panel of its own; their T are equal.
        dt: milliseconds of a step.
    """
    panels = dict(trains) if isinstance(trains, Mapping) else {"": trains}
    drawn = {name: train_of(spikes, sample, f"spikes {name}".strip()) for name, spikes in panels.items()}
    lengths = {name: len(train) for name, train in drawn.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"trains must be spikes of equally many steps, at least one of them, got {lengths}")
    heights = [1 + min(2.0, 0.05 * train.shape[1]) for train in drawn.values()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, sum(heights) + 0.8), layout="constrained")
        figure.suptitle(title)
        column = figure.subplots(len(drawn), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, height, (name, train) in zip(column, heights, drawn.items(), strict=True):
            time, fired = times(len(train), dt), int(counts_of(train).sum())
            if fired > MOST_DOTS:
                draw_rates(axes, train, time)
            else:
                draw_spikes(axes, train.clamp(min=0), time, height)
                # Delta modulation has spikes for a fall too.
                draw_spikes(axes, train.clamp(max=0), time, height, color=WRONG)
            counted = f"{fired:,} spikes of {train.shape[1]:,} neurons"
            axes.set(ylabel="neuron", title=f"{name}: {counted}" if name else counted)
            label_time(axes, len(train), dt)
            axes.label_outer()
    return figure


def interval_raster(
    spikes: Tensor, images: Tensor, sample: int = 0, title: str = "Input spikes", dt: float | None = None
) -> Figure:
    """Draw one sample's input spikes over time, and on the pixels that fired, coloured by early, middle and late third.

    Args:
        spikes: [T, B, ...] with H * W neurons, pixels row by row.
        dt: milliseconds of a step.
    """
    train = train_of(spikes, sample)
    image = image_of(images, sample, train.shape[1])
    steps = len(train)
    third = torch.arange(steps) * 3 // steps
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 5), layout="constrained")
        figure.suptitle(title)
        over_time, on_pixels = figure.subplots(1, 2, width_ratios=(6, 5))
        draw_image(on_pixels, image, "on their pixels (dot area: spikes in the interval)", alpha=0.35)
        most = max(1, *(int(counts_of(train[third == part]).max()) for part in third.unique()))
        handles = []
        for part, (name, colour) in enumerate(INTERVALS.items()):
            within = third == part
            if not within.any():
                continue
            draw_spikes(over_time, train * within[:, None], times(steps, dt), 4, color=colour)
            draw_on_pixels(on_pixels, counts_of(train[within]).view(image.shape), most, part, colour)
            first, last = (int(step) + 1 for step in within.nonzero()[[0, -1]])
            label = f"{name}: step{'s' if last > first else ''} {first}{f' to {last}' if last > first else ''}"
            handles.append(Line2D([], [], color=colour, marker="o", linestyle="", label=label))
        over_time.set(ylabel="pixel, row by row from the top", title="over time")
        label_time(over_time, steps, dt)
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def traces(
    current: Tensor,
    membrane: Tensor,
    spikes: Tensor,
    threshold: float = 1.0,
    title: str = "Current, membrane and spikes of one neuron",
    dt: float | None = None,
) -> Figure:
    """Draw what flows into one neuron, its membrane with the threshold, and its spikes.

    Args:
        current, membrane, spikes: [T], in the units that the neuron computes in.
        threshold: where it fires.
        dt: milliseconds of a step.
    """
    current = series_of(current, "current")
    steps = len(current)
    membrane, spikes = series_of(membrane, "membrane", steps), series_of(spikes, "spikes", steps)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 5), layout="constrained")
        figure.suptitle(title)
        above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 1))
        draw_line(above, times(steps, dt), current, color="black")
        draw_line(middle, times(steps, dt), membrane, color=TRUE)
        draw_threshold(middle, threshold)
        above.set(ylabel="current")
        middle.set(ylabel="membrane")
        draw_ticks(below, spikes, dt)
    return figure


def encoded_signal(
    signal: Tensor, spikes: Tensor, title: str = "A signal and its spikes", dt: float | None = None
) -> Figure:
    """Draw a signal over the spikes that encode it, those of either sign in a colour of their own.

    Args:
        signal, spikes: [T].
        dt: milliseconds of a step.
    """
    signal = series_of(signal, "signal")
    spikes = series_of(spikes, "spikes", len(signal))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        figure.suptitle(title)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        draw_line(above, times(len(signal), dt), signal, color="black")
        above.set(ylabel="signal")
        draw_ticks(below, spikes, dt)
    return figure


def output_membranes(
    membranes: Tensor,
    labels: Tensor | None = None,
    sample: int = 0,
    threshold: float | None = None,
    spikes: Tensor | None = None,
    title: str = "Output membranes",
    dt: float | None = None,
) -> Figure:
    """Draw the membranes of one sample's output neurons, those of the true and of the predicted class in colour.

    All share a scale; that of neurons that fire has ticks at the lowest membrane and at their threshold.

    Args:
        membranes: [T, B, C].
        labels: true classes; None: nothing is coloured.
        threshold: where a neuron fires; None for a readout that does not.
        spikes: output spikes [T, B, C] whose counts predict; None: the neuron whose membrane rises highest does.
        dt: milliseconds of a step.
    """
    trace = train_of(membranes, sample, "membranes")
    steps, classes = trace.shape
    lowest = float(trace.min())
    colours = ["black"] * classes
    handles = []
    if labels is not None:
        label = label_of(labels, sample, classes)
        if spikes is None:
            best = trace.amax(0)
            # Silence is no tie of spikes, but one of membranes.
            prediction, said = predicted(best), verdict(label, best if best.any() else torch.ones(classes))
        else:
            counts = counts_of(train_of(spikes, sample))
            prediction, said = predicted(counts), verdict(label, counts)
        title = f"{title}: {said}"
        colours, handles = class_colours(classes, label, prediction), class_legend()
    if threshold is not None:
        handles.append(Line2D([], [], color="black", linestyle="--", linewidth=0.8, label=f"threshold {threshold:g}"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.2 + 0.55 * classes), layout="constrained")
        figure.suptitle(title)
        figure.supylabel("membrane of each output neuron", fontsize="medium")
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=4)
        rows = figure.subplots(classes, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for neuron, (axes, colour) in enumerate(zip(rows, colours, strict=True)):
            axes.margins(y=0.12)  # no dot is cut
            draw_line(axes, times(steps, dt), trace[:, neuron], color=colour)
            if threshold is not None:
                axes.axhline(threshold, color="black", linestyle="--", linewidth=0.6)
            axes.set_ylabel(neuron, rotation=0, ha="right", va="center", labelpad=8, fontweight="bold")
            axes.yaxis.label.set_color("black" if colour == OTHER else colour)
            if threshold is None:
                axes.yaxis.set_major_locator(MaxNLocator(nbins=2))
            else:
                axes.set_yticks([lowest, threshold], labels=[f"{lowest:.2g}", f"{threshold:g}"])
            axes.tick_params(labelsize="small")
            label_time(axes, steps, dt)
            axes.label_outer()
        figure.align_ylabels(rows)
    return figure


def rate_image(trains: Mapping[str, Tensor], images: Tensor, sample: int = 0) -> Figure:
    """Draw one sample's image beside those rebuilt from its spikes: the mean of every pixel over time.

    Args:
        trains: by name, spikes [T, B, ...] with H * W neurons, pixels row by row.
    """
    image = image_of(images, sample)
    rates = {}
    for name, spikes in trains.items():
        train = train_of(spikes, sample, f"spikes {name}")
        image_of(images, sample, train.shape[1])
        rates[f"{name}: mean over time (T = {len(train)})"] = train.mean(0).view(image.shape)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.3 * (1 + len(rates)), 3), layout="constrained")
        original, *panels = figure.subplots(1, 1 + len(rates), squeeze=False)[0]
        draw_image(original, image, "image")
        for axes, (name, rate) in zip(panels, rates.items(), strict=True):
            # Every panel has a scale of its own, or a small gain would leave nothing to see.
            draw_image(axes, rate, name, vmin=0, vmax=max(0.0, float(rate.max())) or 1)
            figure.colorbar(axes.images[0], ax=axes, label="spikes per step", shrink=0.9)
    return figure


def output_raster(spikes: Tensor, images: Tensor, labels: Tensor, sample: int = 0, dt: float | None = None) -> Figure:
    """Draw one sample: its image, its output spikes [T, B, C] over time, and their counts beside them."""
    train = train_of(spikes, sample)
    counts = counts_of(train)
    label = label_of(labels, sample, len(counts))
    image = image_of(images, sample)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        figure.suptitle(verdict(label, counts))
        grid = figure.add_gridspec(2, 3, width_ratios=(3, 5, 2), height_ratios=(2, 1))
        draw_image(figure.add_subplot(grid[0, 0]), image)
        legend = figure.add_subplot(grid[1, 0])
        legend.axis("off")
        legend.legend(handles=class_legend(), loc="upper center")
        over_time = figure.add_subplot(grid[:, 1])
        bars = figure.add_subplot(grid[:, 2], sharey=over_time)
        draw_beside_counts(over_time, bars, train, label, dt)
    return figure


def gallery(spikes: Tensor, images: Tensor, labels: Tensor, rows: int = 4, columns: int = 4) -> Figure:
    """Draw the first rows * columns samples: each image beside the counts of its output spikes [T, B, C]."""
    if rows < 1 or columns < 1:
        raise ValueError(f"rows and columns must be at least 1, got {rows} and {columns}")
    shown = [train_of(spikes, sample) for sample in range(min(rows * columns, max(1, len(labels))))]
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    tallest = max(1, *(int(counts_of(train).max()) for train in shown))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3 * columns, 1.9 * rows + 0.6), layout="constrained")
        figure.suptitle(f"Output spikes in {len(spikes)} step{'s' if len(spikes) > 1 else ''}")
        figure.legend(handles=class_legend(), loc="outside lower center", ncols=min(3, columns))
        cells = figure.add_gridspec(rows, columns)
        for sample, train in enumerate(shown):
            label, image = label_of(labels, sample, train.shape[1]), image_of(images, sample)
            _draw_cell(figure, cells[divmod(sample, columns)], counts_of(train), image, label, tallest)
    return figure


def save(picture: Figure | Animation, path: str | Path) -> Path:
    """Write a picture as the file type that its suffix names, an animation as .gif or, with ffmpeg, as .mp4.

    A file at `path` is replaced once the new one is whole. Returns the path.

    Raises:
        ValueError: a suffix that is no such type, or .mp4 without ffmpeg.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if isinstance(picture, Figure):
        if path.suffix[1:] not in picture.canvas.get_supported_filetypes():
            raise ValueError(f"path must end in .png, .pdf, .svg or the like for a picture, got {path.name}")
        with replacing(path) as temporary:
            picture.savefig(temporary, format=path.suffix[1:])
        return path
    if path.suffix not in WRITERS or not writers.is_available(WRITERS[path.suffix]):
        raise ValueError(f"path must end in .gif, or .mp4 where ffmpeg is installed, for an animation, got {path.name}")
    # Both writers go by the suffix of the file, which a temporary name beside the path has not.
    with tempfile.TemporaryDirectory() as scratch, replacing(path) as temporary:
        picture.save(Path(scratch) / path.name, writer=WRITERS[path.suffix])
        temporary.write_bytes((Path(scratch) / path.name).read_bytes())
    return path


def save_all(
    directory: str | Path,
    images: Tensor,
    labels: Tensor,
    *,
    input_spikes: Tensor | None = None,
    spikes: Tensor | None = None,
    membranes: Tensor | None = None,
    threshold: float | None = None,
    losses: Sequence[float] = (),
    history: Sequence[Mapping[str, float]] = (),
    title: str = "",
    sample: int = 0,
    animated: bool = True,
) -> list[Path]:
    """Draw and save everything that can be seen of a trained network in what is given.

    Args:
        directory: where the files go; made where it is missing.
        images, labels: the samples [B, H, W] and [B].
        input_spikes: what they were encoded in, [T, B, ...] with H * W neurons.
        spikes, membranes: of the output neurons, [T, B, C].
        threshold: that of the output neurons, drawn with the membranes.
        losses, history: as in `loss_curve`.
        title: what was trained, in the title of every picture.
        sample: the one that is drawn by itself.
        animated: whether to draw animations too.

    Returns:
        The files: loss.png; input-raster.png, input-intervals.png, input-image.png, input.gif; raster.png,
        gallery.png, counts.gif; membranes.png. Animations skip steps where there are more than 50.
    """
    drawn = {}
    if len(losses) and len(history):
        drawn["loss.png"] = loss_curve(losses, history)
    if input_spikes is not None:
        drawn["input-raster.png"] = raster(input_spikes, sample, "Input spikes")
        drawn["input-intervals.png"] = interval_raster(input_spikes, images, sample)
        drawn["input-image.png"] = rate_image({"rebuilt": input_spikes}, images, sample)
    if input_spikes is not None and animated:
        drawn["input.gif"] = animations.input_spikes(input_spikes, images, sample, _every(input_spikes), title=title)
    if spikes is not None:
        drawn["raster.png"] = output_raster(spikes, images, labels, sample)
        drawn["gallery.png"] = gallery(spikes, images, labels)
    if spikes is not None and animated:
        drawn["counts.gif"] = animations.spike_counts(spikes, labels, sample, _every(spikes), title=title)
    if membranes is not None:
        drawn["membranes.png"] = output_membranes(membranes, labels, sample, threshold, spikes)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for picture in drawn.values():
        if title and isinstance(picture, Figure):
            with matplotlib.rc_context(STYLE):
                picture.suptitle("\n".join(filter(None, (title, picture.get_suptitle()))))
    return [save(picture, directory / name) for name, picture in drawn.items()]


def _every(spikes: Tensor) -> int:
    """Steps from frame to frame of an animation that does not take long to draw or to watch."""
    return math.ceil(len(spikes) / MOST_FRAMES)


def _draw_cell(figure: Figure, cell: SubplotSpec, counts: Tensor, picture: Tensor, label: int, tallest: int) -> None:
    image, bars = cell.subgridspec(1, 2, width_ratios=(3, 4)).subplots()
    draw_image(image, picture)
    # Beside its own bars, not halfway to the neighbour's.
    image.set_anchor("E")
    draw_bars(bars, counts, label)
    bars.set(ylim=(0, 1.05 * tallest))
    bars.set_title(verdict(label, counts), fontsize="small")
    bars.tick_params(labelsize="x-small")
