"""The memory of a device, and what to say when it is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hiera_video.errors import UserError
from hiera_video.runtime.machine import memory, memory_limit

if TYPE_CHECKING:
    import torch

GIB = 2**30
# Of torch, on a GPU, in its library and on a CPU.
MESSAGES = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")


def is_full(error: RuntimeError) -> bool:
    """Whether torch raised the error because memory was not sufficient."""
    return any(message in str(error) for message in MESSAGES)


def memory_of(device: torch.device) -> int | None:
    """Bytes of the memory of a device, on a CPU those that this process may use; None: unknown."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    found = memory()
    limits = [limit for limit in (memory_limit(), found and found[0]) if limit is not None]
    return min(limits, default=None)


def where(device: torch.device) -> str:
    """The device and its memory, in words."""
    size = memory_of(device)
    return f"{device}" if size is None else f"{device} ({size / GIB:.1f} GiB)"


@contextmanager
def batches_that_fit(settings: Any, device: torch.device | None = None) -> Iterator[None]:
    """Turns an error of full memory into a UserError that names the batch size to take.

    Args:
        settings: of a command that has `views.batch_size` or `batch_size`; with others, the error
            stays as it is.
        device: of the model. None: the GPU in use, else the CPU.
    """
    try:
        yield
    except RuntimeError as error:
        views = getattr(settings, "views", None)
        key, section = ("batch_size", settings) if views is None else ("views.batch_size", views)
        size = getattr(section, "batch_size", None)
        if size is None or not is_full(error):
            raise
        if device is None:
            import torch

            is_cuda = isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available()
            device = torch.device("cuda", torch.cuda.current_device()) if is_cuda else None
        place = f" on {where(device)}" if device is not None else ""
        advice = f"set {key}={size // 2}"
        if size == 1:
            advice = "take a smaller model, or another device"
        raise UserError(
            f"out of memory{place} with {key}={size}, so many in a forward pass: {advice}"
        ) from error
