"""Where the time of a step goes, by kernels; and micro-benchmarks that decide about new ones."""

import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from gpu_checks.machine import device
from gpu_checks.page import Page, Table
from gpu_checks.speeds import BASE, SMALL, Job
from hiera_video.analysis.speed import prepare, seconds_a_call, synchronize
from hiera_video.models.patches import product_of_patches

CALLS, TOP = 3, 12
PROFILED = [
    Job(BASE, work, "bf16", execution, batch_size)
    for work, batch_size in (("inference", 32), ("finetuning", 16), ("pretraining", 32))
    for execution in ("eager", "compiled")
]
# The first that matches.
KINDS = {
    "attention": r"flash|fmha|sdpa|attention|softmax",
    "product": r"gemm|nvjet|cutlass|cublas|xmma|splitk|conv(?!ert)|addmm|::mm$|::bmm$|::linear",
    "norm": r"layer_?norm|gamma_?beta|welford|var_mean",
    "copy, cast": r"copy|memcpy|memset|cast|cat|contiguous|clone|transpose|gather|scatter|index",
}
ANNOTATIONS = ("Torch-Compiled", "##", "CompiledFunction", "ProfilerStep", "autograd::")


def profiles(page: Page, folder: Path, smoke: bool) -> None:
    """Kernels of base: shares by kind, and the longest."""
    jobs = [Job(SMALL, "inference", "fp32", "eager", 1)] if smoke else PROFILED
    page.text(f"{jobs[0].model}: times of kernels, without gaps between them, of {CALLS} calls.")
    summary = page.table("work", "execution", "batch", "ms a call", *KINDS, "other")
    for job in jobs:
        kernels = kernels_of(job)
        if not kernels:
            page.failure(f"{job}: the profiler saw no kernels.")
            continue
        total = sum(seconds for _, seconds, _ in kernels)
        by_kind: dict[str, float] = defaultdict(float)
        for name, seconds, _ in kernels:
            by_kind[kind_of(name)] += seconds
        shares = [f"{by_kind[kind] / total:.0%}" for kind in (*KINDS, "other")]
        summary.row(job.work, job.execution, job.batch_size, f"{1e3 * total:.2f}", *shares)
        page.text(f"{job.work}, {job.execution}, batch {job.batch_size}, {job.precision}:")
        table = page.table("kernel", "kind", "calls", "ms a call", "share")
        for name, seconds, count in kernels[:TOP]:
            shown = name.replace("|", "/")[:90]
            share = f"{seconds / total:.1%}"
            table.row(f"`{shown}`", kind_of(name), count, f"{1e3 * seconds:.3f}", share)


