"""`hiera-video evaluate`: multi-view accuracy of a trained classifier, and its scores on disk."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hiera_video.data.checks import check_videos, warn_of_similar
from hiera_video.data.datasets import EvaluationViews
from hiera_video.data.loader import start_decoding
from hiera_video.data.videos.records import VideoList, read_video_list, require_labels
from hiera_video.errors import UnknownClassError, counted
from hiera_video.evaluation.accuracy import summarize
from hiera_video.evaluation.prediction import load_model, views_of, with_class_names
from hiera_video.evaluation.results import write_confusion, write_predictions, write_scores
from hiera_video.evaluation.scoring import validate
from hiera_video.evaluation.views import Scorer
from hiera_video.files import make_writable_folder, replacing_all, write_json
from hiera_video.models.card import ModelCard
from hiera_video.runtime.distributed import any_process, on_main, process_group
from hiera_video.runtime.environment import environment
from hiera_video.runtime.results import evaluation_folder, exit_code, print_json, print_result
from hiera_video.settings.evaluation import EvaluateSettings
from hiera_video.settings.training import Arithmetic

RESULTS = ("report.json", "scores.npz", "predictions.csv", "confusion.csv")


def run(config: EvaluateSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Evaluates and writes the results; returns the exit code."""
    with process_group(config.device, config.precision, config.compile) as process:
        if not dry_run:
            start_decoding(config.data)
        folder = evaluation_folder(config, RESULTS)
        model, card = load_model(
            config.checkpoint, kind="classifier", weights_key=config.weights_key
        )
        card = with_class_names(card, config.data.class_names)
        val = read_list(config, card)
        warn_of_similar(val.class_names)
        views = views_of(val.records, model, config.clips, config.views, config.data)
        protocol = describe_protocol(config, views, process.precision)
        num_frames = views.sampler.num_frames
        unreadable = on_main(
            lambda: check_videos("data.val", val.source, val.records, config.data, num_frames)
        )
        if dry_run:
            found = {"videos": len(val.records), "unreadable": unreadable}
            print_json({**found, **protocol}, indent=2)
            num_failed = unreadable.total()
            return exit_code(done=len(val.records) - num_failed, failed=num_failed)
        scorer = Scorer.of(
            model, card, process.device, config.views.batch_size, process.precision, config.compile
        )
        if process.is_main:  # before hours of work, not after
            make_writable_folder(folder)
        videos, failures = validate(scorer, views, process, config.data, progress=process.is_main)
        if process.is_main:
            expected = [record.labels for record in val.records]
            summary = summarize(videos, expected=expected, multi_label=card.multi_label)
            report = {
                "checkpoint": config.checkpoint,
                "data": val.source,
                **summary,
                "failed": [asdict(failure) for failure in failures],
                **protocol,
                "decoded_by": Counter(video.backend for video in videos),
                "settings": config.model_dump(mode="json"),
                "environment": environment(),
            }
            has_confusion = bool(videos) and not card.multi_label
            names = RESULTS if has_confusion else RESULTS[:-1]
            with replacing_all({name: folder / name for name in names}) as parts:
                write_json(parts["report.json"], report)
                write_scores(parts["scores.npz"], val, videos)
                write_predictions(parts["predictions.csv"], val, videos, failures)
                if has_confusion:
                    write_confusion(parts["confusion.csv"], val, videos)
            print_result(report, format_report(report, folder), as_json=as_json)
        return exit_code(done=any_process(bool(videos)), failed=any_process(bool(failures)))


def read_list(config: EvaluateSettings, card: ModelCard) -> VideoList:
    """The videos to evaluate on, with labels among the classes of the checkpoint."""
    data = config.data
    try:
        val = read_video_list(
            data.val,
            root=data.root,
            class_names=card.classes,
            multi_label=card.multi_label,
            split=data.split,
            frames_fps=data.frames_fps,
        )
    except UnknownClassError as error:
        if card.class_names:
            raise
        raise UnknownClassError(
            f"{error} ({config.checkpoint} does not name its "
            f"{counted(len(card.classes), 'class')}: data.class_names=FILE does)"
        ) from error
    require_labels(val)
    return val


def describe_protocol(
    config: EvaluateSettings, views: EvaluationViews, precision: Arithmetic
) -> dict[str, Any]:
    """Everything that the figures depend on beside weights and data."""
    return {
        "views": {"num_clips": config.views.num_clips, "num_crops": config.views.num_crops},
        "clip_rule": config.views.clip_rule,
        "num_frames": views.sampler.num_frames,
        **config.clips.model_dump(),
        "crop_size": list(views.crop_size),
        "short_side": views.crops.short_side,
        "backend": config.data.backend,
        "precision": precision,
        "fusion": "mean of probabilities over views",
    }


def format_report(report: dict[str, Any], folder: Path) -> list[str]:
    """The report for a person."""
    views = " x ".join(counted(report["views"][f"num_{kind}s"], kind) for kind in ("clip", "crop"))
    lines = [
        f"{report['decoded']} of {report['expected']} videos decoded, "
        f"{len(report['failed'])} failed",
        f"views: {views}, {report['num_frames']}x{report['sampling_rate']} frames, crops of "
        f"{report['crop_size'][0]} px, short side {report['short_side']} px, {report['backend']}",
    ]
    for key, name in (
        ("video", "video level"),
        ("video_failed_as_wrong", "video level, failed videos as wrong"),
        ("clip", "each view for itself"),
    ):
        if key in report and (key != "video_failed_as_wrong" or report["failed"]):
            values = "  ".join(f"{k} {100 * v:.2f} %" for k, v in report[key].items())
            lines.append(f"{name}: {values}")
    lines += [f"failed: {failure['message']}" for failure in report["failed"]]
    lines.append(f"results are in {folder}")
    return lines
