"""The index of a video: its stream, frame times and key frames, found by scanning its packets.

The scan reads packets without decoding them. Which frames exist is never taken from the frame
count, duration or frame rate of a header. If packets alone do not determine the order of
presentation (AVI stores no presentation times, raw streams no times at all), all frames are decoded
once.
"""

import bisect
import itertools
import os
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import av
import numpy as np
from av.video.stream import VideoStream

from hiera_video.errors import counted
from hiera_video.settings.video import Decoding
from hiera_video.video.clock import (
    WITHOUT_DTS,
    Fall,
    Stamps,
    evened,
    find_falls,
    fits_b_frames,
    jumps_within_groups,
    placed,
    without_gaps,
)
from hiera_video.video.container import (
    choose_stream,
    filled_packets,
    missing_end,
    open_container,
    unread_recording,
    video_streams,
)
from hiera_video.video.decoder import Decoder
from hiera_video.video.packets import GAP_SEC, PARSED_FORMATS, Packets, read_packets
from hiera_video.video.reader import Deadline, VideoError, warn_once

MAX_NOT_CODED_BYTES = 16
FALLBACK_FPS = 25.0  # libavformat's, for streams that state no rate
NO_STAMP = np.iinfo(np.int64).min
# Long videos are opened once for each of hundreds of clips; short ones are indexed quickly.
MIN_CACHED_FRAMES = 3_000
MAX_CACHED_FRAMES = 4_000_000  # of all videos together, 64 bytes each; 150 times 15 minutes


@dataclass(frozen=True)
class VideoIndex:
    """One stream: P packets numbered from 0 in decoding order, and the F frames presented."""

    container: str  # libavformat's name, e.g. "avi"
    stream_index: int
    num_streams: int  # real video streams in the file
    # The time stamp that identifies a packet after a seek: "pts" if these order the frames too.
    stamp_name: Literal["pts", "dts"] | None
    # int64, packet number -> that time stamp as the file has it, in the stream's time base. They
    # repeat in joined recordings. NO_STAMP: second fields may have none.
    stamps: np.ndarray
    places: np.ndarray  # int64 [P, 2], bytes: offset in the file, -1 if it may differ, and size
    packet_of: np.ndarray  # int64 [F], the packet of each frame, or of its first field
    last_of: np.ndarray  # int64 [F], the same packet, or that of its second field
    position_of: np.ndarray  # int64 [P], the frame of each packet, or -1
    start_of: np.ndarray  # int64 [F], the key frame's packet at which decoding the frame begins
    has_single_fields: bool  # which change how decoders pair others, unless all are decoded
    frame_times_sec: np.ndarray  # float64 [F]
    end_sec: float
    pixel_aspect: Fraction  # width / height of a stored pixel, 1 if the file states none
    damaged: frozenset[int]  # packets that the scan found damaged; reading may find more
    damage: str | None  # description of what is damaged, missing or joined
    note: str | None  # description of long gaps between frames

    def is_packet(self, number: int, packet: av.Packet) -> bool:
        """Whether it is that packet; in damaged files, time stamps may differ after a seek."""
        if packet.size != self.places.item(number, 1):
            return False
        offset = self.places.item(number, 0)
        return offset < 0 or packet.pos == offset

    @property
    def key_positions(self) -> list[int]:
        """Positions of the frames at which decoding can begin."""
        return np.flatnonzero(self.packet_of == self.start_of).tolist()

    @cached_property
    def last_shown(self) -> np.ndarray:
        """int64 [P], the last position among the frames of a packet and of all earlier ones.

        Decoders return frames in the order of presentation. One of that position or a later one
        shows that everything which the packet's frame may refer to has been returned.
        """
        return np.maximum.accumulate(self.position_of)

    def is_intact(self, number: int, decoder: Decoder, first: int) -> bool:
        """Whether the frame of a packet relies on no damaged one.

        What it may rely on stands between it and the latest key frame that is presented no later.
        After a seek, libav flags frames that are presented before the key frame, and to which none
        after it refers.

        Args:
            decoder: it has returned everything up to this packet.
            first: the packet with which it began.
        """
        if not (decoder.flagged or decoder.damaged):
            return True
        position = self.position_of
        latest_first = reversed(decoder.keys)
        keys = (k for k in latest_first if k <= number and position[k] <= position[number])
        key = next(keys, first)
        relied_on = range(key, int(self.last_of[position[number]]) + 1)
        flagged = decoder.flagged
        if key == first:
            flagged = {n for n in flagged if not 0 <= position[n] < position[key]}
        return not any(n in relied_on for n in itertools.chain(flagged, decoder.damaged))

    @property
    def has_leading_frames(self) -> bool:
        """Whether a frame is presented before a key frame that is decoded earlier (open GOP)."""
        keys = self.packet_of[self.key_positions]
        start, own = (np.searchsorted(keys, n, "right") for n in (self.start_of, self.packet_of))
        return bool(np.any(start < own))  # a key frame lies between the start and the frame


