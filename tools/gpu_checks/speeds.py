"""Ours and the official package by turns: inference, and steps of training and pretraining."""

import json
import multiprocessing
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from gpu_checks.machine import device, set_up
from gpu_checks.page import Page
from hiera_video.analysis.peers import OURS, Subject, ours, peers
from hiera_video.analysis.speed import (
    AUTOCAST,
    Setting,
    measure,
    measured_tflops,
    prepare,
    synchronize,
)
from hiera_video.files import json_text, write_json
from hiera_video.settings.training import Arithmetic

# In the folder of the results, by job: seconds of first calls, and clips a second of ours.
COMPILED, RATES = "compiled.json", "rates.json"
ROUNDS = 3


@dataclass(frozen=True)
class Job:
    """One row. `beside`: whether the official package is measured, too."""

    model: str
    work: str
    precision: Arithmetic
    execution: str
    batch_size: int
    beside: bool = False

    @property
    def setting(self) -> Setting:
        return Setting(self.work, self.precision, self.execution, self.batch_size, device())

    @property
    def subjects(self) -> list[Subject]:
        return [ours(self.model), *(official(self.model) if self.beside else ())]


BASE, IMAGES = "hiera_base_16x224", "hiera_base_224"
PLUS, LARGE = "hiera_base_plus_16x224", "hiera_large_16x224"
JOBS = [  # by importance: the last ones may find no time
    Job(BASE, "inference", "bf16", "eager", 32, True),
    Job(BASE, "inference", "bf16", "compiled", 32, True),
    Job(BASE, "inference", "bf16", "compiled", 1),
    Job(BASE, "finetuning", "bf16", "compiled", 32),
    Job(BASE, "pretraining", "bf16", "compiled", 32),
    Job(LARGE, "inference", "bf16", "compiled", 16),
    Job(IMAGES, "finetuning", "bf16", "eager", 64, True),
    Job(BASE, "finetuning", "bf16", "compiled", 64),
    Job(BASE, "finetuning", "bf16", "compiled", 16),
    Job(BASE, "pretraining", "bf16", "compiled", 64),
    Job(BASE, "finetuning", "bf16", "eager", 16, True),
    Job(BASE, "pretraining", "bf16", "eager", 32, True),
    Job(IMAGES, "finetuning", "bf16", "compiled", 64),
    Job(LARGE, "inference", "bf16", "eager", 16, True),
    Job(BASE, "inference", "bf16", "eager", 1, True),
    Job(BASE, "inference", "bf16", "eager", 8, True),
    Job(IMAGES, "inference", "bf16", "eager", 128, True),
    Job(BASE, "inference", "fp16", "eager", 32, True),
    Job(BASE, "inference", "fp32", "eager", 8, True),
    Job(LARGE, "finetuning", "bf16", "eager", 8, True),
    Job(PLUS, "inference", "bf16", "eager", 32, True),
    Job(BASE, "finetuning", "fp32", "eager", 8, True),
    Job(BASE, "pretraining", "fp32", "eager", 16, True),
    Job(PLUS, "inference", "bf16", "compiled", 32),
    Job(IMAGES, "inference", "bf16", "compiled", 128),
]
SMALL = "hiera_tiny_224"
SMOKE_JOBS = [
    Job(SMALL, "inference", "fp32", "eager", 2, True),
    Job(SMALL, "inference", "bf16", "compiled", 1),
    Job(SMALL, "finetuning", "fp32", "eager", 1),
    Job(SMALL, "pretraining", "fp32", "compiled", 1),
]


@cache
def official(name: str) -> list[Subject]:
    return [peer for peer in peers([name])[0] if peer.library == "hiera"]


@cache
def peak(precision: str) -> float:
    size = 256 if device() == "cpu" else 8192
    return measured_tflops(device(), AUTOCAST[precision] or torch.float32, size)


