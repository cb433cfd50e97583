"""`hiera-video detect predict FILE...`: what the people in one's own videos do, and an overlay."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hiera_video.analysis.overlay import Keyframe, Person, write_overlay
from hiera_video.data.boxes.files import read_boxes
from hiera_video.data.boxes.keyframes import (
    KeyframeRecord,
    detections_of,
    keyframe_records,
    named_keyframes,
    num_boxes,
)
from hiera_video.data.boxes.table import BoxTable, LabelMap, write_detections
from hiera_video.data.transforms import MAX_ASPECT
from hiera_video.errors import WeightsError, counted, did_you_mean
from hiera_video.evaluation.people import PersonDetector, person_detector
from hiera_video.evaluation.scoring import keyframe_clips_of, score_keyframes
from hiera_video.evaluation.views import Scorer
from hiera_video.files import replacing_all, utf8_text, write_json
from hiera_video.models.detector import ActionDetector
from hiera_video.models.people import announce_weights
from hiera_video.models.pretrained import load_model
from hiera_video.runtime.distributed import Process, process_group
from hiera_video.runtime.results import exit_code, output_files, print_planned, print_result
from hiera_video.settings.evaluation import DetectPredictSettings
from hiera_video.video.open import opener
from hiera_video.video.reader import VideoError, VideoReader
from hiera_video.video.sampling import FRAME_TIME_TOLERANCE_SEC

FRAMES_AT_ONCE = 4  # in the person detector; torchvision's enlarges them to 800 pixels
OUTPUTS = {"csv": "detections.csv", "json": "detections.json", "overlay": "overlay.mp4"}


class NoResult(Exception):
    """Why a file has none, in one line that names it."""


def run(config: DetectPredictSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Writes detections and an overlay of each file, or prints why not; returns the exit code."""
    outputs = output_files(config, config.inputs, OUTPUTS)
    failed = 0
    with process_group(config.device, config.precision, config.compile) as process:
        model, card = load_model(config.checkpoint, kind="detector", weights_key=config.weights_key)
        label_map = LabelMap(card.actions, {})
        # Which actions the boxes have, if any, does not matter here.
        table = None if config.boxes is None else read_boxes("proposals", config.boxes, label_map)
        if dry_run:
            if config.detector is not None:
                person_detector(config.detector, torch.device("cpu"))
            elif table is None:
                announce_weights()
            print_planned((file for files in outputs for file in files.values()), as_json=as_json)
            return 0
        scorers = dict[tuple[int, ...], Scorer]()  # by size of the clip
        detect = None
        if table is None:
            detect = person_detector(config.detector, process.device, process.precision)
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        for path, files in zip(config.inputs, outputs, strict=True):
            try:
                with opener(config.data)(path) as video:
                    height, width = video.height, video.width
                    if max(height, width) > MAX_ASPECT * min(height, width):
                        raise NoResult(
                            f"{path}: its frames have {width} x {height} pixels, and clips show "
                            f"whole frames: allowed are frames up to {MAX_ASPECT} times as long as "
                            "wide; cut the video"
                        )
                    size = clip_size(model, height, width)
                    if size not in scorers:
                        resized = model
                        if size != model.encoder.input_size[1:]:
                            resized, _ = load_model(
                                config.checkpoint,
                                kind="detector",
                                weights_key=config.weights_key,
                                image_size=size,
                            )
                        how = (config.batch_size, process.precision, config.compile)
                        scorers[size] = Scorer.of(resized, card, process.device, *how)
                    interval_sec = config.every_sec
                    if detect is not None:
                        records = detected_boxes(video, detect, config)
                    else:
                        assert table is not None
                        records = given_boxes(video, table, config)
                        gaps = np.diff([record.second for record in records])
                        interval_sec = min(gaps, default=interval_sec)
                    scores = action_scores(scorers[size], records, config, process)
                    described = [
                        people_of(record, of_boxes, label_map, config)
                        for record, of_boxes in zip(records, scores, strict=True)
                    ]
                    shown = [keyframe for keyframe, _ in described]
                    entries = [entry for _, entry in described]
                    detections = detections_of(records, dict(enumerate(scores)), label_map)
                    with replacing_all(files) as parts:
                        write_detections(parts["csv"], detections)
                        write_json(parts["json"], {"path": path, "keyframes": entries})
                        write_overlay(parts["overlay"], video, shown, interval_sec=interval_sec)
            except (VideoError, NoResult) as error:
                failed += 1
                print_result({"path": path, "error": str(error)}, [str(error)], as_json=as_json)
                continue
            counts = {"keyframes": len(records), "boxes": num_boxes(records)}
            people_found = f"{counted(counts['boxes'], 'box')} of people"
            line = f"{path}: {people_found} in {counted(len(records), 'key frame')}"
            print_result(
                {"path": path, **counts, **{kind: str(file) for kind, file in files.items()}},
                [line, *(f"  {file}" for file in files.values())],
                as_json=as_json,
            )
    return exit_code(done=len(config.inputs) - failed, failed=failed)


