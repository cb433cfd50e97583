"""Messages of a command: to stderr, and to the log file of a run."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hiera_video.errors import message_line, message_lines
from hiera_video.files import append

_file_read: ContextVar[str | None] = ContextVar("_file_read", default=None)
_show_warning = warnings.showwarning


def setup_logging(log_file: Path | None = None, *, quiet: bool = False) -> None:
    """Sends messages to stderr and appends them to `log_file`.

    Args:
        quiet: send warnings only, and to stderr only, as all processes of torchrun but one do.
    """
    quiet = quiet or os.environ.get("RANK", "0") != "0"
    root = logging.getLogger("hiera_video")
    for handler in root.handlers:
        handler.close()
    root.handlers.clear()
    root.setLevel(logging.WARNING if quiet else logging.INFO)
    root.propagate = False
    formatter = _OneLine("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S")
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if log_file is not None and not quiet:
        handlers.append(_LogFile(log_file))
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    warnings.showwarning = _log_warning


@contextmanager
def warnings_about(path: str) -> Iterator[None]:
    """In commands, Python warnings inside become messages that name the file that is read."""
    before = _file_read.get()
    _file_read.set(path)
    try:
        yield
    finally:
        _file_read.set(before)


def _log_warning(message: Warning | str, *others: Any, **more: Any) -> None:
    path = _file_read.get()
    if path is None:
        _show_warning(message, *others, **more)
    else:
        logging.getLogger(__name__).warning("%s: %s", path, message)


class _OneLine(logging.Formatter):
    """Each message is one line, whatever it quotes; lines of a trace follow it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return message_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return message_lines(super().formatException(ei))


class _LogFile(logging.Handler):
    """Appends messages to a file. One that cannot be written is an error of whoever sends them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        append(self._path, f"{self.format(record)}\n".encode())
