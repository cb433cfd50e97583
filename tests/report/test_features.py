"""The map of features: neighbours by brute force, places, and files that cannot be used."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from hiera_video.data.videos.records import VideoRecord
from hiera_video.extraction.reading import Read
from hiera_video.extraction.store import FeatureStore, Rows
from hiera_video.report.blocks import FeatureMap, Notice
from hiera_video.report.features import (
    BLOCK,
    MAX_PROBLEMS,
    MAX_WINDOWS,
    NEIGHBOURS,
    extraction_sections,
    groups_of,
    nearest,
    planar,
    spread,
)
from hiera_video.report.media import MediaFolder
from hiera_video.report.runs import read_run
from tests.report.synthetic import frames_of, write_clip


def extraction(folder, features, format="npz", paths=None, **settings):
    """What `extract` writes of the features of videos by name, which are beside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(folder, format, {"layer": "pooled", **settings})
    videos = {}
    paths = paths or [str(folder.parent / name) for name in features]
    for (name, values), path in zip(features.items(), paths, strict=True):
        rows = Rows(folder)
        for n, row in enumerate(torch.as_tensor(values)):
            rows.put(n, row)
        start = np.arange(len(values)) * 1.0
        videos[name] = path
        facts = {"num_windows": len(values), "is_short": False}
        record = VideoRecord(videos[name], (), name)
        store.write(record, rows, Read(start, start + 1, facts, 0.0, 0.0))
        rows.close()
    store.write_tables(videos)
    return folder


def section_of(folder, num_videos=3):
    media = MediaFolder(folder.parent / "report")
    section, *_ = extraction_sections(read_run(folder), media, num_videos)
    return section


def map_of(section):
    return next(block for block in section.blocks if isinstance(block, FeatureMap))


def notices(section):
    return [block.text for block in section.blocks if isinstance(block, Notice)]


@pytest.mark.parametrize("number", [3, NEIGHBOURS + 1, BLOCK + 30])
def test_neighbours_are_those_of_brute_force(number):
    points = np.random.default_rng(number).normal(size=(number, 6))
    points[1] = 0  # without a direction
    found = nearest(points)
    for n in np.linspace(0, number - 1, 9).round().astype(int):
        cosines = [
            float(points[n] @ p) / max(np.linalg.norm(points[n]) * np.linalg.norm(p), 1e-12)
            for p in points
        ]
        others = sorted((m for m in range(number) if m != n), key=lambda m: -cosines[m])
        expected = [cosines[m] for m in others[:NEIGHBOURS]]
        assert [cosine for _, cosine in found[n]] == pytest.approx(expected, abs=1e-4)
        assert n not in [m for m, _ in found[n]]


def test_a_plane_in_space_keeps_its_distances():
    inside = np.random.default_rng(0).normal(size=(12, 2)) * [5, 1]
    basis, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 2)))
    place, axes, method = planar(inside @ basis.T + 3)
    distances = np.linalg.norm(place[:, None] - place[None], axis=-1)
    expected = np.linalg.norm(inside[:, None] - inside[None], axis=-1)
    np.testing.assert_allclose(distances, expected, atol=1e-9)
    shares = [float(axis.split("(")[1].split(" %")[0]) for axis in axes]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert shares[0] > shares[1]
    assert "principal components" in method


def test_umap_keeps_groups_together():
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(3), 20)
    points = 4 * rng.normal(size=(3, 32))[group] + rng.normal(size=(60, 32))
    place, axes, method = planar(points)
    assert (axes, method) == (("", ""), "UMAP of cosine distances")
    distances = np.linalg.norm(place[:, None] - place[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert np.array_equal(group[distances.argmin(axis=1)], group)


@pytest.mark.parametrize("points", [np.ones((4, 3)), np.arange(4.0)[:, None]])
def test_points_on_a_line_or_in_one_place(points):
    place, _, _ = planar(points)
    assert place.shape == (4, 2)
    assert np.isfinite(place).all()
    assert not place[:, 1].any()


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(0, 5, []), (3, 5, [0, 1, 2]), (5, 3, [0, 2, 4]), (10, 1, [0]), (100, 2, [0, 99])],
)
def test_spread(count, most, expected):
    assert spread(count, most) == expected


def test_groups_are_folders_unless_there_are_one_or_too_many():
    assert groups_of(["a/1.mp4", "a/2.mp4", "b/3.mp4"]) == ["a", "a", "b"]
    assert groups_of(["a/1.mp4", "a/2.mp4"]) == ["", ""]
    assert groups_of([f"{n}/1.mp4" for n in range(21)]) == [""] * 21


@pytest.mark.parametrize("format", ["npz", "npy", "safetensors"])
@pytest.mark.parametrize("axes", [(), (3,), (2, 4)], ids=["pooled", "crops", "spatial"])
def test_a_video_is_the_mean_of_its_windows_and_axes(tmp_path, format, axes):
    rng = np.random.default_rng(0)
    features = {
        f"{name}/{n}.mp4": rng.normal(size=(2 + n, *axes, 5)).astype(np.float32)
        for name in "ab"
        for n in range(2)
    }
    section = section_of(extraction(tmp_path / "features", features, format))
    drawn = map_of(section)
    assert list(drawn.names) == list(features)
    assert list(drawn.groups) == ["a", "a", "b", "b"]
    means = np.stack([values.reshape(-1, 5).mean(axis=0) for values in features.values()])
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    for n, near in enumerate(drawn.neighbours):
        assert dict(near) == pytest.approx(
            {m: float(unit[n] @ unit[m]) for m in range(4) if m != n}, abs=1e-4
        )
    assert notices(section) == []


