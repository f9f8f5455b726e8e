"""Pictures and demonstrations: what is drawn is what the tensors say, whatever their shape, dtype and device."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colors
from matplotlib.animation import AbstractMovieWriter, PillowWriter
from matplotlib.figure import Figure
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import animations  # noqa: E402
import demos  # noqa: E402
import drawing  # noqa: E402
import pictures  # noqa: E402

DTYPES = [torch.bool, torch.float16, torch.bfloat16, torch.float64]
SIZES = {"one step, one sample, silent": (1, 1, 0.0), "several": (5, 3, 0.5)}


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Few dots an inch: what is asked of the pictures does not depend on them, the time they take does."""
    monkeypatch.setitem(drawing.STYLE, "figure.dpi", 50)


@pytest.fixture
def spikes():
    """Input spikes [T, B, 12] of images [B, 3, 4]; sample 1 has spikes that are easy to count."""
    train = torch.zeros(7, 2, 12)
    train[0, 1, 0] = train[1, 1, 0] = train[3, 1, 5] = train[6, 1, 11] = 1
    train[:, 0] = (torch.rand(7, 12) < 0.5).float()
    return train


@pytest.fixture
def images():
    return torch.randint(256, (2, 3, 4), dtype=torch.uint8)


def test_a_raster_has_a_dot_for_every_spike(spikes):
    axes = pictures.raster(spikes, sample=1).axes[0]
    assert dots(axes) == [(1, 0), (2, 0), (4, 5), (7, 11)]
    assert axes.get_title() == "4 spikes of 12 neurons"
    assert axes.get_xlabel() == "time step" and axes.get_xlim() == (0.5, 7.5)
    assert axes.get_ylim() == (11.5, -0.5)  # pixels from the top, as in the pictures of intervals

    axes = pictures.raster(spikes, sample=1, dt=0.5).axes[0]
    assert dots(axes) == [(0.5, 0), (1, 0), (2, 5), (3.5, 11)]
    assert axes.get_xlabel() == "time (ms)" and axes.get_xlim() == (0.25, 3.75)


