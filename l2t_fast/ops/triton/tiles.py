"""Tile shapes: a fixed table by precision, kernel, derivative and number of target channels.

With Triton 3.8 all compile without spills and within the chip's shared memory, however maps lie (``python -m
benchmarks.triton_resources``); that, and a model of where warps wait (``python -m benchmarks.gpu_waiting``), is how
they were chosen. No other tile was timed on a GPU. What a user's GPU timed (:mod:`l2t_fast.ops.triton.tuning`) comes
before the table.

Tiles with one stage read straight into registers. With more, Triton copies what it cannot read in vectors (weights, odd
maps, operands that are split for tf32x3) to shared memory element by element, and 16 threads meet in a bank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Tile(NamedTuple):
    """What one program makes, and how it is compiled."""

    rows: int
    columns: int
    channels: int  # 0: of the sum alone, as where E is made
    step: int  # of the sum
    warps: int
    stages: int


class Class(NamedTuple):
    """Target maps that one tile is chosen for. The batch is no part of it: another one compiles nothing anew."""

    kernel: str  # differences or gradients
    second: bool
    channels: int  # a power of two, 16 or more: no map of the class has more
    pixels: int  # a power of four: no map of the class has more

    @classmethod
    def of(cls, kernel: str, second: bool, channels: int, pixels: int) -> "Class":
        return cls(
            kernel, second, max(16, 1 << (channels - 1).bit_length()), 1 << -(-(pixels - 1).bit_length() // 2) * 2
        )


@dataclass(frozen=True)
class TileTable:
    """(kernel, second derivative) -> tiles by rising number of channels; the last one serves all above, too.

    ``timed`` holds the tiles of single classes, which come first.
    """

    tiles: dict[tuple[str, bool], tuple[Tile, ...]]
    timed: Mapping[Class, Tile] = field(default_factory=dict)

    def choose(self, kernel: str, second: bool, channels: int, pixels: int) -> Tile:
        return self.timed.get(Class.of(kernel, second, channels, pixels)) or self.fixed(kernel, second, channels)

    def fixed(self, kernel: str, second: bool, channels: int) -> Tile:
        tiles = self.tiles[kernel, second]
        return next((tile for tile in tiles if channels <= tile.channels), tiles[-1])

    def with_timed(self, timed: Mapping[Class, Tile]) -> "TileTable":
        return replace(self, timed=timed)


def _both(differences: Tile, differences_second: Tile, *gradients: Tile) -> TileTable:
    return TileTable(
        {
            ("differences", False): (differences,),
            ("differences", True): (differences_second,),
            ("gradients", False): gradients,
            ("gradients", True): gradients,
        }
    )


# small, so that small problems have several
INTERPRETER = _both(Tile(16, 32, 0, 16, 4, 1), Tile(16, 32, 0, 16, 4, 1), Tile(16, 32, 16, 16, 4, 1))

TABLES = {
    "tf32": _both(
        Tile(64, 64, 0, 32, 4, 3),
        Tile(32, 64, 0, 32, 4, 1),
        Tile(64, 128, 64, 32, 4, 3),
        Tile(64, 128, 128, 32, 8, 3),
    ),
    # three products of tf32 for one of float32: operands take twice the registers
    "tf32x3": _both(
        Tile(64, 64, 0, 32, 4, 1),
        Tile(32, 64, 0, 16, 4, 1),
        Tile(64, 64, 64, 16, 4, 1),
    ),
}

# Of the Gram form, its first and its second derivative: by kernel, for targets of up to 64 and up to 128 channels. A
# program has all of them. Chosen as the tables above were.
GRAM = {
    "gram_planes": (Tile(32, 32, 64, 32, 4, 1), Tile(32, 64, 128, 32, 8, 1)),
    "gram_products": (Tile(32, 0, 64, 32, 4, 1), Tile(32, 0, 128, 32, 8, 1)),
    "gram_projections": (Tile(32, 0, 64, 32, 8, 1), Tile(16, 0, 128, 32, 8, 1)),
    "gram_targets": (Tile(0, 64, 64, 32, 8, 1), Tile(0, 32, 128, 16, 8, 1)),
}
GRAM_SECOND = GRAM | {
    "gram_projections": (Tile(16, 0, 64, 16, 4, 1), Tile(16, 0, 128, 16, 8, 1)),
}
GRAM_INTERPRETER = dict.fromkeys(GRAM, (Tile(16, 32, 16, 16, 4, 1), Tile(16, 32, 128, 16, 4, 1)))
