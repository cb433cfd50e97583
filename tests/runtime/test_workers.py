"""Supervised processes: results, and what the death of a process costs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import pytest

from hiera_video.files import temporary_folder
from hiera_video.runtime import workers
from hiera_video.runtime.workers import Workers


class Unpicklable(Exception):
    def __init__(self, what, why):
        super().__init__(f"{what} {why}")


@dataclass(frozen=True)
class Double:
    """Sends each item, then returns all of them doubled; some items are fatal."""

    def __call__(self, items, deaths, report):
        done = []
        for i, item in enumerate(items):
            report.working(i)
            if i in deaths:
                done.append(deaths[i].cause)
                continue
            if item == "exit":
                os._exit(7)
            if item == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if item == "hang":
                time.sleep(1e6)
            if item == "slow":
                time.sleep(1.5)
            if item == "raise":
                raise ValueError("an item of no use")
            if item == "raise what cannot be pickled":
                raise Unpicklable("an item", "of no use")
            if item == "big":
                done.append("x" * 500_000)
                continue
            report.value(item)
            done.append(item * 2)
        report.working(len(items))
        if "exit at the end" in items:
            os._exit(7)
        return done


class HearsCtrlC:
    """Whether the process of a job takes SIGINT."""

    def __call__(self, items, deaths, report):
        return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_ctrl_c_is_left_to_the_process_that_started_the_others():
    """While the server imports modules, it would answer with a trace."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with Workers(HearsCtrlC(), 1, limit_sec=60.0) as pool:
        (hears,) = (value for result in pool.results([[0]]) if result for _, value in [result])
    assert not hears
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def gather(jobs, num_workers=2, limit_sec=60.0):
    ends = {}
    values = {i: [] for i in range(len(jobs))}
    with Workers(Double(), num_workers, limit_sec=limit_sec) as pool:
        for result in pool.results(jobs):
            if result is None:
                continue
            number, value = result
            if isinstance(value, list):
                ends[number] = value
            else:
                values[number].append(value)
    return ends, values


@pytest.mark.parametrize("num_workers", [1, 3])
def test_each_job_ends_once_with_its_values_in_order(num_workers):
    jobs = [list(range(i, 2 * i)) for i in range(1, 9)]
    ends, values = gather(jobs, num_workers)
    assert ends == {i: [2 * item for item in job] for i, job in enumerate(jobs)}
    assert values == dict(enumerate(jobs))