def test_a_raster_of_too_many_dots_shows_rates(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_DOTS", 11)
    monkeypatch.setattr(drawing, "MOST_PATCHES", 3)
    train = torch.zeros(6, 1, 3)
    train[:, 0, 0] = train[:3, 0, 1] = train[1::2, 0, 2] = 1
    axes, bar = pictures.raster(train).axes
    assert not axes.collections and axes.get_title() == "12 spikes of 3 neurons"
    assert axes.images[0].get_array().tolist() == [[1, 1, 1], [1, 0.5, 0], [0.5, 0.5, 0.5]]
    assert axes.images[0].get_extent() == [0.5, 6.5, 2.5, -0.5] and bar.get_ylabel() == "spikes per step"
    monkeypatch.setattr(pictures, "MOST_DOTS", 12)
    assert len(dots(pictures.raster(train).axes[0])) == 12


def test_several_rasters_share_time_and_keep_their_names(spikes):
    hidden = torch.ones(7, 2, 3)
    above, below = pictures.raster({"input": spikes, "hidden": hidden}, sample=1).axes
    assert len(dots(above)) == 4 and len(dots(below)) == 21
    assert above.get_title().startswith("input: 4 spikes") and below.get_title().startswith("hidden: 21 spikes")
    assert above.get_xlim() == below.get_xlim()


def test_a_raster_tells_rises_from_falls():
    train = torch.tensor([1.0, -1, 0, -1]).view(4, 1, 1)
    rises, falls = pictures.raster(train).axes[0].collections
    assert rises.get_offsets().tolist() == [[1, 0]]
    assert falls.get_offsets().tolist() == [[2, 0], [4, 0]]
    assert not np.array_equal(rises.get_facecolor(), falls.get_facecolor())


def test_intervals_part_the_spikes_by_thirds(spikes, images):
    figure = pictures.interval_raster(spikes, images, sample=1)
    over_time, on_pixels = figure.axes
    parts = [[tuple(dot) for dot in part.get_offsets().tolist()] for part in over_time.collections]
    assert parts == [[(1, 0), (2, 0)], [(4, 5)], [(7, 11)]]
    assert [label.get_text() for label in figure.legends[0].get_texts()] == [
        "early: steps 1 to 3",
        "middle: steps 4 to 5",
        "late: steps 6 to 7",
    ]
    assert np.array_equal(on_pixels.images[0].get_array(), images[1].numpy())
    early, middle, late = on_pixels.collections
    pixels = [part.get_offsets().round().tolist() for part in (early, middle, late)]
    assert pixels == [[[0, 0]], [[1, 1]], [[3, 2]]]
    assert early.get_sizes()[0] == pytest.approx(2 * middle.get_sizes()[0])
    shades = {tuple(part.get_facecolor()[0]) for part in (early, middle, late)}
    assert len(shades) == 3
    for part, shade in zip(over_time.collections, (early, middle, late), strict=True):
        assert np.array_equal(part.get_facecolor(), shade.get_facecolor())


def test_no_dot_on_a_pixel_hides_another():
    figure = pictures.interval_raster(torch.ones(6, 1, 4), torch.ones(1, 2, 2))
    on_pixels = figure.axes[1]
    figure.draw_without_rendering()
    scale = on_pixels.transData.transform([[1, 0]])[0, 0] - on_pixels.transData.transform([[0, 0]])[0, 0]
    first, second, _ = (part.get_offsets()[0, 0] for part in on_pixels.collections)
    diameter = np.sqrt(on_pixels.collections[0].get_sizes()[0]) * figure.dpi / 72
    assert diameter <= (second - first) * scale


def test_traces_show_current_membrane_threshold_and_spikes():
    current, membrane, spikes = torch.rand(9), torch.rand(9), torch.zeros(9)
    spikes[[2, 8]] = 1
    above, middle, below = pictures.traces(current, membrane, spikes, threshold=0.7, dt=2).axes
    assert np.array_equal(above.lines[0].get_ydata(), current.numpy())
    assert np.array_equal(middle.lines[0].get_ydata(), membrane.numpy())
    assert middle.lines[1].get_ydata() == [0.7, 0.7]
    assert [text.get_text() for text in middle.texts] == ["threshold 0.7"]
    assert [segment[0, 0] for segment in below.collections[0].get_segments()] == [6, 18]
    assert below.get_title() == "2 spikes" and below.get_xlabel() == "time (ms)"


def test_an_encoded_signal_has_its_spikes_below():
    signal = torch.tensor([0.0, 5, 5, 0])
    above, below = pictures.encoded_signal(signal, torch.tensor([0, 1, 0, -1])).axes
    assert above.lines[0].get_ydata().tolist() == [0, 5, 5, 0]
    rises, falls = (lines.get_segments() for lines in below.collections)
    assert [segment.tolist() for segment in rises] == [[[2, 0], [2, 1]]]
    assert [segment.tolist() for segment in falls] == [[[4, -1], [4, 0]]]


def test_membranes_that_rise_alike_predict_nothing():
    for level in (0.0, -0.5):
        figure = pictures.output_membranes(torch.full((5, 1, 4), level), torch.tensor([1]))
        assert figure.get_suptitle() == "Output membranes: true 1, a tie of 4 classes"


def test_output_membranes_mark_true_and_predicted_class():
    membranes = torch.zeros(6, 2, 4)
    membranes[:, 1, 2] = torch.linspace(0, 3, 6)
    labels = torch.tensor([0, 1])
    figure = pictures.output_membranes(membranes, labels, sample=1, threshold=0.5)
    assert figure.get_suptitle() == "Output membranes: true 1, predicted 2"
    assert [axes.lines[0].get_color() for axes in figure.axes] == [
        drawing.OTHER,
        drawing.TRUE,
        drawing.WRONG,
        drawing.OTHER,
    ]
    assert all(axes.lines[1].get_ydata() == [0.5, 0.5] for axes in figure.axes)
    assert np.array_equal(figure.axes[2].lines[0].get_ydata(), membranes[:, 1, 2].numpy())
    assert {axes.get_ylim() for axes in figure.axes} == {figure.axes[0].get_ylim()}
    assert figure.axes[0].get_ylim() == (pytest.approx(-0.36), pytest.approx(3.36))
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["0", "0.5"]

    fired = torch.zeros(6, 2, 4)
    silent = pictures.output_membranes(membranes, labels, sample=1, spikes=fired)
    assert silent.get_suptitle() == "Output membranes: true 1, no spikes"
    fired[0, 1, 3] = 1
    counted = pictures.output_membranes(membranes, labels, sample=1, spikes=fired)
    assert counted.get_suptitle() == "Output membranes: true 1, predicted 3"
    fired[0, 1, 1] = 1
    tied = pictures.output_membranes(membranes, labels, sample=1, spikes=fired)
    assert tied.get_suptitle() == "Output membranes: true 1, a tie of 1 and 3"
    unlabelled = pictures.output_membranes(membranes)
    assert {axes.lines[0].get_color() for axes in unlabelled.axes} == {"black"} and not unlabelled.legends


def test_the_rebuilt_image_is_the_mean_over_time(spikes, images):
    figure = pictures.rate_image({"gain 1": spikes, "half": spikes[:3]}, images, sample=1)
    original, first, second = figure.axes[:3]
    assert np.array_equal(original.images[0].get_array(), images[1].numpy())
    assert first.get_title() == "gain 1: mean over time (T = 7)"
    for axes, train in ((first, spikes), (second, spikes[:3])):
        assert np.array_equal(axes.images[0].get_array(), train[:, 1].mean(0).view(3, 4).numpy())


def test_spikes_that_only_fall_rebuild_nothing(images):
    axes = pictures.rate_image({"falls": -torch.ones(2, 2, 12)}, images).axes[1]
    assert (axes.images[0].get_array() == -1).all() and axes.images[0].get_clim() == (0, 1)


def test_the_loss_curve_has_every_iteration_and_epoch():
    figure = pictures.loss_curve([3.0, 2, 1, 0.5], history(2), "title")
    loss, accuracy = figure.axes
    iterations, train, test = loss.lines
    assert iterations.get_ydata().tolist() == [3, 2, 1, 0.5] and iterations.get_xdata().tolist() == [1, 2, 3, 4]
    assert train.get_xdata().tolist() == [1.5, 3.5] and test.get_xdata().tolist() == [2, 4]
    assert [line.get_label() for line in (train, test)] == ["train, mean of the epoch", "test, after the epoch"]
    assert train.get_ydata().tolist() == [1, 0.5] and test.get_ydata().tolist() == [2, 1]
    assert accuracy.lines[0].get_ydata().tolist() == [25, 50]
    assert accuracy.get_xlabel() == "iteration (2 per epoch)"
    assert loss.get_ylim() == (0, pytest.approx(1.05 * 3))  # a flat curve's markers are not cut either


def test_the_animated_input_shows_the_spikes_of_every_step(spikes, images, tmp_path):
    animation = animations.input_spikes(spikes, images, sample=1)
    frames = seen(animation, tmp_path, lambda axes: (np.array(axes[1].images[0].get_array()), axes[1].get_title()))
    assert [title for _, title in frames] == [f"spikes in step {step} of 7" for step in range(1, 8)]
    assert np.array_equal(np.stack([pixels for pixels, _ in frames]), spikes[:, 1].view(7, 3, 4).numpy())


def test_the_animated_counts_grow_with_the_spikes(tmp_path):
    spikes = torch.zeros(4, 1, 3)
    spikes[1, 0, 2] = spikes[2, 0, 1] = spikes[3, 0, 1] = 1
    animation = animations.spike_counts(spikes, torch.tensor([1]))
    frames = seen(animation, tmp_path, lambda axes: (bar_heights(axes[0]), bar_colours(axes[0]), axes[0].get_title()))
    heights, shades, titles = zip(*frames, strict=True)
    assert heights == ([0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 2, 1])
    assert shades[1] == [drawing.OTHER, drawing.TRUE, drawing.WRONG]
    assert shades[2] == shades[3] == [drawing.OTHER, drawing.TRUE, drawing.OTHER]
    assert titles[0] == "step 1 of 4: true 1, no spikes" and titles[1] == "step 2 of 4: true 1, predicted 2"


@pytest.mark.parametrize("every, shown", [(2, [2, 4]), (3, [1, 4]), (9, [4])])
def test_an_animation_that_skips_steps_ends_with_the_last(every, shown, tmp_path):
    animation = animations.spike_counts(torch.ones(4, 1, 2), torch.tensor([0]), every=every)
    assert seen(animation, tmp_path, lambda axes: bar_heights(axes[0])) == [[step, step] for step in shown]


def test_long_sequences_are_animated_in_few_frames(monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "MOST_FRAMES", 2)
    pictures.save_all(tmp_path, torch.ones(1, 1, 2), torch.zeros(1).long(), spikes=torch.ones(5, 1, 2))
    with Image.open(tmp_path / "counts.gif") as saved:
        assert saved.n_frames == 2


def test_silence_is_no_prediction(images):
    silent, labels = torch.zeros(5, 2, 3), torch.tensor([0, 2])
    figure = pictures.output_raster(silent, images, labels, sample=1)
    assert figure.get_suptitle() == "true 2, no spikes"
    assert [tick.get_color() for tick in figure.axes[2].get_yticklabels()] == ["black", "black", drawing.TRUE]
    assert {cell.get_title() for cell in pictures.gallery(silent, images, labels).axes[1::2]} == {
        "true 0, no spikes",
        "true 2, no spikes",
    }


def test_the_output_raster_has_time_to_the_right_and_counts_beside_it(images):
    spikes = torch.zeros(5, 2, 3)
    spikes[0, 0, 1] = spikes[4, 0, 1] = spikes[2, 0, 2] = 1
    over_time, bars = pictures.output_raster(spikes, images, torch.tensor([2, 0])).axes[2:]
    fired = [[segment[0].tolist() for segment in lines.get_segments()] for lines in over_time.collections]
    assert fired == [[], [[1, 0.6], [5, 0.6]], [[3, 1.6]]]
    assert over_time.get_xlim() == (0.5, 5.5) and over_time.get_xlabel() == "time step"
    assert over_time.get_ylim() == bars.get_ylim() == (2.5, -0.5)
    assert bar_widths(bars) == [0, 2, 1] and bar_colours(bars) == [drawing.OTHER, drawing.WRONG, drawing.TRUE]


@pytest.mark.parametrize(
    "counts, said",
    [
        ([0, 0, 0, 0], "no spikes"),
        ([1, 3, 2, 0], "predicted 1"),
        ([3, 3, 2, 0], "a tie of 0 and 1"),
        ([1, 1, 1, 1], "a tie of 4 classes"),
    ],
)
def test_a_tie_is_called_a_tie(counts, said):
    """Nor has any class the colour of a prediction in one."""
    counts = torch.tensor(counts)
    assert drawing.verdict(2, counts) == f"true 2, {said}"
    colours = drawing.class_colours(4, 2, drawing.predicted(counts))
    assert (drawing.WRONG in colours) is said.startswith("predicted")


def test_every_picture_says_what_was_trained(images, monkeypatch, tmp_path):
    titles = {}

    def keep(picture, path):
        figure = picture if isinstance(picture, Figure) else picture._fig
        titles[path.name] = figure.get_suptitle()

    monkeypatch.setattr(pictures, "save", keep)
    spikes = torch.ones(4, 2, 12)
    pictures.save_all(
        *(tmp_path, images, torch.tensor([0, 2])),
        **{"input_spikes": spikes, "spikes": spikes[..., :3], "membranes": spikes[..., :3]},
        **{"losses": [1.0], "history": history(1), "title": "rate-fc on MNIST, snnfast: 97.33%"},
    )
    assert len(titles) == 9 and all(title.startswith("rate-fc on MNIST, snnfast: 97.33%") for title in titles.values())
    assert titles["input-raster.png"].endswith("\nInput spikes")


def test_many_classes_are_ticked_where_it_matters(images):
    spikes = torch.zeros(5, 2, 100)
    spikes[:, 0, 41] = 1
    over_time = pictures.output_raster(spikes, images, torch.tensor([7, 0])).axes[2]
    assert over_time.get_yticks().tolist() == [7, 41]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_dtype_and_device_draws_the_same(dtype, device, spikes, images):
    converted = spikes.to(device, dtype)
    assert dots(pictures.raster(converted, sample=1).axes[0]) == dots(pictures.raster(spikes, sample=1).axes[0])
    shown = images.to(device, dtype)
    raster = pictures.output_raster(converted, shown, torch.tensor([0, 4], device=device), sample=1)
    assert bar_widths(raster.axes[3]) == spikes[:, 1].sum(0).tolist()
    rebuilt = pictures.rate_image({"rate": converted}, shown, sample=1).axes[1].images[0].get_array()
    assert np.array_equal(rebuilt, spikes[:, 1].mean(0).view(3, 4).numpy())
    membrane = pictures.output_membranes(converted, sample=1).axes[0].lines[0].get_ydata()
    assert np.array_equal(membrane, spikes[:, 1, 0].numpy())
    neuron = converted[:, 1, 0]
    spikes_of_one = pictures.traces(neuron, neuron, neuron).axes[2].collections[0]
    assert len(spikes_of_one.get_segments()) == 2


def test_gradients_do_not_stand_in_the_way(spikes, images):
    learnt = spikes.requires_grad_()
    assert len(dots(pictures.raster(learnt, sample=1).axes[0])) == 4
    assert pictures.loss_curve(torch.ones(2, requires_grad=True), history(1)).axes


@pytest.mark.parametrize("case", SIZES)
def test_everything_is_saved_whatever_the_size(case, tmp_path):
    steps, samples, probability = SIZES[case]
    input_spikes = torch.rand(steps, samples, 1, 3, 4) < probability
    output = torch.rand(steps, samples, 3) < probability
    paths = pictures.save_all(
        tmp_path / "new" / "plots",
        torch.rand(samples, 1, 3, 4),
        torch.arange(samples) % 3,
        input_spikes=input_spikes,
        spikes=output,
        membranes=torch.rand(steps, samples, 3),
        threshold=1.0,
        losses=[1.0],
        history=history(1),
        sample=samples - 1,
    )
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "new" / "plots").iterdir())
    assert len(paths) == 9
    for path in paths:
        with Image.open(path) as saved:
            assert saved.format == path.suffix[1:].upper() and min(saved.size) > 100


