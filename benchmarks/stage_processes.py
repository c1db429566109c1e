"""Stages of a long command, each a process of its own with a time limit and a log; some run at the same time.

When a stage is over, no process of it is left, whatever it started; but for one that the system cannot end, which its
status says.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOG_BYTES = 200_000  # of each log; what is cut off is its middle
GRACE = 5  # seconds in which pytest tells what has failed until it was stopped

#: Every process of a stage inherits this variable, wherever else it belongs. Of stages within stages it has all marks.
MARK = "L2T_FAST_GPU_STAGE"

#: Status of a stage, after which no other one runs.
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Stage:
    """A command, its time limit in seconds, what else its environment holds, and what the summary says of it.

    If one that is ``needed`` fails, no other one goes on or begins.
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


class Signals:
    """While active, signals that end a process are noted and do nothing else: a call tells whether one has come.

    So whoever looks at it can end stages and write what there is, however many more come.
    """

    def __init__(self) -> None:
        self._came = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self._came

    def _note(self, *_: object) -> None:
        self._came = True


def run_together(
    stages: list[Stage], logs: Path, left: float, interrupted: Callable[[], bool] = lambda: False
) -> Iterator[Outcome]:
    """Run stages at the same time, for ``left`` seconds at most; yields each one's outcome as soon as it is over.

    All that run are ended when ``interrupted`` is true, or one fails that is needed.
    """
    running: list[_Running] = []
    ended: str | None = None
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
            if ended is None and interrupted():
                ended = INTERRUPTED
            if ended is not None:
                for one in running:  # all at once, before the first is waited for
                    one.kill()
            for one in list(running):
                status = ended or one.status()
                if status is not None:
                    running.remove(one)
                    outcome = one.end(status)
                    yield outcome
                    if outcome.lacking and ended is None:
                        ended = f"ended: {outcome.stage.name} failed"
    finally:
        for one in running:
            one.end(INTERRUPTED)


class _Running:
    def __init__(self, stage: Stage, log: Path, limit: float) -> None:
        self._stage, self._log, self._limit = stage, log, limit
        self._began = time.monotonic()
        self._mark = f"{os.getpid()}-{stage.name}-{time.monotonic_ns()}"
        marks = ":".join(filter(None, [os.environ.get(MARK), self._mark]))
        temporary = log.parent / "temporary"
        temporary.mkdir(exist_ok=True)
        # setproctitle, which pytest's workers show their names with, would overwrite the mark.
        fixed = {"SPT_NOENV": "1", "TMPDIR": str(temporary), MARK: marks}
        self._interrupted: float | None = None  # when
        self._alone = False  # its workers were killed
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path} | stage.variables | fixed
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

    def kill(self) -> None:
        """Kill it with all of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self, status: str) -> Outcome:
        """Kill it and whatever it started, also what has a session of its own, as workers of compilers have."""
        self.kill()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:  # it is within a call of a driver or a file system that does not answer
            status = f"{status}, cannot be killed"
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
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is somebody else's
            continue
        marks = next((v.partition(b"=")[2] for v in variables if v.startswith(f"{MARK}=".encode())), b"")
        if mark.encode() in marks.split(b":"):
            found.append(int(folder.name))
    return found
