"""The types of configurations that Python made: files and flags have theirs checked as they are read."""

import dataclasses
import numbers
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

#: What plain types are called in messages.
SCALARS = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}


class _Mismatch(Exception):
    """A value is not of a type; its text says what would be."""


def check_types(config: Any, group: str = "") -> None:
    """Give a dataclass's values the types that it declares: a path becomes text, NumPy's number or a range a plain one.

    What is none of them in any sense is not changed.

    Args:
        config: the dataclass, whose values are replaced.
        group: the key that it stands under.

    Raises:
        L2TFastError: a value has another type; the sentence names its key.
    """
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        key = f"{group}.{field.name}" if group else field.name
        value = getattr(config, field.name)
        try:
            setattr(config, field.name, _as_declared(value, kinds[field.name], key))
        except _Mismatch as wanted:
            raise L2TFastError(f"{key} is {printable(repr(value))}, it must be {wanted}") from None


def _as_declared(value: Any, kind: Any, key: str) -> Any:
    if isinstance(kind, types.UnionType):
        return _as_one_of(value, typing.get_args(kind), key)
    if kind is types.NoneType:
        if value is not None:
            raise _Mismatch("None")
        return None
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, kind):
            raise _Mismatch(f"a {kind.__name__}")
        check_types(value, key)
        return value
    if typing.get_origin(kind) in (list, dict):
        try:
            return _as_several(value, kind, key)
        except _Mismatch:  # of one of them
            raise _Mismatch(_words(kind)) from None
    return _as_scalar(value, kind)


def _as_several(value: Any, kind: Any, key: str) -> list[Any] | dict[str, Any]:
    inner = typing.get_args(kind)[-1]
    if typing.get_origin(kind) is dict and isinstance(value, Mapping):
        return {name: _as_declared(item, inner, f"{key}.{name}") for name, item in value.items()}
    if typing.get_origin(kind) is list and isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_declared(item, inner, key) for item in value]
    raise _Mismatch(_words(kind))


def _as_one_of(value: Any, kinds: Sequence[Any], key: str) -> Any:
    wanted = []
    for kind in kinds:
        try:
            return _as_declared(value, kind, key)
        except _Mismatch as mismatch:
            wanted.append(str(mismatch))
    raise _Mismatch(" or ".join(wanted))


def _as_scalar(value: Any, kind: type) -> Any:
    is_bool = isinstance(value, bool | np.bool_)
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if kind is bool and is_bool:
        return bool(value)
    if kind is int and isinstance(value, numbers.Integral) and not is_bool:
        return int(value)
    if kind is float and isinstance(value, numbers.Real) and not is_bool:
        return float(value)
    raise _Mismatch(SCALARS[kind])


def _words(kind: Any) -> str:
    """What a type is called in a sentence."""
    if kind in SCALARS:
        return SCALARS[kind]
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is dict:
        return f"a dictionary of {inner[1].__name__}"
    of = {str: "texts", int: "whole numbers", float: "numbers"}.get(inner[0], "lists of numbers")
    return f"a list of {of}"
