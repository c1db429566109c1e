"""Ctrl-C, also where PyTorch swallows it or turns it into another error."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class OutputClosed(KeyboardInterrupt):
    """Nobody reads what is printed any more, as in ``l2t-fast train | head -1``. It is no run's failure."""

    def __init__(self) -> None:
        super().__init__("interrupted, since nobody reads the output any more")


@contextlib.contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C leave this block as KeyboardInterrupt, whatever the code in it made of the exception.

    Inside PyTorch's own compiler it comes out as a RuntimeError; inside a destructor it is dropped. Yields a function
    to call at safe points, which raises an interrupt that was dropped.
    """
    handler = signal.getsignal(signal.SIGINT)
    # Only the main thread may set a handler, and a program that was told to ignore Ctrl-C goes on ignoring it.
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
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
