"""What all tests share."""

import signal
import sys

import pytest

# A shell that starts a command in the background has it ignore Ctrl-C, and its children too: the tests of
# interruptions send that signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def registries(monkeypatch):
    """What is registered or imported in the test is forgotten after it."""
    from l2t_fast.data import datasets
    from l2t_fast.models import registry
    from l2t_fast.transfer import METHODS

    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = (METHODS, registry._OWN, datasets.IN_FOLDERS, datasets.IN_PACKAGES)
    before = [dict(names) for names in known]
    yield
    for names, earlier in zip(known, before, strict=True):
        names.clear()
        names.update(earlier)
    for name in set(sys.modules) - modules:
        if name.startswith("l2t_own") or name in ("pairwise", "small", "table", "two_convolutions"):
            del sys.modules[name]
