"""Decoding with libav, and which packets are damaged.

A packet is damaged if the container states that it is not whole, if it does not decode, or if libav
flags its frame or logs an error about it. Decoders conceal damage and predict later frames from
what they made up, so that nothing between a damaged packet and the next key frame can be relied on.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import av
import av.logging
from av.video.stream import VideoStream

# Errors in the log that do not concern pixels, or that follow each seek into an open GOP.
HARMLESS = ("SEI", "mmco", "unable to decode APP")
SKIPPED = "Skipping"  # a warning: a part of the picture was left out


class Decoder:
    """Decodes the numbered packets of a stream in one thread, and notes which are damaged.

    The number passes through the decoder in place of the packet's presentation time, so that
    missing, repeated or wrong time stamps cannot mix up frames.

    Args:
        max_frame_pixels: larger frames do not decode.

    Attributes:
        damaged: numbers of packets that are not whole or do not decode.
        flagged: numbers of packets whose frames libav flags, or about which it logs an error.
        keys: numbers of packets that container and decoder call key frames.
    """

    def __init__(self, stream: VideoStream, max_frame_pixels: int) -> None:
        self.context = stream.codec_context
        self.context.thread_count = 1
        self.context.options = {"max_pixels": str(max_frame_pixels)}
        self.begin(())

    def begin(self, damaged: Iterable[int]) -> None:
        """Forgets earlier packets, as after a seek.

        Args:
            damaged: packets that are known to be damaged.
        """
        self.damaged = set(damaged)
        self.flagged: set[int] = set()
        self.keys: set[int] = set()
        self._stated_keys: set[int] = set()

    def decode(self, number: int, packet: av.Packet | None) -> list[av.VideoFrame]:
        """The frames that are complete with a packet; the packet of a frame is its `pts`.

        Args:
            packet: None returns the frames that the decoder still holds.
        """
        if packet is not None:
            packet.pts = number
            if packet.is_keyframe:
                self._stated_keys.add(number)
        try:
            with _problems() as problems:
                frames = [frame for frame in self.context.decode(packet) if frame.pts is not None]
        except av.error.FFmpegError:
            self.damaged.add(number)
            return []
        if problems:
            self.flagged.add(number)
        for frame in frames:
            assert frame.pts is not None
            if frame.is_corrupt:
                self.flagged.add(frame.pts)
            if frame.key_frame and frame.pts in self._stated_keys:
                self.keys.add(frame.pts)
        return frames


_lock = threading.Lock()
_num_listening = 0  # threads
_usual: tuple[int | None, bool] = None, True


@contextmanager
def _problems() -> Iterator[list[str]]:
    """What libav logs in this thread about damage; filled at the end of the block."""
    global _num_listening, _usual
    with _lock:  # PyAV has one level for all threads
        if not _num_listening:
            _usual = av.logging.get_level(), av.logging.get_skip_repeated()
            av.logging.set_level(max(_usual[0] or 0, av.logging.WARNING))
            av.logging.set_skip_repeated(False)
        _num_listening += 1
    problems: list[str] = []
    try:
        with av.logging.Capture() as log:
            yield problems
        problems += [
            message
            for level, _, message in log
            if (level <= av.logging.ERROR and not message.startswith(HARMLESS))
            or message.startswith(SKIPPED)
        ]
    finally:
        with _lock:
            _num_listening -= 1
            if not _num_listening:
                av.logging.set_level(_usual[0])
                av.logging.set_skip_repeated(_usual[1])
