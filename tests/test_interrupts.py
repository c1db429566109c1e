"""Ctrl-C leaves a block as KeyboardInterrupt, whatever the code in it made of it."""

import contextlib
import os
import signal
import threading

import pytest

from l2t_fast.interrupts import kept_interrupts


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
