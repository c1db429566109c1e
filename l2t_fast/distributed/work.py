"""Whether this process does anything: what tells a rank that reads images from one that hangs."""

import threading
import time
from collections.abc import Iterable
from pathlib import Path

#: Share of a core below which a process counts as idle: the odd thread that wakes to look at a clock.
_IDLE = 0.002

_SELF = Path("/proc/self")


class Work:
    """Counts looks at which this process had computed, read or written something since the look before.

    Python's threads count, PyTorch's do not: those that wait for other ranks poll. Where the system tells no times of
    threads (not Linux), every look counts.

    Args:
        but: threads that do not count.
    """

    def __init__(self, but: Iterable[threading.Thread]) -> None:
        self._but = frozenset(but)
        self._looked = time.monotonic()
        self._done = self._read()
        self.count = 0

    def look(self) -> int:
        """The count, after another look."""
        now, done = time.monotonic(), self._read()
        if done is None or self._done is None:
            self.count += 1
        else:
            computed, moved = done[0] - self._done[0], done[1] != self._done[1]
            # A thread that has ended takes its time along, so less than before is work too.
            self.count += moved or computed < 0 or computed > _IDLE * (now - self._looked)
        self._looked, self._done = now, done
        return self.count

    def _read(self) -> tuple[float, tuple[bytes, ...]] | None:
        """(seconds that threads have computed, what the disk has moved)."""
        seconds = 0.0
        try:
            for thread in threading.enumerate():
                if thread not in self._but:
                    times = _SELF / "task" / str(thread.native_id) / "schedstat"
                    try:
                        seconds += int(times.read_bytes().split()[0]) * 1e-9
                    except (FileNotFoundError, ProcessLookupError):
                        continue  # it has just ended
            moved = [line for line in (_SELF / "io").read_bytes().splitlines() if b"_bytes" in line]
        except (OSError, ValueError):
            return None
        return seconds, tuple(moved)
