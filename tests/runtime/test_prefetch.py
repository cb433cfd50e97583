"""Values made ahead in a thread: when it starts and when it ends."""

import threading

from hiera_video.runtime.prefetch import prefetch

WAIT_SEC = 30


def test_the_thread_starts_before_the_first_value_is_taken():
    started = threading.Event()

    def values():
        started.set()
        yield 1
        yield None
        yield 2

    taken = prefetch(values(), 1)
    assert started.wait(WAIT_SEC)
    assert list(taken) == [1, 2]


def test_closing_ends_a_thread_of_which_nothing_was_taken():
    ended = threading.Event()

    def values():
        try:
            while True:
                yield 1
        finally:
            ended.set()

    prefetch(values(), 1).close()
    assert ended.is_set()
