"""Weights: fetch, read, load with a report, save.

The file follows a load, whole, and is longer for it. Whatever the layout of a file (official, timm,
transformers, ours), its keys become the parameter names of `Hiera`, which are the official ones. A
key that no list here knows is an error, and so is a parameter that the file lacks; only a
classifier and a decoder may start afresh.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import shutil
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiera_video.files import replacing
from hiera_video.models.adapt import PATCHES, adapt_state
from hiera_video.models.hiera import Hiera
from hiera_video.models.layouts import Layout, rename, to_official
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.registry import (
    PUBLISHED,
    PosEmbedResize,
    PublishedWeights,
    create_autoencoder,
    create_detector,
    create_model,
    input_statistics,
    variant_name,
)

if TYPE_CHECKING:
    from hiera_video.models.detector import ActionDetector

logger = logging.getLogger(__name__)

FORMAT = "hiera_video"  # in the config.json of a weights folder
STATE_ENTRIES = ("model_state", "model", "module", "state_dict")  # where files keep the tensors
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel, torch.compile
HEAD = ("head.projection.weight", "head.projection.bias")
ROI_HEAD = ("roi_head.projection.weight", "roi_head.projection.bias")  # of an action detector
ENCODER = re.compile(
    r"pos_embed(_spatial|_temporal)?|(patch_embed\.proj|norm|head\.projection)\.(weight|bias)"
    r"|blocks\.\d+\.(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12]|proj)\.(weight|bias)"
)
# What an official autoencoder has beside its encoder.
DECODER = re.compile(
    r"mask_token|decoder_pos_embed|decoder_(embed|norm|pred|blocks)\..+|multi_scale_fusion_heads\..+"
)
# The same of transformers, whose decoder is not read, and AveragedModel's counter.
DROPPED = re.compile(r"decoder\..+|multiscale_fusion\..+|n_averaged")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a file or folder, under official names."""

    source: str
    layout: Layout  # hiera_video for a weights folder
    state: dict[str, Tensor]  # of the encoder and its classifier; patch kernels [D, C, t, h, w]
    decoder: dict[str, Tensor] = field(default_factory=dict)  # of an autoencoder
    roi_head: dict[str, Tensor] = field(default_factory=dict)  # of an action detector
    dropped: list[str] = field(default_factory=list)  # keys that nobody reads
    renamed: list[str] = field(default_factory=list)  # an autoencoder's norm serves as the model's
    config: dict[str, Any] = field(default_factory=dict)  # config.json of a weights folder
    foreign_config: dict[str, Any] = field(default_factory=dict)  # that of another project's

    @property
    def num_classes(self) -> int | None:
        """Outputs of the classifier; None where there is none, as in a masked autoencoder."""
        if self.config:
            return self.config["num_classes"]
        return self.state[HEAD[0]].shape[0] if HEAD[0] in self.state else None

    @property
    def architecture(self) -> dict[str, Any]:
        """Keyword arguments of `Hiera` that a weights folder states; empty for other layouts."""
        return dict(self.config.get("architecture", {}))

    @property
    def autoencoder(self) -> dict[str, Any]:
        """Keyword arguments of `MaskedAutoencoderHiera` that a weights folder of one states."""
        return dict(self.config.get("autoencoder", {}))

    @property
    def detector(self) -> dict[str, Any]:
        """Keyword arguments of `ActionDetector` that a weights folder of one states."""
        return dict(self.config.get("detector", {}))


@dataclass
class LoadReport:
    """What became of every tensor of a checkpoint and of every parameter of a model."""

    source: str
    layout: str
    loaded: list[str] = field(default_factory=list)  # parameters that got the file's values
    renamed: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)  # "what: how", for values that were adapted
    reinitialised: list[str] = field(default_factory=list)  # of a fresh head or decoder
    dropped: list[str] = field(default_factory=list)  # keys of the file that were not used
    missing: list[str] = field(default_factory=list)  # parameters left as they were
    loaded_frac: float = 0.0  # of the model's parameters, counted by elements

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.reinitialised) + len(self.missing)
        lines = [
            f"{self.source} ({self.layout} layout): loaded {len(self.loaded)} of {total} tensors, "
            f"{self.loaded_frac:.1%} of the parameters"
        ]
        for what in ("renamed", "resized", "reinitialised", "dropped", "missing"):
            if entries := getattr(self, what):
                lines.append(f"  {what} ({len(entries)}): {_shorten(entries)}")
        return "\n".join(lines)


