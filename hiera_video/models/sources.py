"""Where weights come from, and the card that describes them. Nothing here needs torch.

A source is one of:

* a folder with config.json and model.safetensors, or this file in it: a weights folder, a run
  folder or a checkpoint folder of this project, which hold one in weights/, or a folder of timm or
  transformers;
* another file of weights;
* published weights by name, ARCHITECTURE.TAG;
* a repository of the Hugging Face Hub, hf://OWNER/NAME or hf://OWNER/NAME@REVISION.
"""

import math
import os
from pathlib import Path
from typing import Any

from hiera_video.errors import WeightsError, WeightsNotFoundError, nearest
from hiera_video.files import missing_path, parse_json, shipped_folder, user_path
from hiera_video.models.card import EXAMPLES, Kind, ModelCard
from hiera_video.models.hub import SCHEME, fetch_repository
from hiera_video.models.variants import (
    PUBLISHED,
    VARIANTS,
    is_image,
    paper_mask_ratio,
)
from hiera_video.settings.model import Masking
from hiera_video.settings.video import Clips, Views

Source = str | os.PathLike[str]


def load_card(source: Source, kind: Kind | None = None) -> ModelCard:
    """The card of a weights, run or checkpoint folder, of published weights, or of a repository.

    Args:
        kind: what the weights are needed as. None: anything.

    Raises:
        WeightsError: there is no card, it is damaged, or the weights are of another kind.
        WeightsNotFoundError: there is nothing of that name.
        FetchError: a repository that cannot be fetched.
    """
    path, card = find(source, kind)
    if not isinstance(card, ModelCard):
        what = "a folder of another project" if path and path.is_dir() else "a file"
        raise WeightsError(
            f"{source} is {what}, which does not say what its weights are: expected a run folder, "
            "a weights folder (`hiera-video convert` writes one), or published weights such as "
            "hiera_base_16x224.mae_k400_ft_k400"
        )
    card.require(kind, source)
    return card


def find(
    source: Source, kind: Kind | None = None
) -> tuple[Path | None, ModelCard | dict[str, Any]]:
    """Where weights are, and what describes them.

    Args:
        kind: what the weights are needed as, for advice where there are none.

    Returns:
        A file, or the folder that holds config.json; None for published weights. Their card; of a
        folder of another project its config.json, of a file {}.

    Raises:
        WeightsError, WeightsNotFoundError, FetchError: as for `load_card`.
    """
    name = os.fspath(source)
    if name in PUBLISHED:
        return None, published_card(name)
    check_source(source, kind)
    found = fetch_repository(name) if name.startswith(SCHEME) else user_path(source)
    if found.name == "model.safetensors" and found.with_name("config.json").is_file():
        found = found.parent
    if not found.is_dir():
        return found, {}
    found = found / "weights" if (found / "weights" / "config.json").is_file() else found
    path = found / "config.json"
    if not path.is_file():
        saved = sorted(found.glob("checkpoints/step_*/weights/config.json"))
        raise WeightsNotFoundError(
            f"{found} is a run that has not ended: take {saved[-1].parents[1]}"
            if saved
            else f"{found} is not a weights folder: it has no config.json"
        )
    try:
        config = parse_json(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} holds a {type(config).__name__}: expected keys with values")
    is_own = "format" in config or isinstance(config.get("architecture"), dict)
    return found, ModelCard.from_json(config, path) if is_own else config


def check_source(source: Source, kind: Kind | None = None) -> None:
    """Raises WeightsNotFoundError, with the nearest names, for a source that is not there.

    Repositories are not asked.

    Args:
        kind: what the weights are needed as.
    """
    name, path = os.fspath(source), user_path(source)
    if name in PUBLISHED or name.startswith(SCHEME) or (name and path.exists()):
        return
    what = f"{name}: there is no such file or folder"
    suited = [p for p in PUBLISHED if kind in (None, "backbone", _published_kind(p))]
    variant = name.partition(".")[0]
    own = {p: p for p in suited if p.split(".")[0] == variant}
    called = own or {p.split(".")[0]: p for p in suited} | {p: p for p in suited}
    near = nearest(name, called) if os.sep not in name else ""
    if of_name := [p for p in suited if name in p.split(".")] or ([] if near else list(own)):
        raise WeightsNotFoundError(f"{what}; published weights are {', '.join(of_name)}")
    if variant in VARIANTS and not own:
        alike = [p for p in suited if ("16x" in p) == ("16x" in variant)]
        others = (
            f"there are {', '.join(alike)}" if alike else f"expected {EXAMPLES[kind or 'detector']}"
        )
        raise WeightsNotFoundError(
            f"{what}, and no such weights of {variant} are published; {others}"
        )
    if near:
        raise WeightsNotFoundError(
            f"{what}, and no published weights have this name; did you mean {called[near]!r}?"
        )
    hub = ""
    if name.count("/") == 1 and not path.parent.is_dir():
        hub = f"; a repository of the Hugging Face Hub would be {SCHEME}{name}"
    raise WeightsNotFoundError(f"{name}: {missing_path(name)}{hub}")


def _published_kind(name: str) -> Kind:
    num_classes = PUBLISHED[name].num_classes
    if num_classes is None:
        return "autoencoder"
    return "classifier" if num_classes else "backbone"


# Published weights.


def published_card(name: str) -> ModelCard:
    """The card of published weights: how their authors trained and evaluated them.

    The settings are those of the recipes in configs/, which state their sources.
    """
    variant, _ = name.split(".")
    architecture = dict(VARIANTS[variant])
    del architecture["num_classes"]
    url, license, _, num_classes = PUBLISHED[name]
    image = is_image(architecture)
    entries: dict[str, Any] = {
        "clips": Clips(sampling_rate=1) if image else Clips(sampling_rate=4, target_fps=30.0),
        "url": url,
        "license": license,
    }
    if _published_kind(name) == "autoencoder":
        architecture["q_pool"] = 2
        # Nothing says how many heads the decoder has.
        entries["autoencoder"] = {"decoder_dim": 512, "decoder_depth": 8, "target": "pixels"}
        entries["masking"] = Masking(kind="random", mask_ratio=paper_mask_ratio(architecture))
    elif image:
        # timm's models are tested on crops of 0.95 of the short side, rounded down.
        short_side = math.floor(architecture["input_size"][1] / 0.95) if "abswin" in name else None
        entries["views"] = Views(num_clips=1, num_crops=1, short_side=short_side)
    else:
        entries["views"] = Views(num_clips=5, num_crops=3)
        names = shipped_folder("datasets") / "kinetics400" / "class_names.txt"
        entries["class_names"] = names.read_text("utf-8").splitlines()
    return ModelCard(architecture=architecture, num_classes=num_classes, **entries)
