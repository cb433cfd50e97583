"""Repositories of the Hugging Face Hub: fetched into its cache, and written.

HF_HUB_OFFLINE and HF_TOKEN are honoured, since huggingface_hub does the work.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiera_video.errors import FetchError, MissingLibrary

SCHEME = "hf://"
FILES = ["config.json", "model.safetensors"]


def fetch_repository(source: str) -> Path:
    """The folder in the cache that holds the weights of hf://OWNER/NAME or hf://OWNER/NAME@REVISION.

    Raises:
        FetchError: it is not in the cache and cannot be fetched; says what to do.
    """
    name, _, revision = source.removeprefix(SCHEME).partition("@")
    failure = (
        f"{source} cannot be fetched from the Hugging Face Hub: check the name, HF_HUB_OFFLINE "
        f"and, of a private one, HF_TOKEN; or give a folder with {' and '.join(FILES)}"
    )
    with _hub(failure) as hub:
        folder = hub.snapshot_download(name, revision=revision or None, allow_patterns=FILES)
    return Path(folder)


def write_repository(name: str, folder: Path) -> None:
    """Uploads a weights folder to the repository OWNER/NAME, made if it is not there.

    Raises:
        FetchError: it cannot be written.
    """
    failure = (
        f"{folder} is written, but cannot be uploaded to {name}: check the name, HF_HUB_OFFLINE "
        "and HF_TOKEN"
    )
    with _hub(failure) as hub:
        hub.create_repo(name, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=FILES)


@contextmanager
def _hub(failure: str) -> Iterator[Any]:
    """Gives huggingface_hub, and turns what it raises into a FetchError with the reason."""
    try:
        import huggingface_hub
    except ImportError:
        raise MissingLibrary(
            "the Hugging Face Hub needs huggingface_hub: pip install 'hiera-video[hub]'"
        ) from None
    try:
        yield huggingface_hub
    except Exception as error:  # its own, and those of whatever it sends requests by
        raise FetchError(f"{failure} ({' '.join(str(error).split())})") from error
