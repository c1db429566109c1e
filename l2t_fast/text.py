"""Text that is safe to show."""

from pathlib import Path


def printable(text: str | Path) -> str:
    """``text`` with line breaks, control characters and undecodable bytes escaped; file names may hold any of them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
