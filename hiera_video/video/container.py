"""Containers as libavformat reads them: streams, packets, and whether the end is missing."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.container import Container, InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from hiera_video.video.content import has_picture_name, png_frames
from hiera_video.video.reader import Deadline, VideoError

NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
MP4_BOXES = (b"ftyp", b"mdat", b"wide", b"skip", b"free")
# Formats whose header states a duration. That of others is estimated from what is there.
STATED_DURATION = frozenset({"matroska,webm", "flv", "asf", "mov,mp4,m4a,3gp,3g2,mj2"})
# How a file of formats of which libavformat may read the first recording only begins.
BEGINNINGS = {
    "asf": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
    "flv": rb"FLV\x01[\0-\x05]\0\0\0\x09",
    "matroska,webm": rb"\x1a\x45\xdf\xa3.{1,64}?(?:matroska|webm)",
    "mov,mp4,m4a,3gp,3g2,mj2": rb"\0\0\0[\x10-\xff]ftyp",
}
LONGEST_BEGINNING, BLOCK_BYTES = 128, 2**20
ROUNDING_SEC = 1.5e-3
PADDING_SEC = 0.15  # of sound
UNSUPPORTED = "holds something that FFmpeg does not implement, or is damaged; convert it to H.264"


def open_container(path: str, deadline_sec: float, **options: str) -> InputContainer:
    """Opens a file with libavformat, with options of its demuxer.

    Raises:
        VideoError: the file cannot be opened; the sentence states why.
    """
    # PyAV before 19 opens files whose metadata is not UTF-8; PyAV 19 has no such argument.
    has_argument = hasattr(InputContainer, "metadata_errors")
    arguments = {"metadata_errors": "replace"} if has_argument else {}
    deadline = Deadline(path, deadline_sec)
    try:
        # An absolute path, because libav would take "clip:1.mp4" for a protocol.
        return av.open(
            os.path.abspath(path),
            format=_true_format(path, deadline_sec),
            timeout=deadline_sec,
            options=options,
            **arguments,
        )
    except av.error.ExitError as error:
        raise VideoError(
            path, "timeout", f"opening did not end within deadline_sec={deadline_sec:g}"
        ) from error
    except av.error.PatchWelcomeError as error:
        raise VideoError(path, "backend", UNSUPPORTED) from error
    except (av.error.FFmpegError, OSError) as error:
        deadline.check()  # a demuxer that is interrupted may report what it has not read
        try:
            with Path(path).open("rb") as file:
                is_mp4 = file.read(12)[4:8] in MP4_BOXES
            is_moving_png = png_frames(path) > 1
        except OSError:
            raise VideoError(path, "missing", f"cannot be read ({error.strerror})") from error
        if is_mp4:
            sentence = "its MP4 index (moov) is missing or damaged: it was cut off; fetch it again"
            raise VideoError(path, "truncated", sentence) from error
        if is_moving_png:
            sentence = "its first frame is missing or damaged; fetch it again"
            raise VideoError(path, "truncated", sentence) from error
        sentence = (
            f"is not a video that libav can read ({error.strerror}): it is damaged, or no video; "
            "fetch it again or leave it out"
        )
        raise VideoError(path, "not_a_video", sentence) from error


def _true_format(path: str, deadline_sec: float) -> str | None:
    """libavformat's name of the format, where the name of the file would deceive it."""
    if png_frames(path) > 1:  # it looks for that in the first 2,048 bytes only
        return "apng"
    if not has_picture_name(path):
        return None
    with (
        open(os.open(path, os.O_RDONLY), "rb") as nameless,
        av.open(nameless, timeout=deadline_sec) as container,
    ):
        return container.format.name.split(",")[0]


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
        sound = ", only sound" if container.streams.audio else ""
        raise VideoError(
            path, "no_video_stream", f"has {what}{sound}; take another file or leave it out"
        )
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise VideoError(
            path, "backend", "has a codec that the installed PyAV lacks; convert it to H.264"
        )
    for other in container.streams:
        if other.index != stream.index and hasattr(av.stream, "Discard"):  # since PyAV 18
            other.discard = av.stream.Discard.all  # the demuxer does not read these streams
    return stream


