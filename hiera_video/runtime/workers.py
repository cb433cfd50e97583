"""Processes under supervision: one that dies or hangs costs the item that it was working on.

A native decoder can crash, loop forever with the interpreter's lock held, or be killed when memory
is short. Each process therefore has a connection of its own and shares no lock and no queue with
another. It writes into shared memory which item of its job it works on, and since when. A process
that dies is noticed by its closed connection, one that hangs by its silence, and it is killed.
Another process then takes over its jobs and is given the items that are to be left out.

Processes come from a fork server: a fork of this process would copy the threads and locks of CUDA
and OpenMP in an undefined state, and a spawned process would import torch each time.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import cv2
import numpy as np
import torch

from hiera_video.errors import UserError
from hiera_video.files import temporary_folder
from hiera_video.runtime.logging import setup_logging
from hiera_video.runtime.messages import receive, send
from hiera_video.runtime.signals import leave_stops_to_parent

NUM_JOBS = 2  # of a process, so that it need not wait for the next one
NUM_VALUES = 4  # that a process may send before the first of them is received
NUM_ATTEMPTS = 3  # to start a process, or at a job whose processes die without an item in work
POLL_SEC = 1.0
GRACE_SEC = 10.0  # beyond the time that reading an item may take by itself

IDLE = -1.0  # in place of an item
UNKNOWN = 255  # exit code of a process whose fork server was killed
UNGUARDED = 64  # exit code of a process in which the program wanted to start processes again


class UnguardedError(UserError, RuntimeError):
    """A program that starts decoding processes does so without `if __name__ == "__main__":`."""


@dataclass(frozen=True)
class Death:
    """Why an item has no result: the process that worked on it died or hung."""

    cause: str  # "crashed" or "hung"
    sentence: str
    seconds: float  # since the process began with the item


class Report(Protocol):
    """What a worker calls while it works on a job."""

    def working(self, item: int) -> None:
        """Notes that work on `item` of the job begins, or makes progress.

        One more than the last item: what follows concerns no single item.
        """

    def value(self, value: Any) -> None:
        """Sends a part of the result; waits while the receiver is behind."""


Work = Callable[[Sequence[Any], Mapping[int, Death], Report], Any]
"""(items of a job, those that must be left out, report) -> the end of its result; picklable."""


@dataclass(eq=False)
class _Job:
    number: int
    items: Sequence[Any]
    deaths: dict[int, Death] = field(default_factory=dict)
    attempts: int = 0  # that ended without an item in work


@dataclass(eq=False)
class _Worker:
    """A process as seen from this one."""

    process: BaseProcess
    connection: socket.socket
    state: np.ndarray  # float64 [4]: item or IDLE, since when, last progress, values received
    jobs: deque[_Job] = field(default_factory=deque)  # the first one is worked on


def start_fork_server(module: str) -> None:
    """Lets the fork server import a module, which takes seconds, while the caller does more."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A decoding process imports the program's main module, and that came here: it would start
        # processes without end. The process that started this one knows what to say.
        os._exit(UNGUARDED)
    temporary_folder()  # for its socket
    # Not `__main__`, which the server imports in some releases of Python only: processes do so.
    multiprocessing.get_context("forkserver").set_forkserver_preload([module])
    # With its modules half imported, the server would answer Ctrl-C with a trace. It and the
    # processes that it starts leave signals of the terminal to this one, which ends them.
    resource_tracker.ensure_running()  # the server needs it, and its start unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers:
    """Does jobs in supervised processes; a context manager that ends them.

    Args:
        work: what a process does with a job.
        num_workers: number of processes.
        limit_sec: longest time that an item may take without progress, before it counts as hung.
    """

    def __init__(self, work: Work, num_workers: int, *, limit_sec: float) -> None:
        self.work, self.num_workers, self.limit_sec = work, num_workers, limit_sec
        start_fork_server(getattr(work, "func", work).__module__)  # of a partial, its function's
        self._context = multiprocessing.get_context("forkserver")
        self._workers: list[_Worker] = []
        self._returned: deque[_Job] = deque()  # by processes that died
        self._has_started = self._closed = False
        self._looked_at = 0.0  # when this process was last known not to be stopped itself
        # Before multiprocessing waits for its children.
        self._at_exit = util.Finalize(None, self.close, exitpriority=0)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for worker in self._workers:
            worker.connection.close()
            worker.process.join()
        self._workers.clear()

    def close(self) -> None:
        """Kills the processes."""
        self._closed = True
        self._at_exit.cancel()
        for worker in [*self._workers]:
            worker.process.kill()

    def results(self, jobs: Iterable[Sequence[Any] | None]) -> Iterator[tuple[int, Any] | None]:
        """Yields (number of the job, value) for each value that `work` sends and for its end.

        Jobs interleave. The values of a job are in order, and are repeated if its process died
        before the end. None is yielded now and then, so that the caller can stop.

        Args:
            jobs: the items of each job, taken when a process has room for it. None: not before
                another job has sent a value.

        Raises:
            UnguardedError: the program is not guarded by `if __name__ == "__main__":`.
            RuntimeError: processes cannot be started, or die again and again without an item.
            Exception: what `work` raised, with the trace of its process in a note.
        """
        waiting, numbers = iter(jobs), itertools.count()
        while not self._closed and self._assign(waiting, numbers):
            busy = {worker.connection: worker for worker in self._workers if worker.jobs}
            before = time.monotonic()
            ready = wait(list(busy), timeout=POLL_SEC)
            if time.monotonic() - before > 2 * POLL_SEC:  # Ctrl-Z stops all processes alike
                self._looked_at = time.monotonic()
            yield None
            for connection in ready:
                yield from self._receive(busy[connection])  # type: ignore[index]
            for worker in [w for w in self._workers if self._hangs(w)]:
                limit_sec = self.limit_sec + GRACE_SEC
                self._replace(worker, "hung", f"made no progress for {limit_sec:g} s")

    def _assign(self, waiting: Iterator[Sequence[Any] | None], numbers: Iterator[int]) -> bool:
        """Gives jobs to processes that have room, starting them as needed; whether any works."""
        while True:
            worker = min(self._workers, key=lambda w: len(w.jobs), default=None)
            can_start = len(self._workers) < self.num_workers
            if worker is not None and len(worker.jobs) >= (1 if can_start else NUM_JOBS):
                worker = None
            if worker is None and not can_start:
                return True
            if self._returned:
                job = self._returned.popleft()
            else:
                items = next(waiting, None)
                if items is None:
                    return any(w.jobs for w in self._workers)
                job = _Job(next(numbers), items)
            worker = worker or self._start()
            worker.jobs.append(job)
            with contextlib.suppress(ConnectionError):  # it died: receiving from it will show it
                send(worker.connection, (job.items, job.deaths))

    def _receive(self, worker: _Worker) -> Iterator[tuple[int, Any]]:
        try:
            kind, value = receive(worker.connection)
        except (EOFError, ConnectionError):
            self._replace(worker, "crashed", f"died with {_end_of(worker.process)}")
            return
        number = worker.jobs[0].number
        if kind == "value":
            worker.state[3] += 1
        else:
            worker.jobs.popleft()
        if kind == "error":
            raise value
        yield number, value

    def _hangs(self, worker: _Worker) -> bool:
        item, _, progress, _ = worker.state
        silence_sec = time.monotonic() - max(progress, self._looked_at)
        if item == IDLE or silence_sec < self.limit_sec + GRACE_SEC:
            return False
        return not wait([worker.connection], timeout=0)  # else it waits for us

    def _replace(self, worker: _Worker, cause: str, what: str) -> None:
        """Takes the jobs of a dead or hanging process back; its item in work is to be left out."""
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        if worker.jobs:
            job, item = worker.jobs[0], int(worker.state[0])
            if 0 <= item < len(job.items) and item not in job.deaths:
                more_time = "raise deadline_sec (data.deadline_sec in commands)"
                advice = more_time if cause == "hung" else "free memory"
                job.deaths[item] = Death(
                    cause,
                    f"its decoding process {what}; leave the file out, or {advice}",
                    time.monotonic() - worker.state[1],
                )
            else:  # an idle process may be killed, but not always
                job.attempts += 1
                if job.attempts == NUM_ATTEMPTS:
                    raise RuntimeError(
                        f"{NUM_ATTEMPTS} decoding processes in a row {what}, but not while they "
                        "read a video; see their messages above; memory may be short"
                    )
        self._returned.extend(worker.jobs)

    def _start(self) -> _Worker:
        for _ in range(NUM_ATTEMPTS):
            # Anonymous memory: nothing is left behind, whichever process is killed.
            memory = self._context.RawArray(ctypes.c_double, [IDLE, 0.0, 0.0, 0.0])
            ours, theirs = socket.socketpair()
            process = self._context.Process(
                target=_serve, args=(theirs, memory, self.work), daemon=True
            )
            try:
                process.start()
            except (EOFError, ConnectionError):
                end = "the server that starts them died"
                ours.close()
                time.sleep(POLL_SEC)  # it is replaced once the system has reported its end
                continue
            finally:
                theirs.close()  # so that the death of the process closes the connection
            state = np.frombuffer(memory)  # type: ignore[call-overload]
            worker = _Worker(process, ours, state)
            self._workers.append(worker)
            ready: list[Any] = []
            while not (ready or self._closed):
                ready = wait([ours], POLL_SEC)
            if self._closed:
                process.kill()  # which `close` may not have known
                return worker
            with contextlib.suppress(EOFError, ConnectionError):
                receive(ours)  # it has started: from here on, an item is to blame for its death
                self._has_started = True
                return worker
            self._workers.remove(worker)
            ours.close()
            end = _end_of(process)
            if process.exitcode == UNGUARDED:
                raise UnguardedError(
                    "each decoding process runs this program once more, up to this point: put what "
                    'it does below `if __name__ == "__main__":`, or take num_workers=0'
                )
            if not self._has_started and process.exitcode in range(UNKNOWN):
                break  # an error of the program itself, which would be repeated
        raise RuntimeError(
            f"decoding processes cannot start ({end}); see their messages above. Data sets and "
            "transforms must be defined in a module; or take num_workers=0"
        )


