"""Opening files that kill or hang their process, by name; in a module that workers can import."""

from __future__ import annotations

import os
import time

from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoReader


def open_or_die(path: str) -> VideoReader:
    """`open_video`, but some names crash, hang, or fail in a way that nobody foresaw."""
    name = os.path.basename(path)
    if name.startswith("exit"):
        os._exit(7)
    if name.startswith("abort"):
        os.abort()
    if name.startswith("hang"):
        time.sleep(1e6)
    if name.startswith("surprise"):
        raise KeyError("surprise")
    if name.startswith("no_library"):
        raise ImportError("pip install something")
    return open_video(path)


def open_with_a_defect(path: str) -> VideoReader:
    """What a mistake in the package does."""
    raise ZeroDivisionError("a defect of ours")
