"""Sections about an extraction: a map of its features, and how long videos change over time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from hiera_video.data.videos.records import VideoRecord
from hiera_video.errors import UserError, counted
from hiera_video.extraction.store import load_features
from hiera_video.report.blocks import Block, FeatureMap, Media, Notice, Plot, Section
from hiera_video.report.media import MediaFolder
from hiera_video.report.runs import Run, read_lines
from hiera_video.settings.video import Decoding
from hiera_video.video.open import opener
from hiera_video.video.parts import Part
from hiera_video.video.reader import VideoReader

MAX_POINTS = 5_000  # videos of a map
NEIGHBOURS = 8
MAX_GROUPS = 20  # folders that have a colour
MAX_PROBLEMS = 10  # that are listed
BLOCK = 500  # rows of similarities that are in memory at once
MIN_WINDOWS, MAX_WINDOWS = 8, 200  # of a video whose windows are compared; of more, some are
MAX_LONG_VIDEOS = 6


def extraction_sections(run: Run, folder: MediaFolder, num_videos: int) -> list[Section]:
    """The map of the features of the videos of an extraction.

    Args:
        num_videos: how many of the videos have pictures; they are spread over the list.
    """
    problems: list[str] = []
    index = read_lines(run.folder / "index.jsonl", problems, {"video": str, "path": str})
    done = [line for line in index if line.get("status") == "done" and line.get("output")]
    title = f"Features: {run.name}"
    chosen = spread(len(done), MAX_POINTS)
    if len(chosen) < len(done):
        problems.append(f"{len(chosen):,} of {len(done):,} videos are shown, spread over the list.")
    names: list[str] = []
    videos: list[Callable[[], VideoReader]] = []
    vectors: list[np.ndarray] = []
    for number in chosen:
        line = done[number]
        try:
            loaded = load_features(run.folder / line["output"])
            vector, video = mean_vector(loaded.features), video_of(line, loaded.metadata)
        except (ValueError, UserError, FileNotFoundError) as error:
            problems.append(f"{line['video']}: {error}")
            continue
        if vectors and len(vector) != len(vectors[0]):
            problems.append(
                f"{line['output']}: {len(vector)} numbers, others have {len(vectors[0])}"
            )
            continue
        names.append(line["video"])
        videos.append(video)
        vectors.append(vector)
    intro = (
        f"{run.folder}: {counted(len(done), 'video')} with features. A video is the mean of its "
        "windows, and of all axes but the last."
    )
    blocks: list[Block] = [Notice(problem) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        blocks.append(Notice(f"And {len(problems) - MAX_PROBLEMS} more like the last one."))
    long = [line for line in done if line.get("num_windows", 0) >= MIN_WINDOWS]
    over_time = [windows_section(run, long)] if long else []
    if len(vectors) < 3:
        blocks.append(Notice("A map needs the features of 3 videos."))
        return [Section(title, blocks, intro), *over_time]
    points = np.stack(vectors)
    place, axes, method = planar(points)
    with_media = set(spread(len(names), num_videos))
    media: list[Media | None] = []
    for number, video in enumerate(videos):
        media.append(folder.of(video) if number in with_media else None)
    caption = f"{method}; point at a video to see it, choose one to see its nearest neighbours"
    blocks.append(
        FeatureMap(
            caption,
            [(float(f"{x:.4g}"), float(f"{y:.4g}")) for x, y in place],
            names,
            groups_of(names),
            media,
            nearest(points),
            axes,
        )
    )
    return [Section(title, blocks, intro), *over_time]


def windows_section(run: Run, long: list[dict[str, Any]]) -> Section:
    """How similar the windows of the longest videos are to one another.

    Args:
        long: lines of the index.
    """
    blocks: list[Block] = []
    for line in sorted(long, key=lambda line: -line["num_windows"])[:MAX_LONG_VIDEOS]:
        try:
            found = load_features(run.folder / line["output"])
            shown = spread(len(found.features), MAX_WINDOWS)
            vectors = np.stack([mean_vector(found.features[[n]]) for n in shown])
        except (ValueError, UserError, FileNotFoundError) as error:
            blocks.append(Notice(f"{line['video']}: {error}"))
            continue
        seconds = found.center_sec[shown].round(2).tolist()
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        similarity = (unit @ unit.T).round(3)
        heat = {
            "type": "heatmap",
            "x": seconds,
            "y": seconds,
            "z": similarity.tolist(),
            "hovertemplate": "%{x} s and %{y} s: %{z}<extra></extra>",
            "colorscale": "Viridis",
        }
        axis = {"title": {"text": "seconds"}}
        layout = {"xaxis": axis, "yaxis": {**axis, "autorange": "reversed"}}
        caption = f"{line['video']}: cosine similarity of its {line['num_windows']} windows"
        blocks.append(Plot(caption, [heat], layout, height_px=290))
    intro = "Squares along the diagonal are stretches of similar features; their edges are changes."
    return Section(f"Videos over time: {run.name}", blocks, intro)


def video_of(line: Mapping[str, Any], metadata: Mapping[str, Any]) -> Callable[[], VideoReader]:
    """What opens the video, or the part of one, that a line of index.jsonl is about.

    Args:
        metadata: of its features, whose settings say how it was read.
    """
    name, path = line["video"], line["path"]
    part = Part.at_end(name)
    if part is not None and path.endswith(str(part)):  # the name of a file that looks like a part
        part = None
    how = {k: v for k, v in metadata["settings"].items() if k in ("frames_fps", "max_gap_sec")}
    record = VideoRecord(path, (), name, part, line.get("frames_fps"))
    return partial(record.open, opener(Decoding(**how)))


def mean_vector(features: np.ndarray) -> np.ndarray:
    """The mean of features [N, ..., D] over all axes but the last, float64 [D]."""
    if features.ndim < 2 or not features.size:
        raise ValueError(f"features of shape {list(features.shape)}, expected windows and channels")
    return features.mean(axis=tuple(range(features.ndim - 1)), dtype=np.float64)


def groups_of(names: list[str]) -> list[str]:
    """The folder of each video, which often is its class; "" if there is one or too many."""
    folders = [str(PurePosixPath(name).parent) for name in names]
    return folders if 1 < len(set(folders)) <= MAX_GROUPS else [""] * len(names)


def spread(count: int, most: int) -> list[int]:
    """At most `most` numbers below `count`, at even distances."""
    return np.unique(
        np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(int)
    ).tolist()


def planar(points: np.ndarray) -> tuple[np.ndarray, tuple[str, str], str]:
    """Places in a plane [N, 2], names of the axes and of the method: UMAP where it is installed."""
    if importlib.util.find_spec("umap") and len(points) > 15:  # its number of neighbours
        import umap

        # With a seed it has one thread, and warns unless that is stated.
        place = umap.UMAP(random_state=0, n_jobs=1, metric="cosine").fit_transform(points)
        return place, ("", ""), "UMAP of cosine distances"
    centred = points - points.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    shares = sizes**2 / max(float((sizes**2).sum()), 1e-30)
    place = (left * sizes)[:, :2]
    place = np.pad(place, [(0, 0), (0, 2 - place.shape[1])])
    shares = np.pad(shares, (0, 2))
    names = tuple(f"component {k + 1} ({100 * shares[k]:.1f} %)" for k in range(2))
    method = "The first two principal components, with their shares of the variance"
    return place, names, method  # type: ignore[return-value]


def nearest(points: np.ndarray) -> list[list[tuple[int, float]]]:
    """The most similar other points of each [N, D], by cosine, with their similarity."""
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    unit = points / np.maximum(norms, 1e-12)
    result: list[list[tuple[int, float]]] = []
    most = min(NEIGHBOURS, len(points) - 1)
    for begin in range(0, len(points), BLOCK):
        similarity = unit[begin : begin + BLOCK] @ unit.T
        rows = np.arange(len(similarity))
        similarity[rows, begin + rows] = -np.inf
        best = np.argsort(-similarity, axis=1, kind="stable")[:, :most]
        result += [
            [(int(n), round(float(row[n]), 4)) for n in near]
            for row, near in zip(similarity, best, strict=True)
        ]
    return result
