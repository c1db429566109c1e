"""Counts what a process does to the files of a folder, and kills it at a chosen one, in the middle of a write too."""

import _pyio
import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Point(NamedTuple):
    """The process dies before its call number `number` (from 1), or with `cut` after half of that write's bytes.

    With `full` it does not die: this call and all that follow, but for removals, fail as on a full disk.
    """

    number: int
    cut: bool = False
    full: bool = False


class Call(NamedTuple):
    """A system call on a file of the folder."""

    name: str
    path: str


def watch(folder: Path, calls: list[Call], point: Point | None = None) -> None:
    """From now on, and for good, note this process's calls in `calls`, and kill it at `point`.

    Python's own files are replaced by those of `_pyio`, the same in Python, whose every call goes through `os`.
    """
    root = os.path.realpath(folder)

    def due(name: str, path: Any) -> bool:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.path.realpath(os.fspath(path))
        if not path.startswith(root):
            return False
        calls.append(Call(name, os.path.relpath(path, root)))
        return point is not None and (len(calls) == point.number or (point.full and len(calls) > point.number))

    def wrapped(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            changes = name != "open" or arguments[0] & (os.O_WRONLY | os.O_RDWR)
            if changes and due(name, path):
                if point.full and name == "unlink":
                    return original(path, *arguments, **options)
                if point.full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                if name == "write" and point.cut:
                    original(path, bytes(arguments[0])[: len(arguments[0]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(path, *arguments, **options)

        return call

    for name in ("open", "write", "fsync", "replace", "unlink", "mkdir"):
        setattr(os, name, wrapped(name))
    builtins.open = io.open = _pyio.open
