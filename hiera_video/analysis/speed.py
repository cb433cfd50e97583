"""Measuring throughput and peak memory of several models in one run.

Models take turns within each round, so that changes in the speed of the machine affect all of them;
results are medians over rounds. A round consists of calls that take at least `MIN_ROUND_SEC`
together, with the device idle at both ends. Memory is the peak of a call above the loaded model: of
the allocator on a GPU, of the resident set of a separate process on a CPU.

Work is "inference" (forward, without gradients), "finetuning" (forward, cross entropy, backward) or
"pretraining" (forward of a masked autoencoder, its loss, backward), without an optimizer.
"""

import gc
import logging
import multiprocessing
import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.analysis.peers import OURS, Subject, ours
from hiera_video.models.inference import InferenceModel
from hiera_video.models.layers import Linear
from hiera_video.models.normalize import Normalize
from hiera_video.models.variants import KINETICS_MEAN, KINETICS_STD
from hiera_video.runtime.memory import is_full
from hiera_video.runtime.progress import Progress
from hiera_video.settings.training import Arithmetic

logger = logging.getLogger(__name__)

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_ROUND_SEC = 0.5
CLEAR_REFS = Path("/proc/self/clear_refs")
# Dense TFLOP/s of the data sheets: of tensor cores in half precision, of CUDA cores in float32.
PEAK_TFLOPS = {
    "A100": {"fp32": 19.5, "bf16": 312.0, "fp16": 312.0},
    "H100 80GB HBM3": {"fp32": 67.0, "bf16": 989.4, "fp16": 989.4},
    "H100 PCIe": {"fp32": 51.0, "bf16": 756.0, "fp16": 756.0},
    "H200": {"fp32": 67.0, "bf16": 989.4, "fp16": 989.4},
}


@dataclass(frozen=True)
class Setting:
    """The work of each model, and how it is done."""

    work: str
    precision: Arithmetic
    execution: str  # "eager" or "compiled"
    batch_size: int
    device: str

    def __str__(self) -> str:
        return f"{self.work}, {self.precision}, {self.execution}"


