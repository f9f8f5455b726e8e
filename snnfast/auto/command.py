"""`python -m snnfast script.py`: an unmodified snnTorch script, fused."""

import atexit
import builtins
import contextlib
import difflib
import importlib.abc
import importlib.machinery
import multiprocessing.process
import os
import runpy
import sys
import types
import zipfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

from .. import __version__
from ..loops.settings import NUMBERS
from . import ENCODERS, OFF, install

HELP = """\
Runs a script written for snnTorch, as it is, faster: its layers run fused, and its loops over time as whole
sequences, forward and backward, with the numbers that snnTorch computes.

    python -m snnfast train.py --epochs 10         instead of: python train.py --epochs 10
    python -m snnfast -m package.train ...         instead of: python -m package.train ...
    python -m snnfast -c "..."                     instead of: python -c "..."
    torchrun ... -m snnfast train.py ...           instead of: torchrun ... train.py ...

Options, before the script (what follows it is the script's own):
  --numbers forward    spikes, membranes and losses are the loop's; gradients to rounding (default)
  --numbers exact      gradients to the bit too: trained weights equal snnTorch's; less is fused
  --encoders exact     random spikes are drawn from torch's generator as snnTorch draws them (default)
  --encoders fast      other random numbers, drawn several times faster
  --verify[=K]         computes the first K (3) fused windows of every loop as written too, reports any difference
                       with layer and step, and goes on with the written result
  --explain[=FILE]     at exit, tells of every loop what was fused, what was not, why, and what to do about it
  --version            the version
  --help               this page

In the environment: SNNFAST_NUMBERS=exact is a default for --numbers, SNNFAST_AUTO=0 runs the script as without snnfast.
In a program: snnfast.install() and snnfast.uninstall(). In a notebook: %load_ext snnfast.
"""

VERIFIED = 3
"""Windows of a loop that `--verify` alone computes twice."""

_CHOICES = {"--numbers": NUMBERS, "--encoders": ENCODERS}
_FLAGS = ("--verify", "--explain", "--version", "--help", "-h", "-m", "-c")
_HERE = str(Path(__file__).parent.parent) + os.sep


@dataclass
class Command:
    """What a command line asks for. target: "script", "-m" or "-c"; argv: what it names, and the script's arguments."""

    target: str = ""
    argv: list[str] = field(default_factory=list)
    numbers: str | None = None
    encoders: str = "exact"
    verify: int = 0
    explain: str | None = None
    """A file; "" for stderr, None for no report."""


def main() -> None:
    """Runs what the command line of this process names, as `python` would."""
    command = parse(sys.argv[1:])
    _install(command)
    report = _Report(command)
    atexit.register(report.at_exit)
    with _own_tracebacks(), report:
        run(command)


def parse(arguments: list[str]) -> Command:
    """Reads the options of a command line; one that is wrong ends the process with a line that says so."""
    command, rest = Command(), list(arguments)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in ("-m", "-c"):
            command.target, command.argv = option, rest
            if not rest:
                _refuse(f"{option} needs {'a module' if option == '-m' else 'code'} after it")
            return command
        _read_option(command, option, rest)
    if not rest:
        _refuse("which script? python -m snnfast [options] script.py [arguments]")
    command.target, command.argv = "script", rest
    try:
        os.listdir(rest[0]) if os.path.isdir(rest[0]) else open(rest[0]).close()
    except OSError as error:
        _refuse(f"can't open file {rest[0]!r}: {error.strerror}")
    return command


def _read_option(command: Command, option: str, rest: list[str]) -> None:
    name, given, value = option.partition("=")
    if name in _CHOICES:
        value = value if given else rest.pop(0) if rest else ""
        if value not in _CHOICES[name]:
            _refuse(f"{name} must be one of {', '.join(_CHOICES[name])}; got {value!r}")
        setattr(command, name[2:], value)
    elif name == "--verify":
        if given and not (value.isascii() and value.isdigit() and int(value)):
            _refuse(f"--verify=K takes a number of windows from 1 on, got {value!r}")
        command.verify = int(value) if given else VERIFIED
    elif name == "--explain":
        command.explain = _writable(value) if given else ""
    elif option in ("-h", "--help", "--version"):
        print(f"snnfast {__version__}" if option == "--version" else HELP.rstrip())
        sys.exit(0)
    else:
        near = difflib.get_close_matches(name, [*_CHOICES, *_FLAGS], 1)
        _refuse(f"there is no option {name}" + (f"; did you mean {near[0]}?" if near else ""))


def _writable(file: str) -> str:
    """The path whatever directory the script goes to, once something can be written there."""
    try:
        with open(file, "a"):
            return os.path.abspath(file)
    except OSError as error:
        _refuse(f"--explain={file}: {error.strerror}")


def _refuse(reason: str) -> NoReturn:
    print(f"snnfast: {reason} (python -m snnfast --help)", file=sys.stderr)
    sys.exit(2)


