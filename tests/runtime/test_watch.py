"""The others name a frozen process and end; they wait for one that takes long."""

import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch
from torch.distributed import TCPStore

from hiera_video.runtime import watch
from hiera_video.runtime.distributed import barrier, process_group, sum_over_processes
from hiera_video.runtime.logging import setup_logging

NUM_PROCESSES = 3
LIMIT_SEC = 2.0


def steps(process, number):
    for _ in range(number):
        process.watch.step += 1
        sum_over_processes(torch.ones(1))


def stopped(process):
    steps(process, 3)
    if process.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    steps(process, 1)


def stopped_outside_of_steps(process):
    if process.rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    barrier()


def hanging_before_a_step(process):
    """As for data on a file system that does not answer."""
    steps(process, 3)
    if process.rank == 2:
        time.sleep(100)
    steps(process, 1)


def late_between_steps(process):
    steps(process, 3)
    if process.rank == 1:
        time.sleep(2 * LIMIT_SEC)
    barrier()
    steps(process, 3)


def early(process):
    if process.rank == 1:
        time.sleep(2 * LIMIT_SEC)


def run(rank, port, store_is_ours, log, work):
    sys.stderr = log.open("w", buffering=1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM_PROCESSES)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(store_is_ours)
    setup_logging()
    with process_group("cpu") as process:
        work(process)


def run_all(work, folder, monkeypatch, frozen=None, store_is_ours=True):
    """Exit codes and stderr of all processes but the frozen one, and the process ids.

    The store is in this process, as in torchrun's, or in that of rank 0.
    """
    monkeypatch.setattr(watch, "LIMIT_SEC", LIMIT_SEC)
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    port = store.port
    if not store_is_ours:
        del store  # which frees its port
    logs = [folder / str(rank) for rank in range(NUM_PROCESSES)]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=run, args=(rank, port, store_is_ours, log, work))
        for rank, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    others = [rank for rank in range(NUM_PROCESSES) if rank != frozen]
    try:
        for rank in others:
            processes[rank].join(30)
        codes = [processes[rank].exitcode for rank in others]
    finally:
        for process in processes:
            process.kill()
    return codes, [logs[rank].read_text() for rank in others], [p.pid for p in processes]


@pytest.mark.parametrize(
    ("work", "frozen"), [(stopped, 1), (stopped_outside_of_steps, 0), (hanging_before_a_step, 2)]
)
def test_a_frozen_process_is_named_by_the_others(work, frozen, tmp_path, monkeypatch):
    codes, errors, pids = run_all(work, tmp_path, monkeypatch, frozen)
    assert codes == [1, 1], errors
    for error in errors:
        assert f"rank {frozen} (process {pids[frozen]} on " in error
        assert error.count("rank ") == 1


def test_a_frozen_process_with_the_store_is_named_by_the_others(tmp_path, monkeypatch):
    codes, errors, _ = run_all(stopped_outside_of_steps, tmp_path, monkeypatch, 0, False)
    assert codes == [1, 1], errors
    assert all("the process with the store (rank 0)" in error for error in errors)


@pytest.mark.parametrize("work", [late_between_steps, early])
def test_a_process_that_takes_long_is_waited_for(work, tmp_path, monkeypatch):
    codes, errors, _ = run_all(work, tmp_path, monkeypatch)
    assert (codes, errors) == ([0] * NUM_PROCESSES, [""] * NUM_PROCESSES)
