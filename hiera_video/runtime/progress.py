"""How far long work has come: a bar on a terminal, elsewhere a line of the log now and then."""

import logging
import sys
import time
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

INTERVAL_SEC = 30.0  # between lines of the log


class Progress(tqdm):
    """tqdm, which writes to the log where stderr is no terminal.

    Args:
        items: to iterate over; None: `update` counts.
        unit: what is counted, in the singular.
        enabled: False: nothing is shown, as on all processes but one.
        options: of tqdm, such as `total`.
    """

    monitor_interval = 0  # no thread: every update may show the state

    def __init__(
        self, items: Any = None, *, unit: str, enabled: bool = True, **options: Any
    ) -> None:
        self._is_logged = not sys.stderr.isatty()
        self._started_at = self._logged_at = time.monotonic()
        if self._is_logged:
            options |= {"mininterval": 0, "leave": False}  # `display` itself waits
        super().__init__(items, unit=unit, disable=not enabled, miniters=1, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if not self._is_logged:
            return bool(super().display(msg, pos))
        now = time.monotonic()
        if msg is None and self.n and now - self._logged_at >= INTERVAL_SEC:
            self._logged_at = now
            rate = self.n / max(now - self._started_at, 1e-9)
            text = f"{self.unit}s: {self.n}"
            if self.total:
                left = self.format_interval((self.total - self.n) / rate)
                text += f" of {self.total}, {left} left"
            logger.info("%s", f"{text}, {self.postfix}" if self.postfix else text)
        return False  # nothing to clear

    def clear(self, nolock: bool = False) -> None:
        if not self._is_logged:
            super().clear(nolock=nolock)