def test_save_all_draws_what_it_is_given(images, tmp_path):
    labels = torch.tensor([0, 2])
    paths = pictures.save_all(tmp_path, images, labels, membranes=torch.rand(4, 2, 3))
    assert [path.name for path in paths] == ["membranes.png"]
    assert pictures.save_all(tmp_path / "nothing", images, labels) == []


def test_a_saved_animation_has_a_frame_for_every_step(spikes, images, tmp_path):
    # Frames that look alike are merged by GIF writers: every step differs here.
    spikes[:, 1] = torch.eye(7, 12)
    path = pictures.save(animations.input_spikes(spikes, images, sample=1, fps=20), tmp_path / "input.gif")
    with Image.open(path) as saved:
        assert saved.n_frames == 7 and saved.info["duration"] == 50
    assert [file.name for file in tmp_path.iterdir()] == ["input.gif"]


def test_a_failed_save_keeps_the_old_file(spikes, images, monkeypatch, tmp_path):
    old = tmp_path / "input.gif"
    old.write_text("old")

    def fail(writer):
        raise OSError("disk full")

    monkeypatch.setattr(PillowWriter, "finish", fail)
    with pytest.raises(OSError, match="disk full"):
        pictures.save(animations.input_spikes(spikes, images), old)
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]


def test_a_type_of_file_that_cannot_be_written_is_named(spikes, images, monkeypatch, tmp_path):
    monkeypatch.setattr(pictures.writers, "is_available", lambda name: name == "pillow")
    animation = animations.input_spikes(spikes, images)
    assert len(seen(animation, tmp_path, len)) == 7
    for picture, name in ((animation, "a.mp4"), (animation, "a.png"), (pictures.raster(spikes), "a.mp4")):
        with pytest.raises(ValueError, match=f"path must end in .*{name}"):
            pictures.save(picture, tmp_path / name)
    assert not list(tmp_path.iterdir())


