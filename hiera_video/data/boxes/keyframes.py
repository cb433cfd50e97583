"""Records of key frames, each with its boxes and their actions, made from tables of boxes."""

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from hiera_video.data.boxes.files import read_boxes, read_keyframes
from hiera_video.data.boxes.table import BoxTable, LabelMap, box_iou
from hiera_video.data.videos.folders import locate_videos
from hiera_video.data.videos.mistakes import NUM_FILES_CHECKED, elsewhere
from hiera_video.errors import AnnotationError, listing
from hiera_video.files import user_path
from hiera_video.settings.training import DetectionData, KeyframeData
from hiera_video.video.open import OpenVideo
from hiera_video.video.reader import VideoReader

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

    def open(self, open_video: OpenVideo) -> VideoReader:
        """The reader of the video."""
        return open_video(self.path)


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
    is_used = table.is_box
    if min_score is not None and table.score is not None:
        is_used &= table.score >= min_score
    columns = (table.video, table.second, *table.boxes.T, table.action)
    found: dict[tuple[int, float], dict[tuple[float, ...], set[int]]] = {}
    for video, second, *box, action in zip(*(c[is_used].tolist() for c in columns), strict=True):
        actions = found.setdefault((video, second), {}).setdefault(tuple(box), set())
        if action:
            actions.add(action)
    left_out = frozenset(excluded)
    allowed = None if keyframes is None else frozenset(keyframes)
    records = []
    for (video, second), actions_of in sorted(found.items()):
        name = table.videos[video]
        if (name, second) in left_out or (allowed is not None and (name, second) not in allowed):
            continue
        boxes = sorted(actions_of)
        ids = tuple(tuple(sorted(actions_of[box])) for box in boxes)
        records.append(KeyframeRecord(paths[name], name, second, np.array(boxes), ids))
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


def num_reached(
    records: Iterable[KeyframeRecord], proposals: Iterable[KeyframeRecord], min_iou: float
) -> int:
    """Number of boxes of the records that a proposal overlaps with an IoU of at least `min_iou`."""
    boxes = {(record.video, record.second): record.boxes for record in proposals}
    return sum(
        int((box_iou(record.boxes, boxes[key]).max(axis=1) >= min_iou).sum())
        for record in records
        if (key := (record.video, record.second)) in boxes
    )


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
    table = read_boxes("ground truth", source, label_map)
    excluded = [] if data.train_excluded is None else read_keyframes(data.train_excluded)
    paths = video_paths(table.videos, source, data.root)
    records = keyframe_records(table, paths, excluded=excluded)
    if not records:
        raise AnnotationError(f"{source}: no key frame with a box that is not excluded")
    if not table.action.any():
        raise AnnotationError(f"{source}: no box has an action, in the seventh column or in action")
    if proposals is not None:
        proposed = read_boxes("proposals", proposals)
        known = {**dict.fromkeys(proposed.videos, ""), **paths}
        found = keyframe_records(proposed, known, min_score=data.proposal_score)
        annotated = num_boxes(records)
        records = with_proposals(records, found, data.proposal_iou)
        added = num_boxes(records) - annotated
        number = f"{added} of {int(proposed.is_box.sum())} proposals"
        logger.info("%s: %s overlap an annotated box and are used", proposals, number)
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
    truth = read_boxes("ground truth", source, label_map)
    scored = truth if proposals is None else read_boxes("proposals", proposals)
    if unknown := sorted(set(scored.videos) - set(truth.videos)):
        text = f"{len(unknown)} of its videos have no ground truth in {source}, so that all "
        text += f"detections in them count as wrong: {listing(unknown)}"
        logger.warning("%s: %s", proposals, text)
    excluded = [] if data.val_excluded is None else read_keyframes(data.val_excluded)
    if data.val_keyframes is not None:
        keyframes = read_keyframes(data.val_keyframes)
    elif data.keyframe_range_sec is not None:
        first, last = map(int, data.keyframe_range_sec)
        videos = sorted({*truth.videos, *scored.videos})
        keyframes = [(video, float(s)) for video in videos for s in range(first, last + 1)]
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
        text = f"{low} of {int(scored.is_box.sum())} proposals have a score below "
        logger.info("%s: %s%g and are not used", proposals, text, data.proposal_score)
    return KeyframeEvaluation(truth, records, boxes, keyframes, excluded)


def video_paths(videos: Iterable[str], source: str, root: str | None) -> dict[str, str]:
    """Paths of videos in `root`, or in the folder of the list `source`.

    Missing videos keep the path at which they are expected.

    Raises:
        AnnotationError: all videos are missing.
    """
    listed = user_path(source)
    folder = (listed.parent if root is None else user_path(root)).absolute()
    names = list(videos)
    found, missing = locate_videos(names, folder)
    if names and len(missing) == len(names):
        some = names[:NUM_FILES_CHECKED]
        advice = elsewhere(str(folder), listed, some, any_suffix=True)
        advice = advice or "; set data.root to the folder of the videos, or of folders of frames"
        raise AnnotationError(
            f"{source}: none of its {len(names)} videos is in {folder}, for example {names[0]}"
            f"{advice}"
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
    positions = {name: i for i, name in enumerate(dict.fromkeys(r.video for r in records))}
    scored = [(records[i], scores[i]) for i in sorted(scores)]
    of_boxes = [
        (positions[record.video], record.second, *box)
        for record, _ in scored
        for box in record.boxes.tolist()
    ]
    rows = np.repeat(np.reshape(of_boxes, (-1, 6)).astype(np.float64), len(ids), axis=0)
    by_action = [box_scores[:, ids - 1].ravel() for _, box_scores in scored]
    return BoxTable(
        source="detections",
        videos=tuple(positions),
        video=rows[:, 0].astype(np.int32),
        second=rows[:, 1],
        boxes=rows[:, 2:],
        action=np.tile(ids, len(of_boxes)),
        person=np.full(len(rows), -1, np.int32),
        score=np.concatenate([np.empty(0), *by_action]).astype(np.float64),
        lines=np.arange(1, len(rows) + 1),
    )
