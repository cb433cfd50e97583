"""Decoding with libav, and which packets are damaged.

A packet is damaged if the container states that it is not whole, if it does not decode, or if libav
flags its frame. Decoders conceal damage and predict later frames from what they made up, so that
nothing between a damaged packet and the next key frame can be relied on.
"""

import av
from av.video.stream import VideoStream


class Decoder:
    """Decodes the numbered packets of a stream in one thread, and collects the damaged ones.

    The number passes through the decoder in place of the packet's presentation time, so that
    missing, repeated or wrong time stamps cannot mix up frames.

    Args:
        max_frame_pixels: larger frames do not decode.

    Attributes:
        damaged: numbers of packets, to which the caller may add.
    """

    damaged: set[int]

    def __init__(self, stream: VideoStream, max_frame_pixels: int) -> None:
        self.context = stream.codec_context
        self.context.thread_count = 1
        self.context.options = {"max_pixels": str(max_frame_pixels)}
        self.damaged = set()

    def decode(self, number: int, packet: av.Packet | None) -> list[av.VideoFrame]:
        """The frames that are complete with a packet; the packet of a frame is its `pts`.

        Args:
            packet: None returns the frames that the decoder still holds.
        """
        if packet is not None:
            packet.pts = number
        try:
            frames = [frame for frame in self.context.decode(packet) if frame.pts is not None]
        except av.error.FFmpegError:
            self.damaged.add(number)
            return []
        self.damaged.update(f.pts for f in frames if f.is_corrupt)  # type: ignore[misc]
        return frames
