"""The signals that ask a process to end.

SIGTERM comes from Slurm, torchrun and `kill`; SIGHUP from a terminal that closes, and from Slurm
with `--signal=HUP`. All commands treat both alike.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = [n for n in signal.Signals if n.name in ("SIGTERM", "SIGHUP")]  # Windows has no HUP

STOPPED = 143  # the exit code, for both: 128 + 15, as of a program that does not handle SIGTERM


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end; its name is the message."""


@contextmanager
def handling_stops(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Lets `handler` take the signals that ask the process to end.

    One that was ignored when the process started stays ignored: `nohup` does this with SIGHUP.
    """
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handled = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    try:
        for number in handled:
            signal.signal(number, handler)
        yield
    finally:
        for number, previous in handled.items():
            signal.signal(number, previous)


def raise_stopped(number: int, _: Any) -> None:
    """Ends what the process does as Ctrl-C does, so that nothing is left behind."""
    raise Stopped(signal.Signals(number).name)


@contextmanager
def noting_stops() -> Iterator[list[str]]:
    """Keeps these signals from ending the process; yields a list that their names appear in."""
    received: list[str] = []
    with handling_stops(lambda number, _: received.append(signal.Signals(number).name)):
        yield received


def leave_stops_to_parent() -> None:
    """Ignores these signals and Ctrl-C, for a process that another one ends."""
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
