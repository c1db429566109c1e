"""Tiles timed on the GPU at hand, where L2T_FAST_TUNE=1 asks for it, and kept on the disk.

The first call with maps of a class that nobody has timed here tries other tiles than the table's, one change at a time
for as long as the whole call gets faster. What it finds serves every later call and process with L2T_FAST_TUNE=1 on a
GPU of that name, with that version of Triton and of the kernels. Other tiles add numbers up in another order: results
differ in rounding from those of the table, and are the same bits from run to run as long as the file stays.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Lock

import triton
from triton.errors import TritonError

from l2t_fast.files import write_text
from l2t_fast.ops.triton import kernels
from l2t_fast.ops.triton.tiles import Class, Tile, TileTable

ENVIRONMENT_VARIABLE = "L2T_FAST_TUNE"

#: A tile must be faster by so much to be taken, or noise would decide.
GAIN = 0.02

_log = logging.getLogger(__name__)
_LOCK = Lock()
#: Of this process, by file and setting: what it has taken once it keeps, whatever another process writes.
_TIMED: dict[tuple[Path, str], dict[Class, Tile]] = {}


def wanted() -> bool:
    """Whether the user asked for it."""
    return os.environ.get(ENVIRONMENT_VARIABLE) == "1"


def tuned(table: TileTable, setting: str, classes: Iterable[Class], seconds: Callable[[TileTable], float]) -> TileTable:
    """The table with a timed tile for each of the classes, found in the file or by trying.

    Args:
        table: the fixed one.
        setting: what else decides which tile is the fastest: GPU, dtypes, layout.
        classes: the classes that a call has.
        seconds: how long that call takes with a table; math.inf where the table does not compile.
    """
    with _LOCK:  # two that time at once would time each other
        file = TileFile(setting)
        timed = _TIMED.setdefault((file.path, setting), {})
        timed.update({which: tile for which, tile in file.read().items() if which not in timed})
        missing = sorted(set(classes) - timed.keys())
        if missing:
            notice = "%s=1: trying tiles on this GPU, once, for %d kind(s) of maps; %s keeps them"
            _log.warning(notice, ENVIRONMENT_VARIABLE, len(missing), file.path)
        for which in missing:
            found = _fastest(table.with_timed(timed), which, seconds)
            if found is not None:
                timed[which] = found
                file.add(which, found)
        return table.with_timed(dict(timed))


def _fastest(table: TileTable, which: Class, seconds: Callable[[TileTable], float]) -> Tile | None:
    """The fastest tile of those tried; None if not even the table's own compiles."""
    known: dict[Tile, float] = {}

    def time(tile: Tile) -> float:
        if tile not in known:
            known[tile] = seconds(table.with_timed({**table.timed, which: tile}))
        return known[tile]

    best = min(_first(table, which), key=time)
    if math.isinf(time(best)):
        return None
    slower = None
    while best != slower:  # until a round of changes finds nothing
        slower = best
        for change in _CHANGES:
            while _allowed(other := change(best)) and time(other) < (1 - GAIN) * time(best):
                best = other
    _log.warning("%s: %s of %d tiles, %.4g ms a call", which, best, len(known), 1e3 * known[best])
    return best


def _first(table: TileTable, which: Class) -> list[Tile]:
    """The table's own tiles, with no more channels than the class has."""
    tiles = dict.fromkeys((table.fixed(which.kernel, which.second, which.channels), *table.tiles[which[:2]]))
    return list(dict.fromkeys(tile._replace(channels=min(tile.channels, which.channels)) for tile in tiles))


# The step of a sum is at most planning.LONGEST_STEP, columns at most planning.WIDEST_TILE: what they are padded to.
_LIMITS = {
    "rows": (16, 128),
    "columns": (16, 128),
    "channels": (16, 256),
    "step": (16, 64),
    "warps": (2, 16),
    "stages": (1, 5),
}