def test_pictures_are_of_videos_spread_over_the_list_and_say_what_is_missing(tmp_path):
    names = [f"{n}.mp4" for n in range(5)]
    write_clip(tmp_path / "0.mp4")
    folder = extraction(tmp_path / "features", {name: torch.randn(1, 4) for name in names})
    media = map_of(section_of(folder)).media
    assert [item is not None for item in media] == [True, False, True, False, True]
    assert media[0].video
    assert (tmp_path / "report" / media[0].picture).is_file()
    assert media[2].note == f"{tmp_path / '2.mp4'}: no such file; check its path"


def test_pictures_are_of_the_parts_that_the_features_are_of(tmp_path):
    write_clip(tmp_path / "a.mp4", num_frames=60)  # of level 4 t at t / 10 seconds
    parts = [f"a.mp4#t={start},{start + 1}" for start in (0, 2, 4)]
    folder = extraction(
        tmp_path / "features",
        {name: torch.randn(1, 4) for name in parts},
        paths=[str(tmp_path / "a.mp4")] * 3,
    )
    pictures = [tmp_path / "report" / item.picture for item in map_of(section_of(folder)).media]
    levels = [cv2.imread(str(picture)).mean() for picture in pictures]
    assert levels == pytest.approx([0, 80, 160], abs=4)


def test_pictures_of_folders_of_frames(tmp_path):
    names = ["a", "b#t=1,2", "c"]  # the second is no part
    for name in names:
        (tmp_path / name).mkdir()
        for number, frame in enumerate(frames_of(3)):
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), frame)
    features = {name: torch.randn(1, 4) for name in names}
    folder = extraction(tmp_path / "features", features, frames_fps=5)
    assert all(item.video for item in map_of(section_of(folder)).media)


def test_fewer_than_three_videos_are_no_map(tmp_path):
    folder = extraction(
        tmp_path / "features", {"a.mp4": torch.ones(1, 4), "b.mp4": torch.ones(1, 4)}
    )
    section = section_of(folder)
    assert notices(section) == ["A map needs the features of 3 videos."]
    assert "2 videos with features" in section.intro


def test_files_that_cannot_be_used_are_named_and_the_others_drawn(tmp_path):
    features = {f"{n}.mp4": torch.randn(2, 4) for n in range(5)}
    features["5.mp4"] = torch.randn(2, 7)
    folder = extraction(tmp_path / "features", features)
    (folder / "features" / "1.mp4.npz").write_bytes(b"PK\x03\x04 damaged")
    (folder / "features" / "2.mp4.npz").unlink()
    with open(folder / "index.jsonl", "a") as file:
        line = {"video": "7.mp4", "path": "7.mp4", "status": "done", "output": "features/7.txt"}
        file.write(json.dumps(line) + "\n" + '{"video": "8.mp')
    section = section_of(folder)
    assert list(map_of(section).names) == ["0.mp4", "3.mp4", "4.mp4"]
    texts = notices(section)
    for part in ("index.jsonl: 1 line cannot be read", "1.mp4: ", "2.mp4: ", "7.mp4: "):
        assert sum(part in text for text in texts) == 1, texts
    assert "features/5.mp4.npz: 7 numbers, others have 4" in texts


def test_windows_of_long_videos_are_compared(tmp_path):
    # Two scenes, whose features are at right angles, and a third one between them.
    scenes = np.repeat([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]], (5, 4, 3), axis=0)
    folder = extraction(tmp_path / "features", {"long.mp4": scenes, "short.mp4": scenes[:7]})
    _, section = extraction_sections(read_run(folder), MediaFolder(tmp_path / "report"), 1)
    (plot,) = section.blocks
    assert "long.mp4" in plot.caption
    (heat,) = plot.data
    assert heat["x"] == heat["y"] == [n + 0.5 for n in range(12)]
    similarity = np.array(heat["z"])
    np.testing.assert_allclose(similarity[:5, :5], 1)
    np.testing.assert_allclose(similarity[:5, 5:9], 0)
    np.testing.assert_allclose(similarity[9:, :9], 0.707)


def test_of_many_windows_some_are_compared(tmp_path):
    many = np.random.default_rng(0).normal(size=(3 * MAX_WINDOWS, 4))
    folder = extraction(tmp_path / "features", {"long.mp4": many})
    _, section = extraction_sections(read_run(folder), MediaFolder(tmp_path / "report"), 1)
    (heat,) = section.blocks[0].data
    assert len(heat["x"]) == len(heat["z"]) == MAX_WINDOWS
    assert (heat["x"][0], heat["x"][-1]) == (0.5, 3 * MAX_WINDOWS - 0.5)


def test_of_many_problems_the_first_are_listed(tmp_path):
    features = {f"{n}.mp4": torch.randn(1, 4) for n in range(MAX_PROBLEMS + 5)}
    folder = extraction(tmp_path / "features", features)
    for file in (folder / "features").iterdir():
        file.write_bytes(b"damaged")
    texts = notices(section_of(folder))
    assert len(texts) == MAX_PROBLEMS + 2
    assert texts[MAX_PROBLEMS] == "And 5 more like the last one."
