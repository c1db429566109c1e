"""Tile shapes: a fixed table by kernel, derivative, number of target channels and GPU.

Every entry compiles without spills, without local memory and within the chip's shared memory, however maps may lie
(``python -m benchmarks.triton_resources``); that, and counting, is how they were chosen. No tile was timed: the kernels
were not run on a GPU. What was timed on a user's GPU (:mod:`l2t_fast.ops.triton.tuning`) comes before the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Tile(NamedTuple):
    """What one program holds, and how it is compiled."""

    rows: int
    pixels: int
    channels: int
    warps: int
    stages: int
    step: int = 0  # channels at a time where nothing is held; 0: all are held, which takes maps of at most `channels`

    @property
    def hold(self) -> bool:
        return self.step == 0


class Class(NamedTuple):
    """Target maps that one tile is chosen for. The batch is no part of it: another one compiles nothing anew."""

    kernel: str
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
        timed = self.timed.get(Class.of(kernel, second, channels, pixels))
        if timed is not None:
            return timed
        tiles = self.tiles[kernel, second]
        return next((tile for tile in tiles if channels <= tile.channels), tiles[-1])

    def with_timed(self, timed: Mapping[Class, Tile]) -> "TileTable":
        return replace(self, timed=timed)


_FEW = (Tile(16, 32, 16, 4, 1), Tile(16, 32, 32, 4, 1, step=16))  # small, so that small problems have several
INTERPRETER = TileTable({(kernel, second): _FEW for kernel in ("target", "projection") for second in (False, True)})

TABLES = {
    90: TileTable(
        {
            ("target", False): (
                Tile(32, 64, 64, 8, 2),
                Tile(64, 32, 128, 8, 2),
                Tile(32, 32, 256, 8, 1),
                Tile(32, 16, 512, 8, 1),
                Tile(32, 32, 128, 8, 3, step=32),
            ),
            ("target", True): (
                Tile(32, 32, 64, 4, 2),
                Tile(32, 32, 128, 8, 2),
                Tile(16, 16, 256, 8, 2),
                Tile(16, 32, 128, 8, 2, step=16),
            ),
            ("projection", False): (
                Tile(64, 64, 64, 8, 2),
                Tile(32, 64, 128, 8, 2),
                Tile(32, 64, 256, 8, 2),
                Tile(16, 32, 512, 8, 1),
                Tile(32, 32, 256, 8, 3, step=32),
            ),
            ("projection", True): (
                Tile(32, 32, 64, 8, 2, step=16),
                Tile(32, 32, 128, 8, 2, step=16),
                Tile(16, 32, 256, 8, 2, step=32),
            ),
        }
    ),
    80: TileTable(
        {
            ("target", False): (
                Tile(32, 64, 64, 8, 2),
                Tile(32, 32, 128, 8, 2),
                Tile(32, 32, 256, 8, 1),
                Tile(32, 16, 512, 8, 1),
                Tile(32, 32, 128, 8, 3, step=32),
            ),
            ("target", True): (
                Tile(32, 32, 64, 4, 2),
                Tile(32, 32, 128, 8, 2),
                Tile(16, 32, 128, 8, 2, step=16),
            ),
            ("projection", False): (
                Tile(32, 64, 64, 8, 2),
                Tile(64, 32, 128, 8, 2),
                Tile(32, 32, 256, 8, 2),
                Tile(16, 32, 512, 8, 1),
                Tile(32, 32, 256, 8, 3, step=32),
            ),
            ("projection", True): (
                Tile(32, 32, 64, 8, 3, step=32),
                Tile(32, 32, 128, 8, 3, step=32),
                Tile(32, 32, 256, 8, 3, step=32),
            ),
        }
    ),
}


# Where float32 is computed as three products of tf32, operands take twice the registers: nothing is held.
IEEE = TileTable(
    {
        ("target", False): (Tile(32, 32, 128, 8, 3, step=32),),
        ("target", True): (Tile(16, 32, 128, 8, 2, step=16),),
        ("projection", False): (Tile(32, 32, 128, 8, 3, step=32),),
        ("projection", True): (Tile(16, 32, 64, 8, 2, step=16),),
    }
)


def tile_table(capability: tuple[int, int], precision: str) -> TileTable:
    """The table for a GPU of this compute capability: Hopper's for 9.x, else the one of sm_80."""
    if precision == "tf32x3":
        return IEEE
    return TABLES[90 if capability[0] == 9 else 80]
