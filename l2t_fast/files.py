"""Files that are whole or as they were, whatever happens while they are written."""

import os
from pathlib import Path


def write_whole(content: bytes | memoryview, path: Path) -> None:
    """Write a file so that a reader sees the old one or the new one.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and replace `path` by a rename, which
    POSIX makes atomic; then the folder itself is flushed, so that the rename survives a power cut too.

    Raises:
        OSError: as the system says; what stood at `path` is untouched, and nothing is left beside it.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_text(text: str, path: Path) -> None:
    """As `write_whole`, in UTF-8."""
    write_whole(text.encode("utf-8"), path)
