"""`python -m snnfast script.py`: what it does to a script, and what to one that fails."""

import os
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

import snnfast.loops
from snnfast.auto import command

ROOT = Path(__file__).parent.parent
RUNNER = ("-m", "snnfast")


def start(*arguments, cwd, **environment):
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=environment, text=True, **streams)


def ended(process):
    out, err = process.communicate(timeout=300)
    return types.SimpleNamespace(code=process.returncode, out=out, err=err)


def both(*arguments, cwd):
    """What a command line does alone, and under snnfast."""
    return tuple(map(ended, [start(*arguments, cwd=cwd), start(*RUNNER, *arguments, cwd=cwd)]))


def write(folder, text, name="script.py"):
    (folder / name).write_text(textwrap.dedent(text))
    return name


TRAINS = """
    '''Says what it is.'''
    import os, pickle, sys
    import torch
    import snntorch as snn
    from snntorch import spikegen, utils

    class Mine:
        pass

    lif = snn.Leaky(0.9, init_hidden=True)
    print(__name__, __file__, __doc__, __spec__, __package__, sorted(n for n in globals() if n[:2] == "__"))
    print(sys.argv, sys.path[0], pickle.loads(pickle.dumps(Mine())), os.getcwd())
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), lif)
    for x in spikegen.rate(torch.rand(2, 4), num_steps=5):
        print(net(x).sum().item())
    print(net, type(lif), [name for name, _ in net.named_buffers()])
    print(vars(snn.Leaky)["forward"].__code__.co_filename, file=sys.stderr)
    {end}
"""


def test_a_script_that_trains_and_fails_in_a_layer(tmp_path):
    (tmp_path / "folder").mkdir()
    script = "folder/" + write(tmp_path / "folder", TRAINS.format(end="lif(torch.rand(3), 5)"))
    alone, fused = both(script, "--epochs", "2", cwd=tmp_path)
    ours, *traceback = fused.err.splitlines()
    theirs, *expected = alone.err.splitlines()
    addresses = "object at"
    assert [line.split(addresses)[0] for line in fused.out.splitlines()] == [
        line.split(addresses)[0] for line in alone.out.splitlines()
    ]
    assert traceback == expected and fused.code == alone.code == 1
    assert "snntorch" in theirs and "snnfast" in ours


ENDS = {
    "message": "import sys; sys.exit('no')",
    "code": "import sys; sys.exit(3)",
    "syntax": "print(1)\nx = (",
    "chained": """
        def fail():
            raise KeyError(1)
        try:
            fail()
        except KeyError as error:
            raise ValueError(2) from error
    """,
    "interrupt": "raise KeyboardInterrupt",
    "hook": "import sys; sys.excepthook = lambda kind, error, tb: print(kind, error, tb.tb_lineno); 1 / 0",
    "exit handler": "import atexit; atexit.register(lambda: print('bye', __import__('__main__').x)); x = 1; 1 / 0",
}


@pytest.mark.long
@pytest.mark.parametrize("name", ENDS)
def test_a_script_ends_as_alone(name, tmp_path):
    alone, fused = both(write(tmp_path, ENDS[name]), cwd=tmp_path)
    assert (fused.out, fused.err, fused.code) == (alone.out, alone.err, alone.code)


