"""What an entry of a comparison's ``methods`` says: METHOD, METHOD-PAIRS, and options of its own behind each @."""

import re
import typing
from typing import Any, NamedTuple

from l2t_fast.config import TrainConfig, TransferOptions
from l2t_fast.errors import L2TFastError
from l2t_fast.models.named_maps import suggestion
from l2t_fast.text import printable
from l2t_fast.transfer.methods import METHODS, find_method, split_scheme

_FORM = re.compile(r"[A-Za-z0-9_.+-]+(@[a-z_]+=[A-Za-z0-9_.+-]+)*")
#: Those that say where and how a run computes, and not what.
_OF_THE_MACHINE = ("device", "threads", "backend", "source_plan")
_TRUTH = {"true": True, "false": False}


class Entry(NamedTuple):
    """An entry's method, matching scheme or None, and options that it has of its own."""

    method: str
    pairs: str | None
    options: dict[str, Any]


def parse_method(entry: str) -> Entry:
    """The parts of, for example, ``fm``, ``fm-single`` or ``l2t-ww@beta=2@meta_lr=1e-3``.

    Raises:
        L2TFastError: no such method, one that matches no feature maps with a scheme, no such option, or one that the
            method does not use.
    """
    plain, *settings = entry.split("@")
    split = split_scheme(plain)
    if split is None:
        method, pairs = find_method(plain), None
    else:
        method, pairs = split
        if method.default_pairs is None:
            raise L2TFastError(
                f"{entry}: {method.name} matches no feature maps, so it takes no pairs; write {method.name}"
            )
    if settings and not _FORM.fullmatch(entry):
        raise L2TFastError(
            f"methods has {printable(entry)!r}: options of its own stand behind the method as in {plain}@lr=0.05"
        )
    options = dict(_option(entry, setting) for setting in settings)
    if len(options) < len(settings):
        raise L2TFastError(f"methods has {entry!r}, which says one option twice")
    of_some = {name for other in METHODS.values() for name in (*other.loss_weights, *other.own_options)}
    unused = [name for name in options if name in of_some and name not in (*method.loss_weights, *method.own_options)]
    if unused:
        raise L2TFastError(f"methods has {entry!r}, but {method.name} does not use {unused[0]}")
    try:
        TrainConfig(**options).check()
    except L2TFastError as error:
        raise L2TFastError(f"methods has {entry!r}: {error}") from error
    return Entry(method.name, pairs, options)


def _option(entry: str, setting: str) -> tuple[str, Any]:
    name, _, text = setting.partition("=")
    kinds = {
        key: kind
        for key, kind in typing.get_type_hints(TransferOptions).items()
        if kind in (bool, int, float, str) and key not in _OF_THE_MACHINE
    }
    if name not in kinds:
        raise L2TFastError(
            f"methods has {entry!r}, but {name} is no option of a method: {suggestion(name, list(kinds))}"
        )
    if kinds[name] is bool:
        return name, _TRUTH.get(text, text)
    try:
        return name, kinds[name](text)
    except ValueError:
        return name, text  # of which the configuration says what it must be