_cache: dict[tuple[str, int, int, float | None], VideoIndex] = {}  # the most recently used last


def cached_scan(path: str, stream: VideoStream, limits: Decoding) -> VideoIndex:
    """`scan`, whose results for long videos are cached: it takes 4 times as long as a clip."""
    status = os.stat(path)
    key = (os.path.abspath(path), status.st_size, status.st_mtime_ns, limits.max_gap_sec)
    index = _cache.pop(key, None) or scan(path, stream, limits)
    if len(index.packet_of) >= MIN_CACHED_FRAMES:
        _cache[key] = index  # at the end
        while sum(len(kept.packet_of) for kept in [*_cache.values()]) > MAX_CACHED_FRAMES:
            del _cache[next(iter(_cache))]
    return index


def scan(path: str, stream: VideoStream, limits: Decoding) -> VideoIndex:
    """Reads the packets of a stream of a newly opened container and orders its frames.

    Raises:
        VideoError: the cause is "no_frames", "timeout", or "truncated" if no frame decodes.
    """
    deadline = Deadline(path, limits.deadline_sec)
    packets = read_packets(stream, deadline)
    if not packets.is_shown.any():
        if packets.damaged:
            raise VideoError(path, "truncated", "no frame of it is whole; fetch it again")
        raise VideoError(path, "no_frames", "holds no video frames; leave it out")
    stamp_name: Literal["pts", "dts"] | None = None
    if _has_ordered_timestamps(packets, stream):
        stamp_name = "pts"
        firsts = np.flatnonzero(~packets.is_second)
        by_time = firsts[np.argsort(_stamps(packets.pts)[firsts])]
    else:
        if _all_differ(packets.dts, packets.is_second):
            stamp_name = "dts"
        by_time, packets = _decoded_order(path, packets, limits, deadline)

    # Decoding begins at the latest key frame that is presented no later than the frame itself.
    starts = np.maximum.accumulate(np.where(packets.is_key[by_time], by_time, 0))
    starts = np.where(starts <= by_time, starts, 0)
    if stream.codec_context.pix_fmt == "pal8":  # a palette may come with the first packet only
        starts, stamp_name = np.zeros_like(starts), None
    stamps: Stamps = packets.in_file[stamp_name] if stamp_name else []
    shown = packets.is_shown[by_time]
    order, starts = by_time[shown], starts[shown]
    if len(order) == 0:
        raise VideoError(path, "truncated", "no frame of it decodes; fetch it again")

    position_of = np.full(len(packets.pts), -1, np.int64)
    position_of[order] = np.arange(len(order))
    seconds = np.flatnonzero(packets.is_second & (position_of < 0))
    position_of[seconds] = position_of[seconds - 1]
    is_pair = np.zeros(len(position_of) + 1, bool)
    is_pair[seconds] = True

    times, end_sec, falls = _presentation_times(packets, order, position_of, stream)
    note = _long_gaps(times)
    if limits.max_gap_sec is not None:
        excess = np.maximum(np.diff(times, prepend=times[0]) - limits.max_gap_sec, 0).cumsum()
        times, end_sec = times - excess, end_sec - float(excess[-1])
    problems = [*packets.problems, *falls]
    if not packets.falls and (problem := _missing_end(packets, stream, deadline)):
        problems.append(problem)
    name, end = stream.container.format.name, _end(packets.places)
    if problem := unread_recording(path, name, end, deadline):
        problems.append(problem)
    damage = f"is damaged: {'; '.join(problems)}" if problems else None
    for sentence in (damage, note):
        if sentence is not None:
            warn_once(f"{path}: {sentence}")
    return VideoIndex(
        container=stream.container.format.name,
        stream_index=stream.index,
        num_streams=len(video_streams(stream.container)),
        stamp_name=stamp_name,
        stamps=_stamps(stamps),
        places=packets.places,
        packet_of=order,
        last_of=order + is_pair[order + 1],
        position_of=position_of,
        start_of=starts,
        has_single_fields=packets.num_single > 0,
        frame_times_sec=times,
        end_sec=end_sec,
        pixel_aspect=stream.sample_aspect_ratio or Fraction(1),
        damaged=packets.damaged,
        damage=damage,
        note=note,
    )


