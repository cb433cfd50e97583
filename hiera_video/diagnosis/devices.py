"""The devices that torch finds: precisions that run on them, and kernels of attention."""

import os
import re
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from hiera_video.analysis.speed import AUTOCAST
from hiera_video.diagnosis.findings import MAX_TEXT, Finding, described
from hiera_video.diagnosis.model import known_clip, normalize, relative_error, tiny_model
from hiera_video.errors import counted
from hiera_video.models.attention import attend
from hiera_video.runtime.compiler import needed_for_compilation
from hiera_video.runtime.precision import in_hardware

GIB = 2**30
DRIVER = Path("/proc/driver/nvidia/version")
# Measured: 3e-7 in float32, 0.03 in bf16. TF32, which convolutions on a GPU use, has 10 bits.
MAX_ERROR = {"fp32": 0.01, "bf16": 0.2, "fp16": 0.2}
# q and k of base 16x224: windows, windows with pooled queries, and all tokens of a clip.
SHAPES = (
    ((392, 1, 64, 96), (392, 1, 64, 96)),
    ((98, 2, 16, 96), (98, 2, 64, 96)),
    ((1, 4, 1568, 96), (1, 4, 1568, 96)),
)
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


def found_devices() -> list[torch.device]:
    """The processor, and the GPUs that torch can use."""
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    names += ["mps"] * torch.backends.mps.is_available()
    return [torch.device(name) for name in names]


def torch_build() -> Finding:
    """What torch was built for, and the driver; a GPU that torch cannot use is a warning."""
    with warnings.catch_warnings(record=True) as caught:  # they say why, at the first call only
        warnings.simplefilter("always")
        is_usable = torch.cuda.is_available()
        cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    cuda, driver = torch.version.cuda or torch.version.hip, _driver()
    data = {"cuda": cuda, "driver": driver}
    text = f"{torch.__version__}, {counted(torch.get_num_threads(), 'thread')}"
    if cuda is None:
        text += ", built without CUDA"
    else:
        text += f", built for {'CUDA' if torch.version.cuda else 'ROCm'} {cuda}"
        if cudnn:
            step = 10_000 if cudnn >= 90_000 else 1000  # 91002 is 9.10.2, but 8902 is 8.9.2
            data["cudnn"] = f"{cudnn // step}.{cudnn % step // 100}.{cudnn % 100}"
            text += f", cuDNN {data['cudnn']}"
    text += f", driver {driver}" if driver else ", no NVIDIA driver" if torch.version.cuda else ""
    if is_usable or not driver:
        return Finding("torch", text, data=data)
    if cuda is None:
        advice = "install a build of torch for CUDA, see https://pytorch.org"
        return Finding("torch", f"{text}: it cannot use the GPU", "warning", advice, data)
    reasons = [str(warning.message) for warning in caught] or ["it finds no device"]
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:  # "" and -1 hide all
        reasons.append(f"CUDA_VISIBLE_DEVICES is {visible!r}")
    reason = " ".join("; ".join(dict.fromkeys(reasons)).split())[:MAX_TEXT]
    text += f": it cannot use the GPU ({reason})"
    advice = "nvidia-smi must work; take a driver for this CUDA, or a torch for the driver"
    return Finding("torch", text, "warning", advice, data)


def _driver() -> str | None:
    try:
        match = re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", DRIVER.read_text())
    except OSError:
        return None
    return match[1] if match else None


