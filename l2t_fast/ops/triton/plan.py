"""What a plan is made of: target layers, their parts that are in memory at one time, launches."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from l2t_fast.ops.triton.tiles import Tile


@dataclass
class Layer:
    """One target map and its pairs, as planning needs them; places are in bytes of the workspace."""

    target: int
    channels: int
    pixels: int
    pairs: list[int]
    rows: int
    differences: Tile
    gradients: Tile
    wants_map: bool  # dT
    wants_weights: bool  # dW
    vector: int  # so many elements of its maps are read at once
    part_samples: int = 0
    splits: int = 0
    words: dict[Any, int] = field(default_factory=dict)  # of its record, beyond those of its maps
    places: dict[Any, int] = field(default_factory=dict)  # words that are places

    @property
    def keeps(self) -> bool:
        """Whether E is kept."""
        return self.wants_map or self.wants_weights


@dataclass
class Part:
    """Some samples of a target, whose E is in memory at one time."""

    layer: Layer
    number: int
    first: int
    samples: int
    record: int = 0  # number of its record
    at: int = 0  # where its E begins, among those of its phase

    @property
    def columns(self) -> int:
        return self.samples * self.layer.pixels


@dataclass
class Launch:
    """A program an item; ``constants`` are the kernel's compile-time arguments, in its order."""

    kernel: Any
    warps: int
    stages: int
    constants: dict[str, Any]
    items: Tensor
    again: Callable[..., None] | None = None  # the same with a table's address, once it has been compiled


@dataclass
class Plan:
    """Everything about a call but its addresses."""

    template: np.ndarray  # the table; addresses are 0, and places of the workspace are counted from its beginning
    address_words: np.ndarray  # where addresses go, in the order of launching._addresses
    place_words: np.ndarray  # which words are places
    zeroed: list[int]  # slots whose result no kernel writes, or not all of it
    launches: list[Launch]
    workspace: int  # bytes
    is_of_mixtures: bool = False  # whether it is for tensors that were widened first, to have one dtype
    streams: set[int] = field(default_factory=set)  # that have launched it
