import os
import signal

import pytest

from hiera_video.runtime.signals import (
    STOP_SIGNALS,
    Stopped,
    handling_stops,
    noting_stops,
    raise_stopped,
)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_noted_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with noting_stops() as stops:
        assert not stops
        os.kill(os.getpid(), number)
        assert stops == [number.name]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_ends_what_is_done(number):
    with pytest.raises(Stopped, match=number.name), handling_stops(raise_stopped):
        os.kill(os.getpid(), number)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handling_stops(raise_stopped), noting_stops() as stops:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stops
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