# Boxes, by key frame; people stand from left to right, which keeps their colours.


def given_boxes(
    video: VideoReader, table: BoxTable, config: DetectPredictSettings
) -> list[KeyframeRecord]:
    """The key frames of a csv that name this file, with or without its suffix."""
    path = video.path
    names = {utf8_text(Path(path).name), utf8_text(Path(path).stem)}  # as this command writes them
    named = {keyframe for keyframe in named_keyframes(table) if keyframe[0] in names}
    if not named:
        near = did_you_mean(Path(path).stem, table.videos)
        raise NoResult(f"{path}: {table.source} names no video {Path(path).stem!r}{near}")
    length_sec = video.end_sec - float(video.frame_times_sec[0])
    if late := sorted(second for _, second in named if second > length_sec):
        raise NoResult(
            f"{path}: {len(late)} of the {len(named)} key frames in {table.source} lie past its "
            f"end at {length_sec:.3f} s, the first at {late[0]:g} s"
        )
    paths = dict.fromkeys(table.videos, path)
    found = keyframe_records(table, paths, keyframes=named, min_score=config.detector_score)
    if not found:
        raise NoResult(
            f"{path}: none of its boxes in {table.source} has a score of "
            f"detector_score={config.detector_score:g} or more"
        )
    records = [record_of(path, record.second, record.boxes) for record in found]
    return sorted(records, key=lambda record: record.second)


def detected_boxes(
    video: VideoReader, detect: PersonDetector, config: DetectPredictSettings
) -> list[KeyframeRecord]:
    """A key frame every `every_sec` from the first frame on, without those that show nobody."""
    begin = float(video.frame_times_sec[0])
    end_sec = video.end_sec - begin - FRAME_TIME_TOLERANCE_SEC
    seconds = np.arange(0, max(end_sec, FRAME_TIME_TOLERANCE_SEC), config.every_sec)
    on_screen = begin + seconds + FRAME_TIME_TOLERANCE_SEC
    indices = np.searchsorted(video.frame_times_sec, on_screen, side="right") - 1
    wanted, place = np.unique(indices, return_inverse=True)
    frames = (frame for _, frame in video.stream(wanted))
    found: list[np.ndarray] = []
    while batch := list(islice(frames, FRAMES_AT_ONCE)):
        try:
            detected = detect(batch, min_score=config.detector_score)
        except WeightsError as error:
            raise NoResult(f"{video.path}: {error}") from error
        found += [people.boxes for people in detected]
    return [
        record_of(video.path, second, found[of_frame])
        for second, of_frame in zip(seconds.tolist(), place, strict=True)
        if len(found[of_frame])
    ]


def record_of(path: str, second: float, boxes: np.ndarray) -> KeyframeRecord:
    ordered = boxes[np.argsort(boxes[:, 0], kind="stable")]
    return KeyframeRecord(path, Path(path).stem, second, ordered, ((),) * len(boxes))


# Actions.


def clip_size(model: ActionDetector, height: int, width: int) -> tuple[int, int]:
    """(height, width) of clips that show the whole frame: the short side as trained, the long side
    by the frame's shape, as near as mask units allow."""
    encoder = model.encoder
    unit = np.multiply(encoder.patch_stride, encoder.mask_unit)[1:].tolist()
    short = min(encoder.input_size[1:])
    sides = [
        round(short * side / min(height, width) / u) * u
        for side, u in zip((height, width), unit, strict=True)
    ]
    return max(sides[0], short), max(sides[1], short)


def action_scores(
    scorer: Scorer,
    records: Sequence[KeyframeRecord],
    config: DetectPredictSettings,
    process: Process,
) -> list[np.ndarray]:
    """Probabilities [n, L] for the boxes of each key frame.

    Raises:
        NoResult: a key frame cannot be read.
    """
    if not records:
        return []
    assert isinstance(scorer.model, ActionDetector)
    clips = keyframe_clips_of(records, scorer.model, config.clips, config.data)
    scored, failures = score_keyframes(scorer, clips, process, config.data)
    if failures:
        raise NoResult(failures[0].message)
    return [keyframe.scores for keyframe in scored]


def people_of(
    record: KeyframeRecord, scores: np.ndarray, label_map: LabelMap, config: DetectPredictSettings
) -> tuple[Keyframe, dict[str, Any]]:
    """The likeliest actions of a key frame's people, for the overlay and for JSON."""
    names = label_map.names
    people, entries = [], []
    for box, of_box in zip(record.boxes.tolist(), scores, strict=True):
        ranked = sorted(names, key=lambda id: -of_box[id - 1])[: config.top_k]
        chosen = [
            (id, float(of_box[id - 1])) for id in ranked if of_box[id - 1] >= config.min_score
        ]
        people.append(Person(tuple(box), tuple((names[id], score) for id, score in chosen)))
        actions = [{"id": id, "name": names[id], "score": round(score, 6)} for id, score in chosen]
        entries.append({"box": [round(corner, 6) for corner in box], "actions": actions})
    return (record.second, people), {"second": record.second, "boxes": entries}
