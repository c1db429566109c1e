"""The host side of a call: which launches cover all pairs, over which items, with what in the table.

All of it depends on sizes, strides and dtypes, not on addresses; so a plan is made once and kept, and a call only fills
addresses into a copy of the plan's table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from l2t_fast.ops.triton import kernels, records
from l2t_fast.ops.triton.arguments import Arguments
from l2t_fast.ops.triton.tiles import Class, Tile, TileTable

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

# Items a program gets, on average: enough that the last ones to finish cost little, few enough partial sums.
WAVES = 4
# A run of samples whose pixels one item adds up has at least so many pixels, where there are as many.
SHORTEST_RUN = 512


@dataclass(frozen=True)
class Layer:
    """Sizes of one target map and its pairs, as planning needs them."""

    target: int
    channels: int
    pixels: int
    pairs: list[int]


@dataclass(frozen=True)
class Launch:
    """One persistent launch; ``constants`` are the kernel's compile-time arguments."""

    kernel: Any
    tile: Tile
    constants: dict[str, Any]
    items: Tensor
    programs: int
    blocks: Tensor | None = None  # target_kernel only
    weight_sums_at: int = 0  # projection_kernel only: where its partial sums begin
    bias_sums_at: int = 0


@dataclass
class Plan:
    """Everything about a call but its addresses."""

    template: np.ndarray  # the table, addresses 0
    address_words: np.ndarray  # where they go, in the order of launching.addresses
    zeroed: list[int] = field(default_factory=list)  # slots whose result no kernel writes in full
    launches: list[Launch] = field(default_factory=list)
    sum_items: Tensor | None = None
    sum_constants: dict[str, Any] = field(default_factory=dict)
    sum_programs: int = 1
    weight_sums: int = 0  # floats
    bias_sums: int = 0
    loss_sums: int = 0


