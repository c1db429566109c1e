"""Tile shapes: a fixed table by kernel, number of target channels, element size and GPU.

Every entry compiles without spills, without local memory and within the chip's shared memory for sm_80 and sm_90, which
tests/ops/triton checks. None was timed on a GPU yet ("not run"): they are chosen by counting, see README.md.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class TileTable:
    """(kernel, second derivative) -> tiles by rising number of channels; the last one serves all above, too."""

    tiles: dict[tuple[str, bool], tuple[Tile, ...]]

    def choose(self, kernel: str, second: bool, channels: int) -> Tile:
        tiles = self.tiles[kernel, second]
        return next(tile for tile in tiles if channels <= tile.channels or not tile.hold)


_FEW = (Tile(16, 32, 16, 4, 1), Tile(16, 32, 32, 4, 1, step=16))  # small, so that small problems have several
INTERPRETER = TileTable({(kernel, second): _FEW for kernel in ("target", "projection") for second in (False, True)})

_SM90 = TileTable(
    {
        ("target", False): (
            Tile(32, 128, 64, 8, 2),
            Tile(64, 32, 128, 8, 2),
            Tile(64, 32, 256, 8, 2),
            Tile(32, 16, 512, 8, 1),
        ),
        ("target", True): (Tile(32, 32, 64, 4, 2), Tile(32, 32, 128, 8, 2), Tile(16, 32, 256, 8, 2)),
        ("projection", False): (
            Tile(32, 128, 64, 8, 2),
            Tile(32, 64, 128, 8, 2),
            Tile(32, 64, 256, 8, 2),
            Tile(16, 32, 512, 8, 1),
        ),
        ("projection", True): (Tile(32, 64, 64, 8, 2), Tile(16, 16, 128, 4, 2)),
    }
)
_SM80 = TileTable(
    {
        ("target", False): (
            Tile(32, 128, 64, 8, 2),
            Tile(32, 64, 128, 8, 2),
            Tile(64, 32, 256, 8, 1),
            Tile(32, 16, 512, 8, 1),
        ),
        ("target", True): (Tile(32, 32, 64, 4, 2), Tile(32, 64, 128, 8, 2), Tile(32, 32, 256, 8, 1)),
        ("projection", False): (
            Tile(32, 64, 64, 8, 2),
            Tile(64, 32, 128, 8, 2),
            Tile(32, 32, 256, 8, 2),
            Tile(16, 32, 512, 8, 1),
        ),
        ("projection", True): (Tile(16, 32, 64, 4, 2), Tile(16, 16, 128, 4, 2)),
    }
)


def tile_table(capability: tuple[int, int]) -> TileTable:
    """The table for a GPU of this compute capability: Hopper's for 9.x, else the one of sm_80."""
    return _SM90 if capability[0] == 9 else _SM80
