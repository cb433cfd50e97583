"""The demo data set for detection: exact boxes, and actions that need several frames."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from hiera_video.demo import actions as demo_ava
from hiera_video.demo import motions as demo
from hiera_video.video.open import open_video

TRAIN_VIDEOS, VAL_VIDEOS = 2, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> demo_ava.DemoAvaData:
    made = demo_ava.DemoAvaData(tmp_path_factory.mktemp("demo_ava"))
    demo_ava.generate(made, seed=5, train_videos=TRAIN_VIDEOS, val_videos=VAL_VIDEOS)
    return made


@pytest.fixture(scope="module")
def scenes() -> list[demo.Scene]:
    return [demo_ava.draw_scene(11, "train", number) for number in range(700)]


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_have_the_forms_of_ava(data):
    ids = {str(i) for i in range(1, len(demo_ava.ACTIONS) + 1)}
    keyframes: dict[str, set[tuple[str, str]]] = {}
    for path in (data.train, data.val, data.val_proposals):
        for video, second, *corners, action, last in rows(path):
            assert (data.videos / f"{video}.mp4").is_file()
            assert re.fullmatch(r"\d{4}", second)
            assert all(re.fullmatch(r"[01]\.\d{3}", corner) for corner in corners)
            x1, y1, x2, y2 = map(float, corners)
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1
            if path == data.val_proposals:
                assert action == ""
                assert 0 <= float(last) <= 1
            else:
                assert action in ids
                assert int(last) >= 0
            keyframes.setdefault(path.stem, set()).add((video, second))
    excluded = {(video, second) for video, second in rows(data.val_excluded)}
    assert excluded
    assert excluded < keyframes["val"] | keyframes["val_proposals"]
    items = re.findall(r'item \{\n  name: "(\w+)"\n  id: (\d+)\n\}\n', data.label_map.read_text())
    assert items == [(name, str(i)) for i, name in enumerate(demo_ava.ACTIONS, start=1)]


def test_every_box_has_one_motion_and_may_blink(data):
    blinking = demo_ava.ACTIONS.index("blinking") + 1
    actions: dict[tuple[str, ...], list[int]] = {}
    for *box, action, person in rows(data.val):
        actions.setdefault((*box, person), []).append(int(action))
    for ids in actions.values():
        assert len([i for i in ids if i != blinking]) == 1
        assert ids == sorted(set(ids))


def test_videos_are_h264_of_several_sizes_and_whole_rates(data):
    shapes = []
    for path in sorted(data.videos.glob("val_*.mp4")):
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
        with open_video(path) as video:
            shapes.append((video.height, video.width, round(video.fps, 6)))
            assert 3 <= round(video.end_sec, 1) <= 5
    heights, widths, rates = (set(values) for values in zip(*shapes, strict=True))
    assert min(map(len, (heights, widths, rates))) >= 3
    assert rates <= set(demo_ava.FRAME_RATES)


def test_a_key_frame_of_a_file_shows_its_scene(data):
    scene = demo_ava.draw_scene(5, "val", 0)
    with open_video(data.example) as video:
        for second in demo_ava.key_seconds(scene):
            index = int(np.argmin(np.abs(video.frame_times_sec - second)))
            assert video.frame_times_sec[index] == pytest.approx(second, abs=1e-6)
            difference = video.frames([index])[0].astype(int) - demo.picture_at(scene, second)
            assert np.abs(difference).mean() < 6
    assert demo_ava.key_seconds(scene)[0] >= 1
    assert demo_ava.key_seconds(scene)[-1] <= scene.num_frames / scene.fps - 1


def test_depends_on_the_seed_only_and_can_be_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_ava, "DURATION_SEC", (2.0, 2.2))
    first, again, other = (demo_ava.DemoAvaData(tmp_path / n) for n in ("first", "again", "other"))
    demo_ava.generate(first, seed=1, train_videos=2, val_videos=2)
    demo_ava.generate(other, seed=2, train_videos=2, val_videos=2)

    write, written = demo.write_video, []

    def interrupted(path, *args, **kwargs):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *args, **kwargs)

    monkeypatch.setattr(demo, "write_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo_ava.generate(again, seed=1, train_videos=2, val_videos=2)
    assert not again.train.exists()
    times = {path: path.stat().st_mtime_ns for path in written}
    monkeypatch.setattr(demo, "write_video", write)
    demo_ava.generate(again, seed=1, train_videos=2, val_videos=2)
    assert files(again.folder) == files(first.folder)
    assert {path: path.stat().st_mtime_ns for path in written} == times
    videos = [name for name in files(first.folder) if name.endswith(".mp4")]
    assert all(files(first.folder)[name] != files(other.folder)[name] for name in videos)


def test_boxes_enclose_the_visible_part_exactly(scenes):
    """The pixels that differ between pictures with and without the figure."""
    checked = 0
    for scene in scenes[:40]:
        height, width = scene.background.shape[:2]
        for person, box in demo_ava.boxes_at(scene, 2.0).items():
            others = scene.figures[:person] + scene.figures[person + 1 :]
            without = dataclasses.replace(scene, figures=others)
            changed = (demo.picture_at(scene, 2.0) != demo.picture_at(without, 2.0)).any(axis=2)
            x1, y1, x2, y2 = np.rint(box * (width, height, width, height)).astype(int)
            inside = changed[y1:y2, x1:x2]
            assert inside.sum() == changed.sum() > 0
            # The faintest blurred edges do not change a colour.
            for edge in (inside[:2], inside[-2:], inside[:, :2], inside[:, -2:]):
                assert edge.any()
            checked += 1
    assert checked > 50


def test_a_figure_that_is_mostly_hidden_has_no_box(scenes):
    seen: dict[bool, list[float]] = {True: [], False: []}
    for scene in scenes[:100]:
        boxes = demo_ava.boxes_at(scene, 1.0)
        covers = [demo_ava.coverage(scene, figure, 1.0) for figure in scene.figures]
        for person, cover in enumerate(covers):
            hidden = sum((other == 1 for other in covers[person + 1 :]), np.zeros_like(cover)) > 0
            visible_frac = cover[~hidden].sum() / demo_ava.area_px(
                scene, scene.figures[person], 1.0
            )
            seen[person in boxes].append(visible_frac)
    assert min(seen[True]) > demo_ava.VISIBLE_FRAC >= max(seen[False])
    assert max(seen[True]) == pytest.approx(1)


def looks(scenes: list[demo.Scene], second: int) -> Iterator[tuple[list[int], list[float]]]:
    """Actions of every box, and its centre, area and brightness."""
    for scene in scenes:
        for person, (x1, y1, x2, y2) in demo_ava.boxes_at(scene, second).items():
            figure = scene.figures[person]
            area = (x2 - x1) * (y2 - y1)
            look = [(x1 + x2) / 2, (y1 + y2) / 2, area, figure.is_bright(second)]
            yield demo_ava.actions_of(figure), look


@pytest.mark.parametrize("second", [1, 2, 3])
def test_boxes_do_not_depend_on_the_action(scenes, second):
    """Kolmogorov-Smirnov between boxes with and without each action, at the 0.02 % level."""
    actions, values = zip(*looks(scenes, second), strict=True)
    values = np.array(values)
    grid = np.sort(values, axis=0)
    for action in range(1, len(demo_ava.ACTIONS) + 1):
        has = np.array([action in ids for ids in actions])
        for column in range(values.shape[1]):
            distributions = [
                np.searchsorted(np.sort(part), grid[:, column], side="right") / len(part)
                for part in (values[has, column], values[~has, column])
            ]
            distance = np.abs(distributions[0] - distributions[1]).max()
            bound = 2.15 * (1 / has.sum() + 1 / (~has).sum()) ** 0.5
            assert distance < bound, (demo_ava.ACTIONS[action - 1], column)


def test_only_blinking_figures_change_their_brightness(scenes):
    times = np.arange(0, 1.2, 0.02)
    for scene in scenes[:50]:
        for figure in scene.figures:
            levels = {figure.is_bright(time) for time in times}
            assert len(levels) == 1 + figure.blinks


def test_proposals_reach_most_boxes_and_false_ones_score_lower(scenes):
    rng = np.random.default_rng(0)
    reached, boxes, true_scores, false_scores = 0, 0, [], []
    for scene in scenes[:200]:
        truth = list(demo_ava.boxes_at(scene, 1.0).values())
        overlaps = np.zeros(len(truth))
        for box, score in demo_ava.draw_proposals(dict(enumerate(truth)), rng):
            ious = np.array([iou(box, other) for other in truth])
            overlaps = np.maximum(overlaps, ious) if truth else overlaps
            (true_scores if (ious >= 0.5).any() else false_scores).append(score)
        reached, boxes = reached + int((overlaps >= 0.5).sum()), boxes + len(truth)
    assert 0.85 < reached / boxes < 0.97
    assert np.mean(true_scores) > 0.85 > 0.6 > np.mean(false_scores)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    return common / (float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - common)


def test_the_torus_is_larger_than_the_picture_by_the_largest_radius(scenes):
    for scene in scenes[:50]:
        side = min(scene.background.shape[:2])
        assert scene.margin_px > demo.RADIUS[1] * side
