"""Devices and backends that a run may ask for."""

import pytest
import torch

from l2t_fast.errors import L2TFastError
from l2t_fast.transfer.device import check_backend, choose_device

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


def test_backends(monkeypatch):
    check_backend("auto", CPU)
    check_backend("reference", CPU)
    missing = {("triton", GPU): "it has no kernels"}
    monkeypatch.setattr("l2t_fast.transfer.device.why_unavailable", lambda *asked: missing.get(asked))
    with pytest.raises(L2TFastError, match="backend 'triton' cannot run: it has no kernels"):
        check_backend("triton", GPU)
    monkeypatch.setenv("L2T_FAST_BACKEND", "")
    check_backend("auto", CPU)
    monkeypatch.setenv("L2T_FAST_BACKEND", "fastest")
    check_backend("reference", CPU)
    with pytest.raises(L2TFastError, match="L2T_FAST_BACKEND is 'fastest', it must be one of auto, "):
        check_backend("auto", CPU)


@pytest.mark.parametrize(("backend", "fits", "other"), [("cpu", CPU, GPU), ("cuda", GPU, CPU), ("triton", GPU, CPU)])
def test_backends_for_another_device_than_the_run_s(monkeypatch, backend, fits, other):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("l2t_fast.transfer.device.why_unavailable", lambda *_: None)
    check_backend(backend, fits)
    check_backend("reference", other)
    with pytest.raises(L2TFastError, match=f"backend '{backend}' cannot run: it takes .* but the run is on {other}"):
        check_backend(backend, other)
    monkeypatch.setenv("L2T_FAST_BACKEND", backend)
    with pytest.raises(L2TFastError, match=f"backend '{backend}' cannot run"):
        check_backend("auto", other)


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:97", "gpu"):
        with pytest.raises(L2TFastError, match=f"device '{name}' cannot be used here"):
            choose_device(name)
    with pytest.raises(L2TFastError, match=r"^device 'mps' cannot be used here \(.{9,200}\), try auto or cpu$"):
        choose_device("mps")


def test_a_gpu_that_is_named_becomes_the_current_one(monkeypatch):
    """Streams, events and pinned memory are the current one's, whatever a run's tensors are on."""
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "empty", lambda size, device: torch.zeros(size))  # there may be no such GPU here
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")]
    choose_device("cpu")
    assert len(current) == 1