def device(chosen: torch.device) -> Finding:
    """A GPU's name, memory and compute capability; which precisions give the right logits."""
    head, data = [], {}
    if chosen.type == "cuda":
        properties = torch.cuda.get_device_properties(chosen)
        free, total = torch.cuda.mem_get_info(chosen)
        capability = f"{properties.major}.{properties.minor}"
        data = {"name": properties.name, "bytes": total, "free_bytes": free}
        data["compute_capability"] = capability
        head = [properties.name, f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free"]
        head += [f"compute capability {capability}"]
    found = {precision: _precision(chosen, precision) for precision in AUTOCAST}
    failed = {name: text for name, text in found.items() if text.startswith("fails")}
    text = "; ".join([*head, *(f"{name} {how}" for name, how in found.items())])
    data["precisions"] = found
    name = str(chosen)
    if not failed:
        return Finding(name, text, data=data)
    if "fp32" in failed:
        advice = "install a build of torch for this device, or take device=cpu"
        return Finding(name, text, "failed", advice, data)
    if "bf16" in failed:
        return Finding(name, text, "warning", "precision=fp32, in training train.precision", data)
    return Finding(name, text, data=data)  # fp16 is taken by nothing but where bf16 is missing


def _precision(chosen: torch.device, precision: str) -> str:
    """How this precision runs on the device."""
    dtype = AUTOCAST[precision]
    try:
        model = tiny_model().to(chosen)
        clips = normalize(model).to(chosen)(known_clip().to(chosen))
        with (
            torch.inference_mode(),
            torch.autocast(chosen.type, dtype=dtype, enabled=dtype is not None),
        ):
            off = relative_error(model(clips))
    except Exception as error:
        return f"fails: {described(error)}"
    if not off <= MAX_ERROR[precision]:  # NaN is no match
        return f"fails: wrong results, off by {off:.2g} of their deviation"
    is_native = in_hardware(dtype, chosen) if dtype else None
    return {True: "in hardware", False: "emulated", None: "runs"}[is_native]


def attention(chosen: torch.device) -> Finding:
    """Which kernels take the shapes of the model, and whether `attend` is right."""
    name = "attention" if chosen.type == "cpu" else f"attention, {chosen}"
    wrong, texts = [], []
    data: dict[str, list[str]] = {}
    for dtype, precision in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        try:
            error = _error_of_attend(chosen, dtype)
        except Exception as failure:
            wrong.append(f"{precision} fails: {described(failure)}")
            continue
        if not error <= (0.05 if dtype == torch.bfloat16 else 0.005):  # TF32 has 10 bits
            wrong.append(f"{precision} wrong: off by {error:.2g}")
        if chosen.type == "mps":
            how = "by Metal"
        elif chosen.type == "cpu" and dtype == torch.bfloat16:
            how = "by the package's own products"
        else:
            kernels = [kernel for kernel in KERNELS if _takes_all(KERNELS[kernel], chosen, dtype)]
            data[precision] = kernels
            how = f"fused ({', '.join(kernels)})" if kernels else "not fused: slow, more memory"
        texts.append(f"{precision} {how}")
    text = "; ".join([*wrong, *texts])
    if wrong:
        return Finding(name, text, "failed", "install another build of torch", {"kernels": data})
    if "not fused" in text:
        return Finding(name, text, "warning", "pip install --upgrade torch", {"kernels": data})
    return Finding(name, text, data={"kernels": data})


def _error_of_attend(chosen: torch.device, dtype: torch.dtype) -> float:
    """Largest difference from the formula, in float64."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 1, 64, 96, generator=generator).to(dtype) for _ in range(3))
    rows = attend(q.to(chosen), k.to(chosen), v.to(chosen)).cpu().double()
    q, k, v = q.double(), k.double(), v.double()
    right = (q @ k.mT / 96**0.5).softmax(-1) @ v
    return float((rows - right).abs().max())


def _takes_all(kernel: SDPBackend, chosen: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel takes all shapes."""
    with warnings.catch_warnings(), sdpa_kernel(kernel), torch.inference_mode():
        warnings.simplefilter("ignore")  # they say why a kernel does not
        for queries, keys in SHAPES:
            q = torch.zeros(queries, device=chosen, dtype=dtype)
            k = torch.zeros(keys, device=chosen, dtype=dtype)
            try:
                F.scaled_dot_product_attention(q, k, k)
            except RuntimeError:
                return False
    return True


def compiler(has_gpu: bool) -> Finding:
    """What torch.compile needs. It is not tried: the first compilation takes up to a minute."""
    needed = needed_for_compilation(has_gpu)
    if missing := [what for what, is_there in needed.items() if not is_there]:
        advice = "install it for compile=true; nothing else needs it"
        return Finding(
            "torch.compile", f"{', '.join(missing)} is missing or does not work", "missing", advice
        )
    return Finding("torch.compile", f"{', '.join(needed)} found; not tried, which takes a minute")
