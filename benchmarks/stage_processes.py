"""Stages of a long command, each a process of its own with a time limit and a log; some run at the same time.

When a stage is over, no process of it is left, whatever it started.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOG_BYTES = 200_000  # of each log; what is cut off is its middle
GRACE = 5  # seconds in which pytest tells what has failed until it was stopped

#: Every process of a stage inherits this variable, wherever else it belongs.
MARK = "L2T_FAST_GPU_STAGE"

#: Status of a stage, after which no other one runs.
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Stage:
    """A command, its time limit in seconds, what else its environment holds, and what the summary says of it.

    If one that is ``needed`` fails, no other one runs.
    """

    name: str
    seconds: int
    command: list[str]
    variables: dict[str, str]
    note: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Outcome:
    stage: Stage
    status: str
    seconds: float
    last_line: str

    @property
    def lacking(self) -> bool:
        """Whether others would run without what they need."""
        return self.stage.needed and self.status != "ok"


def run_together(stages: list[Stage], logs: Path, left: float) -> Iterator[Outcome]:
    """Run stages at the same time, for ``left`` seconds at most; yields each one's outcome as soon as it is over."""
    running: list[_Running] = []
    try:
        try:
            for stage in stages:
                limit = min(stage.seconds, left)
                try:
                    if limit < 5:
                        yield Outcome(stage, "no time left", 0.0, "")
                    else:
                        running.append(_Running(stage, logs / f"{stage.name}.log", limit))
                except OSError as error:
                    yield Outcome(stage, f"did not start: {error.filename or stage.name}: {error.strerror}", 0.0, "")
            while running:
                time.sleep(0.05)
                for one in list(running):
                    status = one.status()
                    if status is not None:
                        running.remove(one)
                        yield one.end(status)
        except KeyboardInterrupt:
            while running:
                yield running.pop(0).end(INTERRUPTED)
    finally:
        for one in running:
            one.end(INTERRUPTED)


class _Running:
    def __init__(self, stage: Stage, log: Path, limit: float) -> None:
        self._stage, self._log, self._limit = stage, log, limit
        self._began = time.monotonic()
        self._mark = f"{os.getpid()}-{stage.name}-{time.monotonic_ns()}"
        self._interrupted: float | None = None  # when
        self._alone = False  # its workers were killed
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path} | stage.variables | {MARK: self._mark}
        with log.open("w") as file:
            self._process = subprocess.Popen(
                stage.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def status(self) -> str | None:
        """What became of it, or None while it runs; called again and again, it sees to the time limit."""
        code, now = self._process.poll(), time.monotonic()
        stopped = f"stopped after {self._limit:.0f} s"
        if self._interrupted is not None:
            # pytest would wait for tests in its workers first, for 10 s, so these are killed
            if not self._alone and now > self._interrupted + 0.5:
                _kill(pid for pid in _marked(self._mark) if pid != self._process.pid)
                self._alone = True
            return stopped if code is not None or now > self._interrupted + GRACE else None
        if code is not None:
            return "ok" if code == 0 else f"exit code {code}"
        if now < self._began + self._limit:
            return None
        if "pytest" not in self._stage.command:
            return stopped
        self._process.send_signal(signal.SIGINT)  # it has printed dots so far, no failure
        self._interrupted = now
        return None

    def end(self, status: str) -> Outcome:
        """Kill it and whatever it started, also what has a session of its own, as workers of compilers have."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for _ in range(20):  # a process may have started another one meanwhile
            found = _marked(self._mark)
            _kill(found)
            if not found:
                break
            time.sleep(0.1)
        text = self._log.read_text(errors="replace")
        if len(text) > LOG_BYTES:
            text = f"{text[: LOG_BYTES // 4]}\n[...]\n{text[-LOG_BYTES * 3 // 4 :]}"
            self._log.write_text(text)
        lines = [line for line in text.splitlines() if line.strip()]
        return Outcome(self._stage, status, time.monotonic() - self._began, lines[-1] if lines else "")


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended by itself
            os.kill(pid, signal.SIGKILL)


def _marked(mark: str) -> list[int]:
    """The processes whose environment says that they belong to a stage."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is somebody else's
            continue
        if wanted in variables:
            found.append(int(folder.name))
    return found
