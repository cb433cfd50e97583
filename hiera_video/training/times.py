"""Where the time of a run goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Work = Literal["checkpoint", "val"]


@dataclass(frozen=True)
class Lap:
    """All seconds that passed from the report of a step to that of the next one."""

    total_sec: float
    checkpoint_sec: float = 0.0  # of total_sec, in which training waited for a checkpoint
    val_sec: float = 0.0  # of total_sec, in validation


class Times:
    """Measures laps.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._began = clock, clock()
        self._spent: dict[Work, float] = {"checkpoint": 0.0, "val": 0.0}

    @contextmanager
    def spent_on(self, work: Work) -> Iterator[None]:
        """Counts the time of the block, which the next lap holds."""
        began = self._clock()
        yield
        self._spent[work] += self._clock() - began

    def lap(self) -> Lap:
        """The time since the lap before."""
        now = self._clock()
        lap = Lap(now - self._began, self._spent["checkpoint"], self._spent["val"])
        self._began = now
        self._spent = dict.fromkeys(self._spent, 0.0)
        return lap
