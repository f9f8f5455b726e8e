"""Output files that are either whole or untouched, and the error a user is shown."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """What the user gave cannot be used; the message is the one line that is shown."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path that becomes `path` once the block has written it without error.

    The temporary file lies in the same directory, so the replacement is atomic: `path` holds the
    old content or the new, never half of one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # A write that fails does not say where.
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path, argument: str) -> None:
    """Raise InputError naming `argument` unless a file can be created at `path`.

    Missing parent directories are created. Trying is the only test that also holds for read-only
    file systems and for the superuser.
    """
    if path.is_dir():
        raise InputError(f"argument {argument}: {path} is a directory, give a file")
    probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"argument {argument}: cannot write {path}: {error.strerror}") from error
