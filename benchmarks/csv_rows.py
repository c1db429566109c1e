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
        L2TFastError: the file has other columns, ends inside a line or cannot be written; it is as it was then.
    """
    try:
        with locked_end(path) as file:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            if not path.stat().st_size:
                writer.writeheader()
            else:
                _check(path, list(rows[0]))
            writer.writerows(rows)
            write_all(text.getvalue(), file)
    except OSError as error:
        raise L2TFastError(f"rows cannot be written to {path}: {error.strerror or error}") from error


def _check(path: Path, columns: list[str]) -> None:
    text = path.read_bytes()
    if next(csv.reader(io.StringIO(text.partition(b"\n")[0].decode(errors="replace"))), None) != columns:
        raise L2TFastError(f"{path} holds other columns than these rows have, name another file")
    if not text.endswith(b"\n"):
        raise L2TFastError(f"{path} ends inside a line, remove its last line or name another file")
