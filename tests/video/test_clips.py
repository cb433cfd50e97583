"""Clips of videos of other rates than `target_fps`, against SlowFast's formulas."""

import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hiera_video.video.clips import ClipSampler
from hiera_video.video.reader import VideoError
from hiera_video.video.sampling import clip_indices, constant_rate, uniform_clip_starts

NTSC = Fraction(1000, 1001)


class Video(SimpleNamespace):
    """What samplers use of a reader."""

    def __len__(self):
        return len(self.frame_times_sec)


def video(num_frames, fps, ticks_per_sec=None, first_sec=0.0):
    times = first_sec + np.arange(num_frames + 1) / float(fps)
    if ticks_per_sec:
        times = np.round(times * ticks_per_sec) / ticks_per_sec
    return Video(path="a.mp4", frame_times_sec=times[:-1], end_sec=float(times[-1]))


def slowfast(start, num_frames, fps, *, covered):
    """Frames of the clip that begins at source frame `start`, as its tensors have them."""
    frames = torch.linspace(start, start + covered - 1, 16)
    return torch.clamp(frames, 0, num_frames - 1).long().tolist()


def test_a_path_is_no_video():
    with pytest.raises(TypeError, match=r"the path a\.mp4: expected open_video\('a\.mp4'\)"):
        ClipSampler(num_frames=4).uniform_clips("a.mp4", 1)  # of 5 letters


@pytest.mark.parametrize(
    "rate", [7.5, 10, Fraction(24000, 1001), 25, Fraction(30000, 1001), 30, 120]
)
def test_constant_rates_are_exact(rate):
    for ticks_per_sec, first_sec in itertools.product([None, 1000, 90_000], [0.0, 1.4, 1e4 / 3]):
        times = np.array([first_sec + float(k / Fraction(rate)) for k in range(300)])
        if ticks_per_sec:
            times = np.round(times * ticks_per_sec) / ticks_per_sec
        assert constant_rate(times) == Fraction(rate)
        one_is_late = times + 0.0025 * (np.arange(300) == 150)
        assert constant_rate(one_is_late) is None
        assert constant_rate(np.delete(times, 150)) is None


def test_other_constant_rates_and_none():
    assert constant_rate(np.arange(500) / 14.2) == pytest.approx(14.2, rel=1e-9)
    assert constant_rate(np.array([5.0, 25.0])) == 0.05
    for times in ([0.0], [1.0, 1.0], [0.0, 0.1, 0.3]):
        assert constant_rate(np.array(times)) is None


@pytest.mark.parametrize("fps", [10, 15, 24 * NTSC, 24, 25, 30 * NTSC, 30, 48, 50, 60 * NTSC, 60])
@pytest.mark.parametrize("ticks_per_sec", [None, 1000])
def test_clips_at_any_constant_rate_are_those_of_slowfast(fps, ticks_per_sec):
    sampler = ClipSampler(num_frames=16, sampling_rate=4, target_fps=30)
    covered = max(1.0, 4 * 16 / 30 * float(fps))
    for num_frames in (30, 60, 131, 250, 299, 300, 601):
        source = video(num_frames, fps, ticks_per_sec, first_sec=1.4)
        delta = max(num_frames - covered, 0)
        for num_clips in (1, 2, 5, 10):
            if num_clips == 1:
                starts = [math.floor(delta / 2)]
            else:
                starts = [k * math.floor(delta / (num_clips - 1)) for k in range(num_clips)]
            theirs = [slowfast(start, num_frames, fps, covered=covered) for start in starts]
            assert sampler.uniform_clips(source, num_clips).tolist() == theirs
        starts = [delta * k / 5 for k in range(5)]
        theirs = [slowfast(start, num_frames, fps, covered=covered) for start in starts]
        ours = sampler.uniform_clips(source, 5, "interval")
        # Positions that are whole may fall below in float32.
        assert np.abs(ours - theirs).max() <= 1
        assert (ours != theirs).mean() < 0.05


def test_random_clips_start_anywhere_in_source_frames():
    sampler = ClipSampler(num_frames=16, sampling_rate=4, target_fps=30)
    covered = 64 / 30 * 25
    clips = sampler.random_clips(video(250, 25), 8, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    starts = [rng.uniform(0, 250 - covered) for _ in range(8)]
    theirs = [slowfast(start, 250, 25, covered=covered) for start in starts]
    assert clips.tolist() == theirs


def test_at_its_own_rate_a_video_is_sampled_as_without():
    source = video(299, 30, 1000)
    resampled, plain = (
        ClipSampler(num_frames=16, target_fps=fps).uniform_clips(source, 5) for fps in (30, None)
    )
    assert resampled.tolist() == plain.tolist()


def test_a_video_of_variable_rate_is_sampled_on_the_clock():
    """Ten frames a second, then fifty: 2 s in which 60 frames of 30 per second are shown."""
    times = np.concatenate([np.arange(10) / 10, 1 + np.arange(50) / 50])
    source = Video(path="a.mp4", frame_times_sec=times, end_sec=2.0)
    on_screen = np.searchsorted(times, np.arange(60) / 30 + 1e-3, side="right") - 1
    clips = ClipSampler(num_frames=8, sampling_rate=4, target_fps=30).uniform_clips(source, 3)
    starts = uniform_clip_starts(60, 32, 3)
    expected = [on_screen[clip_indices(s, 8, 4, "linspace", 60, "error")] for s in starts]
    assert clips.tolist() == np.stack(expected).tolist()


def test_strided_frames_and_segments_are_chosen_on_the_clock():
    strided = ClipSampler(num_frames=4, sampling_rate=3, spacing="strided", target_fps=30)
    assert strided.uniform_clips(video(100, 60), 1).tolist() == [[40, 46, 52, 58]]
    segments = ClipSampler(num_frames=4, sampling="segments", target_fps=30)
    assert segments.uniform_clips(video(60, 60), 1).tolist() == [[6, 20, 36, 50]]


def test_a_clip_that_just_fits_is_no_error():
    """16x4 covers 53.3 source frames at 25 per second; its last position is in frame 52."""
    sampler = ClipSampler(num_frames=16, sampling_rate=4, target_fps=30, end_policy="error")
    assert sampler.uniform_clips(video(53, 25), 2)[:, -1].tolist() == [52, 52]
    with pytest.raises(VideoError, match="52 frames, a clip covers 53"):
        sampler.uniform_clips(video(52, 25), 2)


def test_the_middle_clip():
    source = video(30, 10)
    source.frames = lambda indices: np.array(indices)[:, None]  # frames that show their number
    frames, times_sec = ClipSampler(num_frames=4, sampling_rate=2).middle_clip(source)
    assert frames[:, 0].tolist() == [11, 13, 15, 18]  # over 8 of 30 frames, ends included
    assert times_sec == pytest.approx([1.1, 1.3, 1.5, 1.8])
