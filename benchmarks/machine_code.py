"""What the reports of compiled kernels, the CUDA and the Triton ones, have in common."""

import csv
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""What one block can have on each architecture; 8.9 is as 8.6 here."""

CHOSEN_FOR = (80, 90)
"""For which tiles were chosen, and the extension has machine code."""

Row = TypeVar("Row")


def tool_of_triton(name: str) -> Path:
    """One of CUDA's tools that Triton brings: cuobjdump, ptxas. Raises ImportError where there is no Triton."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def read_resources(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a report, oldest first, as the dataclass ``kind``, whose fields name the columns."""
    types = {field.name: field.type for field in fields(kind)}
    with path.open(newline="") as file:
        return [kind(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]
