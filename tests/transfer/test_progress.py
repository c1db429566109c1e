"""Bars where they can be drawn anew, and plain lines elsewhere."""

import sys

import pytest

from l2t_fast.transfer.progress import TrainingProgress

ROW = {
    "epoch": 1,
    "lr": 0.1,
    "train_loss": 1.0,
    "train_accuracy": 0.5,
    "validation_accuracy": 0.25,
    "seconds": 2.0,
}


def show():
    with TrainingProgress() as progress:
        progress.start("scratch seed 0", 2)
        progress.batch(1, 4)
        progress.epoch(ROW, 2, {"validation_accuracy": 0.25, "epoch": 1})
        progress.finish()


def test_a_file_gets_lines_whatever_asks_for_colours(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    show()
    printed = capsys.readouterr().out
    assert printed.startswith("epoch 1/2  lr 0.1") and "\x1b" not in printed and len(printed.splitlines()) == 1


@pytest.mark.parametrize("notebook", [False, True])
def test_a_terminal_gets_bars_but_not_that_of_a_notebook(monkeypatch, capsys, notebook):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    if notebook:
        monkeypatch.setenv("JPY_PARENT_PID", "1")
    show()
    assert ("\x1b" in capsys.readouterr().out) is not notebook


class OnlyWrites:
    """As programs put in the place of standard output, to have it in a file too."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_standard_output_without_isatty_gets_lines(monkeypatch):
    output = OnlyWrites()
    monkeypatch.setattr(sys, "stdout", output)
    show()
    assert output.text.startswith("epoch 1/2  lr 0.1")


def test_a_closed_standard_output_ends_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as `l2t-fast train >&-` has it
    show()


def test_a_notebook_gets_text(monkeypatch, capsys):
    """rich would show each line as a piece of HTML, which is no output that anybody can redirect."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    show()
    assert capsys.readouterr().out.startswith("epoch 1/2")
