"""The methods by the name a user gives."""

import difflib
import re
from typing import TypeVar

from l2t_fast.errors import L2TFastError
from l2t_fast.plugins import register
from l2t_fast.transfer.methods.base import Method
from l2t_fast.transfer.pairs import SCHEMES

METHODS: dict[str, type[Method]] = {}

#: What a method may be called: its runs' folders are called after it.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")

AnyMethod = TypeVar("AnyMethod", bound=type[Method])


def register_method(method: AnyMethod) -> AnyMethod:
    """Class decorator: from now on a run's ``method`` can be this subclass of ``Method``, by its ``name``.

    Registered again, as when a notebook's cell runs again, the later class counts.

    Raises:
        TypeError: it is no subclass of ``Method``.
        ValueError: another class has its name, or that cannot be part of the name of a run's folder.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise TypeError(f"register_method takes a subclass of l2t_fast.transfer.Method, not {method!r}")
    name = vars(method).get("name")  # its own: a class derived from a method is another method
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"the method {method.__module__}.{method.__qualname__} is called {name!r}: its class needs a name of "
            "letters, digits and any of _ . + -"
        )
    register("method", name, method, METHODS)
    return method


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
        raise L2TFastError(
            f"there is no method {name!r}: {hint}known are {', '.join(METHODS)}, and what --plugin FILE brings"
        )
    return METHODS[name]
