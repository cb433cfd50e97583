"""`hiera-video benchmark`: speed and memory of models, and of those of other libraries."""

import importlib.util
import logging
import time
from collections.abc import Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import torch

from hiera_video.analysis.accuracy_plot import plot_accuracy_and_speed
from hiera_video.analysis.claims import compare_claims
from hiera_video.analysis.peers import Subject, ours, peers
from hiera_video.analysis.speed import Setting, measure, peak_tflops
from hiera_video.analysis.tables import (
    format_claims,
    format_decoding,
    format_heading,
    format_report,
    format_rows,
)
from hiera_video.data.batches import Failure
from hiera_video.data.checks import check_videos
from hiera_video.data.loader import evaluation_loader, num_workers, readable
from hiera_video.data.videos.folders import is_media
from hiera_video.data.videos.records import VideoRecord, read_video_list
from hiera_video.errors import ConfigError, MissingLibrary, UserError, configured
from hiera_video.evaluation.prediction import views_of
from hiera_video.evaluation.views import Scorer, score_views
from hiera_video.files import write_json, write_text
from hiera_video.models.loading import card_of
from hiera_video.models.pretrained import create_model
from hiera_video.models.variants import VARIANTS, is_image
from hiera_video.runtime.compiler import check_compiler
from hiera_video.runtime.distributed import process_group
from hiera_video.runtime.environment import environment
from hiera_video.runtime.logging import setup_logging
from hiera_video.runtime.machine import processor_name
from hiera_video.runtime.precision import arithmetic
from hiera_video.runtime.results import exit_code, print_json, print_lines, refuse_existing
from hiera_video.settings.tools import BenchmarkSettings
from hiera_video.settings.video import Clips, Reading, Views

logger = logging.getLogger(__name__)

RESULTS = ("results.json", "results.md", "accuracy_speed.png")


