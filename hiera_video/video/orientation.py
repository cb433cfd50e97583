"""How the stored frames of a video or picture are to be shown: one of eight orientations."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8


class Orientation(NamedTuple):
    """What turns a stored frame into the upright one, in this order."""

    is_transposed: bool = False  # rows become columns
    is_flipped: bool = False  # the upper row becomes the lower one
    is_mirrored: bool = False  # left becomes right


# By the value of the EXIF tag Orientation (0x0112).
EXIF_ORIENTATIONS = {
    1: Orientation(),
    2: Orientation(is_mirrored=True),
    3: Orientation(is_flipped=True, is_mirrored=True),
    4: Orientation(is_flipped=True),
    5: Orientation(is_transposed=True),
    6: Orientation(is_transposed=True, is_mirrored=True),
    7: Orientation(is_transposed=True, is_flipped=True, is_mirrored=True),
    8: Orientation(is_transposed=True, is_flipped=True),
}


def orientation_of(matrix: bytes | memoryview | None) -> Orientation:
    """The orientation nearest to a display matrix, nine int32 (a, b, u, c, d, v, x, y, w).

    The pixel in column x and row y is shown in column a x + c y and row b x + d y, up to a shift
    (ISO/IEC 14496-12, 8.3.2). A matrix of zeros shows nothing and stands for none.
    """
    if matrix is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, is_flipped=b < 0, is_mirrored=c < 0)
    return Orientation(is_flipped=d < 0, is_mirrored=a < 0)


def upright(
    frame: UInt8[np.ndarray, "rows columns C"], orientation: Orientation
) -> UInt8[np.ndarray, "H W C"]:
    """The frame as it is to be shown, contiguous; the frame itself if nothing is to be done."""
    if orientation.is_transposed:
        frame = frame.transpose(1, 0, 2)
    if orientation.is_flipped:
        frame = frame[::-1]
    if orientation.is_mirrored:
        frame = frame[:, ::-1]
    return np.ascontiguousarray(frame)
