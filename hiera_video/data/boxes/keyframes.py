"""Tables of boxes to records: one for each key frame, with its boxes and their actions."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hiera_video.data.boxes.table import (
    BoxTable,
    LabelMap,
    box_iou,
    locate_videos,
    read_ground_truth,
    read_keyframes,
    read_proposals,
)
from hiera_video.data.videos.files import AnnotationError, listing
from hiera_video.settings.training import DetectionData, KeyframeData

logger = logging.getLogger(__name__)

Keyframe = tuple[str, float]  # a video's name, and a second of its annotations


@dataclass(frozen=True, slots=True, eq=False)
class KeyframeRecord:
    """One key frame.

    path: file of its video, or folder of the video's frames.
    video, second: as the annotations name them.
    boxes: x1 y1 x2 y2 as fractions of the picture.
    actions: for each box its action ids, ascending, counted from 1; () where none is known.
    """

    path: str
    video: str
    second: float
    boxes: Float[np.ndarray, "n 4"]
    actions: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        return f"{self.video},{self.second:.10g}"


def keyframe_records(
    table: BoxTable,
    paths: Mapping[str, str],
    *,
    excluded: Collection[Keyframe] = (),
    keyframes: Collection[Keyframe] | None = None,
    min_score: float | None = None,
) -> list[KeyframeRecord]:
    """The key frames of a table that have boxes, by video and time; rows of one box are joined.

    Args:
        paths: where each video of the table lies.
        excluded, keyframes: key frames to leave out, and the only ones to take.
        min_score: the lowest score of a box that is taken.
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

    leave_out = frozenset(excluded)
    only = None if keyframes is None else frozenset(keyframes)
    records = []
    for of_keyframe in np.split(np.arange(len(rows)), np.flatnonzero(new_keyframe)[1:]):
        if not len(of_keyframe):
            continue
        first = rows[of_keyframe[0]]
        keyframe = (table.videos[table.video[first]], float(table.second[first]))
        if keyframe in leave_out or (only is not None and keyframe not in only):
            continue
        starts = of_keyframe[new_box[of_keyframe]]
        actions: list[set[int]] = []
        for row in of_keyframe:
            if new_box[row]:
                actions.append(set())
            if table.action[rows[row]]:
                actions[-1].add(int(table.action[rows[row]]))
        joined = tuple(tuple(sorted(ids)) for ids in actions)
        path = paths[keyframe[0]]
        records.append(KeyframeRecord(path, *keyframe, table.boxes[rows[starts]], joined))
    return records


def with_proposals(
    records: Iterable[KeyframeRecord], proposals: Iterable[KeyframeRecord], min_iou: float
) -> list[KeyframeRecord]:
    """Adds to each record the proposals that meet one of its boxes, with that box's actions.

    As MViT trains on AVA (arXiv 2104.11227, appendix D.2), where the least IoU is 0.9.
    """
    proposed = {(record.video, record.second): record.boxes for record in proposals}
    result = []
    for record in records:
        boxes = proposed.get((record.video, record.second), np.empty((0, 4)))
        iou = box_iou(boxes, record.boxes)
        best = iou.argmax(axis=1)
        meets = np.flatnonzero(iou.max(axis=1, initial=0.0) >= min_iou)
        result.append(
            KeyframeRecord(
                record.path,
                record.video,
                record.second,
                np.concatenate([record.boxes, boxes[meets]]),
                record.actions + tuple(record.actions[best[i]] for i in meets),
            )
        )
    return result


def every_second(videos: Iterable[str], first: float, last: float) -> list[Keyframe]:
    """All whole seconds of the videos from `first` to `last`, both included."""
    return [(video, float(s)) for video in videos for s in range(int(first), int(last) + 1)]


