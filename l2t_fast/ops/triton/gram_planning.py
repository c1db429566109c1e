"""The Gram form of a call: which targets take it, and the launches that cover them all.

Where tf32 is allowed, of targets all of whose sources have their size at most and their type; maps in NCHW whose rows
stand in line.
"""

from __future__ import annotations

import math
import weakref
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from torch import Tensor

from l2t_fast.ops.triton import gram_kernels as kernels
from l2t_fast.ops.triton import records
from l2t_fast.ops.triton.plan import Launch, Layer
from l2t_fast.ops.triton.tiles import GRAM, GRAM_INTERPRETER, GRAM_SECOND, Tile

if TYPE_CHECKING:
    from l2t_fast.ops.triton.planning import Planner

# Arithmetic that moving a byte between kernels is worth, and a processor's in the time of a launch; of an H100.
OPERATIONS_OF_BYTE = 30
OPERATIONS_OF_LAUNCH = 4e6
LAUNCHES = 4
# Of a map, so that 32 bits hold what the taps of its resize are computed from.
MOST_SIDE = 1024

Tiles = dict[str, Tile]  # of each kernel


class Moves(NamedTuple):
    """What of a target moves, in a Hessian-vector product."""

    maps: bool
    weights: bool
    coefficients: bool

    @property
    def factors(self) -> bool:
        """Whether W^T 2 alpha S and W^T 2 alpha W do."""
        return self.weights or self.coefficients

    @staticmethod
    def of(planner: Planner, layer: Layer) -> Moves:
        weights = any(planner.v_weights[p] is not None for p in layer.pairs)
        return Moves(planner.v_targets[layer.target] is not None, weights, planner.v_alpha is not None)


class Group(NamedTuple):
    """Pairs of a target with smaller sources of one size."""

    height: int
    width: int
    pairs: list[int]
    places: dict[Any, int]  # words of its record that are places

    @property
    def pixels(self) -> int:
        return self.height * self.width


def most_channels(second: bool, maps: torch.dtype, weights: torch.dtype) -> int:
    """Of a target: with more a kernel would spill registers, that of projections or, of float16's maps, that of dT."""
    spills = maps == torch.float16 or (second and weights.itemsize < 4)
    return GRAM["gram_projections"][0 if spills else -1].channels


def can_serve(planner: Planner, layer: Layer) -> bool:
    """Whether the Gram form computes what the direct form would, as exactly."""
    a = planner.arguments
    target = a.targets[layer.target]
    sources = [a.sources[a.pairs[2 * p]] for p in layer.pairs]
    moved, result = planner.v_targets[layer.target], planner.results[layer.target]
    maps = [target, *sources, *([] if moved is None else [moved])]
    return (
        planner.precision == "tf32"
        and layer.rows > 0
        and max(target.shape[2:]) <= MOST_SIDE
        and planner.reach_of_parameters(layer) < 2**31
        and 0 < layer.channels <= most_channels(planner.second, target.dtype, a.weights[layer.pairs[0]].dtype)
        and all(t.dtype == target.dtype and _in_line(t) for t in maps)
        and (result is None or _in_line(result))
        and all(s.shape[2] <= target.shape[2] and s.shape[3] <= target.shape[3] for s in sources)
    )


def _in_line(tensor: Tensor) -> bool:
    _, channels, height, width = tensor.shape
    in_line = tensor.stride(3) == 1 and (height == 1 or tensor.stride(2) == width)
    reach = (channels - 1) * tensor.stride(1) + height * width
    return in_line and reach < 2**31


