"""Ctrl-C, also where PyTorch swallows it or turns it into another error."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType


def starts_command() -> bool:
    """Whether Python was started as ``l2t-fast`` or ``python -m l2t_fast``: asked while this package is imported."""
    # With -m, sys.argv[0] is that until the module is found, which is below this package.
    by_name = sys.argv[0] == "-m" and any(a.removeprefix("-m") in ("l2t_fast", "l2t_fast.cli") for a in sys.orig_argv)
    return by_name or sys.argv[0].rpartition("/")[2] == "l2t-fast"


def end_at_once() -> None:
    """Let Ctrl-C end this process without a word, until `raise_again`.

    To import PyTorch takes seconds, and an interrupt meanwhile would be a traceback, or what its modules make of one.
    """
    global _ends_at_once
    on_main_thread = threading.current_thread() is threading.main_thread()  # no other may set a handler
    if on_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _ends_at_once = True


def raise_again() -> None:
    """Take back `end_at_once`: Ctrl-C is a KeyboardInterrupt from here on."""
    global _ends_at_once
    if _ends_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _ends_at_once = False


_ends_at_once = False


class OutputClosed(KeyboardInterrupt):
    """Nobody reads what is printed any more, as in ``l2t-fast train | head -1``. It is no run's failure."""

    def __init__(self) -> None:
        super().__init__("interrupted, since nobody reads the output any more")


Handler = Callable[[int, FrameType | None], object]


def _replaceable_handler() -> Handler | None:
    """What Ctrl-C calls, if another may take its place for a while.

    Only the main thread may set one, and a program that was told to ignore Ctrl-C goes on ignoring it.
    """
    handler = signal.getsignal(signal.SIGINT)
    on_main_thread = threading.current_thread() is threading.main_thread()
    return handler if on_main_thread and callable(handler) else None


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait for the next `let_interrupt`, or for the end: in between something is not as it was found.

    PyTorch gives a module other parameters one by one, and takes them back so: what an interrupt left of that would be
    found by nobody.
    """
    global _deferred
    handler = _replaceable_handler()
    if handler is None or _deferred is not None:
        yield
        return
    _deferred = _Deferred(handler)
    signal.signal(signal.SIGINT, _deferred.note)
    try:
        yield
    finally:
        deferred, _deferred = _deferred, None
        signal.signal(signal.SIGINT, handler)
        deferred.deliver()


def let_interrupt() -> None:
    """In `deferred_interrupts`: everything is as it was found, so a Ctrl-C that waits may be raised here."""
    if _deferred is not None and threading.current_thread() is threading.main_thread():
        _deferred.deliver()


class _Deferred:
    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._pressed: tuple[int, FrameType | None] | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        self._pressed = number, frame

    def deliver(self) -> None:
        """Hand the handler what it would have had."""
        pressed, self._pressed = self._pressed, None
        if pressed is not None:
            self._handler(*pressed)


_deferred: _Deferred | None = None


@contextlib.contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C leave this block as KeyboardInterrupt, whatever the code in it made of the exception.

    Inside PyTorch's own compiler it comes out as a RuntimeError; inside a destructor it is dropped. Yields a function
    to call at safe points, which raises an interrupt that was dropped.
    """
    handler = _replaceable_handler()
    if handler is None:
        yield lambda: None
        return
    pressed = False

    def note(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, handler)
