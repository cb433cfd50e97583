"""In which numbers a model computes, by what the device has in hardware."""

import torch

from hiera_video.errors import ConfigError
from hiera_video.runtime.machine import processor_features
from hiera_video.settings.training import Arithmetic, Precision

DTYPES: dict[Arithmetic, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,
}
# Instruction sets of processors with products of these numbers: x86-64 (two), ARM.
PRODUCTS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
    torch.float16: {"avx512_fp16", "asimdhp"},
}


def in_hardware(dtype: torch.dtype, device: torch.device) -> bool | None:
    """Whether the device multiplies such numbers; None where the system does not say."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return dtype == torch.float16 or has_bf16
    features = processor_features() if device.type == "cpu" else set()
    return not PRODUCTS[dtype].isdisjoint(features) if features else None


def arithmetic(precision: Precision, device: torch.device, key: str = "precision") -> Arithmetic:
    """What `precision` is on this device; "auto" is the fastest kind that the device has.

    That is bf16 where it is in hardware, else fp16 on CUDA, else fp32. `key` is its setting.

    Raises:
        ConfigError: the device has no such arithmetic.
    """
    is_cuda = device.type == "cuda"
    has_bf16 = in_hardware(torch.bfloat16, device)
    if precision == "auto":
        precision = "bf16" if has_bf16 else "fp16" if is_cuda else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            f"{key} is fp16: torch has no fast float16 products for processors; take bf16, fp32 or "
            "auto"
        )
    if is_cuda and not has_bf16 and precision in ("bf16", "tf32"):
        raise ConfigError(
            f"{key} is {precision}: {torch.cuda.get_device_name(device)} has no such products; "
            "take fp16, fp32 or auto"
        )
    if precision == "tf32" and not is_cuda:
        raise ConfigError(
            f"{key} is tf32: only NVIDIA's GPUs have it, and the device is {device.type}; take "
            "fp32, bf16 or auto"
        )
    return precision


def set_tf32(precision: Arithmetic) -> None:
    """Lets products of float32 on CUDA use TF32 with "tf32" alone, in the whole process.

    For convolutions, torch's default is TF32.
    """
    is_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_tf32


def autocast(device: torch.device, precision: Arithmetic) -> torch.autocast:
    """Runs operators in the type of `precision` where torch holds that to be safe."""
    dtype = DTYPES[precision]
    is_float32 = dtype == torch.float32
    return torch.autocast(device.type, dtype=None if is_float32 else dtype, enabled=not is_float32)
