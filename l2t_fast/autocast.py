"""Autocast switched off, on devices that have none too."""

import contextlib

import torch


def autocast_off(device_type: str) -> contextlib.AbstractContextManager:
    """While active, operators on devices of a kind keep the precision of their inputs."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
