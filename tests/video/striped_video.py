"""Videos whose frames state their own number in black and white stripes, and how to read it."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

NUM_BITS = 10


def striped_frame(number: int, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: 10 stripes in the upper half, a moving texture in the lower one."""
    rows, columns = np.mgrid[:height, :width]
    shades = [128 + 80 * np.sin((columns + 3 * number) / (5 + c) + rows / 7) for c in range(3)]
    frame = np.stack(shades, -1).astype(np.uint8)
    bits = (number >> np.arange(NUM_BITS)[::-1]) & 1
    frame[: height // 2] = 255 * bits[np.arange(width) * NUM_BITS // width, None].astype(np.uint8)
    return frame


def read_number(frame: np.ndarray) -> int:
    """The number that a decoded frame [H, W, 3] of any size states."""
    height, width = frame.shape[:2]
    centres = ((np.arange(NUM_BITS) + 0.5) * width / NUM_BITS).astype(int)
    bits = frame[height // 8 : height * 3 // 8][:, centres].mean((0, 2)) > 127
    return int(bits @ (1 << np.arange(NUM_BITS)[::-1]))


def make_striped_video(
    path: Path,
    num_frames: int = 60,
    size: tuple[int, int] = (64, 96),
    *,
    fps: int | Fraction = 25,
    pts: Sequence[int] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    streams: Sequence[int] = (0,),
    default_stream: int | None = None,
    cover_art: bool = False,
    container_options: dict[str, str] | None = None,
    title: str | None = None,
) -> Path:
    """Write a striped video; the container follows from the suffix.

    Args:
        size: (height, width) as displayed, that is after rotation.
        pts: presentation times in units of 1/1000 s, instead of a constant rate.
        rotation: degrees, counter-clockwise, by which a player turns the stored frames.
        streams: the number of the first frame in each video stream.
        default_stream: the only stream marked as default.
        cover_art: put an attached picture before the video streams.
        title: entry of the metadata.
    """
    height, width = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        if title is not None:
            container.metadata["title"] = title
        if cover_art:
            cover = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
            cover.disposition = Disposition.attached_pic.value
        encoders = []
        for index in range(len(streams)):
            stream = container.add_stream(codec, rate=fps, options=dict(options or {}))
            stream.height, stream.width = (width, height) if rotation % 180 else (height, width)
            stream.pix_fmt = pix_fmt
            stream.codec_context.thread_count = 1
            if rotation:
                pytest.importorskip("av", "18", reason="older PyAV cannot write a rotation")
                stream.set_display_rotation(rotation)
            if default_stream is not None:
                stream.disposition = Disposition.default.value if index == default_stream else 0
            if pts is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            encoders.append(stream)
        if cover_art:
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            container.mux(cover.encode(picture.reformat(format="yuvj420p")))
            container.mux(cover.encode(None))
        for number in range(num_frames):
            for stream, first in zip(encoders, streams, strict=True):
                upright = striped_frame(first + number, height, width)
                stored = np.ascontiguousarray(np.rot90(upright, -rotation // 90))
                picture = av.VideoFrame.from_ndarray(stored, format="rgb24")
                picture.pts = number if pts is None else pts[number]
                picture.time_base = 1 / Fraction(fps) if pts is None else Fraction(1, 1000)
                container.mux(stream.encode(picture))
        for stream in encoders:
            container.mux(stream.encode(None))
    return path


def make_audio(path: Path) -> Path:
    """One second of silence, without a video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for _ in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decode_linearly(path: Path, stream_index: int = 0) -> list[np.ndarray]:
    """All frames uint8 [H, W, 3], upright, decoded from the first to the last: the reference."""
    with av.open(str(path)) as container:
        streams = [s for s in container.streams.video if s.disposition != Disposition.attached_pic]
        frames = list(container.decode(streams[stream_index]))
    return [
        np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)) for frame in frames
    ]