def pays(planner: Planner, layer: Layer) -> bool:
    """Whether it takes clearly less: operations and bytes of both are counted, as csrc/cuda/gram_cost.cpp does.

    Memory is bounded by the features: the more of it is kept between the kernels, against the maps that are read, the
    larger a share of the direct form has to be saved.
    """
    a = planner.arguments
    target = a.targets[layer.target]
    channels, pixels, rows = layer.channels, layer.pixels, layer.rows
    tiles = (GRAM_SECOND if planner.second else GRAM)["gram_products"]
    tile = next(tile for tile in tiles if channels <= tile.channels)
    own_rows = small = floats = 0
    sizes = set()
    for p in layer.pairs:
        _, count, height, width = a.sources[a.pairs[2 * p]].shape
        padded = triton.cdiv(count, tile.rows) * tile.rows
        if (height, width) == tuple(target.shape[2:]):
            own_rows += padded
        else:
            small += padded * height * width
            floats += count * height * width
            sizes.add((height, width))
    maps, weights, groups = layer.wants_map, layer.wants_weights, len(sizes)
    group_pixels = sum(height * width for height, width in sizes)
    moves = Moves.of(planner, layer)
    # products: with maps; W's with those of maps; of factors and of weights with sources for dT
    of_maps, of_projections, of_factors, of_sources = 1, 1, maps, maps
    of_targets = maps  # and of those factors with maps
    of_d, of_e = 1, maps + weights  # of the direct form: D's, and those with E
    passes = 1 + maps + weights if maps or weights else 0  # over E
    if planner.second:
        of_maps = 1 + moves.maps
        # that of D and V has all of its three products, also of what does not move
        of_d, of_e = 3, maps * (1 + moves.weights) + weights * (1 + moves.maps)
        of_projections = 1 + moves.maps + moves.weights
        of_sources = maps * moves.factors
        of_factors = maps * (moves.maps + moves.factors + moves.weights)
        of_targets = maps * (moves.maps + moves.factors)
        passes *= 2
    # Operations are those of tf32, of which products of 16 bits make two in the time of one. In the direct form they
    # are in the types of planner; in the Gram form of three of tf32, or of two maps in their own.
    element, of_difference = target.element_size(), planner.e_type.itemsize
    in_d, in_e = (1 if type_ == torch.float32 else 0.5 for type_ in (planner.dot_type, planner.e_type))
    exact = 3 if element == 4 else 0.5
    direct = 2 * tile.channels * (in_d * of_d + in_e * of_e) + of_difference * OPERATIONS_OF_BYTE * passes
    direct *= rows * pixels
    arithmetic = of_maps * (exact * (tile.channels + own_rows) * pixels + 3 * small) + 3 * of_sources * small
    arithmetic += 3 * (of_projections + of_factors) * channels * rows
    arithmetic += pixels * (of_targets * channels + of_sources * own_rows + 4 * groups * of_sources)
    arithmetic *= 2 * tile.channels
    moved = ((3 + 2 * groups) * of_maps + maps + of_targets) * channels * pixels
    moved += (1 + of_maps + of_sources) * (own_rows * pixels + floats)
    gram = arithmetic + OPERATIONS_OF_BYTE * (element * moved + 4 * (1 + 2 * of_maps) * channels * rows)
    kept = channels * (of_maps * (rows + channels + group_pixels) + of_targets * channels + of_sources * group_pixels)
    read = of_maps * channels * pixels + own_rows * pixels + floats
    is_worth_it = planner.batch * (direct - gram) > LAUNCHES * OPERATIONS_OF_LAUNCH * planner.processors
    saved = 1 - gram / direct
    return is_worth_it and saved > 0.25 and saved > 0.75 * 4 * kept / (element * read)


