"""Checkpoints that are either whole or not there."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from l2t_fast.errors import L2TFastError


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values so that a reader sees the old file or the new one, whatever happens meanwhile.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and replace `path` by a rename, which
    POSIX makes atomic; then the folder itself is flushed, so that the rename survives a power cut too.

    Raises:
        L2TFastError: the disk is full or cannot be written; what stood at `path` before is untouched.
    """
    buffer = io.BytesIO()
    torch.save(
        state, buffer
    )  # in memory first: given a path, PyTorch reports a full disk as "unexpected pos 704 vs 598"
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "; the one before it is intact" if path.exists() else ""
        raise L2TFastError(f"the checkpoint {path} could not be written: {error.strerror or error}{kept}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, to the CPU, without running any code from the file.

    Raises:
        L2TFastError: the file is missing, cut short, or no such checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise L2TFastError(f"there is no checkpoint {path}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise L2TFastError(
            f"{path} is not a whole checkpoint of l2t-fast: it is cut short or of another kind"
        ) from error
