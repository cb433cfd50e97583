"""Sections that read videos: the commands from end to end, and decoders by themselves."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpu_checks.machine import device, fenced, run
from gpu_checks.page import Page
from gpu_checks.speeds import BASE, RATES, Job
from gpu_checks.videos import SIZE, read_clips, write_one
from hiera_video.errors import UserError
from hiera_video.models.pretrained import create_model
from hiera_video.models.saving import save_model

BACKENDS = ("pyav", "decord", "torchcodec", "torchcodec-cuda")
# A model for the CPU, in settings of the commands.
SMALL_MODEL = [
    "model.name=hiera_tiny_16x224",
    "model.num_frames=4",
    "model.image_size=64",
    "model.overrides={embed_dim: 8, num_heads: 1, stages: [1, 1, 1, 1]}",
]


def write_videos(folder: Path, count: int, num_frames: int) -> list[Path]:
    """H.264 videos, written by all cores; those that are there stay."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:03}.mp4" for i in range(count)]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0))
    with context.Pool(max(1, min(cores, len(missing)))) as pool:
        pool.starmap(write_one, [(paths[i], i, num_frames) for i in missing])
    return paths


def videos_of(folder: Path, smoke: bool) -> list[Path]:
    return write_videos(folder / "videos", *((4, 30) if smoke else (96, 300)))


@dataclass(frozen=True)
class Ran:
    """A command that ended, or was ended."""

    code: int
    seconds: float
    lines: list[tuple[float, str]]  # with seconds from its start


def ran(*arguments: object) -> Ran:
    lines: list[tuple[float, str]] = []
    start = time.perf_counter()
    command = [sys.executable, "-m", "hiera_video", *map(str, arguments)]
    code = run(
        command,
        lambda line: lines.append((time.perf_counter() - start, line)),
        stderr=subprocess.STDOUT,
    )
    return Ran(code, time.perf_counter() - start, lines)


def commands(page: Page, folder: Path, smoke: bool) -> None:
    """`extract`, `finetune` and `pretrain`, each in a process of its own."""
    start = time.perf_counter()
    videos = videos_of(folder, smoke)
    page.text(
        f"{len(videos)} videos of {SIZE[1]}x{SIZE[0]}, H.264 with B-frames, written in "
        f"{time.perf_counter() - start:.0f} s."
    )
    work = folder / "commands"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    training_list = work / "train.csv"
    training_list.write_text("".join(f"{path} {i % 4}\n" for i, path in enumerate(videos)))
    extraction(page, work, videos[0].parent, smoke)
    training(page, work, training_list, smoke)


def extraction(page: Page, work: Path, videos: Path, smoke: bool) -> None:
    batch_size = 2 if smoke else 32
    if smoke:
        sizes = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
        model = create_model("hiera_tiny_16x224", num_frames=4, image_size=64, **sizes)
    else:
        model = create_model(BASE)
    save_model(work / "weights", model)
    precision = "fp32" if smoke else "bf16"
    # The layer that "speed" measures, which is compiled already.
    options = ["layer=logits", f"batch_size={batch_size}", f"precision={precision}"]
    options += ["windows.clip_stride=16"]
    options += [] if smoke else ["compile=true"]
    line = ["extract", videos, f"checkpoint={work / 'weights'}", f"output_dir={work / 'features'}"]
    done = ran(*line, *options, f"device={device()}", "--json")
    if done.code:
        page.failure(f"extract ended with {done.code}; the log of this section says why.")
        return
    texts = [line for _, line in done.lines]
    summary = json.loads(next(text for text in texts if text.startswith("{")))["this_process"]
    wall_sec, clips = summary["wall_sec"], summary["clips"]
    rates = work.parent / RATES
    alone = json.loads(rates.read_text()) if rates.exists() else {}
    rate = clips / (wall_sec - summary["start_sec"])
    table = page.table("`extract`, " + " ".join(options), "")
    table.row("clips", clips)
    table.row("seconds until the first batch", f"{summary['start_sec']:.1f}")
    table.row("clips/s from end to end after these", f"{rate:.4g}")
    for execution in ("eager", "compiled"):
        if speed := alone.get(str(Job(BASE, "inference", "bf16", execution, batch_size, True))):
            text = f"of the model alone in the section speed, {execution}, {speed:.4g} clips/s"
            table.row(text, f"{rate / speed:.0%}")
    if summary["model_sec"]:
        speed = clips / summary["model_sec"]
        table.row(f"of the model alone in this run, {speed:.4g} clips/s", f"{rate / speed:.0%}")
    table.row("seconds of the command before and after", f"{done.seconds - wall_sec:.1f}")
    for part in ("model", "decode", "transform", "store"):
        processes = summary["num_workers"] if part in ("decode", "transform") else 1
        table.row(f"busy, {part}", f"{summary[f'{part}_sec'] / wall_sec / max(1, processes):.0%}")