def speeds(page: Page, folder: Path, smoke: bool) -> None:
    """All jobs, a row each."""
    if (why := peers([BASE])[1].get("hiera-transformer")) is not None:
        page.text(f"The official package is not measured (`hiera-transformer`): {why}.")
    page.text(
        "Random weights and clips, by turns in one process. Inference of ours is from bytes, in a "
        "model of the type, that of the official package from normalised clips in autocast; "
        "compiled inference is launched as CUDA graphs. A training step is forward, loss and "
        "backward in autocast, without the optimizer. Shares are of the product measured in this "
        "section. Peak memory is above the loaded model. First calls of compiled models are given "
        "without and with a filled cache (several models compile at once without)."
    )
    headers = ["work and model", "precision", "execution", "batch", "ours, clips/s", "official"]
    headers += ["ratio", "ms a call", "TFLOP/s", "share of the peak", "peak GiB, ours / official"]
    table = page.table(*headers, "first call s, ours / official")
    ahead = folder / COMPILED
    cold_sec = json.loads(ahead.read_text()) if ahead.exists() else {}
    rates = dict[str, float]()
    for job in SMOKE_JOBS if smoke else JOBS:
        rounds = 1 if smoke else ROUNDS
        rows, failed = measure(
            job.subjects, job.setting, rounds=rounds, peak_tflops=peak(job.precision)
        )
        print(json_text({"job": str(job), "rows": rows, "failed": failed}), flush=True)
        for failure in failed:
            page.failure(f"Not measured: {failure['model']}, {job}: {failure['cause']}")
        by_library = {row["library"]: row for row in rows}
        if (mine := by_library.get(OURS)) is None:
            continue
        rates[str(job)] = mine["clips_per_sec"]
        write_json(folder / RATES, rates)
        other = by_library.get("hiera")
        seconds = mine["batch_size"] / mine["clips_per_sec"]
        cold = [cold_sec.get(f"{job} {row['model']}", "?") for row in rows]
        first = [f"{c} and {row['first_call_sec']:.1f}" for c, row in zip(cold, rows, strict=True)]
        table.row(
            f"{job.work}, {job.model}",
            job.precision,
            job.execution,
            " / ".join(dict.fromkeys(str(row["batch_size"]) for row in rows)),
            f"{mine['clips_per_sec']:.4g}",
            f"{other['clips_per_sec']:.4g}" if other else "",
            f"{other['ours_is']:.2f}x" if other else "",
            f"{1e3 * seconds:.3g}",
            f"{mine['flops'] / seconds / 1e12:.3g}",
            f"{mine['model_flops_utilisation']:.0%}",
            " / ".join("?" if r["peak_gib"] is None else f"{r['peak_gib']:.2f}" for r in rows),
            "" if job.execution == "eager" else " / ".join(first),
        )


def compile_ahead(page: Page, folder: Path, smoke: bool) -> None:
    """Fills the compiler's cache in several processes, and notes how long first calls took.

    That the jobs are measured within the time depends on it: one after the other, compiling takes
    most of it.
    """
    jobs = [job for job in (SMOKE_JOBS if smoke else JOBS) if job.execution != "eager"]
    num_processes = 1
    if not smoke:  # what they need together must fit beside the tests
        memory = torch.cuda.get_device_properties(0).total_memory
        num_processes = 4 if memory > 120e9 else 2
    asked = [(job, subject.name) for job in jobs for subject in job.subjects]
    seconds: dict[str, float] = {}
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_processes, set_up, (smoke,)) as pool:
        for name, result in pool.imap_unordered(first_call, asked):
            if isinstance(result, float):
                seconds[name] = round(result, 1)
            else:  # the section "speed" meets and reports it again
                print(f"{name}: {result}", flush=True)
            write_json(folder / COMPILED, seconds)


def first_call(asked: tuple[Job, str]) -> tuple[str, float | str]:
    """The name of a row, and the seconds of its first call or why there is none."""
    job, name = asked
    (subject,) = (subject for subject in job.subjects if subject.name == name)
    try:
        call = prepare(subject, job.setting)
        start = time.perf_counter()
        call()
        synchronize(device())
        return f"{job} {name}", time.perf_counter() - start
    except Exception as error:
        return f"{job} {name}", f"{type(error).__name__}: {error}"
    finally:
        call = None  # the next model needs the memory
        torch.compiler.reset()
        if device() == "cuda":
            torch.cuda.empty_cache()
