"""The methods by the name a user gives. A new one is a file in this folder: it is found by itself."""

import difflib
import importlib
import pkgutil
import re
from collections.abc import Mapping

from l2t_fast.errors import L2TFastError
from l2t_fast.transfer.methods.base import Batch, Method, Setup
from l2t_fast.transfer.pairs import SCHEMES

__all__ = ["METHODS", "Batch", "Method", "Setup", "find_method", "split_scheme"]

#: What a method may be called: its runs' folders are called after it.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def defined_here() -> dict[str, type[Method]]:
    """Every class of this folder's files that gives itself a name, by that name."""
    found: dict[str, type[Method]] = {}
    for file in pkgutil.iter_modules(__path__, f"{__name__}."):
        module = importlib.import_module(file.name)
        for item in vars(module).values():
            ours = isinstance(item, type) and issubclass(item, Method) and item.__module__ == file.name
            if ours and "name" in vars(item) and item not in found.values():
                _check_name(item, found)
                found[item.name] = item
    return found


def _check_name(method: type[Method], others: Mapping[str, type[Method]]) -> None:
    """Raise ValueError for a name that another method has, or that cannot be part of the name of a run's folder."""
    of = f"the method {method.__module__}.{method.__qualname__}"
    if not isinstance(method.name, str) or not NAME.fullmatch(method.name):
        raise ValueError(f"{of} is called {method.name!r}: take letters, digits and any of _ . + -")
    if method.name in others:
        other = others[method.name]
        raise ValueError(f"{of} is called {method.name!r}, as {other.__module__}.{other.__qualname__} is: rename one")


METHODS: dict[str, type[Method]] = defined_here()


def split_scheme(entry: str) -> tuple[type[Method], str] | None:
    """(method, matching scheme) of METHOD-SCHEME, for example fm-single; None if `entry` is nothing of that kind."""
    for scheme in SCHEMES:
        name = entry.removesuffix(f"-{scheme}")
        if name != entry and name in METHODS:
            return METHODS[name], scheme
    return None


def find_method(name: str) -> type[Method]:
    """The method called `name`.

    Raises:
        L2TFastError: there is none; the message names the nearest.
    """
    if name not in METHODS:
        schemes = [f"{method}-{scheme}" for method, kind in METHODS.items() if kind.default_pairs for scheme in SCHEMES]
        near = difflib.get_close_matches(name.lower(), [*METHODS, *schemes], n=1)  # papers write L2T-ww, FM and LwF
        hint = f"did you mean {near[0]}? " if near else ""
        if (split := split_scheme(name)) is not None and split[0].default_pairs is not None:
            hint = f"{name} is {split[0].name} with pairs: {split[1]}; "
        raise L2TFastError(f"there is no method {name!r}: {hint}known are {', '.join(METHODS)}")
    return METHODS[name]
