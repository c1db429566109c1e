"""Tables in Markdown documents, between markers; everything else in a document stays as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from l2t_fast.bench.tables import Table
from l2t_fast.errors import L2TFastError
from l2t_fast.files import write_text

_MARKED = re.compile(r"(<!-- bench:(?P<name>[\w-]+) -->\n)(?P<text>.*?)(<!-- /bench -->)", re.DOTALL)
_OPENING = re.compile(r"<!-- bench:[\w-]+ -->")
_CLOSING = "<!-- /bench -->"
EMPTY = "*Not measured yet.*"


def fill(path: Path, tables: Mapping[str, Sequence[Table]]) -> bool:
    """Write the tables that a document asks for between ``<!-- bench:NAME -->`` and ``<!-- /bench -->``.

    Returns whether the document changed.

    Raises:
        L2TFastError: a marker that is not closed or not opened, or names a table that there is none of.
    """
    try:
        before = path.read_text(encoding="utf-8")
    except OSError as error:
        raise L2TFastError(f"{path}: {error.strerror or error}") from error
    if len(_OPENING.findall(before)) != len(_MARKED.findall(before)):
        raise L2TFastError(f"{path} has a marker <!-- bench:NAME --> without <!-- /bench --> after it")
    if before.count(_CLOSING) > len(_MARKED.findall(before)):  # a table that nothing renews any more
        raise L2TFastError(f"{path} has a marker {_CLOSING} without <!-- bench:NAME --> before it")

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in tables:
            raise L2TFastError(f"{path} asks for the table {name!r}, there are {', '.join(tables)}")
        text = "\n\n".join(table.markdown() for table in tables[name]) or EMPTY
        return f"{match[1]}{text}\n{match[4]}"

    after = _MARKED.sub(replaced, before)
    if after != before:
        write_text(after, path)
    return after != before
