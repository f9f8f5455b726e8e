"""The scripts that compare with snnTorch, and with other torches: that they run, and that they find what is wrong."""

import pytest
import torch

import differential
import smoke
import snnfast


def test_nothing_differs(capsys):
    assert differential.differ(range(40, 52)) == 0
    rows = {tuple(line.split()[:2]) for line in capsys.readouterr().out.splitlines()}
    assert {("network", "accelerated"), ("network", "drop-in"), ("Alpha", "sequence"), ("RLeaky", "step")} <= rows


@pytest.mark.parametrize("place", ["outputs", "gradients", "parameters"])
def test_a_difference_is_found(place, monkeypatch, capsys):
    seed, case = next(
        (seed, case)
        for seed, case in ((seed, differential.random_case(seed)) for seed in range(1, 100))
        if case.title == "Leaky" and case.layer.options.get("learn_beta") and len(case.x) > 1
    )
    results = differential.results

    def wrong(outputs, x, module):
        found = results(outputs, x, module)
        if isinstance(module, snnfast.Leaky):
            last = found[place]["beta"] if place == "parameters" else found[place][-1]
            last.view(-1)[-1:] += 0.1
        return found

    monkeypatch.setattr(differential, "results", wrong)
    assert differential.differ([seed]) == 1
    assert f"seed {seed}: Leaky, step" in capsys.readouterr().out


def test_a_named_checkout_is_the_one_compared(tmp_path, monkeypatch, capfd):
    (tmp_path / "snntorch").mkdir()
    (tmp_path / "snntorch" / "__init__.py").write_text("raise SystemExit('the checkout')")
    monkeypatch.setattr("sys.argv", ["differential.py", "--snntorch", str(tmp_path)])
    assert differential.main() == 1
    assert "the checkout" in capfd.readouterr().err
    monkeypatch.setattr("sys.argv", ["differential.py", "--snntorch", str(tmp_path / "absent")])
    with pytest.raises(SystemExit, match="--snntorch must be a folder that holds snntorch/__init__.py"):
        differential.main()


def test_smoke(capsys):
    smoke.main()
    assert f"under torch {torch.__version__}" in capsys.readouterr().out
