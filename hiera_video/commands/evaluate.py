"""`hiera-video evaluate`: multi-view accuracy of a trained classifier, and its scores on disk."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hiera_video.config import EvaluateConfig
from hiera_video.data.datasets import EvaluationViews
from hiera_video.data.order import default_num_workers
from hiera_video.data.videos.records import read_video_list, require_labels
from hiera_video.evaluation.accuracy import summarize
from hiera_video.evaluation.results import write_confusion, write_predictions, write_scores
from hiera_video.evaluation.scoring import validate
from hiera_video.files import make_writable_folder, write_json
from hiera_video.models.weights import load_folder
from hiera_video.runtime.distributed import process_group, sum_over_processes
from hiera_video.runtime.environment import environment
from hiera_video.runtime.logging import setup_logging
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import open_video

logger = logging.getLogger(__name__)

RESULTS = ("report.json", "scores.npz", "predictions.csv", "confusion.csv")


def run(config: EvaluateConfig, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Evaluates and writes the results; returns the exit code."""
    assert config.checkpoint is not None  # config.check() saw to it
    assert config.data.val is not None
    with process_group(config.device) as process:
        setup_logging(quiet=not process.is_main)
        model, meta = load_folder(config.checkpoint)
        if not meta.get("class_names"):
            raise ValueError(
                f"{config.checkpoint}: not a classifier, config.json has no class_names"
            )
        val = read_video_list(
            config.data.val,
            root=config.data.root,
            class_names=meta["class_names"],
            multi_label=meta["multi_label"],
        )
        require_labels(val)
        folder = output_folder(config)
        existing = [name for name in RESULTS if (folder / name).exists()]
        if existing and not config.overwrite:
            raise ValueError(
                f"{folder} holds results ({', '.join(existing)}): choose another output_dir, or "
                "set overwrite=true to replace them"
            )
        views = EvaluationViews(
            val.records,
            ClipSampler(num_frames=model.input_size[0], **asdict(config.clips)),
            crop_size=model.input_size[1:],
            short_side=config.views.short_side,
            num_clips=config.views.num_clips,
            num_crops=config.views.num_crops,
            clip_rule=config.views.clip_rule,
            open_video=partial(
                open_video, backend=config.data.backend, deadline_sec=config.data.deadline_sec
            ),
        )
        protocol = describe_protocol(config, views)
        if dry_run:
            print(json.dumps({"videos": len(val.records), **protocol}, indent=2))
            return 0
        if process.is_main:  # before hours of work, not after
            make_writable_folder(folder)
        workers = config.data.num_workers
        videos, failures = validate(
            model.to(process.device),
            views,
            process,
            mean=meta["mean"],
            std=meta["std"],
            batch_size=config.views.batch_size,
            num_workers=default_num_workers(process.local_world_size)
            if workers is None
            else workers,
            bf16=config.precision == "bf16",
            multi_label=meta["multi_label"],
            progress=process.is_main,
        )
        if process.is_main:
            expected = [record.labels for record in val.records]
            summary = summarize(videos, expected=expected, multi_label=meta["multi_label"])
            report = {
                "checkpoint": config.checkpoint,
                "data": val.source,
                **summary,
                "failed": [asdict(failure) for failure in failures],
                **protocol,
                "decoded_by": Counter(video.backend for video in videos),
                "environment": environment(),
            }
            write_scores(folder / "scores.npz", videos, val.records, val.class_names)
            write_predictions(
                folder / "predictions.csv", videos, failures, val.records, val.class_names
            )
            if videos and not meta["multi_label"]:
                write_confusion(folder / "confusion.csv", videos, val.class_names)
            write_json(folder / "report.json", report)
            print(json.dumps(report, ensure_ascii=False) if as_json else tell(report, folder))
        # Together: torchrun ends all processes when one has left with another code than 0.
        if sum_over_processes(torch.tensor(len(videos))) == 0:
            return 1
        return 3 if sum_over_processes(torch.tensor(len(failures))) else 0


def output_folder(config: EvaluateConfig) -> Path:
    """`output_dir`, else eval/ beside the weights of a run."""
    assert config.checkpoint is not None
    if config.output_dir is not None:
        return Path(config.output_dir)
    checkpoint = Path(config.checkpoint)
    return (checkpoint.parent if checkpoint.name == "weights" else checkpoint) / "eval"


def describe_protocol(config: EvaluateConfig, views: EvaluationViews) -> dict[str, Any]:
    """What the figures were obtained with, as the report states it."""
    return {
        "views": {"num_clips": views.num_clips, "num_crops": views.num_crops},
        "clip_rule": config.views.clip_rule,
        "num_frames": views.sampler.num_frames,
        **asdict(config.clips),
        "crop_size": list(views.crop_size),
        "short_side": views.short_side,
        "backend": config.data.backend,
        "precision": config.precision,
        "fusion": "mean of probabilities over views",
    }


def tell(report: dict[str, Any], folder: Path) -> str:
    """The report for a person."""
    views = f"{report['views']['num_clips']} clips x {report['views']['num_crops']} crops"
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
    return "\n".join(lines)
