"""Boxes and labels lie where they should, inside the picture, off one another, at their times."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from hiera_video.analysis.overlay import (
    COLOURS,
    Person,
    draw_people,
    fit_lines,
    nearest_keyframes,
    overlay_frames,
    place_label,
    write_overlay,
)
from hiera_video.data.boxes.table import common_area
from hiera_video.video.open import open_video
from hiera_video.video.writer import write_video

GREY = 90


def ground(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


@pytest.mark.parametrize("size", [(400, 600), (401, 601), (1080, 1920), (120, 97), (37, 5)])
def test_sides_are_even_and_large_enough_to_read(size):
    people = [Person((0.2, 0.3, 0.6, 0.9), (("walk", 0.91),))]
    for shown in (people, []):
        picture = draw_people(ground(*size), shown)
        assert picture.dtype == np.uint8
        assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
        assert min(picture.shape[:2]) >= 360
        assert picture.shape[0] / size[0] == pytest.approx(picture.shape[1] / size[1], rel=0.01)
    if min(size) >= 360:
        assert abs(picture.shape[0] - size[0]) <= 1


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((8, 400), (80, 4000)),  # ten times as large, not 45 times, which x264 does not encode
        ((400, 8), (4000, 80)),
        ((9, 13), (360, 520)),
        ((15, 2048), (30, 4096)),
        ((1, 5000), (2, 5000)),
        ((1, 1), (360, 360)),
        ((3, 20000), (2, 16384)),
    ],
)
def test_narrow_and_tiny_frames_are_encoded(size, shown, tmp_path):
    people = [Person((0.2, 0.3, 0.6, 0.9), (("talk to (e.g., self, a person)", 0.91),))]
    picture = draw_people(ground(*size), people)
    assert picture.shape == (*shown, 3)
    write_video(tmp_path / "a.mp4", [picture] * 2, 25)
    with open_video(tmp_path / "a.mp4") as video:
        assert (video.height, video.width) == shown


def test_a_box_is_drawn_where_it_is_in_the_colour_of_its_person():
    people = [Person((0.1, 0.2, 0.4, 0.8), ()), Person((0.5, 0.25, 0.75, 0.5), ())]
    picture = draw_people(ground(400, 800), people)
    expected = [(80, 80, 320, 320), (400, 100, 600, 200)]
    for colour, corners in zip(COLOURS[:2], expected, strict=True):
        y, x = np.nonzero((picture == colour).all(axis=2))
        assert (x.min(), y.min(), x.max() + 1, y.max() + 1) == corners
    untouched = (picture == GREY).all(axis=2)
    assert untouched[90:310, 90:310].all()


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.95, 0, 1, 0.05), (0, 0.97, 0.02, 1)])
def test_a_box_at_the_edge_has_its_label_in_the_picture(box):
    actions = (("talk to (e.g., self, a person, a group)", 0.5), ("stand", 0.4))
    picture = draw_people(ground(360, 480), [Person(box, actions)])
    white = (picture > 240).all(axis=2)
    assert white.sum() > 100
    assert not white[[0, -1]].any()
    assert not white[:, [0, -1]].any()


def test_labels_keep_off_one_another_and_inside():
    rng = np.random.default_rng(0)
    for _ in range(200):
        taken = []
        for _ in range(4):
            x, y = rng.uniform(0, (0.8, 0.7)) * (640, 480)
            box = (x, y, x + rng.uniform(30, 120), y + rng.uniform(60, 140))
            place = place_label((120, 36), box, (640, 480), taken)
            assert 0 <= place[0] < place[2] <= 640
            assert 0 <= place[1] < place[3] <= 480
            assert (place[2] - place[0], place[3] - place[1]) == (120, 36)
            taken.append(place)
        shared = common_area(np.array(taken), np.array(taken))
        assert np.count_nonzero(shared) == len(taken)  # each with itself


def test_where_no_space_is_left_the_place_that_covers_least_is_taken():
    taken = [(0, 0, 100, 60)]
    assert place_label((100, 50), (10, 30, 90, 80), (100, 100), taken) == (0, 50, 100, 100)


def test_long_names_and_many_lines_are_cut():
    font = ImageFont.load_default(size=14)
    lines = fit_lines([("a" * 200, 0.5), ("b", 0.25)], font, (200, 360), 2)
    assert lines[0].endswith("a... 0.50")
    assert font.getlength(lines[0]) <= 200 - 10
    assert lines[1] == "b 0.25"
    lines = fit_lines([(str(i), 0.5) for i in range(100)], font, (200, 360), 2)
    assert lines[-1] == "..."
    assert len(lines) == 11


def test_names_that_control_a_terminal_are_drawn_as_escapes():
    font = ImageFont.load_default(size=14)
    names = ("a\n b", "\x1b[31m\u202e", "\udcff")
    assert fit_lines([(name, 0.5) for name in names], font, (400, 360), 2) == [
        "a b 0.50",
        r"\x1b[31m\u202e 0.50",
        r"\udcff 0.50",
    ]


def test_names_beyond_ascii():
    picture = draw_people(ground(360, 480), [Person((0.3, 0.3, 0.6, 0.9), (("über Straße", 0.5),))])
    assert (picture > 240).all(axis=2).sum() > 100


def test_each_key_frame_is_shown_half_an_interval_before_and_after():
    times = np.arange(40) / 10
    shown = nearest_keyframes(times, [1.0, 2.0, 3.2], 1.0)
    assert shown.tolist() == [-1] * 5 + [0] * 10 + [1] * 11 + [-1] + [2] * 11 + [-1] * 2
    assert (nearest_keyframes(times, [], 1.0) == -1).all()


def test_a_video_is_drawn_frame_by_frame(tmp_path):
    path = tmp_path / "grey.mp4"
    write_video(path, [ground(360, 480)] * 30, 10)
    keyframes = [(1.0, [Person((0.25, 0.25, 0.75, 0.75), (("walk", 0.9),))])]
    with open_video(path) as video:
        drawn = [
            bool((frame == COLOURS[0]).all(axis=2).any())
            for frame in overlay_frames(video, keyframes, interval_sec=1.0)
        ]
        assert drawn == [5 <= i <= 15 for i in range(30)]
        assert write_overlay(tmp_path / "overlay.mp4", video, keyframes, interval_sec=1.0) == 30
    with open_video(tmp_path / "overlay.mp4") as video:
        assert (len(video), video.height, video.width) == (30, 360, 480)
        assert video.fps == pytest.approx(10)
        before, on = video.frames([2, 10]).astype(int)
    assert np.abs(on - before).max() > 80