@pytest.mark.long
def test_modules_folders_and_code(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    write(package, "import sys; print(__name__, __package__, __spec__.name, sys.argv, sys.path[0])", "__main__.py")
    write(package, "", "__init__.py")
    code = "import sys; print(sys.argv, sys.path[0], __name__, '__file__' in globals())"
    for arguments in (["-m", "package", "--x"], ["package", "--x"], ["-c", code, "--x"], ["-m", "nowhere"]):
        alone, fused = both(*arguments, cwd=tmp_path)
        assert (fused.out, fused.code) == (alone.out, alone.code)
        assert fused.err.startswith(alone.err)


SPAWNS = """
    import torch
    import snntorch as snn
    from torch import multiprocessing

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 2
        def __getitem__(self, i):
            return torch.tensor(i)

    def work(index, queue):
        queue.put("snnfast" in snn.Leaky.forward.__code__.co_filename)

    if __name__ == "__main__":
        loader = torch.utils.data.DataLoader(Data(), num_workers=1, multiprocessing_context="spawn")
        print([batch.tolist() for batch in loader])
        queue = multiprocessing.get_context("spawn").SimpleQueue()
        multiprocessing.spawn(work, (queue,), nprocs=1)
        print(queue.get())
"""


@pytest.mark.long
def test_processes_that_the_script_spawns(tmp_path):
    fused = ended(start(*RUNNER, write(tmp_path, SPAWNS), cwd=tmp_path))
    assert (fused.code, fused.out, fused.err) == (0, "[[0], [1]]\nTrue\n", "")


@pytest.mark.long
def test_ctrl_c_stops_at_once(tmp_path):
    script = write(tmp_path, "import time; print('ready', flush=True); time.sleep(60)")
    process = start(*RUNNER, script, cwd=tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    result = ended(process)
    assert result.code == -signal.SIGINT and result.err.endswith("KeyboardInterrupt\n") and "runpy" not in result.err


def test_one_line_where_there_is_nothing_to_make_faster(tmp_path):
    script = write(tmp_path, "print('hello')")
    off = start(*RUNNER, script, cwd=tmp_path, SNNFAST_AUTO="0")
    result = ended(start(*RUNNER, "--explain", script, cwd=tmp_path))
    line = "snnfast: nothing was made faster: the script never imported snnTorch\n"
    assert (result.code, result.out, result.err) == (0, "hello\n", line)
    result = ended(off)
    assert result.out == "hello\n" and result.err.count("\n") == 1 and "SNNFAST_AUTO=0" in result.err


def test_options():
    script = str(Path(__file__))
    parsed = command.parse(["--numbers", "exact", "--encoders=fast", "--verify", "--explain", script, "--verify=2"])
    assert parsed == command.Command("script", [script, "--verify=2"], "exact", "fast", command.VERIFIED, "")
    assert command.parse(["--verify=7", "-m", "train", "-x"]) == command.Command("-m", ["train", "-x"], verify=7)
    assert command.parse(["-c", "pass", "--help"]) == command.Command("-c", ["pass", "--help"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nmbers", "exact", "x.py"], "no option --nmbers; did you mean --numbers?"),
        (["-x", "x.py"], "no option -x"),
        (["--numbers", "some", "x.py"], "--numbers must be one of forward, exact; got 'some'"),
        (["--encoders"], "--encoders must be one of exact, fast; got ''"),
        (["--verify=all", "x.py"], "--verify=K takes a number of windows from 1 on, got 'all'"),
        (["--verify=0", "x.py"], "--verify=K takes a number of windows from 1 on, got '0'"),
        (["--explain=/nowhere/at/all", "x.py"], "--explain=/nowhere/at/all: No such file"),
        (["-m"], "-m needs a module"),
        (["missing.py", "--numbers"], "can't open file 'missing.py': No such file or directory"),
        ([], "which script?"),
    ],
)
def test_wrong_options_get_a_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as exit:
        command.parse(arguments)
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and not out and err.count("\n") == 1 and said in err and err.startswith("snnfast: ")


def test_help(capsys):
    for option in ("--help", "-h", "--version"):
        with pytest.raises(SystemExit) as exit:
            command.parse([option, "x.py"])
        assert exit.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in (*command._CHOICES, "--verify", "--explain", "%load_ext snnfast"))
    assert max(map(len, out.splitlines())) <= 120 and snnfast.__version__ in out


def test_explain_is_said_at_exit(tmp_path, monkeypatch, capsys):
    report = types.SimpleNamespace(summary=lambda: "loop.py:3 fused")
    monkeypatch.setitem(sys.modules, "snnfast.loops.report", report)
    monkeypatch.setattr(snnfast.loops, "report", report, raising=False)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    file = tmp_path / "report.txt"
    for explain in ("", str(file)):
        said = command._Report(command.Command(explain=explain))
        import snntorch  # noqa: F401

        said.at_exit()
    assert capsys.readouterr().err == file.read_text() == "loop.py:3 fused\n"


def test_what_was_verified_is_said_in_a_line(tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(
        "import torch, snntorch as snn\n"
        "lif = snn.Leaky(beta=0.9)\n"
        "for _ in range(3):\n"
        "    mem, spikes = lif.init_leaky(), []\n"
        "    for x in torch.rand(20, 4, 8):\n"
        "        spk, mem = lif(x, mem)\n"
        "        spikes.append(spk)\n"
        "    torch.stack(spikes).sum().item()\n"
    )
    done = ended(start(*RUNNER, "--verify", "loop.py", cwd=tmp_path))
    assert done.code == 0 and "windows verified: as written" in done.err, done.err
    script.write_text("import snntorch\n")
    assert "nothing was verified: no loop was fused" in ended(start(*RUNNER, "--verify", "loop.py", cwd=tmp_path)).err
