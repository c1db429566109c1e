"""Standard output that nobody reads any more, or that cannot be written, told apart from every other broken file."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from l2t_fast.errors import L2TFastError
from l2t_fast.interrupts import OutputClosed


def _distinct(error: UnicodeEncodeError) -> tuple[bytes, int]:
    """What an encoding has no sign for: bytes of a file's name as they are there, other signs by their numbers."""
    of_name = all("\udc80" <= c <= "\udcff" for c in error.object[error.start : error.end])
    return codecs.lookup_error("surrogateescape" if of_name else "backslashreplace")(error)


codecs.register_error("l2t_fast.distinct", _distinct)


class _Watched:
    """A stream whose failures are OutputClosed, where its reader has left, or an L2TFastError."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is still to be written goes nowhere, or Python would try once more on its way out, and complain.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if isinstance(error, BrokenPipeError):
                raise OutputClosed from error
            raise L2TFastError(f"standard output cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def watched_output() -> Iterator[None]:
    """What this block prints has arrived when it ends.

    Raises:
        OutputClosed: nobody reads it any more, as in ``l2t-fast env | head -1``.
        L2TFastError: it cannot be written, as where it goes into a file on a full disk.
    """
    if sys.stdout is None:  # closed by whoever started this program, so that nothing is printed at all
        yield
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What has no sign there ends no comparison; a terminal shows a "?", what programs read is to tell texts apart.
        sys.stdout.reconfigure(errors="replace" if sys.stdout.isatty() else "l2t_fast.distinct")
    watched = _Watched(sys.stdout)
    with contextlib.redirect_stdout(watched):
        try:
            yield
        except SystemExit:  # --help
            watched.flush()
            raise
        except BaseException:
            with contextlib.suppress(OutputClosed, L2TFastError):  # there is something else to tell
                watched.flush()
            raise
        watched.flush()
