"""What a scan of a video's packets tells: frame times, key frames, stream.

The scan reads packets without decoding them. It never uses the frame count, the duration or the
frame rate of a header to say which frames exist. Where packets alone cannot tell the order of
presentation (AVI stores no presentation times, raw streams no times at all), the frames are decoded
once instead.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from hiera_video.video.reader import Deadline, VideoError, warn_once

NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
MP4_BOXES = (b"ftyp", b"mdat", b"wide", b"skip", b"free")
FALLBACK_FPS = 25.0  # libavformat's, for streams that state no rate
# Films are opened once for each of hundreds of clips; the index of a short video is quickly made.
MIN_CACHED_FRAMES = 3_000
MAX_CACHED_FRAMES = 4_000_000  # of all films together, 32 bytes each; 150 pieces of 15 minutes


@dataclass(frozen=True)
class VideoIndex:
    """One stream: packets numbered from 0 in decoding order, and the F frames presented."""

    container: str  # libavformat's name, e.g. "avi"
    stream_index: int
    num_streams: int  # real video streams in the file
    order_from: Literal["timestamps", "decoder"]  # what told the order of presentation
    stamp_name: Literal["pts", "dts"] | None  # the timestamp that identifies a packet after a seek
    stamps: np.ndarray  # int64, packet number -> that timestamp, in the stream's time base
    packet_of: np.ndarray  # int64 [F], the packet that holds the frame at a position
    start_of: np.ndarray  # int64 [F], the key frame's packet from which decoding reaches it
    frame_times_sec: np.ndarray  # float64 [F]
    end_sec: float
    damage: str | None  # what is missing of the file, in words

    @property
    def key_positions(self) -> list[int]:
        """Positions of the frames at which decoding may begin."""
        return np.flatnonzero(self.packet_of == self.start_of).tolist()

    @property
    def has_leading_frames(self) -> bool:
        """Is a frame presented before a key frame that is decoded before it (an open GOP)?"""
        keys = np.array([self.packet_of[position] for position in self.key_positions])
        if len(keys) == 0:
            return False
        latest = np.searchsorted(keys, self.packet_of, side="right") - 1
        return bool(np.any(keys[np.maximum(latest, 0)] > self.start_of))

    def number_of(self, stamp: int | None) -> int | None:
        """The packet with that timestamp."""
        found = [] if stamp is None else np.flatnonzero(self.stamps == stamp).tolist()
        return found[0] if found else None


_cache: dict[tuple[str, int, int], VideoIndex] = {}  # the latest last


@dataclass(frozen=True)
class _Packets:
    """One entry a packet, in decoding order."""

    pts: list[int | None]
    dts: list[int | None]
    duration: list[int]  # 0 = unknown
    is_key: np.ndarray  # bool
    is_shown: np.ndarray  # bool: whole, and not marked as decoded but never displayed
    damage: str | None


def open_container(path: str, deadline_sec: float) -> InputContainer:
    """Open a file with libavformat, or say in one sentence why that is impossible."""
    try:
        # absolute, because libav takes "clip:1.mp4" for a protocol
        return av.open(os.path.abspath(path), timeout=deadline_sec, metadata_errors="replace")
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
            sentence = "its MP4 index (moov) is missing or damaged, it was cut off; fetch it again"
            raise VideoError(path, "truncated", sentence) from error
        sentence = f"is not a video that libav can read ({error.strerror}); fetch it again"
        raise VideoError(path, "not_a_video", sentence) from error


def video_streams(container: InputContainer) -> list[VideoStream]:
    """Real video streams: cover art and thumbnails are pictures about the file, not its video."""
    return [s for s in container.streams.video if not s.disposition & NO_VIDEO]


def choose_stream(path: str, container: InputContainer) -> VideoStream:
    """The first video stream marked as default, else the first one."""
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
        if other.index != stream.index and hasattr(av.stream, "Discard"):  # PyAV 18 has it
            other.discard = av.stream.Discard.all  # the demuxer then does not read them
    return stream


def filled_packets(
    path: str, container: InputContainer, stream: VideoStream
) -> Iterator[av.Packet]:
    """Packets of a stream that hold data, up to the end of what can be read."""
    try:
        for packet in container.demux(stream):
            if packet.size:  # not an empty AVI chunk, nor PyAV's mark of the end
                yield packet
    except av.error.ExitError as error:
        raise VideoError(path, "timeout", "reading its packets took too long") from error
    except av.error.FFmpegError:
        return  # a file that was cut off ends here
    except IndexError:
        return  # PyAV, at the end of a damaged stream that announced new streams on its way


def cached_scan(
    path: str, container: InputContainer, stream: VideoStream, deadline: Deadline
) -> VideoIndex:
    """`scan`, or what it said of the same long film before: it takes 4 times as long as a clip."""
    status = os.stat(path)
    key = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
    index = _cache.pop(key, None) or scan(path, container, stream, deadline)
    if len(index.packet_of) >= MIN_CACHED_FRAMES:
        _cache[key] = index  # now the latest
        while sum(len(kept.packet_of) for kept in _cache.values()) > MAX_CACHED_FRAMES:
            del _cache[next(iter(_cache))]
    return index


def scan(
    path: str, container: InputContainer, stream: VideoStream, deadline: Deadline
) -> VideoIndex:
    """Read the packets of a freshly opened container and order its frames.

    Raises:
        VideoError: `no_frames`, `timeout`, or `truncated` where no frame decodes at all.
    """
    packets = _read_packets(path, container, stream, deadline)
    if not packets.is_shown.any():
        raise VideoError(path, "no_frames", "holds no video frames; leave the file out of the list")
    stamps: list[int | None] = []
    stamp_name: Literal["pts", "dts"] | None = None
    order_from: Literal["timestamps", "decoder"] = "decoder"
    if _timestamps_tell_order(packets, container, stream):
        order_from, stamp_name, stamps = "timestamps", "pts", packets.pts
        by_time = np.argsort(np.array(packets.pts, np.int64))
    else:
        if _all_differ(packets.dts):
            stamp_name, stamps = "dts", packets.dts
        decoded = _decoded_order(path, deadline)
        by_time = np.array(list(decoded), np.int64)
        packets.is_key[by_time] &= np.array(list(decoded.values()), bool)

    # decoding may begin at the latest key frame that is presented no later than the frame itself
    starts = np.maximum.accumulate(np.where(packets.is_key[by_time], by_time, 0))
    starts = np.where(starts <= by_time, starts, 0)
    shown = packets.is_shown[by_time]
    order, starts = by_time[shown], starts[shown]
    if len(order) == 0:
        raise VideoError(path, "truncated", "no frame of it decodes; fetch it again")

    times, end = _presentation_times(packets, order, container, stream)
    return VideoIndex(
        container=container.format.name,
        stream_index=stream.index,
        num_streams=len(video_streams(container)),
        order_from=order_from,
        stamp_name=stamp_name,
        stamps=np.array(stamps, np.int64),
        packet_of=order,
        start_of=starts,
        frame_times_sec=times,
        end_sec=end,
        damage=packets.damage,
    )


def _read_packets(
    path: str, container: InputContainer, stream: VideoStream, deadline: Deadline
) -> _Packets:
    pts, dts, duration, is_key, is_shown = [], [], [], [], []
    shows = _shows_vp8 if stream.codec_context.name in ("vp8", "libvpx") else None
    num_damaged = 0
    for packet in filled_packets(path, container, stream):
        deadline.check()
        pts.append(packet.pts)
        dts.append(packet.dts)
        duration.append(packet.duration or 0)
        is_key.append(packet.is_keyframe)
        num_damaged += packet.is_corrupt
        is_shown.append(
            not (packet.is_discard or packet.is_corrupt) and (shows is None or shows(packet))
        )
    damage = None
    if num_damaged:
        damage = f"is damaged: {num_damaged} packets are not whole, {sum(is_shown)} are"
    elif stream.frames > len(pts):
        damage = f"announces {stream.frames} frames and holds {len(pts)}"
    if damage is not None:
        warn_once(f"{path}: {damage}")
    return _Packets(pts, dts, duration, np.array(is_key, bool), np.array(is_shown, bool), damage)


def _shows_vp8(packet: av.Packet) -> bool:
    """The show_frame bit of VP8 (RFC 6386, section 9.1): hidden frames only serve others."""
    return bool(memoryview(packet)[0] & 0x10)


def _all_differ(stamps: list[int | None]) -> bool:
    return None not in stamps and len(set(stamps)) == len(stamps)


def _timestamps_tell_order(
    packets: _Packets, container: InputContainer, stream: VideoStream
) -> bool:
    if not _all_differ(packets.pts) or not packets.is_key.any():
        return False
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        return False  # libavformat guesses the presentation times, often wrongly
    # what precedes the first key frame, in either order, may or may not decode
    first_key = int(np.argmax(packets.is_key))
    shown = np.flatnonzero(packets.is_shown)
    first_pts = min(packets.pts[number] for number in shown)  # type: ignore[type-var]
    return first_key <= shown[0] and packets.pts[first_key] <= first_pts  # type: ignore[operator]


def _decoded_order(path: str, deadline: Deadline) -> dict[int, bool]:
    """Packet number -> is it a key frame, in the order in which the decoder presents frames."""
    order: dict[int, bool] = {}
    with open_container(path, deadline.limit_sec) as container:
        stream = choose_stream(path, container)
        stream.codec_context.thread_count = 1
        packets = itertools.chain(filled_packets(path, container, stream), [None])
        for number, packet in enumerate(packets):
            deadline.check()
            if packet is not None:
                packet.pts = number  # decoders hand it on to the frame
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.FFmpegError:
                continue
            for frame in frames:
                if frame.pts is not None and not frame.is_corrupt:
                    order[frame.pts] = bool(frame.key_frame)
    return order


def _presentation_times(
    packets: _Packets, order: np.ndarray, container: InputContainer, stream: VideoStream
) -> tuple[np.ndarray, float]:
    """Times [F] in seconds of the frames in presentation order, and the end of the last one."""
    unit = float(stream.time_base or 0)
    rate = stream.average_rate or stream.guessed_rate
    usual = 1.0 / float(rate) if rate else 1.0 / FALLBACK_FPS
    pts = np.array([packets.pts[number] for number in order], np.float64)  # None -> nan
    dts = np.array([packets.dts[number] for number in order], np.float64)
    if container.format.name != "avi" and np.all(np.diff(pts, prepend=-np.inf) > 0):
        times = pts * unit
    elif not np.isnan(dts).any():
        times = np.sort(dts) * unit
    else:
        times = np.arange(len(order), dtype=np.float64) * usual
    last = packets.duration[order[-1]] * unit
    if last <= 0:
        last = float(np.median(np.diff(times))) if len(times) > 1 else usual
    return times, float(times[-1]) + (last if last > 0 else usual)
