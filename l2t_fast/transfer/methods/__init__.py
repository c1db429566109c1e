"""The methods by the name a user gives; a new one is a file here and a line in ``METHODS``."""

import difflib

from l2t_fast.errors import L2TFastError
from l2t_fast.transfer.methods.base import Batch, Method, Setup
from l2t_fast.transfer.methods.feature_matching import FeatureMatchingMethod
from l2t_fast.transfer.methods.l2t_w import L2TW
from l2t_fast.transfer.methods.l2t_ww import L2TWW
from l2t_fast.transfer.methods.scratch import Scratch

METHODS: dict[str, type[Method]] = {method.name: method for method in (Scratch, FeatureMatchingMethod, L2TW, L2TWW)}

__all__ = ["METHODS", "Batch", "Method", "Setup", "find_method"]


def find_method(name: str) -> type[Method]:
    """The method called `name`.

    Raises:
        L2TFastError: there is none; the message names the nearest.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise L2TFastError(f"there is no method {name!r}: {hint}known are {', '.join(METHODS)}")
    return METHODS[name]