def measure(
    subjects: Sequence[Subject], setting: Setting, *, rounds: int, peak_tflops: float
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Measures all subjects in one setting.

    Args:
        rounds: number of rounds, after one that warms up.
        peak_tflops: peak of the device, TFLOP/s.

    Returns:
        Rows and failures of the report. A row has the `seconds` of a call in each round, and
        `first_call_sec`, in which a compiled model compiles; `peak_gib` above the loaded model,
        None if it cannot be measured; the `flops` of the products of a call, without those that
        kernels recompute; and as `ours_is` the speed of the same variant of this package, or of
        the first subject, relative to its own.
    """
    calls: dict[Subject, Callable[[], Any]] = {}
    rows: dict[Subject, dict[str, Any]] = {}
    failed = []

    def fail(subject: Subject, error: Exception) -> None:  # of any library; others are measured
        cause = f"{type(error).__name__}: {error}"
        logger.error("%s, %s: %s", subject.name, setting, cause)
        failed.append({"model": subject.name, "setting": str(setting), "cause": cause})

    torch.compiler.reset()  # it stops compiling a function after eight versions
    able = [subject for subject in subjects if subject.does(setting.work)]
    for subject in Progress(able, unit="model", leave=False):
        try:
            flops = flops_of_clip(subject, setting.work)
            calls[subject], fits, first_sec, peak_gib = fitting_call(subject, setting)
        except Exception as error:
            fail(subject, error)
            continue
        rows[subject] = {
            "model": subject.name,
            "library": subject.library,
            "clip": list(subject.clip),
            "top1": subject.top1,
            **vars(fits),
            "flops": fits.batch_size * flops,
            "first_call_sec": first_sec,
            "peak_gib": peak_gib,
            "seconds": [],
        }
    for _ in Progress(range(rounds), unit="round", leave=False):
        for subject, call in list(calls.items()):
            try:
                rows[subject]["seconds"].append(seconds_a_call(call, setting.device))
            except Exception as error:
                fail(subject, error)
                del calls[subject], rows[subject]
    for row in rows.values():
        median_sec = statistics.median(row["seconds"])
        row["clips_per_sec"] = row["batch_size"] / median_sec
        row["model_flops_utilisation"] = row["flops"] / median_sec / 1e12 / peak_tflops
    speeds = {row["model"]: row["clips_per_sec"] for row in rows.values()}
    for subject, row in rows.items():
        ours_per_sec = speeds.get(subject.variant or subjects[0].name)
        row["ours_is"] = None if ours_per_sec is None else ours_per_sec / row["clips_per_sec"]
    return list(rows.values()), failed


def fitting_call(
    subject: Subject, setting: Setting
) -> tuple[Callable[[], Any], Setting, float, float | None]:
    """Prepares and warms up a call, and halves the batch size until it fits into memory.

    Returns:
        The call, the setting with its batch size, the seconds of its first run, and its peak memory
        in GiB.

    Raises:
        MemoryError: a single clip does not fit.
    """
    call = None
    while True:
        try:
            with _memory_errors():
                peak_gib = peak_in_child(subject, setting) if setting.device == "cpu" else None
                call = prepare(subject, setting)
                start = time.perf_counter()
                call()
                synchronize(setting.device)
                first_sec = time.perf_counter() - start
                if setting.device == "cuda":
                    peak_gib = peak_on_gpu(call)
            return call, setting, first_sec, peak_gib
        except MemoryError:
            if setting.batch_size == 1:
                raise MemoryError("one clip does not fit into the memory") from None
        call = None
        gc.collect()
        if setting.device == "cuda":
            torch.cuda.empty_cache()
        setting = replace(setting, batch_size=setting.batch_size // 2)
        message = "%s, %s: out of memory, batch reduced to %d"
        logger.warning(message, subject.name, setting, setting.batch_size)


def prepare(subject: Subject, setting: Setting) -> Callable[[], Any]:
    """Builds the model; each call of the result does the work once.

    Inference of ours is that of `InferenceModel`, from bytes, in a model of the type; other models,
    and training, take normalised clips in autocast. Compiled inference is launched as CUDA graphs.
    """
    torch.manual_seed(0)
    model: Any = subject.build_for(setting.work).to(setting.device)
    if setting.work == "inference" and subject.library == OURS:
        return _inference_of_ours(model, subject, setting)
    model.train(setting.work != "inference")
    clips = torch.randn(setting.batch_size, *subject.clip, device=setting.device)
    labels = torch.zeros(setting.batch_size, dtype=torch.long, device=setting.device)
    has_graphs = setting.work == "inference" and setting.device == "cuda"
    mode = "reduce-overhead" if has_graphs else None
    run = model if setting.execution == "eager" else torch.compile(model, dynamic=False, mode=mode)
    dtype = AUTOCAST[setting.precision]
    autocast = partial(torch.autocast, setting.device, dtype=dtype, enabled=dtype is not None)

    def infer() -> Tensor:
        with torch.inference_mode(), autocast():
            return run(clips)

    def train() -> None:
        with autocast():
            output = run(clips)
            is_loss = setting.work == "pretraining"
            loss = output if is_loss else F.cross_entropy(output.float(), labels)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return infer if setting.work == "inference" else train


def _inference_of_ours(
    model: nn.Module, subject: Subject, setting: Setting
) -> Callable[[], Tensor]:
    inference = InferenceModel(
        model,
        Normalize(KINETICS_MEAN, KINETICS_STD),
        device=torch.device(setting.device),
        batch_size=setting.batch_size,
        precision=setting.precision,
        compile=setting.execution == "compiled",
    )
    channels, *size = subject.clip
    shape = (setting.batch_size, *size, channels)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=setting.device)
    return lambda: inference(clips)


def seconds_a_call(call: Callable[[], Any], device: str) -> float:
    """Mean time of a call in seconds, over calls that take `MIN_ROUND_SEC` together."""
    count, elapsed = 0, 0.0
    synchronize(device)
    start = time.perf_counter()
    while elapsed < MIN_ROUND_SEC:
        steps = max(1, count)  # doubled, so that the device is seldom synchronized
        for _ in range(steps):
            call()
        synchronize(device)
        count += steps
        elapsed = time.perf_counter() - start
    return elapsed / count


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


@cache
def flops_of_clip(subject: Subject, work: str) -> int:
    """FLOPs of products, 2 per multiply-add; a backward pass counts as two forward passes."""
    if subject.same_flops:
        assert subject.variant is not None
        return flops_of_clip(ours(subject.variant), work)
    model = subject.build_for(work).eval().to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *subject.clip, device="meta"))
    return counter.get_total_flops() * (1 if work == "inference" else 3)


def peak_tflops(device: str, precision: str) -> dict[str, Any]:
    """Peak `tflops`, TFLOP/s, of the device, and their `source`."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        for known, peaks in PEAK_TFLOPS.items():
            if known in name and "MIG" not in name and "NVL" not in name:  # those are slower
                return {"tflops": peaks[precision], "source": f"data sheet of {known}"}
    size = 2048 if device == "cpu" else 8192
    tflops = measured_tflops(device, AUTOCAST[precision] or torch.float32, size)
    return {"tflops": tflops, "source": f"measured, product of {size}x{size} matrices"}


def measured_tflops(device: str, dtype: torch.dtype, size: int) -> float:
    """TFLOP/s of the fastest of three products of square matrices of random numbers."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with torch.inference_mode():
        layer = Linear(size, size, bias=False, device=device, dtype=dtype)
        products = (lambda: a @ b, lambda: layer(a))  # MKL and oneDNN, in float32 on a CPU
        seconds = min(seconds_a_call(call, device) for _ in range(3) for call in products)
    return 2 * size**3 / seconds / 1e12


def peak_on_gpu(call: Callable[[], Any]) -> float:
    """Peak memory in GiB of a call that is not the first, above the memory before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def peak_in_child(subject: Subject, setting: Setting) -> float | None:
    """Peak memory in GiB of a first call in a new process, above the loaded model.

    None if it cannot be measured: on other systems than Linux, and if the first call compiles.

    Raises:
        MemoryError: memory is not sufficient, or the process was killed, as Linux does then.
        RuntimeError: the process ended for another reason.
    """
    if not CLEAR_REFS.exists() or setting.execution != "eager":
        return None
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, subject, setting, torch.get_num_threads())
    child = context.Process(target=_send_peak, args=arguments)
    child.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        child.join()
        if child.exitcode == -signal.SIGKILL:
            raise MemoryError from None
        message = f"the process that measures its memory ended with {child.exitcode}"
        raise RuntimeError(message) from None
    child.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _send_peak(sender: Connection, subject: Subject, setting: Setting, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    Path("/proc/self/oom_score_adj").write_text("1000")  # so that Linux kills this process first
    try:
        with _memory_errors():
            call = prepare(subject, setting)
            # The first call, because the allocator keeps memory that a call has freed.
            CLEAR_REFS.write_text("5")  # resets the peak
            before = _memory_kib("VmRSS")
            call()
            sender.send((_memory_kib("VmHWM") - before) / 2**20)
    except Exception as error:  # raised by the parent process
        sender.send(error)


def _memory_kib(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1])


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turns the errors that torch raises for insufficient memory into MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if is_full(error):
            raise MemoryError from None
        raise
