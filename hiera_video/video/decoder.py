"""Decoding with libav, and which packets are damaged.

A packet is damaged if the container states that it is not whole, if it does not decode, or if libav
flags its frame or logs an error about it. Decoders conceal damage and predict later frames from
what they made up, so that nothing between a damaged packet and the next key frame can be relied on.
"""

import bisect
import logging
import threading
from collections.abc import Iterable

import av
import av.logging
from av.video.stream import VideoStream

# Errors in the log that do not concern pixels, or that follow each seek into an open GOP.
HARMLESS = ("SEI", "mmco", "unable to decode APP")
SKIPPED = "Skipping"  # a warning: a part of the picture was left out
GAP = "Frame num gap"  # a message for debugging: a frame is missing, of which H.264 counts each


class Decoder:
    """Decodes the numbered packets of a stream in one thread, and notes which are damaged.

    The number passes through the decoder in place of the packet's presentation time, so that
    missing, repeated or wrong time stamps cannot mix up frames.

    Args:
        max_frame_pixels: much larger frames do not decode (decoders add edges to a frame).

    Attributes:
        damaged: numbers of packets that are not whole or do not decode.
        flagged: numbers of packets whose frames libav flags, or about which it logs an error.
        keys: ascending numbers of packets that container and decoder call key frames.
        returned: numbers of packets whose frames were returned.
    """

    finds_gaps = False
    """Whether a missing frame counts as damage. Where no frame is skipped, errors state it better:
    some streams leave out numbers on purpose."""

    def __init__(self, stream: VideoStream, max_frame_pixels: int) -> None:
        self.context = stream.codec_context
        self.context.thread_count = 1
        self.context.options = {"max_pixels": str(2 * max_frame_pixels + 2**16)}
        self.begin(())

    def begin(self, damaged: Iterable[int]) -> None:
        """Forgets earlier packets, as after a seek.

        Args:
            damaged: packets that are known to be damaged.
        """
        self.damaged = set(damaged)
        self.flagged: set[int] = set()
        self.keys: list[int] = []
        self.returned: set[int] = set()
        self._stated_keys: set[int] = set()

    def decode(self, number: int, packet: av.Packet | None) -> list[av.VideoFrame]:
        """The frames that are complete with a packet; the packet of a frame is its `pts`.

        Args:
            packet: None returns the frames that the decoder still holds.
        """
        is_key = packet is not None and packet.is_keyframe
        if packet is not None:
            packet.pts = number
            if is_key:
                self._stated_keys.add(number)
        _log.start(av.logging.DEBUG if self.finds_gaps else av.logging.WARNING)
        try:
            with av.logging.Capture() as log:
                frames = [frame for frame in self.context.decode(packet) if frame.pts is not None]
        except av.error.FFmpegError:
            self.damaged.add(number)
            return []
        finally:
            _log.stop()
        has_gap = self.finds_gaps and not is_key and any(GAP in message for _, _, message in log)
        if has_gap or any(map(_states_damage, log)):
            self.flagged.add(number)
        for frame in frames:
            assert frame.pts is not None
            self.returned.add(frame.pts)
            if frame.is_corrupt:
                self.flagged.add(frame.pts)
            if frame.key_frame and frame.pts in self._stated_keys:
                bisect.insort(self.keys, frame.pts)
        return frames


class _Log:
    """PyAV's log, which has one level for all threads, while at least one of them listens.

    What the other threads cause meanwhile stays as silent as before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_listening = 0
        self._usual: tuple[int | None, bool] = None, True
        self._propagates = True
        self._logger = logging.getLogger("libav")
        self._silence = logging.NullHandler()

    def start(self, level: int) -> None:
        with self._lock:
            if not self._num_listening:
                usual, _ = self._usual = av.logging.get_level(), av.logging.get_skip_repeated()
                if usual is None:
                    self._logger.addHandler(self._silence)
                    self._propagates, self._logger.propagate = self._logger.propagate, False
                av.logging.set_skip_repeated(False)
            if level > (av.logging.get_level() or 0):
                av.logging.set_level(level)
            self._num_listening += 1

    def stop(self) -> None:
        with self._lock:
            self._num_listening -= 1
            if not self._num_listening:
                level, skips = self._usual
                av.logging.set_level(level)
                av.logging.set_skip_repeated(skips)
                if level is None:
                    self._logger.removeHandler(self._silence)
                    self._logger.propagate = self._propagates


_log = _Log()


def _states_damage(entry: tuple[int, str, str]) -> bool:
    level, _, message = entry
    if SKIPPED in message:
        return True
    return level <= av.logging.ERROR and not message.startswith(HARMLESS)
