"""Tables and pictures of what was measured, which cannot drift from it."""

import json

import pytest

OLD, NEW = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
DAYS = "2026-01-01, 2026-01-02"


def _row(contender, ms, date=OLD, *, bench="lif", **others):
    row = {
        **{"bench": bench, "contender": contender, "same_neuron": True, "check": "close", "error": None, "date": date},
        **{
            "device": "a CPU",
            "dtype": "float32",
            "T": 2,
            "B": 3,
            "N": 5,
            "torch": "2",
            "version": None,
            "commit": None,
        },
        **{"forward_ms": 1.0, "forward_backward_ms": ms, "limit_share": 0.5, "copy_bytes_per_s": 2e10},
        **{"retained_bytes": 120, "peak_bytes": 3_000_000},
    }
    return row | others


def _loop(loop, contender, ms, date=NEW, **others):
    compiles = "compile" in contender
    return _row(contender, ms, date, bench="loops", loop=loop, N=None, compiles=compiles, first_call_s=0.5, **others)


def _encoder(encoder, contender, ms, date=OLD, **others):
    return _row(contender, ms, date, bench="encoding", encoder=encoder, **others)


def _recurrent(contender, ms, date=NEW, steps=32, **others):
    return _row(contender, ms, date, bench="rlif", limit_ms=ms and 3.0, T=steps, B=2, **others)


def _onm(matmul, contender, ms, date=OLD, **others):
    return _row(contender, ms, date, bench="onm", matmul=matmul, backward_ms=2.5, **others)


def _calls(contender, step_us=None, error=None):
    calls = {"first_call_ms": 1500.0, "repeated_call_ms": 2.0, "new_t_ms": 3.0, "new_b_ms": 4.0, "new_n_ms": 5.0}
    return _row(contender, None, bench="calls", step_us=step_us, error=error, **calls)


def _recipe(seed, accuracy, date):
    return {
        **{"recipe": "rate-fc", "library": "snnfast", "version": "1", "device": "a CPU", "epochs": 2, "seed": seed},
        **{"test_accuracy": accuracy, "seconds_per_epoch": 10.0, "peak_bytes": None, "commit": "abc", "date": date},
    }


GRID = [
    _row(contender, ms, T=steps, N=neurons, limit_ms=0.5)
    for steps in (4, 16, 64)
    for neurons in (1024, 2048)
    for contender, ms in (("snnfast", 2.0), ("snntorch", 10.0))
]
ABSENT = _row("absent", None, T=4, N=1024, limit_ms=None, error="ImportError: no such peer")

