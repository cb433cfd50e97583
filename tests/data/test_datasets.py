"""Samples, from readers that count what is decoded and frames that state their number."""

import numpy as np
import pytest
import torch

from hiera_video.data.batches import ClipSample, Failure, ViewSample
from hiera_video.data.boxes.keyframes import KeyframeRecord
from hiera_video.data.datasets import (
    EvaluationViews,
    KeyframeClips,
    TrainingClips,
    TrainingKeyframes,
)
from hiera_video.data.transforms import (
    DetectionTransform,
    FinetuneTransform,
    PretrainTransform,
    resize_short_side,
)
from hiera_video.data.videos.records import VideoRecord
from hiera_video.settings.training import Augment, Crop, DetectionAugment
from hiera_video.settings.video import Views
from hiera_video.video.clips import ClipSampler, read_frames
from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError
from hiera_video.video.sampling import crop_offsets
from tests.video.striped_video import make_striped_video, read_number

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
    sampler = sampler or ClipSampler(num_frames=4, sampling_rate=3)
    return TrainingClips(
        [RECORD, BAD],
        sampler,
        transform,
        num_repeats=num_repeats,
        seed=seed,
        open_video=opener,
    )


def test_frames_are_shrunk_once_for_all_clips_of_a_video():
    """To what the transform would shrink them to, so that clips are the same."""
    seen = []

    def transform(frames, rng):
        seen.append(frames.shape)
        return pretrain(frames, rng)

    pretrain = PretrainTransform(14, Crop())
    clips = clips_of(Opener(), transform=transform, num_repeats=2)
    expected = clips[0, 0, 0].clips
    clips.short_side = pretrain.short_side
    assert np.array_equal(clips[0, 0, 0].clips, expected)
    assert seen == [(4, 40, 60, 3)] * 2 + [(4, 16, 24, 3)] * 2
    clips.sampler = ClipSampler(num_frames=1)  # of images, crops are taken from all pixels
    clips[0, 0, 0]
    assert seen[4:] == [(1, 40, 60, 3)] * 2


def numbers(clips):
    """The frame numbers that clips [..., T, H, W, C] state."""
    return np.asarray(clips)[..., 0, 0, 0].tolist()