def _shorten(names: Sequence[str], shown: int = 6) -> str:
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


# Fetching and reading.


def fetch(weights: PublishedWeights, timeout_sec: float = 30.0) -> Path:
    """The file of published weights in torch.hub's cache, fetched if it is not there yet.

    Raises:
        ConnectionError: it cannot be fetched; says which file to put where by hand.
    """
    return fetch_file(weights.url, weights.license, timeout_sec)


def fetch_file(url: str, license: str, timeout_sec: float = 30.0) -> Path:
    """As `fetch`, by address."""
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


def read_checkpoint(source: str | Path | Checkpoint) -> Checkpoint:
    """Reads a file, a weights folder (or a run folder that holds one), or published weights.

    Args:
        source: a .safetensors file, or what torch.save wrote: a state dict, bare or under
            `model_state` (official files), `model`, `module` or `state_dict`; a folder with
            config.json and model.safetensors, of ours or of transformers; ARCHITECTURE.TAG.

    Raises:
        FileNotFoundError: nothing there, or a folder without config.json.
        ValueError: not the weights of a Hiera; gives the keys or the reason.
    """
    if isinstance(source, Checkpoint):
        return source
    check_source(source)
    path = fetch(PUBLISHED[source]) if source in PUBLISHED else Path(source)
    config: dict[str, Any] = {}
    if path.is_dir():
        if (path / "weights" / "config.json").is_file():  # a run folder
            path = path / "weights"
        if not (path / "config.json").is_file():
            saved = sorted((path / "checkpoints").glob("step_*/weights/config.json"))
            raise FileNotFoundError(
                f"{path} is a run that has not ended: take {saved[-1].parents[1]}"
                if saved
                else f"{path} is not a weights folder: it has no config.json"
            )
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path / 'config.json'} is not JSON: {error}") from error
        missing = {"architecture", "num_classes"} - config.keys()
        if config.get("format") == FORMAT and missing:
            raise ValueError(f"{path / 'config.json'} lacks {', '.join(sorted(missing))}")
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: it belongs beside config.json")
    return _to_official(str(source), _read_file(path), config)


def check_source(source: str | Path) -> None:
    """Raises FileNotFoundError, naming the nearest weights, where neither file nor weights are."""
    if str(source) in PUBLISHED or Path(source).exists():
        return
    near = difflib.get_close_matches(str(source), PUBLISHED)
    raise FileNotFoundError(
        f"{source}: there is no such file or folder, and no published weights are called so; "
        + (f"nearest are {', '.join(near)}" if near else f"there are {', '.join(PUBLISHED)}")
    )


def _read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, without the prefixes of wrappers. Nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            data: Any = load_file(path)
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises any of six kinds on bytes that it did not write
        code = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(
                f"{path} is refused: it holds a pickled {code[1]}, and unpickling may run any "
                "code. If you trust the file, save its state dict alone with torch.save"
            ) from error
        raise ValueError(f"{path} is damaged or not a file of weights") from error

    while isinstance(data, dict):
        entry = next((e for e in STATE_ENTRIES if isinstance(data.get(e), dict)), None)
        if entry is None:
            break
        data = data[entry]
    found = data if isinstance(data, dict) else {type(data).__name__: data}
    others = [str(key) for key, value in found.items() if not isinstance(value, Tensor)]
    if others or not found:
        raise ValueError(
            f"{path} holds no state dict, neither bare nor under {', '.join(STATE_ENTRIES)}; "
            f"not tensors are: {_shorten(others)}"
        )
    state = {}
    for key, value in found.items():
        while key.startswith(WRAPPER_PREFIXES):
            key = key.partition(".")[2]
        if key in state:
            raise ValueError(f"{path} holds {key} twice, with and without a wrapper's prefix")
        state[key] = value
    return state