def kernels_of(job: Job) -> list[tuple[str, float, int]]:
    """Name, seconds and number of each kernel in a call; on a CPU of each operator."""
    (subject,) = job.subjects
    call = prepare(subject, job.setting)
    for _ in range(3):
        call()
    synchronize(device())
    is_cuda = device() == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(CALLS):
            call()
        synchronize(device())
    found = []
    for event in profiler.key_averages():
        if is_cuda and event.device_type.name != "CUDA":
            continue
        microseconds = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        is_annotation = getattr(event, "is_user_annotation", False)
        if microseconds > 0 and not is_annotation and not event.key.startswith(ANNOTATIONS):
            found.append((event.key, microseconds / 1e6 / CALLS, event.count // CALLS))
    return sorted(found, key=lambda kernel: -kernel[1])


def kind_of(kernel: str) -> str:
    """By its name. What the compiler fused has the names of its neighbours, too."""
    name = re.sub(r"nocast|with(out)?cast", "", kernel, flags=re.IGNORECASE)
    is_fused = re.match(r"triton_(poi|per|red)_", name)
    for kind, pattern in KINDS.items():
        if is_fused and kind in ("attention", "product"):
            continue
        if re.search(pattern, name, re.IGNORECASE):
            others = re.search(r"gelu|add|mul|erf|div|sub|sum|mean|max|softmax", name)
            return "other" if is_fused and kind == "copy, cast" and others else kind
    return "other"


# Candidates.


def candidates(page: Page, folder: Path, smoke: bool) -> None:
    """Ways to compute the same: times, errors against float32, relative to the first."""
    page.text(
        "bfloat16; the error is the largest difference from the first way in float64, over its "
        "standard deviation."
    )
    table = page.table("what", "way", "shape", "ms", "relative", "error")
    torch.manual_seed(0)
    for compare in (bias_gradient, norms, windows_of_64, windows_of_16, new_sizes, patches):
        compare(table, 0.002 if smoke else 1.0)
        torch.compiler.reset()


def ways(
    table: Table, what: str, calls: dict[str, Callable[..., Tensor]], inputs: list[Tensor]
) -> None:
    """A row for each way; one that cannot run says so in its row, and why in the log."""
    shape = " ".join("x".join(map(str, x.shape)) for x in inputs[:2])
    first_sec = exact = None
    for name, call in calls.items():
        try:
            if exact is None:
                exact = call(*(x.double() for x in inputs))
            error = f"{((call(*inputs) - exact).abs().max() / exact.std()).item():.1e}"
            seconds = statistics.median(
                seconds_a_call(lambda call=call: call(*inputs), device()) for _ in range(3)
            )
        except Exception as failure:
            print(f"{what}, {name}: {failure}", flush=True)
            reason = str(failure).splitlines()[0][:60] if str(failure) else type(failure).__name__
            table.row(what, name, shape, f"fails: {reason}", "", "")
            continue
        first_sec = first_sec or seconds
        table.row(what, name, shape, f"{1e3 * seconds:.3f}", f"{seconds / first_sec:.2f}", error)


def random(*shape: int, scale: float = 1.0) -> Tensor:
    """bfloat16; the first axis scaled."""
    first = max(2, round(shape[0] * scale))
    return torch.randn(first, *shape[1:], device=device(), dtype=torch.bfloat16)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def bias_gradient(table: Table, scale: float) -> None:
    """Of fc1 in stage 1, at 16 clips."""
    grad = random(401408, 384, scale=scale)
    calls = {
        "sum(0)": lambda g: g.sum(0),
        "product with ones": lambda g: g.new_ones(1, len(g)) @ g,
        "sum(0), compiled": compiled(lambda g: g.sum(0)),
    }
    ways(table, "bias gradient", calls, [grad])


def norms(table: Table, scale: float) -> None:
    """After the residual's addition, stages 1 and 3 at 32 clips."""

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return F.layer_norm(x + y, x.shape[-1:], eps=1e-6)

    def in_float32(x: Tensor, y: Tensor) -> Tensor:
        return F.layer_norm((x + y).float(), x.shape[-1:], eps=1e-6)

    for tokens, dim in ((802816, 96), (50176, 384)):
        inputs = [random(tokens, dim, scale=scale) for _ in range(2)]
        calls = {
            "bf16": plain,
            "float32, as under autocast": in_float32,
            "bf16, compiled": compiled(plain),
        }
        ways(table, "addition and layer_norm", calls, inputs)


def attend_plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v


def by_backend(*backends: SDPBackend) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.dtype == torch.float64:
            return attend_plainly(q, k, v)
        with sdpa_kernel(list(backends)):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def attention(table: Table, windows: int, heads: int, tokens: int, scale: float) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    shape = (windows, heads, tokens, 96)
    inputs = [random(*shape, scale=scale) for _ in range(3)]
    calls: dict[str, Callable[..., Tensor]] = {
        "torch's choice": by_backend(
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.MATH,
        ),
        "cuDNN": by_backend(SDPBackend.CUDNN_ATTENTION),
        "flash": by_backend(SDPBackend.FLASH_ATTENTION),
        "memory-efficient": by_backend(SDPBackend.EFFICIENT_ATTENTION),
        "flex_attention, compiled": compiled(flex_attention),
        "products and softmax": attend_plainly,
        "products and softmax, compiled": compiled(attend_plainly),
    }
    ways(table, f"attention over {tokens} tokens", calls, inputs)


def windows_of_64(table: Table, scale: float) -> None:
    """Stage 1 at 32 clips."""
    attention(table, 12544, 1, 64, scale)


def windows_of_16(table: Table, scale: float) -> None:
    """Stage 2 at 32 clips."""
    attention(table, 12544, 2, 16, scale)


def new_sizes(table: Table, scale: float) -> None:
    """First calls with other numbers of windows: whether incomplete batches should be padded."""
    first_sec = None
    backends = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    for name, backend in backends.items():
        attend, seconds, shape = by_backend(backend), [], ""
        for missing in range(4):  # the first also loads the library
            q, k, v = (random(12544, 1, 64, 96, scale=scale)[missing:] for _ in range(3))
            shape = "x".join(map(str, q.shape))
            synchronize(device())
            start = time.perf_counter()
            try:
                attend(q, k, v)
            except RuntimeError as error:
                print(f"{name}: {error}", flush=True)
                break
            synchronize(device())
            seconds.append(time.perf_counter() - start)
        row = "attention over 64 tokens, first call of a size", name, shape
        if len(seconds) < 4:
            table.row(*row, "fails", "", "")
            continue
        median_sec = statistics.median(seconds[1:])
        first_sec = first_sec or median_sec
        table.row(*row, f"{1e3 * median_sec:.3f}", f"{median_sec / first_sec:.2f}", "")


def patches(table: Table, scale: float) -> None:
    """The patch embedding of 32 clips."""
    clips = random(32, 3, 16, 224, 224, scale=scale)
    weight = random(96, 3, 3, 7, 7)

    def convolution(x: Tensor, w: Tensor) -> Tensor:
        return F.conv3d(x, w, stride=(2, 4, 4), padding=(1, 3, 3))

    def product(x: Tensor, w: Tensor) -> Tensor:
        return product_of_patches(x, w, None, (2, 4, 4), (1, 3, 3))

    calls = {
        "conv3d": convolution,
        "product over patches": product,
        "product over patches, compiled": compiled(product),
    }
    ways(table, "patch embedding", calls, [clips, weight])