def training(page: Page, work: Path, training_list: Path, smoke: bool) -> None:
    """Both commands; then, if there is time, compiled."""
    common = [f"data.train={training_list}", f"device={device()}", "train.warmup_epochs=0"]
    if smoke:
        common += [*SMALL_MODEL, "train.precision=fp32", "train.global_batch_size=2"]
        common += ["clips.sampling_rate=2", "train.epochs=2", "train.log_every=1"]
        common += ["train.num_repeats=1"]
        decoder = ["model.decoder_heads=2", "model.decoder_dim=16", "model.decoder_depth=1"]
        lines = [
            ["finetune", "augment.rand_augment_magnitude=null"],
            ["pretrain", *decoder, "masking.mask_ratio=0.5"],
        ]
    else:
        common += ["train.precision=bf16", "train.log_every=5", "train.checkpoint_every=10"]
        finetune = ["finetune", "--config=kinetics400/hiera_base", "model.init=null"]
        finetune += ["train.global_batch_size=32", "train.epochs=24"]
        pretrain = ["pretrain", "--config=pretrain/kinetics400_hiera_base"]
        pretrain += ["train.global_batch_size=48", "train.epochs=48"]
        lines = [finetune, pretrain]
        lines += [[*line, "train.compile=true"] for line in lines]
    table = page.table("command", "exit code", "s in all", "clips/s", "first line of steps after s")
    for number, line in enumerate(lines):
        done = ran(*line, *common, f"run_dir={work / str(number)}")
        steps = [(sec, text) for sec, text in done.lines if re.search(r"step \d+/\d+", text)]
        began = rate = "?"
        if steps:
            began = f"{steps[0][0]:.1f}"
            last = [text.strip() for _, text in steps[-4:]]
            rate = re.search(r"([\d.]+) clips/s", last[-1])[1]
            page.text(f"`hiera-video {' '.join(line)}`:\n\n{fenced(last)}")
        name = line[0] + (", compiled" if "train.compile=true" in line else "")
        table.row(name, done.code, f"{done.seconds:.1f}", rate, began)
        if done.code:
            page.failure(f"{name} ended with {done.code}; the log of this section says why.")


# Decoders.


def decoders(page: Page, folder: Path, smoke: bool) -> None:
    """Clips of 16x4 frames at random starts: opening and reading, in one and in many processes."""
    paths = [str(path) for path in videos_of(folder, smoke)]
    cores = len(os.sched_getaffinity(0))
    span, seconds = (8, 0.2) if smoke else (64, 2.0)
    page.text(
        f"A clip of every 4th of {span} frames at a random start, the opening of the file "
        f"included, {SIZE[1]}x{SIZE[0]} H.264. Each process has one thread."
    )
    table = page.table("backend", "processes", "clips/s")
    counts = (1, 2) if smoke else (1, 16)
    for backend in BACKENDS:
        for processes in counts:
            try:
                rate = reading_rate(paths, backend, span, seconds, processes)
            except (UserError, TypeError, RuntimeError, OSError) as error:
                page.text(f"{backend} was not measured: {str(error).strip().splitlines()[0]}")
                break
            table.row(backend, min(processes, cores) if smoke else processes, f"{rate:.4g}")


def reading_rate(
    paths: list[str], backend: str, span: int, seconds: float, processes: int
) -> float:
    """Clips per second of all processes together."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        jobs = [pool.submit(read_clips, paths, backend, span, seconds, i) for i in range(processes)]
        return sum(job.result() for job in jobs)