def _some(places: list[str]) -> str:
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    return ", ".join(places[:5]) + more


def _long_gaps(times_sec: np.ndarray) -> str | None:
    """Describes long times without a frame."""
    steps = np.diff(times_sec)
    if steps.max(initial=0) <= GAP_SEC:
        return None
    gaps = [
        f"for {steps[n]:.3f} s after frame {n} (at {times_sec[n]:.3f} s)"
        for n in np.flatnonzero(steps > max(GAP_SEC, 10 * np.median(steps)))
    ]
    advice = "max_gap_sec limits how much of a gap counts as time"
    return f"has no frame {_some(gaps)}; {advice}" if gaps else None


def _missing_end(packets: Packets, stream: VideoStream, deadline: Deadline) -> str | None:
    is_avi = stream.container.format.name == "avi"
    stamps = sorted(t for t in (packets.dts if is_avi else packets.pts) if t is not None)
    if not stamps:
        return None
    ends = [t + d for t, d in zip(packets.pts, packets.duration, strict=True) if t is not None]
    return missing_end(stream, stamps, max(ends, default=0), deadline)


def _end(places: np.ndarray) -> int:
    """Where the last packet ends in the file; -1 if that is unknown."""
    return int(places.sum(1).max()) if places[:, 0].min() >= 0 else -1


def _stamps(stamps: Stamps) -> np.ndarray:
    return np.array([NO_STAMP if time is None else time for time in stamps], np.int64)


def _all_differ(stamps: Stamps, is_second: np.ndarray) -> bool:
    if is_second.any():
        stamps = [stamps[number] for number in np.flatnonzero(~is_second).tolist()]
    return None not in stamps and len(set(stamps)) == len(stamps)


def _has_ordered_timestamps(packets: Packets, stream: VideoStream) -> bool:
    """Whether presentation times determine the order of frames."""
    if packets.num_single or not _all_differ(packets.pts, packets.is_second):
        return False
    if stream.container.format.name == "avi" and stream.codec_context.has_b_frames:
        return False  # libavformat guesses the presentation times, often wrongly
    pts = _stamps(packets.pts)
    if stream.container.format.name in PARSED_FORMATS:
        has_order = stream.codec_context.name in ("mpeg1video", "mpeg2video")
        if has_order and not fits_b_frames(packets.pts, packets.dts, packets.is_second):
            return False
        if not has_order and jumps_within_groups(packets.dts, packets.is_key.tolist()):
            return False
    # Frames before the first key frame of a recording, in either order, may or may not decode.
    bounds = [0, *(fall.number for fall in packets.falls), len(pts)]
    for begin, stop in itertools.pairwise(bounds):
        shown = begin + np.flatnonzero(packets.is_shown[begin:stop])
        first_key = begin + int(np.argmax(packets.is_key[begin:stop]))
        is_first = packets.is_key[first_key] and first_key <= shown.min(initial=stop)
        if len(shown) and not (is_first and pts[first_key] <= pts[shown].min()):
            return False
    return True


