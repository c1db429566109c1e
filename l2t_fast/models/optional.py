"""Networks and files of packages that are no requirement of this one."""

import importlib
from types import ModuleType

from l2t_fast.errors import L2TFastError


def optional_module(module: str, what: str, packages: str) -> ModuleType:
    """Import ``module``, which ``what`` takes, or raise an ``L2TFastError`` that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = getattr(error, "name", None) or module
        raise L2TFastError(
            f"{what} needs the package {missing}, which is not installed: pip install {packages}"
        ) from error
