"""What a check finds, and checks whose errors are findings."""

import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hiera_video.errors import printable

Status = Literal["ok", "missing", "warning", "failed"]
MAX_TEXT = 300  # characters of a message of a library
OTHER = "the report of a bug needs this output"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        status: "missing" for something optional that is not installed, "warning" for what works
            but needs attention, "failed" for what does not work.
        advice: what to do.
        data: more for machines.
    """

    name: str
    text: str
    status: Status = "ok"
    advice: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        advice = {"advice": without_names(self.advice)} if self.advice else {}
        return {"status": self.status, "text": without_names(self.text), **advice, **self.data}


def attempt(name: str, check: Callable[[], Finding], advice: str = OTHER) -> Finding:
    """What `check` finds; any error of it is a finding that failed."""
    try:
        return check()
    except Exception as error:
        return Finding(name, described(error), "failed", advice)


def described(error: BaseException) -> str:
    """An error in a line: its class, its message, and where it was raised."""
    message = printable(" ".join(str(error).split()))[:MAX_TEXT]
    place = ""
    if trace := traceback.extract_tb(error.__traceback__):
        place = f" ({Path(trace[-1].filename).name}:{trace[-1].lineno})"
    return f"{type(error).__name__}: {message}{place}"


def without_names(text: str) -> str:
    """The text with `~` for the home folder, and USER for the user's name in other paths."""
    home = os.path.expanduser("~")
    text = text.replace(home, "~") if len(home) > 1 else text
    user = os.environ.get("USER") or "root"
    return text if user == "root" else re.sub(rf"(?<=/){re.escape(user)}(?![\w.-])", "USER", text)


@contextmanager
def silence() -> Iterator[None]:
    """What libraries print, from native code too, would stand among the results."""
    saved = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        yield
    finally:
        for descriptor, before in zip((1, 2), saved, strict=True):
            os.dup2(before, descriptor)
        for opened in (*saved, nowhere):
            os.close(opened)
