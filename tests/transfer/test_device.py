"""Devices and backends that a run may ask for."""

import pytest
import torch

from l2t_fast.errors import L2TFastError
from l2t_fast.transfer.device import check_backend, choose_device


def test_backends(monkeypatch):
    check_backend("auto")
    check_backend("reference")
    missing = {"triton": "it has no kernels"}
    monkeypatch.setattr("l2t_fast.transfer.device.why_unavailable", missing.get)
    with pytest.raises(L2TFastError, match="backend 'triton' cannot run: it has no kernels"):
        check_backend("triton")
    monkeypatch.setenv("L2T_FAST_BACKEND", "")
    check_backend("auto")
    monkeypatch.setenv("L2T_FAST_BACKEND", "fastest")
    check_backend("reference")
    with pytest.raises(L2TFastError, match="L2T_FAST_BACKEND is 'fastest', it must be one of auto, "):
        check_backend("auto")


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
