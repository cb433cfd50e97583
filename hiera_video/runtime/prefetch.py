"""Values made in a thread, ahead of their use."""

import contextlib
import queue
import threading
from collections.abc import Generator
from typing import Any, TypeVar

import torch

from hiera_video.runtime.workers import UnguardedError

T = TypeVar("T")


def prefetch(values: Generator[T | None, None, None], number: int) -> Generator[T, None, None]:
    """The values that are not None, made in a thread that is up to `number` of them ahead.

    The thread starts at once. An exception is raised where the value would have been used. Closing
    the generator closes `values`, which must return to it now and then: that is what None is for.
    """
    taken = _prefetched(values, number)
    next(taken)  # a generator that has not begun would be closed without ending the thread
    return taken


def _prefetched(values: Generator[T | None, None, None], number: int) -> Generator[Any, None, None]:
    """None once the thread has started, then the values."""
    ready: queue.Queue[T | BaseException | None] = queue.Queue(number)
    stop = threading.Event()
    # The current device belongs to a thread: pinned memory would else open a context on GPU 0.
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def put(item: T | BaseException | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def fill() -> None:
        end: BaseException | None = None
        try:
            if device is not None:
                torch.cuda.set_device(device)
            for value in values:
                if value is not None:
                    put(value)
                if stop.is_set():
                    break
        except BaseException as error:  # raised where the values are used
            end = error
        finally:
            values.close()
            put(end)

    # Not waited for at exit: a program may leave a loader half used.
    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        yield None
        while (item := ready.get()) is not None:
            if isinstance(item, UnguardedError):
                raise item.with_traceback(None)  # what matters is where the program came here
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        if thread is not threading.current_thread():  # as in garbage collection it may be
            thread.join()
