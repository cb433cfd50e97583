"""Repositories of the Hugging Face Hub: fetched into its cache, and written.

HF_HUB_OFFLINE and HF_TOKEN are honoured, since huggingface_hub does the work.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiera_video.errors import FetchError, MissingLibrary, NotFetched
from hiera_video.runtime.dry_run import is_dry_run

SCHEME = "hf://"
FILES = ["config.json", "model.safetensors"]


def fetch_repository(source: str) -> Path:
    """The folder in the cache that holds the weights of hf://OWNER/NAME or hf://OWNER/NAME@REVISION.

    Raises:
        FetchError: it is not in the cache and cannot be fetched; says what to do.
        NotFetched: it is not in the cache, and this is a dry run.
    """
    name, _, revision = source.removeprefix(SCHEME).partition("@")
    failure = (
        f"{source} cannot be fetched from the Hugging Face Hub: check the name, HF_HUB_OFFLINE "
        f"and, of a private one, HF_TOKEN; or give a folder with {' and '.join(FILES)}"
    )
    how = {"revision": revision or None, "allow_patterns": FILES}
    try:
        with _hub(failure) as hub:
            return Path(hub.snapshot_download(name, **how, local_files_only=is_dry_run()))
    except FetchError:
        if not is_dry_run():
            raise
        raise NotFetched(
            f"would download https://huggingface.co/{name} (size unknown) to the cache of "
            "huggingface_hub; what depends on it was not checked"
        ) from None


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
