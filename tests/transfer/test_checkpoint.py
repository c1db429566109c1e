import errno
import os
import random
import resource
import signal

import numpy as np
import pytest
import torch

from l2t_fast.errors import L2TFastError
from l2t_fast.transfer.checkpoint import load_checkpoint, save_checkpoint
from l2t_fast.transfer.randomness import random_state, restore_random_state, seed_everything


def test_round_trip_without_running_code(tmp_path):
    state = {
        "weights": torch.arange(6.0).reshape(2, 3),
        "epoch": 3,
        "best": {"accuracy": 0.5},
        "random": random_state(),
    }
    save_checkpoint(state, tmp_path / "last.pt")
    loaded = load_checkpoint(tmp_path / "last.pt")  # weights_only: plain values and tensors are all there is
    assert torch.equal(loaded["weights"], state["weights"])
    assert loaded["epoch"] == 3 and loaded["best"] == {"accuracy": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch, call):
    path = tmp_path / "last.pt"
    save_checkpoint({"epoch": 1}, path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("builtins.open" if call == "open" else f"os.{call}", full)
    with pytest.raises(L2TFastError, match=r"last\.pt could not be written: No space left on device; the one before"):
        save_checkpoint({"epoch": 2}, path)
    monkeypatch.undo()
    assert load_checkpoint(path) == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_a_disk_that_fills_up_while_writing(tmp_path):
    save_checkpoint({"epoch": 1}, tmp_path / "last.pt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # as large as any file may grow
    try:
        with pytest.raises(L2TFastError, match="could not be written: File too large; the one before it is intact"):
            save_checkpoint({"weights": torch.zeros(100_000)}, tmp_path / "last.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(tmp_path / "last.pt") == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_a_link_in_the_folder_leads_to_no_other_file(tmp_path):
    other = tmp_path / "precious"
    other.write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("last.pt", "last.pt.tmp"):
        (tmp_path / "run" / name).symlink_to(other)
    save_checkpoint({"epoch": 1}, tmp_path / "run" / "last.pt")
    assert other.read_text() == "mine"
    assert load_checkpoint(tmp_path / "run" / "last.pt") == {"epoch": 1}
    assert [entry.name for entry in (tmp_path / "run").iterdir() if not entry.is_symlink()] == ["last.pt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_killed_while_writing_leaves_the_one_before(tmp_path, call):
    path = tmp_path / "last.pt"
    save_checkpoint({"epoch": 1}, path)
    child = os.fork()
    if child == 0:
        setattr(os, call, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
        save_checkpoint({"epoch": 2, "weights": torch.zeros(1000)}, path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert load_checkpoint(path) == {"epoch": 1}
    save_checkpoint({"epoch": 3}, path)  # what was left behind is in nobody's way
    assert load_checkpoint(path) == {"epoch": 3}


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "last.pt"
    with pytest.raises(L2TFastError, match="there is no checkpoint"):
        load_checkpoint(path)
    save_checkpoint({"weights": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(L2TFastError, match="cut short or of another kind"):
            load_checkpoint(path)


class Opens:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_file_does_not_run(tmp_path):
    torch.save({"epoch": Opens(tmp_path / "made")}, tmp_path / "last.pt")
    with pytest.raises(L2TFastError, match="of another kind"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "made").exists()


def test_random_generators_continue(tmp_path):
    def draw():
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(3).tolist(),
            np.random.randn(),
            torch.rand(3).tolist(),
        )

    seed_everything(5)
    draw()  # leaves a second Gaussian waiting in Python's and NumPy's generators
    save_checkpoint(random_state(), tmp_path / "random.pt")
    expected = draw()
    seed_everything(6)
    restore_random_state(load_checkpoint(tmp_path / "random.pt"))
    assert draw() == expected


def test_a_seed_sets_every_generator():
    seed_everything(2**40 + 3)
    first = random.random(), np.random.rand(), torch.rand(()).item()
    seed_everything(2**40 + 3)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == first
