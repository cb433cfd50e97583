"""Samples, from readers that count what is decoded and frames that state their number."""

import numpy as np
import pytest

from hiera_video.data.annotations import VideoRecord
from hiera_video.data.batches import ClipSample, Failure, ViewSample
from hiera_video.data.datasets import ClipSampler, EvaluationViews, TrainingClips, read_frames
from hiera_video.data.transforms import FinetuneTransform, resize_short_side
from hiera_video.video.reader import VideoError
from hiera_video.video.sampling import crop_offsets

RECORD = VideoRecord("/videos/a.mp4", (1,), "a.mp4")
BAD = VideoRecord("/videos/bad.mp4", (0,), "bad.mp4")


class SpyReader:
    """A video of 40 x 60 pixels whose frames hold their number in one channel, noise in another."""

    def __init__(self, path, num_frames=100, fps=25.0):
        self.path, self.backend = path, "spy"
        self.frame_times_sec = np.arange(num_frames) / fps
        self.end_sec = num_frames / fps
        self.height, self.width = 40, 60
        self.calls, self.closed = [], False

    def __len__(self):
        return len(self.frame_times_sec)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def frames(self, indices):
        self.calls.append(np.asarray(indices).tolist())
        noise = np.random.default_rng(0).integers(0, 256, (self.height, self.width), dtype=np.uint8)
        frames = np.zeros((len(indices), self.height, self.width, 3), np.uint8)
        frames[..., 0] = np.asarray(indices)[:, None, None]
        frames[..., 1] = noise
        return frames


class Opener:
    def __init__(self, **settings):
        self.settings, self.readers = settings, []

    def __call__(self, path):
        if "bad" in path:
            raise VideoError(path, "truncated", "is cut off")
        self.readers.append(SpyReader(path, **self.settings))
        return self.readers[-1]


def keep(frames, rng):
    return frames.copy()


def clips_of(opener, sampler=None, *, transform=keep, num_repeats=1, seed=0):
    sampler = sampler or ClipSampler(4, sampling_rate=3)
    return TrainingClips(
        [RECORD, BAD],
        sampler,
        transform,
        num_repeats=num_repeats,
        seed=seed,
        open_video=opener,
    )


def numbers(clips):
    """The frame numbers that clips [..., T, H, W, C] state."""
    return np.asarray(clips)[..., 0, 0, 0].tolist()


def test_a_sample_is_a_function_of_seed_epoch_index_and_draw():
    transform = FinetuneTransform(16, mean=(0.5,) * 3, std=(0.2,) * 3, erasing_prob=0.5)
    dataset = clips_of(Opener(), transform=transform, num_repeats=2)
    first = dataset[3, 0, 0]
    assert first.clips.shape == (2, 4, 16, 16, 3)
    assert (first.name, first.labels) == ("a.mp4", (1,))
    for key in ((0, 0, 0), (4, 0, 0), (3, 1, 0), (3, 0, 1)):
        dataset[key]  # whatever was asked for in between
    np.random.seed(1)  # noqa: NPY002
    assert np.array_equal(dataset[3, 0, 0].clips, first.clips)
    again = clips_of(Opener(), transform=transform, num_repeats=2)
    assert np.array_equal(again[3, 0, 0].clips, first.clips)
    assert not np.array_equal(dataset[4, 0, 0].clips, first.clips)
    assert not np.array_equal(dataset[3, 0, 1].clips, first.clips)  # drawn again, if balanced
    other = clips_of(Opener(), transform=transform, num_repeats=2, seed=1)
    assert not np.array_equal(other[3, 0, 0].clips, first.clips)
    twin = TrainingClips(
        [BAD, RECORD], dataset.sampler, transform, num_repeats=2, seed=0, open_video=Opener()
    )
    assert not np.array_equal(twin[3, 1, 0].clips, first.clips)


@pytest.mark.parametrize("num_repeats", [1, 2, 4])
def test_the_clips_of_a_video_are_decoded_once(num_repeats):
    opener = Opener(num_frames=20)
    sample = clips_of(opener, ClipSampler(8, sampling_rate=2), num_repeats=num_repeats)[0, 0, 0]
    (reader,) = opener.readers
    (asked,) = reader.calls
    stated = np.array(numbers(sample.clips))
    assert stated.shape == (num_repeats, 8)
    assert asked == sorted(set(stated.ravel().tolist()))
    assert len(asked) <= 20
    assert reader.closed


