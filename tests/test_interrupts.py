"""Ctrl-C leaves a block as KeyboardInterrupt, whatever the code in it made of it."""

import contextlib
import os
import signal
import sys
import threading

import pytest

from l2t_fast.interrupts import (
    deferred_interrupts,
    end_at_once,
    kept_interrupts,
    let_interrupt,
    raise_again,
    starts_command,
)


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_that_became_another_error_is_an_interrupt_again():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), kept_interrupts():
        try:
            press()
        except KeyboardInterrupt:
            raise RuntimeError("raised inside a compiler") from None
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_was_dropped_is_raised_by_the_check():
    with pytest.raises(KeyboardInterrupt), kept_interrupts() as check:
        check()
        with contextlib.suppress(KeyboardInterrupt):
            press()
        check()


def test_a_deferred_interrupt_comes_where_it_may():
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        let_interrupt()
        press()
        reached.append("the next line")
        with deferred_interrupts():  # which leaves it to the outer one
            pass
        reached.append("the end of an inner block")
        let_interrupt()
        reached.append("too far")
    assert reached == ["the next line", "the end of an inner block"]
    assert signal.getsignal(signal.SIGINT) is before
    let_interrupt()


def test_a_deferred_interrupt_comes_at_the_end_at_last():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        with deferred_interrupts():
            press()
            reached.append("the next line")
        reached.append("too far")
    assert reached == ["the next line"]


def test_a_handler_that_returns_is_called_once():
    calls = []
    before = signal.signal(signal.SIGINT, lambda *arguments: calls.append(arguments))
    try:
        with deferred_interrupts():
            press()
            assert not calls
            let_interrupt()
            let_interrupt()
        assert len(calls) == 1 and calls[0][0] == signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="unrelated"), kept_interrupts():
        raise RuntimeError("unrelated")


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with kept_interrupts() as check:
            press()
            check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_sets_no_handler():
    seen = []

    def work():
        with kept_interrupts() as check:
            check()
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    ("argv", "orig_argv", "starts"),
    [
        (["/somewhere/bin/l2t-fast", "env"], ["python3", "/somewhere/bin/l2t-fast", "env"], True),
        (["-m", "env"], ["python3", "-m", "l2t_fast", "env"], True),
        (["-m", "env"], ["python3", "-u", "-ml2t_fast.cli", "env"], True),
        (["-m", "l2t_fast"], ["python3", "-m", "pytest", "tests/l2t_fast"], False),
        (["/lib/pytest/__main__.py", "l2t_fast"], ["python3", "-m", "pytest", "l2t_fast"], False),
        (["mine.py"], ["python3", "mine.py"], False),
        ([""], ["python3"], False),
    ],
)
def test_only_the_command_s_own_process_ends_at_once(monkeypatch, argv, orig_argv, starts):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert starts_command() == starts


def test_what_ended_at_once_raises_again():
    before = signal.getsignal(signal.SIGINT)
    end_at_once()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    raise_again()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda number, frame: None])
def test_a_program_s_own_handler_stays(own):
    before = signal.signal(signal.SIGINT, own)
    try:
        end_at_once()
        raise_again()
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)
