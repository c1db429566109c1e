"""The host side of a call: which launches cover all pairs, over which items, with what in the table.

All of it depends on sizes, strides and dtypes, not on addresses; so a plan is made once and kept, and a call only fills
addresses into a copy of the plan's table.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from l2t_fast.ops.triton import gram_planning, kernels, records
from l2t_fast.ops.triton.arguments import Arguments
from l2t_fast.ops.triton.gram_planning import GramPlanner
from l2t_fast.ops.triton.plan import Launch, Layer, Part, Plan
from l2t_fast.ops.triton.tiles import Class, Tile, TileTable

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

# Of E, in memory at one time: the more, the fewer launches wait for their last programs, if less of it is read from the
# L2 cache. Memory is bounded by the maps that are read and by the E of all pairs, which plain PyTorch holds several
# times: it may be a share of either; but never so little that processors are idle.
MOST_DIFFERENCES = 80 << 20
SHARE_OF_MAPS = 6
SHARE_OF_DIFFERENCES = 12
# Of a sum that is split: below that, writing the partial sums takes the time.
FEWEST_STEPS = 8
# Columns of E are padded to whole tiles, and the sums over rows and channels to whole steps.
WIDEST_TILE, LONGEST_STEP = 128, 64


def _strides(tensor: Tensor | None, dims: int) -> list[int]:
    return [0, *([0] * dims if tensor is None else tensor.stride()[:dims])]


def _cut(length: int, into: int) -> int:
    return -(-length // into)


def _padded(length: int, to: int) -> int:
    return _cut(length, to) * to


class Planner:
    """Makes the plan of one call."""

    def __init__(
        self,
        arguments: Arguments,
        directions: Sequence[Tensor | None] | None,
        results: Sequence[Tensor | None],
        *,
        precision: str,
        tiles: TileTable,
        processors: int,
        compiles: bool,
    ) -> None:
        """``results`` is memory, one a slot, None where not in need; ``directions`` is None for the gradient.

        ``compiles``: not for the interpreter, which has tiles of its own and cannot round float32 to tf32.
        """
        self.arguments, self.results, self.precision = arguments, results, precision
        self.second = directions is not None
        self.tiles, self.processors = tiles, processors
        self.compiles = compiles
        self.rounds = compiles and precision == "tf32"
        targets, pairs = len(arguments.targets), len(arguments.weights)
        self.targets, self.pairs = targets, pairs
        moved = directions if directions is not None else [None] * arguments.slot_count
        self.v_targets, self.v_weights = moved[:targets], moved[targets : targets + pairs]
        self.v_biases, self.v_alpha = moved[targets + pairs : -1], moved[-1]
        self.batch = arguments.alpha.shape[0]
        self.workspace = self.bytes_of_differences = 0
        self._choose_types()
        self.layers = []
        for n, target in enumerate(arguments.targets):
            of_target = [p for p in range(pairs) if arguments.pairs[2 * p + 1] == n]
            pixels = target.shape[2] * target.shape[3]
            if of_target and pixels:
                self.layers.append(self._layer(n, target.shape[1], pixels, of_target))
        gram = [x for x in self.layers if gram_planning.can_serve(self, x) and gram_planning.pays(self, x)]
        self.gram = GramPlanner(self, gram)
        self.direct = [layer for layer in self.layers if layer not in gram]

    def _choose_types(self) -> None:
        a = self.arguments
        types = {t.dtype for t in [*a.targets, *a.weights]}
        # Products of W and T are exact in their own type where it is one, but tensor cores cut off their sums; who asks
        # for ieee gets three products of tf32, whose sums round. E is rounded to bfloat16 only where float32 may be
        # rounded too, and never to float16, whose range it may leave.
        own = len(types) == 1 and self.precision == "tf32"
        self.dot_type = types.pop() if own else torch.float32
        self.e_type = torch.bfloat16 if self.dot_type == torch.bfloat16 else torch.float32

    def _layer(self, n: int, channels: int, pixels: int, pairs: list[int]) -> Layer:
        maps = [t for t in (self.arguments.targets[n], self.v_targets[n], self.results[n]) if t is not None]
        return Layer(
            *(n, channels, pixels, pairs, sum(map(self.source_channels, pairs))),
            *(self.tiles.choose(kernel, self.second, channels, pixels) for kernel in ("differences", "gradients")),
            channels > 0 and self.results[n] is not None,
            channels > 0 and any(self.results[self.targets + p] is not None for p in pairs),
            min(_vector(t, _channels_last(t)) for t in maps),
        )

    @property
    def classes(self) -> set[Class]:
        """That tiles are chosen for."""
        return {
            Class.of(kernel, self.second, layer.channels, layer.pixels)
            for layer in self.direct
            for kernel in ("differences", "gradients")
            if kernel == "differences" or layer.keeps
        }

    @property
    def setting(self) -> str:
        """What decides, besides sizes and the GPU, which tiles are the fastest."""
        a = self.arguments
        groups = {"sources": a.sources, "targets": a.targets, "weights": a.weights}
        types = ", ".join(f"{name} {str(tensors[0].dtype).removeprefix('torch.')}" for name, tensors in groups.items())
        layout = "channels_last" if all(_channels_last(t) for t in [*a.sources, *a.targets]) else "NCHW"
        return f"{types}, {layout}, {self.precision}"

    def plan(self) -> Plan:
        wanted = not self.second or any(result is not None for result in self.results)
        if not wanted or not self.batch or not self.layers:
            return Plan(*self._table([], {}), self._zeroed(), [], 0)
        # What the Gram form's kernels leave for each other takes the place of what the direct form's, which come before
        # them, have left: so E may be as large.
        for layer in self.gram.layers:
            self.gram.place(layer)
        self.bytes_of_differences = self._bytes_of_differences(self.workspace)
        self.workspace = 0
        for layer in self.direct:
            self._place(layer)
        begin = self.workspace
        for layer in self.direct:
            self._place_weights(layer)
        phases = self._phases()
        end, self.workspace = self.workspace, begin
        for layer in self.gram.layers:
            self.gram.place(layer)
        self.workspace = max(self.workspace, end)
        parts = [part for phase in phases for part in phase]
        for number, part in enumerate(parts):
            part.record = number
        launches = self._pack()
        losses = 0
        for phase in phases:
            differences, losses = self._differences(phase, losses)
            launches += differences + self._gradients(phase)
        gram, losses = self.gram.launches(self._groups_at(len(parts)), losses)
        header = {records.LOSS_SUMS: self.take(4 * losses), records.LOSS_COUNT: losses}
        launches += gram + self._sums(parts)
        return Plan(*self._table(parts, header), self._zeroed(), launches, self.workspace)

    def _zeroed(self) -> list[int]:
        """Slots of maps without pairs or pixels, and of everything where there is nothing to sum."""
        last = self.targets + 2 * self.pairs
        if not self.batch or not self.layers:
            return list(range(last + 1))
        computed = {layer.target for layer in self.layers}
        empty = {p for p in range(self.pairs) if self.arguments.pairs[2 * p + 1] not in computed}
        zeroed = [n for n in range(self.targets) if n not in computed]
        zeroed += [first + p for first in (self.targets, self.targets + self.pairs) for p in empty]
        return zeroed + [last] * bool(empty)

    # ---- the table -----------------------------------------------------------------------------------------------

    def target_at(self, n: int) -> int:
        return records.HEADER_WORDS.value + n * records.TARGET_WORDS.value

    def pair_at(self, p: int) -> int:
        return self.target_at(self.targets) + p * records.PAIR_WORDS.value

    def _part_at(self, part: Part) -> int:
        return self.pair_at(self.pairs) + part.record * records.PART_WORDS.value

    def _groups_at(self, parts: int) -> int:
        return self.pair_at(self.pairs) + parts * records.PART_WORDS.value

    def _table(self, parts: list[Part], header: dict[Any, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a = self.arguments
        target_words, pair_words = records.TARGET_WORDS.value, records.PAIR_WORDS.value
        table = [*_strides(a.alpha, 2), *_strides(self.v_alpha, 2), 0, a.alpha.shape[1], 0, 0, 0]
        addresses = [records.ALPHA.value, records.V_ALPHA.value, records.SQUARES.value, records.LOSS.value]
        for n, target in enumerate(a.targets):
            record = [*_strides(target, 4), *_strides(self.v_targets[n], 4), *_strides(self.results[n], 4)]
            record += target.shape[1:]
            table += record + [0] * (target_words - len(record))
            at = self.target_at(n)
            addresses += [at + word.value for word in (records.MAP, records.V_MAP, records.D_MAP)]
        first_row, column = [0] * self.targets, 0
        for p, (weight, bias) in enumerate(zip(a.weights, a.biases, strict=True)):
            source, n = a.sources[a.pairs[2 * p]], a.pairs[2 * p + 1]
            record = [*_strides(source, 4), source.shape[2], source.shape[3], source.shape[1]]
            record += [*_strides(weight, 2), *_strides(self.v_weights[p], 2)]
            record += [*_strides(bias, 1), *_strides(self.v_biases[p], 1), 0, 0, column, first_row[n]]
            table += record + [0] * (pair_words - len(record))
            column += source.shape[1]
            first_row[n] += source.shape[1]
            at = self.pair_at(p)
            pointers = (
                *(records.SOURCE, records.WEIGHT, records.V_WEIGHT, records.BIAS, records.V_BIAS),
                *(records.D_WEIGHT, records.D_BIAS),
            )
            addresses += [at + word.value for word in pointers]
        places = []

        def fill(at: int, words: dict[Any, int], are_places: bool) -> None:
            for word, value in words.items():
                table[at + word.value] = value
                if are_places:
                    places.append(at + word.value)

        if header:
            fill(0, header, False)
            places.append(records.LOSS_SUMS.value)
        for layer in self.layers if header else ():
            fill(self.target_at(layer.target), layer.words, False)
            fill(self.target_at(layer.target), layer.places, True)
        for part in parts:
            layer, tiles = part.layer, layer_tiles(part.layer)
            table += [part.first, part.columns, part.number * tiles, 0, 0, self._e_stride(part), part.number > 0]
            if layer.keeps:
                fill(self._part_at(part), {records.E: part.at, records.V_E: part.at + self._e_bytes(part)}, True)
        if header:
            groups, others, own_places = self.gram.records(self._groups_at(len(parts)))
            table += groups
            places += own_places
            for at, value in others.items():
                table[at] = value
        return tuple(np.array(words, dtype=np.int64) for words in (table, addresses, places))

    # ---- the workspace -------------------------------------------------------------------------------------------

    def take(self, count: int) -> int:
        at = self.workspace
        self.workspace += _padded(max(count, 1), 256)
        return at

    def _bytes_of_differences(self, of_products: int) -> int:
        maps = [*self.arguments.sources, *self.arguments.targets, *(v for v in self.v_targets if v is not None)]
        read = sum(map_.numel() * map_.element_size() for map_ in maps)
        tiles = self.processors * WIDEST_TILE**2 * self.e_type.itemsize
        whole = sum(layer.rows * layer.pixels for layer in self.layers) * self.batch * self._bytes_of_element()
        of_maps, of_differences = read // SHARE_OF_MAPS, whole // SHARE_OF_DIFFERENCES
        return min(MOST_DIFFERENCES, max(of_maps, of_differences, tiles, of_products))

    def _bytes_of_element(self) -> int:
        """Of an element of E, with E' beside it where both are kept."""
        return self.e_type.itemsize * (2 if self.second else 1)

    def _e_stride(self, part: Part) -> int:
        return _padded(part.columns, WIDEST_TILE)

    def _e_bytes(self, part: Part) -> int:
        return self._e_stride(part) * part.layer.rows * self.e_type.itemsize

    def _place(self, layer: Layer) -> None:
        """The layer's parts, and where all of it lies that is no map."""
        per_sample = layer.pixels * max(layer.rows, 1) * self._bytes_of_element()
        samples = self.bytes_of_differences // per_sample if layer.keeps else self.batch
        samples = min(samples, 2**30 // layer.pixels)
        parts = _cut(self.batch, max(1, min(samples, self.batch)))
        layer.part_samples = _cut(self.batch, parts)
        width = layer.differences.columns
        rest = self.batch % layer.part_samples or layer.part_samples  # of the last part
        before = layer_tiles(layer) * (_cut(self.batch, layer.part_samples) - 1)
        tiles = before + part_tiles(Part(layer, 0, 0, rest))
        slots = min(layer.part_samples, (width - 1) // layer.pixels + 2)
        moves = any(self.v_weights[p] is not None for p in layer.pairs)
        stride, turned_stride = _padded(layer.channels, LONGEST_STEP), _padded(layer.rows, LONGEST_STEP)
        layer.words = {
            records.ROWS: layer.rows,
            records.PACKED_STRIDE: stride,
            records.TURNED_STRIDE: turned_stride,
            records.V_ROWS: layer.rows if moves else 0,
            records.SLOTS: slots,
            records.TILES: tiles,
            records.TILE_COLUMNS: width,
        }
        layer.places = {
            records.SQUARE_SUMS: self.take(4 * tiles * slots * layer.rows),
            records.FACTOR_SUMS: self.take(4 * tiles * layer.rows),
        }
        if layer.wants_weights:
            tile = layer.gradients
            items = _cut(layer.channels, tile.channels) * _cut(layer.rows, tile.rows)
            steps = _cut(layer.part_samples * layer.pixels, tile.step)
            layer.splits = max(1, min(_cut(2 * self.processors, max(items, 1)), steps // FEWEST_STEPS))
            layer.words[records.SPLITS] = layer.splits
            layer.places[records.WEIGHT_SUMS] = self.take(4 * layer.splits * layer.rows * layer.channels)

    def _place_weights(self, layer: Layer) -> None:
        """W and vW, packed and turned."""
        plain = layer.rows * layer.words[records.PACKED_STRIDE] * self.dot_type.itemsize
        turned = layer.channels * layer.words[records.TURNED_STRIDE] * self.e_type.itemsize
        sizes = {records.PACKED: plain, records.TURNED: turned}
        if self.second:
            sizes |= {records.V_PACKED: plain, records.V_TURNED: turned}
        layer.places |= {word: self.take(size) for word, size in sizes.items()}

    def _phases(self) -> list[list[Part]]:
        """Parts are taken together as long as their E fits; each phase is a launch of E and one of the gradients.

        Those of one target never are: a part's dW is added to that of the part before it.
        """
        phases: list[list[Part]] = [[]]
        filled = most = 0
        for layer in self.direct:
            for number, first in enumerate(range(0, self.batch, layer.part_samples)):
                part = Part(layer, number, first, min(layer.part_samples, self.batch - first))
                size = self._e_bytes(part) * (2 if self.second else 1) if layer.keeps else 0
                if phases[-1] and (number > 0 or filled + size > self.bytes_of_differences):
                    phases.append([])
                    filled = 0
                part.at = filled
                phases[-1].append(part)
                filled += size
                most = max(most, filled)
        begin = self.take(most)
        for phase in phases:
            for part in phase:
                part.at += begin
        return phases

    # ---- launches ------------------------------------------------------------------------------------------------

    def _pack(self) -> list[Launch]:
        items = []
        for layer in self.direct:
            for p in layer.pairs:
                channels = self.source_channels(p)
                # the last one writes the zeros beyond the rows
                last = _padded(layer.rows, LONGEST_STEP) - layer.rows if p == layer.pairs[-1] else 0
                for row in range(0, channels + last, kernels.PACK_ROWS.value):
                    for channel in range(0, layer.channels, kernels.PACK_CHANNELS.value):
                        at = self.pair_at(p), self.target_at(layer.target)
                        items.append((*at, row, channels + last, channel))
        constants = {
            "SECOND": self.second,
            "W_TYPE": self.type_of(self.arguments.weights),
            "DOT_TYPE": TYPES[self.dot_type],
            "E_TYPE": TYPES[self.e_type],
            "ROUND": self.rounds,
        }
        return self.launch(kernels.pack_kernel, items, constants)

    def _differences(self, phase: list[Part], losses: int) -> tuple[list[Launch], int]:
        launches = []
        for (tile, vector), parts in _grouped(phase, lambda layer: layer.differences):
            items = []
            for part in parts:
                at = self._part_at(part), self.target_at(part.layer.target)
                rows = [(p, row) for p in part.layer.pairs for row in range(0, self.source_channels(p), tile.rows)]
                for column in range(part_tiles(part)):
                    for p, row in rows:
                        items.append((*at, self.pair_at(p), row, column, losses))
                        losses += 1
            layers = [layer for layer in self.direct if (layer.differences, layer.vector) == (tile, vector)]
            launches += self.launch(kernels.differences_kernel, items, self.differences_constants(tile, layers), tile)
        return launches, losses

    def _gradients(self, phase: list[Part]) -> list[Launch]:
        launches = []
        kept = [part for part in phase if part.layer.keeps]
        for (tile, vector), parts in _grouped(kept, lambda layer: layer.gradients):
            items = []  # each after the number of terms it sums up
            for part in parts:
                layer = part.layer
                at = self._part_at(part), self.target_at(layer.target)
                channels = range(0, layer.channels, tile.channels)
                if layer.wants_weights:
                    kind, steps = kernels.OF_PROJECTION.value, _cut(part.columns, tile.step)
                    bounds = [steps * split // layer.splits * tile.step for split in range(layer.splits + 1)]
                    for split in range(layer.splits):
                        begin, end = bounds[split : split + 2]
                        for row in range(0, layer.rows, tile.rows):
                            for channel in channels if begin < end else ():
                                items.append((end - begin, (*at, kind, channel, row, begin, end, split)))
                if layer.wants_map:
                    for column in range(0, part.columns, tile.columns):
                        for channel in channels:
                            items.append((layer.rows, (*at, kernels.OF_TARGET.value, channel, column, 0, 0, 0)))
            layers = [layer for layer in self.direct if (layer.gradients, layer.vector) == (tile, vector)]
            constants = self.gradients_constants(tile, layers)
            # the longest first, so that the last ones to end are short
            longest_first = [item for _, item in sorted(items, key=lambda item: item[0], reverse=True)]
            launches += self.launch(kernels.gradients_kernel, longest_first, constants, tile)
        return launches

    def _sums(self, parts: list[Part]) -> list[Launch]:
        items = [] if self.second else [(kernels.OF_LOSS.value, 0, 0, 0, 0, 0)]
        for layer in self.layers:
            of_layer = [part for part in parts if part.layer is layer]
            for p in layer.pairs:
                channels = self.source_channels(p)
                at, rows = (self.pair_at(p), self.target_at(layer.target)), range(0, channels, kernels.SUM_ROWS.value)
                if self.results[self.targets + p] is not None:
                    kind = kernels.OF_WEIGHT.value
                    elements = range(0, channels * layer.channels, kernels.SUM_CHUNK.value)
                    items += [(kind, *at, 0, 0, element) for element in elements]
                if self.results[self.targets + self.pairs + p] is not None:
                    items += [(kernels.OF_BIAS.value, *at, 0, 0, row) for row in rows]
                if self.results[-1] is not None:
                    kind = kernels.OF_SQUARES.value
                    for part in of_layer:
                        for sample in range(part.samples):
                            items += [(kind, *at, self._part_at(part), sample, row) for row in rows]
        end = self.targets + self.pairs
        of_weights, of_biases = self.results[self.targets : end], self.results[end:-1]
        constants = {"D_W_TYPE": self.type_of(of_weights), "D_B_TYPE": self.type_of(of_biases)}
        return self.launch(kernels.sums_kernel, items, constants)

    def launch(
        self, kernel: Any, items: list[tuple[int, ...]], constants: dict[str, Any], tile: Tile | None = None
    ) -> list[Launch]:
        """Nothing where there are no items."""
        if not items:
            return []
        on_device = torch.tensor(items, dtype=torch.int32).to(self.arguments.alpha.device)
        in_order = {name: constants[name] for name in kernel.arg_names if name not in ("table", "items")}
        return [Launch(kernel, *((tile.warps, tile.stages) if tile else (4, 1)), in_order, on_device)]

    # ---- compile-time constants ----------------------------------------------------------------------------------

    def differences_constants(self, tile: Tile, layers: list[Layer]) -> dict[str, Any]:
        a = self.arguments
        sources = [a.sources[a.pairs[2 * p]] for layer in layers for p in layer.pairs]
        last = all(map(_channels_last, sources))
        reach = [_reach(a.sources[a.pairs[2 * p]], 2 + tile.columns // x.pixels) for x in layers for p in x.pairs]
        for layer in layers:  # of the taps' numerators
            for p in layer.pairs:
                sides = zip(a.sources[a.pairs[2 * p]].shape[2:], a.targets[layer.target].shape[2:], strict=True)
                reach += [2 * own * other for own, other in sides]
        reach += map(self.reach_of_parameters, layers)
        shared = self._map_constants(layers, tile.columns, reach)
        return shared | {
            "S_TYPE": self.type_of(sources),
            "B_TYPE": self.type_of(a.biases),
            "DOT_TYPE": TYPES[self.dot_type],
            "S_AXIS": int(last),
            # along pixels, neighbours in S~ are no neighbours in S
            "S_VECTOR": min(_vector(source, True) for source in sources) if last else 1,
            "TILE_ROWS": tile.rows,
            "TILE_COLUMNS": tile.columns,
            "STEP": tile.step,
        }

    def gradients_constants(self, tile: Tile, layers: list[Layer]) -> dict[str, Any]:
        results = [self.results[layer.target] for layer in layers if layer.wants_map]
        last = all(map(_channels_last, results))
        run = max(_cut(layer.part_samples * layer.pixels, max(layer.splits, 1)) for layer in layers) + tile.step
        return self._map_constants(layers, max(run, tile.columns), []) | {
            "D_TYPE": self.type_of(results),
            "D_AXIS": int(last),
            "D_VECTOR": min([_vector(result, last) for result in results], default=1),
            "TILE_ROWS": tile.rows,
            "TILE_COLUMNS": tile.columns,
            "TILE_CHANNELS": tile.channels,
            "STEP": tile.step,
        }

    def _map_constants(self, layers: list[Layer], columns: int, reach: list[int]) -> dict[str, Any]:
        """What both kernels ask of the targets' maps; ``columns`` is how many a program goes through at most."""
        maps = [self.arguments.targets[layer.target] for layer in layers]
        moved = [v for layer in layers if (v := self.v_targets[layer.target]) is not None]
        results = [r for layer in layers if (r := self.results[layer.target]) is not None]
        last = all(map(_channels_last, maps))
        reach = [*reach, *(_reach(t, 2 + columns // (t.shape[2] * t.shape[3])) for t in (*maps, *moved, *results))]
        for layer in layers:
            samples = layer.part_samples * layer.pixels if layer.keeps else 0
            reach += [layer.rows * _padded(samples, WIDEST_TILE), layer.rows * layer.words[records.PACKED_STRIDE]]
            reach += [layer.channels * layer.words[records.TURNED_STRIDE]]
        return {
            "SECOND": self.second,
            "T_TYPE": self.type_of(maps),
            "E_TYPE": TYPES[self.e_type],
            "PRECISION": self.precision,
            "ROUND": self.rounds,
            "T_AXIS": int(last),
            "T_VECTOR": min(_vector(t, last) for t in (*maps, *moved)),
            "FLAT": all(_flat(t) for t in (*maps, *moved, *results)),
            "INDEX": tl.int32 if max(reach) < 2**31 else tl.int64,
        }

    def vector_of(self, tensor: Tensor) -> int:
        """Of a map in NCHW; see kernels._tile."""
        return _vector(tensor, False)

    def type_of(self, tensors: Iterable[Tensor | None]) -> Any:
        return next((TYPES[tensor.dtype] for tensor in tensors if tensor is not None), tl.float32)

    def reach_of_parameters(self, layer: Layer) -> int:
        """The largest offset within a weight, a bias, a row of alpha, or a direction of one of them."""
        a, reach = self.arguments, [0]
        for p in layer.pairs:
            rows = self.source_channels(p)
            for weight in (a.weights[p], self.v_weights[p]):
                if weight is not None:
                    reach.append(rows * weight.stride(0) + layer.channels * weight.stride(1))
            reach += [rows * bias.stride(0) for bias in (a.biases[p], self.v_biases[p]) if bias is not None]
            reach += [rows * alpha.stride(1) for alpha in (a.alpha, self.v_alpha) if alpha is not None]
        return max(reach)

    def source_channels(self, pair: int) -> int:
        return self.arguments.weights[pair].shape[0]


def _grouped(parts: list[Part], tile: Callable[[Layer], Tile]) -> list[tuple[tuple[Tile, int], list[Part]]]:
    """Parts that share a tile share a launch, if their maps can be read alike; the costliest items first."""
    groups: dict[tuple[Tile, int], list[Part]] = {}
    for part in sorted(parts, key=lambda part: -part.layer.channels):
        groups.setdefault((tile(part.layer), part.layer.vector), []).append(part)
    return list(groups.items())


def part_tiles(part: Part) -> int:
    """Tiles of columns, up to the last step of the sum over them: zeros are written beyond the columns."""
    return _cut(_padded(part.columns, LONGEST_STEP), part.layer.differences.columns)


def layer_tiles(layer: Layer) -> int:
    """Tiles of columns of a whole part."""
    return part_tiles(Part(layer, 0, 0, layer.part_samples))


def _channels_last(tensor: Tensor) -> bool:
    """Whether a map's tiles are better read along channels than along pixels."""
    return tensor.stride(1) == 1 or tensor.stride(1) < tensor.stride(3)


def _flat(tensor: Tensor) -> bool:
    """Whether a channel's rows stand in line."""
    return tensor.shape[2] == 1 or tensor.stride(2) == tensor.shape[3] * tensor.stride(3)


def _reach(tensor: Tensor, samples: int) -> int:
    """The largest offset in elements within so many samples."""
    sizes = (min(samples, tensor.shape[0]), *tensor.shape[1:])
    return sum(max(size - 1, 0) * stride for size, stride in zip(sizes, tensor.stride(), strict=True))


def _vector(tensor: Tensor, channels_last: bool) -> int:
    """How many elements in a row can be read at once, 16 bytes at most; see kernels._tile."""
    _, channels, height, width = tensor.shape
    by_sample, by_channel, by_row, by_column = tensor.stride()
    if channels_last:
        dense, multiples = by_channel == 1, (channels, by_sample, by_row, by_column)
    else:
        dense = by_column == 1 and (height == 1 or by_row == width)
        multiples = (height * width, by_sample, by_channel)
    if not dense or tensor.data_ptr() % 16:  # all of an address that a plan's key knows
        return 1
    return math.gcd(16 // tensor.element_size(), *multiples)
