"""Reading with PyAV: exact, always installed, and the fastest backend on H.264 with B-frames.

Two measures save time. A frame that is not requested and that no other frame refers to is not
decoded: the decoder's `skip_frame` is set packet by packet (measured on H.264 with B-frames: 1.2 to
1.5 times as fast at 16x4, pixels identical). And all frames of a reader share one swscale context;
`frame.to_ndarray` makes a new one for each frame, which costs 0.3 ms.
"""

import itertools
from collections import deque
from collections.abc import Iterator

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from hiera_video.settings.video import Decoding
from hiera_video.video.colour import take_known_matrix
from hiera_video.video.container import (
    UNSUPPORTED,
    choose_stream,
    filled_packets,
    open_container,
)
from hiera_video.video.decoder import Decoder, listening
from hiera_video.video.index import NO_STAMP, cached_scan
from hiera_video.video.orientation import Orientation, orientation_of, upright
from hiera_video.video.packets import PARSED_FORMATS
from hiera_video.video.reader import Deadline, VideoError, VideoReader

# Codecs in which no other frame refers to a "non-reference" frame. Not HEVC, where a "sub-layer
# non-reference picture" may be referred to by a higher temporal layer. Not MPEG-4 part 2: in AVI a
# packet may hold two frames, and skipping the first loses the second.
SKIPPING_CODECS = frozenset({"h264", "mpeg1video", "mpeg2video"})
MAX_HELD_FRAMES = 32  # decoders reorder over at most 16 frames: more means that one was lost