def filled_packets(
    deadline: Deadline, *streams: Stream, problems: list[str] | None = None
) -> Iterator[av.Packet]:
    """Packets of streams that hold data, up to the end of the file or of its readable part.

    Args:
        deadline: is checked at each packet.
        problems: is given the reason if the packets end before the file does.
    """
    container: InputContainer = streams[0].container  # type: ignore[assignment]
    has_one_key = container.format.name in ("apng", "gif")
    try:
        for packet in container.demux(*streams):
            deadline.check()
            if has_one_key:
                # libavformat calls frames key frames that depend on others (full frames that are
                # blended, those after which an earlier picture is restored, the last of a GIF to
                # which another one was joined).
                packet.is_keyframe = packet.pts == 0
            if packet.size:  # neither an empty AVI chunk nor PyAV's end marker
                yield packet
    except av.error.ExitError as error:
        raise VideoError(deadline.path, "timeout", "reading its packets took too long") from error
    except (av.error.FFmpegError, IndexError) as error:
        # PyAV raises IndexError at the end of a damaged stream that announced more streams.
        if problems is not None:
            reason = getattr(error, "strerror", None) or "it announced more streams"
            problems.append(f"its packets end with an error ({reason})")


def damaged_offsets(stream: VideoStream, last: int | None, deadline: Deadline) -> set[int]:
    """Offsets in the file of the packets that are not whole, as the container has them.

    libavformat's parsers return a packet when the next one begins, and with the flags of that one.

    Args:
        last: the offset of the last packet to look at. None: all.
    """
    offsets = set()
    with open_container(deadline.path, deadline.limit_sec, fflags="noparse") as container:
        for packet in filled_packets(deadline, container.streams[stream.index]):
            if packet.is_corrupt and packet.pos is not None:
                offsets.add(packet.pos)
            if last is not None and (packet.pos or 0) >= last:
                break
    return offsets


def unread_recording(path: str, container: str, end: int, deadline: Deadline) -> str | None:
    """Describes another recording behind the one that libavformat reads; None if there is none.

    Args:
        container: libavformat's name of the format.
        end: where the last packet ends in the file; negative if that is not known.
    """
    if container not in BEGINNINGS or end < 0:
        return None
    pattern, block = re.compile(BEGINNINGS[container], re.DOTALL), b""
    with open(path, "rb") as file:
        file.seek(end)
        while more := file.read(BLOCK_BYTES):
            deadline.check()
            block = block[-LONGEST_BEGINNING:] + more
            if match := pattern.search(block):
                begin = file.tell() - len(block) + match.start()
                return f"another recording begins at byte {begin}, which FFmpeg does not read"
    return None


def missing_end(
    stream: VideoStream, stamps: Sequence[int], end: int, deadline: Deadline
) -> str | None:
    """Describes what the header announces and the file does not hold; None if it is all there.

    Each format has one rule. AVI announces chunks, and its decoding times count them, the empty
    ones too. MP4 announces samples, also those that an edit list leaves out. Animated PNG announces
    frames. The others state the duration of their longest stream.

    Args:
        stamps: ascending times of the packets in units of the stream's time base: decoding times of
            AVI, presentation times of the others.
        end: when the last frame ends, in the same units.
    """
    container: InputContainer = stream.container  # type: ignore[assignment]
    name = container.format.name
    announced = png_frames(deadline.path) if name == "apng" else stream.frames
    step = int(np.diff(stamps).max(initial=0)) or 1  # the last frame may be shown for as long
    if announced:
        held = stamps[-1] + step if name == "avi" else len(stamps)
        if announced > held and name != "avi":
            path, limit_sec = deadline.path, deadline.limit_sec
            with open_container(path, limit_sec, ignore_editlist="1") as whole:
                held = sum(1 for _ in filled_packets(deadline, whole.streams[stream.index]))
        return f"announces {announced} frames and holds {held}" if announced > held else None
    if name not in STATED_DURATION or container.duration is None:
        return None
    if end == stamps[0]:  # FLV and ASF do not state how long a single frame is shown
        return None
    unit = float(stream.time_base or 0)
    stated_sec, first_sec = container.duration / av.time_base, stamps[0] * unit
    offset_sec = first_sec if first_sec >= stated_sec else 0.0  # of a part of a longer recording
    held_sec = end * unit - offset_sec
    tolerance_sec = step * unit + ROUNDING_SEC
    if stated_sec > held_sec + tolerance_sec and len(container.streams) > 1:
        held_sec = _last_end_sec(deadline) - offset_sec
        tolerance_sec += PADDING_SEC
    if stated_sec > held_sec + tolerance_sec:
        return f"announces {stated_sec:.3f} s and holds {held_sec:.3f} s"
    return None


def _last_end_sec(deadline: Deadline) -> float:
    """When the last packet of all streams ends."""
    last_sec = 0.0
    with open_container(deadline.path, deadline.limit_sec) as container:
        for packet in filled_packets(deadline, *container.streams):
            if packet.pts is not None and packet.time_base:
                end = packet.pts + (packet.duration or 0)
                last_sec = max(last_sec, float(end * packet.time_base))
    return last_sec
