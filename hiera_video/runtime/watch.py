"""The processes of a run watch one another: one that waits for a frozen one ends, and names it.

A process can be frozen: stopped by a signal, on a machine that is down, or waiting for a file
system that does not answer. The others then wait for it in native code, which no exception
interrupts, and what torch says after its own time limit does not name it.
"""

import logging
import os
import platform
import threading
import time
from itertools import count
from typing import Self

from torch.distributed import DistError, Store  # type: ignore[attr-defined]

LIMIT_SEC = 1800.0  # more than reading a video may take with a data.deadline_sec of ten minutes
NUM_POLLS = 20  # in that time
LEFT = "0 left"

logger = logging.getLogger(__name__)


class Watch:
    """Shows the others that this process lives, and looks for those that do not; in a thread.

    It ends this process if for `LIMIT_SEC` another one has shown nothing, or has not come to the
    `step` that this one is in: all processes come to a step at about the same time. Between steps
    they may take any time, for evaluation as an example.

    Args:
        store: shared by the processes.
        rank: of this process, among `world_size`.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.step = 0
        self._store, self._key, self._world_size = store, str(rank), world_size
        self._name = f"rank {rank} (process {os.getpid()} on {platform.node()})"
        self._ends, self._has_failed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._has_failed = kind is not None
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._watch()
            if not self._has_failed:
                self._store.set(self._key, LEFT)
        except DistError as error:  # at the end, the process with the store may be the first to go
            if not self._ends.is_set():
                logger.warning("a frozen process would not be noticed any more: %s", error)

    def _watch(self) -> None:
        shown, polls_idle = [""] * self._world_size, [0] * self._world_size
        step = self.step
        for beat in count():
            self._store.set(self._key, f"{self.step} {beat} {self._name}")
            if self._ends.wait(LIMIT_SEC / NUM_POLLS):
                return
            before, shown = shown, self._shown_by_all()
            is_waiting, step = step == self.step, self.step
            for rank, (then, now) in enumerate(zip(before, shown, strict=True)):
                is_behind = is_waiting and int(now.split()[0]) < step
                is_idle = now != LEFT and (now == then or is_behind)
                polls_idle[rank] = polls_idle[rank] + 1 if is_idle else 0
            if missing := [now for now, n in zip(shown, polls_idle, strict=True) if n > NUM_POLLS]:
                self._give_up(" and ".join(now.split(" ", 2)[2] for now in missing))

    def _shown_by_all(self) -> list[str]:
        """What each process has shown, `STEP BEAT NAME`; a frozen store never answers."""
        timer = threading.Timer(LIMIT_SEC, self._give_up, ["the process with the store (rank 0)"])
        timer.daemon = True
        timer.start()
        shown = [
            self._store.get(str(rank)).decode()
            if self._store.check([str(rank)])
            else f"0 0 rank {rank}"
            for rank in range(self._world_size)
        ]
        timer.cancel()
        return shown

    def _give_up(self, missing: str) -> None:
        logger.error(
            "no sign of life for %g minutes from %s: stopped by a signal, on a machine that is "
            "down, or waiting for a file system. This process ends; give the command again",
            LIMIT_SEC / 60,
            missing,
        )
        time.sleep(LIMIT_SEC / NUM_POLLS)  # else the others find a closed connection first
        os._exit(1)  # the main thread waits in native code