class PyavReader(VideoReader):
    """See `VideoReader`."""

    backend = "pyav"

    def __init__(self, path: str, limits: Decoding) -> None:
        super().__init__(path, limits)
        self._container: InputContainer | None = None
        self._current_read: Iterator[tuple[int, av.Packet | None]] | None = None
        self._reformatter = VideoReformatter()
        self._stored_size: tuple[int, int] | None = None  # (width, height) before rotation
        self._orientation = Orientation()
        self._decoder: Decoder
        try:
            with listening():
                stream = self._open()
                self.check_size(stream.codec_context.height, stream.codec_context.width)
                self.index = cached_scan(path, stream, limits)
        except BaseException:
            self.close()
            raise
        # Transmitted streams are often damaged, and libav may flag just the frame that is skipped.
        self._may_skip = (
            stream.codec_context.name in SKIPPING_CODECS
            and self.index.container not in PARSED_FORMATS
            and not self.index.has_single_fields
        )
        self.frame_times_sec = self.index.frame_times_sec
        self.end_sec = self.index.end_sec
        self.damage = self.index.damage
        self.note = self.index.note
        self.pixel_aspect = self.index.pixel_aspect

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = None
        self._current_read = None

    def _open(self) -> VideoStream:
        """Opens the file, again if it is open, at its beginning."""
        self.close()
        self._container = open_container(self.path, self.limits.deadline_sec)
        self._stream = choose_stream(self.path, self._container)
        self._decoder = Decoder(self._stream, self.limits.max_frame_pixels)
        return self._stream

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        with listening(av.logging.DEBUG if self._may_skip else av.logging.WARNING):
            for start, run in self._runs(positions):
                yield from self._decode_run(start, run, deadline)

    def _runs(self, positions: list[int]) -> list[tuple[int, list[int]]]:
        """Splits positions into runs (start packet, positions), each decoded without a seek.

        A new run begins where a seek to a later key frame makes decoding shorter.
        """
        runs: list[tuple[int, list[int]]] = []
        last_packet = -1
        for position in positions:
            start, packet = int(self.index.start_of[position]), int(self.index.packet_of[position])
            if not runs or start > last_packet + 1:
                runs.append((start, []))
                last_packet = packet
            runs[-1][1].append(position)
            last_packet = max(last_packet, packet)
        return runs

    def _decode_run(
        self, start: int, run: list[int], deadline: Deadline
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the frames of a run in order.

        Frames that do not decode from the key frame on (because it is not a true key frame, or the
        stream refreshes gradually) are decoded once more from the beginning of the file, without
        skipping any.
        """
        done = 0
        for from_start in (False, True):
            held: dict[int, np.ndarray] = {}
            for packet_number, frame in self._intact(start, run[done:], from_start, deadline):
                held[packet_number] = frame
                while done < len(run) and (packet := int(self.index.packet_of[run[done]])) in held:
                    yield run[done], held.pop(packet)
                    done += 1
                if done == len(run):
                    return
                if len(held) > MAX_HELD_FRAMES:
                    break
        if self._decoder.is_unsupported:
            raise VideoError(self.path, "backend", UNSUPPORTED)
        raise VideoError(
            self.path,
            "truncated",
            f"frame {run[done]} of {len(self)} (at {self.frame_times_sec[run[done]]:.3f} s) does "
            "not decode, the file is cut off or damaged; fetch it again or leave it out",
        )

    def _intact(
        self, start: int, positions: list[int], from_start: bool, deadline: Deadline
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (packet number, frame) of the frames at `positions` that rely on no damage.

        A frame waits until the decoder has returned all frames that it may refer to, because libav
        flags a damaged frame only when it returns it. If one of these was lost, more frames wait
        than a decoder holds. It waits in RGB, because converting it is faster while it is in the
        cache (measured at 720p: 1 ms a frame).
        """
        index, last_shown = self.index, self.index.last_shown
        wanted = {*index.packet_of[positions].tolist(), *index.last_of[positions].tolist()}
        first = 0 if from_start else start
        last = max(wanted)
        is_whole = index.container in PARSED_FORMATS  # no frame is skipped
        packets = self._packets(first, last, from_start, deadline)
        self._current_read = packets
        decoder = self._decoder  # of this read, which may have opened the file again
        decoder.begin(index.damaged)
        may_skip = decoder.finds_gaps = not from_start and self._may_skip
        waiting: deque[tuple[int, np.ndarray]] = deque()
        latest = max(int(index.position_of[first]) - 1, -1)  # position that was returned

        def reach(position: int) -> None:
            """Notes what is missing before the position that the decoder has come to."""
            nonlocal latest
            if position > latest:
                if is_whole:
                    decoder.damaged.update(index.packet_of[latest + 1 : position].tolist())
                latest = position

        for number, packet in packets:
            is_skipped = may_skip and number not in wanted
            decoder.context.skip_frame = "NONREF" if is_skipped else "DEFAULT"
            for frame in decoder.decode(number, packet):
                reach(index.position_of.item(frame.pts))
                if frame.pts in wanted:
                    waiting.append((frame.pts, self._to_rgb(frame)))
            if packet is None and is_whole:
                reach(int(last_shown[last]) + 1)
            while waiting and (
                packet is None
                or last_shown.item(waiting[0][0]) <= latest
                or len(waiting) > MAX_HELD_FRAMES
            ):
                shown, rgb = waiting.popleft()
                if index.is_intact(shown, decoder, first):
                    yield shown, rgb
                    # Else libav would crash, or what another read noted would judge the frames.
                    if self._current_read is not packets:
                        raise ValueError(
                            f"the reader of {self.path} was closed or read from again before this "
                            "read had ended; open the file twice"
                        )

    def _packets(
        self, first: int, last: int, from_start: bool, deadline: Deadline
    ) -> Iterator[tuple[int, av.Packet | None]]:
        """Numbered packets `first` to `last` for a flushed decoder, then None to drain it.

        A drained decoder returns the frames that it still holds.
        """
        if self._container is None:
            raise ValueError(f"the reader of {self.path} is closed")
        packets = None if from_start else self._seek(first, self._container, deadline)
        if packets is None:
            packets = enumerate(filled_packets(deadline, self._open()))
        return _between(packets, first, last)

    def _seek(
        self, first: int, container: InputContainer, deadline: Deadline
    ) -> Iterator[tuple[int, av.Packet]] | None:
        """Numbered packets from `first` or an earlier one on; None if seeking fails."""
        if self.index.stamp_name is None:
            return None
        try:
            container.seek(int(self.index.stamps[first]), stream=self._stream)
        except av.error.FFmpegError:
            return None
        packets = self._numbered(filled_packets(deadline, self._stream))
        landed = next(packets, None)
        if landed is None or landed[0] > first:
            return None
        return itertools.chain([landed], packets)

    def _numbered(self, packets: Iterator[av.Packet]) -> Iterator[tuple[int, av.Packet]]:
        """Packets with their numbers in the index, up to the first that does not match it."""
        stamps, stamp_name, number = self.index.stamps, self.index.stamp_name or "pts", None
        for packet in packets:
            stamp = getattr(packet, stamp_name)
            stamp = NO_STAMP if stamp is None else stamp
            if number is None:
                found = np.flatnonzero(stamps == stamp).tolist()
                if not found or stamp == NO_STAMP:
                    continue  # the rest of a packet in whose middle a transport stream was entered
                alike = [n for n in found if self.index.is_packet(n, packet)]
                if len(alike) != 1:  # there may be several in joined recordings
                    return
                number = alike[0]
            else:
                number += 1
                if number == len(stamps) or stamps.item(number) != stamp:
                    return
                if not self.index.is_packet(number, packet):
                    return
            yield number, packet

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """The upright frame, uint8 [H, W, 3], scaled to the size of the first frame."""
        if self._stored_size is None:  # only a decoded frame has the display matrix
            self._stored_size = frame.width, frame.height
            self._orientation = orientation_of(frame.side_data.get(Type.DISPLAYMATRIX))
        width, height = self._stored_size
        take_known_matrix(self.path, frame)
        try:
            rgb = self._reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        except MemoryError:
            raise
        except av.error.FFmpegError as error:
            sentence = (
                f"its frames ({frame.format.name}) do not convert to RGB ({error.strerror}); "
                "convert it to H.264"
            )
            raise VideoError(self.path, "backend", sentence) from error
        return upright(rgb, self._orientation)


def _between(
    packets: Iterator[tuple[int, av.Packet]], first: int, last: int
) -> Iterator[tuple[int, av.Packet | None]]:
    for number, packet in packets:
        if number >= first:
            yield number, packet
        if number >= last:
            break
    yield last, None
