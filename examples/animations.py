"""Animations of spiking networks over their time steps, as functions of your own tensors.

Every function returns a matplotlib animation that needs no display: `pictures.save(animation, "input.gif")`, or
`animation.to_jshtml()` in a notebook. Tensors are those of `pictures`.
"""

from collections.abc import Callable

import matplotlib
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure
from torch import Tensor

from drawing import (
    STYLE,
    class_colours,
    class_legend,
    colour_ticks,
    counts_of,
    draw_bars,
    draw_image,
    image_of,
    label_of,
    predicted,
    train_of,
    verdict,
)

FRAMES_PER_SECOND = 10


def input_spikes(
    spikes: Tensor, images: Tensor, sample: int = 0, every: int = 1, fps: float = FRAMES_PER_SECOND, title: str = ""
) -> FuncAnimation:
    """Show one sample's image beside the pixels that spike in a step.

    Args:
        spikes: [T, B, ...] with H * W neurons, pixels row by row.
        images: [B, H, W] or [B, 1, H, W], large values as ink.
        sample: which of B.
        every: show every so many steps, the last one among them.
        fps: frames per second.
        title: what was trained, above every frame.

    Raises:
        ValueError: another shape, no such sample, no step at all, or `every` below 1.
    """
    train = train_of(spikes, sample)
    image = image_of(images, sample, train.shape[1])
    frames = (train != 0).unflatten(1, image.shape)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 2.9), layout="constrained")
        figure.suptitle(title, fontsize="medium")
        original, now = figure.subplots(1, 2)
        draw_image(original, image, "image")
        draw_image(now, frames[0], "", vmin=0, vmax=1)

    def draw(step: int) -> None:
        now.images[0].set_data(frames[step].numpy())
        now.title.set_text(f"spikes in step {step + 1} of {len(frames)}")

    return _animation(figure, draw, len(frames), every, fps)


def spike_counts(
    spikes: Tensor, labels: Tensor, sample: int = 0, every: int = 1, fps: float = FRAMES_PER_SECOND, title: str = ""
) -> FuncAnimation:
    """Show one sample's output spikes being counted, and the class they speak for so far.

    Args:
        spikes: output spikes [T, B, C].
        labels: true classes [B].
        sample: which of B.
        every: show every so many steps, the last one among them.
        fps: frames per second.
        title: what was trained, above every frame.

    Raises:
        ValueError: another shape, no such sample, a label that is no class, no step at all, or `every` below 1.
    """
    train = train_of(spikes, sample)
    steps, classes = train.shape
    label = label_of(labels, sample, classes)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        figure.suptitle(title, fontsize="medium")
        figure.legend(handles=class_legend(), loc="outside lower center", ncols=3, fontsize="small")
        bars = figure.subplots()
        draw_bars(bars, counts_of(train), label)
        bars.set(xlabel="output neuron (class)", ylabel="spikes so far")

    def draw(step: int) -> None:
        counts = counts_of(train[: step + 1])
        colours = class_colours(classes, label, predicted(counts))
        for bar, height, colour in zip(bars.patches, counts.tolist(), colours, strict=True):
            bar.set(height=height, facecolor=colour)
        colour_ticks(bars.xaxis, colours)
        bars.title.set_text(f"step {step + 1} of {steps}: {verdict(label, counts)}")

    return _animation(figure, draw, steps, every, fps)


def _animation(figure: Figure, draw: Callable[[int], None], steps: int, every: int, fps: float) -> FuncAnimation:
    if every < 1 or not fps > 0:
        raise ValueError(f"every must be at least 1 and fps above 0, got every={every} and fps={fps}")
    # The layout is made once, on the last frame: it costs more than a frame, and axes shall not move between them.
    draw(steps - 1)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    shown = range((steps - 1) % every, steps, every)
    return FuncAnimation(figure, draw, frames=shown, interval=1000 / fps, init_func=lambda: None)
