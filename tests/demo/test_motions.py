"""The demo data set: readable, balanced, and classified by motion only."""

from __future__ import annotations

import dataclasses
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hiera_video.data.transforms import resize_short_side
from hiera_video.data.videos.records import read_video_list
from hiera_video.demo import motions as demo
from hiera_video.models.hiera import Hiera
from hiera_video.models.normalize import Normalize
from hiera_video.video.open import open_video

CHANCE = 1 / len(demo.CLASSES)
TRAIN_SCENES, VAL_SCENES = 12, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> demo.DemoData:
    """Encoded as in the demo, of fewer scenes, none longer than 0.9 s."""
    made = demo.DemoData(tmp_path_factory.mktemp("demo"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "DURATION_SEC", (0.8, 0.9))
        demo.generate(made, seed=5, train_scenes=TRAIN_SCENES, val_scenes=VAL_SCENES)
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_is_a_list_of_h264_files_with_equally_many_of_each_class(data):
    for path, scenes in ((data.train, TRAIN_SCENES), (data.val, VAL_SCENES)):
        videos = read_video_list(path, class_names=data.class_names)
        assert videos.class_names == demo.CLASSES
        assert len(demo.CLASSES) >= 8
        labels = Counter(record.labels for record in videos.records)
        assert labels == {(label,): scenes for label in range(len(demo.CLASSES))}
        for record in videos.records:
            assert demo.CLASSES[record.labels[0]] in record.name
    assert data.example.exists()
    with av.open(str(data.example)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].format.name == "yuv420p"


def test_a_file_shows_its_scene(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "DURATION_SEC", (0.8, 0.9))
        scene = demo.draw_scene(5, "val", 0, "growing")
    drawn = np.stack(list(demo.render(scene)))
    with open_video(data.example) as video:
        assert video.fps == pytest.approx(float(scene.fps), rel=1e-3)
        read = video.frames(np.arange(len(video)))
    assert read.shape == drawn.shape
    assert np.abs(read.astype(int) - drawn).mean() < 6


def test_depends_on_the_seed_only_and_can_be_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "DURATION_SEC", (0.2, 0.4))
    first, again, other = (demo.DemoData(tmp_path / name) for name in ("first", "again", "other"))
    demo.generate(first, seed=1, train_scenes=2, val_scenes=1)
    demo.generate(other, seed=2, train_scenes=2, val_scenes=1)

    write, written = demo.write_video, []

    def interrupted(path, *args, **kwargs):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *args, **kwargs)

    monkeypatch.setattr(demo, "write_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.generate(again, seed=1, train_scenes=2, val_scenes=1)
    assert not again.train.exists()
    times = {path: path.stat().st_mtime_ns for path in written}
    monkeypatch.setattr(demo, "write_video", write)
    demo.generate(again, seed=1, train_scenes=2, val_scenes=1)

    assert files(again.folder) == files(first.folder)
    assert {path: path.stat().st_mtime_ns for path in written} == times
    videos = [name for name in files(first.folder) if name.endswith(".mp4")]
    assert all(files(first.folder)[name] != files(other.folder)[name] for name in videos)


def test_a_scene_is_the_same_for_all_classes_at_its_start():
    for number in range(3):
        scenes = [demo.draw_scene(0, "train", number, motion) for motion in demo.CLASSES]
        pictures = [next(demo.render(scene)) for scene in scenes]
        assert all((picture == pictures[0]).all() for picture in pictures)
    other = demo.draw_scene(0, "val", number, "growing")
    assert not np.array_equal(pictures[0], other.background)


def test_frame_sizes_rates_and_lengths_vary_and_are_the_same_for_all_classes(data):
    shapes: dict[str, list[tuple[int, int, int, float]]] = {}
    for record in read_video_list(data.val, class_names=data.class_names).records:
        with open_video(record.path) as video:
            shape = (len(video), video.height, video.width, round(video.fps, 2))
        shapes.setdefault(demo.CLASSES[record.labels[0]], []).append(shape)
    assert len({tuple(sorted(of_class)) for of_class in shapes.values()}) == 1
    frames, heights, widths, rates = (set(x) for x in zip(*shapes["growing"], strict=True))
    assert min(map(len, (frames, heights, widths, rates))) >= 3


@pytest.fixture(scope="module")
def scenes() -> list[demo.Scene]:
    return [demo.draw_scene(11, "train", number, "standing_still") for number in range(250)]


@pytest.mark.parametrize("time_sec", [0.0, 0.7, 1.9, 3.3])
def test_positions_and_sizes_are_uniform_at_any_time(scenes, time_sec):
    """Kolmogorov-Smirnov against the uniform distribution, for every class, at the 0.1 % level."""
    values: dict[str, list[tuple[float, float, float]]] = {motion: [] for motion in demo.CLASSES}
    smallest, largest = demo.RADIUS
    for scene in scenes:
        height, width = scene.background.shape[:2]
        for motion, of_class in values.items():
            for figure in scene.figures:
                moving = dataclasses.replace(figure, motion=motion)
                (x, y), radius = demo.place(scene, moving, time_sec)
                phase = np.log(radius / min(height, width) / smallest) / np.log(largest / smallest)
                of_class.append((x / width, y / height, phase))
    for motion, of_class in values.items():
        ordered = np.sort(np.array(of_class), axis=0)
        n = len(ordered)
        ranks = np.arange(n)[:, None] / n
        distance = np.maximum(np.abs(ordered - ranks), np.abs(ordered - ranks - 1 / n)).max(axis=0)
        assert (distance < 1.95 / n**0.5).all(), (motion, distance * n**0.5)


def test_motions_match_their_names():
    scene = dataclasses.replace(
        demo.draw_scene(0, "train", 0, "standing_still"),
        background=np.zeros((100, 100, 3), np.uint8),
        fps=Fraction(10),
        speed=0.5,
    )
    figure = dataclasses.replace(
        scene.figures[0], position_px=np.array([50.0, 50.0]), size_phase=0.5, orbit_phase=0.0
    )
    before = demo.place(scene, figure, 0.0)
    moved, sizes = {}, {}
    for motion in demo.CLASSES:
        position, radius = demo.place(scene, dataclasses.replace(figure, motion=motion), 0.2)
        moved[motion] = tuple(np.sign(np.round(position - before[0], 6)))
        sizes[motion] = np.sign(round(radius - before[1], 6))
    assert moved["moving_left"] == (-1, 0)
    assert moved["moving_right"] == (1, 0)
    assert moved["moving_up"] == (0, -1)
    assert moved["moving_down"] == (0, 1)
    assert moved["standing_still"] == moved["growing"] == moved["shrinking"] == (0, 0)
    assert moved["circling"] == (-1, scene.turning)  # from its rightmost point, y downwards
    assert (sizes["growing"], sizes["shrinking"]) == (1, -1)
    assert all(sizes[motion] == 0 for motion in demo.CLASSES if "ing_" in motion)


def test_the_class_needs_two_pictures(data):
    """A single-frame Hiera is within three standard deviations of chance, one of two frames above.

    By chance, the number of correct videos would have at most the variance of a binomial count (it
    has less: each scene has one video of each class). The second model has the same size and
    training, and the difference of two frames as input.
    """
    torch.set_num_threads(1)
    num_videos = VAL_SCENES * len(demo.CLASSES)
    bound = CHANCE + 3 * (CHANCE * (1 - CHANCE) / num_videos) ** 0.5
    assert bound < 2 * CHANCE
    train, val = (still_pairs(data, path) for path in (data.train, data.val))
    assert accuracy_of_one_frame(train, val, difference=False) <= bound
    assert accuracy_of_one_frame(train, val, difference=True) > bound


def still_pairs(data: demo.DemoData, path: Path) -> list[tuple[np.ndarray, int]]:
    """For each video 6 pairs of pictures 1/8 s apart, uint8 [6, 2, 32, 32, 3], and the label."""
    pairs = []
    for record in read_video_list(path, class_names=data.class_names).records:
        with open_video(record.path) as video:
            gap = round(video.fps / 8)
            first = np.linspace(0, len(video) - 1 - gap, 6).astype(int)
            frames = video.frames(np.stack([first, first + gap], axis=1).reshape(-1))
        frames = resize_short_side(frames, 32)
        top, left = ((n - 32) // 2 for n in frames.shape[1:3])
        frames = frames[:, top : top + 32, left : left + 32]
        pairs.append((frames.reshape(6, 2, 32, 32, 3), record.labels[0]))
    return pairs


def accuracy_of_one_frame(train, val, *, difference: bool) -> float:
    """Top-1 of the mean over 6 pictures of each video, after training on `train`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = Hiera(
        input_size=(1, 32, 32),
        num_classes=len(demo.CLASSES),
        embed_dim=16,
        stages=(1, 1, 1, 1),
        patch_kernel=(1, 7, 7),
        patch_stride=(1, 4, 4),
        patch_padding=(0, 3, 3),
        sep_pos_embed=False,
    )

    normalize = Normalize((0.45,) * 3, (0.225,) * 3)

    def pictures(pairs: np.ndarray) -> torch.Tensor:  # uint8 [N, 2, H, W, 3] -> [N, 3, 1, H, W]
        x = normalize(torch.from_numpy(pairs))
        return x[:, :, 1:] - x[:, :, :1] if difference else x[:, :, :1]

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for _ in range(120):
        chosen = [train[i] for i in rng.integers(len(train), size=32)]
        clips = np.stack([pairs[rng.integers(len(pairs))] for pairs, _ in chosen])
        labels = torch.tensor([label for _, label in chosen])
        optimizer.zero_grad()
        F.cross_entropy(model(pictures(clips)), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = [
            int(model(pictures(pairs)).softmax(1).mean(0).argmax()) == label for pairs, label in val
        ]
    return float(np.mean(right))
