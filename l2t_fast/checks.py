"""What the public calls check alike, each with the error that names what does not fit."""

import operator
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set

from torch import Tensor

#: What holds things in no order that somebody gave them.
UNORDERED = (Mapping, Set)


def pair_name(p: int, pairs: Sequence[tuple[int, int]]) -> str:
    return f"pair {p} (source {pairs[p][0]}, target {pairs[p][1]})"


def shown(value: object) -> str:
    """A wrong value for a message: of a tensor its shape, of anything else what is not too long of its repr."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else reprlib.repr(value)


def shape_of(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def checked_pairs(pairs: Sequence[tuple[int, int]], *sides: tuple[str, int, str]) -> list[tuple[int, int]]:
    """The pairs as plain integers, each index in range.

    Args:
        pairs: per pair (source index, target index).
        sides: for the source, and the target if it is known: its name, how many maps it has, and the words that say so.

    Raises:
        ValueError: no pair, or an index out of range.
        TypeError: what has no order, or an entry that is not two integers.
    """
    checked = []
    if not isinstance(pairs, Iterable) or isinstance(pairs, (str, *UNORDERED)):
        found = f"the text {pairs!r}" if isinstance(pairs, str) else type(pairs).__name__
        raise TypeError(f"pairs must be a list of (source index, target index), not {found}")
    for p, pair in enumerate(pairs):
        try:
            if isinstance(pair, UNORDERED):
                raise TypeError
            m, n = pair
            m, n = operator.index(m), operator.index(n)
        except (TypeError, ValueError):
            raise TypeError(
                f"pairs[{p}] must be two integers (source index, target index), not {shown(pair)}"
            ) from None
        for (side, count, holds), index in zip(sides, (m, n), strict=False):
            if not 0 <= index < count:
                raise ValueError(f"pairs[{p}] = ({m}, {n}): {side} index {index} is out of range, {holds}")
        checked.append((m, n))
    if not checked:
        raise ValueError("pairs is empty, give at least one (source index, target index)")
    return checked


def features_side(side: str, count: int) -> tuple[str, int, str]:
    return side, count, f"{side}_features holds {count} feature map{'' if count == 1 else 's'}"


def listed_features(name: str, features: Collection[Tensor]) -> Sequence[Tensor]:
    """The features, made into a list where they have an order but no index, like a dictionary's values.

    Raises:
        TypeError: no collection, or one that has no order or would give its keys.
    """
    if isinstance(features, (list, tuple)):
        return features
    if not has_order(features):
        raise TypeError(f"{name} must be a list of tensors (B, C, H, W), not {type(features).__name__}")
    return features if hasattr(features, "__getitem__") else list(features)


def has_order(values: object) -> bool:
    """Whether it holds a known number of things, one after the other: no number, set, dictionary or iterator."""
    if isinstance(values, UNORDERED):
        return False
    try:
        len(values)
    except (TypeError, RuntimeError):  # a nested tensor's is a RuntimeError
        return False
    return True


def checked_maps(
    sources: Collection[Tensor], targets: Collection[Tensor], pairs: Sequence[tuple[int, int]]
) -> tuple[Sequence[Tensor], Sequence[Tensor], list[tuple[int, int]]]:
    """Both sides' feature maps (B, C, H, W), and the pairs, each of which has its maps.

    Raises:
        ValueError: a map of another shape, no pair, or a pair whose index is out of range.
        TypeError: no list, a map that is no tensor, or a pair that is not two integers.
    """
    sources, targets = listed_features("source_features", sources), listed_features("target_features", targets)
    pairs = checked_pairs(pairs, features_side("source", len(sources)), features_side("target", len(targets)))
    for side, (name, features) in enumerate((("source_features", sources), ("target_features", targets))):
        first_pair = {pair[side]: pair_name(p, pairs) + ": " for p, pair in reversed(list(enumerate(pairs)))}
        for i, feature in enumerate(features):
            _check_map(f"{first_pair.get(i, '')}{name}[{i}]", feature)
    return sources, targets, pairs


def _check_map(name: str, feature: Tensor) -> None:
    check_tensor(name, feature, "a tensor (B, C, H, W)")
    if feature.dim() != 4:
        raise ValueError(f"{name} has shape {shape_of(feature)}, but a feature map is (B, C, H, W)")
    if 0 in feature.shape[1:]:
        raise ValueError(f"{name} has shape {shape_of(feature)}: it has no channels or no pixels")


def check_tensor(name: str, value: object, wanted: str) -> None:
    """Raise TypeError where it is no tensor, or a nested one, which fails when it is asked for its shape."""
    if not isinstance(value, Tensor) or value.is_nested:
        given = "a nested one" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be {wanted}, not {given}")


def checked_number(name: str, value: float) -> float:
    """A number as a float.

    Raises:
        ValueError: it is too large for one.
        TypeError: it is none; text, which ``float()`` reads, is none.
    """
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a float, use a number below 1.8e308") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None
