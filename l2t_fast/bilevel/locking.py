"""One thread at a time in a module: a pass gives it other parameters, which another thread would find there."""

import contextlib
import threading
import weakref
from collections.abc import Iterator

from torch import nn

_locks: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
_adding = threading.Lock()


@contextlib.contextmanager
def alone_in(*modules: nn.Module) -> Iterator[None]:
    """Wait until no other thread is in here with one of these modules. The same thread may come in again."""
    with _adding:
        locks = {id(module): _locks.setdefault(module, threading.RLock()) for module in modules}
    with contextlib.ExitStack() as held:
        for _, lock in sorted(locks.items()):  # all threads in one order, so that none waits for another in a circle
            held.enter_context(lock)
        yield
