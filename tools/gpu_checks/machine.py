"""Sections that other programs measure: the machine, the tests, and `hiera-video benchmark`."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import hiera_video
from gpu_checks.page import OutOfTime, Page
from hiera_video.analysis import speed
from hiera_video.analysis.speed import AUTOCAST, measured_tflops, seconds_a_call
from hiera_video.models import inference
from hiera_video.runtime.machine import processor_name

ROOT = Path(hiera_video.__file__).parents[1]
LAST_WORDS_SEC = 5  # less than the GRACE of tools/gpu_check.sh


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def set_up(smoke: bool) -> None:
    """What all processes of the check have in common."""
    if smoke:
        torch.compile = lambda model, **_: model  # the compiler takes a minute
        inference.check_compiler = lambda *_: None
        speed.MIN_ROUND_SEC = 0.001
        speed.CLEAR_REFS = Path("/nowhere")  # no process to measure memory in
        return
    speed.MIN_ROUND_SEC = 0.25
    # The same float32 for all models; the key of the compiler's cache has it, too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def environment(page: Page, folder: Path, smoke: bool) -> None:
    """Versions, and the peaks that shares of other sections are of."""
    table = page.table("", "")
    table.row("processor", f"{processor_name()}, {len(os.sched_getaffinity(0))} cores")
    table.row("Python, torch", f"{sys.version.split()[0]}, {torch.__version__}")
    if not smoke:
        properties = torch.cuda.get_device_properties(0)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        capability = f"{properties.major}.{properties.minor}"
        table.row("device", f"{properties.name}, {memory}, compute capability {capability}")
        table.row("driver, highest clock", driver() or "unknown")
        table.row("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
    size = 256 if smoke else 8192
    table = page.table("peak", "measured")
    for precision in ("fp32", "bf16") if smoke else ("bf16", "fp16", "fp32"):
        tflops = measured_tflops(device(), AUTOCAST[precision] or torch.float32, size)
        table.row(f"{precision} product of {size}x{size}, TFLOP/s", f"{tflops:.4g}")
    if not smoke:
        torch.backends.cuda.matmul.allow_tf32 = True
        tflops = measured_tflops(device(), torch.float32, size)
        table.row(f"tf32 product of {size}x{size}, TFLOP/s", f"{tflops:.4g}")
    source = torch.ones(2**20 if smoke else 2**30, device=device())  # 4 GiB
    target = torch.empty_like(source)
    seconds = min(seconds_a_call(lambda: target.copy_(source), device()) for _ in range(3))
    rate = 2 * source.nbytes / seconds / 1e9
    table.row("copy, GB/s read and written", f"{rate:.4g}")


def driver() -> str:
    """What nvidia-smi says, where it is installed."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def tests(page: Page, folder: Path, smoke: bool) -> None:
    """`pytest -m gpu`, of tests/gpu and of the files that mark such tests."""
    has_marker = re.compile(r"mark\.gpu\b")
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    found = [path for path in found if has_marker.search(path.read_text()) or "gpu" in path.parts]
    found.sort(key=lambda path: path.name != "test_models.py")  # which says the most comes first
    line = ["pytest", "-m", "gpu", "-v", "-rfE", "--durations=5", "-o", "addopts="]
    line += ["--import-mode=importlib", "-p", "no:cacheprovider"]
    line += [str(path.relative_to(ROOT)) for path in found]
    variables = {} if smoke else {"HIERA_VIDEO_REQUIRE_GPU": "1"}
    lines: list[str] = []
    try:
        command = [sys.executable, "-m", *line]
        code = run(command, lines.append, variables, stderr=subprocess.STDOUT)
    except OutOfTime:
        page.failure(f"Stopped before the end:\n\n{fenced(failures_in(lines) + lines[-12:])}")
        raise
    page.text(f"`{' '.join(line[:3])}`: {lines[-1].strip('= ') if lines else 'no output'}")
    durations = [text for text in lines if re.match(r"[\d.]+s (call|setup)", text)]
    if durations:
        page.text(fenced(durations))
    if code:
        page.failure(fenced(failures_in(lines) or lines[-12:]))


def failures_in(lines: Sequence[str]) -> list[str]:
    return [text for text in lines if text.startswith(("FAILED", "ERROR"))]


def peers(page: Page, folder: Path, smoke: bool) -> None:
    """`hiera-video benchmark --peers`: first what the article compares, then the other models."""
    quick = ["precisions=[fp16]", "rounds=2", "work=[inference]"]
    steps = ["precisions=[bf16]", "rounds=2", "work=[pretraining]"]
    others = ["precisions=[bf16]", "rounds=1", "work=[inference]"]
    lines = [
        ["hiera_large_16x224", "--only", "mvit_v2_l", *quick, "batch_sizes=[8,32]"],
        ["hiera_large_224", "--only", "mvitv2_large", *quick, "batch_sizes=[32,128]"],
        ["hiera_base_16x224", "--only", "dense", *steps, "batch_sizes=[32]"],
        ["hiera_base_16x224", *others, "batch_sizes=[8]"],
        ["hiera_base_224", *others, "batch_sizes=[64]"],
    ]
    if smoke:
        quick = ["precisions=[fp32]", "rounds=1", "device=cpu"]
        lines = [["hiera_tiny_224", "--only", "resnet50", *quick, "work=[inference]"]]
    for line in lines:
        line = ["benchmark", *line[:1], "--peers", *line[1:]]
        shown = " ".join(f"'{word}'" if "[" in word else word for word in line)
        page.text(f"`hiera-video {shown}`")
        output: list[str] = []
        try:
            code = run([sys.executable, "-m", "hiera_video", *line], output.append)
        finally:
            page.text("\n".join(output).strip())
        if code:
            page.failure(f"It ended with {code}; the log of this section says why.")


def run(
    command: list[str],
    on_line: Callable[[str], object],
    variables: Mapping[str, str] | None = None,
    **options: Any,
) -> int:
    """The exit code of a program whose output is printed and given away.

    When the time of the section is over, it is interrupted, and has a few seconds to say what it
    found.
    """

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            on_line(line.rstrip())

    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | dict(variables or {}),
        stdout=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            read()
        except OutOfTime:
            process.send_signal(signal.SIGINT)
            signal.alarm(LAST_WORDS_SEC)  # again: others may hold the pipe open
            with contextlib.suppress(OutOfTime):
                read()
            signal.alarm(0)
            process.kill()
            raise
        except BaseException:
            process.kill()
            raise
    return process.returncode


def fenced(lines: list[str]) -> str:
    return "\n".join(["```text", *lines, "```"])
