"""Hiera beside the official code: seconds a step and peak memory, as ratios from one run.

    git clone https://github.com/facebookresearch/hiera ../hiera   # v0.1.4
    python tools/benchmark_model.py --official ../hiera [--model hiera_base_16x224] [--batch 1]

Both models get the same weights and input and run alternately in this process; times are medians.
Peak memory is measured in a process of its own for each: the high-water mark of the resident set
above the loaded model on a CPU, the allocator's peak on a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from hiera_video import create_model

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
WORK = ("forward", "step")


def build(which: str, args: argparse.Namespace) -> torch.nn.Module:
    if which == "official":
        return official(args.model, args)
    return create_model(args.model).to(args.device)


def official(name: str, args: argparse.Namespace) -> torch.nn.Module:
    """A model of the official package, which is no dependency."""
    sys.path.insert(0, args.official)
    import hiera

    return getattr(hiera, name)(pretrained=False).to(args.device)


def runner(
    model: torch.nn.Module, work: str, precision: str, args: argparse.Namespace
) -> Callable[[], torch.Tensor]:
    """One call of `work`; both models get logits out of it, the official one with its own head."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(args.batch, 3, 16, 224, 224, generator=generator).to(args.device)
    target = torch.zeros(args.batch, dtype=torch.long, device=args.device)
    dtype = PRECISIONS[precision]

    def autocast() -> torch.autocast:
        return torch.autocast(args.device, dtype=dtype, enabled=dtype is not None)

    def forward() -> torch.Tensor:
        with torch.inference_mode(), autocast():
            return model(x)

    def step() -> torch.Tensor:
        with autocast():
            logits = model(x)
        F.cross_entropy(logits.float(), target).backward()
        model.zero_grad(set_to_none=True)
        return logits.detach()

    model.train(work == "step")
    return forward if work == "forward" else step


def sync(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def time_pair(work: str, precision: str, args: argparse.Namespace) -> dict[str, float]:
    models = {which: build(which, args) for which in ("official", "ours")}
    weights = models["official"].state_dict()
    models["ours"].load_state_dict(
        {k: v.view(models["ours"].state_dict()[k].shape) for k, v in weights.items()}
    )
    calls = {which: runner(model, work, precision, args) for which, model in models.items()}
    seconds: dict[str, list[float]] = {which: [] for which in calls}
    for repeat in range(args.repeats + 1):
        for which, call in calls.items():
            sync(args.device)
            start = time.perf_counter()
            call()
            sync(args.device)
            if repeat:  # the first call warms up
                seconds[which].append(time.perf_counter() - start)
    return {which: statistics.median(values) for which, values in seconds.items()}


def told_by_child(program: str, task: list[str], args: argparse.Namespace) -> float:
    """The number that a new process prints, so that no model sees what another left behind."""
    command = [sys.executable, program, "--child", *task, "--official", args.official]
    command += ["--model", args.model, "--batch", str(args.batch), "--device", args.device]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def child(which: str, work: str, precision: str, args: argparse.Namespace) -> None:
    print_peak(runner(build(which, args), work, precision, args), args.device)


def print_peak(call: Callable[[], object], device: str) -> None:
    """Peak memory of a call, GiB above what there was before."""
    if device == "cpu":
        # The first call, since the allocator keeps what a call has freed. The mark starts anew.
        Path("/proc/self/clear_refs").write_text("5")
        before = memory_kib("VmRSS")
        call()
        print((memory_kib("VmHWM") - before) / 2**20)
    else:
        call()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        print((torch.cuda.max_memory_allocated() - before) / 2**30)


def memory_kib(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status)[1])  # type: ignore[index]


def arguments(description: str | None, child_words: int) -> argparse.Namespace:
    """Of the command line, which a program's children share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--official", required=True, help="folder of the cloned official repository"
    )
    parser.add_argument("--model", default="hiera_base_16x224")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", nargs=child_words, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments(__doc__, child_words=3)
    if args.child:
        child(*args.child, args)
        return
    print(f"{args.model}, batch {args.batch}, {args.device}, torch {torch.__version__}")
    print(f"{torch.get_num_threads()} threads; official / ours (ratio)")
    for work in WORK:
        for precision in PRECISIONS:
            seconds = time_pair(work, precision, args)
            gib = {
                which: told_by_child(__file__, [which, work, precision], args) for which in seconds
            }
            print(f"{work:8} {precision:5} {told(seconds, 's')}   {told(gib, 'GiB')}", flush=True)


def told(values: dict[str, float], unit: str) -> str:
    official, ours = values["official"], values["ours"]
    return f"{official:.3f} / {ours:.3f} {unit} ({official / ours:.2f}x)"


if __name__ == "__main__":
    main()