def test_a_sample_is_a_function_of_seed_epoch_index_and_draw():
    transform = FinetuneTransform(
        16,
        Augment(erasing_prob=0.5, rand_augment_magnitude=None),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
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
    sample = clips_of(opener, ClipSampler(num_frames=8, sampling_rate=2), num_repeats=num_repeats)[
        0, 0, 0
    ]
    (reader,) = opener.readers
    (asked,) = reader.calls
    stated = np.array(numbers(sample.clips))
    assert stated.shape == (num_repeats, 8)
    assert asked == sorted(set(stated.ravel().tolist()))
    assert len(asked) <= 20
    assert reader.closed


def test_repeats_differ():
    transform = FinetuneTransform(
        16,
        Augment(erasing_prob=0, rand_augment_magnitude=None),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
    sample = clips_of(Opener(), transform=transform, num_repeats=2)[0, 0, 0]
    starts = np.array(numbers(sample.clips))[:, 0]
    assert starts[0] != starts[1]
    assert not np.array_equal(sample.clips[0, ..., 1], sample.clips[1, ..., 1])  # crops do too


def test_clips_keep_their_distance_and_stay_inside():
    dataset = clips_of(Opener(), ClipSampler(num_frames=4, sampling_rate=3, spacing="strided"))
    for epoch in range(50):
        (clip,) = numbers(dataset[epoch, 0, 0].clips)
        assert np.diff(clip).tolist() == [3, 3, 3]
        assert 0 <= clip[0] <= 100 - 10
    dataset = clips_of(
        Opener(num_frames=7), ClipSampler(num_frames=4, sampling_rate=3, spacing="strided")
    )
    for epoch in range(5):
        assert numbers(dataset[epoch, 0, 0].clips) == [[0, 3, 6, 6]]  # the last frame repeats


def test_target_fps():
    """A video of 50 frames a second played at 12.5: frames 1 apart are 4 apart in the file."""
    sampler = ClipSampler(num_frames=4, sampling_rate=1, spacing="strided", target_fps=12.5)
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

    sampler = ClipSampler(num_frames=4, target_fps=25.0)
    for failure in (clips_of(Jumping(), sampler)[0, 0, 0], views_of(Jumping(), sampler)[0]):
        assert isinstance(failure, Failure)
        assert failure.cause == "timestamps"
        assert failure.message.startswith("/videos/a.mp4: end_sec=500004.0 at target_fps=25.0")
    assert isinstance(clips_of(Jumping())[0, 0, 0], ClipSample)  # without target_fps none matter


def test_segments_take_one_frame_of_each_part():
    sampler = ClipSampler(num_frames=5, sampling="segments")
    dataset = clips_of(Opener(), sampler)
    for epoch in range(30):
        (clip,) = numbers(dataset[epoch, 0, 0].clips)
        parts = [round(99 / 5 * i) for i in range(6)]  # as SlowFast cuts them
        assert all(a <= n <= b for a, n, b in zip(parts, clip, parts[1:], strict=False))
    assert len({tuple(numbers(dataset[epoch, 0, 0].clips)[0]) for epoch in range(5)}) == 5


def test_too_short_for_a_clip_is_an_error_where_asked_for():
    sampler = ClipSampler(num_frames=4, sampling_rate=3, end_policy="error")
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
    crop_size = settings.pop("crop_size", (16, 16))
    sampler = sampler or ClipSampler(num_frames=8, sampling_rate=4)
    return EvaluationViews(
        records, sampler, crop_size=crop_size, views=Views(**settings), open_video=opener
    )


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
    sampler = ClipSampler(num_frames=8, sampling_rate=4)
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
    sampler = ClipSampler(num_frames=5, sampling="segments")
    one = numbers(view(views_of(Opener(), sampler, num_clips=1, num_crops=1)[0], 0))
    assert one == [10, 30, 49, 69, 89]  # the centres
    two = views_of(Opener(), sampler, num_clips=2, num_crops=1)[0]
    assert numbers(view(two, 0)) != numbers(view(two, 1))


def test_crops_larger_than_the_frames_are_refused():
    with pytest.raises(ValueError, match=r"views.short_side is 15; it must be at least 16"):
        views_of(Opener(), short_side=15)


def test_read_frames_gives_each_frame_its_place():
    indices = np.array([[5, 3, 3], [9, 5, 3]])
    reader = SpyReader("x")
    frames, positions = read_frames(reader, indices)
    assert reader.calls == [[3, 5, 9]]
    assert positions.shape == (2, 3)
    assert np.array_equal(frames[positions][..., 0, 0, 0], indices)


# ---- clips around key frames


@pytest.fixture(scope="module")
def striped(tmp_path_factory):
    """A video of 4 s at 25 frames a second, and one whose first frame comes up at 1 s."""
    folder = tmp_path_factory.mktemp("striped")
    make_striped_video(folder / "a.mp4", 100)
    make_striped_video(folder / "late.mkv", 100, pts=[1000 + 40 * n for n in range(100)])
    return folder


def keyframe_numbers(path, sampler, second, start_sec=None):
    """The numbers that the frames of the clip state."""
    with open_video(path) as video:
        frames, positions = read_frames(video, sampler.keyframe_clip(video, second, start_sec))
    return [read_number(frames[i]) for i in positions]


@pytest.mark.parametrize("name", ["a.mp4", "late.mkv"])
@pytest.mark.parametrize(
    ("second", "start_sec", "expected"),
    [
        (2, None, [44, 47, 50, 53]),  # from 4 * 3 // 2 frames before the key frame on
        (2.03, None, [44, 47, 50, 53]),
        (902, 900, [44, 47, 50, 53]),
        (0, 0, [0, 0, 0, 3]),
        (3.96, None, [93, 96, 99, 99]),
        (4, None, [93, 96, 99, 99]),  # the end
    ],
)
def test_the_clip_around_a_key_frame(striped, name, second, start_sec, expected):
    sampler = ClipSampler(num_frames=4, sampling_rate=3)
    assert keyframe_numbers(striped / name, sampler, second, start_sec) == expected


@pytest.mark.parametrize("name", ["a.mp4", "late.mkv"])
@pytest.mark.parametrize(
    ("target_fps", "second", "expected"),
    [
        (25.0, 2, [44, 47, 50, 53]),
        (12.5, 2, [38, 44, 50, 56]),  # as if every other frame were there
        (50.0, 2, [47, 48, 50, 51]),  # each frame twice: 94, 97, 100, 103
        (12.5, 3.99, [86, 92, 98, 98]),  # the last frame of the slower video ends before the file
        (12.5, 4, [86, 92, 98, 98]),
        (12.5, 0, [0, 0, 0, 6]),
    ],
)
def test_the_clip_around_a_key_frame_at_target_fps(striped, name, target_fps, second, expected):
    sampler = ClipSampler(num_frames=4, sampling_rate=3, target_fps=target_fps)
    assert keyframe_numbers(striped / name, sampler, second) == expected


@pytest.mark.parametrize("target_fps", [None, 12.5])
@pytest.mark.parametrize("seconds", [-0.01, 4.01, 900])
def test_a_key_frame_outside_of_the_video_is_an_error(striped, target_fps, seconds):
    sampler = ClipSampler(num_frames=4, sampling_rate=3, target_fps=target_fps)
    path = striped / "a.mp4"
    expected = f"{path}: key frame at {900 + seconds:g} s, but the video covers 900 to 904.000 s"
    with pytest.raises(VideoError) as caught:
        keyframe_numbers(path, sampler, 900 + seconds, 900)
    assert caught.value.cause == "timestamps"
    assert str(caught.value).startswith(f"{expected}; start_sec (data.start_sec in commands) is")
    with pytest.raises(VideoError) as caught:  # a command without that setting does not name it
        keyframe_numbers(path, sampler, seconds)
    assert str(caught.value).endswith(
        f"key frame at {seconds:g} s, but the video covers 0 to 4.000 s"
    )


BOXES = np.array([[0.0, 0.0, 0.1, 1.0], [0.4, 0.4, 0.6, 0.6], [0.9, 0.0, 1.0, 0.1]])
PEOPLE = KeyframeRecord("/videos/a.mp4", "a", 902.0, BOXES, ((1,), (2, 3), ()))


def keyframes_of(opener, transform, *, records=(PEOPLE,), num_repeats=1, **changes):
    return TrainingKeyframes(
        list(records),
        ClipSampler(num_frames=4, sampling_rate=3),
        transform,
        num_repeats=num_repeats,
        open_video=opener,
        **(dict(seed=0, start_sec=900) | changes),
    )


def test_boxes_without_area_are_dropped_and_counted():
    moved = np.array([[-0.3, 0.2, 0.0, 0.7], [-0.5, 0.1, 0.25, 1.5], [0.5, 0.5, 0.5, 0.9]])

    def transform(frames, boxes, rng):
        assert np.array_equal(boxes, BOXES)
        return frames.copy(), moved

    clips = keyframes_of(Opener(), transform, num_repeats=2)[0, 0, 0]
    assert len(clips) == 2
    for clip in clips:
        assert clip.name == "a,902"
        assert numbers(clip.clip) == [44, 47, 50, 53]
        assert clip.boxes.tolist() == [[0.0, np.float32(0.1), 0.25, 1.0]]  # cut off at the picture
        assert clip.boxes.dtype == np.float32
        assert clip.actions == [(2, 3)]
        assert clip.num_dropped == 2


def test_a_key_frame_is_a_function_of_seed_epoch_index_and_draw():
    transform = DetectionTransform((16, 16), DetectionAugment(zoom=(1.1, 2.0), flip=True))
    records = [PEOPLE, PEOPLE]
    dataset = keyframes_of(Opener(), transform, records=records, num_repeats=2)
    first = dataset[3, 0, 0]
    assert not np.array_equal(first[0].clip, first[1].clip)  # two crops
    for key in ((0, 0, 0), (4, 0, 0), (3, 1, 0), (3, 0, 1)):
        assert not np.array_equal(dataset[key][0].clip, first[0].clip)
    again = keyframes_of(Opener(), transform, records=records, num_repeats=2)[3, 0, 0]
    other = keyframes_of(Opener(), transform, records=records, num_repeats=2, seed=1)[3, 0, 0]
    for ours, same in zip(first, again, strict=True):
        assert np.array_equal(ours.clip, same.clip)
        assert np.array_equal(ours.boxes, same.boxes)
    assert not np.array_equal(other[0].clip, first[0].clip)


def test_the_crops_of_a_key_frame_are_decoded_once():
    transform = DetectionTransform((16, 16), DetectionAugment(zoom=(1.0, 1.5), flip=True))
    opener = Opener()
    keyframes_of(opener, transform, num_repeats=3)[0, 0, 0]
    (reader,) = opener.readers
    assert reader.calls == [[44, 47, 50, 53]]
    assert reader.closed


def test_boxes_outside_of_the_centre_crop_are_counted_and_kept():
    """The crop shows columns 10 to 50 of 60: the left and the right box lie outside of it."""
    clips = KeyframeClips(
        [PEOPLE],
        ClipSampler(num_frames=4, sampling_rate=3),
        size=(40, 40),
        start_sec=900,
        open_video=Opener(),
    )
    sample = clips[0]
    assert sample.index == 0
    assert numbers(sample.clip) == [44, 47, 50, 53]
    assert sample.clip.shape == (4, 40, 40, 3)
    assert sample.num_outside == 2
    assert sample.boxes.dtype == torch.float32
    expected = [[0, 0, 0, 1], [0.35, 0.4, 0.65, 0.6], [1, 0, 1, 0.1]]
    np.testing.assert_allclose(sample.boxes, expected, atol=1e-7)
    assert sample.backend == "spy"


@pytest.mark.parametrize("second", [890.0, 1000.0])
def test_key_frames_that_cannot_be_read_are_failures(second):
    outside = KeyframeRecord("/videos/a.mp4", "a", second, BOXES, ((1,),) * 3)
    bad = KeyframeRecord("/videos/bad.mp4", "bad", 902.0, BOXES, ((1,),) * 3)
    records = [outside, bad]
    training = keyframes_of(Opener(), None, records=records)
    scored = KeyframeClips(
        records, training.sampler, size=(16, 16), start_sec=900, open_video=Opener()
    )
    truncated = Failure("bad,902", "/videos/bad.mp4", "truncated", "/videos/bad.mp4: is cut off")
    assert training[0, 1, 0] == scored[1] == truncated
    assert training[0, 0, 0] == scored[0]
    assert (scored[0].name, scored[0].cause) == (f"a,{second:g}", "timestamps")
    assert f"key frame at {second:g} s, but the video covers 900 to 904" in scored[0].message
