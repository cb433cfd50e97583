"""Whether what the settings name is there, before a command loads anything."""

import os
from pathlib import Path

from hiera_video.errors import ConfigError, WeightsNotFoundError
from hiera_video.files import missing_path, own_or_shipped
from hiera_video.models.card import Kind
from hiera_video.models.sources import check_source
from hiera_video.models.variants import PUBLISHED
from hiera_video.settings.base import Settings, existing_paths, shown_key
from hiera_video.settings.training import RunSettings


def check_paths(settings: Settings, kind: Kind | None = None) -> None:
    """Raises ConfigError, which names the key, for the first setting whose path does not fit.

    Args:
        kind: of the weights that the command needs, for advice where there are none.
    """
    _check_output_folders(settings)
    for key, paths, mark in existing_paths(settings):
        where = f"{shown_key(type(settings), key)} is {paths[0]!r}"
        if mark.or_published:
            if not (isinstance(settings, RunSettings) and _starts_without(settings)):
                try:
                    check_source(paths[0], kind)
                except WeightsNotFoundError as error:
                    reason = str(error).removeprefix(f"{paths[0]}: ")
                    raise ConfigError(f"{where}: {reason}") from None
        elif missing := [path for path in paths if not os.path.exists(own_or_shipped(path))]:
            where = f"{shown_key(type(settings), key)} is {missing[0]!r}"
            others = f" ({len(missing)} of {len(paths)} are missing)" if paths[1:] else ""
            raise ConfigError(f"{where}: {missing_path(missing[0])}{others}")


def _check_output_folders(settings: Settings) -> None:
    """Raises ConfigError for a folder of results that cannot be one: dry runs look at it, too."""
    for key in ("run_dir", "output_dir"):
        path = getattr(settings, key, None)
        if not isinstance(path, str):
            continue
        there = os.path.abspath(path)
        while not os.path.exists(there):
            there = os.path.dirname(there)
        if not os.path.isdir(there):
            raise ConfigError(f"{key} is {path!r}: {there} is a file; name a folder")
        if not os.access(there, os.W_OK):
            raise ConfigError(f"{key} is {path!r}: {there} cannot be written; name another folder")


def _starts_without(settings: RunSettings) -> bool:
    """Whether a training run needs nothing of the name in `model.init`.

    It may be the tag of the model's published weights alone; and the checkpoints of a run that is
    resumed replace it, so that it may have been deleted.
    """
    tagged = f"{settings.model.name}.{settings.model.init}"
    return tagged in PUBLISHED or Path(settings.run_dir, "checkpoints").is_dir()
