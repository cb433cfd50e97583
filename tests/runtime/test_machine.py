"""What a cgroup grants, read from files as the kernel writes them."""

import os

import pytest

from hiera_video.data.loader import num_workers
from hiera_video.runtime import machine
from hiera_video.settings.video import Decoding


def system(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def test_limits_of_version_2_are_the_smallest_of_all_groups_around_the_process(tmp_path):
    root = system(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/task",
            "sys/fs/cgroup/pod/cpu.max": "250000 100000",
            "sys/fs/cgroup/pod/memory.max": str(3 * 2**30),
            "sys/fs/cgroup/pod/task/cpu.max": "max 100000",
            "sys/fs/cgroup/pod/task/memory.max": str(4 * 2**30),
        },
    )
    assert machine.cpu_quota(root) == 2.5
    assert machine.memory_limit(root) == 3 * 2**30


def test_limits_of_version_1_in_a_container_that_sees_its_group_as_the_top(tmp_path):
    root = system(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**31),
        },
    )
    assert machine.cpu_quota(root) == 4
    assert machine.memory_limit(root) == 2**31


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"},
        {
            "proc/self/cgroup": "2:cpu:/\n4:memory:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    ],
)
def test_no_limit(files, tmp_path):
    assert machine.cpu_quota(system(tmp_path, files)) is None
    assert machine.memory_limit(tmp_path) is None


def test_memory_of_the_machine(tmp_path):
    text = "MemTotal:       2000 kB\nMemFree:  1 kB\nMemAvailable:    500 kB"
    assert machine.memory(system(tmp_path, {"proc/meminfo": text})) == (2_048_000, 512_000)
    assert machine.memory(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.5, 1), (2.5, 3), (100.0, 8)])
def test_a_quota_bounds_the_number_of_decoding_processes(quota, cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert machine.usable_cores() == cores
    assert num_workers(Decoding(), 1) == cores
    assert num_workers(Decoding(), 2) == max(1, cores // 2)
    assert num_workers(Decoding(num_workers=5), 2) == 5