@pytest.mark.parametrize("fatal", ["exit", "kill"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_death_costs_one_item(fatal, num_workers):
    jobs = [[1, 2], [3, fatal, 4], [5], [fatal, fatal], [6, 7]]
    ends, _ = gather(jobs, num_workers)
    assert ends == {0: [2, 4], 1: [6, "crashed", 8], 2: [10], 3: ["crashed"] * 2, 4: [12, 14]}


def test_a_process_that_hangs_is_killed_and_one_that_is_slow_is_not(monkeypatch):
    monkeypatch.setattr(workers, "GRACE_SEC", 1.0)
    ends, _ = gather([[1, "hang", 2], ["slow", "slow"], [3]], limit_sec=2.0)
    assert ends == {0: [2, "hung", 4], 1: ["slowslow"] * 2, 2: [6]}


@pytest.mark.parametrize("pauses", [{1}, {1, 2, 3}])
def test_a_receiver_that_is_late_does_not_make_a_process_hang(monkeypatch, pauses):
    monkeypatch.setattr(workers, "GRACE_SEC", 0.5)
    received = []
    with Workers(Double(), 1, limit_sec=0.0) as pool:
        for result in pool.results([list(range(10))]):
            if result is not None:
                received.append(result[1])
                time.sleep(1.5 if len(received) in pauses else 0)
    assert received == [*range(10), [2 * i for i in range(10)]]


def test_processes_that_were_all_stopped_do_not_hang(monkeypatch):
    monkeypatch.setattr(workers, "GRACE_SEC", 0.5)
    monkeypatch.setattr(workers, "POLL_SEC", 0.3)
    with Workers(Double(), 1, limit_sec=2.0) as pool:
        results = pool.results([["slow", "slow"]])
        next(results)
        (worker,) = pool._workers
        wait = workers.wait

        def stopped(connections, timeout):
            """As after Ctrl-Z and `fg`."""
            monkeypatch.setattr(workers, "wait", wait)
            os.kill(worker.process.pid, signal.SIGSTOP)
            time.sleep(3.5)
            os.kill(worker.process.pid, signal.SIGCONT)
            return []

        monkeypatch.setattr(workers, "wait", stopped)
        ends = [value for _, value in filter(None, results) if isinstance(value, list)]
    assert ends == [["slowslow", "slowslow"]]


def test_what_work_raises_is_raised_with_its_trace():
    with pytest.raises(ValueError, match="an item of no use") as caught:
        gather([[1], ["raise"]])
    assert "__call__" in caught.value.__notes__[0]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_death_that_no_item_explains_is_an_error(num_workers):
    jobs = [[1], [2, "exit at the end"], [3]]
    with pytest.raises(RuntimeError, match="3 decoding processes in a row died with exit code 7"):
        gather(jobs, num_workers)


def test_an_error_that_cannot_be_pickled():
    with pytest.raises(RuntimeError, match="Unpicklable: an item of no use"):
        gather([["raise what cannot be pickled"]])


def test_a_job_that_cannot_be_sent_is_an_error(monkeypatch):
    """Else the process would be waited for, without a job."""

    def fail(connection, message):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(workers, "send", fail)
    with pytest.raises(OSError, match="Too many open files"):
        gather([[1]])


def test_large_jobs_and_large_results():
    ends, _ = gather([["big", "x" * 300_000] for _ in range(6)], 1)
    assert {len(end[0]) for end in ends.values()} == {500_000}


def test_a_job_may_wait_for_another():
    seen = []

    def jobs():
        yield [1]
        while not seen:
            yield None
        yield [2]

    with Workers(Double(), 2, limit_sec=60) as pool:
        for result in pool.results(jobs()):
            seen.append(result)
    assert [result for result in seen if result] == [(0, 1), (0, [2]), (1, 2), (1, [4])]


def test_processes_end_with_their_context():
    with Workers(Double(), 2, limit_sec=60) as pool:
        next(pool.results([[i] for i in range(8)]))
        processes = [worker.process for worker in pool._workers]
        assert processes
    assert all(not process.is_alive() for process in processes)


def test_a_process_that_is_idle_may_die():
    with Workers(Double(), 1, limit_sec=60) as pool:
        assert list(filter(None, pool.results([[1]])))[-1] == (0, [2])
        os.kill(pool._workers[0].process.pid, signal.SIGKILL)
        assert list(filter(None, pool.results([[2]])))[-1] == (0, [4])


def test_processes_that_cannot_start():
    """Otherwise every item of a list would be recorded as one that crashes."""

    class Fatal(Double):
        def __reduce__(self):
            return os._exit, (3,)  # as it is unpickled

    with pytest.raises(RuntimeError, match="cannot start"), Workers(Fatal(), 1, limit_sec=1) as p:
        list(p.results([[1]]))


def die_once(path):
    """What unpickling DiesOnce calls."""
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Double()


@dataclass(frozen=True)
class DiesOnce(Double):
    """Kills the first process that it is sent to."""

    path: Path

    def __reduce__(self):
        return die_once, (self.path,)


def test_the_first_process_may_be_killed_as_it_starts(tmp_path):
    with Workers(DiesOnce(tmp_path / "died"), 1, limit_sec=60) as pool:
        assert list(filter(None, pool.results([[1]])))[-1] == (0, [2])
    assert (tmp_path / "died").exists()


def test_the_fork_server_may_be_killed_while_a_process_starts(monkeypatch):
    connect, killed = forkserver.connect_to_new_process, []

    def dying(descriptors):
        if killed:
            return connect(descriptors)
        killed.append(forkserver._forkserver._forkserver_pid)
        os.kill(killed[0], signal.SIGSTOP)  # so that it does not start the process
        ends = connect(descriptors)
        os.kill(killed[0], signal.SIGKILL)
        return ends

    monkeypatch.setattr(forkserver, "connect_to_new_process", dying)
    assert gather([[1]], num_workers=1) == ({0: [2]}, {0: [1]})
    assert killed


def run_program(path, guard):
    """Runs a program that uses some of the results of workers and ends."""
    path.write_text(
        "from tests.runtime.test_workers import Double, Workers\n"
        "from hiera_video.runtime.prefetch import prefetch\n"
        f"if {guard}:\n"
        "    pool = Workers(Double(), 2, limit_sec=60)\n"
        "    results = prefetch(pool.results([[i] for i in range(100)]), 1)\n"
        "    print(next(results) is not None)\n"
    )
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_program_may_leave_workers_half_used(tmp_path):
    done = run_program(tmp_path / "program.py", "__name__ == '__main__'")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_program_without_a_guard_is_told_so(tmp_path):
    done = run_program(tmp_path / "program.py", "True")
    assert (done.returncode, done.stdout) == (1, "")
    *trace, last = done.stderr.splitlines()
    assert len(trace) < 10
    assert 'program.py", line 6, in <module>' in "".join(trace)
    assert "UnguardedError: " in last
    assert 'below `if __name__ == "__main__":`, or take num_workers=0' in last


def test_the_fork_server_leaves_nothing_that_is_not_marked():
    """Its socket lies in a folder that the next process removes if this one is killed."""
    workers.start_fork_server(__name__)
    folder = temporary_folder()
    assert list(folder.glob("listener-*"))
    assert list(folder.glob("*.mark"))
