"""Our samplers and transforms in pytorchvideo's own datasets, on frames that state their number."""

import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from hiera_video.data.datasets import EvaluationViews
from hiera_video.data.pytorchvideo import (
    EvaluationView,
    PytorchvideoSampler,
    TrainingClip,
    clip_batch,
)
from hiera_video.data.transforms import PretrainTransform
from hiera_video.data.videos.records import VideoRecord
from hiera_video.evaluation.views import Scorer, average_views, score_views
from hiera_video.extraction.windows import DenseWindows, ViewWindows
from hiera_video.models.hiera import Hiera
from hiera_video.models.normalize import Normalize
from hiera_video.settings.training import Augment, Crop
from hiera_video.settings.video import Views, Windowing
from hiera_video.training.losses import ClassificationLoss
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError
from hiera_video.video.sampling import clip_length
from tests.video.striped_video import make_striped_video, read_number

data = pytest.importorskip("pytorchvideo.data")

NTSC = Fraction(30000, 1001)
LENGTHS = {"long.mp4": 100, "longer.mp4": 130, "short.mp4": 20}  # a clip of 8x4 covers 32
SIZE = (64, 96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, num_frames in LENGTHS.items():
        make_striped_video(folder / name, num_frames, SIZE, fps=NTSC, options={"g": "12"})
    return folder


def whole(frames, rng):
    return frames


def dataset_of(folder, sampler, transform=None, names=tuple(LENGTHS), **settings):
    settings.setdefault("decode_audio", False)
    return data.LabeledVideoDataset(
        [(str(folder / name), {"label": label}) for label, name in enumerate(names)],
        sampler,
        SequentialSampler,
        transform or TrainingClip(sampler, whole),
        **settings,
    )


def numbers(video):
    """The frame numbers that a clip [C, T, H, W] states."""
    return [read_number(frame) for frame in video.permute(1, 2, 3, 0).numpy()]


def chosen(path, windows):
    """What the samplers choose of a file that our reader has opened, as lists."""
    with open_video(str(path)) as video:
        return windows(video).indices.tolist()


SAMPLERS = {
    "linspace": ClipSampler(num_frames=8),
    "strided": ClipSampler(num_frames=8, spacing="strided"),
    "wrap": ClipSampler(num_frames=8, end_policy="wrap"),
    "segments": ClipSampler(num_frames=8, sampling="segments"),
    "resampled": ClipSampler(num_frames=8, sampling_rate=2, target_fps=12.5),
}
WINDOWS = {
    **{f"views {name}": ViewWindows(sampler, 2) for name, sampler in SAMPLERS.items()},
    "views between frames": ViewWindows(ClipSampler(num_frames=8), 3, "interval"),
    "dense": DenseWindows(ClipSampler(num_frames=8), Windowing(clip_stride=20)),
    "dense in seconds": DenseWindows(ClipSampler(num_frames=8), Windowing(clip_stride_sec=0.5)),
}


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("name", WINDOWS)
def test_all_clips_hold_the_frames_that_our_reader_would_give(folder, name, decoder):
    if decoder == "decord":
        pytest.importorskip("decord")
    sampler = PytorchvideoSampler(WINDOWS[name], NTSC)
    assert isinstance(sampler, data.ClipSampler)
    arrived = {video: [] for video in LENGTHS}
    for sample in dataset_of(folder, sampler, decoder=decoder):
        video = list(LENGTHS)[sample["video_index"]]
        assert sample["clip_index"] == len(arrived[video])
        arrived[video].append(numbers(sample["video"]))
    for video, clips in arrived.items():
        assert clips == chosen(folder / video, WINDOWS[name])


@pytest.mark.parametrize("name", ["linspace", "strided", "wrap"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_clips_are_clips_of_our_sampler(folder, name, num_workers):
    ours = SAMPLERS[name]
    sampler = PytorchvideoSampler(ours, float(NTSC))
    loader = DataLoader(dataset_of(folder, sampler), batch_size=2, num_workers=num_workers)

    def epoch():
        return {
            video: numbers(clip)
            for batch in loader
            for video, clip in zip(batch["video_name"], batch["video"], strict=True)
        }

    torch.manual_seed(0)
    first, second = epoch(), epoch()
    torch.manual_seed(0)
    assert epoch() == first != second
    for clips in (first, second):
        assert clips.keys() == LENGTHS.keys()
        for video, clip in clips.items():
            last_start = max(0, LENGTHS[video] - clip_length(8, 4, ours.spacing))
            starts = np.linspace(0, last_start, 32 * last_start + 1)
            assert clip in [ours.clip(start, LENGTHS[video], 4).tolist() for start in starts]


def test_random_starts_cover_a_video(folder):
    sampler = PytorchvideoSampler(ClipSampler(num_frames=8), NTSC)
    duration = 100 / NTSC
    firsts = []
    for _ in range(500):
        clip = sampler(0, duration, {"label": 0})
        firsts.append(round(clip.clip_start_sec * NTSC + Fraction(1, 2)))
        assert (clip.clip_end_sec - clip.clip_start_sec) * NTSC in (31.5, 32, 33)
        assert (clip.clip_index, clip.aug_index, clip.is_last_clip) == (0, 0, True)
    assert min(firsts) < 3
    assert max(firsts) > 65


def test_each_video_at_the_rate_of_its_annotation(tmp_path):
    rates = {"a.mp4": 25.0, "b.mp4": 12.5, "c.mp4": 30000 / 1001}
    for name, rate in rates.items():
        make_striped_video(tmp_path / name, 60, fps=Fraction(rate).limit_denominator(1001))
    sampler = PytorchvideoSampler(ViewWindows(ClipSampler(num_frames=4), 2))
    paths = [(str(tmp_path / name), {"label": 0, "fps": rate}) for name, rate in rates.items()]
    transform = TrainingClip(sampler, whole)
    dataset = data.LabeledVideoDataset(
        paths, sampler, SequentialSampler, transform, decode_audio=False
    )
    expected = chosen(tmp_path / "a.mp4", ViewWindows(ClipSampler(num_frames=4), 2))
    assert [numbers(sample["video"]) for sample in dataset] == expected * 3


def test_a_folder_of_pictures_at_the_rate_that_pytorchvideo_gives_it(tmp_path, folder):
    import cv2

    (tmp_path / "video").mkdir()
    with open_video(str(folder / "long.mp4")) as video:
        for number, frame in enumerate(video.frames(np.arange(100))):
            cv2.imwrite(str(tmp_path / "video" / f"{number}.png"), frame[..., ::-1])
    windows = ViewWindows(ClipSampler(num_frames=8), 2)
    dataset = dataset_of(tmp_path, PytorchvideoSampler(windows, 30), names=["video"])
    expected = chosen(folder / "long.mp4", windows)
    assert [numbers(sample["video"]) for sample in dataset] == expected


@pytest.mark.parametrize(("suffix", "start"), [("mkv", 0), ("mkv", 1000), ("mp4", 1000)])
def test_where_pytorchvideo_takes_a_video_for_shorter(tmp_path, suffix, start):
    """A frame without a stated duration, what comes before the first frame where one is stated."""
    path = tmp_path / f"a.{suffix}"
    make_striped_video(path, 100, pts=[start + 40 * n for n in range(100)])
    missing = 1 if suffix == "mkv" else 25
    sampler = PytorchvideoSampler(ViewWindows(ClipSampler(num_frames=8), 2), 25)
    first, last = (numbers(s["video"]) for s in dataset_of(tmp_path, sampler, names=[path.name]))
    assert (first[0], last[-1]) == (0, 99 - missing)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_gives_the_logits_of_our_own(folder, num_workers):
    torch.manual_seed(0)
    model = Hiera(input_size=(8, 32, 32), num_classes=5, embed_dim=8, stages=(1, 1, 1, 1)).eval()
    normalize = Normalize((0.45,) * 3, (0.225,) * 3)
    records = [VideoRecord(str(folder / name), (0,), name) for name in LENGTHS]
    views = EvaluationViews(
        records,
        ClipSampler(num_frames=8),
        crop_size=(32, 32),
        views=Views(num_clips=2, num_crops=3, short_side=40),
    )
    ours = []
    with torch.inference_mode():
        for i in range(len(views)):
            sample = views[i]
            clips = torch.stack(
                [sample.view(sample.frames, k, (32, 32)) for k in range(sample.num_views)]
            )
            ours.append(model(normalize(clips)))
        sampler = PytorchvideoSampler(ViewWindows(ClipSampler(num_frames=8), 2), NTSC, num_crops=3)
        dataset = dataset_of(folder, sampler, EvaluationView(sampler, (32, 32), short_side=40))
        theirs = {}
        for batch in DataLoader(dataset, batch_size=4, num_workers=num_workers):
            logits = model(normalize(clip_batch(batch).clips))
            where = zip(batch["clip_index"], batch["aug_index"], strict=True)
            for video, (clip, crop), row in zip(batch["video_index"], where, logits, strict=True):
                theirs.setdefault(int(video), {})[int(3 * clip + crop)] = row
    scorer = Scorer(model, normalize, device=torch.device("cpu"), batch_size=4)
    scored = score_views(scorer, [views[i] for i in range(len(views))], (32, 32))
    for i, (_, probabilities) in enumerate(scored):
        assert sorted(theirs[i]) == list(range(6))
        of_video = torch.stack([theirs[i][view] for view in range(6)])
        torch.testing.assert_close(of_video, ours[i], rtol=0, atol=1e-5)
        expected = average_views(probabilities)
        assert np.allclose(average_views(of_video.softmax(dim=1).numpy()), expected, atol=1e-5)
    assert len(theirs) == len(LENGTHS)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_of_pytorchvideo_trains_a_model(folder, num_workers):
    sampler = PytorchvideoSampler(ClipSampler(num_frames=4), NTSC)
    transform = TrainingClip(sampler, PretrainTransform(32, Crop()))
    loader = DataLoader(
        dataset_of(folder, sampler, transform), batch_size=3, num_workers=num_workers
    )
    model = Hiera(input_size=(4, 32, 32), num_classes=3, embed_dim=8, stages=(1, 1, 1, 1))
    loss = ClassificationLoss(
        Augment(mixup=0, cutmix=0, label_smoothing=0),
        num_classes=3,
        normalize=Normalize((0.45,) * 3, (0.225,) * 3),
    )
    seen = []
    for batch in loader:
        clips = clip_batch(batch)
        assert clips.clips.dtype == torch.uint8
        assert clips.clips.shape == (len(clips), 4, 32, 32, 3)
        seen += zip(clips.names, clips.labels, strict=True)
        loss(model, clips, np.random.default_rng(0)).backward()
    assert sorted(seen) == [(name, (label,)) for label, name in enumerate(LENGTHS)]
    assert all(p.grad is not None for p in model.parameters())


def test_a_dataset_can_be_sent_to_another_process(folder):
    sampler = PytorchvideoSampler(ViewWindows(ClipSampler(num_frames=8), 2), NTSC)
    dataset = dataset_of(folder, sampler, EvaluationView(sampler, SIZE, short_side=96))
    copy = pickle.loads(pickle.dumps(dataset))
    for ours, theirs in zip(dataset, copy, strict=True):
        assert torch.equal(ours["video"], theirs["video"])


def test_a_training_transform_is_random_in_each_worker_and_epoch(folder):
    sampler = PytorchvideoSampler(ViewWindows(ClipSampler(num_frames=4), 1), NTSC)
    dataset = dataset_of(
        folder,
        sampler,
        TrainingClip(sampler, PretrainTransform(32, Crop())),
        names=["long.mp4"] * 2,
    )
    clips = [batch["video"][0] for _ in range(2) for batch in DataLoader(dataset, num_workers=2)]
    assert len(clips) == 4
    assert len({clip.numpy().tobytes() for clip in clips}) == 4


@pytest.mark.parametrize("fps", [30, 29, 24, 25])
def test_a_rate_that_makes_no_whole_number_of_frames_is_named(folder, fps):
    dataset = dataset_of(folder, PytorchvideoSampler(ClipSampler(num_frames=8), fps))
    with pytest.raises(ValueError, match=rf"fps={fps} makes .* {{'label': 0}}.*the video's own"):
        next(iter(dataset))


@pytest.mark.parametrize(("factor", "num_read"), [(2, 16), (Fraction(1, 2), 63)])
def test_a_rate_at_which_other_frames_are_read_is_named(folder, factor, num_read):
    sampler = PytorchvideoSampler(
        ViewWindows(ClipSampler(num_frames=8), 2, "interval"), NTSC * factor
    )
    dataset = dataset_of(folder, sampler)
    with pytest.raises(ValueError, match=rf"long.mp4: {num_read} frames were read where fps=.* 32"):
        list(dataset)


def test_a_video_of_variable_rate_is_named(tmp_path):
    times = np.cumsum([40] * 50 + [20] * 50).tolist()
    make_striped_video(tmp_path / "a.mp4", 100, pts=times)
    sampler = PytorchvideoSampler(ViewWindows(ClipSampler(num_frames=8), 2), 25)
    with pytest.raises(ValueError, match="variable rate"):
        list(dataset_of(tmp_path, sampler, names=["a.mp4"]))


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf"), "fast", [25]])
def test_an_impossible_rate_is_refused(fps):
    with pytest.raises(ValueError, match=r"fps is .*above 0"):
        PytorchvideoSampler(ClipSampler(num_frames=8), fps)


def test_no_rate_at_all_is_refused(folder):
    with pytest.raises(ValueError, match="fps is None: set fps of PytorchvideoSampler"):
        next(iter(dataset_of(folder, PytorchvideoSampler(ClipSampler(num_frames=8)))))


def test_two_crops_are_refused():
    with pytest.raises(ValueError, match="num_crops=2 must be 1"):
        PytorchvideoSampler(ClipSampler(num_frames=8), 25, num_crops=2)


def test_crops_larger_than_the_frames_are_refused():
    with pytest.raises(ValueError, match="short_side is 32; it must be at least 64"):
        EvaluationView(PytorchvideoSampler(ClipSampler(num_frames=8), 25), (64, 64), short_side=32)


def test_a_short_video_is_refused_where_asked(folder):
    sampler = PytorchvideoSampler(ClipSampler(num_frames=8, end_policy="error"), NTSC)
    with pytest.raises(VideoError, match=r"\{'label': 0\}: 20 frames, a clip covers 32"):
        next(iter(dataset_of(folder, sampler, names=["short.mp4"])))


def test_the_sampler_of_the_transform_is_that_of_the_dataset(folder):
    sampler, other = (PytorchvideoSampler(ClipSampler(num_frames=8), NTSC) for _ in range(2))
    with pytest.raises(ValueError, match=r"long.mp4: the sampler of the transform is not"):
        next(iter(dataset_of(folder, sampler, TrainingClip(other, whole))))


def test_a_sampler_left_in_the_middle_of_a_video_begins_the_next_afresh():
    sampler = PytorchvideoSampler(ViewWindows(ClipSampler(num_frames=8), 3), 25)
    sampler(0, 4, {})
    clips = [sampler(0, 8, {})]
    while not clips[-1].is_last_clip:
        clips.append(sampler(clips[-1].clip_end_sec, 8, {}))
    assert [round(clip.clip_end_sec * 25 - Fraction(1, 2)) for clip in clips] == [31, 115, 199]


def batch_of(**changes):
    batch = {
        "video": torch.full((2, 3, 4, 8, 8), 255.0),
        "label": torch.tensor([3, -1]),
        "video_name": ["a", "b"],
    }
    return {**batch, **changes}


def test_a_batch_of_decoded_floats():
    clips = clip_batch(batch_of())
    assert (clips.clips == 255).all()
    assert clips.clips.dtype == torch.uint8
    assert (clips.labels, clips.names) == ([(3,), ()], ["a", "b"])


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, float("nan")])
def test_pixels_that_were_changed_are_refused(value):
    batch = batch_of()
    batch["video"][0, 0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="not only whole numbers of 0 to 255"):
        clip_batch(batch)


@pytest.mark.parametrize(
    "changes", [{"video": torch.zeros(3, 4, 8, 8)}, {"label": torch.zeros(2, 5)}]
)
def test_other_shapes_are_refused(changes):
    with pytest.raises(ValueError, match=r"needed: video .B, C, T, H, W., label .B."):
        clip_batch(batch_of(**changes))


def test_the_broken_transforms_are_not_imported():
    code = (
        "import sys\n"
        "from hiera_video.data.datasets import ClipSampler\n"
        "from hiera_video.data.pytorchvideo import PytorchvideoSampler\n"
        "assert 'pytorchvideo' not in sys.modules\n"
        "PytorchvideoSampler(ClipSampler(num_frames=8), 25)\n"
        "import pytorchvideo.data\n"
        "assert 'pytorchvideo.transforms' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorchvideo", None)
    monkeypatch.setitem(sys.modules, "pytorchvideo.data", None)
    with pytest.raises(ImportError, match=r"pip install .hiera-video\[pytorchvideo\]"):
        PytorchvideoSampler(ClipSampler(num_frames=8), 25)
