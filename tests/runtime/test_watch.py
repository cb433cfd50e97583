"""The others name a frozen process and end; they wait for one that takes long."""

import multiprocessing
import os
import signal
import sys
import time

import torch

from hiera_video.runtime import watch
from hiera_video.runtime.distributed import barrier, process_group, sum_over_processes
from hiera_video.runtime.logging import setup_logging
from tests.late_store import LateStore

NUM_PROCESSES = 3
LIMIT_SEC = 6.0  # a machine under load does not run a process for seconds


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
        time.sleep(1.5 * LIMIT_SEC)
    barrier()
    steps(process, 3)


def late_at_the_end(process):
    barrier()
    if process.rank == 1:
        time.sleep(1.5 * LIMIT_SEC)


FROZEN = {stopped: 1, stopped_outside_of_steps: 0, hanging_before_a_step: 2}
LATE = [late_between_steps, late_at_the_end]


def run(rank, port, store_is_ours, log, work):
    sys.stderr = log.open("w", buffering=1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM_PROCESSES)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(store_is_ours)
    setup_logging()
    with process_group("cpu") as process:
        work(process)


class Run:
    """Processes that do `work`; the store is in this process, as in torchrun's, or in rank 0's."""

    def __init__(self, work, folder, store_is_ours=True):
        folder.mkdir()
        self.logs = [folder / str(rank) for rank in range(NUM_PROCESSES)]
        self.store, context = LateStore(), multiprocessing.get_context("fork")
        self.processes = [
            context.Process(target=run, args=(rank, self.store.port, store_is_ours, log, work))
            for rank, log in enumerate(self.logs)
        ]
        if not store_is_ours:
            self.store.give_up_port()
        for process in self.processes:
            process.start()

    def ends(self, frozen=None):
        """Exit codes and stderr of all processes but the frozen one, and the name of that."""
        others = [rank for rank in range(NUM_PROCESSES) if rank != frozen]
        try:
            for rank in others:
                self.processes[rank].join(60)
            codes = [self.processes[rank].exitcode for rank in others]
        finally:
            for process in self.processes:
                process.kill()
        name = None if frozen is None else f"rank {frozen} (process {self.processes[frozen].pid} on"
        return codes, [self.logs[rank].read_text() for rank in others], name


def test_a_frozen_process_is_named_and_one_that_takes_long_is_waited_for(tmp_path, monkeypatch):
    """All at the same time, since they do little but wait."""
    monkeypatch.setattr(watch, "LIMIT_SEC", LIMIT_SEC)
    with_the_store = Run(stopped_outside_of_steps, tmp_path / "store", store_is_ours=False)
    runs = {work: Run(work, tmp_path / work.__name__) for work in [*FROZEN, *LATE]}
    for of_run in runs.values():
        of_run.store.start()

    codes, errors, _ = with_the_store.ends(0)
    assert codes == [1, 1], errors
    assert all("the process with the store (rank 0)" in error for error in errors)
    for work, frozen in FROZEN.items():
        codes, errors, name = runs[work].ends(frozen)
        assert codes == [1, 1], (work, errors)
        for error in errors:
            assert name in error
            assert error.count("rank ") == 1
    for work in LATE:
        codes, errors, _ = runs[work].ends()
        assert (codes, errors) == ([0] * NUM_PROCESSES, [""] * NUM_PROCESSES), work
