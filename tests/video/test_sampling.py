"""Golden examples are SlowFast's and VideoMAE's own numbers; the rest are properties."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.video import sampling
from hiera_video.video.sampling import (
    clip_indices,
    clip_length,
    covering_short_side,
    crop_offsets,
    keyframe_indices,
    random_clip_start,
    resample_indices,
    resized_shape,
    segment_clips_indices,
    segment_indices,
    uniform_clip_starts,
)

SLOWFAST_16X4 = [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]
SSV2_100_16 = [3, 9, 15, 22, 28, 34, 40, 46, 53, 59, 65, 71, 77, 83, 90, 96]

unhurried = settings(deadline=None)  # other work may share the processor
counts = st.integers(1, 400)
clip_sizes = st.integers(1, 40)
rates = st.integers(1, 12)


def frames_of(indices):
    assert indices.dtype == np.int64
    return indices.tolist()


# ---- resample_indices


@pytest.mark.parametrize("fps", [6, 12, Fraction(24000, 1001), 25, Fraction(30000, 1001), 60, 240])
@pytest.mark.parametrize("ticks_per_sec", [None, 1000, 90_000, 12_800])
@pytest.mark.parametrize("first_sec", [0.0, 0.08, 1.4])
def test_a_constant_rate_video_at_its_own_rate_is_itself(fps, ticks_per_sec, first_sec):
    times = np.array([first_sec + float(k / Fraction(fps)) for k in range(500)])
    if ticks_per_sec:
        times = np.round(times * ticks_per_sec) / ticks_per_sec
    end = times[-1] + 1 / float(fps)
    assert frames_of(resample_indices(times, end, float(fps))) == list(range(500))


@pytest.mark.parametrize(
    ("times", "end", "fps", "expected"),
    [
        ([0, 0.1, 0.2, 0.3], 0.4, 20, [0, 0, 1, 1, 2, 2, 3, 3]),  # twice as fast
        ([0, 0.1, 0.2, 0.3], 0.4, 5, [0, 2]),
        ([5, 5.1, 5.2, 5.3], 5.4, 5, [0, 2]),  # time begins at the first frame
        ([0, 0.1, 1.0], 1.2, 5, [0, 1, 1, 1, 1, 2]),  # a still picture lasts
        ([0, 0.01, 0.02, 0.5], 1, 4, [0, 2, 3, 3]),  # a burst is skipped
        ([0], 0, 30, [0]),  # one picture, no duration
        ([0, 0.1, 0.1, 0.2], 0.3, 10, [0, 2, 3]),  # of two at one time the later is seen
    ],
)
def test_resampling_shows_what_is_on_screen(times, end, fps, expected):
    assert frames_of(resample_indices(np.array(times, float), end, fps)) == expected


@unhurried
@given(
    st.lists(st.floats(0.002, 2.0), min_size=1, max_size=60),
    st.floats(-3, 3),
    st.floats(0.5, 120),
)
def test_resampled_frames_are_those_on_screen(gaps, first, fps):
    edges = first + np.cumsum([0.0, *gaps])
    times, end = edges[:-1], edges[-1]
    indices = resample_indices(times, end, fps)
    assert len(indices) == max(1, round((end - first) * fps))
    assert indices[0] == 0
    assert (np.diff(indices) >= 0).all()
    assert indices[-1] < len(times)
    for k, index in enumerate(indices):
        now = first + k / fps
        assert times[index] <= now + 0.0011
        assert index == len(times) - 1 or times[index + 1] > now


def test_resampling_refuses_broken_time_stamps():
    with pytest.raises(ValueError, match="look broken"):
        resample_indices(np.array([0, 1e9]), 2e9, 30)


# ---- clips


def test_clip_length():
    assert clip_length(16, 4, "linspace") == 64
    assert clip_length(16, 4, "strided") == 61
    assert clip_length(1, 4, "strided") == 1
    assert clip_length(16, Fraction(10, 3), "linspace") == Fraction(160, 3)
    assert clip_length(4, 0.1, "linspace") == 1


@pytest.mark.parametrize(
    ("video_frames", "length", "num_clips", "rule", "starts"),
    [
        (300, 64, 5, "offset", [0, 59, 118, 177, 236]),
        (300, 64, 5, "interval", [0, 47.2, 94.4, 141.6, 188.8]),
        (301, 64, 1, "offset", [118]),
        (301, 64, 1, "interval", [0]),
        (250, 64, 10, "offset", [0, 20, 40, 60, 80, 100, 120, 140, 160, 180]),  # 186 not reached
        (40, 64, 5, "offset", [0] * 5),
        (40, 64, 3, "interval", [0] * 3),
    ],
)
def test_uniform_clip_starts(video_frames, length, num_clips, rule, starts):
    assert uniform_clip_starts(video_frames, length, num_clips, rule) == starts


@unhurried
@given(counts, counts, st.integers(1, 12))
def test_offset_clips_span_the_video(video_frames, length, num_clips):
    starts = uniform_clip_starts(video_frames, length, num_clips)
    slack = max(video_frames - length, 0)
    assert len(starts) == num_clips
    assert all(0 <= start <= slack and start.is_integer() for start in starts)
    if num_clips > 1:
        assert slack - starts[-1] < num_clips - 1 or slack == starts[-1]


@unhurried
@given(
    counts, st.integers(2, 40), rates, st.integers(1, 12), st.sampled_from(["repeat_last", "wrap"])
)
def test_strided_clips_are_those_of_mmaction2(video_frames, num_frames, rate, num_clips, policy):
    """Its SampleFrames in test mode, with out_of_bound_opt "repeat_last" or "loop"."""
    covered = (num_frames - 1) * rate + 1
    most = max(video_frames - covered, 0)
    offsets = np.array([most // 2])
    if num_clips > 1:
        offsets = np.round(np.arange(num_clips) * (most / float(num_clips - 1)))
    theirs = (offsets[:, None] + np.arange(num_frames) * rate).astype(int)
    if policy == "wrap":
        theirs %= video_frames
    else:
        inside = theirs < video_frames
        theirs = np.where(inside, theirs, np.max(theirs * inside, axis=1, keepdims=True))
    starts = uniform_clip_starts(video_frames, covered, num_clips, spacing="strided")
    ours = [clip_indices(s, num_frames, rate, "strided", video_frames, policy) for s in starts]
    assert np.stack(ours).tolist() == theirs.tolist()


@pytest.fixture(scope="module")
def clip_sampling():
    return pytest.importorskip("pytorchvideo.data.clip_sampling")


@unhurried
@given(counts, counts, st.integers(1, 12))
def test_interval_clips_agree_with_pytorchvideo(clip_sampling, video_frames, length, num_clips):
    sampler = clip_sampling.ConstantClipsPerVideoSampler(Fraction(length), num_clips)
    slack = max(video_frames - length, 0)
    # Its sampler ends early where the video is no longer than a clip: all starts are 0 there.
    theirs = [
        float(sampler(0, Fraction(video_frames), {}).clip_start_sec)
        for _ in range(num_clips if slack else 1)
    ]
    ours = uniform_clip_starts(video_frames, length, num_clips, "interval")
    assert ours[: len(theirs)] == pytest.approx(theirs, abs=1e-9)
    assert len(set(ours)) == len(set(theirs))


@unhurried
@given(counts, counts, st.integers(0, 2**32))
def test_random_start_keeps_the_clip_inside(video_frames, length, seed):
    start = random_clip_start(video_frames, length, np.random.default_rng(seed))
    assert 0 <= start <= max(video_frames - length, 0)
    assert start == random_clip_start(video_frames, length, np.random.default_rng(seed))


def test_random_starts_cover_the_video():
    rng = np.random.default_rng(0)
    starts = [random_clip_start(300, 64, rng) for _ in range(2000)]
    assert min(starts) < 2
    assert max(starts) > 234
    assert np.mean(starts) == pytest.approx(118, abs=5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 16, 4, "linspace", 300, "repeat_last"), SLOWFAST_16X4),
        ((236, 16, 4, "linspace", 300, "error"), [236 + i for i in SLOWFAST_16X4]),
        ((47.2, 4, 4, "linspace", 300, "error"), [47, 52, 57, 62]),
        ((0, 16, 4, "strided", 300, "error"), list(range(0, 61, 4))),
        ((0.9, 4, 4, "strided", 300, "error"), [0, 4, 8, 12]),
        ((0, 1, 4, "linspace", 1, "error"), [0]),
        ((0, 16, 4, "linspace", 1, "repeat_last"), [0] * 16),
        # the worked examples of the docstring
        ((2, 4, 4, "strided", 10, "repeat_last"), [2, 6, 6, 6]),
        ((2, 4, 4, "linspace", 10, "repeat_last"), [2, 7, 9, 9]),
        ((2, 4, 4, "strided", 10, "wrap"), [2, 6, 0, 4]),
        ((0, 4, 4, "linspace", 10, "repeat_last"), [0, 5, 9, 9]),
        ((0, 4, 4, "linspace", 10, "wrap"), [0, 5, 0, 5]),
        ((-3, 4, 2, "strided", 10, "repeat_last"), [0, 0, 1, 3]),
        ((-3, 4, 2, "strided", 10, "wrap"), [7, 9, 1, 3]),
    ],
)
def test_clip_indices(arguments, expected):
    assert frames_of(clip_indices(*arguments)) == expected


@pytest.mark.parametrize("start", [-1, 7])
def test_clips_outside_the_video_are_refused_on_request(start):
    with pytest.raises(ValueError, match=r"of a video of 10.*repeat_last"):
        clip_indices(start, 4, 4, "strided", 10, "error")


def test_a_clip_that_ends_between_the_last_frame_and_the_end_is_inside():
    assert clip_indices(0.5, 2, 5, "linspace", 10, "error")[-1] == 9


@unhurried
@given(st.integers(0, 10_000), clip_sizes, rates)
def test_linspace_from_a_whole_start_is_exact(start, num_frames, rate):
    length = num_frames * rate
    indices = clip_indices(start, num_frames, rate, "linspace", start + length, "error")
    divisor = max(num_frames - 1, 1)
    assert frames_of(indices) == [start + i * (length - 1) // divisor for i in range(num_frames)]


@unhurried
@given(st.integers(0, 300), st.sampled_from([(4, 16), (8, 8), (16, 4), (32, 3), (16, 2), (32, 2)]))
def test_linspace_agrees_with_the_float32_of_slowfast(start, size):
    torch = pytest.importorskip("torch")
    num_frames, rate = size
    theirs = torch.linspace(start, start + num_frames * rate - 1, num_frames)
    theirs = torch.clamp(theirs, 0, 249).long().tolist()
    assert frames_of(clip_indices(start, *size, "linspace", 250, "repeat_last")) == theirs


@unhurried
@given(
    st.floats(-500, 500),
    clip_sizes,
    rates,
    st.sampled_from(["linspace", "strided"]),
    counts,
)
def test_end_policies(start, num_frames, rate, spacing, video_frames):
    arguments = (start, num_frames, rate, spacing, video_frames)
    repeated = clip_indices(*arguments, "repeat_last")
    wrapped = clip_indices(*arguments, "wrap")
    for indices in (repeated, wrapped):
        assert indices.shape == (num_frames,)
        assert indices.min() >= 0
        assert indices.max() < video_frames
    assert (np.diff(repeated) >= 0).all()
    try:
        strict = clip_indices(*arguments, "error")
    except ValueError:
        outside = start < 0 or math.floor(start) + clip_length(*arguments[1:4]) > video_frames
        assert outside
    else:
        assert (strict == wrapped).all()
        assert (strict == repeated).all()


# ---- segments


@pytest.mark.parametrize(
    ("video_frames", "num_frames", "expected"),
    [
        (100, 16, SSV2_100_16),
        (17, 16, list(range(16))),
        (1, 4, [0, 0, 0, 0]),
        (6, 2, [1, 3]),  # the parts meet at round(2.5) = 2, not 3
    ],
)
def test_segment_centres(video_frames, num_frames, expected):
    assert frames_of(segment_indices(video_frames, num_frames, None)) == expected


@unhurried
@given(counts, clip_sizes, st.integers(0, 2**32))
def test_random_segments_stay_in_their_parts(video_frames, num_frames, seed):
    drawn = segment_indices(video_frames, num_frames, np.random.default_rng(seed))
    part = (video_frames - 1) / num_frames
    assert drawn.dtype == np.int64
    assert len(drawn) == num_frames
    for i, index in enumerate(drawn):
        assert int(np.round(part * i)) <= index <= int(np.round(part * (i + 1))) < video_frames


def test_random_segments_reach_both_ends():
    rng = np.random.default_rng(0)
    drawn = np.stack([segment_indices(41, 4, rng) for _ in range(500)])
    assert drawn.min(axis=0).tolist() == [0, 10, 20, 30]
    assert drawn.max(axis=0).tolist() == [10, 20, 30, 40]


def test_segment_clips():
    (centre,) = segment_clips_indices(100, 16, 1)
    assert frames_of(centre) == SSV2_100_16
    first, second = segment_clips_indices(8, 4, 2)
    assert (frames_of(first), frames_of(second)) == ([0, 2, 4, 6], [1, 3, 5, 7])
    first, second = segment_clips_indices(30, 16, 2)
    assert frames_of(first) == [0, 1, 3, 5, 7, 9, 11, 13, 15, 16, 18, 20, 22, 24, 26, 28]
    assert frames_of(second) == [0, 2, 4, 6, 8, 10, 12, 14, 15, 17, 19, 21, 23, 25, 27, 29]


@unhurried
@given(counts, clip_sizes)
def test_two_segment_clips_differ(video_frames, num_frames):
    first, second = segment_clips_indices(video_frames, num_frames, 2)
    tick = video_frames / float(num_frames)  # VideoMAE's own way of putting it
    merged = sorted(
        [int(tick / 2.0 + tick * x) for x in range(num_frames)]
        + [int(tick * x) for x in range(num_frames)]
    )
    assert frames_of(first) == merged[0::2]
    assert frames_of(second) == merged[1::2]
    assert max(merged) < video_frames
    if video_frames > num_frames:
        assert frames_of(first) != frames_of(second)


# ---- key frames


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((100, 16, 4, 300), list(range(68, 129, 4))),
        ((60, 4, 16, 300), [28, 44, 60, 76]),
        ((3, 4, 4, 300), [0, 0, 3, 7]),
        ((9, 4, 4, 10), [1, 5, 9, 9]),
        ((7, 1, 1, 10), [7]),
        ((7, 3, 1, 10), [6, 7, 8]),
    ],
)
def test_keyframe_indices(arguments, expected):
    assert frames_of(keyframe_indices(*arguments)) == expected


@unhurried
@given(st.integers(0, 399), clip_sizes, rates, counts)
def test_keyframe_is_in_its_clip(keyframe, num_frames, rate, video_frames):
    keyframe %= video_frames
    indices = keyframe_indices(keyframe, num_frames, rate, video_frames)
    assert len(indices) == num_frames
    assert 0 <= indices[0] <= indices[-1] < video_frames
    if num_frames % 2 == 0:
        assert indices[num_frames // 2] == keyframe


# ---- space


@pytest.mark.parametrize(
    ("height", "width", "short_side", "expected"),
    [
        (340, 256, 224, (297, 224)),
        (256, 340, 224, (224, 297)),
        (1080, 1920, 224, (224, 398)),
        (240, 320, 256, (256, 341)),
        (100, 100, 224, (224, 224)),
        (224, 500, 224, (224, 500)),
        (500, 224, 224, (500, 224)),
        (196, 427, 224, (224, 487)),  # 488 in integers, but not in SlowFast's floats
    ],
)
def test_resized_shape(height, width, short_side, expected):
    assert resized_shape(height, width, short_side) == expected


@unhurried
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 512))
def test_resized_shape_keeps_the_aspect(height, width, short_side):
    new_height, new_width = resized_shape(height, width, short_side)
    assert min(new_height, new_width) == short_side
    long_side = max(height, width) * short_side / min(height, width)
    assert long_side - 1.001 < max(new_height, new_width) <= long_side + 1e-6
    assert (new_height > new_width) <= (height > width)


@pytest.mark.parametrize(
    ("height", "width", "size", "num_crops", "expected"),
    [
        (224, 298, 224, 3, [(0, 0), (0, 37), (0, 74)]),
        (224, 299, 224, 3, [(0, 0), (0, 38), (0, 75)]),  # 37.5 is rounded up
        (398, 224, 224, 3, [(0, 0), (87, 0), (174, 0)]),
        (256, 341, 224, 1, [(16, 59)]),
        (257, 341, 224, 3, [(17, 0), (17, 59), (17, 117)]),
        (224, 224, 224, 3, [(0, 0)] * 3),
        (225, 225, 224, 3, [(1, 0), (1, 1), (1, 1)]),
        (48, 64, (32, 16), 1, [(8, 24)]),
        (48, 64, (32, 16), 3, [(8, 0), (8, 24), (8, 48)]),
        (64, 48, (32, 16), 3, [(0, 16), (16, 16), (32, 16)]),
        (48, 64, (16, 32), 3, [(16, 0), (16, 16), (16, 32)]),
        (49, 65, (32, 16), 1, [(9, 25)]),
    ],
)
def test_crop_offsets(height, width, size, num_crops, expected):
    assert crop_offsets(height, width, size, num_crops) == expected


@unhurried
@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 600), st.sampled_from([1, 3]))
def test_crops_lie_inside(height, width, size, num_crops):
    size = min(size, height, width)
    offsets = crop_offsets(height, width, size, num_crops)
    assert len(offsets) == num_crops
    for top, left in offsets:
        assert 0 <= top <= height - size
        assert 0 <= left <= width - size
    middle = (math.ceil((height - size) / 2), math.ceil((width - size) / 2))
    assert offsets[num_crops // 2] == middle


# ---- mistakes


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (clip_length, (0, 4, "linspace"), "num_frames=0 must be at least 1"),
        (clip_length, (16, 0, "linspace"), "sampling_rate=0 must be above 0"),
        (clip_length, (16, 0, "strided"), "sampling_rate=0 must be at least 1"),
        (clip_length, (16, 4.5, "strided"), "sampling_rate=4.5 must be an integer"),
        (clip_length, (16, 4, "dense"), "spacing='dense' must be one of linspace, strided"),
        (uniform_clip_starts, (0, 64, 5), "video_frames=0"),
        (uniform_clip_starts, (300, 0, 5), "length=0"),
        (uniform_clip_starts, (300, 64, 0), "num_clips=0"),
        (uniform_clip_starts, (300, math.nan, 5), "length=nan"),
        (uniform_clip_starts, (300, 64, 5, "even"), "rule='even' must be one of offset, interval"),
        (random_clip_start, (0, 64, np.random.default_rng(0)), "video_frames=0"),
        (clip_indices, (0, 4, 4, "strided", 0, "wrap"), "video_frames=0"),
        (clip_indices, (float("nan"), 4, 4, "strided", 9, "wrap"), "start=nan"),
        (clip_indices, (0, 4, 4, "strided", 9, "loop"), "one of repeat_last, wrap, error"),
        (segment_indices, (0, 16, None), "video_frames=0"),
        (segment_indices, (10, 0, None), "num_frames=0"),
        (segment_clips_indices, (10, 4, 3), "num_clips=3 must be 1 or 2"),
        (segment_clips_indices, (10, 4, 0), "num_clips=0 must be 1 or 2"),
        (keyframe_indices, (10, 16, 4, 10), "keyframe_index=10 must be 0 to 9"),
        (keyframe_indices, (-1, 16, 4, 10), "keyframe_index=-1"),
        (resized_shape, (0, 10, 224), "height=0"),
        (resized_shape, (10, 10, 0), "short_side=0"),
        (crop_offsets, (200, 300, 224, 3), "size=224 must fit into the picture, 200 x 300"),
        (crop_offsets, (200, 300, (224, 100), 1), r"size=\(224, 100\) must fit .* 200 x 300"),
        (crop_offsets, (224, 300, 224, 5), "num_crops=5 must be 1"),
    ],
)
def test_mistakes_name_the_argument(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_no_pictures_and_no_torch():
    names = set(vars(sampling))
    assert not names & {"torch", "cv2", "av", "os", "pathlib"}


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 500), st.integers(1, 500))
def test_covering_short_side_is_the_smallest_that_covers(height, width, rows, columns):
    side = covering_short_side(height, width, (rows, columns))

    def covers(short_side):
        shape = resized_shape(height, width, short_side)
        return shape[0] >= rows and shape[1] >= columns

    assert covers(side)
    assert side == 1 or not covers(side - 1)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 500))
def test_a_square_is_covered_at_its_own_side(height, width, size):
    assert covering_short_side(height, width, (size, size)) == size
