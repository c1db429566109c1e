"""Loads the native extension ``l2t_fast._C`` where there is one that fits the running PyTorch.

A package without the extension (installed with ``L2T_FAST_NATIVE=0``) is complete: everything runs on the reference
backend. An extension that was built against another PyTorch is left alone with a warning: loading it may crash.
"""

import importlib
import importlib.machinery
import re
import warnings
from pathlib import Path
from types import ModuleType

import torch  # first: the extension finds PyTorch's libraries because they are loaded already

REBUILD = "build it again with `pip install --no-build-isolation --no-deps .` (or -e .) in the sources of l2t_fast"

_TORCH_MARK = re.compile(rb"l2t_fast was built against torch==([^\x00]+)\x00")  # csrc/build_info.cpp


def find_library(folder: Path) -> Path | None:
    """The file of ``l2t_fast._C`` in ``folder`` for the running Python, or None."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_C{suffix}"
        if path.is_file():
            return path
    return None


def built_against(library: Path) -> str | None:
    """The version of PyTorch that ``library`` was compiled against, read from the file without loading it."""
    match = _TORCH_MARK.search(library.read_bytes())
    return match.group(1).decode() if match else None


def misfit(library: Path, running: str) -> str | None:
    """Why ``library`` cannot be used with PyTorch ``running``; None if it can.

    Versions are compared without their local part: 2.15.0+cpu and 2.15.0+cu132 have the same C++ interface.
    """
    built = built_against(library)
    if built is None:
        return f"{library} is damaged or not a library of l2t_fast; {REBUILD}"
    if built.partition("+")[0] != running.partition("+")[0]:
        return f"the native code was built against PyTorch {built}, but PyTorch {running} is running; {REBUILD}"
    return None


def load(folder: Path) -> tuple[ModuleType | None, str | None]:
    """Import the extension that lies in ``folder``: the module, or None and the reason."""
    library = find_library(folder)
    if library is None:
        return None, "l2t_fast is installed without native code"
    problem = misfit(library, torch.__version__)
    if problem is None:
        try:
            return importlib.import_module("l2t_fast._C"), None
        except ImportError as error:
            problem = f"the native code does not load ({error}); {REBUILD}"
    warnings.warn(f"l2t_fast runs on its slower reference backend: {problem}", RuntimeWarning, stacklevel=2)
    return None, problem


extension, _problem = load(Path(__file__).parent)
"""The module ``l2t_fast._C``, which registers ``torch.ops.l2t_fast``; None where it cannot be used."""


def why_unavailable() -> str | None:
    """Why the native extension cannot be used, or None when it is loaded."""
    return _problem
