"""The CSV files of the small benchmarks, whose columns are those of their first row."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l2t_fast.errors import L2TFastError
from l2t_fast.files import locked_end, write_all


def append(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Add rows to a file, with the columns' names if it is new. There must be one row at least.

    Rows of two processes that add to the same file at the same time are whole, below one header.

    Raises:
        L2TFastError: the file cannot be written; it is as it was then.
    """
    try:
        with locked_end(path) as file:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            if not path.stat().st_size:
                writer.writeheader()
            writer.writerows(rows)
            write_all(text.getvalue(), file)
    except OSError as error:
        raise L2TFastError(f"rows cannot be written to {path}: {error.strerror or error}") from error