# What is measured, lines that the tables have, and what of older runs they leave out.
TABLES = {
    "the newest run of layers": (
        [
            *(_row("snntorch", 100.0), _row("snnfast", 50.0), _row("snntorch", 20.0, NEW), _row("snnfast", 4.0, NEW)),
            _row("absent", None, NEW, error="ImportError: no such | peer"),
        ],
        [
            "| snnfast | 1 | 4 | 5x | 50% | 4 | 3.0 |",
            "copies at 20.0 GB/s",
            "No figures for absent: ImportError: no such | peer",
        ],
        ["2026-01-01", "| 50 |"],
    ),
    "loops beside their author's and snnfast's in a loop": (
        [
            *(_loop("rate-fc", "snntorch", 100.0, OLD), _loop("rate-fc", "snntorch", 60.0)),
            *(_loop("rate-fc", "snnfast-loop", 30.0), _loop("rate-fc", "snnfast-compile", 6.0)),
            *(_loop("norse-conv", "torch", 8.0, OLD), _loop("norse-conv", "snnfast-compile", 2.0, OLD)),
            _loop("norse-conv", "torch-compile", None, OLD, error="Refused: too long"),
        ],
        [
            "| contender |",
            "| rate-fc, T=2, B=3 | snnfast-compile | 1 | 6 | 10x | 5x | 0.5 | 3.0 | 0.0 |",
            "| norse-conv, T=2, B=3 | snnfast-compile | 1 | 2 | 4x | - | 0.5 | 3.0 | 0.0 |",
            "| rate-fc, T=2, B=3 | snnfast-loop | 1 | 30 | 2x | 1x | - | 3.0 | 0.0 |",
            "No figures for norse-conv, T=2, B=3, torch-compile: Refused: too long",
            DAYS,
        ],
        ["| 100 |"],
    ),
    "encoders beside snnTorch's": (
        [
            *(_encoder("rate", "snntorch", 90.0), _encoder("rate", "snntorch", 60.0, NEW)),
            *(_encoder("rate", "snnfast", 5.0, NEW), _encoder("delta", "snnfast", 4.0)),
            _encoder("delta", "snntorch", None, error="Refused: too long"),
        ],
        [
            "| encoder | contender |",
            "| rate, T=2, B=3, N=5 | snnfast | 5 | 12x | 50% | 3.0 |",
            "| delta, T=2, B=3, N=5 | snnfast | 4 | - | 50% | 3.0 |",
            "No figures for delta, T=2, B=3, N=5, snntorch: Refused: too long",
        ],
        ["| 90 |"],
    ),
    "recurrent layers beside their own neuron": (
        [
            *(_recurrent("snnfast", 40.0, OLD), _recurrent("snnfast", 4.0), _recurrent("norse", 10.0)),
            *(_recurrent("snnfast-rleaky", 5.0), _recurrent("snntorch", 20.0)),
            _recurrent("norse-compile", None, error="Refused: too long"),
            _recurrent("torch-rnn", 2.0, same_neuron=False, check=None),
            _recurrent("norse", 8.0, OLD, steps=100),
            _recurrent("norse-compile", None, OLD, steps=100, error="Refused: too long"),
            _recurrent("norse-compile", None, OLD, steps=500, error="Refused: longer"),
        ],
        [
            "| size | limit |",
            "| snnfast-rleaky | snntorch | torch-rnn (another neuron, not checked) |\n",
            "| T=32, B=2, N=5 | 3 | 4 | 10 (2.5x) | 5 | 20 (4x) | 2 |",
            "| T=100, B=2, N=5 | 3 | - | 8 | - | - | - |",
            "No figures for norse-compile: Refused: too long (T=32, B=2, N=5; T=100, B=2, N=5)",
            "No figures for norse-compile: Refused: longer (T=500, B=2, N=5)",
            DAYS,
        ],
        ["| 40 ", "| T=500"],
    ),
    "forward and backward of Open Neuromorphic's benchmark": (
        [
            *(_onm("float32", "snntorch", 30.0), _onm("float32", "snntorch", 20.0, NEW)),
            *(_onm("float32", "snnfast", 4.0, NEW), _onm("bf16", "snnfast", 3.0)),
            _onm("bf16", "absent", None, error="ImportError: no such peer"),
        ],
        [
            "| backward ms |",
            "| T=2, B=3, N=5 | float32 | snnfast | 1 | 2.5 | 4 | 5x | 50% | 3.0 |",
            "| T=2, B=3, N=5 | bf16 | snnfast | 1 | 2.5 | 3 | - | 50% | 3.0 |",
            "No figures for absent: ImportError: no such peer (T=2, B=3, N=5, bf16)",
        ],
        ["| 30 |"],
    ),
    "calls": (
        [_calls("snnfast", 6.0), _calls("stepless"), *(_calls(name, error="Refused: not on cpu") for name in "ab")],
        [
            "| snnfast | 1500 | 2 | 3 | 4 | 5 | 6 |",
            "| stepless | 1500 | 2 | 3 | 4 | 5 | - |",
            "No figures for a, b: Refused: not on cpu",
        ],
        [],
    ),
    "many sizes are lines of one table": (
        [*GRID, ABSENT],
        [
            "| size | limit | snnfast | snntorch |",
            "(and how many times snnfast's, and snnfast's share of the limit)",
            "| T=64, B=3, N=2048 | 0.5 | 2 (50%) | 10 (5x) |",
            "No figures for absent: ImportError: no such peer (T=4, B=3, N=1024)",
        ],
        ["| contender |"],
    ),
    "recipes have the mean over seeds": (
        [_recipe(0, 0.10, OLD), _recipe(0, 0.96, NEW), _recipe(1, 0.98, NEW)],
        ["| rate-fc | snnfast 1 | a CPU | 2 | 97.00% ± 1.41% (2 seeds) | 10 | - |"],
        ["10.00%"],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(module, name):
    rows, lines, older = TABLES[name]
    text = module("table").render(rows)
    assert {line: text.count(line) for line in lines} == dict.fromkeys(lines, 1)
    assert not [line for line in older if line in text]


def test_few_sizes_have_a_table_each(module):
    assert module("table").render(GRID[:4]).count("| contender |") == 2


def test_pictures_show_every_contender_and_the_limit(module, tmp_path):
    plots = module("plots")
    onm = [_onm("bf16", "snnfast", ms, N=neurons, limit_ms=1.0) for neurons, ms in ((512, 2.0), (4096, 40.0))]
    rows = [
        *(*GRID, ABSENT, *onm, _calls("snnfast")),
        _row("snnfast", 2.0, bench="rate-fc", limit_ms=1.0),
        _row("snnfast", 2.0, bench="deep", network="conv"),
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert plots.main([str(tmp_path / "rows.json"), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("lif-over-t-float32-a-cpu.png", "lif-over-bn-float32-a-cpu.png", "onm-over-n-float32-a-cpu.png"),
        *("rate-fc-t2-b3-n5-float32-a-cpu.png", "calls-t2-b3-n5-float32-a-cpu.png"),
        "deep-conv-float32-a-cpu.png",
    }
    figure = dict(plots._lif(GRID, "title"))["over-t"]
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == ["B·N = 3k", "B·N = 6k"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert set(lines) == {"snnfast", "snntorch", "copy bandwidth"}
    assert list(lines["copy bandwidth"].get_xdata()) == [4, 16, 64]
    # Milliseconds to nanoseconds a neuron-step.
    assert lines["copy bandwidth"].get_ydata()[0] == pytest.approx(0.5e6 / (4 * 3 * 1024))
    assert lines["snntorch"].get_ydata()[2] == pytest.approx(10e6 / (64 * 3 * 1024))
    (floor,) = (
        line
        for line in dict(plots._onm(onm, "title"))["over-n"].axes[0].get_lines()
        if line.get_label() == "the products alone"
    )
    assert [*floor.get_ydata()] == [1.0, 1.0]


def test_no_two_contenders_look_alike_and_bars_start_at_zero(module):
    """Where bars are as long as their times, and have them written beside."""
    plots = module("plots")
    names = [f"contender {k}" for k in range(20)]
    assert len({(style["color"], style["marker"]) for style in (plots._style(name, names) for name in names)}) == 20
    rows = [_row("snnfast", 20.0, limit_ms=5.0), _row("snntorch", 80.0, limit_ms=5.0)]
    ((_, figure),) = plots._rate_fc(rows, "title")
    (axes,) = figure.axes
    assert axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0
    assert [text.get_text() for text in axes.texts] == ["1", "1", "20", "80"]
    assert not axes.get_legend() and len(figure.legends) == 1


def test_without_timed_rows_there_is_nothing_to_draw(module, tmp_path, capsys):
    (tmp_path / "rows.json").write_text(json.dumps([ABSENT]))
    assert module("plots").main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "nothing to draw" in capsys.readouterr().err


def test_check_detects_drift(module, tmp_path, capsys):
    table = module("table")
    results, page = tmp_path / "results", tmp_path / "benchmarks.md"
    results.mkdir()
    rows = [_row("snntorch", 20.0)]
    (results / "lif.json").write_text(json.dumps(rows))
    (results / "recipe.json").write_text(json.dumps(_recipe(0, 0.97, OLD)))
    page.write_text(f"before\n{table.START}\nstale\n{table.END}\nafter\n")
    arguments = ["--results", str(results), "--page", str(page)]

    assert table.main([*arguments, "--check"]) == 1
    assert "stale" in page.read_text()
    assert table.main(arguments) == 0
    assert table.main([*arguments, "--check"]) == 0
    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n")
    assert "| snntorch | 1 | 20 | 1x |" in written and "97.00%" in written

    rows[0]["forward_backward_ms"] = 21.0
    (results / "lif.json").write_text(json.dumps(rows))
    assert table.main([*arguments, "--check"]) == 1
    assert "out of date" in capsys.readouterr().out


def test_a_page_without_the_markers_is_an_error(module):
    with pytest.raises(ValueError, match="benchmarks:start"):
        module("table").replace_section("no markers", "tables")