def _install(command: Command) -> None:
    if os.environ.get(OFF) == "0":
        print(f"snnfast: {OFF}=0 is in the environment: the script runs as without snnfast", file=sys.stderr)
        return
    # Without snnTorch it does so too.
    with contextlib.suppress(ImportError):
        try:
            install(command.numbers, command.verify, command.encoders)
            _hand_on(command)
        except ValueError as error:
            _refuse(f"SNNFAST_NUMBERS: {error}")


def _hand_on(command: Command) -> None:
    """Processes that the script spawns get what multiprocessing keeps for them, and with it install the same."""
    multiprocessing.process.current_process()._config["snnfast"] = _Installed(command)


class _Installed:
    def __init__(self, command: Command):
        self._options = command.numbers, command.verify, command.encoders

    def __reduce__(self):
        return install, self._options


class _Report(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """What is said at exit, after all that the script says: what was fused, or that the script never asked for it.

    snnfast has imported snnTorch already. Who else imports it shows by this finder, which gives them that.
    """

    def __init__(self, command: Command):
        self._command, self._process = command, os.getpid()
        self._imported = self._ended_well = False
        self._snntorch = sys.modules.pop("snntorch", None)
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "snntorch":
            return None
        sys.meta_path.remove(self)
        self._imported = True
        return None if self._snntorch is None else importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module):
        sys.modules["snntorch"] = self._snntorch

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._ended_well = error is None or (kind is SystemExit and error.code in (None, 0))

    def at_exit(self) -> None:
        # A process that the script has forked may get here too.
        if os.getpid() != self._process or os.environ.get(OFF) == "0":
            return
        if not self._imported:
            if self._ended_well:
                print("snnfast: nothing was made faster: the script never imported snnTorch", file=sys.stderr)
        elif self._command.explain is not None:
            self._explain(self._command.explain)
        elif self._command.verify:
            print(_verified(), file=sys.stderr)

    def _explain(self, file: str) -> None:
        from ..loops import report

        with open(file, "w") if file else contextlib.nullcontext(sys.stderr) as out:
            print(report.summary(), file=out)


def _verified() -> str:
    """What came of `--verify`, in a line; where something differed, the loop has warned of it."""
    from ..loops.report import stories

    windows = sum(story.verified for story in stories.values())
    different = sum(len(story.differences) for story in stories.values())
    if not windows:
        return "snnfast: nothing was verified: no loop was fused; --explain says why"
    return f"snnfast: {windows} windows verified: " + (f"{different} differences" if different else "as written")


def run(command: Command) -> None:
    """Runs a script, a module or code as this process's `__main__`, with its own arguments and import path."""
    name, *arguments = command.argv
    # The script's own from here to the end, exit handlers and other processes included.
    main_module = sys.modules["__main__"] = types.ModuleType("__main__")
    vars(main_module).update(__builtins__=builtins, __annotations__={})
    sys.argv[:] = ["-c" if command.target == "-c" else name, *arguments]
    if command.target == "-m":
        runpy._run_module_as_main(name)
    elif command.target == "-c":
        _look_for_imports_in("")
        _execute(name, "<string>", main_module)
    elif os.path.isdir(name) or (os.path.isfile(name) and zipfile.is_zipfile(name)):
        _look_for_imports_in(os.path.abspath(name))
        runpy._run_module_as_main("__main__", alter_argv=False)
    else:
        path = os.path.abspath(name)
        _look_for_imports_in(os.path.dirname(os.path.realpath(path)))
        loader = importlib.machinery.SourceFileLoader("__main__", path)
        vars(main_module).update(__file__=path, __loader__=loader, __cached__=None)
        _execute(Path(path).read_bytes(), path, main_module)


def _execute(source: str | bytes, file: str, module: types.ModuleType) -> None:
    exec(compile(source, file, "exec", dont_inherit=True), vars(module))


def _look_for_imports_in(folder: str) -> None:
    """In the place of the folder that `python -m` looks in; a Python that was told to be safe looks in neither."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


@contextlib.contextmanager
def _own_tracebacks():
    """An exception that leaves the script is shown as the script's alone, by whatever shows exceptions by then."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook = partial(_show, sys.excepthook)
        raise


def _show(hook, kind, error, traceback) -> None:
    sys.excepthook = hook
    _strip(error, set())
    hook(kind, error, error.__traceback__)


def _strip(error: BaseException | None, seen: set) -> None:
    """Takes snnfast's frames, and those that ran the script, out of the tracebacks of an exception and its causes."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    error.__traceback__ = _without_ours(error.__traceback__)
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        _strip(other, seen)


def _without_ours(traceback):
    if traceback is None:
        return None
    traceback.tb_next = _without_ours(traceback.tb_next)
    file = traceback.tb_frame.f_code.co_filename
    ours = file.startswith(_HERE) or file in ("<frozen runpy>", runpy.__file__)
    return traceback.tb_next if ours else traceback