@dataclass(frozen=True)
class TrainingKeyframeList:
    """The key frames to train on."""

    source: str
    records: list[KeyframeRecord]

    @property
    def fingerprint(self) -> str:
        """Hash of what training depends on: key frames in order, their boxes and actions."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(repr((record.name, record.actions)).encode())
            digest.update(record.boxes.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class KeyframeEvaluation:
    """What is evaluated: which boxes are scored, and what the scores are compared with."""

    ground_truth: BoxTable
    records: list[KeyframeRecord]  # whose boxes are scored
    boxes: str  # "ground truth" or "proposals": where those come from
    keyframes: list[Keyframe]  # all that count, those without a box too
    excluded: list[Keyframe]


def read_training(data: DetectionData, label_map: LabelMap) -> TrainingKeyframeList:
    """The annotated key frames to train on.

    Raises:
        AnnotationError: a mistake in one of the files, with file and line.
    """
    source, proposals = data.train, data.train_proposals
    table = read_ground_truth(source, label_map)
    left_out = [] if data.train_excluded is None else read_keyframes(data.train_excluded)
    paths = locate(table.videos, source, data.root)
    records = keyframe_records(table, paths, excluded=left_out)
    if not records:
        raise AnnotationError(f"{source}: no key frame with a box, less the excluded ones")
    if proposals is not None:
        proposed = read_proposals(proposals)
        known = {**dict.fromkeys(proposed.videos, ""), **paths}
        found = keyframe_records(proposed, known, min_score=data.proposal_score)
        annotated = num_boxes(records)
        records = with_proposals(records, found, data.proposal_iou)
        added = num_boxes(records) - annotated
        logger.info(
            "%s: %d of %d proposals meet an annotated box and are trained on",
            proposals,
            added,
            int(proposed.is_box.sum()),
        )
        if not added:
            raise AnnotationError(
                f"{proposals}: no proposal meets an annotated box of {source}; are these of other "
                "videos? See data.proposal_score and data.proposal_iou too"
            )
    return TrainingKeyframeList(str(source), records)


def read_evaluation(data: KeyframeData, label_map: LabelMap) -> KeyframeEvaluation:
    """The boxes to score, and the key frames that count.

    Args:
        data: with `val`.
        label_map: all actions that the list may have, evaluated or not.

    Raises:
        AnnotationError: a mistake in one of the files, with file and line.
    """
    source, proposals = data.val, data.val_proposals
    assert source is not None
    truth = read_ground_truth(source, label_map)
    scored = truth if proposals is None else read_proposals(proposals)
    if unknown := sorted(set(scored.videos) - set(truth.videos)):
        logger.warning(
            "%s: %d of its videos have no ground truth in %s, so that detections there are wrong: "
            "%s",
            proposals,
            len(unknown),
            source,
            listing(unknown),
        )
    left_out = [] if data.val_excluded is None else list(read_keyframes(data.val_excluded))
    if data.val_keyframes is not None:
        counted = list(read_keyframes(data.val_keyframes))
    elif data.keyframe_range_sec is not None:
        videos = sorted({*truth.videos, *scored.videos})
        counted = every_second(videos, *data.keyframe_range_sec)
    else:
        counted = sorted({*named_keyframes(truth), *named_keyframes(scored)})
    out = frozenset(left_out)
    counted = [keyframe for keyframe in counted if keyframe not in out]
    records = keyframe_records(
        scored,
        locate(scored.videos, source, data.root),
        keyframes=counted,
        min_score=None if proposals is None else data.proposal_score,
    )
    if not records:
        raise AnnotationError(
            f"{proposals or source}: no box in any of the {len(counted)} key frames that count; "
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
    return KeyframeEvaluation(truth, records, boxes, counted, left_out)


def locate(videos: Iterable[str], source: str, root: str | None) -> dict[str, str]:
    """Where each video lies below `root`, or beside the list; missing ones are told, and kept.

    Raises:
        AnnotationError: none of them is there.
    """
    folder = Path(source).parent if root is None else Path(root).expanduser()
    names = list(videos)
    found, missing = locate_videos(names, folder)
    if names and len(missing) == len(names):
        raise AnnotationError(
            f"{source}: none of its {len(names)} videos lies in {folder}, not even {names[0]}; set "
            "data.root to the folder of the videos, or of folders of frames"
        )
    if missing:
        logger.warning(
            "%d of %d videos do not lie in %s: %s",
            len(missing),
            len(names),
            folder,
            listing(missing),
        )
    return {name: str(found.get(name, folder / name)) for name in names}


def num_boxes(records: Iterable[KeyframeRecord]) -> int:
    return sum(len(record.boxes) for record in records)


def named_keyframes(table: BoxTable) -> set[Keyframe]:
    """The key frames that a table has rows for, empty ones too."""
    pairs = zip(table.video.tolist(), table.second.tolist(), strict=True)
    return {(table.videos[video], second) for video, second in pairs}


def detections_of(
    records: Sequence[KeyframeRecord], scores: Mapping[int, np.ndarray], label_map: LabelMap
) -> BoxTable:
    """One row for each scored box and each action of the label map.

    Args:
        scores: by position of the record, [n, L] for its boxes; column c is action c + 1. Records
            without scores have no rows.
    """
    ids = np.array(sorted(label_map.names), dtype=np.int32)
    videos = tuple(dict.fromkeys(record.video for record in records))
    place = {video: i for i, video in enumerate(videos)}
    done = [(records[i], scores[i]) for i in sorted(scores)]
    repeats = [len(record.boxes) * len(ids) for record, _ in done]
    boxes = np.concatenate([r.boxes for r, _ in done]) if done else np.empty((0, 4))
    by_action = [of_boxes[:, ids - 1].ravel() for _, of_boxes in done]
    total = sum(repeats)
    return BoxTable(
        source="detections",
        videos=videos,
        video=np.repeat([place[r.video] for r, _ in done], repeats).astype(np.int32),
        second=np.repeat([r.second for r, _ in done], repeats).astype(np.float64),
        boxes=np.repeat(boxes, len(ids), axis=0),
        action=np.tile(ids, len(boxes)),
        person=np.full(total, -1, np.int32),
        score=np.concatenate(by_action).astype(np.float64) if done else np.empty(0),
        lines=np.arange(1, total + 1),
    )
