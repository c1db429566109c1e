"""From a case that fails to a smaller one that fails too, and to a program that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from tests.fuzz.cases import Case, Map, Pair

_PLAIN = Case(seed=0, batch=1, sources=(Map(1, 1, 1),), targets=(Map(1, 1, 1),), pairs=(Pair(0, 0),))


def shrink(case: Case, fails: Callable[[Case], bool], *, attempts: int = 300) -> Case:
    """Take every step towards a plain case after which it still fails, until none is left."""
    while True:
        for smaller in _smaller(case):
            attempts -= 1
            if attempts < 0:
                return case
            if fails(smaller):
                case = smaller
                break
        else:
            return case


def snippet(case: Case, backend: str) -> str:
    """A program that runs one case again, from the root of the repository."""
    return (
        "from tests.fuzz.cases import Case, Map, Pair\n"
        "from tests.fuzz.check import check\n\n"
        f"check({_call(case)}, {backend!r})\n"
    )


def _smaller(case: Case) -> Iterator[Case]:
    betas = isinstance(case.beta, tuple)
    if len(case.pairs) > 1:
        for p in range(len(case.pairs)):
            beta = case.beta[:p] + case.beta[p + 1 :] if betas else case.beta
            yield replace(case, pairs=case.pairs[:p] + case.pairs[p + 1 :], beta=beta)
    for side, index in (("sources", "source"), ("targets", "target")):
        maps = getattr(case, side)
        for i in range(len(maps)):
            if all(getattr(pair, index) != i for pair in case.pairs):
                pairs = [
                    replace(pair, **{index: old - 1}) if (old := getattr(pair, index)) > i else pair
                    for pair in case.pairs
                ]
                yield replace(case, **{side: maps[:i] + maps[i + 1 :]}, pairs=tuple(pairs))
    if case.batch > 1:
        yield replace(case, batch=1)
        yield replace(case, batch=case.batch - 1)
    # float64 does not mix: all tensors change together.
    if case.dtypes == {"float64"}:
        yield _in_single(case)
    for name in ("channel_weights", "pair_weights", "frozen", "scale", "odd_unused", "scaled_by", "beta"):
        yield from _plainer(case, name)
    for name in ("algorithm", "chunks", "threads", "one_storage", "inference", "tf32", "processors", "reversed"):
        yield from _plainer(case, name)
    for side in ("sources", "targets"):
        maps = getattr(case, side)
        for i, item in enumerate(maps):
            for size in ("channels", "height", "width"):
                for smaller in {1, getattr(item, size) // 2, getattr(item, size) - 1} - {0, getattr(item, size)}:
                    yield replace(case, **{side: _with(maps, i, **{size: smaller})})
            for name in ("layout", "dtype"):
                yield from _plainer_part(case, side, i, name)
    for i in range(len(case.pairs)):
        for name in ("layout", "dtype", "convolution", "bias", "pair_weight"):
            yield from _plainer_part(case, "pairs", i, name)


def _plainer(case: Case, name: str) -> Iterator[Case]:
    if getattr(case, name) != getattr(_PLAIN, name):
        yield replace(case, **{name: getattr(_PLAIN, name)})


def _plainer_part(case: Case, side: str, i: int, name: str) -> Iterator[Case]:
    plain, parts = getattr(getattr(_PLAIN, side)[0], name), getattr(case, side)
    if getattr(parts[i], name) != plain and not (name in ("dtype", "bias") and "float64" in case.dtypes):
        yield replace(case, **{side: _with(parts, i, **{name: plain})})


def _with(parts: tuple[Any, ...], i: int, **changes: Any) -> tuple[Any, ...]:
    return (*parts[:i], replace(parts[i], **changes), *parts[i + 1 :])


def _in_single(case: Case) -> Case:
    maps = {side: tuple(replace(m, dtype="float32") for m in getattr(case, side)) for side in ("sources", "targets")}
    pairs = tuple(replace(p, dtype="float32", bias=p.bias and "float32") for p in case.pairs)
    return replace(case, **maps, pairs=pairs, weight_dtype="float32")


def _call(value: Any) -> str:
    """The value as Python, without the arguments that have their default."""
    if isinstance(value, tuple):
        return "(" + "".join(f"{_call(item)}, " for item in value) + ")"
    if not isinstance(value, (Case, Map, Pair)):
        return repr(value)
    shown = [f for f in fields(value) if getattr(value, f.name) != f.default]
    return f"{type(value).__name__}({', '.join(f'{f.name}={_call(getattr(value, f.name))}' for f in shown)})"