def run(config: BenchmarkSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Measures models and prints the results; returns the exit code."""
    setup_logging(quiet=as_json)
    folder = None if config.output_dir is None else Path(config.output_dir)
    if folder is not None:
        refuse_existing(config, (folder / name for name in RESULTS))
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingLibrary("plots need matplotlib: pip install 'hiera-video[plot]'")
    names = config.models or ["hiera_base_16x224"]
    with configured(), process_group(config.device) as process:
        device = process.device.type
        subjects = [ours(name) for name in names]
    if len({is_image(VARIANTS[name]) for name in names}) > 1:
        raise ConfigError(f"MODEL is {' '.join(names)}: all must be of video, or all of images")
    if device == "cpu" and "fp16" in config.precisions:
        raise ConfigError(
            f"precisions is {', '.join(config.precisions)}: processors have no fp16 products and "
            "take minutes for one; use fp32 and bf16"
        )
    if "compiled" in config.execution:
        wish = f"execution is {', '.join(config.execution)}"
        check_compiler(process.device, wish, "write execution=[eager]")
    if config.peers:
        subjects += chosen_peers(names, config.only)
    settings = [
        Setting(*choice, device=device)
        for choice in product(config.work, config.precisions, config.execution, config.batch_sizes)
    ]
    videos: Sequence[VideoRecord] = ()
    num_unreadable = 0
    if config.videos is not None:
        videos = read_videos(config.videos, config.data)
        num_frames = VARIANTS[names[0]]["input_size"][0]
        unreadable = check_videos("videos", config.videos, videos, config.data, num_frames)
        num_unreadable = unreadable.total()
    if dry_run:
        models = [subject.name for subject in subjects]
        described = [vars(setting) for setting in settings]
        print_json({"models": models, "settings": described}, indent=2)
        return exit_code(done=len(settings), failed=num_unreadable)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    report = new_report(device, config.precisions)
    if not as_json:
        print_lines(format_heading(report).split("\n"))
    for setting in settings:
        peak = report["peaks"][setting.precision]["tflops"]
        rows, failed = measure(subjects, setting, rounds=config.rounds, peak_tflops=peak)
        report["results"] += rows
        report["failed"] += failed
        if not as_json:
            print_lines(["", *format_rows(rows).split("\n")])
        if folder is not None:
            write_results(folder, report)
    for name, setting in product(names if videos else (), settings):
        if setting.work == "inference" and setting.execution == "eager":
            report["decoding"].append(measure_decoding(name, setting, config, videos))
    if videos and not as_json:
        print_lines(["", *format_decoding(report["decoding"]).split("\n")])
    if config.peers:
        report["claims"] = compare_claims(report["results"])
    if report["claims"] and not as_json:
        print_lines(["", *format_claims(report).split("\n")])
    if folder is not None:
        write_results(folder, report)
        logger.info("results are in %s", folder)
    if as_json:
        print_json(report)
    return exit_code(done=len(report["results"]), failed=len(report["failed"]))


def chosen_peers(names: Sequence[str], only: str) -> list[Subject]:
    """Models of other libraries whose names contain `only`; logs what cannot be imported.

    Raises:
        ConfigError: no name contains it.
    """
    others, missing = peers(names)
    for package, why in missing.items():
        logger.info("%s is not measured (%s): pip install %s", package, why, package)
    chosen = [peer for peer in others if only in peer.name]
    if not chosen:
        allowed = ", ".join(peer.name for peer in others)
        raise ConfigError(
            f"only is {only!r}, which is contained in none of these names: {allowed}; not "
            f"installed: {', '.join(missing) or 'none'}"
        )
    return chosen


def new_report(device: str, precisions: Sequence[str]) -> dict[str, Any]:
    """A report without results; sets the same float32 arithmetic for all models."""
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return {
        "environment": environment(),
        "device": torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "peaks": {precision: peak_tflops(device, precision) for precision in precisions},
        "results": [],
        "decoding": [],
        "claims": [],
        "failed": [],
    }


def read_videos(source: str, data: Reading) -> Sequence[VideoRecord]:
    """A single video, or the videos of a folder or list."""
    if Path(source).is_file() and is_media(source):
        return [VideoRecord(source, (), source)]
    found = read_video_list(
        source, root=data.root, labelled=False, split=data.split, frames_fps=data.frames_fps
    )
    return found.records


def measure_decoding(
    name: str, setting: Setting, config: BenchmarkSettings, videos: Sequence[VideoRecord]
) -> dict[str, Any]:
    """Measures inference of a variant with decoding: one view of each video, repeatedly.

    Raises:
        UserError: a video cannot be read.
    """
    workers = num_workers(config.data, 1)
    # Workers decode two clips each before the measurement starts, which must have little effect.
    ahead = 2 * max(1, workers)
    first = max(setting.batch_size, ahead)
    count = max(config.rounds * setting.batch_size, 8 * ahead)
    model = create_model(name)
    records = list(islice(cycle(videos), first + count))
    views = views_of(records, model, Clips(), Views(num_clips=1, num_crops=1), config.data)
    failures: list[Failure] = []
    device = torch.device(setting.device)
    precision = arithmetic(setting.precision, device)
    scorer = Scorer.of(model, card_of(model), device, setting.batch_size, precision)
    samples = readable(evaluation_loader(views, config.data), failures)
    scored = score_views(scorer, samples, views.crop_size)
    ends = [time.perf_counter() for _ in scored]
    if failures:
        raise UserError(f"videos is {config.videos}: {failures[0].message}")
    return {
        "model": name,
        "precision": setting.precision,
        "batch_size": setting.batch_size,
        "num_workers": workers,
        "clips": count,
        "clips_per_sec": count / (ends[-1] - ends[-1 - count]),
    }


def write_results(folder: Path, report: dict[str, Any]) -> None:
    """Writes results.json, results.md and, if there are accuracies, accuracy_speed.png."""
    write_json(folder / "results.json", report)
    write_text(folder / "results.md", format_report(report))
    plot_accuracy_and_speed(report, folder / "accuracy_speed.png")