def test_repeats_differ():
    transform = FinetuneTransform(16, mean=(0.5,) * 3, std=(0.2,) * 3, erasing_prob=0)
    sample = clips_of(Opener(), transform=transform, num_repeats=2)[0, 0, 0]
    starts = np.array(numbers(sample.clips))[:, 0]
    assert starts[0] != starts[1]
    assert not np.array_equal(sample.clips[0, ..., 1], sample.clips[1, ..., 1])  # crops do too


def test_clips_keep_their_distance_and_stay_inside():
    dataset = clips_of(Opener(), ClipSampler(4, sampling_rate=3, spacing="strided"))
    for epoch in range(50):
        (clip,) = numbers(dataset[epoch, 0, 0].clips)
        assert np.diff(clip).tolist() == [3, 3, 3]
        assert 0 <= clip[0] <= 100 - 10
    dataset = clips_of(Opener(num_frames=7), ClipSampler(4, sampling_rate=3, spacing="strided"))
    for epoch in range(5):
        assert numbers(dataset[epoch, 0, 0].clips) == [[0, 3, 6, 6]]  # the last frame repeats


def test_target_fps():
    """A video of 50 frames a second played at 12.5: frames 1 apart are 4 apart in the file."""
    sampler = ClipSampler(4, sampling_rate=1, spacing="strided", target_fps=12.5)
    opener = Opener(fps=50.0)
    starts = set()
    for epoch in range(50):
        (clip,) = numbers(clips_of(opener, sampler)[epoch, 0, 0].clips)
        assert np.diff(clip).tolist() == [4, 4, 4]
        starts.add(clip[0] % 4)
    assert starts == {0}
    picture = Opener(num_frames=1)
    assert numbers(clips_of(picture, sampler)[0, 0, 0].clips) == [[0, 0, 0, 0]]


def test_broken_time_stamps_are_a_failure():
    class Jumping(Opener):
        def __call__(self, path):
            reader = super().__call__(path)
            reader.frame_times_sec[50:] += 500_000
            reader.end_sec += 500_000
            return reader

    sampler = ClipSampler(4, target_fps=25.0)
    for failure in (clips_of(Jumping(), sampler)[0, 0, 0], views_of(Jumping(), sampler)[0]):
        assert isinstance(failure, Failure)
        assert failure.cause == "timestamps"
        assert failure.message.startswith("/videos/a.mp4: end_sec=500004.0 at target_fps=25.0")
    assert isinstance(clips_of(Jumping())[0, 0, 0], ClipSample)  # without target_fps none matter


def test_segments_take_one_frame_of_each_part():
    sampler = ClipSampler(5, sampling="segments")
    dataset = clips_of(Opener(), sampler)
    for epoch in range(30):
        (clip,) = numbers(dataset[epoch, 0, 0].clips)
        parts = [round(99 / 5 * i) for i in range(6)]  # as SlowFast cuts them
        assert all(a <= n <= b for a, n, b in zip(parts, clip, parts[1:], strict=False))
    assert len({tuple(numbers(dataset[epoch, 0, 0].clips)[0]) for epoch in range(5)}) == 5


def test_too_short_for_a_clip_is_an_error_where_asked_for():
    sampler = ClipSampler(4, sampling_rate=3, end_policy="error")
    failure = clips_of(Opener(num_frames=11), sampler)[0, 0, 0]
    assert isinstance(failure, Failure)
    assert failure.cause == "too_short"
    assert failure.message.startswith("/videos/a.mp4: 11 frames, a clip covers 12")
    assert isinstance(clips_of(Opener(num_frames=12), sampler)[0, 0, 0], ClipSample)


def test_a_bad_video_is_a_failure_never_another_video():
    expected = Failure("bad.mp4", "/videos/bad.mp4", "truncated", "/videos/bad.mp4: is cut off")
    assert clips_of(Opener())[0, 1, 0] == expected
    views = views_of(Opener(), records=[RECORD, BAD])
    assert views[1] == expected