def _decoded_order(
    path: str, packets: Packets, limits: Decoding, deadline: Deadline
) -> tuple[np.ndarray, Packets]:
    """Packet numbers in the decoder's order of presentation, int64; the packets, corrected.

    A packet that fails keeps a place in the order, so that later frames keep theirs.
    """
    found: dict[int, None] = {}  # numbers, in order
    is_key = packets.is_key.copy()
    with open_container(path, limits.deadline_sec) as container:
        stream = choose_stream(path, container)
        is_complete = NO_STAMP not in _stamps(packets.pts)[packets.is_shown]
        is_timed = is_complete and container.format.name != "avi"
        decoder = Decoder(stream, limits.max_frame_pixels)
        decoder.begin(packets.damaged)
        for number, packet in enumerate(itertools.chain(filled_packets(deadline, stream), [None])):
            for frame in decoder.decode(number, packet):
                first_field = frame.pts - int(packets.is_second[frame.pts])
                found[first_field] = None
                is_key[first_field] &= bool(frame.key_frame)
    order = list(found)
    damaged = decoder.damaged | decoder.flagged
    if damaged.issuperset(order):
        raise VideoError(path, "truncated", "no frame of it decodes; fetch it again")

    # A recording may begin in the middle of a group of pictures, whose frames do not count.
    first = order[0]
    pts: Any = packets.pts
    missing = [
        number
        for number in np.flatnonzero(packets.is_shown).tolist()
        if number not in found and number > first and not (is_timed and pts[number] < pts[first])
    ]
    for number in sorted(damaged.intersection(missing)):
        if is_timed:
            place = bisect.bisect(order, pts[number], key=pts.__getitem__)
        else:  # somewhere in its group of pictures, whose other frames may have moved
            place = 1 + max(i for i, earlier in enumerate(order) if earlier < number)
            damaged.update(np.flatnonzero(is_key[:number])[-1:].tolist())
        order.insert(place, number)
        is_key[number] = False
    problems = [*packets.problems]
    if failed := damaged.intersection(order) - packets.damaged:
        problems.append(f"{len(failed)} of {len(order)} frames do not decode")
    # A packet of few bytes repeats the picture before it: an MPEG-4 VOP that is not coded.
    filled = np.flatnonzero(packets.places[:, 1] > MAX_NOT_CODED_BYTES).tolist()
    if silent := set(missing).intersection(filled) - damaged:
        problems.append(f"{counted(len(silent), 'packet')} without a frame")
    return np.array(order, np.int64), replace(
        packets, is_key=is_key, damaged=frozenset(damaged), problems=problems
    )


def _presentation_times(
    packets: Packets, order: np.ndarray, position_of: np.ndarray, stream: VideoStream
) -> tuple[np.ndarray, float, list[str]]:
    """Times of frames in presentation order, float64 [F], and the end of the last; seconds. And a
    description of the falls of the clock."""
    unit, name = float(stream.time_base or 0), stream.container.format.name
    rate = stream.average_rate or stream.guessed_rate
    usual = 1.0 / float(rate) if rate else 1.0 / FALLBACK_FPS
    numbers = order.tolist()
    falls = [
        Fall(int(frames.min()), ticks)
        for number, ticks in packets.falls
        if len(frames := position_of[number:][position_of[number:] >= 0])
    ]
    pts = _seconds([packets.pts[n] for n in numbers], unit)
    is_ordered = name != "avi" and _ascend(pts)
    if name in WITHOUT_DTS and not is_ordered:
        # Each time is in the file, and the decoder has shown in which order they should ascend.
        in_file = [packets.in_file["pts"][n] for n in numbers]
        falls = find_falls(in_file, [True] * len(numbers))
        shown, _ = placed(falls, in_file, in_file, [packets.duration[n] for n in numbers])
        pts = _seconds(shown, unit)
        is_ordered = _ascend(pts)
    if is_ordered:
        times = pts
    else:
        close = without_gaps(packets.falls, packets.dts, packets.duration)
        dts = _seconds([close[n] for n in sorted(numbers)], unit)
        times = np.arange(len(order)) * usual if np.isnan(dts).any() else np.sort(dts)
    if name == "mpeg":  # a program stream states few times, and libavformat guesses the others
        stated = pts if is_ordered else dts
        if falls or np.isnan(stated).any() or np.diff(stated).min(initial=usual) < usual / 2:
            counts = (1, 2) if packets.is_second.any() else (1,)  # libavformat may count fields
            rates = [1 / usual / count for count in counts]
            times = evened(stated, [fall.number for fall in falls], rates, times)
    last = packets.duration[numbers[-1]] * unit
    if last <= 0:
        last = float(np.median(np.diff(times))) if len(times) > 1 else usual
    places = [f"by {fall.ticks * unit:.3f} s before frame {fall.number}" for fall in falls]
    sentence = f"its clock falls back {_some(places)} (another recording may begin there)"
    end_sec = float(times[-1]) + (last if last > 0 else usual)
    return times, end_sec, [sentence] if places else []


def _seconds(stamps: Stamps, unit: float) -> np.ndarray:
    return np.array(stamps, np.float64) * unit  # None -> nan


def _ascend(times: np.ndarray) -> bool:
    return bool(times[0] > -np.inf and np.all(times[1:] > times[:-1]))
