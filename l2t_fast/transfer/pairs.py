"""Which source map is matched with which target map: the paper's three schemes, or an explicit list."""

import difflib
import itertools
from collections.abc import Sequence

from l2t_fast.errors import L2TFastError

SCHEMES = ("single", "one-to-one", "all-to-all")


def resolve_pairs(
    pairs: str | Sequence[str],
    source_layers: Sequence[str],
    target_layers: Sequence[str],
    maps_per_source: Sequence[int] | None = None,
) -> list[tuple[int, int]]:
    """Per pair (source index, target index).

    Args:
        pairs: "single" (last with last), "one-to-one" (first with first and so on, as far as both go), "all-to-all"
            (paper, section 3), the first two for each source by itself; or "SOURCE:TARGET" entries, as a list or
            joined by commas, each side a layer's name or its index, which counts through all sources.
        source_layers: names of the sources' feature maps, in order, one source after the other.
        target_layers: names of the target's feature maps, in order.
        maps_per_source: number of maps of each source; None stands for one source.

    Raises:
        L2TFastError: an unknown scheme or layer, an index out of range, a pair that stands there twice.
    """
    counts = [len(source_layers)] if maps_per_source is None else list(maps_per_source)
    starts = itertools.accumulate(counts[:-1], initial=0)
    targets = len(target_layers)
    if pairs == "single":
        return [(start + count - 1, targets - 1) for start, count in zip(starts, counts, strict=True)]
    if pairs == "one-to-one":
        return [(start + i, i) for start, count in zip(starts, counts, strict=True) for i in range(min(count, targets))]
    if pairs == "all-to-all":
        return [(m, n) for m in range(len(source_layers)) for n in range(targets)]
    entries = pairs.strip("[] ").split(",") if isinstance(pairs, str) else pairs
    resolved: list[tuple[int, int]] = []
    for entry in entries:
        source, colon, target = entry.strip().partition(":")
        if not colon:
            raise L2TFastError(f"pairs: {entry!r} is neither {', '.join(SCHEMES)} nor a pair SOURCE:TARGET such as 0:2")
        pair = (_index(source, source_layers, "source", entry), _index(target, target_layers, "target", entry))
        if pair in resolved:
            raise L2TFastError(f"pairs: {entry!r} stands there twice")
        resolved.append(pair)
    if not resolved:
        raise L2TFastError("pairs is empty, it must name at least one pair SOURCE:TARGET")
    return resolved


def pair_names(pair_layers: Sequence[tuple[str, str]]) -> list[str]:
    """Per pair "source layer->target layer", as files and messages name it."""
    return [f"{source}->{target}" for source, target in pair_layers]


def _index(layer: str, layers: Sequence[str], side: str, entry: str) -> int:
    layer = layer.strip()
    if layer in layers:
        return list(layers).index(layer)
    if layer.isdecimal():
        if int(layer) < len(layers):
            return int(layer)
        raise L2TFastError(
            f"pairs: {entry!r} asks for {side} map {layer}, the {side} has maps 0 to {len(layers) - 1} "
            f"({', '.join(layers)})"
        )
    near = difflib.get_close_matches(layer, layers, n=3) or list(layers)
    raise L2TFastError(f"pairs: the {side} has no feature map {layer!r} (in {entry!r}), nearest: {', '.join(near)}")
