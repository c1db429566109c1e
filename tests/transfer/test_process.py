"""A run leaves the process that it is in as it was, and takes no part in what others do there."""

import threading

import numpy as np
import pytest
import torch

from l2t_fast.transfer import run
from l2t_fast.transfer.process import own_process


def settings():
    return (
        torch.get_num_threads(),
        torch.backends.cudnn.deterministic,
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


def test_generators_and_settings_are_as_before(make_config, quiet):
    torch.manual_seed(5)
    np.random.seed(5)
    wanted = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    before = settings()
    run(make_config(method="scratch", epochs=1, threads=before[0] + 1), progress=quiet)
    assert settings() == before
    assert torch.equal(torch.rand(3), wanted[0]) and np.array_equal(np.random.rand(3), wanted[1])


@pytest.mark.parametrize("mode", [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)])
def test_modes_that_it_is_called_in_do_not_matter(make_config, quiet, tmp_path, mode):
    result = run(make_config(epochs=1), progress=quiet)
    with mode:
        before = settings()
        again = run(make_config(epochs=1, out=str(tmp_path / "again")), progress=quiet)
        assert settings() == before
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_nor_does_the_default_type(make_config, quiet, tmp_path):
    result = run(make_config(epochs=1), progress=quiet)
    torch.set_default_dtype(torch.float64)
    try:
        again = run(make_config(epochs=1, out=str(tmp_path / "again")), progress=quiet)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_threads_wait_for_each_other():
    inside, may_leave, order = threading.Event(), threading.Event(), []

    def first():
        with own_process(), own_process():  # a comparison's run
            inside.set()
            may_leave.wait(10)
            order.append("first")

    def second():
        with own_process():
            order.append("second")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert inside.wait(10)
    threads.append(threading.Thread(target=second))
    threads[1].start()
    may_leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second"]
