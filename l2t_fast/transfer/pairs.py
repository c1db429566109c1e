"""Which source map is matched with which target map: the paper's three schemes, or an explicit list."""

import difflib
from collections.abc import Sequence

from l2t_fast.errors import L2TFastError

SCHEMES = ("single", "one-to-one", "all-to-all")


def resolve_pairs(
    pairs: str | Sequence[str], source_layers: Sequence[str], target_layers: Sequence[str]
) -> list[tuple[int, int]]:
    """Per pair (source index, target index).

    Args:
        pairs: "single" (last with last), "one-to-one" (first with first and so on, as far as both go), "all-to-all"
            (paper, section 3.1); or "SOURCE:TARGET" entries, as a list or joined by commas, each side a layer's name or
            its index.
        source_layers: names of the source's feature maps, in order.
        target_layers: names of the target's feature maps, in order.

    Raises:
        L2TFastError: an unknown scheme or layer, an index out of range, a pair that stands there twice.
    """
    sources, targets = len(source_layers), len(target_layers)
    if pairs == "single":
        return [(sources - 1, targets - 1)]
    if pairs == "one-to-one":
        return [(i, i) for i in range(min(sources, targets))]
    if pairs == "all-to-all":
        return [(m, n) for m in range(sources) for n in range(targets)]
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
