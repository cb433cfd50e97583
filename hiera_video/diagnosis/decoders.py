"""Whether each decoder returns the right frames, and whether libraries import.

Each is tried in a supervised process, as videos are decoded: native code may crash or hang.
"""

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch

from hiera_video.diagnosis.clip import CLIP, NUM_FRAMES, TOLERANCE, picture
from hiera_video.diagnosis.findings import Finding, described, silence
from hiera_video.diagnosis.libraries import Library, check_library
from hiera_video.errors import MissingLibrary
from hiera_video.runtime.workers import Death, Report, Workers
from hiera_video.settings.video import Backend
from hiera_video.video.open import open_video

BACKENDS: tuple[Backend, ...] = get_args(Backend)
# Of backends; others have the name of theirs.
MODULES = {"pyav": "av", "torchcodec-cuda": "torchcodec"}
INSTEAD = "use data.backend=pyav, the default, or install it again"
LIMIT_SEC = 60.0  # for a check; slow disks take tens of seconds to import a large library
NUM_PROCESSES = 2


@dataclass(frozen=True)
class Decoder:
    """A backend to try."""

    name: Backend


def check_all(found: Sequence[Library]) -> tuple[list[Finding], list[Finding]]:
    """Findings about libraries and about decoders, in order.

    Raises:
        Exception: processes cannot be started.
    """
    items = [*map(Decoder, BACKENDS), *found]
    findings: dict[int, Finding] = {}
    with Workers(check, NUM_PROCESSES, limit_sec=LIMIT_SEC) as workers:
        for result in workers.results([item] for item in items):
            if result is not None:
                findings[result[0]] = result[1]
    ordered = [findings[number] for number in range(len(items))]
    return ordered[len(BACKENDS) :], ordered[: len(BACKENDS)]


def check(
    items: Sequence[Decoder | Library], deaths: Mapping[int, Death], report: Report
) -> Finding:
    """What a process does: one check."""
    (item,) = items
    report.working(0)
    if 0 in deaths:
        end = deaths[0].sentence.partition(";")[0]
        text = end.replace("its decoding process", "the process that tried it")
        return Finding(item.name, text, "failed", f"install it again: {item.name}")
    return check_decoder(item.name) if isinstance(item, Decoder) else check_library(item)


def check_decoder(backend: Backend) -> Finding:
    """Whether `open_video` reads the clip of the package with this backend, as it was drawn."""
    if importlib.util.find_spec(MODULES.get(backend, backend)) is None:
        if backend == "pyav":
            return Finding(backend, "not installed, and needed", "failed", "pip install av")
        return Finding(backend, "not installed", "missing")
    if backend == "torchcodec-cuda" and not torch.cuda.is_available():
        return Finding(backend, "no CUDA device", "missing")
    failed = Finding(backend, "", "failed", "" if backend == "pyav" else INSTEAD)
    try:
        with silence(), messages() as logged, open_video(CLIP, backend) as video:
            frames = video.frames(np.arange(NUM_FRAMES)[::-1])[::-1].astype(np.int16)
            used = video.backend
    except MissingLibrary as error:
        return replace(failed, text=described(error.__cause__ or error), advice=str(error))
    except Exception as error:
        return replace(failed, text=described(error))
    if used != backend:  # pyav took its place
        reason = "; ".join(m.removeprefix(f"{CLIP}: ") for m in logged)
        return replace(failed, text=reason or f"{used} reads the clip instead")
    drawn = np.stack([picture(number) for number in range(NUM_FRAMES)])
    off = int(np.abs(frames - drawn).max()) if frames.shape == drawn.shape else 255
    data = {"largest_error": off}
    if off > TOLERANCE:
        text = f"wrong pixels: up to {off} of 255 from what the clip shows"
        return replace(failed, text=text, data=data)
    return Finding(backend, f"{NUM_FRAMES} frames of H.264 as they were drawn", data=data)


@contextmanager
def messages() -> Iterator[list[str]]:
    """Collects the warnings of the package instead of showing them."""
    logger, found = logging.getLogger("hiera_video"), list[str]()
    before, logger.handlers = logger.handlers, [_Collector(found)]
    try:
        yield found
    finally:
        logger.handlers = before


class _Collector(logging.Handler):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(record.getMessage())
