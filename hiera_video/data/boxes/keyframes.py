"""Records of key frames, each with its boxes and their actions, made from tables of boxes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hiera_video.data.boxes.table import (
    BoxTable,
    LabelMap,
    box_iou,
    read_ground_truth,
    read_keyframes,
    read_proposals,
)
from hiera_video.data.videos.files import AnnotationError, locate_videos
from hiera_video.errors import listing
from hiera_video.settings.training import DetectionData, KeyframeData

logger = logging.getLogger(__name__)

Keyframe = tuple[str, float]  # name of the video, and second in the annotations


@dataclass(frozen=True, slots=True, eq=False)
class KeyframeRecord:
    """One key frame."""

    path: str  # file of the video, or folder of its frames
    video: str  # name in the annotations
    second: float  # time in the annotations
    boxes: Float[np.ndarray, "n 4"]  # x1 y1 x2 y2 as fractions of the frame
    actions: tuple[tuple[int, ...], ...]  # action ids of each box, ascending, from 1; () if unknown

    @property
    def name(self) -> str:
        """`VIDEO,SECOND`, unique among the records of a list."""
        return f"{self.video},{self.second:.10g}"


def keyframe_records(
    table: BoxTable,
    paths: Mapping[str, str],
    *,
    excluded: Collection[Keyframe] = (),
    keyframes: Collection[Keyframe] | None = None,
    min_score: float | None = None,
) -> list[KeyframeRecord]:
    """The key frames of a table that have boxes, ordered by video and time.

    Rows of the same box become one box with several actions.

    Args:
        paths: path of each video of the table.
        excluded: key frames to leave out.
        keyframes: key frames to use. None: all.
        min_score: lowest score of the boxes, if they have scores.
    """
    has_box = ~np.isnan(table.boxes).any(axis=1)
    if min_score is not None and table.score is not None:
        has_box &= table.score >= min_score
    rows = np.flatnonzero(has_box)
    keys = np.column_stack([table.video, table.second, table.boxes])[rows]
    order = np.lexsort(keys.T[::-1])
    rows, keys = rows[order], keys[order]
    new_box = np.ones(len(rows), dtype=bool)
    new_box[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    new_keyframe = np.ones(len(rows), dtype=bool)
    new_keyframe[1:] = (keys[1:, :2] != keys[:-1, :2]).any(axis=1)

    excluded = frozenset(excluded)
    allowed = None if keyframes is None else frozenset(keyframes)
    records = []
    for members in np.split(np.arange(len(rows)), np.flatnonzero(new_keyframe)[1:]):
        if not len(members):
            continue
        first = rows[members[0]]
        keyframe = (table.videos[table.video[first]], float(table.second[first]))
        if keyframe in excluded or (allowed is not None and keyframe not in allowed):
            continue
        actions: list[set[int]] = []
        for member in members:
            if new_box[member]:
                actions.append(set())
            if action := int(table.action[rows[member]]):
                actions[-1].add(action)
        records.append(
            KeyframeRecord(
                paths[keyframe[0]],
                *keyframe,
                table.boxes[rows[members[new_box[members]]]],
                tuple(tuple(sorted(ids)) for ids in actions),
            )
        )
    return records


def with_proposals(
    records: Iterable[KeyframeRecord], proposals: Iterable[KeyframeRecord], min_iou: float
) -> list[KeyframeRecord]:
    """Adds to each record the proposals that overlap one of its boxes, with that box's actions.

    As in MViT's training on AVA (arXiv 2104.11227, appendix D.2), where `min_iou` is 0.9.
    """
    proposed = {(record.video, record.second): record.boxes for record in proposals}
    result = []
    for record in records:
        boxes = proposed.get((record.video, record.second), np.empty((0, 4)))
        iou = box_iou(boxes, record.boxes)
        best = iou.argmax(axis=1)
        added = np.flatnonzero(iou.max(axis=1, initial=0.0) >= min_iou)
        result.append(
            replace(
                record,
                boxes=np.concatenate([record.boxes, boxes[added]]),
                actions=record.actions + tuple(record.actions[best[i]] for i in added),
            )
        )
    return result


def every_second(videos: Iterable[str], first: float, last: float) -> list[Keyframe]:
    """All whole seconds of the videos from `first` to `last`, both included."""
    return [(video, float(s)) for video in videos for s in range(int(first), int(last) + 1)]


@dataclass(frozen=True)
class TrainingKeyframeList:
    """The key frames of a training list."""

    source: str
    records: list[KeyframeRecord]

    @property
    def fingerprint(self) -> str:
        """Hash of the key frames in order, their boxes and actions."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(repr((record.name, record.actions)).encode())
            digest.update(record.boxes.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class KeyframeEvaluation:
    """The boxes to score in an evaluation, and the ground truth."""

    ground_truth: BoxTable
    records: list[KeyframeRecord]  # with the boxes to score
    boxes: str  # source of these boxes: "ground truth" or "proposals"
    keyframes: list[Keyframe]  # all that are evaluated, with and without boxes
    excluded: list[Keyframe]


def read_training(data: DetectionData, label_map: LabelMap) -> TrainingKeyframeList:
    """Reads the annotated key frames to train on.

    Raises:
        AnnotationError: a mistake in one of the files, with file and line.
    """
    source, proposals = data.train, data.train_proposals
    table = read_ground_truth(source, label_map)
    excluded = [] if data.train_excluded is None else read_keyframes(data.train_excluded)
    paths = video_paths(table.videos, source, data.root)
    records = keyframe_records(table, paths, excluded=excluded)
    if not records:
        raise AnnotationError(f"{source}: no key frame with a box that is not excluded")
    if proposals is not None:
        proposed = read_proposals(proposals)
        known = {**dict.fromkeys(proposed.videos, ""), **paths}
        found = keyframe_records(proposed, known, min_score=data.proposal_score)
        annotated = num_boxes(records)
        records = with_proposals(records, found, data.proposal_iou)
        added = num_boxes(records) - annotated
        logger.info(
            "%s: %d of %d proposals overlap an annotated box and are used",
            proposals,
            added,
            int(proposed.is_box.sum()),
        )
        if not added:
            raise AnnotationError(
                f"{proposals}: no proposal overlaps an annotated box of {source}; check that they "
                "belong to the same videos, and data.proposal_score and data.proposal_iou"
            )
    return TrainingKeyframeList(str(source), records)


def read_evaluation(data: KeyframeData, label_map: LabelMap) -> KeyframeEvaluation:
    """Reads the boxes to score, and the key frames that are evaluated.

    Args:
        data: settings, in which `val` is set.
        label_map: all actions that may be in the list, including those that are not evaluated.

    Raises:
        AnnotationError: a mistake in one of the files, with file and line.
    """
    source, proposals = data.val, data.val_proposals
    assert source is not None
    truth = read_ground_truth(source, label_map)
    scored = truth if proposals is None else read_proposals(proposals)
    if unknown := sorted(set(scored.videos) - set(truth.videos)):
        logger.warning(
            "%s: %d of its videos have no ground truth in %s, so that all detections in them count "
            "as wrong: %s",
            proposals,
            len(unknown),
            source,
            listing(unknown),
        )
    excluded = [] if data.val_excluded is None else read_keyframes(data.val_excluded)
    if data.val_keyframes is not None:
        keyframes = read_keyframes(data.val_keyframes)
    elif data.keyframe_range_sec is not None:
        videos = sorted({*truth.videos, *scored.videos})
        keyframes = every_second(videos, *data.keyframe_range_sec)
    else:
        keyframes = sorted({*named_keyframes(truth), *named_keyframes(scored)})
    left_out = frozenset(excluded)
    keyframes = [keyframe for keyframe in keyframes if keyframe not in left_out]
    records = keyframe_records(
        scored,
        video_paths(scored.videos, source, data.root),
        keyframes=keyframes,
        min_score=None if proposals is None else data.proposal_score,
    )
    if not records:
        raise AnnotationError(
            f"{proposals or source}: no box in any of the {len(keyframes)} evaluated key frames; "
            "check data.keyframe_range_sec, data.val_keyframes and data.proposal_score"
        )
    boxes = "ground truth" if proposals is None else "proposals"
    if proposals is not None and scored.score is not None:
        low = int((scored.score < data.proposal_score).sum())
        logger.info(
            "%s: %d of %d proposals have a score below %g and are not used",
            proposals,
            low,
            int(scored.is_box.sum()),
            data.proposal_score,
        )
    return KeyframeEvaluation(truth, records, boxes, keyframes, excluded)


def video_paths(videos: Iterable[str], source: str, root: str | None) -> dict[str, str]:
    """Paths of videos in `root`, or in the folder of the list `source`.

    Missing videos are logged and keep the path at which they are expected.

    Raises:
        AnnotationError: all videos are missing.
    """
    folder = Path(source).parent if root is None else Path(root).expanduser()
    names = list(videos)
    found, missing = locate_videos(names, folder)
    if names and len(missing) == len(names):
        raise AnnotationError(
            f"{source}: none of its {len(names)} videos is in {folder}, for example {names[0]}; "
            "set data.root to the folder of the videos, or of folders of frames"
        )
    if missing:
        logger.warning(
            "%d of %d videos are not in %s: %s",
            len(missing),
            len(names),
            folder,
            listing(missing),
        )
    return {name: str(found.get(name, folder / name)) for name in names}


def num_boxes(records: Iterable[KeyframeRecord]) -> int:
    return sum(len(record.boxes) for record in records)


def named_keyframes(table: BoxTable) -> set[Keyframe]:
    """The key frames for which a table has rows, with and without boxes."""
    pairs = zip(table.video.tolist(), table.second.tolist(), strict=True)
    return {(table.videos[video], second) for video, second in pairs}


def detections_of(
    records: Sequence[KeyframeRecord], scores: Mapping[int, np.ndarray], label_map: LabelMap
) -> BoxTable:
    """A table with one row for each scored box and each action of the label map.

    Args:
        scores: for the boxes of the record at each index, [n, L]; column c is action c + 1. Records
            without scores have no rows.
    """
    ids = np.array(sorted(label_map.names), dtype=np.int32)
    videos = tuple(dict.fromkeys(record.video for record in records))
    positions = {video: i for i, video in enumerate(videos)}
    scored = [(records[i], scores[i]) for i in sorted(scores)]
    num_rows = [len(record.boxes) * len(ids) for record, _ in scored]
    boxes = np.concatenate([np.empty((0, 4)), *(record.boxes for record, _ in scored)])
    by_action = [box_scores[:, ids - 1].ravel() for _, box_scores in scored]
    total = sum(num_rows)
    return BoxTable(
        source="detections",
        videos=videos,
        video=np.repeat([positions[r.video] for r, _ in scored], num_rows).astype(np.int32),
        second=np.repeat([r.second for r, _ in scored], num_rows).astype(np.float64),
        boxes=np.repeat(boxes, len(ids), axis=0),
        action=np.tile(ids, len(boxes)),
        person=np.full(total, -1, np.int32),
        score=np.concatenate([np.empty(0), *by_action]).astype(np.float64),
        lines=np.arange(1, total + 1),
    )
