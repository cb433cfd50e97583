"""Which file features were made of: its size, its time of change, its content."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable

BLOCK_BYTES = 2**20


def file_state(path: str) -> dict[str, int]:
    """Size and time of change of a file, or of the files in a folder of frames together.

    Raises:
        OSError: it cannot be read, or is neither a regular file nor a folder.
        ValueError: no file can have this name.
    """
    states = [os.stat(file) for file in _files(path)]
    return {
        "size_bytes": sum(state.st_size for state in states),
        "modified_ns": max((state.st_mtime_ns for state in states), default=0),
    }


def content_hash(path: str, progress: Callable[[], None] = lambda: None) -> str:
    """Hash of what a file holds, or of the names and contents of the files in a folder of frames.

    Args:
        progress: called after each mebibyte.

    Raises:
        OSError, ValueError: as for `file_state`.
    """
    digest = hashlib.sha256()
    for file in _files(path):
        if file != path:
            digest.update(os.fsencode(os.path.basename(file)) + b"\0")
            digest.update(os.stat(file).st_size.to_bytes(8))
        with open(file, "rb") as content:
            while block := content.read(BLOCK_BYTES):
                digest.update(block)
                progress()
    return digest.hexdigest()


def _files(path: str) -> list[str]:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        return sorted(entry.path for entry in os.scandir(path) if entry.is_file())
    if not stat.S_ISREG(mode):  # a pipe may be waited for without end
        raise OSError(errno.EINVAL, "neither a regular file nor a folder", path)
    return [path]
