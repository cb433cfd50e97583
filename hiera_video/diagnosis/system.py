"""The system around the package: versions, processor, memory, and folders."""

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import hiera_video
from hiera_video.diagnosis.findings import Finding
from hiera_video.runtime import machine
from hiera_video.runtime.environment import git_commit

GIB = 2**30
WEIGHTS = 3 * GIB  # of free space: the largest published weights are 2.7 GB
FEW = GIB // 10
SHARED = Path("/dev/shm")


def versions() -> list[Finding]:
    """The package, Python and the system. No name of the machine or the user."""
    commit = git_commit()
    own = hiera_video.__version__ + (f", git {commit[:12]}" if commit else "")
    python = f"{platform.python_version()} ({platform.python_implementation()})"
    python += " in a virtual environment" if sys.prefix != sys.base_prefix else ""
    system = f"{platform.system()} {platform.release()} on {platform.machine()}"
    libc = " ".join(platform.libc_ver())
    return [
        Finding("hiera_video", own, data={"version": hiera_video.__version__, "commit": commit}),
        Finding("Python", python, data={"version": platform.python_version()}),
        Finding("system", f"{system}, {libc}" if libc.strip() else system),
    ]


def processor() -> Finding:
    """Its name, and the cores that are used by default."""
    usable, affinity, quota = machine.usable_cores(), machine.affinity(), machine.cpu_quota()
    data = {"usable": usable, "affinity": affinity, "total": os.cpu_count(), "quota": quota}
    text = f"{machine.processor_name()}; {usable} of {os.cpu_count()} cores usable"
    if quota is not None:
        text += f" (affinity {affinity}, cgroup quota {quota:g})"
    return Finding("processor", f"{text}, as many decode by default", data=data)


def memory() -> Finding:
    """Of the machine, and what the cgroup allows."""
    found, limit = machine.memory(), machine.memory_limit()
    if found is None:
        return Finding("memory", "the system does not say")
    total, available = found
    data = {"bytes": total, "available_bytes": available, "limit_bytes": limit}
    text = f"{total / GIB:.1f} GiB, {available / GIB:.1f} GiB of it available"
    if limit is not None and limit < total:
        text += f"; the cgroup allows {limit / GIB:.1f} GiB"
    return Finding("memory", text, data=data)


def shared_memory(num_gpus: int, folder: Path = SHARED) -> Finding:
    """Decoding processes pass arrays in anonymous files, which its size does not limit."""
    try:
        size = shutil.disk_usage(folder).total
    except OSError:
        return Finding(str(folder), "not there, and not needed by decoding processes")
    shown = f"{size / GIB:.1f} GiB" if size >= GIB else f"{size >> 20} MiB"
    data = {"bytes": size}
    if num_gpus > 1 and size < GIB:
        text = f"{shown}; decoding processes do not need it, but training on several GPUs does"
        advice = "in Docker: --shm-size=1g or --ipc=host"
        return Finding(str(folder), text, "warning", advice, data)
    return Finding(str(folder), f"{shown}; decoding processes do not need it", data=data)


def temporary() -> Finding:
    return _folder("temporary files", Path(tempfile.gettempdir()), "set TMPDIR", FEW)


def outputs() -> Finding:
    advice = "run commands in another folder, or give output_dir or run_dir"
    return _folder("outputs", Path(os.curdir), advice, FEW)  # its name is not for others


def weights() -> Finding:
    """Where fetched weights are kept: torch.hub's folder."""
    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return _folder("weights cache", folder, "set TORCH_HOME", WEIGHTS)


def hub_weights() -> Finding:
    """Where huggingface_hub keeps weights."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return Finding("hub cache", "huggingface_hub is not installed", "missing")
    from huggingface_hub.constants import HF_HUB_CACHE

    return _folder("hub cache", Path(HF_HUB_CACHE), "set HF_HOME", WEIGHTS)


def _folder(name: str, folder: Path, advice: str, needed: int) -> Finding:
    """Whether a file can be made in the folder, or where the folder would be made.

    Args:
        needed: free bytes that are enough.
    """
    shown = "the current folder" if folder == Path() else str(folder)
    if shown.startswith("~"):
        text = f"{shown}: the home folder is unknown, so this would lie in the current folder"
        return Finding(name, text, "warning", f"set HOME; or {advice}")
    try:
        absolute = folder.absolute()
        there = next(f for f in (absolute, *absolute.parents) if f.exists())
        free = shutil.disk_usage(there).free
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        text = f"{shown}: cannot be written ({error.strerror})"
        return Finding(name, text, "warning", f"make it writable, or {advice}")
    data = {"free_bytes": free}
    text = f"{shown}: {free / GIB:.1f} GiB free"
    if free < needed:
        return Finding(name, text, "warning", f"make room, or {advice}", data)
    return Finding(name, f"{text}, writable", data=data)