def _end_of(process: BaseProcess) -> str:
    process.join()
    code = process.exitcode
    if code == UNKNOWN:
        return "an unknown exit code"
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _serve(connection: socket.socket, memory: Any, work: Work) -> None:
    """What a process does until its connection closes."""
    # They reach the whole group of processes, but the main process needs this one until it has
    # saved.
    leave_stops_to_parent()
    _exit_with_parent()
    setup_logging(quiet=True)
    # One process works with one thread: more would only compete for the cores.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    state = np.frombuffer(memory)
    report = _Reporter(connection, state)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # not needed anymore
        send(connection, "started")
        while True:
            items, deaths = receive(connection)
            report.working(0)
            try:
                message: tuple[str, Any] = "end", work(items, deaths, report)
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                error.add_note(traceback.format_exc())
                message = "error", _picklable(error)
            state[0] = IDLE
            send(connection, message)


class _Reporter:
    def __init__(self, connection: socket.socket, state: np.ndarray) -> None:
        self._connection, self._state, self._num_sent = connection, state, 0

    def working(self, item: int) -> None:
        now = time.monotonic()
        if self._state[0] != item:
            self._state[1] = now
        self._state[2] = now
        self._state[0] = item

    def value(self, value: Any) -> None:
        while self._num_sent - self._state[3] >= NUM_VALUES:
            self._state[2] = time.monotonic()  # waiting for the receiver is not silence
            time.sleep(0.002)
        send(self._connection, ("value", value))
        self._num_sent += 1
        self._state[2] = time.monotonic()


def _picklable(error: Exception) -> Exception:
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class of errors has made of pickling
        return RuntimeError(traceback.format_exc())


def _exit_with_parent() -> None:
    """Even in the middle of a long read: a main process that was killed cannot end others."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
