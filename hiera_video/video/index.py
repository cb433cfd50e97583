"""The index of a video: its stream, frame times and key frames, found by scanning its packets.

The scan reads packets without decoding them. Which frames exist is never taken from the frame
count, duration or frame rate of a header. If packets alone do not determine the order of
presentation (AVI stores no presentation times, raw streams no times at all), all frames are decoded
once.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import Container, InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from hiera_video.video.reader import Deadline, VideoError, warn_once

NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
MP4_BOXES = (b"ftyp", b"mdat", b"wide", b"skip", b"free")
FALLBACK_FPS = 25.0  # libavformat's, for streams that state no rate
# Long videos are opened once for each of hundreds of clips; short ones are indexed quickly.
MIN_CACHED_FRAMES = 3_000
MAX_CACHED_FRAMES = 4_000_000  # of all videos together, 32 bytes each; 150 times 15 minutes


@dataclass(frozen=True)
class VideoIndex:
    """One stream: packets numbered from 0 in decoding order, and the F frames presented."""

    container: str  # libavformat's name, e.g. "avi"
    stream_index: int
    num_streams: int  # real video streams in the file
    # The time stamp that identifies a packet after a seek: "pts" if these order the frames too.
    stamp_name: Literal["pts", "dts"] | None
    stamps: np.ndarray  # int64, packet number -> that time stamp, in the stream's time base
    packet_of: np.ndarray  # int64 [F], the packet of each frame
    start_of: np.ndarray  # int64 [F], the key frame's packet at which decoding the frame begins
    frame_times_sec: np.ndarray  # float64 [F]
    end_sec: float
    damage: str | None  # description of what is missing from the file

    @property
    def key_positions(self) -> list[int]:
        """Positions of the frames at which decoding can begin."""
        return np.flatnonzero(self.packet_of == self.start_of).tolist()

    @property
    def has_leading_frames(self) -> bool:
        """Whether a frame is presented before a key frame that is decoded earlier (open GOP)."""
        keys = self.packet_of[self.key_positions]
        start, own = (np.searchsorted(keys, n, "right") for n in (self.start_of, self.packet_of))
        return bool(np.any(start < own))  # a key frame lies between the start and the frame


_cache: dict[tuple[str, int, int], VideoIndex] = {}  # the most recently used last


@dataclass(frozen=True)
class _Packets:
    """One entry per packet, in decoding order."""

    pts: list[int | None]
    dts: list[int | None]
    duration: list[int]  # 0 = unknown
    is_key: np.ndarray  # bool
    is_shown: np.ndarray  # bool: complete, and not marked as decoded but never displayed
    damage: str | None


def open_container(path: str, deadline_sec: float) -> InputContainer:
    """Opens a file with libavformat.

    Raises:
        VideoError: the file cannot be opened; the sentence states why.
    """
    # PyAV before 19 opens files whose metadata is not UTF-8; PyAV 19 has no such argument.
    has_option = hasattr(InputContainer, "metadata_errors")
    options = {"metadata_errors": "replace"} if has_option else {}
    try:
        # An absolute path, because libav would take "clip:1.mp4" for a protocol.
        return av.open(os.path.abspath(path), timeout=deadline_sec, **options)
    except av.error.ExitError as error:
        raise VideoError(
            path, "timeout", f"opening did not end within deadline_sec={deadline_sec:g}"
        ) from error
    except (av.error.FFmpegError, OSError) as error:
        try:
            with Path(path).open("rb") as file:
                is_mp4 = file.read(12)[4:8] in MP4_BOXES
        except OSError:
            raise VideoError(path, "missing", f"cannot be read ({error.strerror})") from error
        if is_mp4:
            sentence = "its MP4 index (moov) is missing or damaged: it was cut off; fetch it again"
            raise VideoError(path, "truncated", sentence) from error
        sentence = f"is not a video that libav can read ({error.strerror}); fetch it again"
        raise VideoError(path, "not_a_video", sentence) from error


def video_streams(container: Container) -> list[VideoStream]:
    """The video streams of a file, without cover art and thumbnails."""
    return [s for s in container.streams.video if not s.disposition & NO_VIDEO]


def choose_stream(path: str, container: InputContainer) -> VideoStream:
    """The first video stream marked as default, else the first one.

    Raises:
        VideoError: there is none, or PyAV has no decoder for it.
    """
    streams = video_streams(container)
    if not streams:
        what = "only cover art" if container.streams.video else "no video stream"
        raise VideoError(path, "no_video_stream", f"has {what}; leave the file out of the list")
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise VideoError(
            path, "backend", "has a codec that the installed PyAV lacks; convert it to H.264"
        )
    for other in container.streams:
        if other.index != stream.index and hasattr(av.stream, "Discard"):  # since PyAV 18
            other.discard = av.stream.Discard.all  # the demuxer does not read these streams
    return stream


def filled_packets(path: str, stream: VideoStream) -> Iterator[av.Packet]:
    """Packets of a stream that hold data, up to the end of the file or of its readable part."""
    try:
        for packet in stream.container.demux(stream):  # type: ignore[attr-defined]
            if packet.size:  # neither an empty AVI chunk nor PyAV's end marker
                yield packet
    except av.error.ExitError as error:
        raise VideoError(path, "timeout", "reading its packets took too long") from error
    except av.error.FFmpegError:
        return  # a file that was cut off ends here
    except IndexError:
        return  # from PyAV, at the end of a damaged stream that announced more streams


def cached_scan(path: str, stream: VideoStream, deadline: Deadline) -> VideoIndex:
    """`scan`, whose results for long videos are cached: it takes 4 times as long as a clip."""
    status = os.stat(path)
    key = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
    index = _cache.pop(key, None) or scan(path, stream, deadline)
    if len(index.packet_of) >= MIN_CACHED_FRAMES:
        _cache[key] = index  # at the end
        while sum(len(kept.packet_of) for kept in _cache.values()) > MAX_CACHED_FRAMES:
            del _cache[next(iter(_cache))]
    return index


def scan(path: str, stream: VideoStream, deadline: Deadline) -> VideoIndex:
    """Reads the packets of a stream of a newly opened container and orders its frames.

    Raises:
        VideoError: the cause is "no_frames", "timeout", or "truncated" if no frame decodes.
    """
    packets = _read_packets(path, stream, deadline)
    if not packets.is_shown.any():
        raise VideoError(path, "no_frames", "holds no video frames; leave the file out of the list")
    stamps: list[int | None] = []
    stamp_name: Literal["pts", "dts"] | None = None
    if _has_ordered_timestamps(packets, stream):
        stamp_name, stamps = "pts", packets.pts
        by_time = np.argsort(np.array(packets.pts, np.int64))
    else:
        if _all_differ(packets.dts):
            stamp_name, stamps = "dts", packets.dts
        decoded = _decoded_order(path, deadline)
        by_time = np.array(list(decoded), np.int64)
        packets.is_key[by_time] &= np.array(list(decoded.values()), bool)

    # Decoding begins at the latest key frame that is presented no later than the frame itself.
    starts = np.maximum.accumulate(np.where(packets.is_key[by_time], by_time, 0))
    starts = np.where(starts <= by_time, starts, 0)
    shown = packets.is_shown[by_time]
    order, starts = by_time[shown], starts[shown]
    if len(order) == 0:
        raise VideoError(path, "truncated", "no frame of it decodes; fetch it again")

    times, end = _presentation_times(packets, order, stream)
    return VideoIndex(
        container=stream.container.format.name,
        stream_index=stream.index,
        num_streams=len(video_streams(stream.container)),
        stamp_name=stamp_name,
        stamps=np.array(stamps, np.int64),
        packet_of=order,
        start_of=starts,
        frame_times_sec=times,
        end_sec=end,
        damage=packets.damage,
    )


def _read_packets(path: str, stream: VideoStream, deadline: Deadline) -> _Packets:
    pts, dts, duration, is_key, is_shown = [], [], [], [], []
    is_vp8 = stream.codec_context.name in ("vp8", "libvpx")
    num_damaged = 0
    for packet in filled_packets(path, stream):
        deadline.check()
        pts.append(packet.pts)
        dts.append(packet.dts)
        duration.append(packet.duration or 0)
        is_key.append(packet.is_keyframe)
        num_damaged += packet.is_corrupt
        # The show_frame bit of VP8 (RFC 6386, section 9.1); hidden frames are only referred to.
        is_hidden = is_vp8 and not memoryview(packet)[0] & 0x10
        is_shown.append(not (packet.is_discard or packet.is_corrupt or is_hidden))
    damage = None
    if num_damaged:
        damage = f"is damaged: {num_damaged} packets are not whole, {sum(is_shown)} are"
    elif stream.frames > len(pts):
        damage = f"announces {stream.frames} frames and holds {len(pts)}"
    if damage is not None:
        warn_once(f"{path}: {damage}")
    return _Packets(pts, dts, duration, np.array(is_key, bool), np.array(is_shown, bool), damage)


def _all_differ(stamps: list[int | None]) -> bool:
    return None not in stamps and len(set(stamps)) == len(stamps)


def _has_ordered_timestamps(packets: _Packets, stream: VideoStream) -> bool:
    """Whether presentation times determine the order of frames."""
    if not _all_differ(packets.pts) or not packets.is_key.any():
        return False
    if stream.container.format.name == "avi" and stream.codec_context.has_b_frames:
        return False  # libavformat guesses the presentation times, often wrongly
    # Frames before the first key frame, in either order, may or may not decode.
    first_key = int(np.argmax(packets.is_key))
    shown = np.flatnonzero(packets.is_shown)
    first_pts = min(packets.pts[number] for number in shown)  # type: ignore[type-var]
    return first_key <= shown[0] and packets.pts[first_key] <= first_pts  # type: ignore[operator]


def _decoded_order(path: str, deadline: Deadline) -> dict[int, bool]:
    """Maps packet numbers to whether they are key frames, in the decoder's presentation order."""
    order: dict[int, bool] = {}
    with open_container(path, deadline.limit_sec) as container:
        stream = choose_stream(path, container)
        stream.codec_context.thread_count = 1
        packets = itertools.chain(filled_packets(path, stream), [None])
        for number, packet in enumerate(packets):
            deadline.check()
            if packet is not None:
                packet.pts = number  # decoders copy it to the frame
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.FFmpegError:
                continue
            for frame in frames:
                if frame.pts is not None and not frame.is_corrupt:
                    order[frame.pts] = bool(frame.key_frame)
    return order


def _presentation_times(
    packets: _Packets, order: np.ndarray, stream: VideoStream
) -> tuple[np.ndarray, float]:
    """Times of frames in presentation order, float64 [F], and the end of the last; seconds."""
    unit = float(stream.time_base or 0)
    rate = stream.average_rate or stream.guessed_rate
    usual = 1.0 / float(rate) if rate else 1.0 / FALLBACK_FPS
    pts = np.array([packets.pts[number] for number in order], np.float64)  # None -> nan
    dts = np.array([packets.dts[number] for number in order], np.float64)
    if stream.container.format.name != "avi" and np.all(np.diff(pts, prepend=-np.inf) > 0):
        times = pts * unit
    elif not np.isnan(dts).any():
        times = np.sort(dts) * unit
    else:
        times = np.arange(len(order), dtype=np.float64) * usual
    last = packets.duration[order[-1]] * unit
    if last <= 0:
        last = float(np.median(np.diff(times))) if len(times) > 1 else usual
    return times, float(times[-1]) + (last if last > 0 else usual)