def _to_official(source: str, state: dict[str, Tensor], config: dict[str, Any]) -> Checkpoint:
    """Renames keys to official ones and sets those aside that an encoder does without."""
    layout, state = to_official(state)
    if config.get("format") == FORMAT:
        layout, foreign = "hiera_video", {}
    else:
        config, foreign = {}, config
    dropped = [key for key in state if DROPPED.fullmatch(key)]
    decoder = {
        key: value.unsqueeze(2) if value.dim() == 4 else value  # of images
        for key, value in state.items()
        if DECODER.fullmatch(key)
    }
    roi_head = {key: state[key] for key in ROI_HEAD if key in state}
    beside = {*decoder, *roi_head, *dropped}
    state = {key: value for key, value in state.items() if key not in beside}
    renamed = []
    if "encoder_norm.weight" in state:
        renamed.append("encoder_norm -> norm")
        state = {rename(key, {"encoder_norm.": "norm."}): value for key, value in state.items()}
    if unknown := [key for key in state if not ENCODER.fullmatch(key)]:
        raise ValueError(
            f"{source} is not a Hiera in a layout that is known: {len(unknown)} of its "
            f"{len(state) + len(beside)} keys are not, {_shorten(unknown)}"
        )
    if PATCHES in state and state[PATCHES].dim() == 4:  # of images
        state[PATCHES] = state[PATCHES].unsqueeze(2)
    return Checkpoint(source, layout, state, decoder, roi_head, dropped, renamed, config, foreign)


# Adapting and loading.


def load_weights(
    model: Hiera | MaskedAutoencoderHiera | ActionDetector,
    source: str | Path | Checkpoint,
    *,
    pos_embed_resize: PosEmbedResize = "window",
    allow_partial: bool = False,
) -> LoadReport:
    """Loads weights into a model, whole or not at all, and logs the report that it returns.

    Patch kernels and position embeddings of another clip size are adapted (see adapt.py), so that
    image weights fit a video model too. A classifier for another number of classes, or none as in
    a masked autoencoder, starts afresh; so does the head of an action detector. So does the decoder
    of an autoencoder where the checkpoint has none or that of images for a video model, and its
    position embedding at another clip size.

    Args:
        source: as for `read_checkpoint`.
        pos_embed_resize: how position embeddings are interpolated in space: in step with the
            attention windows ("window"), or plainly ("bicubic").
        allow_partial: parameters that the checkpoint lacks keep their values and are reported as
            missing, rather than being an error.

    Raises:
        ValueError: weights of another architecture, or missing parameters.
    """
    checkpoint = read_checkpoint(source)
    encoder = _encoder(model)
    parameters = {_official_name(key): value for key, value in model.named_parameters()}
    state = dict(checkpoint.state)
    report = LoadReport(checkpoint.source, checkpoint.layout)
    if not isinstance(model, MaskedAutoencoderHiera):
        report.renamed += checkpoint.renamed
    report.dropped += checkpoint.dropped
    if checkpoint.num_classes != encoder.num_classes:
        unused = [key for key in HEAD if state.pop(key, None) is not None]
        if encoder.num_classes == 0:
            report.dropped += unused
        else:
            report.reinitialised += HEAD
    _check_architecture(checkpoint, encoder)
    if isinstance(model, MaskedAutoencoderHiera):
        decoder = _fitting_decoder(checkpoint, model)
        report.dropped += [key for key in checkpoint.decoder if key not in decoder]
        report.reinitialised += [k for k in parameters if DECODER.fullmatch(k) and k not in decoder]
        state |= decoder
    else:
        report.dropped += checkpoint.decoder
    own_head = [key for key in ROI_HEAD if key in parameters]
    if own_head and all(
        key in checkpoint.roi_head and checkpoint.roi_head[key].shape == parameters[key].shape
        for key in own_head
    ):
        state |= checkpoint.roi_head
    else:
        report.dropped += checkpoint.roi_head
        report.reinitialised += own_head
    try:
        report.resized += adapt_state(state, encoder, checkpoint.architecture, pos_embed_resize)
    except ValueError as error:
        raise ValueError(f"{report.source}: {error}") from error

    report.missing += [k for k in parameters if k not in state and k not in report.reinitialised]
    if report.missing and not allow_partial:
        raise ValueError(
            f"{report.source} lacks {len(report.missing)} of the model's {len(parameters)} "
            f"parameters: {_shorten(report.missing)}"
        )
    for key, value in state.items():
        own = list(parameters[key].shape) if key in parameters else "without it"
        if list(value.shape) != own:
            raise ValueError(f"{report.source} has {key} {list(value.shape)}, the model is {own}")
    with torch.no_grad():
        for key, value in state.items():
            parameters[key].copy_(value)
    if set(HEAD) <= set(report.reinitialised):
        encoder.reset_classifier(encoder.num_classes)
    if own_head and not isinstance(model, MaskedAutoencoderHiera) and own_head[0] not in state:
        model.reset_classifier(model.num_classes)
    report.loaded += state
    sizes = {key: parameter.numel() for key, parameter in parameters.items()}
    report.loaded_frac = sum(sizes[key] for key in state) / sum(sizes.values())
    logger.info("%s", report)
    return report