def _strides(tensor: Tensor | None, dims: int) -> list[int]:
    return [0, *([0] * dims if tensor is None else tensor.stride())]


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
    ) -> None:
        """``results`` is memory, one a slot, None where not in need; ``directions`` is None for the gradient."""
        self.arguments, self.results, self.precision = arguments, results, precision
        self.second = directions is not None
        self.tiles, self.processors = tiles, processors
        targets, pairs = len(arguments.targets), len(arguments.weights)
        self.targets, self.pairs = targets, pairs
        moved = directions if directions is not None else [None] * arguments.slot_count
        self.v_targets, self.v_weights = moved[:targets], moved[targets : targets + pairs]
        self.v_biases, self.v_alpha = moved[targets + pairs : -1], moved[-1]
        self.batch = arguments.alpha.shape[0]
        self.classes: set[Class] = set()  # that tiles were chosen for
        self.layers = []
        for n, target in enumerate(arguments.targets):
            of_target = [p for p in range(pairs) if arguments.pairs[2 * p + 1] == n]
            pixels = target.shape[2] * target.shape[3]
            if of_target and pixels:
                self.layers.append(Layer(n, target.shape[1], pixels, of_target))

    @property
    def setting(self) -> str:
        """What decides, besides sizes and the GPU, which tiles are the fastest."""
        a = self.arguments
        groups = {"sources": a.sources, "targets": a.targets, "weights": a.weights}
        types = ", ".join(f"{name} {str(tensors[0].dtype).removeprefix('torch.')}" for name, tensors in groups.items())
        layout = "channels_last" if all(_channels_last(t) for t in [*a.sources, *a.targets]) else "NCHW"
        return f"{types}, {layout}, {self.precision}"

    def plan(self) -> Plan:
        template, words = self._table()
        plan = Plan(template, words, zeroed=self._zeroed())
        if not self.batch:
            return plan
        wants_sums = any(result is not None for result in self.results[self.targets : -1])
        if not self.second or wants_sums or self.results[-1] is not None:
            self._plan_projections(plan, wants_sums)
        wanted = [layer for layer in self.layers if layer.channels and self.results[layer.target] is not None]
        self._plan_targets(plan, wanted)
        return plan

    def _zeroed(self) -> list[int]:
        """Slots of maps without pairs, and of everything where there is nothing to sum."""
        last = self.targets + 2 * self.pairs
        if not self.batch or not self.layers:
            return list(range(last + 1))
        computed = {layer.target for layer in self.layers}
        empty = {p for p in range(self.pairs) if self.arguments.pairs[2 * p + 1] not in computed}
        zeroed = [n for n in range(self.targets) if n not in computed]
        zeroed += [first + p for first in (self.targets, self.targets + self.pairs) for p in empty]
        return zeroed + [last] * bool(empty)

    # ---- the table -----------------------------------------------------------------------------------------------

    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        a = self.arguments
        header, targets, pairs = records.HEADER_WORDS.value, records.TARGET_WORDS.value, records.PAIR_WORDS.value
        target_at, pair_at = header, header + self.targets * targets
        table = [
            *(self.batch, *_strides(a.alpha, 2), *_strides(self.v_alpha, 2)),
            *(0, a.alpha.shape[1], target_at, pair_at),
        ]
        addresses = [records.ALPHA.value, records.V_ALPHA.value, records.SQUARES.value]
        for n, target in enumerate(a.targets):
            table += [*_strides(target, 4), *_strides(self.v_targets[n], 4), *_strides(self.results[n], 4)]
            table += target.shape[1:]
            at = target_at + n * targets
            addresses += [at + word.value for word in (records.MAP, records.V_MAP, records.D_MAP)]
        column = 0
        for p, (weight, bias) in enumerate(zip(a.weights, a.biases, strict=True)):
            source = a.sources[a.pairs[2 * p]]
            table += [*_strides(source, 4), source.shape[2], source.shape[3], source.shape[1]]
            table += [*_strides(weight, 2), *_strides(self.v_weights[p], 2)]
            table += [*_strides(bias, 1), *_strides(self.v_biases[p], 1), 0, 0, column, a.pairs[2 * p + 1]]
            column += source.shape[1]
            at = pair_at + p * pairs
            pointers = (
                *(records.SOURCE, records.WEIGHT, records.V_WEIGHT, records.BIAS, records.V_BIAS),
                *(records.D_WEIGHT, records.D_BIAS),
            )
            addresses += [at + word.value for word in pointers]
        return np.array(table, dtype=np.int64), np.array(addresses, dtype=np.int64)

    # ---- dT ------------------------------------------------------------------------------------------------------

    def _plan_targets(self, plan: Plan, layers: list[Layer]) -> None:
        for tile, group in self._groups("target", layers):
            blocks: list[tuple[int, int]] = []
            items = []
            for layer in group:
                first_block = len(blocks)
                blocks += self._row_blocks(layer, tile)
                for begin in range(0, layer.channels, tile.channels):
                    for start in range(0, self.batch * layer.pixels, tile.pixels):
                        sample, pixel = divmod(start, layer.pixels)
                        items.append((layer.target, sample, pixel, begin, first_block, len(blocks) - first_block))
            gradients = [self.results[layer.target] for layer in group]
            constants = self._constants(tile, group)
            constants["D_CHANNELS_LAST"] = all(_channels_last(gradient) for gradient in gradients)
            plan.launches.append(
                Launch(
                    kernels.target_kernel,
                    tile,
                    constants,
                    self._upload(items),
                    self._programs(len(items), tile),
                    blocks=self._upload(blocks),
                )
            )

    # ---- Q, loss, dW, db -----------------------------------------------------------------------------------------

    def _plan_projections(self, plan: Plan, wants_sums: bool) -> None:
        groups = self._groups("projection", self.layers)
        work = sum(
            len(self._row_blocks(layer, tile)) * tile.rows * layer.pixels * self.batch * layer.channels
            for tile, group in groups
            for layer in group
        )
        sums = []
        for tile, group in groups:
            items = []
            for layer in group:
                wanted = self._wants_sums(layer)
                # without dW one tile of channels is enough for Q
                begins = range(0, max(layer.channels, 1) if wanted else 1, tile.channels)
                blocks = self._row_blocks(layer, tile)
                runs = self._runs(layer, tile, work / (WAVES * self.processors))
                number = {}
                for first, samples in runs:
                    for pair, row in blocks:
                        for begin in begins:
                            number[first, pair, row, begin] = len(items)
                            items.append((pair, row, first, samples, begin, len(items), plan.loss_sums + len(items)))
                if wanted:
                    step = len(blocks) * len(begins)
                    for pair, row in blocks:
                        for begin in begins:
                            at = number[runs[0][0], pair, row, begin]
                            sums += self._sum_items(plan, tile, pair, row, begin, at, step, len(runs))
            if not items:  # sources without channels
                continue
            constants = self._constants(tile, group) | {"SUMS": wants_sums}
            plan.launches.append(
                Launch(
                    kernels.projection_kernel,
                    tile,
                    constants,
                    self._upload(items),
                    self._programs(len(items), tile),
                    weight_sums_at=plan.weight_sums,
                    bias_sums_at=plan.bias_sums,
                )
            )
            plan.loss_sums += len(items)
            if wants_sums:
                plan.weight_sums += len(items) * tile.rows * tile.channels
                plan.bias_sums += len(items) * tile.rows
        if sums or not self.second:
            plan.sum_items = self._upload(sums or [(0,) * kernels.SUM_ITEM.value])[: len(sums)]
            plan.sum_programs = max(1, min(len(sums), 8 * self.processors))
            biases = self._biases()
            plan.sum_constants = {
                "W_TYPE": TYPES[self.arguments.weights[0].dtype] if self.pairs else tl.float32,
                "B_TYPE": TYPES[biases[0].dtype] if biases else tl.float32,
            }

    def _sum_items(
        self, plan: Plan, tile: Tile, pair: int, row: int, channel: int, at: int, step: int, summands: int
    ) -> list[tuple[int, ...]]:
        """A tile of dW in pieces of SUM_CHUNK elements; partial sums lie at number ``at``, ``at + step``, ..."""
        size, chunk = tile.rows * tile.channels, kernels.SUM_CHUNK.value
        end = min(row + tile.rows, self._source_channels(pair))
        items = []
        for piece in range(0, (end - row) * tile.channels, chunk):
            rows = piece // tile.channels
            weight_at = plan.weight_sums + at * size + piece
            bias_at = plan.bias_sums + at * tile.rows + rows
            where = pair, row + rows, end, channel, tile.channels
            items.append((*where, weight_at, step * size, bias_at, step * tile.rows, summands))
        return items

    def _runs(self, layer: Layer, tile: Tile, work_of_an_item: float) -> list[tuple[int, int]]:
        """The batch in runs of whole samples, (first, samples), about so much work each."""
        work_of_a_sample = tile.rows * layer.pixels * layer.channels
        samples = max(1, round(work_of_an_item / work_of_a_sample), ceil(SHORTEST_RUN / layer.pixels))
        samples = min(samples, self.batch, max(1, 2**30 // layer.pixels))
        runs = ceil(self.batch / samples)
        bounds = [self.batch * r // runs for r in range(runs + 1)]
        return [(begin, end - begin) for begin, end in pairwise(bounds)]

    def _wants_sums(self, layer: Layer) -> bool:
        return any(
            self.results[self.targets + p] is not None or self.results[self.targets + self.pairs + p] is not None
            for p in layer.pairs
        )

    # ---- both ----------------------------------------------------------------------------------------------------

    def _groups(self, kernel: str, layers: list[Layer]) -> list[tuple[Tile, list[Layer]]]:
        """Layers that share a tile shape share a launch; the costliest launch first."""
        groups: dict[Tile, list[Layer]] = {}
        for layer in layers:
            self.classes.add(Class.of(kernel, self.second, layer.channels, layer.pixels))
            tile = self.tiles.choose(kernel, self.second, layer.channels, layer.pixels)
            groups.setdefault(tile, []).append(layer)
        return sorted(groups.items(), key=lambda group: -sum(x.pixels * x.channels * len(x.pairs) for x in group[1]))

    def _row_blocks(self, layer: Layer, tile: Tile) -> list[tuple[int, int]]:
        return [(p, row) for p in layer.pairs for row in range(0, self._source_channels(p), tile.rows)]

    def _source_channels(self, pair: int) -> int:
        return self.arguments.weights[pair].shape[0]

    def _programs(self, items: int, tile: Tile) -> int:
        """A tile takes about the registers of a processor with 8 warps, of half of one with 4."""
        return min(items, self.processors * max(1, 8 // tile.warps))

    def _biases(self) -> list[Tensor]:
        return [bias for bias in self.arguments.biases if bias is not None]

    def _upload(self, rows: list[tuple[int, ...]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64).to(self.arguments.alpha.device)

    def _constants(self, tile: Tile, group: list[Layer]) -> dict[str, Any]:
        a = self.arguments
        biases = self._biases()
        maps = [a.targets[layer.target] for layer in group]
        moved = [v for layer in group if (v := self.v_targets[layer.target]) is not None]
        pairs = [p for layer in group for p in layer.pairs]
        sources = [a.sources[a.pairs[2 * p]] for p in pairs]
        weights = [w for p in pairs for w in (a.weights[p], self.v_weights[p]) if w is not None]
        t_type, w_type = maps[0].dtype, weights[0].dtype
        # Products of W and T are exact in their own type where it is one. E is rounded to bfloat16 only where float32
        # may be rounded too, and never to float16, whose range it may leave.
        dot_type = t_type if t_type == w_type else torch.float32
        e_type = dot_type if dot_type == torch.bfloat16 and self.precision == "tf32" else torch.float32
        gradients = [r for layer in group if (r := self.results[layer.target]) is not None]
        s_last, t_last, v_last = (all(map(_channels_last, tensors)) for tensors in (sources, maps, moved))
        reach = [_reach(t, 2 + tile.pixels // (t.shape[2] * t.shape[3])) for t in (*maps, *moved, *gradients)]
        for layer in group:
            samples = 2 + tile.pixels // layer.pixels
            reach += [_reach(a.sources[a.pairs[2 * p]], samples) for p in layer.pairs]
        reach += [_reach(w, w.shape[0]) for w in weights]
        return {
            "SECOND": self.second,
            "S_TYPE": TYPES[sources[0].dtype],
            "T_TYPE": TYPES[t_type],
            "W_TYPE": TYPES[w_type],
            "B_TYPE": TYPES[biases[0].dtype] if biases else tl.float32,
            "DOT_TYPE": TYPES[dot_type],
            "E_TYPE": TYPES[e_type],
            "PRECISION": self.precision,
            "S_CHANNELS_LAST": s_last,
            "T_CHANNELS_LAST": t_last,
            "V_CHANNELS_LAST": v_last,
            # along pixels, neighbours in S~ are no neighbours in S
            "S_VECTOR": min(_vector(source, True) for source in sources) if s_last else 1,
            "T_VECTOR": min([_vector(t, t_last) for t in maps] + [_vector(v, v_last) for v in moved]),
            "W_VECTOR": min(_weight_vector(w) for w in weights),
            "INDEX": tl.int32 if max(reach) < 2**31 else tl.int64,
            "SMALL": any(layer.pixels < tile.pixels for layer in group),
            "HOLD": tile.hold,
            "ROWS": tile.rows,
            "PIXELS": tile.pixels,
            "TILE_CHANNELS": tile.channels,
            "STEP": tile.step,
        }


def _channels_last(tensor: Tensor) -> bool:
    """Whether a map's tiles are better read along channels than along pixels."""
    return tensor.stride(1) == 1 or tensor.stride(1) < tensor.stride(3)


def _reach(tensor: Tensor, samples: int) -> int:
    """The largest offset in elements within so many samples (rows, of a matrix)."""
    sizes = (min(samples, tensor.shape[0]), *tensor.shape[1:])
    return sum(max(size - 1, 0) * stride for size, stride in zip(sizes, tensor.stride(), strict=True))


def _vector(tensor: Tensor, channels_last: bool) -> int:
    """How many elements in a row can be read at once: all of 16 bytes, or one; see kernels._tile."""
    vector = 16 // tensor.element_size()
    _, channels, height, width = tensor.shape
    by_sample, by_channel, by_row, by_column = tensor.stride()
    if channels_last:
        dense = by_channel == 1 and channels % vector == 0
        steps = (by_sample, by_row, by_column)
    else:
        dense = by_column == 1 and (height == 1 or by_row == width) and height * width % vector == 0
        steps = (by_sample, by_channel)
    aligned = tensor.data_ptr() % 16 == 0 and all(step % vector == 0 for step in steps)
    return vector if dense and aligned else 1


def _weight_vector(weight: Tensor) -> int:
    vector = 16 // weight.element_size()
    dense = weight.stride(1) == 1 and weight.shape[1] % vector == 0
    return vector if dense and weight.stride(0) % vector == 0 and weight.data_ptr() % 16 == 0 else 1
