"""Decoding with libav, and which packets are damaged.

A packet is damaged if the container states that it is not whole, if it does not decode, or if libav
flags its frame or logs an error about it. Decoders conceal damage and predict later frames from
what they made up, so that nothing between a damaged packet and the next key frame can be relied on.
"""

import bisect
import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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
        is_unsupported: whether a packet holds something that libav does not implement.
        keys: ascending numbers of packets that container and decoder call key frames.
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
        self.is_unsupported = False
        self.keys: list[int] = []
        self._stated_keys: set[int] = set()

    def decode(self, number: int, packet: av.Packet | None) -> list[av.VideoFrame]:
        """The frames that are complete with a packet; the packet of a frame is its `pts`.

        To be called within `listening`.

        Args:
            packet: None returns the frames that the decoder still holds.
        """
        is_key = packet is not None and packet.is_keyframe
        if packet is not None:
            packet.pts = number
            if is_key:
                self._stated_keys.add(number)
        try:
            with av.logging.Capture() as log:
                frames = [frame for frame in self.context.decode(packet) if frame.pts is not None]
        except av.error.FFmpegError as error:
            self.damaged.add(number)
            self.is_unsupported |= isinstance(error, av.error.PatchWelcomeError)
            return []
        finds_gaps = self.finds_gaps and not is_key
        if any(_states_damage(entry) or (finds_gaps and GAP in entry[2]) for entry in log):
            self.flagged.add(number)
        for frame in frames:
            assert frame.pts is not None
            if frame.is_corrupt:
                self.flagged.add(frame.pts)
            if frame.key_frame and frame.pts in self._stated_keys:
                bisect.insort(self.keys, frame.pts)
        return frames


_lock = threading.Lock()
_num_listening = 0  # threads
_usual: tuple[int | None, bool, bool] = None, True, True
_logger = logging.getLogger("libav")
_silence = logging.NullHandler()


@contextmanager
def listening(level: int = av.logging.WARNING) -> Iterator[None]:
    """Lets libav log messages of a level, and worse ones, which `Decoder.decode` captures.

    PyAV has one level for all threads. What else libav does in this block and in other threads
    stays as silent as it was. PyAV writes to stderr if it stops listening while a thread logs:
    everything that a reader asks of libav belongs into such a block.
    """
    global _num_listening, _usual
    with _lock:
        if not _num_listening:
            usual, skips = av.logging.get_level(), av.logging.get_skip_repeated()
            _usual = usual, skips, _logger.propagate
            if usual is None:
                _logger.addHandler(_silence)
                _logger.propagate = False
            av.logging.set_skip_repeated(False)
        if level > (av.logging.get_level() or 0):
            av.logging.set_level(level)
        _num_listening += 1
    try:
        yield
    finally:
        with _lock:
            _num_listening -= 1
            if not _num_listening:
                usual, skips, propagates = _usual
                av.logging.set_level(usual)
                av.logging.set_skip_repeated(skips)
                if usual is None:
                    _logger.removeHandler(_silence)
                    _logger.propagate = propagates


def _states_damage(entry: tuple[int, str, str]) -> bool:
    level, _, message = entry
    if level <= av.logging.ERROR:
        return not message.startswith(HARMLESS)
    return level <= av.logging.WARNING and SKIPPED in message
