"""Files that are whole or as they were, whatever happens while they are written, and arrays from files of others."""

import contextlib
import errno
import fcntl
import io
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from l2t_fast.errors import L2TFastError


class InUseError(L2TFastError):
    """Another process is in the folder."""


#: Bytes of all arrays of a file together: many times what the channel weights of a thousand pairs take.
LARGEST_ARRAYS = 1 << 28

#: What file systems answer that flush files alone, some of the network's among them.
_FOLDERS_ARE_NOT_FLUSHED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)

#: Descriptors of the folders that this process holds.
_HELD: set[int] = set()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make `folder` if it is not there, and keep every other process that would hold it out until this block ends.

    The lock is on the folder itself, so it leaves no file, and the system takes it back however this process ends. Of a
    folder on several machines it keeps out the processes of this one; a file system without locks keeps out nobody.

    Raises:
        InUseError: another process holds it.
        L2TFastError: it cannot be made.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise L2TFastError(f"the folder {folder} cannot be written: {error.strerror or error}") from error
    _HELD.add(descriptor)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        if descriptor in _HELD:  # not in a child that was forked meanwhile
            _HELD.remove(descriptor)
            os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InUseError(
            f"{folder} is in use by another process: wait for it, or name another folder with --out"
        ) from error
    except OSError:
        pass  # no locks here


def _hold_nothing() -> None:
    """A forked child shares its parent's locks, and would keep them when the parent is killed."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_hold_nothing)


def why_not_writable(path: Path) -> int | None:
    """The system's number for why a file, or one in a folder, cannot be written; None if it can."""
    if os.access(path, os.W_OK):
        return None
    return errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES


def write_whole(content: bytes | memoryview, path: Path) -> None:
    """Write a file so that a reader sees the old one or the new one.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and replace `path` by a rename, which
    POSIX makes atomic; then the folder itself is flushed, so that the rename survives a power cut too.

    Raises:
        OSError: as the system says; what stood at `path` is untouched, and nothing is left beside it.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes | memoryview]) -> None:
    """As `write_whole`, several files of one folder that belong together, the last being the one that readers open.

    All are on the disk before the first replaces an old one. While they do, the last is not there: nobody takes an old
    one of these files for part of the new.

    Raises:
        OSError: as the system says; where the disk is full, what stood there is untouched, and nothing is left beside.
    """
    *others, last = contents
    temporaries = {path: path.with_name(path.name + ".tmp") for path in contents}
    try:
        for path, temporary in temporaries.items():
            # What a killed process left, or a link by which a folder from somebody else would lead to another file.
            temporary.unlink(missing_ok=True)
            with open(temporary, "xb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        if others:
            last.unlink(missing_ok=True)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
        folder = os.open(last.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno not in _FOLDERS_ARE_NOT_FLUSHED:
                raise
        finally:
            os.close(folder)
    except OSError as error:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        if error.filename is None:  # as where the disk is full
            error.filename = str(path)
        raise


def write_text(text: str, path: Path) -> None:
    """As `write_whole`, in UTF-8."""
    write_whole(text.encode("utf-8"), path)


@contextlib.contextmanager
def locked_end(path: Path) -> Iterator[io.FileIO]:
    """A file, made if it is not there, to write to the end of; others that ask for it wait until this block ends.

    Where the block raises, the file is as it was, and a new one is gone: no part of a row stays. A file system without
    locks lets the others in.

    Raises:
        OSError: as the system says.
    """
    new = not path.exists()
    with open(path, "ab", buffering=0) as file:
        with contextlib.suppress(OSError):  # no locks here
            fcntl.flock(file, fcntl.LOCK_EX)
        before = os.fstat(file.fileno()).st_size
        try:
            yield file
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong first is what is told
                os.ftruncate(file.fileno(), before)
                if new and not before:
                    path.unlink()
            raise


def write_all(text: str, file: io.FileIO) -> None:
    """Write to a file without a buffer, in UTF-8; the system may take less at once than it is given."""
    left = memoryview(text.encode())
    while left:
        left = left[file.write(left) :]


def opened_itself(path: str | Path, flags: int) -> int:
    """For `open`, as its ``opener``: the file itself, never another one that a link in its place leads to.

    Raises:
        OSError: it is a link.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def expand_user(path: str | Path) -> Path:
    """`path` with ~ and ~NAME written out; as it is where there is no such user, and so no such file."""
    return Path(os.path.expanduser(path))  # pathlib's raises RuntimeError then


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `numpy.savez` wrote, by name. Nothing in it is run or unpickled.

    Raises:
        L2TFastError: the file cannot be read, is no such file, or is made to fill the memory.
    """
    try:
        with open(path, "rb") as file:
            with zipfile.ZipFile(file) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > LARGEST_ARRAYS:
                raise ValueError(f"its arrays take {size >> 20} MiB")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: np.asarray(arrays[name]) for name in arrays.files}
    except OSError as error:
        raise L2TFastError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # What a damaged file makes NumPy raise is nearly anything.
        raise L2TFastError(f"{path} cannot be read: {error}") from error


def check_archive(path: Path) -> None:
    """Raise ValueError if an archive is not as PyTorch wrote it: compressed, larger than the file, or with other bytes.

    A few kilobytes of compressed zeros would fill the memory, and PyTorch looks at no checksum: weights with a bit that
    was flipped on their way would load. A file that is no archive raises zipfile.BadZipFile.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        _check_end(file)
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
            raise ValueError("its entries overlap")
        # All are 0 where torch.serialization.set_crc32_options(False) saved time.
        if any(entry.CRC for entry in entries) and (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is another")


def is_archive(path: Path) -> bool:
    """Whether PyTorch reads a file as an archive, which it decides by the first bytes."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\3\4"


def _check_end(file: BinaryIO) -> None:
    """Raise ValueError if an archive does not end as PyTorch's do: its directory, a large one's two records, its end.

    Where it says otherwise than it is, Python looks for the directory in one place and PyTorch in another, and what was
    checked is not what is loaded.
    """
    there = file.seek(0, os.SEEK_END)
    file.seek(max(0, there - 98))
    end = file.read()
    if len(end) < 22 or end[-22:-18] != b"PK\5\6":
        raise ValueError("it does not end as an archive does")
    size, offset = struct.unpack("<II", end[-10:-2])
    where = there - 22
    if end[-42:-38] == b"PK\6\7":  # the end before it has numbers of 64 bits, and this one the way to it
        where = there - 98
        large_size, large_offset = struct.unpack("<QQ", end[40:56])
        (told,) = struct.unpack("<Q", end[-34:-26])
        known = size in (large_size, 2**32 - 1) and offset in (large_offset, 2**32 - 1)
        if end[:4] != b"PK\6\6" or told != where or not known:
            raise ValueError("its two ends differ")
        size, offset = large_size, large_offset
    if offset + size != where:
        raise ValueError("its directory is not where its end says")
