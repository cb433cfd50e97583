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

import atexit
import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import cv2
import numpy as np
import torch

from hiera_video.runtime.messages import receive, send

NUM_JOBS = 2  # of a process, so that it need not wait for the next one
NUM_VALUES = 4  # that a process may send before the first of them is received
POLL_SEC = 1.0
GRACE_SEC = 10.0  # beyond the time that reading an item may take by itself

IDLE = -1.0  # in place of an item


@dataclass(frozen=True)
class Death:
    """Why an item has no result: the process that worked on it died or hung."""

    cause: str  # "crashed" or "hung"
    sentence: str
    seconds: float  # since the process began with the item


class Report(Protocol):
    """What a worker calls while it works on a job."""

    def working(self, item: int) -> None:
        """Notes that work on `item` of the job begins, or makes progress."""

    def value(self, value: Any) -> None:
        """Sends a part of the result; waits while the receiver is behind."""


Work = Callable[[Sequence[Any], Mapping[int, Death], Report], Any]
"""(items of a job, those that must be left out, report) -> the end of its result; picklable."""


@dataclass(eq=False)
class _Job:
    number: int
    items: Sequence[Any]
    deaths: dict[int, Death] = field(default_factory=dict)


@dataclass(eq=False)
class _Worker:
    """A process as seen from this one."""

    process: BaseProcess
    connection: socket.socket
    state: np.ndarray  # float64 [3]: item or IDLE, since when, time of the last progress
    room: Any  # semaphore: values that the process may still send
    jobs: deque[_Job] = field(default_factory=deque)  # the first one is worked on


def start_fork_server(module: str) -> None:
    """Lets the fork server import a module, which takes seconds, while the caller does more."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__", module])
    forkserver.ensure_running()


class Workers:
    """Does jobs in supervised processes; a context manager that ends them.

    Args:
        work: what a process does with a job.
        num_workers: number of processes.
        limit_sec: longest time that an item may take without progress, before it counts as hung.
    """

    def __init__(self, work: Work, num_workers: int, *, limit_sec: float) -> None:
        self.work, self.num_workers, self.limit_sec = work, num_workers, limit_sec
        start_fork_server(type(work).__module__)
        self._context = multiprocessing.get_context("forkserver")
        self._workers: list[_Worker] = []
        self._returned: deque[_Job] = deque()  # by processes that died
        self._closed = False
        atexit.register(self.close)  # multiprocessing would wait for the processes

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
        atexit.unregister(self.close)
        for worker in [*self._workers]:
            worker.process.kill()

    def results(self, jobs: Iterable[Sequence[Any] | None]) -> Iterator[tuple[int, Any] | None]:
        """Yields (number of the job, value) for each value that `work` sends and for its end.

        Jobs interleave, the values of one job are in order. None says that nothing has happened
        for a while.

        Args:
            jobs: the items of each job, taken when a process has room for it. None: not before
                another job has sent a value.

        Raises:
            RuntimeError: processes cannot be started.
            Exception: what `work` raised, with the trace of its process in a note.
        """
        waiting, numbers = iter(jobs), itertools.count()
        while not self._closed and self._assign(waiting, numbers):
            busy = {worker.connection: worker for worker in self._workers if worker.jobs}
            ready = wait(list(busy), timeout=POLL_SEC)
            if not ready:
                yield None
            for connection in ready:
                yield from self._receive(busy[connection])  # type: ignore[index]
            for worker in [w for w in self._workers if self._hangs(w)]:
                worker.process.kill()
                silence = time.monotonic() - worker.state[2]
                self._replace(
                    worker, "hung", f"made no progress for {silence:.0f} s and was killed"
                )

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
            with contextlib.suppress(OSError):  # it died: receiving from it will show it
                send(worker.connection, (job.items, job.deaths))

    def _receive(self, worker: _Worker) -> Iterator[tuple[int, Any]]:
        try:
            kind, value = receive(worker.connection)
        except (EOFError, OSError):
            worker.process.join()
            code = worker.process.exitcode
            how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
            self._replace(worker, "crashed", f"died with {how}")
            return
        number = worker.jobs[0].number
        if kind == "error":
            raise value
        if kind == "end":
            worker.jobs.popleft()
        else:
            worker.room.release()
        yield number, value

    def _hangs(self, worker: _Worker) -> bool:
        item, _, progress = worker.state
        if item == IDLE or time.monotonic() - progress < self.limit_sec + GRACE_SEC:
            return False
        return not wait([worker.connection], timeout=0)  # else it waits for us

    def _replace(self, worker: _Worker, cause: str, what: str) -> None:
        """Takes the jobs of a dead process back; its item in work is to be left out."""
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join()
        item, since, _ = worker.state.tolist()
        if worker.jobs and item != IDLE:
            worker.jobs[0].deaths[int(item)] = Death(
                cause,
                f"its decoding process {what}; leave the file out, "
                + ("allow more data.deadline_sec" if cause == "hung" else "or free memory"),
                time.monotonic() - since,
            )
        self._returned.extend(worker.jobs)

    def _start(self) -> _Worker:
        # Anonymous memory: nothing is left behind, whoever is killed.
        memory = self._context.RawArray(ctypes.c_double, [IDLE, 0.0, 0.0])
        room = self._context.Semaphore(NUM_VALUES)
        ours, theirs = socket.socketpair()
        process = self._context.Process(
            target=_serve, args=(theirs, memory, room, self.work), daemon=True
        )
        process.start()
        theirs.close()  # so that its death closes the connection
        state = np.frombuffer(memory)  # type: ignore[call-overload]
        self._workers.append(_Worker(process, ours, state, room))
        try:
            receive(ours)  # it has started: from here on, silence and death are an item's doing
        except EOFError:
            process.join()
            if not self._closed:
                raise RuntimeError(
                    f"decoding processes cannot start (exit code {process.exitcode}); see their "
                    "messages above"
                ) from None
        if self._closed:
            process.kill()
        return self._workers[-1]


def _serve(connection: socket.socket, memory: Any, room: Any, work: Work) -> None:
    """What a process does until its connection closes."""
    # Ctrl-C and SIGTERM reach the whole group of processes (SIGTERM under Slurm), but are the main
    # process's to handle: it needs this one until it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _exit_with_parent()
    # One process works with one thread: more would only compete for the cores.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    state = np.frombuffer(memory)
    report = _Reporter(connection, state, room)
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
                message = "error", error
            state[0] = IDLE
            send(connection, message)


class _Reporter:
    def __init__(self, connection: socket.socket, state: np.ndarray, room: Any) -> None:
        self._connection, self._state, self._room = connection, state, room

    def working(self, item: int) -> None:
        now = time.monotonic()
        if self._state[0] != item:
            self._state[1] = now
        self._state[2] = now
        self._state[0] = item

    def value(self, value: Any) -> None:
        self._room.acquire()
        send(self._connection, ("value", value))
        self._state[2] = time.monotonic()


def _exit_with_parent() -> None:
    """Even in the middle of a long read: a main process that was killed cannot end others."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
