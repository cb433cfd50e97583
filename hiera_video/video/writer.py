"""Writing frames as an mp4 file."""

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from hiera_video.files import replacing

MAX_RATE_DENOMINATOR = 1001  # keeps rates such as 30000/1001 exact


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    *,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
) -> int:
    """Encodes frames as an mp4 file of constant frame rate and returns their number.

    An existing file is replaced when the new one is complete.

    Args:
        path: the file to write.
        frames: uint8 [H, W, 3] RGB each, all of one size, H and W even (4:2:0 chroma).
        fps: frames per second.
        codec: a libav encoder.
        options: options of that encoder, e.g. {"crf": "18", "g": "30"}.

    Raises:
        ValueError: no frames, an odd or changing size, another dtype, a rate that is not positive.
    """
    import av

    if not fps > 0:
        raise ValueError(f"fps={fps} must be positive")
    rate = Fraction(fps).limit_denominator(MAX_RATE_DENOMINATOR)
    path = Path(path).absolute()  # libav would take "clip:1.mp4" for a protocol
    shape: tuple[int, ...] | None = None
    num_frames = 0
    with replacing(path) as part, av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                found = f"{frame.dtype} {list(frame.shape)}"
                raise ValueError(f"frame {num_frames} is {found}; allowed is uint8 [H, W, 3]")
            if shape is None:
                shape = frame.shape
                if shape[0] % 2 or shape[1] % 2:
                    raise ValueError(
                        f"frame 0 has {shape[0]} x {shape[1]} pixels (height x width); both must "
                        "be even, crop or pad by one"
                    )
                stream.height, stream.width = shape[:2]
                stream.pix_fmt = "yuv420p"
            if frame.shape != shape:
                size = list(frame.shape)
                raise ValueError(f"frame {num_frames} is {size}, the first is {list(shape)}")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = num_frames
            picture.time_base = 1 / rate
            container.mux(stream.encode(picture))
            num_frames += 1
        if num_frames == 0:
            raise ValueError(f"{path}: there are no frames to write")
        container.mux(stream.encode(None))
    return num_frames