def _fitting_decoder(checkpoint: Checkpoint, model: MaskedAutoencoderHiera) -> dict[str, Tensor]:
    """The tensors of a checkpoint's decoder that go into the model's; none if it has another kind.

    Raises:
        ValueError: a folder that states another decoder.
    """
    if not checkpoint.decoder:
        return {}
    is_image = PATCHES in checkpoint.state and checkpoint.state[PATCHES].shape[2] == 1
    published = {"input_size": (1 if is_image else 16, 224, 224)}
    published["patch_stride"] = (1 if is_image else 2, 4, 4)
    trained = checkpoint.architecture or published
    own = model.encoder.architecture
    if (trained["patch_stride"][0] == 1) != (own["patch_stride"][0] == 1):
        return {}  # predicted pixels of images and of video have different orders
    for key, value in checkpoint.autoencoder.items():
        if value != model.decoder_architecture[key]:
            raise ValueError(
                f"{checkpoint.source} was pretrained with {key}={value}, the model has "
                f"{key}={model.decoder_architecture[key]}: take {value}"
            )
    pairs = zip(trained["input_size"], trained["patch_stride"], strict=True)
    if tuple(size // stride for size, stride in pairs) == model.encoder.tokens_shape:
        return checkpoint.decoder
    return {k: v for k, v in checkpoint.decoder.items() if k != "decoder_pos_embed"}


def _encoder(model: Hiera | MaskedAutoencoderHiera | ActionDetector) -> Hiera:
    return model if isinstance(model, Hiera) else model.encoder


def _official_name(key: str) -> str:
    """Of a parameter here; an autoencoder's `encoder_norm` is `norm`."""
    return key.removeprefix("encoder.")


def _check_architecture(checkpoint: Checkpoint, model: Hiera) -> None:
    """Compares widths and depths, as shapes tell them, and what only a weights folder tells."""
    told, own = told_by_shapes(checkpoint.state), model.architecture
    if not told:
        return  # the caller says what is missing
    theirs = {
        "input_size": (1 if told["patch_kernel"][0] == 1 else 16, 224, 224),  # image or video
        **checkpoint.architecture,
        **told,
    }
    differs = [
        f"{key} {theirs[key]}, not {own[key]}"
        for key in ("embed_dim", "stages", "num_heads", "q_stride", "mask_unit_attn")
        if _plain(theirs.get(key, own[key])) != _plain(own[key])
    ]
    if differs:
        raise ValueError(
            f"{checkpoint.source} looks like {variant_name(theirs)}, the model is "
            f"{variant_name(own)}: the file has {', '.join(differs)}"
        )


def told_by_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keyword arguments of `Hiera` that its tensors tell; none where blocks or patches lack."""
    widths: list[int] = []
    while (key := f"blocks.{len(widths)}.norm2.weight") in state:
        widths.append(state[key].shape[0])
    if not widths or PATCHES not in state:
        return {}
    return {
        "patch_kernel": tuple(state[PATCHES].shape[2:]),
        "embed_dim": min(widths),
        "stages": tuple(widths.count(width) for width in sorted(set(widths))),
    }


def _plain(value: Any) -> Any:
    """A sequence as a tuple: JSON has lists."""
    return tuple(value) if isinstance(value, list | tuple) else value


# Saving, and building what a folder describes.


def save_weights(
    folder: str | Path,
    model: Hiera | MaskedAutoencoderHiera | ActionDetector,
    *,
    meta: Mapping[str, Any],
) -> None:
    """Writes config.json and model.safetensors; the folder appears when both are complete.

    Autoencoders and detectors are written under official names, so that `load_weights` takes their
    encoders for classifiers too.

    Args:
        folder: replaced if it is a weights folder already.
        meta: goes into config.json beside the architecture: `class_names`, `sampling_rate`, and
            whatever JSON can hold. `name`, `mean` and `std` default to those of the variant.

    Raises:
        ValueError: `meta` contradicts the model, or is not JSON.
        FileExistsError: `folder` is something else than a weights folder.
    """
    encoder = _encoder(model)
    folder, (mean, std) = Path(folder), input_statistics(encoder.architecture)
    fixed = {
        "format": FORMAT,
        "architecture": encoder.architecture,
        "num_classes": encoder.num_classes,
        "num_frames": encoder.input_size[0],
    }
    if isinstance(model, MaskedAutoencoderHiera):
        fixed |= {"num_classes": None, "autoencoder": model.decoder_architecture}
    elif not isinstance(model, Hiera):
        fixed |= {"num_classes": None, "detector": model.detector_architecture}
    if claimed := sorted(fixed.keys() & meta.keys()):
        raise ValueError(f"meta has {', '.join(claimed)}, which the model decides")
    if (names := meta.get("class_names")) and len(names) != encoder.num_classes:
        raise ValueError(f"meta has {len(names)} class_names for {encoder.num_classes} classes")
    name = variant_name(encoder.architecture)
    config = {"name": name, **fixed, "class_names": [], "mean": mean, "std": std, **meta}
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"meta does not fit into config.json: {error}") from error
    replaces = (folder / "config.json").is_file()
    if folder.exists() and not replaces:
        raise FileExistsError(f"{folder} exists and is not a weights folder")

    if replaces:
        logger.info("replacing the weights in %s", folder)
    with replacing(folder) as part:
        part.mkdir(parents=True)
        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        norm = "encoder_norm." if isinstance(model, MaskedAutoencoderHiera) else "norm."
        state = {rename(_official_name(k), {"norm.": norm}): v for k, v in state.items()}
        save_file(state, part / "model.safetensors", metadata={"format": "pt"})
        (part / "config.json").write_text(text + "\n", encoding="utf-8")


def load_folder(folder: str | Path) -> tuple[Hiera, dict[str, Any]]:
    """The classifier of a weights folder or run folder, or a published one, and its config.

    The config of published weights has the class names where the data set is known here (Kinetics),
    else ids.
    """
    if str(folder) in PUBLISHED:
        weights = PUBLISHED[str(folder)]
        if weights.num_classes is None:
            raise ValueError(f"{folder} is a masked autoencoder, without a classifier")
        names = weights.class_names
        model = create_model(str(folder))
        return model, {
            "class_names": names or [str(c) for c in range(weights.num_classes)],
            "multi_label": False,
            "mean": weights.mean,
            "std": weights.std,
        }
    check_source(folder)
    if not Path(folder).is_dir():
        raise ValueError(
            f"{folder} is a file: needed is a run folder, a weights folder (`hiera-video convert` "
            "writes one), or published weights of a classifier such as "
            "hiera_base_16x224.mae_k400_ft_k400"
        )
    return _classifier(read_checkpoint(folder))


def _classifier(checkpoint: Checkpoint) -> tuple[Hiera, dict[str, Any]]:
    source = checkpoint.source
    if not checkpoint.config:
        raise ValueError(f"{source} is not a weights folder that `save_weights` wrote")
    if checkpoint.autoencoder:
        raise ValueError(
            f"{source} is a masked autoencoder, without a classifier: fine-tune it with "
            f"model.init={source}"
        )
    if checkpoint.detector:
        raise ValueError(
            f"{source} is an action detector, not a classifier: `hiera-video detect ...` takes it"
        )
    return create_model(checkpoint=checkpoint), checkpoint.config


def load_trained(folder: str | Path) -> tuple[Hiera | ActionDetector, dict[str, Any]]:
    """As `load_folder` where that is a classifier, as `load_detector` where it is a detector."""
    if str(folder) in PUBLISHED or not Path(folder).is_dir():
        return load_folder(folder)
    checkpoint = read_checkpoint(folder)
    if checkpoint.detector:
        return create_detector(checkpoint=checkpoint), checkpoint.config
    return _classifier(checkpoint)


def load_autoencoder(
    source: str | Path, *, decoder_heads: int | None = None
) -> tuple[MaskedAutoencoderHiera, dict[str, Any]]:
    """The masked autoencoder of a weights, run or checkpoint folder, or a published one.

    Args:
        decoder_heads: must be given for published weights, which do not state it.

    Returns:
        The model, and the folder's config: `mean`, `std`, and what pretraining wrote beside them.
    """
    if str(source) in PUBLISHED:
        weights = PUBLISHED[str(source)]
        if weights.num_classes is not None:
            raise ValueError(f"{source} is a classifier, not a masked autoencoder")
        model = create_autoencoder(str(source), decoder_heads=decoder_heads)
        return model, {"mean": weights.mean, "std": weights.std}
    checkpoint = read_checkpoint(source)
    if not checkpoint.autoencoder:
        raise ValueError(
            f"{source}: needed is what `hiera-video pretrain` wrote, or published weights such as "
            "hiera_base_16x224.mae_k400"
        )
    model = create_autoencoder(checkpoint=checkpoint, decoder_heads=decoder_heads)
    return model, checkpoint.config


def load_detector(
    folder: str | Path, *, image_size: tuple[int, int] | None = None
) -> tuple[ActionDetector, dict[str, Any]]:
    """The action detector of a weights, run or checkpoint folder, and the folder's config.

    Args:
        image_size: height and width of a clip, pixels. None: as trained.

    The config has `label_map` (names by id, as text), `mean`, `std`, and what training wrote beside
    them.
    """
    checkpoint = read_checkpoint(folder)
    if not checkpoint.detector:
        raise ValueError(f"{folder}: needed is what `hiera-video detect train` wrote")
    return create_detector(checkpoint=checkpoint, image_size=image_size), checkpoint.config


def load_backbone(
    source: str | Path, *, num_frames: int | None = None, image_size: int | None = None
) -> tuple[Hiera, dict[str, Any]]:
    """The backbone of a classifier or of a masked autoencoder, and its config.

    Args:
        source: a weights, run or checkpoint folder, or published weights.
        num_frames, image_size: of a clip. None: as trained.

    Returns:
        The model, with its classifier if it has one, and `mean`, `std` and `is_autoencoder`.
    """
    if str(source) in PUBLISHED:
        weights = PUBLISHED[str(source)]
        is_autoencoder, mean, std = weights.num_classes is None, weights.mean, weights.std
        name, checkpoint = str(source), None
    else:
        name, checkpoint = None, read_checkpoint(source)
        if not checkpoint.config:
            raise ValueError(f"{source} is not a weights folder that `save_weights` wrote")
        is_autoencoder = bool(checkpoint.autoencoder)
        mean, std = checkpoint.config["mean"], checkpoint.config["std"]
    model = create_model(
        name,
        checkpoint=checkpoint,
        num_classes=0 if is_autoencoder else None,
        num_frames=num_frames,
        image_size=image_size,
    )
    return model, {"mean": mean, "std": std, "is_autoencoder": is_autoencoder}


def known_to(checkpoint: str | Path | None, key: str) -> Any:
    """A value of the config.json of a weights, run or checkpoint folder; None elsewhere."""
    for folder in (Path(checkpoint or ""), Path(checkpoint or "") / "weights"):
        if checkpoint and (folder / "config.json").is_file():
            return json.loads((folder / "config.json").read_text(encoding="utf-8")).get(key)
    return None
