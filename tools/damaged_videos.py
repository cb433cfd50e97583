"""The damaged videos of fuzz_reader.py: ten codecs and containers, eleven ways to damage them.

A file has a number, which says what is damaged and how. Where is drawn by (seed, number).
"""

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

NUM_FRAMES, FPS, HEIGHT, WIDTH = 40, 25, 64, 96
BIT_EXACT = {"fflags": "+bitexact"}


class Video(NamedTuple):
    """How an undamaged video is written."""

    suffix: str
    encoder: str
    options: dict[str, str]
    pix_fmt: str = "yuv420p"
    container_options: dict[str, str] = BIT_EXACT
    delay: int = 0  # of FFmpeg's presentation times, which AVI does not store; in frames


X265 = "keyint=12:log-level=none:pools=none:frame-threads=1"
VIDEOS = {
    "H.264, mp4": Video(".mp4", "libx264", {"g": "12", "bf": "0"}),
    "H.264 with B-frames, mkv": Video(".mkv", "libx264", {"g": "12", "bf": "2"}),
    "H.264 with open GOPs, ts": Video(
        ".ts", "libx264", {"g": "12", "bf": "2", "x264-params": "open-gop=1"}
    ),
    "HEVC, mp4, index first": Video(
        ".mp4",
        "libx265",
        {"x265-params": X265},
        container_options={**BIT_EXACT, "movflags": "+faststart"},
    ),
    "MPEG-4 with B-frames, avi": Video(".avi", "mpeg4", {"g": "12", "bf": "2"}, delay=1),
    "MPEG-2 with B-frames, mpg": Video(".mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    "MJPEG, avi": Video(".avi", "mjpeg", {}, "yuvj420p"),
    "VP8, webm": Video(".webm", "libvpx", {"g": "12"}),
    "VP9, webm": Video(".webm", "libvpx-vp9", {"g": "12"}),
    "AV1, mkv": Video(".mkv", "libsvtav1", {"g": "12", "svtav1-params": "lp=1"}),
}


def pictures() -> Iterator[np.ndarray]:
    """A texture that moves to the left, and another that moves up in a window of it."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 255, (2, 32, 48, 3), dtype=np.uint8)
    back, front = (cv2.resize(c, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC) for c in cells)
    for number in range(NUM_FRAMES):
        picture = back[:HEIGHT, 2 * number :][:, :WIDTH].copy()
        picture[20:44, 30:66] = front[number:, :36][:24]
        yield picture


def write_videos(folder: Path) -> None:
    """Writes the undamaged videos, the same bytes each time."""
    os.environ["SVT_LOG"] = "1"  # errors only
    for name, video in VIDEOS.items():
        path = str(undamaged(folder, name))
        with av.open(path, "w", container_options=video.container_options) as container:
            stream = container.add_stream(video.encoder, rate=FPS, options=video.options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, video.pix_fmt
            stream.codec_context.thread_count = 1
            for number, picture in enumerate(pictures()):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def undamaged(folder: Path, name: str) -> Path:
    return folder / f"undamaged_{list(VIDEOS).index(name)}{VIDEOS[name].suffix}"


def part(size: int, rng: np.random.Generator, low: int, high: int) -> slice:
    """A random part, `low` to `high` long if there is as much."""
    length = min(int(rng.integers(low, high + 1)), size)
    begin = int(rng.integers(size - length + 1))
    return slice(begin, begin + length)


def change_bytes(data: bytearray, rng: np.random.Generator, most: int) -> None:
    for _ in range(rng.integers(1, most + 1)):
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))


def zero(data: bytearray, rng: np.random.Generator) -> None:
    run = part(len(data), rng, 16, 512)
    data[run] = bytes(run.stop - run.start)


def randomize(data: bytearray, rng: np.random.Generator) -> None:
    run = part(len(data), rng, 16, 512)
    data[run] = rng.bytes(run.stop - run.start)


def cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[rng.integers(1, len(data)) :]


def delete(data: bytearray, rng: np.random.Generator) -> None:
    del data[part(len(data), rng, 1, 2048)]


def duplicate(data: bytearray, rng: np.random.Generator) -> None:
    run = part(len(data), rng, 1, 2048)
    data[run.stop : run.stop] = data[run]


def swap(data: bytearray, rng: np.random.Generator) -> None:
    first, second = sorted(rng.choice(len(data) - 1024, 2, replace=False).tolist())
    length = min(int(rng.integers(1, 1025)), second - first)
    one, other = slice(first, first + length), slice(second, second + length)
    data[one], data[other] = data[other], data[one]


def lose_blocks(data: bytearray, rng: np.random.Generator) -> None:
    blocks = part(len(data) // 188, rng, 1, 4)
    del data[188 * blocks.start : 188 * blocks.stop]


def insert(data: bytearray, rng: np.random.Generator) -> None:
    place = int(rng.integers(len(data) + 1))
    data[place:place] = rng.bytes(int(rng.integers(1, 257)))


def change_headers(data: bytearray, rng: np.random.Generator) -> None:
    """Changes bytes at the beginning, at the end, or of the index of an mp4 file."""
    headers = [slice(0, 256), slice(len(data) - 256, len(data))]
    if (moov := data.find(b"moov")) >= 0:
        headers.append(slice(moov, moov + int.from_bytes(data[moov - 4 : moov])))
    header = headers[rng.integers(len(headers))]
    content = data[header]
    change_bytes(content, rng, most=8)
    data[header] = content


DAMAGES: dict[str, Callable[[bytearray, np.random.Generator], None]] = {
    "a byte changed": partial(change_bytes, most=1),
    "1 to 32 bytes changed": partial(change_bytes, most=32),
    "a run of zeros": zero,
    "a run of random bytes": randomize,
    "cut": cut,
    "a part deleted": delete,
    "a part duplicated": duplicate,
    "two parts swapped": swap,
    "blocks of 188 bytes lost": lose_blocks,
    "bytes inserted": insert,
    "headers changed": change_headers,
}


def names_of(number: int) -> tuple[str, str]:
    """Video and damage of a file; every pair occurs, as 10 and 11 have no common factor."""
    return list(VIDEOS)[number % len(VIDEOS)], list(DAMAGES)[number % len(DAMAGES)]


def damaged(folder: Path, seed: int, number: int) -> bytes:
    """The content of file `number`."""
    video, damage = names_of(number)
    data = bytearray(undamaged(folder, video).read_bytes())
    DAMAGES[damage](data, np.random.default_rng([seed, number]))
    return bytes(data)


def file_name(number: int) -> str:
    return f"{number}{VIDEOS[names_of(number)[0]].suffix}"