T, B, C = 4, 2, 3
WRONG = {
    "no batch": (lambda: pictures.raster(torch.ones(T, C)), r"spikes must be \[T, B, ...\].*\(4, 3\)"),
    "no steps": (lambda: pictures.raster(torch.ones(0, B, C)), r"at least one step.*\(0, 2, 3\)"),
    "no samples": (lambda: pictures.raster(torch.ones(T, 0, C)), r"at least one step.*\(4, 0, 3\)"),
    "no trains": (lambda: pictures.raster({}), "trains must be"),
    "unequal steps": (
        lambda: pictures.raster({"a": torch.ones(T, B, C), "b": torch.ones(T + 1, B, C)}),
        "equally many steps.*'a': 4, 'b': 5",
    ),
    "no such sample": (lambda: pictures.raster(torch.ones(T, B, C), sample=B), "sample must be from 0 to 1.*got 2"),
    "dt": (lambda: pictures.raster(torch.ones(T, B, C), dt=0), "dt must be"),
    "named spikes": (lambda: pictures.raster({"hidden": torch.ones(T)}), "spikes hidden must be"),
    "other pixels": (
        lambda: pictures.interval_raster(torch.ones(T, B, 5), torch.ones(B, 2, 3)),
        "images must have 5 pixels",
    ),
    "colour image": (
        lambda: pictures.rate_image({"": torch.ones(T, B, 4)}, torch.ones(B, 3, 2, 2)),
        r"images must be \[B, H, W\]",
    ),
    "animated pixels": (
        lambda: animations.input_spikes(torch.ones(T, B, 5), torch.ones(B, 2, 3)),
        "images must have 5 pixels",
    ),
    "no speed": (
        lambda: animations.spike_counts(torch.ones(T, B, C), torch.zeros(B).long(), fps=0),
        "fps above 0, got every=1 and fps=0",
    ),
    "label beyond": (
        lambda: animations.spike_counts(torch.ones(T, B, C), torch.full((B,), C)),
        "labels must be from 0 to 2.*got 3",
    ),
    "too few labels": (
        lambda: pictures.output_raster(torch.ones(T, B, C), torch.ones(B, 2, 2), torch.zeros(1).long(), sample=1),
        r"labels must be \[B\] with a sample 1",
    ),
    "one-hot labels": (
        lambda: pictures.output_membranes(torch.ones(T, B, C), torch.ones(B, C)),
        r"labels must be \[B\]",
    ),
    "too few images": (
        lambda: pictures.gallery(torch.ones(T, B, C), torch.ones(1, 2, 2), torch.zeros(B).long()),
        "with a sample 1",
    ),
    "no labels": (
        lambda: pictures.gallery(torch.ones(T, B, C), torch.ones(B, 2, 2), torch.zeros(0).long()),
        r"labels must be \[B\]",
    ),
    "no rows": (
        lambda: pictures.gallery(torch.ones(T, B, C), torch.ones(B, 2, 2), torch.zeros(B).long(), rows=0),
        "rows and columns",
    ),
    "unequal traces": (
        lambda: pictures.traces(torch.ones(T), torch.ones(T), torch.ones(T + 1)),
        r"spikes must be \[T\] with T = 4",
    ),
    "many traces": (
        lambda: pictures.traces(torch.ones(T, C), torch.ones(T, C), torch.ones(T, C)),
        r"current must be \[T\]",
    ),
    "empty signal": (lambda: pictures.encoded_signal(torch.ones(0), torch.ones(0)), "T at least 1"),
    "no losses": (lambda: pictures.loss_curve([], []), "losses and history must not be empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors_are_named(case):
    draw, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as error:
        draw()
    assert "\n" not in str(error.value)


CIRCUITS = {
    "as published": {},
    "another reset": {"rest": -65.0, "threshold": -64.2, "reset": -65.4},
    "another resistance": {"resistance": 2.0, "tau": 10.0, "dt": 0.5},
}


@pytest.mark.parametrize("case", CIRCUITS)
def test_the_rc_circuit_is_the_plain_euler_loop(case, device):
    current = demos.plateau_current(2000)
    options = {"tau": 20.0, "dt": 1.0, "resistance": 1.0, "rest": 0.0, "threshold": 1.0, "reset": 0.0} | CIRCUITS[case]
    spikes, voltage = demos.rc_circuit(current.to(device), **CIRCUITS[case])
    expected_spikes, expected = euler(current.tolist(), **options)
    assert expected_spikes.sum() > 10
    assert torch.equal(spikes.cpu(), expected_spikes)
    torch.testing.assert_close(voltage.cpu(), expected, rtol=1e-12, atol=1e-12)


def test_the_plateaus_fire_where_they_reach_the_threshold():
    current = demos.plateau_current(2000)
    assert current.view(4, 500).mean(1).tolist() == pytest.approx([0.6, 1.1, 0.9, 1.2], abs=1e-9)
    spikes, _ = demos.rc_circuit(current)
    first, second, third, fourth = spikes.view(4, 500).sum(1).tolist()
    assert first == third == 0 < second < fourth


@pytest.mark.parametrize("dt", [0.0, -1.0, 20.5])
def test_an_euler_step_is_no_longer_than_tau(dt):
    with pytest.raises(ValueError, match="dt must be"):
        demos.rc_circuit(torch.ones(3), dt=dt)


def test_the_untrained_network_returns_what_it_records():
    train = (torch.rand(5, 2, 784) < 0.5).float()
    hidden, output, membranes = demos.untrained_network(train)
    assert hidden.shape == (5, 2, 1000) and output.shape == membranes.shape == (5, 2, 10)
    assert hidden.any() and torch.equal(output, (membranes > 1).float())


def test_every_demo_runs_and_says_what_it_wrote(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(demos.datasets, "load", lambda root: demos.datasets.bundled_digits())
    assert demos.main(["--plots", str(tmp_path), "--steps", "3"]) == 0
    said = capsys.readouterr().out.split()
    assert said == sorted(said, key=said.index) and {Path(path) for path in said} == set(tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {
        "rc-circuit.png",
        "rate-raster.png",
        "rate-intervals.png",
        "rate-image.png",
        "rate.gif",
        "latency-raster.png",
        "latency-intervals.png",
        "latency.gif",
        "delta.png",
        "network-raster.png",
        "network-membranes.png",
    }


def test_one_demo_draws_its_own_pictures_only(tmp_path):
    assert demos.main(["--demo", "delta", "--plots", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["delta.png"]


BAD_COMMANDS = {
    "plots below a file": (["--plots", "{tmp}/file/plots"], "argument --plots"),
    "data is a file": (["--data", "{tmp}/file", "--demo", "rate"], "argument --data"),
    "no steps": (["--steps", "0"], "argument --steps"),
    "unknown demo": (["--demo", "abacus"], "argument --demo"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_a_bad_command_is_named(case, capsys, tmp_path):
    (tmp_path / "file").write_text("something of the user's\n")
    arguments, message = BAD_COMMANDS[case]
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as stop:
        demos.main(["--plots", str(tmp_path / "plots"), *given])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "something of the user's\n"


class Recorder(AbstractMovieWriter):
    """Keeps what `look` finds in the axes of every frame."""

    def __init__(self, look):
        super().__init__()
        self.look, self.frames = look, []

    def setup(self, fig, outfile, dpi=None):
        super().setup(fig, outfile, dpi)

    def grab_frame(self, **options):
        self.frames.append(self.look(self.fig.axes))

    def finish(self):
        pass


def seen(animation, directory, look):
    recorder = Recorder(look)
    animation.save(directory / "unwritten", writer=recorder)
    return recorder.frames


def euler(current, tau, dt, resistance, rest, threshold, reset):
    """The circuit as it is written down, one number after the other."""
    voltage, voltages, spikes = rest, [], []
    for value in current:
        voltage += (-(voltage - rest) + resistance * value) * dt / tau
        spikes.append(float(voltage > threshold))
        if spikes[-1]:
            voltage = reset
        voltages.append(voltage)
    return torch.tensor(spikes, dtype=torch.float64), torch.tensor(voltages, dtype=torch.float64)


def history(epochs):
    return [
        {
            "train_loss": 1 / (epoch + 1),
            "test_loss": 2 / (epoch + 1),
            "train_accuracy": 0.25 * (epoch + 1),
            "test_accuracy": 0.125 * (epoch + 1),
        }
        for epoch in range(epochs)
    ]


def dots(axes):
    return sorted(tuple(dot) for drawn in axes.collections for dot in drawn.get_offsets().tolist())


def bar_heights(axes):
    return [bar.get_height() for bar in axes.patches]


def bar_widths(axes):
    return [bar.get_width() for bar in axes.patches]


def bar_colours(axes):
    return [colors.to_hex(bar.get_facecolor()).upper() for bar in axes.patches]
