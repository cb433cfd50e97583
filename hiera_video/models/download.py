"""Files of weights from the web, kept in torch.hub's cache."""

from __future__ import annotations

import logging
import os
import shutil
import urllib.request
from pathlib import Path

import torch

logger = logging.getLogger(__name__)


def fetch_file(url: str, license: str, timeout_sec: float = 30.0) -> Path:
    """The file of that address in torch.hub's cache, fetched if it is not there yet.

    Raises:
        ConnectionError: it cannot be fetched; says which file to put where by hand.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    logger.warning("fetching %s (licence %s) to %s", url, license, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=timeout_sec) as response:
            with part.open("wb") as file:
                shutil.copyfileobj(response, file, 1 << 20)
            size, expected = part.stat().st_size, response.headers.get("Content-Length")
        if expected and size != int(expected):
            raise OSError(f"got {size} of {expected} bytes")
        part.replace(path)
    except OSError as error:  # URLError and time-outs are OSErrors
        raise ConnectionError(
            f"cannot fetch {url} ({error}): fetch {path.name} by other means and put it into "
            f"{path.parent}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path
