"""The packets of a stream: their time stamps on one rising clock, places, fields and damage."""

import bisect
import itertools
from dataclasses import dataclass

import numpy as np
from av.video.stream import VideoStream

from hiera_video.errors import counted
from hiera_video.video.clock import WITHOUT_DTS, Fall, Stamps, find_falls, placed, rises, unwrapped
from hiera_video.video.container import damaged_offsets, filled_packets
from hiera_video.video.fields import FieldPairs
from hiera_video.video.reader import Deadline

GAP_SEC = 10.0  # between two frames; longer ones are reported. FFmpeg's dts_delta_threshold
# Formats whose frames are put together by parsers, with other offsets after a seek.
PARSED_FORMATS = frozenset({"mpegts", "mpeg"})
MAY_HIDE = frozenset({"vp8", "libvpx", "theora"})  # codecs of `_is_hidden`


@dataclass(frozen=True)
class Packets:
    """All packets of a stream, one entry each, in decoding order."""

    pts: Stamps  # on one rising clock, as `dts`
    dts: Stamps
    in_file: dict[str, Stamps]  # the same, as the file has them
    falls: list[Fall]  # of the clock of the file
    duration: list[int]  # 0 = unknown
    places: np.ndarray  # int64 [P, 2]
    is_key: np.ndarray  # bool
    is_shown: np.ndarray  # bool: neither marked as never displayed nor a second field
    is_second: np.ndarray  # bool: the second field of the frame of the packet before
    num_single: int  # fields without a second one
    damaged: frozenset[int]
    problems: list[str]  # descriptions of damage


def read_packets(stream: VideoStream, deadline: Deadline) -> Packets:
    """Reads all packets of a stream of a newly opened container, without decoding them."""
    pts, dts, duration, places, is_key, is_shown, is_second = [], [], [], [], [], [], []
    damaged: set[int] = set()
    pairs = FieldPairs(stream)
    codec = stream.codec_context.name
    may_hide = codec in MAY_HIDE
    name = stream.container.format.name
    is_parsed = name in PARSED_FORMATS
    problems: list[str] = []
    for number, packet in enumerate(filled_packets(deadline, stream, problems=problems)):
        pts.append(packet.pts)
        dts.append(packet.dts)
        duration.append(packet.duration or 0)
        places.append((-1 if packet.pos is None else packet.pos, packet.size))
        key = packet.is_keyframe
        second = (key or pairs.may_follow) and pairs.completes(packet)
        if second:  # of a frame that lasts as long as both fields, whatever is stated
            duration[-2] = 0 if None in pts[-2:] else max(0, 2 * (pts[-1] - pts[-2]))
        is_second.append(second)
        is_key.append(key and not second)
        if packet.is_corrupt:
            damaged.add(number)
        is_hidden = may_hide and _is_hidden(codec, memoryview(packet)[0])
        is_shown.append(not (packet.is_discard or is_hidden or second))
    pairs.end()
    begins = [offset for offset, _ in places]
    on_clock: tuple[Stamps, Stamps] = pts, dts
    falls = list[Fall]()
    least = int(name == "mpegts" and not any(is_second))  # in which no two frames have one time
    if not rises(dts, least):
        on_clock = unwrapped(name, pts, dts)
        is_stated = [not is_parsed or begin >= 0 for begin in begins]
        is_guessed = name in WITHOUT_DTS and bool(stream.codec_context.has_b_frames)
        shown = [time if is_in else None for time, is_in in zip(on_clock[0], is_shown, strict=True)]
        falls = find_falls(
            on_clock[1], is_stated, shown=shown, is_key=is_key, is_guessed=is_guessed, least=least
        )
    if is_parsed and places:
        # The flags of the first packet are lost, as no packet comes before it.
        end = None if damaged else begins[0]
        lost = damaged_offsets(stream, end, deadline)
        damaged = {n for n, begin in enumerate(begins) if begin in lost}
        # A packet of the container may also be the end of a frame that begins in an earlier one.
        damaged |= {bisect.bisect(begins[1:], offset) for offset in lost.difference(begins)}
        if damaged:
            damaged -= _before_recordings(on_clock[1], is_key, begins, stream)
    # The file was cut off in the last packets that are not whole: they count as missing.
    last = len(pts) - 1
    while last in damaged or (last > 0 and is_second[last] and last - 1 in damaged):
        is_shown[last] = False
        last -= 1
    if damaged:
        problems.append(f"{len(damaged)} of {counted(len(pts), 'packet')} not whole")
    placed_pts, placed_dts = placed(falls, *on_clock, duration)
    return Packets(
        placed_pts,
        placed_dts,
        {"pts": pts, "dts": dts},
        falls,
        duration,
        np.array([(-1 if is_parsed else begin, size) for begin, size in places], np.int64),
        np.array(is_key, bool),
        np.array(is_shown, bool),
        np.array(is_second, bool),
        pairs.num_single,
        frozenset(damaged),
        problems,
    )


def _is_hidden(codec: str, byte: int) -> bool:
    """Whether a packet holds no frame to show, by its first byte."""
    if codec == "theora":
        return byte >= 0x80  # a header, of a recording that was joined
    return not byte & 0x10  # of VP8: show_frame (RFC 6386, section 9.1)


def _before_recordings(
    dts: Stamps, is_key: list[bool], begins: list[int], stream: VideoStream
) -> set[int]:
    """The last packets before a key frame with which another recording begins.

    The container calls them damaged, as its next packet does not continue them.
    """
    known = [n for n, begin in enumerate(begins) if begin >= 0 and dts[n] is not None]
    longest, last = GAP_SEC / float(stream.time_base or 1), set[int]()
    for before, after in itertools.pairwise(known):
        if is_key[after] and not 0 < dts[after] - dts[before] <= longest:  # type: ignore[operator]
            last.update(range(before, after))
    return last
