"""Decoding processes under supervision: one that dies or hangs costs the video it was reading.

A native decoder can crash, loop for ever with the interpreter's lock held, or be killed for want of
memory, so each process works on one video at a time, owns a pipe and a block of shared memory, and
shares no lock and no queue with anybody. It writes windows into free slots of its block and says so
through the pipe; the slot comes back when the window has been copied. A process without a free slot
waits: that is all the backpressure there is. Silence for longer than a read may take means that it
hangs: it is killed. A dead process is noticed by its closed pipe. Either way another one takes its
place.

Processes come from a fork server: forking this process would copy the threads and locks of CUDA and
OpenMP in whatever state they are, and a spawned one would import torch for seconds at each
replacement.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from hiera_video.extraction.windows import Crops, WindowSampler, stream_windows
from hiera_video.video.open import OpenVideo
from hiera_video.video.reader import VideoError

NUM_SLOTS = 4  # windows that a process may be ahead
SIGN_OF_LIFE_SEC = 1.0
GRACE_SEC = 10.0  # beyond the reader's own deadline, which ends whatever it can end by itself

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A video to read; `index` tells it from others."""

    index: int
    path: str


@dataclass(frozen=True)
class Window:
    """Window `n` of a video. `views` is overwritten after the next event."""

    index: int
    n: int
    views: UInt8[np.ndarray, "S T H W C"]


@dataclass(frozen=True)
class Read:
    """The end of a video: all its windows have been told."""

    index: int
    start_sec: np.ndarray  # float64 [N]
    end_sec: np.ndarray  # float64 [N]
    facts: dict[str, Any]  # about the video, as JSON can hold them
    decode_sec: float
    transform_sec: float


@dataclass(frozen=True)
class Unreadable:
    """The end of a video that could not be read, maybe after some windows."""

    index: int
    cause: str  # one of the causes of `VideoError`, or "crashed", "hung", "error"
    message: str
    seconds: float  # that it took


Event = Window | Read | Unreadable


@dataclass(frozen=True)
class Plan:
    """What to read of each video; must be picklable."""

    windows: WindowSampler
    crops: Crops
    num_frames: int
    open_video: OpenVideo
    deadline_sec: float

    @property
    def views_shape(self) -> tuple[int, ...]:
        """Of one window: [S, T, H, W, C]."""
        return (self.crops.num_crops, self.num_frames, *self.crops.size, 3)


@dataclass(eq=False)
class _Worker:
    """The main process's side of a decoding process."""

    process: BaseProcess
    pipe: Connection
    slots: np.ndarray  # uint8 [NUM_SLOTS, S, T, H, W, C]
    job: Job | None = None
    began_at: float = 0.0
    heard_at: float = 0.0


