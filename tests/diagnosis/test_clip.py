"""The clip in the package shows what was drawn, and can be written again."""

import av
import numpy as np
from av.video.frame import PictureType

from hiera_video.diagnosis.clip import CLIP, HEIGHT, NUM_FRAMES, WIDTH, picture
from hiera_video.video.writer import write_video
from tests.video.striped_video import decode_linearly

FPS = 12
# Common H.264 (High, 4:2:0) with B-frames and three groups of pictures.
OPTIONS = {
    "crf": "12",
    "g": "8",
    "bf": "2",
    "b_strategy": "0",
    "sc_threshold": "0",
    "profile": "high",
}


def test_it_shows_what_is_drawn_and_writing_it_again_gives_the_same_content(tmp_path):
    """To replace it, write it to `CLIP`. Its bytes depend on the version of x264."""
    drawn = np.stack([picture(number) for number in range(NUM_FRAMES)]).astype(int)
    assert drawn.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    write_video(tmp_path / "again.mp4", map(picture, range(NUM_FRAMES)), FPS, options=OPTIONS)
    for path in (CLIP, tmp_path / "again.mp4"):
        assert np.abs(np.stack(decode_linearly(path)) - drawn).max() <= 4
    assert CLIP.stat().st_size < 8192


def test_each_frame_and_each_channel_shows_something_else():
    """Another order of frames or channels, or a picture upside down, is beyond the tolerance."""
    drawn = [picture(number).astype(int) for number in range(NUM_FRAMES)]
    for number, frame in enumerate(drawn):
        others = [*drawn[:number], *drawn[number + 1 :]]
        others += [frame[..., ::-1], frame[::-1], frame[:, ::-1]]
        assert min(np.abs(frame - other).max() for other in others) >= 25


def test_reading_it_needs_seeks_and_reordering():
    with av.open(str(CLIP)) as container:
        stream = container.streams.video[0]
        kinds = [PictureType(frame.pict_type) for frame in container.decode(stream)]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.profile == "High"  # which all builds of FFmpeg decode
    assert kinds.count(PictureType.I) == 3
    assert kinds.count(PictureType.B) > 8
