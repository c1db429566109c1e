"""Notices that a rank was killed, hangs or gave up, and ends this process; the job says why once.

Each rank writes a sign of life into the job's store, and watches the next rank, the last one the first: so the store's
traffic grows with the number of ranks, not with its square, and whoever is gone, somebody sees it. A rank on the same
machine is also watched by its process, whose end is known at once.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from l2t_fast.distributed.group import ALONE, Group
from l2t_fast.distributed.work import Work

#: Exit code of a rank that ends because another one is gone; the command line's for a failure.
FAILED = 2

#: torchrun says so; otherwise rank 0 keeps it.
LAUNCHER_KEEPS_STORE = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

#: Seconds that the main thread gets to write down that it stops.
_GRACE = 1.0


@dataclass(frozen=True)
class Process:
    """Where a rank runs: machine (its boot and process name space, so that a process id means something) and id."""

    host: str
    machine: str
    pid: int

    @classmethod
    def this(cls) -> "Process":
        """The calling process."""
        return cls(socket.gethostname(), _machine(), os.getpid())


class Watch:
    """Two threads beside the training, and beside the meeting of the ranks before it.

    Args:
        store: of the job; a connection of its own is made from it.
        rank: of this process.
        size: how many ranks there are.
        patience: seconds to come, without a sign of life, or without progress where another rank waits, after which a
            rank counts as missing or hung. In training, progress is to come to the next exchange; before and after it,
            to do anything at all.

    Attributes:
        hint: what is added to the sentence: how to go on.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, patience: float) -> None:
        self.hint = ""
        self._rank, self._size = rank, size
        self._group = ALONE  # until the ranks have met
        self._patience = patience
        self._interval = min(1.0, patience / 10)
        self._main_store, self._store = store, store.clone()
        self._next = (rank + 1) % size
        self._entered = 0
        self._sign = ""
        self._quiet = self._stalled = 0.0
        self._looks = 0
        self._stopping = threading.Event()
        self._ending = threading.Lock()
        self._wake, self._waker = os.pipe()
        self._process: Process | None = None
        self._process_end: int | None = None
        self._ended = False  # the next rank's process
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._run, self._guard)]
        self._work = Work(but=self._threads)

    def start(self) -> None:
        """Look, from before the ranks have met: the next one has the time of `patience` to come."""
        self._give_sign()
        self._main_store.set(f"process/{self._rank}", json.dumps(asdict(Process.this())))
        if threading.current_thread() is threading.main_thread():
            # A signal's number goes into the pipe at once, whatever the main thread does.
            os.set_blocking(self._waker, False)
            signal.signal(signal.SIGTERM, lambda number, frame: None)
            signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for thread in self._threads:
            thread.start()

    def follow(self, group: Group) -> None:
        """The ranks have met: from now on look at their progress too."""
        group.entered = self._count
        self._group = group

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        os.write(self._waker, b"x")
        for thread in self._threads:
            thread.join()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def claim(self, sentence: str) -> bool:
        """Whether this rank is the first to say why the job ends. Called by the main thread."""
        self._stopping.set()
        if not self._ending.acquire(blocking=False):
            time.sleep(_GRACE)  # another thread is about to speak
            return False
        return self._first(self._main_store, sentence)

    def exit(self, code: int, store: dist.Store | None = None) -> NoReturn:
        """End this process, if it keeps the store not before the others have been told.

        A thread other than the main one brings its own connection: the main thread's may be waiting in a call.
        """
        store = store or self._main_store
        sys.stdout.flush()
        if self._rank == 0 and not LAUNCHER_KEEPS_STORE:
            deadline = time.monotonic() + 5
            with contextlib.suppress(RuntimeError):
                while store.add("told", 0) < self._size - 1 and time.monotonic() < deadline:
                    time.sleep(0.05)
        os._exit(code)

    def wait_for_reason(self) -> None:
        """Let the watching thread end this process, since it knows why an operation with the others failed."""
        os.write(self._waker, b"x")
        self._threads[0].join(self._patience + 10)

    def _count(self) -> None:
        self._entered += 1

    def _give_sign(self) -> None:
        self._looks += 1
        work = "steady" if self._group.steady else self._work.look()
        self._store.set(f"sign/{self._rank}", f"{self._looks} {self._entered} {work}")

    def _run(self) -> None:
        while not self._stopping.is_set():
            readers = [self._wake, *([] if self._process_end is None else [self._process_end])]
            began = time.monotonic()
            interval = self._interval if self._process is not None else self._interval / 10  # the next comes any moment
            ready, _, _ = select.select(readers, [], [], interval)
            # Time that this process was itself stopped, or had no processor, is nobody else's fault.
            waited = min(time.monotonic() - began, interval)
            told_to_end = False
            if self._wake in ready:
                self._interval = 0.05  # the main thread waits
                told_to_end = signal.SIGTERM in os.read(self._wake, 100)
            if self._stopping.is_set():
                return
            try:
                self._ended = self._ended or self._process_end in ready
                sentence, hung = self._look(waited)
                if told_to_end and sentence is None:
                    # A launcher tells all ranks to end when one has died: whoever watches that one speaks first.
                    self._wait_for_words()
                    sentence = f"{self._name(self._rank)} was told to end (SIGTERM)"
            except RuntimeError:
                self._ended = self._ended or self._process_end in select.select(readers, [], [], 0.5)[0]
                gone = self._next == 0 and self._ended
                keeper = f"{self._keeper()}, which keeps the job's store, cannot be reached"
                self._end(f"{self._name(0)} was killed or crashed" if gone else keeper, stored=False)
                return
            if sentence is not None:
                self._end(sentence, hung=hung)
                return

    def _wait_for_words(self) -> None:
        """Give another rank a moment to say why the job ends."""
        for _ in range(5):
            if not self._store.check(["reason"]):
                time.sleep(0.1)

    def _look(self, waited: float) -> tuple[str | None, bool]:
        """(why the job must end: "" if another rank has told, None if it goes on; whether the next rank hangs)."""
        self._give_sign()
        if self._store.check(["reason"]):
            return "", False
        if not self._came():
            self._quiet += waited
            missing = f"{self._name(self._next)} has not come in {self._patience:g} s"
            return (missing if self._quiet > self._patience else None), False
        if self._ended:  # and it said nothing, so that it had no time to
            return f"{self._name(self._next)} was killed or crashed", False
        sign = self._store.get(f"sign/{self._next}").decode()
        entered = int(sign.split()[1])
        seen = self._sign.split()
        self._quiet = 0.0 if sign.split()[:1] != seen[:1] else self._quiet + waited
        # It waits for nobody here, and this rank for it; nor has it done anything, where that counts.
        behind = entered < self._entered and sign.split()[1:] == seen[1:]
        self._stalled = self._stalled + waited if behind else 0.0
        self._sign = sign
        if self._quiet > self._patience:
            return f"{self._name(self._next)} hangs: no sign of life for {self._patience:g} s", True
        if self._stalled > self._patience:
            return f"{self._name(self._next)} hangs: the others have waited for it for {self._patience:g} s", True
        return None, False

    def _came(self) -> bool:
        """Whether the next rank has come; from then on its process is known."""
        if self._process is None and self._store.check([f"process/{self._next}"]):
            self._process = Process(**json.loads(self._store.get(f"process/{self._next}")))
            if hasattr(os, "pidfd_open") and self._process.machine == _machine():
                try:
                    self._process_end = os.pidfd_open(self._process.pid)
                except ProcessLookupError:
                    self._ended = True
        return self._process is not None

    def _guard(self) -> None:
        """The other thread may wait for a store that does not answer."""
        looks, missed = 0, 0.0
        while not self._stopping.wait(self._interval):
            missed = missed + self._interval if looks == self._looks else 0.0
            looks = self._looks
            if missed > self._patience:
                sentence = f"{self._keeper()} hangs: its store has not answered for {self._patience:g} s"
                self._end(sentence, hung=self._next == 0 and not LAUNCHER_KEEPS_STORE, stored=False)
                return

    def _end(self, sentence: str, *, hung: bool = False, stored: bool = True) -> None:
        """Say `sentence` if nobody has said anything yet, then end this process; and a hung one that is at hand."""
        if not self._ending.acquire(blocking=False):
            return
        speaks = bool(sentence) and (self._first(self._store, sentence) if stored else self._next == 0)
        if speaks:
            say(f"error: {sentence}, training stops{self.hint}")
        if hung and self._process_end is not None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                signal.pidfd_send_signal(self._process_end, signal.SIGKILL)
            self._ended = True
        if speaks and self._next == 0 and self._ended:  # the rank that leads cannot write it down
            self._group.ending(sentence)
        if stored:
            with contextlib.suppress(RuntimeError):
                if not sentence:
                    self._store.add("told", 1)
                if self._rank == 0:
                    self._group.ending(self._store.get("reason").decode())
        time.sleep(_GRACE)
        if not self._stopping.is_set():
            self.exit(FAILED, self._store)

    def _first(self, store: dist.Store, sentence: str) -> bool:
        """Whether nobody has said yet why the job ends."""
        try:
            if store.add("reasons", 1) == 1:
                store.set("reason", sentence)
                return True
            store.add("told", 1)
        except RuntimeError:
            pass  # the store's keeper is gone, which it does not go before all have been told
        return False

    def _keeper(self) -> str:
        return "the launcher" if LAUNCHER_KEEPS_STORE else self._name(0)

    def _name(self, rank: int) -> str:
        known = self._process if rank == self._next else None
        where = "" if known is None else f" (process {known.pid} on {known.host})"
        return f"rank {rank} of {self._size}{where}"


def say(text: str) -> None:
    """One line on standard error, in one piece though several processes write."""
    sys.stderr.flush()
    os.write(2, f"{text}\n".encode())


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {socket.gethostname()} {os.getpid()}"
