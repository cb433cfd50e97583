"""Files of weights from the web, kept in torch.hub's cache: with progress, and resumed."""

import hashlib
import http.client
import logging
import urllib.request
from pathlib import Path

import torch
from filelock import FileLock
from tqdm import tqdm

from hiera_video.errors import FetchError, NotFetched
from hiera_video.files import replacing
from hiera_video.runtime.dry_run import is_dry_run

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20


def fetch_file(url: str, license: str, name: str | None = None) -> Path:
    """The file of that address in torch.hub's cache, fetched if it is not there yet.

    Args:
        name: of the file in the cache. None: as at the end of the address.

    Raises:
        FetchError: it cannot be fetched; says which file to put where by hand.
        NotFetched: it is not there, and this is a dry run.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / (name or url.rpartition("/")[2])
    if path.is_file():
        return path
    if is_dry_run():
        raise NotFetched(f"would download {url} (licence {license}) to {path}")
    logger.warning("fetching %s (licence %s) to %s", url, license, path)
    try:
        download(url, path)
    except OSError as error:  # URLError and time-outs are OSErrors
        raise FetchError(
            f"cannot fetch {url} ({error}): try again, which resumes, or fetch {path.name} by "
            f"other means and put it into {path.parent}"
        ) from error
    return path


def download(url: str, path: Path, *, timeout_sec: float = 30.0) -> None:
    """Downloads a file to `path`, unless that exists.

    The file grows as `.NAME.KEY.part` beside `path` and gets its name when it is whole. If the
    connection breaks or the process ends before that, the next call resumes there, provided that
    the server states the size and version (ETag or Last-Modified) of the file, and both are the
    same. Of several processes one downloads, and the others wait. Progress is shown on stderr if
    that is a terminal.

    Args:
        timeout_sec: longest wait for an answer or for the next bytes.

    Raises:
        OSError: the server cannot be reached or refuses, or it ends before the size it has stated.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            return
        try:
            part = _download_part(url, path, timeout_sec)
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        with replacing(path) as whole:
            part.rename(whole)


def _download_part(url: str, path: Path, timeout_sec: float) -> Path:
    """Completes the part of the server's version; returns its path."""
    with urllib.request.urlopen(url, timeout=timeout_sec) as response:
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        size = int(response.headers.get("Content-Length", 0))  # 0: not stated
        key = hashlib.sha256(f"{url} {version} {size}".encode()).hexdigest()[:8]
        part = path.with_name(f".{path.name}.{key}.part")
        for old in path.parent.glob(f".{path.name}.*.part"):
            if old != part or not (version and size):
                old.unlink()
        start = part.stat().st_size if part.is_file() else 0
        if start == 0:
            _copy(response, part, 0, size)
    if 0 < start < size:
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"})
        with urllib.request.urlopen(request, timeout=timeout_sec) as response:
            _copy(response, part, start if response.status == 206 else 0, size)
    return part


def _copy(response: http.client.HTTPResponse, part: Path, start: int, size: int) -> None:
    """Writes the answer to the part from byte `start` on, and checks the size."""
    progress = tqdm(total=size or None, initial=start, unit="B", unit_scale=True, disable=None)
    with part.open("ab" if start else "wb") as file, progress:
        while block := response.read(BLOCK_BYTES):
            file.write(block)
            progress.update(len(block))
    found = part.stat().st_size
    if size and found != size:
        raise OSError(f"got {found} of {size} bytes")