class GramPlanner:
    """Plans the targets that take the Gram form, within the plan of a call."""

    def __init__(self, planner: Planner, layers: list[Layer]) -> None:
        self.planner = weakref.proxy(planner)  # it holds this one, and maps that are not to wait for the collector
        self.layers = layers
        self.groups: dict[int, list[Group]] = {}  # by target
        for layer in layers:
            layer.pairs.sort(key=lambda p: self._sort_key(layer, p))
            smaller = [p for p in layer.pairs if not self._is_own(layer, p)]
            self.groups[layer.target] = [Group(*size, list(pairs), {}) for size, pairs in groupby(smaller, self._size)]

    def _size(self, p: int) -> tuple[int, int]:
        a = self.planner.arguments
        return tuple(a.sources[a.pairs[2 * p]].shape[2:])

    def _is_own(self, layer: Layer, p: int) -> bool:
        return self._size(p) == tuple(self.planner.arguments.targets[layer.target].shape[2:])

    def _sort_key(self, layer: Layer, p: int) -> tuple:
        return not self._is_own(layer, p), self._size(p), p

    def _class(self, layer: Layer) -> int:
        """Which of a kernel's tiles a target takes, by its channels."""
        return next(i for i, tile in enumerate(self._table["gram_planes"]) if layer.channels <= tile.channels)

    @property
    def _table(self) -> dict[str, tuple[Tile, ...]]:
        if not self.planner.compiles:
            return GRAM_INTERPRETER
        return GRAM_SECOND if self.planner.second else GRAM

    def place(self, layer: Layer) -> None:
        """Where all of it lies that is no map; and the splits of the samples."""
        planner, channels, batch, rows = self.planner, layer.channels, self.planner.batch, layer.rows
        tile = self._table["gram_projections"][self._class(layer)]
        tiles = sum(triton.cdiv(planner.source_channels(p), tile.rows) for p in layer.pairs)
        at_once = planner.processors * 8 // tile.warps  # by their registers
        layer.splits = max(1, min(at_once // tiles, batch))  # of the samples, so that all programs run at once
        layer.words = {
            records.ROWS: rows,
            records.SPLITS: layer.splits,
            records.TILES: layer.splits,  # of the sums of E
            records.PAIRS: len(layer.pairs),
            records.FIRST_PAIR: planner.pair_at(layer.pairs[0]),
        }
        moves = Moves.of(planner, layer)
        takes_sources = layer.wants_map and (moves.factors or not planner.second)
        if takes_sources:
            layer.words[records.OWN_PAIRS] = sum(self._is_own(layer, p) for p in layer.pairs)
            layer.words[records.GROUPS] = len(self.groups[layer.target])
        floats = {
            records.FACTOR_SUMS: layer.splits * rows,
            records.MAP_SUMS: batch * channels,
            records.SOURCE_SUMS: 2 * batch * rows,
            records.PRODUCTS: batch * (channels + rows) * channels,
        }
        if layer.wants_weights:
            floats[records.WEIGHT_SUMS] = layer.splits * rows * channels
        if moves.maps:
            floats |= {records.V_MAP_SUMS: batch * channels, records.V_PRODUCTS: batch * (channels + rows) * channels}
        if layer.wants_map:
            floats[records.CONSTANT] = batch * channels
            factors = (records.FACTOR, moves.maps or not planner.second), (records.V_FACTOR, moves.factors)
            floats |= {factor: batch * channels * channels for factor, takes in factors if takes}
        layer.places = {word: planner.take(4 * count) for word, count in floats.items()}
        for group in self.groups[layer.target]:
            maps = (records.SHRUNK, True), (records.V_SHRUNK, moves.maps), (records.GROWN, takes_sources)
            for word in (word for word, takes in maps if takes):
                group.places[word] = planner.take(4 * batch * group.pixels * channels)

    def records(self, at: int) -> tuple[list[int], dict[int, int], list[int]]:
        """The groups' records, which begin at word ``at``; words of the other records, by place; which are places."""
        words: list[int] = []
        others: dict[int, int] = {}
        places: list[int] = []
        for layer in self.layers:
            others[self.planner.target_at(layer.target) + records.FIRST_GROUP.value] = at + len(words)
            for pair, following in zip(layer.pairs, layer.pairs[1:], strict=False):
                others[self.planner.pair_at(pair) + records.NEXT.value] = self.planner.pair_at(following)
            for group in self.groups[layer.target]:
                begin = at + len(words)
                words += [group.height, group.width, len(group.pairs), self.planner.pair_at(group.pairs[0])]
                words += [group.places.get(word, 0) for word in (records.SHRUNK, records.V_SHRUNK, records.GROWN)]
                places += [begin + word.value for word in group.places]
                for pair in group.pairs:
                    others[self.planner.pair_at(pair) + records.GROUP.value] = begin
        return words, others, places

    def launches(self, at: int, losses: int) -> tuple[list[Launch], int]:
        """All of them; groups' records begin at ``at``, and there are ``losses`` partial sums of the loss before."""
        found = []
        group_at = {}
        for layer in self.layers:
            group_at[layer.target] = at
            at += len(self.groups[layer.target]) * records.GROUP_WORDS.value
        for index in range(2):
            tiles = {kernel: table[index] for kernel, table in self._table.items()}
            items: dict[str, list] = {kernel: [] for kernel in tiles}
            layers = [layer for layer in self.layers if self._class(layer) == index]
            for layer in layers:
                self._cut(layer, tiles, group_at[layer.target], items)
                losses = self._cut_projections(layer, tiles["gram_projections"].rows, losses, items)
            for kernel, tile in tiles.items() if layers else ():
                function = getattr(kernels, f"{kernel}_kernel")
                constants = self._constants(tile, layers)
                own = {name: value for name, value in constants.items() if name in function.arg_names}
                found += self.planner.launch(function, items[kernel], own, tile)
        return found, losses

    def _cut(self, layer: Layer, tiles: Tiles, group_at: int, items: dict[str, list]) -> None:
        """Items of a target, for all but its projections."""
        planner, target = self.planner, self.planner.target_at(layer.target)

        def cut(kernel: str, kind: Any, place: int, length: int, size: int, moves: bool = False) -> None:
            for sample in range(planner.batch):
                items[kernel] += [(kind.value, target, place, sample, at, moves) for at in range(0, length, size)]

        of_planes, of_products = tiles["gram_planes"], tiles["gram_products"]
        for moves in (False, True) if records.V_PRODUCTS in layer.places else (False,):
            cut("gram_products", kernels.OF_MAPS, 0, layer.channels, of_products.rows, moves)
            cut("gram_planes", kernels.MAP_SUM, 0, 1, 1, moves)
            for p in layer.pairs:
                kind = kernels.OF_MAPS if self._is_own(layer, p) else kernels.OF_SMALL
                rows = planner.source_channels(p)
                cut("gram_products", kind, planner.pair_at(p), rows, of_products.rows, moves)
        for p in layer.pairs:
            cut("gram_planes", kernels.SOURCE_SUM, planner.pair_at(p), planner.source_channels(p), of_planes.rows)
        for moves, factor in enumerate((records.FACTOR, records.V_FACTOR)):
            if factor in layer.places:
                cut("gram_products", kernels.OF_WEIGHTS, 0, layer.channels, of_products.rows, bool(moves))
        if layer.wants_map:
            cut("gram_planes", kernels.CONSTANTS, 0, 1, 1)
            cut("gram_targets", kernels.OF_MAPS, 0, layer.pixels, tiles["gram_targets"].columns)
        for group in self.groups[layer.target]:
            for moves, word in enumerate((records.SHRUNK, records.V_SHRUNK)):
                if word in group.places:
                    cut("gram_planes", kernels.SHRINK, group_at, group.height, 1, bool(moves))
            if records.GROWN in group.places:
                cut("gram_products", kernels.GROW, group_at, group.pixels, of_products.rows)
            group_at += records.GROUP_WORDS.value

    def _cut_projections(self, layer: Layer, rows: int, losses: int, items: dict[str, list]) -> int:
        batch = self.planner.batch
        bounds = [batch * split // layer.splits for split in range(layer.splits + 1)]
        for split in range(layer.splits):
            for p in layer.pairs:
                for row in range(0, self.planner.source_channels(p), rows):
                    at = self.planner.target_at(layer.target), self.planner.pair_at(p)
                    items["gram_projections"].append((*at, row, *bounds[split : split + 2], split, losses))
                    losses += 1
        return losses

    def _constants(self, tile: Tile, layers: list[Layer]) -> dict[str, Any]:
        a = self.planner.arguments
        maps = [a.targets[layer.target] for layer in layers]
        maps += [v for layer in layers if (v := self.planner.v_targets[layer.target]) is not None]
        maps += [a.sources[a.pairs[2 * p]] for layer in layers for p in layer.pairs if self._is_own(layer, p)]
        results = [r for layer in layers if (r := self.planner.results[layer.target]) is not None]
        return {
            "SECOND": self.planner.second,
            "MAP_TYPE": self.planner.type_of(maps),
            "D_TYPE": self.planner.type_of(results),
            "W_TYPE": self.planner.type_of(a.weights),
            "B_TYPE": self.planner.type_of(a.biases),
            "PRECISION": self.planner.precision,
            "ROUND": self.planner.rounds,
            "VECTOR": min(self.planner.vector_of(t) for t in maps),
            "D_VECTOR": min((self.planner.vector_of(t) for t in results), default=1),
            "TILE_ROWS": tile.rows,
            "TILE_COLUMNS": tile.columns,
            "TILE_CHANNELS": tile.channels,
            "CHANNEL_VECTOR": math.gcd(4, *(layer.channels for layer in layers)),
            "STEP": tile.step,
        }