def views_of(opener, sampler=None, *, records=(RECORD,), **settings):
    settings = dict(crop_size=(16, 16), num_clips=5, num_crops=3) | settings
    sampler = sampler or ClipSampler(8, sampling_rate=4)
    return EvaluationViews(records, sampler, open_video=opener, **settings)


@pytest.mark.parametrize(("num_clips", "num_crops"), [(1, 1), (5, 3), (10, 1), (4, 3)])
@pytest.mark.parametrize("num_frames", [100, 12, 1])
def test_views_decode_each_needed_frame_once(num_clips, num_crops, num_frames):
    opener = Opener(num_frames=num_frames)
    sample = views_of(opener, num_clips=num_clips, num_crops=num_crops)[0]
    assert isinstance(sample, ViewSample)
    (reader,) = opener.readers
    (asked,) = reader.calls
    assert asked == sorted(set(asked))
    assert len(asked) == len(sample.frames) <= num_frames
    wanted = {n for i in range(sample.num_views) for n in numbers(view(sample, i))}
    assert set(asked) == wanted
    assert sample.num_views == num_clips * num_crops
    assert reader.closed


def view(sample, i):
    return sample.view(sample.frames, i, (16, 16)).numpy()


@pytest.mark.parametrize("rule", ["offset", "interval"])
@pytest.mark.parametrize("num_crops", [1, 3])
def test_views_equal_those_cut_directly(rule, num_crops):
    """Decode a clip, resize it, cut it: the long way round for every view."""
    sampler = ClipSampler(8, sampling_rate=4)
    sample = views_of(Opener(), sampler, num_crops=num_crops, clip_rule=rule)[0]
    short_side = 16 if num_crops == 3 else 18  # 16 * 256 / 224
    i = 0
    for clip in sampler.uniform_clips(SpyReader("x"), 5, rule):
        frames = resize_short_side(SpyReader("x").frames(clip), short_side)
        for top, left in crop_offsets(*frames.shape[1:3], 16, num_crops):
            assert np.array_equal(view(sample, i), frames[:, top : top + 16, left : left + 16])
            i += 1
    assert i == sample.num_views


@pytest.mark.parametrize("crop_size", [(32, 16), (16, 32)])
@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("num_crops", [1, 3])
def test_crops_that_are_not_square(crop_size, upright, num_crops):
    class Turned(Opener):
        def __call__(self, path):
            reader = super().__call__(path)
            if upright:
                reader.height, reader.width = reader.width, reader.height
            return reader

    sample = views_of(Turned(), crop_size=crop_size, num_crops=num_crops)[0]
    views = [sample.view(sample.frames, i, crop_size) for i in range(sample.num_views)]
    assert np.stack(views).shape == (5 * num_crops, 8, *crop_size, 3)
    top, left = sample.crop_offsets[num_crops // 2]
    height, width = sample.frames.shape[1:3]
    assert min(height, width) == (32 if num_crops == 3 else 37)
    for start, side, size in ((top, height, crop_size[0]), (left, width, crop_size[1])):
        assert 0 <= start - (side - size - start) <= 1  # in the middle


def test_test_clips_of_segments():
    sampler = ClipSampler(5, sampling="segments")
    one = numbers(view(views_of(Opener(), sampler, num_clips=1, num_crops=1)[0], 0))
    assert one == [10, 30, 49, 69, 89]  # the centres
    two = views_of(Opener(), sampler, num_clips=2, num_crops=1)[0]
    assert numbers(view(two, 0)) != numbers(view(two, 1))


def test_crops_larger_than_the_frames_are_refused():
    with pytest.raises(ValueError, match=r"views.short_side is 15: needed is at least 16"):
        views_of(Opener(), short_side=15)


def test_read_frames_gives_each_frame_its_place():
    indices = np.array([[5, 3, 3], [9, 5, 3]])
    reader = SpyReader("x")
    frames, positions = read_frames(reader, indices)
    assert reader.calls == [[3, 5, 9]]
    assert positions.shape == (2, 3)
    assert np.array_equal(frames[positions][..., 0, 0, 0], indices)
