"""The CSV files of the small benchmarks, whose columns are those of their first row."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Add rows to a file, with the columns' names if it is new. There must be one row at least."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