def _changed(**factors: float) -> Callable[[Tile], Tile]:
    return lambda tile: tile._replace(**{name: int(getattr(tile, name) * factor) for name, factor in factors.items()})


#: Twice or half of one number, and one for another: both at once may be more than a chip holds.
_CHANGES = [_changed(**{name: factor}) for name in _LIMITS if name != "stages" for factor in (2, 0.5)]
_CHANGES += [lambda tile, more=more: tile._replace(stages=tile.stages + more) for more in (1, -1)]
_CHANGES += [_changed(rows=2, columns=0.5), _changed(rows=0.5, columns=2)]


# Where E is made, channels are summed over alone.
_LIMITS_OF_DIFFERENCES = _LIMITS | {"channels": (0, 0)}

#: Sums that a thread holds in registers, of which there are 255. What has more spills, and takes seconds to compile.
_MOST_SUMS = 128


def _allowed(tile: Tile) -> bool:
    """Whether numbers are within their limits."""
    limits = _LIMITS if tile.channels else _LIMITS_OF_DIFFERENCES
    sums = max(tile.rows, tile.columns) * tile.channels if tile.channels else tile.rows * tile.columns
    fits = sums <= _MOST_SUMS * 32 * tile.warps
    return fits and all(low <= getattr(tile, name) <= high for name, (low, high) in limits.items())


def _sensible(which: Class, tile: Tile) -> bool:
    """Whether the kernels can run with a tile: a file may hold anything."""
    sizes = tile.rows, tile.columns, tile.channels or 1, tile.step, tile.warps
    if not all(isinstance(n, int) and n > 0 and n & (n - 1) == 0 for n in sizes) or not isinstance(tile.stages, int):
        return False
    return _allowed(tile) and (tile.channels > 0) == (which.kernel == "gradients")


class TileFile:
    """Timed tiles on the disk: ``l2t_fast/triton_tiles.json`` in $XDG_CACHE_HOME, or in ``~/.cache``."""

    def __init__(self, setting: str) -> None:
        self.path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "l2t_fast" / "triton_tiles.json"
        source = hashlib.sha256(Path(kernels.__file__).read_bytes()).hexdigest()[:12]
        self._key = f"{setting}, Triton {triton.__version__}, kernels {source}"

    def read(self) -> dict[Class, Tile]:
        """The tiles of this setting; what is damaged counts as not there."""
        found = {}
        for name, numbers in _entries(self._all().get(self._key)):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                kernel, derivative, channels, pixels = name.split()
                which = Class(kernel, {"1": False, "2": True}[derivative], int(channels), int(pixels))
                tile = Tile(*numbers)
                if _sensible(which, tile):
                    found[which] = tile
        return found

    def add(self, which: Class, tile: Tile) -> None:
        """Add a tile to what the file holds by now. Where it cannot be written, it says so and goes on."""
        content = self._all()
        mine = dict(_entries(content.get(self._key)))
        mine[f"{which.kernel} {2 if which.second else 1} {which.channels} {which.pixels}"] = list(tile)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(json.dumps({**content, self._key: mine}, indent=1) + "\n", self.path)
        except OSError as error:
            _log.warning("%s cannot be written (%s): the tiles serve this process alone", self.path, error.strerror)

    def _all(self) -> dict[str, object]:
        try:
            content = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}


def _entries(content: object) -> Iterator[tuple[str, list[int]]]:
    if isinstance(content, dict):
        yield from ((name, numbers) for name, numbers in content.items() if isinstance(numbers, list))


def seconds_of(run: Callable[[], object]) -> float:
    """Median seconds of a call on the GPU, from a cold L2 cache; math.inf where a kernel of it cannot run there."""
    try:
        return triton.testing.do_bench(run, warmup=10, rep=40, return_mode="median") / 1e3
    except TritonError:
        return math.inf
    except RuntimeError as error:
        # How Triton's compiler gives up on a tile, and how a GPU does that has no memory for what a tile spills.
        if "PassManager" not in str(error) and "out of memory" not in str(error):
            raise
        return math.inf
