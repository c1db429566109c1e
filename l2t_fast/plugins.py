"""Methods, networks and data sets of somebody's own: what registers their names, and imports the files they are in."""

import contextlib
import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TypeVar

from l2t_fast.errors import L2TFastError
from l2t_fast.files import expand_user
from l2t_fast.text import printable

Item = TypeVar("Item")


def register(kind: str, name: str, item: Item, known: dict[str, Item]) -> None:
    """Put ``item`` into ``known``. Raises ``ValueError`` if another has its name.

    No other is its own earlier version: a notebook's cell that runs again defines its class or function anew.
    """
    if name in known and _origin(known[name]) != _origin(item):
        raise ValueError(f"the {kind} {_origin(item)} is called {name!r}, as {_origin(known[name])} is: rename one")
    known[name] = item


def check_entry(function: str, name: object, item: object) -> None:
    """Raise ``TypeError`` unless ``function``, one of those that register, was given a name and something to call."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"{function} takes a name first, not {name!r}")
    if not callable(item):
        raise TypeError(f"{function} takes a function for {name!r}, not {item!r}")


def _origin(item: object) -> str:
    """Where a class or function was written: its module and its name in there."""
    item = getattr(item, "func", item)  # of functools.partial
    named = item if hasattr(item, "__qualname__") else type(item)
    return f"{named.__module__}.{named.__qualname__}"


def load_plugin(name: str) -> None:
    """Import a Python file, named by a path that ends in .py, or an installed module by its name.

    Files beside it can be imported by it, unless an installed module has their name. What it prints meanwhile goes to
    standard error: standard output is the command's, of which `l2t-fast predict` makes a table.

    Raises:
        L2TFastError: there is no such file or module, another module has the file's name, or it ends the program.
    """
    if not name:
        raise L2TFastError("--plugin is empty, it must name a file that ends in .py, or a module")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            if name.endswith(".py"):
                _import_file(expand_user(name).resolve())
            else:
                _import_module(name)
    except SystemExit as request:  # with the code 0 perhaps, as if all had been done
        said = f" ({printable(request.code)})" if isinstance(request.code, str) else ""
        raise L2TFastError(
            f"--plugin {printable(name)} ends the program while it is imported{said}: what it does as a script goes "
            'below if __name__ == "__main__"'
        ) from request


def _import_module(name: str) -> None:
    unknown = L2TFastError(
        f"--plugin {printable(name)}: no module of that name is installed; a file is named by its path, which ends "
        "in .py"
    )
    if "/" in name or not all(name.split(".")):  # a folder, which importlib might take for a relative name
        raise unknown
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # of what it imports
        raise unknown from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise L2TFastError(f"--plugin {printable(path)}: there is no such file")
    loaded = sys.modules.get(path.stem)
    # One that is imported later, as timm is where a network of it is named, would be taken for the plugin.
    spec = PathFinder.find_spec(path.stem) if loaded is None else None
    where = getattr(loaded, "__file__", None) if spec is None else spec.origin
    if (loaded or where) and (where is None or Path(where).resolve() != path):
        raise L2TFastError(
            f"--plugin {printable(path)}: another module is called {path.stem} ({printable(where or 'built in')}), "
            "rename the file"
        )
    if loaded is not None:
        return
    # By its own name, by which the processes that read images find it again.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
