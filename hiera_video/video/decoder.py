"""Decoding with libav, and which packets are damaged.

A packet is damaged if the container states that it is not whole, if it does not decode, or if libav
flags its frame. Decoders conceal damage and predict later frames from what they made up, so that
nothing between a damaged packet and the next key frame can be relied on.
"""

from collections.abc import Iterable

import av
from av.video.stream import VideoStream


class Decoder:
    """Decodes the numbered packets of a stream in one thread, and collects the damaged ones.

    The number passes through the decoder in place of the packet's presentation time, so that
    missing, repeated or wrong time stamps cannot mix up frames.

    Args:
        max_frame_pixels: larger frames do not decode.

    Attributes:
        damaged: numbers of packets that are not whole or do not decode.
        flagged: numbers of packets whose frames libav flags.
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
            frames = [frame for frame in self.context.decode(packet) if frame.pts is not None]
        except av.error.FFmpegError:
            self.damaged.add(number)
            return []
        for frame in frames:
            if frame.is_corrupt:
                self.flagged.add(frame.pts)
            if frame.key_frame and frame.pts in self._stated_keys:
                self.keys.add(frame.pts)
        return frames
