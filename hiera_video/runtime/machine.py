"""What the machine grants to this process: cores and memory. Nothing here needs torch."""

import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
NO_LIMIT = 2**60  # bytes; cgroups of version 1 write a number above it where there is no limit


def usable_cores() -> int:
    """CPU cores that this process may use: its affinity, and the quota of its cgroup.

    A quota is what `docker run --cpus` and a Kubernetes limit set. Part of a core counts as one.
    """
    quota = cpu_quota()
    cores = affinity()
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def affinity() -> int:
    """CPU cores that the scheduler lets this process run on."""
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return granted or 1


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPU time per time that the cgroup grants, or None without a limit.

    Args:
        root: where proc and sys are.
    """
    quotas = []
    for folder in _cgroups("cpu", root):
        words = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us"),  # version 1
            _read(folder / "cpu.cfs_period_us"),
        ]
        if all(word.isdigit() for word in words):  # not "max", not -1, not missing
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the cgroup grants, or None without a limit; `root` as for `cpu_quota`."""
    limits = []
    for folder in _cgroups("memory", root):
        word = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if word.isdigit() and int(word) < NO_LIMIT:
            limits.append(int(word))
    return min(limits, default=None)


def memory(root: Path = ROOT) -> tuple[int, int] | None:
    """Bytes of memory of the machine, and available ones; None where the system does not say."""
    found = re.findall(r"^Mem(?:Total|Available):\s*(\d+) kB", _read(root / "proc/meminfo"), re.M)
    return (1024 * int(found[0]), 1024 * int(found[1])) if len(found) == 2 else None


def processor_name() -> str:
    """The name of the processor."""
    match = re.search(r"model name\s*: (.*)", _read(ROOT / "proc/cpuinfo"))
    return match[1] if match is not None else platform.processor() or platform.machine()


def processor_features() -> set[str]:
    """Names of instruction sets as Linux lists them; empty on other systems."""
    match = re.search(r"^(?:flags|Features)\s*: (.*)", _read(ROOT / "proc/cpuinfo"), re.M)
    return set(match[1].split()) if match is not None else set()


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's cgroup and of those around it."""
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = top / controller if controllers else top
        inner = base / path.lstrip("/")
        yield from (f for f in (inner, *inner.parents) if f.is_relative_to(base))


def _read(path: Path) -> str:
    """The text of a file of the system, or "" if there is none that can be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
