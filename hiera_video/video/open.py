"""Opening a video, an image or a folder of frames with the chosen backend.

Decoding libraries are imported when the first file is opened with them.
"""

import io
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from hiera_video.files import temporary_folder
from hiera_video.settings.video import Backend, Decoding, Reading
from hiera_video.video.content import picture_format
from hiera_video.video.reader import VideoError, VideoReader, check_file

DEFAULTS = Decoding()
MAX_PATH = 4096  # bytes of the longest path

OpenVideo = Callable[..., VideoReader]
"""`open_video` with all settings: from a path, and `frames_fps` where a list states it."""


def open_video(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    backend: Backend = "pyav",
    *,
    deadline_sec: float = DEFAULTS.deadline_sec,
    frames_fps: float | None = None,
    max_frame_pixels: int = DEFAULTS.max_frame_pixels,
    max_read_gib: float = DEFAULTS.max_read_gib,
    max_gap_sec: float | None = DEFAULTS.max_gap_sec,
) -> VideoReader:
    """Opens a video, a picture as a video of one frame, or a folder of numbered frames.

    What a file is follows from its content, not from its name. Animated GIF, PNG and WebP, and TIFF
    files of several pages, are videos.

    Frame times, the stream (the first with the default disposition, without cover art) and rotation
    are the same for all backends. If another cannot read a file with the same frames as PyAV, a
    warning names the file and the reason, and PyAV is used; see `reader.backend`. Those of
    torchcodec-cuda, on the current CUDA device, have other colours, by at most 2 of 255 on average.

    Args:
        source: a path, or the content of a file as bytes or an open binary file, which is copied
            to a temporary file for the lifetime of the reader.
        backend: "pyav", "decord", "torchcodec" or "torchcodec-cuda".
        deadline_sec: wall-clock limit for opening, for a call of `frames`, and for each frame of
            `stream`. It is checked between packets; the native loops of decord and torchcodec
            cannot be interrupted during a call, so read untrusted files with PyAV.
        frames_fps: frames per second of a folder of frames, and pages of a TIFF file in a second.
            None: folders are refused, and pages count as 25 frames per second.
        max_frame_pixels: larger frames are refused, before they are decoded.
        max_read_gib: larger calls of `frames` are refused, before the memory is allocated.
        max_gap_sec: longer times between two frames are shortened to it. None: they are kept.

    Raises:
        VideoError: the file cannot be read; `.cause` is one of `hiera_video.video.reader.Cause`.
        TypeError: `source` is something else.
        ConfigError: an unknown backend, one that needs a GPU without one, or a limit that is not
            positive.
        MissingLibrary: the library of the backend is not installed.
    """
    decoding = Decoding(
        backend=backend,
        frames_fps=frames_fps,
        deadline_sec=deadline_sec,
        max_frame_pixels=max_frame_pixels,
        max_read_gib=max_read_gib,
        max_gap_sec=max_gap_sec,
    )
    if not isinstance(source, str | os.PathLike):  # decoders open a file more than once
        _check_content(source)
        suffix = Path(str(getattr(source, "name", ""))).suffix
        copy = tempfile.NamedTemporaryFile(suffix=suffix, dir=temporary_folder())  # noqa: SIM115
        shutil.copyfileobj(io.BytesIO(source) if isinstance(source, bytes) else source, copy)
        copy.flush()
        reader = opener(decoding)(copy.name)
        weakref.finalize(reader, copy.close)  # which deletes it
        return reader
    return opener(decoding)(os.path.expanduser(source))


def _check_content(source: object) -> None:
    """Raises TypeError for what is neither the content of a file nor a file that has it."""
    if isinstance(source, io.TextIOBase):
        raise TypeError("source is a file opened as text: open it by open(path, 'rb')")
    if isinstance(source, bytes) and len(source) < MAX_PATH and os.path.exists(source):
        raise TypeError(f"source is the path {source!r} as bytes: give os.fsdecode(source)")
    if not isinstance(source, bytes) and not hasattr(source, "read"):
        raise TypeError(
            f"source is a {type(source).__name__}: expected one path, the content of a file as "
            "bytes, or an open binary file"
        )


def opener(decoding: Decoding, num_frames: int = 1) -> OpenVideo:
    """`open_video` with the settings of a command.

    Args:
        num_frames: of the clips that are read. If there are several, a still picture is an error,
            unless the settings allow it.

    Raises:
        ConfigError: the backend needs a GPU, and there is none.
    """
    is_strict = num_frames > 1 and isinstance(decoding, Reading) and not decoding.stills
    gpu = None
    if decoding.backend == "torchcodec-cuda":
        from hiera_video.video.backends.torchcodec_cuda import current_gpu

        gpu = current_gpu()  # of this process, which decoding processes do not know
    return partial(_open, limits=decoding, takes_stills=not is_strict, gpu=gpu)


def _open(
    path: str,
    limits: Decoding,
    frames_fps: float | None = None,
    *,
    takes_stills: bool,
    gpu: str | None,
) -> VideoReader:
    backend, frames_fps = limits.backend, frames_fps or limits.frames_fps
    if frames_fps is not None and os.path.isdir(path):
        from hiera_video.video.backends.frames import FrameFolderReader

        return FrameFolderReader(path, limits, frames_fps)
    check_file(path)
    if (kind := picture_format(path)) is not None:
        from hiera_video.video.backends.moving_picture import open_picture

        picture = open_picture(path, kind, limits, frames_fps)
        if len(picture) == 1 and not takes_stills:
            sentence = (
                "is a picture, and clips have several frames; leave it out, or set "
                "data.stills=true to take pictures as clips in which nothing moves"
            )
            raise VideoError(path, "not_a_video", sentence)
        return picture

    from hiera_video.video.backends.pyav import PyavReader

    if backend == "pyav":
        return PyavReader(path, limits)
    from hiera_video.video.backends.checked import BackendRefusal, warn_about_refusal

    reader_class: Callable[[PyavReader], VideoReader]
    if backend == "decord":
        from hiera_video.video.backends.decord import DecordReader as reader_class
    elif gpu is None:
        from hiera_video.video.backends.torchcodec import TorchcodecReader as reader_class
    else:
        from hiera_video.video.backends.torchcodec_cuda import TorchcodecCudaReader

        reader_class = partial(TorchcodecCudaReader, device=gpu)
    exact = PyavReader(path, limits)
    try:
        return reader_class(exact)
    except BackendRefusal as refusal:
        warn_about_refusal(path, backend, refusal)
        return exact
    except BaseException:
        exact.close()
        raise
