"""Seeding, and the state of every random generator that training draws from."""

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators (Mersenne Twister; Philox on a GPU) with one number.

    Initial weights and dropout draw from them. The order of the images and their augmentation do not: they are
    functions of (seed, epoch), see `l2t_fast.data`.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rank_seed(seed: int, epoch: int, rank: int) -> int:
    """The seed of one rank in one epoch, where several train together: a number below 2^31 of its own for each."""
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0]) >> 1


def random_state() -> dict[str, Any]:
    """The generators' states as tensors and plain numbers, so that a ``weights_only`` load takes them."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    return {
        "python": {"version": version, "internal": torch.tensor(internal, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached_gaussian),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue where `random_state` was taken. GPU states are skipped if the number of GPUs is another one."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    np.random.set_state(
        (
            numpy["name"],
            numpy["keys"].numpy().astype(np.uint32),
            numpy["position"],
            numpy["has_gauss"],
            numpy["cached_gaussian"],
        )
    )
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
