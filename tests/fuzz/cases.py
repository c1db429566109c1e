"""A case: everything that decides a call of ``feature_matching_loss``, as plain values that print as Python."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

FEATURE_LAYOUTS = (
    *("contiguous", "channels_last", "sliced", "sliced channels_last", "transposed", "offset", "expanded"),
    *("reversed", "one pixel", "one channel", "overlapping"),
)
MATRIX_LAYOUTS = ("contiguous", "transposed", "sliced", "offset", "expanded")
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Map:
    """A feature map (batch, channels, height, width)."""

    channels: int
    height: int
    width: int
    dtype: str = "float32"
    layout: str = "contiguous"


@dataclass(frozen=True)
class Pair:
    """A pair and its projection. ``convolution``: the weight is (C_m, C_n, 1, 1), as a convolution's."""

    source: int
    target: int
    dtype: str = "float32"
    layout: str = "contiguous"
    convolution: bool = False
    bias: str | None = "float32"
    pair_weight: str = "(B,)"


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        seed: of all numbers in the tensors and the directions
        channel_weights: their layout, or None for none; their dtype, and the pair weights', is ``weight_dtype``
        frozen: share of the differentiable inputs that require no grad
        scale: what the numbers of the features are multiplied with
        odd_unused: the maps that no pair uses have another batch size
        scaled_by: the number that comes down to the loss in the backward pass
        algorithm: of CPU and CUDA kernels
        chunks, threads: the ways of the CPU kernels
        one_storage: the contiguous maps of a dtype, sources and targets, lie in one storage, one after the other
        inference: the sources come from ``torch.inference_mode``
        tf32: whether a GPU's kernels may use it
        processors, reversed: what is emulated of a GPU
    """

    seed: int
    batch: int
    sources: tuple[Map, ...]
    targets: tuple[Map, ...]
    pairs: tuple[Pair, ...]
    channel_weights: str | None = None
    pair_weights: bool = False
    weight_dtype: str = "float32"
    beta: float | tuple[float, ...] = 1.0
    frozen: float = 0.0
    scale: float = 1.0
    odd_unused: bool = False
    scaled_by: float = 1.0
    algorithm: str = "auto"
    chunks: bool = False
    threads: int = 1
    one_storage: bool = False
    inference: bool = False
    tf32: bool = False
    processors: int = 1
    reversed: bool = False

    @property
    def products(self) -> int:
        """Multiplications of the projections."""
        each = ((self.sources[p.source].channels, self.targets[p.target]) for p in self.pairs)
        return self.batch * sum(rows * map_.channels * map_.height * map_.width for rows, map_ in each)

    @property
    def dtypes(self) -> set[str]:
        """Of all tensors in it."""
        found = {m.dtype for m in (*self.sources, *self.targets)} | {p.dtype for p in self.pairs}
        found |= {p.bias for p in self.pairs if p.bias is not None}
        return found | ({self.weight_dtype} if self.channel_weights or self.pair_weights else set())


def draw_case(seed: int, dtypes: Sequence[str] = DTYPES, *, small: bool = False) -> Case:
    """The case of a seed: the same on every machine. ``small``: a few pixels, for kernels that are interpreted."""
    rng = random.Random(f"l2t_fast {seed}")
    large = not small and rng.random() < 0.01  # results of a MiB and more come from another allocator
    sources, targets = (_maps(rng, small, large) for _ in range(2))
    pairs = [(rng.randrange(len(sources)), rng.randrange(len(targets))) for _ in range(rng.choice([1, 1, 2, 3, 4, 6]))]
    if rng.random() < 0.15:  # the same pair again
        pairs += [rng.choice(pairs)] * rng.randint(1, 2)

    low = [d for d in dtypes if d != "float64"]
    if "float64" in dtypes and (not low or rng.random() < 0.3):
        low = ["float64"]
    one = rng.choice(low)
    mixed = rng.random() < 0.4

    def dtype() -> str:
        return rng.choice(low) if mixed else one

    def of(shape: tuple[int, int, int]) -> Map:
        return Map(*shape, dtype=dtype(), layout=_mostly(rng, FEATURE_LAYOUTS))

    beta = rng.choice([1.0, 0.5, 0.0, -2.0, None])
    return Case(
        seed=seed,
        batch=rng.choice([0, 1, 1, 2, 2, 3, 4, 5]),
        sources=tuple(of(shape) for shape in sources),
        targets=tuple(of(shape) for shape in targets),
        pairs=tuple(
            Pair(
                m,
                n,
                dtype=dtype(),
                layout=_mostly(rng, MATRIX_LAYOUTS),
                convolution=rng.random() < 0.5,
                bias=dtype() if rng.random() < 0.7 else None,
                pair_weight=rng.choice(["(B,)", "(B, 1)", "(1, 1)"]),
            )
            for m, n in pairs
        ),
        channel_weights=rng.choice([None, *MATRIX_LAYOUTS]),
        pair_weights=rng.random() < 0.6,
        weight_dtype=dtype(),
        beta=tuple(rng.choice([0.0, 0.25, 1.0, 3.0]) for _ in pairs) if beta is None else beta,
        frozen=rng.choice([0.0, 0.0, 0.3, 0.7, 1.0]),
        scale=rng.choice([1.0, 1.0, 1.0, 0.01, 20.0]),
        odd_unused=rng.random() < 0.2,
        scaled_by=rng.choice([1.0, 1.0, -2.5, 0.0]),
        algorithm=rng.choice(["auto", "direct", "gram"]),
        chunks=rng.random() < 0.5,
        threads=rng.choice([1, 1, 2, 3]),
        one_storage=rng.random() < 0.15,
        inference=rng.random() < 0.1,
        tf32=rng.random() < 0.7,  # without which there is no Gram form
        processors=rng.choice([1, 3, 132]),
        reversed=rng.random() < 0.3,
    )


def _maps(rng: random.Random, small: bool, large: bool) -> list[tuple[int, int, int]]:
    """Around the widths of vectors and blocks, and small; one by one, one row, one column now and then."""
    count = rng.choice([1, 1, 2, 3])
    if large:
        return [(rng.choice([33, 64, 65]), rng.choice([48, 64, 65]), rng.choice([48, 57, 64])) for _ in range(count)]
    if small:
        return [(rng.randint(1, 5), rng.randint(1, 4), rng.randint(1, 4)) for _ in range(count)]
    sides = [*range(1, 7), *range(1, 7), 7, 8, 9, 13, 16, 17]
    channels = [*range(1, 10), *range(1, 10), 15, 16, 17, 31, 33]
    shapes = []
    for _ in range(count):
        height = rng.choice(sides)
        width = rng.choice([height, rng.choice(sides), 1])
        wide = rng.choice(channels)
        if rng.random() < 0.03:  # beside maps of a few pixels
            height, width, wide = *rng.sample([1, 40, rng.randint(50, 130)], 2), min(wide, 5)
        shapes.append((wide, height, width))
    return shapes


def _mostly(rng: random.Random, layouts: Sequence[str]) -> str:
    return layouts[0] if rng.random() < 0.4 else rng.choice(layouts)