def start_fork_server() -> None:
    """Lets the fork server import torch, which takes seconds, while the caller loads a model."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__", __name__])
    forkserver.ensure_running()


class DecodeWorkers:
    """Reads videos in `num_workers` processes; a context manager that ends them."""

    def __init__(self, plan: Plan, num_workers: int) -> None:
        self.plan, self.num_workers = plan, num_workers
        start_fork_server()
        self._context = multiprocessing.get_context("forkserver")
        self._workers: list[_Worker] = []

    def __enter__(self) -> DecodeWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [*self._workers]:
            if worker.job is not None:
                worker.process.kill()
            self._bury(worker)

    def events(self, jobs: Iterable[Job]) -> Iterator[Event | None]:
        """What happens to the jobs: windows in order for each video, then its end.

        Events of several videos interleave. Every job ends exactly once. None says that nothing
        has happened for a while, so that the caller can see to other things.

        Raises:
            ImportError: the decoding library is not installed.
            RuntimeError: decoding processes cannot even start.
        """
        waiting = iter(jobs)
        while self._assign(waiting):
            ready = self._ready()
            if not ready:
                yield None
            for worker in ready:
                yield from self._hear(worker)
            for worker in [w for w in self._workers if self._hangs(w)]:
                assert worker.job is not None
                silence = time.monotonic() - worker.heard_at
                job = worker.job
                worker.process.kill()
                self._bury(worker)
                yield Unreadable(
                    job.index,
                    "hung",
                    f"{job.path}: its decoding process gave no sign of life for {silence:.0f} s "
                    "and was killed; leave the file out, or allow more deadline_sec",
                    time.monotonic() - worker.began_at,
                )

    def _assign(self, waiting: Iterator[Job]) -> bool:
        """Gives idle processes work, starting them as needed; whether any is at work."""
        while True:
            idle = next((w for w in self._workers if w.job is None), None)
            if idle is None and len(self._workers) == self.num_workers:
                return True
            job = next(waiting, None)
            if job is None:
                return any(w.job is not None for w in self._workers)
            worker = idle or self._start()
            try:
                worker.pipe.send(job)
            except OSError:  # it died while it was idle, which is not this video's fault
                self._bury(worker)
                worker = self._start()
                worker.pipe.send(job)
            worker.job = job
            worker.began_at = worker.heard_at = time.monotonic()

    def _ready(self) -> list[_Worker]:
        """The processes that have said something, or died; waits for a while."""
        busy = {worker.pipe: worker for worker in self._workers if worker.job is not None}
        return [busy[pipe] for pipe in wait(list(busy), timeout=SIGN_OF_LIFE_SEC)]  # type: ignore[index]

    def _hear(self, worker: _Worker) -> Iterator[Event]:
        assert worker.job is not None
        index = worker.job.index
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            seconds = time.monotonic() - worker.began_at
            told = f"{worker.job.path}: {self._bury(worker)}"
            yield Unreadable(index, "crashed", told, seconds)
            return
        worker.heard_at = time.monotonic()
        match message:
            case None:  # a sign of life
                pass
            case (n, slot):
                yield Window(index, n, worker.slots[slot])
                with contextlib.suppress(OSError):  # dead: reading its pipe will show it
                    worker.pipe.send(slot)
            case ImportError():
                raise message
            case Read() | Unreadable():
                worker.job = None
                yield message

    def _hangs(self, worker: _Worker) -> bool:
        if worker.job is None or worker.pipe.poll():  # what it said is still to be heard
            return False
        return time.monotonic() - worker.heard_at > self.plan.deadline_sec + GRACE_SEC

    def _start(self) -> _Worker:
        shape = (NUM_SLOTS, *self.plan.views_shape)
        # Unlinked at once: nothing is left behind, whoever is killed.
        memory: Any = self._context.RawArray(ctypes.c_uint8, int(np.prod(shape)))
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, memory, shape, self.plan), daemon=True
        )
        process.start()
        theirs.close()  # so that its death closes the pipe
        try:
            ours.recv()  # it has started: from here on, silence and death are a video's doing
        except EOFError:
            process.join()
            raise RuntimeError(
                f"decoding processes cannot start (exit code {process.exitcode}); what they said "
                "stands above"
            ) from None
        self._workers.append(_Worker(process, ours, np.frombuffer(memory, np.uint8).reshape(shape)))
        return self._workers[-1]

    def _bury(self, worker: _Worker) -> str:
        """Waits for the end of a process, whose place is then free; says how it died."""
        self._workers.remove(worker)
        worker.pipe.close()  # one that is idle then ends by itself
        worker.process.join(5)
        worker.process.kill()
        worker.process.join()
        code = worker.process.exitcode
        assert code is not None
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        return (
            f"its decoding process died {how}; leave the file out, or see whether memory is short"
        )


def _work(pipe: Connection, memory: Any, shape: tuple[int, ...], plan: Plan) -> None:
    """What a decoding process does until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    _end_with_parent()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    slots = np.frombuffer(memory, np.uint8).reshape(shape)
    free = list(range(len(slots)))
    told_at = time.monotonic()

    def tell(message: object) -> None:
        nonlocal told_at
        pipe.send(message)
        told_at = time.monotonic()

    def show(n: int, frames: list[np.ndarray]) -> None:
        while pipe.poll() or not free:
            free.append(pipe.recv())
        slot = free.pop()
        np.stack(frames, axis=1, out=slots[slot])
        tell((n, slot))

    def live() -> None:
        if time.monotonic() - told_at > SIGN_OF_LIFE_SEC:
            tell(None)

    try:
        tell(None)
        while True:
            job = pipe.recv()
            while not isinstance(job, Job):  # slots of the video before
                free.append(job)
                job = pipe.recv()
            begin = time.monotonic()
            try:
                end: object = _read(job, plan, show, live)
            except VideoError as error:
                seconds = time.monotonic() - begin
                end = Unreadable(job.index, error.cause, str(error), seconds)
            except ImportError as error:
                end = error
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:  # whatever a file provokes costs that file alone
                logger.error("%s: %s", job.path, traceback.format_exc())
                what = f"{job.path}: reading failed with {type(error).__name__}: {error}"
                end = Unreadable(job.index, "error", what, time.monotonic() - begin)
            tell(end)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the main process is gone, or needs this one no more


def _read(
    job: Job, plan: Plan, show: Callable[[int, list[np.ndarray]], None], live: Callable[[], None]
) -> Read:
    """Shows the windows of a video; `live` is called for each frame."""
    transform_sec = shown_sec = 0.0
    begin = time.perf_counter()
    with plan.open_video(job.path) as video:
        windows = plan.windows(video)
        unique = np.unique(windows.indices)

        def frames() -> Iterator[tuple[int, np.ndarray]]:
            nonlocal transform_sec
            for index, frame in video.stream(unique):
                live()
                start = time.perf_counter()
                crops = plan.crops(frame, is_image=len(unique) == 1)
                transform_sec += time.perf_counter() - start
                yield index, crops

        live()
        for n, window in enumerate(stream_windows(frames(), windows.indices)):
            start = time.perf_counter()
            show(n, window)
            shown_sec += time.perf_counter() - start
        seconds = time.perf_counter() - begin - shown_sec
        facts = {
            "size_bytes": os.path.getsize(job.path),
            "num_windows": len(windows.indices),
            "is_short": windows.is_short,
            "damage": video.damage,
            "video_frames": len(video),
            "duration_sec": video.end_sec - float(video.frame_times_sec[0]),
            "fps": video.fps,
            "height": video.height,
            "width": video.width,
            "backend": video.backend,
            "seconds": round(seconds, 3),
        }
    return Read(
        job.index, windows.start_sec, windows.end_sec, facts, seconds - transform_sec, transform_sec
    )


def _end_with_parent() -> None:
    """Even in the middle of a long read: a main process that was killed cannot end others."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
