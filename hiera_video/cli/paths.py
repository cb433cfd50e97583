"""Whether what the settings name is there, before a command loads anything."""

import os
from pathlib import Path

from hiera_video.errors import ConfigError, WeightsNotFoundError, did_you_mean
from hiera_video.files import is_address, missing_path, own_or_shipped
from hiera_video.models.card import Kind
from hiera_video.models.sources import check_source
from hiera_video.models.variants import PUBLISHED, VARIANTS
from hiera_video.settings.base import Settings, existing_paths, shown_key
from hiera_video.settings.tools import BenchmarkSettings, FlopsSettings
from hiera_video.settings.training import RunSettings

# Suffixes of files that are written or read: no folder of results has them.
FILE_SUFFIXES = (".onnx", ".pt2", ".pt", ".pth", ".csv", ".json", ".jsonl", ".npz", ".mp4", ".png")


def check_paths(settings: Settings, kind: Kind | None = None) -> None:
    """Raises ConfigError, which names the key, for the first setting whose path does not fit.

    Args:
        kind: of the weights that the command needs, for advice where there are none.
    """
    _check_output_folders(settings)
    _check_variants(settings)
    for key, paths, mark in existing_paths(settings):
        first = reason = ""
        if mark.or_published:
            if not (isinstance(settings, RunSettings) and _starts_without(settings)):
                try:
                    check_source(paths[0], kind)
                except WeightsNotFoundError as error:
                    first, reason = paths[0], str(error).removeprefix(f"{paths[0]}: ")
        elif missing := [path for path in paths if not os.path.exists(own_or_shipped(path))]:
            others = f" ({len(missing)} of {len(paths)} are missing)" if paths[1:] else ""
            first, reason = missing[0], f"{missing_path(missing[0])}{others}"
        if reason:
            null = "; for none, write null" if first.lower() == "none" else ""
            raise ConfigError(f"{shown_key(type(settings), key)} is {first!r}: {reason}{null}")


def _check_output_folders(settings: Settings) -> None:
    """Raises ConfigError for a folder of results that cannot be one: dry runs look at it, too."""
    for key in ("run_dir", "output_dir"):
        path = getattr(settings, key, None)
        if not isinstance(path, str):
            continue
        if is_address(path):
            raise ConfigError(f"{key} is {path!r}: an address; name a folder of this machine")
        there = os.path.abspath(path)
        if not os.path.exists(there) and there.lower().endswith(FILE_SUFFIXES):
            raise ConfigError(
                f"{key} is {path!r}, which is the name of a file; name a folder: the files in it "
                "get names of their own"
            )
        while not os.path.exists(there):
            there = os.path.dirname(there)
        if not os.path.isdir(there):
            raise ConfigError(f"{key} is {path!r}: {there} is a file; name a folder")
        if not os.access(there, os.W_OK):
            raise ConfigError(f"{key} is {path!r}: {there} cannot be written; name another folder")


def _check_variants(settings: Settings) -> None:
    """Raises ConfigError for a name of a model that is none, with the setting that was meant."""
    init = ""
    if isinstance(settings, RunSettings):
        key, names, init = "model.name", [settings.model.name], "model.init"
    elif isinstance(settings, FlopsSettings | BenchmarkSettings):
        models = settings.models if isinstance(settings, BenchmarkSettings) else [settings.model]
        key, names = "MODEL", [name for name in models if name is not None]
    else:
        return
    for name in names:
        is_published = name in PUBLISHED and not isinstance(settings, BenchmarkSettings)
        if name not in VARIANTS and not is_published:
            raise ConfigError(f"{key} is {name!r}; {_variant_meant(name, init)}")


def _variant_meant(name: str, init: str) -> str:
    """What a wrong name of a variant should be, as the end of a message.

    Args:
        init: the setting for weights; "" if the command takes none.
    """
    variant = name.partition(".")[0]
    if os.path.exists(name) or "/" in name:
        weights = name if os.path.exists(name) else f"hf://{name.removeprefix('hf://')}"
        also = f", and weights as {init}={weights}" if init else ""
        return f"it must be a variant, such as hiera_base_16x224{also}"
    if variant in VARIANTS:
        tags = [known.partition(".")[2] for known in PUBLISHED if known.startswith(f"{variant}.")]
        return (
            f"published weights of {variant} are: {', '.join(tags) or 'none'}; for the variant "
            f"alone, write {variant}"
        )
    plain = name.lower().replace("-", "_")
    alike = [known for known in VARIANTS if known.startswith(plain)]
    if 1 <= len(alike) <= 4:
        return f"did you mean {' or '.join(map(repr, alike))}?"
    return f"the variants are {', '.join(VARIANTS)}{did_you_mean(plain, VARIANTS)}"


def _starts_without(settings: RunSettings) -> bool:
    """Whether a training run needs nothing of the name in `model.init`.

    It may be the tag of the model's published weights alone; and the checkpoints of a run that is
    resumed replace it, so that it may have been deleted.
    """
    tagged = f"{settings.model.name}.{settings.model.init}"
    return tagged in PUBLISHED or Path(settings.run_dir, "checkpoints").is_dir()
