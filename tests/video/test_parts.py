"""A part of a video has the frames that a plain decode of the whole file shows in that time."""

from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import open_video
from hiera_video.video.parts import Part, open_part
from hiera_video.video.reader import VideoError
from tests.video.striped_video import make_striped_video, read_number


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """40 frames, the first of which appears at 1.4 s, as in many transport streams."""
    file = tmp_path_factory.mktemp("segments") / "a.mkv"
    make_striped_video(file, 40, (40, 64), fps=20, pts=[1400 + 50 * i for i in range(40)])
    return str(file)


@pytest.fixture(scope="module")
def times(path):
    """Seconds after the first frame at which frames appear, by a plain decode."""
    with av.open(path) as container:
        found = [frame.time for frame in container.decode(video=0)]
    return np.array(found) - found[0]


@pytest.mark.parametrize(
    ("start", "end"), [(0, 0.3), (0.5, 1.25), (0.48, 0.52), (1.9, None), (0, 2.4)]
)
def test_the_frames_that_appear_in_the_time(path, times, backend, start, end):
    expected = [i for i, time in enumerate(times) if start - 1e-6 <= time < (end or 9) - 1e-6]
    with open_part(partial(open_video, backend=backend), path, Part(start, end)) as part:
        assert len(part) == len(expected)
        assert [read_number(frame) for frame in part] == expected
        last = part.stream([len(part) - 1])
        assert [(i, read_number(frame)) for i, frame in last] == [(len(part) - 1, expected[-1])]
        assert part.backend == backend
        assert part.frame_times_sec[0] - 1.4 == pytest.approx(times[expected[0]])
        assert part.fps == pytest.approx(20)
        assert (part.height, part.width) == (40, 64)


@pytest.mark.parametrize(
    "part", [Part(2, 4.5), Part(0.00001, None), Part(50, 112, in_frames=True), Part(1e20, 2e20)]
)
def test_a_part_is_found_by_its_fragment(part):
    assert Part.at_end(f"a#t=7/b.mp4{part}") == part
    assert Part.at_end(f"{part}.mp4") is None


def test_frames_are_counted_from_0_and_the_end_is_the_first_that_is_left_out(path):
    with open_part(open_video, path, Part(5, 9, in_frames=True)) as part:
        assert [read_number(frame) for frame in part] == [5, 6, 7, 8]


def test_parts_side_by_side_share_no_frame_and_leave_none_out(path):
    bounds = [0, 0.05, 0.333, 1, 1.949]
    found = []
    for start, end in zip(bounds, [*bounds[1:], None], strict=True):
        with open_part(open_video, path, Part(start, end)) as part:
            found += map(read_number, part)
    assert found == list(range(40))
    with pytest.raises(VideoError, match="no frame appears in the part"):
        open_part(open_video, path, Part(0.333, 0.35))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(2, 3), "the part from second 2 to second 3 lies outside of the video, which has "),
        (Part(2, None), "the part from second 2 to the end lies outside"),
        (Part(1, 2.6), "40 frames and lasts 2.000 s"),
        (Part(30, 41, in_frames=True), "from frame 30 to frame 41 lies outside"),
        (Part(40, None, in_frames=True), "from frame 40 to the end lies outside"),
        (Part(0.06, 0.09), "no frame appears in the part from second 0.06 to second 0.09"),
    ],
)
def test_a_part_that_is_not_there(path, part, message):
    with pytest.raises(VideoError, match=message) as caught:
        open_part(open_video, path, part)
    assert (caught.value.path, caught.value.cause) == (path, "timestamps")


def test_names_are_media_fragments():
    assert str(Part(0, 0.3)) == "#t=0,0.3"
    assert str(Part(2.0, 4.5)) == str(Part(2, 4.5)) == "#t=2,4.5"
    assert str(Part(1234567.125, None)) == "#t=1234567.125"
    assert str(Part(16.0, 32.0, in_frames=True)) == "#frame=16,32"


def test_clips_are_those_of_a_video_that_was_cut(path, tmp_path):
    """Sampling in a part is sampling in a file that holds only its frames."""
    cut = make_striped_video(
        tmp_path / "cut.mkv", 16, (40, 64), fps=20, pts=[50 * i for i in range(16)]
    )
    for settings in ({"sampling_rate": 3}, {"target_fps": 7.0, "sampling_rate": 1}):
        sampler = ClipSampler(num_frames=4, **settings)
        with (
            open_video(cut) as own,
            open_part(open_video, path, Part(0.4, 1.2)) as part,
        ):
            for rule in ("offset", "interval"):
                expected = sampler.uniform_clips(own, 3, rule)
                np.testing.assert_array_equal(sampler.uniform_clips(part, 3, rule), expected)
            rngs = (np.random.default_rng(seed) for seed in (0, 0))
            one, two = (
                sampler.random_clips(v, 5, r) for v, r in zip((own, part), rngs, strict=True)
            )
            np.testing.assert_array_equal(one, two)
            frames = part.frames(expected[-1])
            assert [read_number(frame) - 8 for frame in frames] == expected[-1].tolist()


def test_the_part_of_a_folder_of_frames(tmp_path):
    for number in range(1, 11):
        cv2.imwrite(str(tmp_path / f"{number:03d}.png"), np.full((8, 12, 3), number, np.uint8))
    with open_part(partial(open_video, frames_fps=5), str(tmp_path), Part(0.4, 1)) as part:
        assert [int(frame[0, 0, 0]) for frame in part] == [3, 4, 5]


def test_a_file_that_changes_while_its_part_is_read(path, tmp_path):
    file = tmp_path / "a.mkv"
    file.write_bytes(Path(path).read_bytes())
    part = open_part(open_video, str(file), Part(0, 1))
    with open(file, "ab") as other:
        other.write(b"\0")
    with pytest.raises(VideoError, match="was changed"):
        part.frames([0])
    part.close()
