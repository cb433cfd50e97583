"""`hiera-video detect evaluate`: frame mAP of a trained action detector, and its detections."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hiera_video.data.boxes.keyframes import (
    Keyframe,
    KeyframeEvaluation,
    detections_of,
    named_keyframes,
    read_evaluation,
)
from hiera_video.data.boxes.table import (
    BoxTable,
    LabelMap,
    read_label_map,
    write_detections,
    write_keyframes,
)
from hiera_video.data.checks import check_videos
from hiera_video.data.datasets import KeyframeClips
from hiera_video.data.loader import start_decoding
from hiera_video.errors import UserError, counted
from hiera_video.evaluation import ava_report
from hiera_video.evaluation.ava import frame_aps
from hiera_video.evaluation.scoring import keyframe_clips_of, score_keyframes
from hiera_video.evaluation.views import Scorer
from hiera_video.files import make_writable_folder, replacing_all, write_json
from hiera_video.models.card import ModelCard
from hiera_video.models.pretrained import load_model
from hiera_video.runtime.distributed import any_process, on_main, process_group
from hiera_video.runtime.environment import environment
from hiera_video.runtime.results import evaluation_folder, exit_code, print_json, print_result
from hiera_video.settings.evaluation import DetectEvaluateSettings
from hiera_video.settings.training import Arithmetic

RESULTS = ("report.json", "detections.csv", "keyframes.csv")


def run(config: DetectEvaluateSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Evaluates and writes the results; returns the exit code."""
    data = config.data
    with process_group(config.device, config.precision, config.compile) as process:
        if not dry_run:
            start_decoding(config.data)
        folder = evaluation_folder(config, RESULTS)
        model, card = load_model(config.checkpoint, kind="detector", weights_key=config.weights_key)
        known, label_map = actions(config, card)
        val = read_evaluation(data, known)
        unreadable = on_main(lambda: check_videos("data.val", data.val, val.records, data))
        clips = keyframe_clips_of(val.records, model, config.clips, data)
        protocol = describe_protocol(config, val, clips, process.precision)
        if dry_run:
            found = {"keyframes_to_score": len(val.records), "unreadable": unreadable}
            print_json({**found, **protocol}, indent=2)
            num_failed = unreadable.total()
            return exit_code(done=len(val.records) - num_failed, failed=num_failed)
        scorer = Scorer.of(
            model, card, process.device, config.batch_size, process.precision, config.compile
        )
        if process.is_main:  # before hours of work, not after
            make_writable_folder(folder)
        scored, failures = score_keyframes(scorer, clips, process, data, progress=process.is_main)
        if process.is_main:
            detections = detections_of(val.records, {k.index: k.scores for k in scored}, label_map)
            failed = {failure.name for failure in failures}
            lost = {(r.video, r.second) for r in val.records if r.name in failed}
            report = {
                "checkpoint": config.checkpoint,
                "data": data.val,
                "expected": len(val.records),
                "decoded": len(scored),
                "actions": [{"id": id, "name": name} for id, name in known.names.items()],
                "protocols": results(val, detections, label_map, val.keyframes),
                "keyframes_without_ground_truth": len(
                    set(val.keyframes) - named_keyframes(val.ground_truth)
                ),
                **protocol,
                "boxes_outside_of_the_crop": sum(k.num_outside for k in scored),
                "failed": [asdict(failure) for failure in failures],
                "decoded_by": Counter(k.backend for k in scored),
                "settings": config.model_dump(mode="json"),
                "environment": environment(),
            }
            if lost:
                kept = [keyframe for keyframe in val.keyframes if keyframe not in lost]
                report["protocols_without_failed"] = results(val, detections, label_map, kept)
            with replacing_all({name: folder / name for name in RESULTS}) as parts:
                write_json(parts["report.json"], report)
                write_detections(parts["detections.csv"], detections)
                write_keyframes(parts["keyframes.csv"], val.keyframes)
            print_result(report, format_report(report, folder), as_json=as_json)
        return exit_code(done=any_process(bool(scored)), failed=any_process(bool(failures)))


def actions(config: DetectEvaluateSettings, card: ModelCard) -> tuple[LabelMap, LabelMap]:
    """The actions that the model knows, and those to evaluate: of `data.label_map`, else all.

    Where the card has no names, the model knows those of `data.label_map`, else the ids.

    Raises:
        UserError: actions that the model does not know.
    """
    known = LabelMap(card.actions, card.groups)
    if config.data.label_map is None:
        return known, known
    chosen = read_label_map(config.data.label_map)
    if not card.label_map:
        return chosen, chosen
    for id, name in chosen.names.items():
        if known.names.get(id) != name:
            raise UserError(
                f"{config.data.label_map}: action {id} is {name!r}, but "
                f"{known.names.get(id, 'unknown')!r} to {config.checkpoint}; expected some of "
                "its own"
            )
    return known, chosen


def results(
    val: KeyframeEvaluation, detections: BoxTable, label_map: LabelMap, keyframes: list[Keyframe]
) -> dict[str, Any]:
    """Frame mAP by both protocols over these key frames."""
    scored = frame_aps(
        val.ground_truth, detections, label_map, excluded=val.excluded, keyframes=keyframes
    )
    return {protocol: ava_report.as_dict(ap, label_map.names) for protocol, ap in scored.items()}


def describe_protocol(
    config: DetectEvaluateSettings,
    val: KeyframeEvaluation,
    clips: KeyframeClips,
    precision: Arithmetic,
) -> dict[str, Any]:
    """Everything that the figures depend on beside weights and data."""
    return {
        "boxes": val.boxes,
        "proposal_score": config.data.proposal_score if val.boxes == "proposals" else None,
        "keyframes": len(val.keyframes),
        "excluded_keyframes": len(val.excluded),
        "num_frames": clips.sampler.num_frames,
        **config.clips.model_dump(),
        "crop": "centre",
        "crop_size": list(clips.size),
        "backend": config.data.backend,
        "precision": precision,
    }


def format_report(report: dict[str, Any], folder: Path) -> list[str]:
    """The report for a person."""
    height, width = report["crop_size"]
    lines = [
        f"boxes: {report['boxes']}"
        + (f", score {report['proposal_score']:g} or more" if report["proposal_score"] else ""),
        f"{report['decoded']} of {report['expected']} key frames with boxes decoded, "
        f"{len(report['failed'])} failed; key frames that count: {report['keyframes']}, on the "
        f"list of excluded ones: {report['excluded_keyframes']}",
        f"clips: {report['num_frames']}x{report['sampling_rate']} frames, centre crops of "
        f"{height} x {width} px; boxes outside of them: {report['boxes_outside_of_the_crop']}",
        *ava_report.format_results(report["protocols"], num_excluded=0),
    ]
    if count := report["keyframes_without_ground_truth"]:
        lines.append(
            f"in both protocols, detections at {counted(count, 'key frame')} that the ground truth "
            "does not name count as wrong; the official scorer of activitynet ignores them (detect "
            "score without --keyframes)"
        )
    for protocol, result in report.get("protocols_without_failed", {}).items():
        mean = ava_report.format_percent(result["mean_ap"])
        lines.append(f"{protocol}, without key frames that failed: {mean}")
    lines += [f"failed: {failure['message']}" for failure in report["failed"]]
    lines.append(f"results are in {folder}")
    return lines
