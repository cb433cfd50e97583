"""Colour matrices that FFmpeg's scaler (swscale) does not know, by their numbers in ITU-T H.273.

It refuses frames that state one of them. The nearest one that it knows is taken: colours are wrong
to some degree, and brightness, shapes and motion are right.
"""

import av

from hiera_video.video.reader import warn_once

UNSPECIFIED = 2
_NAMES = {1: "BT.709", UNSPECIFIED: "BT.601", 5: "BT.601", 7: "SMPTE 240M", 9: "BT.2020"}

# Number -> name, and the nearest known matrix. Mean error on photographs, in levels of 255.
# fmt: off
_UNKNOWN = {
    3: ("reserved", UNSPECIFIED),
    8: ("YCgCo", 1),                # 11.8, with BT.601 12.4
    10: ("BT.2020 with constant luminance", 9),  # 3.0
    11: ("SMPTE 2085", 1),          # 3.1, with BT.2020 3.8
    14: ("ICtCp", 9),               # the other matrix of BT.2100: 5.3 for HLG, 14.3 for PQ
    15: ("IPT of Dolby Vision", 9), # 30
    16: ("YCgCo-Re", 1),
    17: ("YCgCo-Ro", 1),
}
# 12 and 13 are computed from the primaries (H.273, equations 32 to 37). Primaries -> the nearest
# known matrix, with an error of at most 0.4 levels, 3 for XYZ (10).
_OF_PRIMARIES = {1: 1, 4: 5, 5: 1, 6: 7, 7: 7, 8: 9, 9: 9, 10: 1, 11: 1, 12: 7, 22: 7}
# fmt: on


def take_known_matrix(path: str, frame: av.VideoFrame) -> None:
    """Makes a frame state a colour matrix that swscale knows, with one warning for each file."""
    # PyAV 17.0 lets swscale refuse values of these that do not matter here.
    frame.color_primaries, primaries = UNSPECIFIED, frame.color_primaries
    frame.color_trc = UNSPECIFIED
    stated = frame.colorspace
    if stated in (12, 13):
        name, nearest = "derived from its primaries", _OF_PRIMARIES.get(primaries, UNSPECIFIED)
    elif stated in _UNKNOWN:
        name, nearest = _UNKNOWN[stated]
    elif stated > 17:
        name, nearest = "reserved", UNSPECIFIED
    else:
        return
    frame.colorspace = nearest
    if frame.format.is_rgb or len(frame.format.components) < 3:  # grey: no matrix concerns them
        return
    warn_once(
        f"{path}: its colour matrix ({name}, number {stated} of H.273) is one that FFmpeg's scaler "
        f"lacks; {_NAMES[nearest]} is taken, the nearest, and colours are not exact"
    )
