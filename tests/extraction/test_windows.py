"""Which windows a video has, and that one pass over its frames makes them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiera_video.extraction.windows import (
    DenseWindows,
    ViewWindows,
    stream_windows,
    window_starts,
)
from hiera_video.settings.video import Windowing
from hiera_video.video.clips import ClipSampler
from hiera_video.video.reader import VideoError

sizes = st.integers(1, 400)


def video(num_frames, fps=25.0, times=None):
    """What samplers ask of a reader."""
    times = np.arange(num_frames) / fps if times is None else np.asarray(times, float)

    class Video(SimpleNamespace):
        def __len__(self):
            return len(times)

    return Video(frame_times_sec=times, end_sec=float(times[-1]) + 1 / fps, path="v.mp4")


@given(sizes, sizes, sizes)
def test_number_of_windows(frames, length, stride):
    """The formulas of the module and of docs/extraction.md."""
    regular = np.arange(0, frames, stride)
    starts = {
        rule: window_starts(frames, length, regular, rule) for rule in ("pad", "drop", "shift")
    }
    if frames <= length:
        assert all(s.tolist() == [0] for s in starts.values())
        return
    assert len(starts["drop"]) == (frames - length) // stride + 1
    assert len(starts["shift"]) == math.ceil((frames - length) / stride) + 1
    if stride <= length:
        assert len(starts["pad"]) == len(starts["shift"])


@given(sizes, sizes, sizes, st.sampled_from(["pad", "drop", "shift"]))
def test_windows_lie_in_the_video_and_reach_its_end(frames, length, stride, rule):
    starts = window_starts(frames, length, np.arange(0, frames, stride), rule)
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert starts[-1] < frames
    if frames >= length and rule != "pad":
        assert starts[-1] + length <= frames
    if rule == "shift" or (rule == "pad" and stride <= length):
        assert starts[-1] + length >= frames
    if rule == "pad" and len(starts) > 1:
        assert starts[-2] + length < frames  # only the last one is padded


def test_indices_and_times_of_dense_windows():
    windows = DenseWindows(
        ClipSampler(num_frames=4, sampling_rate=2, spacing="strided"), Windowing(clip_stride=5)
    )(video(16))
    assert windows.indices.tolist() == [
        [0, 2, 4, 6],
        [5, 7, 9, 11],
        [10, 12, 14, 14],  # reaches past the end: its last frame is repeated
    ]
    assert not windows.is_short
    np.testing.assert_allclose(windows.start_sec, [0, 0.2, 0.4])
    np.testing.assert_allclose(windows.end_sec, [7 / 25, 12 / 25, 16 / 25])


def test_windows_lie_side_by_side_by_default():
    windows = DenseWindows(ClipSampler(num_frames=4, sampling_rate=2), Windowing())(video(24))
    assert windows.indices[:, 0].tolist() == [0, 8, 16]


def test_times_are_those_of_the_frames():
    times = [1.0, 1.1, 1.5, 1.6, 2.5, 2.6]
    windows = DenseWindows(ClipSampler(num_frames=2, sampling_rate=1), Windowing(clip_stride=2))(
        video(6, times=times)
    )
    assert windows.start_sec.tolist() == [1.0, 1.5, 2.5]
    assert windows.end_sec.tolist() == [1.5, 2.5, 2.64]


def test_stride_in_seconds_follows_the_clock():
    """At 12.5 frames a second, every half second: frame 6.25 is not there yet, 6 is on screen."""
    windows = DenseWindows(
        ClipSampler(num_frames=2, sampling_rate=1),
        Windowing(clip_stride_sec=0.5, last_window="drop"),
    )(video(25, fps=12.5))
    assert windows.indices[:, 0].tolist() == [0, 6, 12, 18]
    same = DenseWindows(ClipSampler(num_frames=2, sampling_rate=1), Windowing(clip_stride=10))(
        video(100)
    )
    clock = DenseWindows(
        ClipSampler(num_frames=2, sampling_rate=1), Windowing(clip_stride_sec=0.4)
    )(video(100))
    np.testing.assert_array_equal(same.indices, clock.indices)


@pytest.mark.parametrize("first_sec", [0.0, 10.033, 0.08, 1e4 / 3])
def test_a_stride_of_whole_seconds_is_one_of_frames_whatever_the_first_stamp(first_sec):
    sampler = ClipSampler(num_frames=8, sampling_rate=2)
    film = video(250, times=first_sec + np.arange(250) / 25)
    by_sec = DenseWindows(sampler, Windowing(clip_stride_sec=1.0))(film)
    by_frame = DenseWindows(sampler, Windowing(clip_stride=25))(film)
    np.testing.assert_array_equal(by_sec.indices, by_frame.indices)


def test_target_fps():
    sampler = ClipSampler(num_frames=4, sampling_rate=1, target_fps=5.0)
    windows = DenseWindows(sampler, Windowing(clip_stride=2, last_window="drop"))(video(50))
    assert windows.indices.tolist() == [
        [0, 5, 10, 15],
        [10, 15, 20, 25],
        [20, 25, 30, 35],
        [30, 35, 40, 45],
    ]
    np.testing.assert_allclose(windows.start_sec, [0, 0.4, 0.8, 1.2])
    np.testing.assert_allclose(windows.end_sec, [0.8, 1.2, 1.6, 2.0])


@pytest.mark.parametrize(
    ("policy", "expected"), [("repeat_last", [0, 2, 2, 2]), ("wrap", [0, 2, 1, 0])]
)
@pytest.mark.parametrize("last_window", ["pad", "drop", "shift"])
def test_a_short_video_has_one_window_by_its_end_policy(policy, expected, last_window):
    sampler = ClipSampler(num_frames=4, sampling_rate=2, spacing="strided", end_policy=policy)
    windows = DenseWindows(sampler, Windowing(clip_stride=1, last_window=last_window))(video(3))
    assert windows.indices.tolist() == [expected]
    assert windows.is_short
    assert windows.end_sec == pytest.approx(3 / 25)


def test_a_short_video_may_be_an_error():
    with pytest.raises(VideoError, match="3 frames, a clip covers 8"):
        DenseWindows(ClipSampler(num_frames=4, sampling_rate=2, end_policy="error"), Windowing())(
            video(3)
        )


def test_views_are_those_of_evaluation():
    sampler = ClipSampler(num_frames=8, sampling_rate=4)
    windows = ViewWindows(sampler, 5)(video(100))
    np.testing.assert_array_equal(windows.indices, sampler.uniform_clips(video(100), 5))
    np.testing.assert_allclose(windows.start_sec, windows.indices[:, 0] / 25)
    np.testing.assert_allclose(windows.end_sec, (windows.indices[:, -1] + 1) / 25)
    assert ViewWindows(sampler, 2)(video(9)).is_short
    segments = ClipSampler(num_frames=8, sampling="segments")
    assert ViewWindows(segments, 2)(video(100)).indices.shape == (2, 8)


@given(
    st.integers(1, 120),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 30),
    st.sampled_from(["repeat_last", "wrap"]),
    st.sampled_from(["linspace", "strided"]),
)
def test_one_pass_gives_the_frames_of_every_window(frames, count, rate, stride, policy, spacing):
    sampler = ClipSampler(num_frames=count, sampling_rate=rate, spacing=spacing, end_policy=policy)
    indices = DenseWindows(sampler, Windowing(clip_stride=stride))(video(frames)).indices
    read = []

    def decoded():
        for i in np.unique(indices).tolist():
            read.append(i)
            yield i, np.array(i)

    windows = [[int(frame) for frame in window] for window in stream_windows(decoded(), indices)]
    assert windows == indices.tolist()
    assert len(set(read)) == len(read)


def test_segments_of_two_views_interleave():
    indices = ViewWindows(ClipSampler(num_frames=4, sampling="segments"), 2)(video(8)).indices
    frames = ((int(i), np.array(i)) for i in np.unique(indices))
    windows = [[int(frame) for frame in window] for window in stream_windows(frames, indices)]
    assert windows == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_no_more_frames_are_held_than_windows_overlap():
    import weakref

    indices = DenseWindows(ClipSampler(num_frames=4, sampling_rate=2), Windowing(clip_stride=2))(
        video(1000)
    ).indices
    alive: list[weakref.ref] = []
    most = 0

    def decoded():
        nonlocal most
        for i in np.unique(indices).tolist():
            frame = np.zeros(8)
            alive.append(weakref.ref(frame))
            yield i, frame
            del frame
            most = max(most, sum(r() is not None for r in alive))

    for window in stream_windows(decoded(), indices):
        del window
    assert most <= 12
