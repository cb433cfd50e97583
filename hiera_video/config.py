"""All configuration: frozen dataclasses, and how files and `key.path=value` become one of them.

A YAML file is the difference from the defaults below. The only file that knows OmegaConf; longer
than others, because every setting of every command stands here, with its unit.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Config = TypeVar("Config")


# Settings that do not touch results: a run may go on with others.
FREE_TO_CHANGE = {
    *("run_dir", "device", "overwrite_config", "model.grad_checkpointing"),
    *("data.num_workers", "data.deadline_sec", "views.batch_size", "batch_size"),
    *("train.log_every", "train.keep_checkpoints"),
}


class ConfigError(ValueError):
    """A mistake in a configuration: the message names the key, its value and what is allowed."""


@contextmanager
def configured() -> Iterator[None]:
    """What is built inside depends on the configuration alone: its errors become ConfigErrors.

    For sizes that do not fit together and for names of models, which only the models know.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from None


@dataclass(frozen=True)
class BackboneConfig:
    name: str = "hiera_base_16x224"
    """A variant of `hiera_video.list_models()`."""
    init: str | None = None
    """Weights to start from: a file, a weights, run or checkpoint folder, or a published tag.
    Null: none."""
    num_frames: int | None = None
    """Frames of a clip. Null: the variant's."""
    image_size: int | None = None
    """Height and width of a clip, pixels. Null: the variant's."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `Hiera` that differ from the variant's, e.g. {mask_unit: [2, 8, 8]}."""
    drop_path: float = 0.0
    """Stochastic depth of the last block, 0..1."""
    pos_embed_resize: Literal["window", "bicubic"] = "window"
    """How position embeddings are resized: aware of attention windows, or plainly bicubic."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True)
class ModelConfig(BackboneConfig):
    head_dropout: float = 0.0
    """Dropout before the classifier, 0..1."""


@dataclass(frozen=True)
class AutoencoderConfig(BackboneConfig):
    decoder_heads: int | None = None
    """Attention heads of the decoder. Must be set, since no tensor's shape tells: 8 in the paper's
    video recipes, 16 in its image recipes and in all public builders. Null: those of `init`, where
    that is a folder that states them."""
    decoder_dim: int = 512
    """Width of the decoder."""
    decoder_depth: int = 8
    """Blocks of the decoder."""
    target: Literal["pixels", "hog"] = "pixels"
    """What is predicted of hidden units: normalised pixels, or histograms of oriented gradients."""


@dataclass(frozen=True)
class DetectorConfig(ModelConfig):
    image_size: Any = None
    """Height and width of a clip, pixels: one number, or [height, width]. Null: the variant's."""
    roi_resolution: int = 7
    """Bins of RoIAlign along each side of a box."""


@dataclass(frozen=True)
class ClipConfig:
    sampling: Literal["clip", "segments"] = "clip"
    """Frames at a fixed distance (Kinetics), or one from each of num_frames equal parts (SSv2)."""
    sampling_rate: int = 4
    """Distance between sampled frames, source frames (frames at target_fps where that is set)."""
    spacing: Literal["linspace", "strided"] = "linspace"
    """Spread over num_frames * sampling_rate frames, ends included (SlowFast), or every n-th."""
    target_fps: float | None = None
    """Sample the video as if played at this rate, frames per second. Null: its own frames."""
    end_policy: Literal["repeat_last", "wrap", "error"] = "repeat_last"
    """What stands for the frames past the end of a video that is shorter than a clip."""


@dataclass(frozen=True)
class KeyframeClipConfig:
    sampling_rate: int = 4
    """Distance between the frames around a key frame, source frames (frames at target_fps where
    that is set)."""
    target_fps: float | None = None
    """Sample the video as if played at this rate, frames per second: 30 for AVA. Null: its own."""


@dataclass(frozen=True)
class ReadingConfig:
    root: str | None = None
    """Folder that relative paths in lists start from. Null: the list's own folder."""
    backend: Literal["pyav", "decord", "torchcodec"] = "pyav"
    """Library that decodes."""
    deadline_sec: float = 60.0
    """Longest time that reading one video may take, seconds."""
    num_workers: int | None = None
    """Decoding processes for each process. Null: as many as its share of the CPU cores."""


@dataclass(frozen=True)
class PretrainDataConfig(ReadingConfig):
    train: str | None = None
    """Training videos: a list (csv, txt, json, jsonl), or a folder. Labels are not used."""
    max_failed_frac: float = 0.05
    """Training stops when more than this fraction of the videos read failed (after 100 videos)."""


@dataclass(frozen=True)
class DataConfig(PretrainDataConfig):
    train: str | None = None
    """Training videos: a list (csv, txt, json, jsonl), or a folder with one folder a class."""
    val: str | None = None
    """Validation videos, in the same forms."""
    class_names: str | None = None
    """Text file with one class name a line, or a json label map. Null: from the data."""
    multi_label: bool = False
    """A video may have several classes: sigmoid, and mean average precision instead of top-1."""
    balanced: bool = False
    """Draw training videos so that every class is equally likely."""


@dataclass(frozen=True)
class EvaluationDataConfig(ReadingConfig):
    val: str | None = None
    """Videos to evaluate on: a list file or a folder, as for training."""


@dataclass(frozen=True)
class KeyframeDataConfig(ReadingConfig):
    root: str | None = None
    """Folder that holds each video, or a folder of its frames, under its name in the lists. Null:
    the list's own folder."""
    start_sec: float = 0.0
    """Second of the annotations at which the files begin: 0 for AVA's whole films, 900 where they
    were cut as SlowFast's instructions say."""
    frames_fps: float = 30.0
    """Frames per second of folders of frames."""
    val: str | None = None
    """Ground truth to evaluate with: AVA csv, or csv or JSON lines with named columns."""
    val_proposals: str | None = None
    """Detected person boxes to score: SlowFast's csv, mmaction2's pickle, or csv or JSON lines with
    named columns. Null: the boxes of the ground truth, an easier protocol that the report names."""
    proposal_score: float = 0.8
    """Lowest score of a proposal that is used."""
    val_excluded: str | None = None
    """Key frames to leave out: csv of video,second."""
    val_keyframes: str | None = None
    """All key frames that count, those without people too: csv of video,second."""
    seconds: tuple[float, float] | None = None
    """Without val_keyframes: every second from the first to the last counts, [902, 1798] for AVA.
    Null: the key frames that the ground truth or the proposals name."""


@dataclass(frozen=True)
class DetectionDataConfig(KeyframeDataConfig):
    train: str | None = None
    """Ground truth to train on, as `val`."""
    train_excluded: str | None = None
    """Key frames to leave out of training."""
    train_proposals: str | None = None
    """Detected person boxes to train on too, where they meet the ground truth."""
    proposal_iou: float = 0.9
    """How well: least intersection over union with an annotated box."""
    label_map: str | None = None
    """Actions and their ids, from 1: AVA's pbtxt with all 80, or a text file with one a line."""
    max_failed_frac: float = 0.05
    """Training stops when more than this fraction of the key frames read failed (after 100)."""


@dataclass(frozen=True)
class DetectionEvaluationDataConfig(KeyframeDataConfig):
    label_map: str | None = None
    """Actions that are evaluated: AVA's pbtxt with 60. Null: all that the model knows."""


@dataclass(frozen=True)
class DetectionAugmentConfig:
    zoom: tuple[float, float] = (8 / 7, 10 / 7)
    """Size of the resized picture over the smallest that covers the crop (short sides of 256 to
    320 for crops of 224)."""
    flip: bool = True
    """Flip half of the clips horizontally."""


@dataclass(frozen=True)
class MaskingConfig:
    kind: Literal["random", "tube", "frame", "block"] = "random"
    """Each mask unit for itself, one spatial pattern for all times, whole time steps, or boxes."""
    mask_ratio: float | None = None
    """Fraction of the mask units that is hidden. Null: 0.9 for video, 0.6 for images."""


@dataclass(frozen=True)
class PretrainAugmentConfig:
    crop_area: tuple[float, float] = (0.5, 1.0)
    """Area of the random resized crop, fraction of the frame."""
    crop_aspect: tuple[float, float] = (0.75, 1.3333)
    """Width over height of the crop."""
    flip: bool = True
    """Flip half of the clips horizontally. Never for SSv2, whose labels tell left from right."""


@dataclass(frozen=True)
class AugmentConfig(PretrainAugmentConfig):
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Area of the random resized crop, fraction of the frame."""
    rand_augment_magnitude: float | None = 7.0
    """Magnitude of RandAugment, 0..10. Null: no RandAugment."""
    rand_augment_std: float = 0.5
    """Standard deviation of that magnitude."""
    erasing_prob: float = 0.25
    """Probability that a box of the clip is replaced by noise."""
    mixup: float = 0.8
    """Beta parameter of mixup. 0: none."""
    cutmix: float = 1.0
    """Beta parameter of cutmix. 0: none."""
    label_smoothing: float = 0.1
    """Probability mass spread over all classes."""


@dataclass(frozen=True)
class OptimConfig:
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """SGD has Nesterov momentum 0.9."""
    lr: float = 8e-4
    """Peak learning rate, absolute: for the global batch, never rescaled."""
    warmup_lr: float = 1e-8
    """Learning rate of the first step."""
    final_lr: float = 1e-5
    """Learning rate that the cosine runs down to."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    weight_decay: float = 0.05
    """Of matrices; vectors and position embeddings are not decayed."""
    layer_decay: float = 1.0
    """Learning rate of a block over that of the block above it."""
    clip_grad: float | None = 5.0
    """Largest norm of the gradient. Null: not clipped."""


@dataclass(frozen=True)
class LoopConfig:
    epochs: float = 100.0
    """Length, effective epochs: num_repeats for each pass over the videos."""
    warmup_epochs: float = 10.0
    """Linear warmup, effective epochs."""
    global_batch_size: int = 256
    """Videos (not clips) a step, over all processes."""
    accumulation_steps: int = 1
    """Parts in which each process goes through its share of a step."""
    num_repeats: int = 2
    """Clips of each decoded video (repeated sampling)."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: autocast; weights, loss and optimizer stay in float32."""
    seed: int = 0
    """Decides the order of the videos and all randomness."""
    compile: bool = False
    """torch.compile the model."""
    checkpoint_every: float = 1.0
    """Distance between checkpoints, passes over the training videos."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk."""
    log_every: int = 10
    """Distance between console lines, steps."""
    max_nonfinite_steps: int = 10
    """Steps in a row with a non-finite gradient (each is skipped) after which training stops."""


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    train_only: Literal["all", "head"] = "all"
    """head: a linear probe on the frozen backbone (its norm is trained too)."""
    freeze_stages: int = 0
    """Stages, from the first, that are not trained; with any, the patch embedding is not either."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh each class by the inverse of its share of the training videos."""
    ema_decay: float | None = None
    """Evaluate and export an exponential moving average of the weights with this decay."""
    evaluate_every: float | None = 5.0
    """Distance between one-view evaluations, passes over the training videos. Null: none."""


@dataclass(frozen=True)
class ViewConfig:
    num_clips: int = 5
    """Temporal clips of a video."""
    num_crops: int = 3
    """Spatial crops of a clip: 1 (centre) or 3 (along the longer side)."""
    clip_rule: Literal["offset", "interval"] = "offset"
    """The last clip ends with the video (SlowFast's offset sampling), or starts at even shares."""
    short_side: int | None = None
    """Short side after resizing, pixels. Null: the crop size for 3 crops, 256/224 of it for 1."""
    batch_size: int = 16
    """Views in one forward pass; those of several videos share it."""


@dataclass(frozen=True)
class FinetuneConfig:
    """`hiera-video finetune`: train a classifier on videos or images."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    run_dir: str = "runs/finetune"
    """Where everything of the run goes; a run found there is resumed."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""
    overwrite_config: bool = False
    """Resume a run although its saved configuration differs."""

    def check(self) -> None:
        _check_training(self)
        _check_fraction("model.head_dropout", self.model.head_dropout)
        _check_fraction("augment.erasing_prob", self.augment.erasing_prob)
        _check_fraction("augment.label_smoothing", self.augment.label_smoothing)
        if self.train.ema_decay is not None:
            _check_fraction("train.ema_decay", self.train.ema_decay)
        for key, value in (("mixup", self.augment.mixup), ("cutmix", self.augment.cutmix)):
            _require(value >= 0, f"augment.{key}", value, "0 (none) or more")
        if self.train.evaluate_every is not None:
            _check_positive("train.evaluate_every", self.train.evaluate_every)
        _check_views(self.views, self.clips)
        _check_layer_decay(self.optim)
        _require(
            not (self.train.train_only == "head" and self.train.freeze_stages),
            "train.freeze_stages",
            self.train.freeze_stages,
            "0 with train.train_only=head, which freezes the backbone already",
        )
        _require(
            not (self.train.train_only == "head" and self.model.init is None),
            "model.init",
            None,
            "weights, when train.train_only=head: a probe on random features measures nothing",
        )


@dataclass(frozen=True)
class PretrainConfig:
    """`hiera-video pretrain`: masked-autoencoder pretraining on videos or images without labels."""

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    data: PretrainDataConfig = field(default_factory=PretrainDataConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    augment: PretrainAugmentConfig = field(default_factory=PretrainAugmentConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            warmup_lr=1e-6, final_lr=1e-6, betas=(0.9, 0.95), clip_grad=0.02
        )
    )
    train: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            epochs=800.0, warmup_epochs=120.0, global_batch_size=512, num_repeats=4
        )
    )
    run_dir: str = "runs/pretrain"
    """Where everything of the run goes; a run found there is resumed."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""
    overwrite_config: bool = False
    """Resume a run although its saved configuration differs."""

    def check(self) -> None:
        _check_training(self)
        _require(
            self.optim.layer_decay == 1.0,
            "optim.layer_decay",
            self.optim.layer_decay,
            "1.0 in pretraining: all layers learn alike",
        )
        _check_masking(self.masking)
        for key in ("decoder_dim", "decoder_depth"):
            _check_positive(f"model.{key}", getattr(self.model, key))
        heads = self.model.decoder_heads
        if heads is None:  # a folder may state it
            _require(
                self.model.init is not None,
                "model.decoder_heads",
                None,
                "8 (the paper's video recipes) or 16 (its image recipes, all public builders)",
            )
        else:
            _require(
                heads > 0 and self.model.decoder_dim % heads == 0,
                "model.decoder_heads",
                heads,
                f"a divisor of model.decoder_dim={self.model.decoder_dim}",
            )


@dataclass(frozen=True)
class DetectionTrainConfig(LoopConfig):
    evaluate_every: float | None = 5.0
    """Distance between evaluations, passes over the training key frames. Null: none but the last.
    """


@dataclass(frozen=True)
class DetectTrainConfig:
    """`hiera-video detect train`: train an action detector on key frames with boxes, as AVA has."""

    model: DetectorConfig = field(default_factory=DetectorConfig)
    data: DetectionDataConfig = field(default_factory=DetectionDataConfig)
    clips: KeyframeClipConfig = field(default_factory=KeyframeClipConfig)
    augment: DetectionAugmentConfig = field(default_factory=DetectionAugmentConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-4, final_lr=1e-6, warmup_lr=1e-6)
    )
    train: DetectionTrainConfig = field(
        default_factory=lambda: DetectionTrainConfig(
            epochs=30.0, warmup_epochs=5.0, global_batch_size=128, num_repeats=1
        )
    )
    batch_size: int = 16
    """Clips in a forward pass of evaluation."""
    run_dir: str = "runs/detect"
    """Where everything of the run goes; a run found there is resumed."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""
    overwrite_config: bool = False
    """Resume a run although its saved configuration differs."""

    def check(self) -> None:
        _require(self.data.train is not None, "data.train", None, "a list of boxes")
        _require(self.data.label_map is not None, "data.label_map", None, "a list of actions")
        _check_backbone(self.model)
        _check_fraction("model.head_dropout", self.model.head_dropout)
        _check_positive("model.roi_resolution", self.model.roi_resolution)
        _check_image_size("model.image_size", self.model.image_size)
        _require(
            1 <= self.augment.zoom[0] <= self.augment.zoom[1],
            "augment.zoom",
            list(self.augment.zoom),
            "[low, high] with 1 <= low <= high",
        )
        _check_fraction("data.max_failed_frac", self.data.max_failed_frac)
        _check_loop(self.train, self.optim)
        _check_layer_decay(self.optim)
        if self.train.evaluate_every is not None:
            _check_positive("train.evaluate_every", self.train.evaluate_every)
        _check_positive("batch_size", self.batch_size)
        _check_keyframes(self.data, self.clips)
        _require(
            0 < self.data.proposal_iou <= 1,
            "data.proposal_iou",
            self.data.proposal_iou,
            "above 0, up to 1",
        )


@dataclass(frozen=True)
class DetectEvaluateConfig:
    """`hiera-video detect evaluate`: frame mAP of a trained action detector, in both protocols.

    `clips` start from what the checkpoint was trained with, not from the defaults here.
    """

    checkpoint: str | None = None
    """A run, checkpoint or weights folder of an action detector."""
    data: DetectionEvaluationDataConfig = field(default_factory=DetectionEvaluationDataConfig)
    clips: KeyframeClipConfig = field(default_factory=KeyframeClipConfig)
    batch_size: int = 16
    """Clips in a forward pass."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of the forward pass."""
    output_dir: str | None = None
    """Folder for report.json, detections.csv and keyframes.csv (those that count). Null: eval/ of
    the run folder."""
    overwrite: bool = False
    """Replace results that lie in output_dir."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""

    def check(self) -> None:
        _require(
            self.checkpoint is not None, "checkpoint", None, "a run folder or a weights folder"
        )
        _require(self.data.val is not None, "data.val", None, "a list of boxes")
        _check_positive("batch_size", self.batch_size)
        _check_keyframes(self.data, self.clips)


@dataclass(frozen=True)
class EvaluateConfig:
    """`hiera-video evaluate`: multi-view accuracy of a trained classifier.

    `clips` and `views` start from what the checkpoint was trained with, not from the defaults here.
    """

    checkpoint: str | None = None
    """A run folder or a weights folder."""
    data: EvaluationDataConfig = field(default_factory=EvaluationDataConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of the forward pass."""
    output_dir: str | None = None
    """Folder for report.json, scores.npz and predictions.csv. Null: eval/ of the run folder."""
    overwrite: bool = False
    """Replace results that lie in output_dir."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""

    def check(self) -> None:
        _require(
            self.checkpoint is not None, "checkpoint", None, "a run folder or a weights folder"
        )
        _require(self.data.val is not None, "data.val", None, "a list file or a folder")
        _check_reading(self.data)
        _check_views(self.views, self.clips)


@dataclass(frozen=True)
class PredictConfig:
    """`hiera-video predict FILE...`: the most likely classes of videos or images."""

    inputs: list[str] = field(default_factory=list)
    """Files, or folders of files."""
    checkpoint: str | None = None
    """A run folder or a weights folder."""
    top_k: int = 5
    """How many classes to print."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    backend: Literal["pyav", "decord", "torchcodec"] = "pyav"
    """Library that decodes."""
    deadline_sec: float = 60.0
    """Longest time that reading one video may take, seconds."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of the forward pass."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""

    def check(self) -> None:
        _require(bool(self.inputs), "FILE", None, "one video, image or folder at least")
        _require(
            self.checkpoint is not None, "checkpoint", None, "a run folder or a weights folder"
        )
        _check_positive("top_k", self.top_k)
        _check_views(self.views, self.clips)


@dataclass(frozen=True)
class WindowConfig:
    kind: Literal["dense", "views"] = "dense"
    """Windows over the whole video, or the clips of multi-view evaluation."""
    clip_stride: int | None = None
    """Dense: distance between the starts of two windows, source frames (frames at
    clips.target_fps where that is set). Null: the length of a clip, side by side."""
    clip_stride_sec: float | None = None
    """The same in seconds, instead."""
    last_window: Literal["pad", "drop", "shift"] = "pad"
    """Dense: where frames remain at the end, a window that repeats the last frame, none, or one
    that ends with the video. A video shorter than a clip has one window, by clips.end_policy."""
    num_clips: int = 5
    """Views: temporal clips of a video."""
    clip_rule: Literal["offset", "interval"] = "offset"
    """Views: the last clip ends with the video, or clips start at even shares."""
    num_crops: int = 1
    """Spatial crops of a window: 1 (centre) or 3 (along the longer side)."""
    short_side: int | None = None
    """Short side after resizing, pixels. Null: the crop size for 3 crops, 256/224 of it for 1."""


@dataclass(frozen=True)
class ExtractConfig:
    """`hiera-video extract INPUT`: features of many videos, one file a video, and an index.

    INPUT is a folder, searched at any depth, a list (csv, txt, json, jsonl), or videos. The same
    command goes on where it stopped. `clips` start from what the checkpoint was trained with.
    """

    inputs: list[str] = field(default_factory=list)
    """A folder or a list, or files."""
    checkpoint: str | None = None
    """A run, checkpoint or weights folder, of a classifier or a masked autoencoder, or published
    weights."""
    output_dir: str = "features"
    """Folder for the features, index.jsonl and failures.jsonl."""
    layer: Literal["stage1", "stage2", "stage3", "stage4", "pre_logits", "logits"] = "pre_logits"
    """Tokens of a stage; the mean of the last ones, normalised; or the classifier's outputs."""
    pooling: Literal["mean", "spatial", "temporal", "none"] = "mean"
    """Of a stage's tokens [t, h, w, D]: mean leaves [D], spatial [t, D], temporal [h, w, D]."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the stored numbers; bfloat16 with to=safetensors only."""
    to: Literal["npz", "npy", "safetensors", "parquet"] = "npz"
    """Kind of file. npy: with a json beside it; parquet: npz files, and one table of them all."""
    num_frames: int | None = None
    """Frames of a clip. Null: as the model was trained."""
    image_size: int | None = None
    """Height and width of a clip, pixels. Null: as the model was trained."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    data: ReadingConfig = field(default_factory=ReadingConfig)
    batch_size: int = 16
    """Views in one forward pass; those of several videos share it."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of the forward pass."""
    engine: Literal["local", "ray"] = "local"
    """local: this machine, or torchrun's processes. ray: Ray Data, on a cluster."""
    retry_failed: bool = False
    """Read the videos again that failed before."""
    overwrite: bool = False
    """Replace features that were made with other settings."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""

    def check(self) -> None:
        _require(bool(self.inputs), "INPUT", None, "a folder, a list, or videos")
        _require(self.checkpoint is not None, "checkpoint", None, "a folder or published weights")
        _require(
            self.layer.startswith("stage") or self.pooling == "mean",
            "pooling",
            self.pooling,
            f"mean with layer={self.layer}, which has no axes left",
        )
        _require(
            self.dtype != "bfloat16" or self.to == "safetensors",
            "dtype",
            self.dtype,
            f"float32 or float16 with to={self.to}, which has no bfloat16; or to=safetensors",
        )
        _check_clips(self.clips)
        _check_reading(self.data)
        _require(self.data.num_workers != 0, "data.num_workers", 0, "1 or more: reading may crash")
        _check_positive("batch_size", self.batch_size)
        windows = self.windows
        for key in ("clip_stride", "clip_stride_sec", "num_clips", "short_side"):
            if getattr(windows, key) is not None:
                _check_positive(f"windows.{key}", getattr(windows, key))
        _require(windows.num_crops in (1, 3), "windows.num_crops", windows.num_crops, "1 or 3")
        _require(
            windows.clip_stride is None or windows.clip_stride_sec is None,
            "windows.clip_stride_sec",
            windows.clip_stride_sec,
            "null with windows.clip_stride: one of the two",
        )
        for kind, key in (
            ("dense", "clip_stride"),
            ("dense", "clip_stride_sec"),
            ("dense", "last_window"),
            ("views", "num_clips"),
            ("views", "clip_rule"),
        ):
            unused = getattr(WindowConfig(), key)
            _require(
                windows.kind == kind or getattr(windows, key) == unused,
                f"windows.{key}",
                getattr(windows, key),
                f"{unused or 'null'} with windows.kind={windows.kind}, which does not use it",
            )
        _require(
            windows.kind == "views" or self.clips.sampling == "clip",
            "clips.sampling",
            self.clips.sampling,
            "clip with windows.kind=dense: segments are parts of a whole video",
        )
        _require(
            self.clips.sampling == "clip" or windows.num_clips in (1, 2),
            "windows.num_clips",
            windows.num_clips,
            "1 or 2 with clips.sampling=segments",
        )


@dataclass(frozen=True)
class DetectPredictConfig:
    """`hiera-video detect predict FILE...`: what the people in videos do, and when.

    People are found by torchvision's detector, or given in `boxes`. `clips` start from what the
    checkpoint was trained with, not from the defaults here.
    """

    inputs: list[str] = field(default_factory=list)
    """Videos."""
    checkpoint: str | None = None
    """A run, checkpoint or weights folder of an action detector."""
    boxes: str | None = None
    """Boxes of people, and with them the key frames: csv of video,second,x1,y1,x2,y2,,score, where
    video is a file's name and second counts from its first frame. Null: they are detected."""
    detector: str | None = None
    """Weights of torchvision's fasterrcnn_resnet50_fpn_v2, a .pth file. Null: fetched."""
    detector_score: float = 0.8
    """Lowest score of a person's box that is used, detected or given, 0..1."""
    every_sec: float = 1.0
    """Distance between key frames where people are detected, seconds."""
    min_score: float = 0.3
    """Lowest score of an action in the overlay and the JSON file, 0..1; the csv has all."""
    top_k: int = 3
    """Most actions of a person there."""
    clips: KeyframeClipConfig = field(default_factory=KeyframeClipConfig)
    output_dir: str = "detections"
    """Folder for NAME_detections.csv, NAME_detections.json and NAME_overlay.mp4 of each file."""
    overwrite: bool = False
    """Replace results that lie in output_dir."""
    batch_size: int = 8
    """Clips in a forward pass."""
    backend: Literal["pyav", "decord", "torchcodec"] = "pyav"
    """Library that decodes."""
    deadline_sec: float = 60.0
    """Longest time that reading one clip, or waiting for one frame, may take, seconds."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of the forward pass."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""

    def check(self) -> None:
        _require(bool(self.inputs), "FILE", None, "one video at least")
        _require(
            self.checkpoint is not None, "checkpoint", None, "a run folder or a weights folder"
        )
        _require(
            self.boxes is None or self.detector is None,
            "detector",
            self.detector,
            "null with boxes, which take its place",
        )
        for key in ("detector_score", "min_score"):
            value = getattr(self, key)
            _require(0 <= value <= 1, key, value, "from 0 to 1")
        for key in ("every_sec", "top_k", "batch_size", "deadline_sec"):
            _check_positive(key, getattr(self, key))
        _check_positive("clips.sampling_rate", self.clips.sampling_rate)
        if self.clips.target_fps is not None:
            _check_positive("clips.target_fps", self.clips.target_fps)


@dataclass(frozen=True)
class VisualizeConfig:
    """`hiera-video visualize mae FILE...`: pictures of what a masked autoencoder sees and predicts.

    `clips` and `masking` start from what the checkpoint was trained with, not from the defaults
    here.
    """

    inputs: list[str] = field(default_factory=list)
    """Files; the centre clip of each is shown."""
    checkpoint: str | None = None
    """A run, checkpoint or weights folder of a masked autoencoder, or published weights of one."""
    mode: Literal["normalised", "visible_statistics", "ground_truth_statistics"] = "normalised"
    """Where the brightness and contrast of predicted patches come from: nowhere, all patches being
    shown in normalised units; the average of the visible patches; or the hidden patches themselves,
    which flatters the model."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    decoder_heads: int | None = None
    """Attention heads of the decoder. Null: as the checkpoint states; published weights do not."""
    output_dir: str = "visualize"
    """Folder for NAME_MODE.png and NAME_MODE.mp4 of each file."""
    overwrite: bool = False
    """Replace pictures that lie in output_dir."""
    seed: int = 0
    """Decides, with the position of a file among the inputs, which units are visible."""
    backend: Literal["pyav", "decord", "torchcodec"] = "pyav"
    """Library that decodes."""
    deadline_sec: float = 60.0
    """Longest time that reading one video may take, seconds."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""

    def check(self) -> None:
        _require(bool(self.inputs), "FILE", None, "one video or image at least")
        _require(
            self.checkpoint is not None,
            "checkpoint",
            None,
            "a run, checkpoint or weights folder of a masked autoencoder",
        )
        _check_masking(self.masking)
        if self.decoder_heads is not None:
            _check_positive("decoder_heads", self.decoder_heads)
        _check_positive("deadline_sec", self.deadline_sec)
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _check_clips(self.clips)


@dataclass(frozen=True)
class FlopsConfig:
    """`hiera-video flops MODEL`: parameters, multiply-adds and activations, by stage and in all.

    MODEL is a variant of `hiera_video.list_models()`. In its place, --config may name a recipe of
    finetune, pretrain or detect train, of which the model, the masking and the views count.
    """

    model: str | None = None
    """MODEL, a variant."""
    task: Literal["classification", "pretraining", "detection"] | None = None
    """One view classified, a masked clip reconstructed, or one box of a clip classified. Null: what
    the recipe is for, else classification."""
    num_frames: int | None = None
    """Frames of a clip. Null: the variant's."""
    image_size: Any = None
    """Height and width of a clip, pixels: one number, or [height, width]. Null: the variant's."""
    num_classes: int | None = None
    """Outputs of the classifier. Null: the variant's; 80, AVA's, in detection."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `Hiera` that differ from the variant's, e.g. {mask_unit: [2, 8, 8]}."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    decoder_dim: int = 512
    """Width of the decoder in pretraining."""
    decoder_depth: int = 8
    """Blocks of the decoder in pretraining."""
    target: Literal["pixels", "hog"] = "pixels"
    """What is predicted in pretraining."""
    roi_resolution: int = 7
    """Bins of RoIAlign along each side of a box in detection."""
    num_clips: int | None = None
    """Temporal clips of a video. Null: 5 for the classification of videos, else 1."""
    num_crops: int | None = None
    """Spatial crops of a clip. Null: 3 for the classification of videos, else 1."""
    modules: bool = False
    """What each module costs, too, not stages alone."""
    table: bool = False
    """Instead, the sizes and FLOPs of all variants as the paper's tables have them."""

    def check(self) -> None:
        if self.table:
            _require(self.model is None, "table", True, "false with a MODEL: it has all variants")
            return
        _require(self.model is not None, "MODEL", None, "a variant, or a recipe, or --table")
        keys = ("num_frames", "num_classes", "num_clips", "num_crops")
        for key in (*keys, "decoder_dim", "decoder_depth", "roi_resolution"):
            if getattr(self, key) is not None:
                _check_positive(key, getattr(self, key))
        _require(
            self.task != "pretraining" or self.num_classes is None,
            "num_classes",
            self.num_classes,
            "null with task=pretraining, which has no classifier",
        )
        _check_image_size("image_size", self.image_size)
        _check_overrides("overrides", self.overrides, self)
        _check_masking(self.masking)


@dataclass(frozen=True)
class BenchmarkConfig:
    """`hiera-video benchmark [MODEL ...]`: speed and memory of models, beside those of others.

    MODEL is a variant of `hiera_video.list_models()`; several must all be of video or of images.
    Weights are random, inputs too: neither changes the speed.
    """

    models: list[str] = field(default_factory=list)
    """MODEL ..., variants. None at all: hiera_base_16x224."""
    peers: bool = False
    """Measure torchvision's, pytorchvideo's, timm's and the official models by turns with ours."""
    only: str = ""
    """Of the peers, those whose names contain this, e.g. official."""
    work: list[str] = field(default_factory=lambda: ["inference", "finetuning", "pretraining"])
    """Any of inference, finetuning and pretraining: steps of training without the optimizer."""
    precisions: list[str] = field(default_factory=lambda: ["fp32", "bf16"])
    """Any of fp32, bf16 and fp16 (by autocast; fp16 on a GPU alone)."""
    execution: list[str] = field(default_factory=lambda: ["eager"])
    """Any of eager and compiled (by torch.compile, of which the first call takes a minute)."""
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    """Clips of a call. One that does not fit into the memory is halved, which is said."""
    rounds: int = 5
    """Of which the median counts; each is as many calls as take half a second."""
    videos: str | None = None
    """File, folder or list of videos: inference is measured with decoding, too, of one clip a
    video, until `rounds` batches are done. Null: without decoding alone."""
    num_workers: int | None = None
    """Decoding processes. Null: as many as there are cores."""
    output_dir: str | None = None
    """Folder for results.json, results.md and accuracy_speed.png. Null: they are not written."""
    overwrite: bool = False
    """Replace results in output_dir."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""

    def check(self) -> None:
        for key, allowed in (
            ("work", ("inference", "finetuning", "pretraining")),
            ("precisions", ("fp32", "bf16", "fp16")),
            ("execution", ("eager", "compiled")),
        ):
            given = getattr(self, key)
            _require(
                bool(given) and set(given) <= set(allowed),
                key,
                given,
                f"a list of {', '.join(allowed)}",
            )
        _require(bool(self.batch_sizes), "batch_sizes", self.batch_sizes, "at least one number")
        for size in self.batch_sizes:
            _check_positive("batch_sizes", size)
        _check_positive("rounds", self.rounds)
        if self.num_workers is not None:
            _require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")
        measured = "inference" in self.work and "eager" in self.execution
        _require(
            self.videos is None or (measured and "fp16" not in self.precisions),
            "videos",
            self.videos,
            "null, but for inference, eager, in fp32 and bf16: so decoding is measured",
        )
        _require(self.peers or not self.only, "only", self.only, "empty without --peers")


@dataclass(frozen=True)
class ExportConfig:
    """`hiera-video export`: a model as torch.export and ONNX files, each compared with it.

    A classifier becomes model.pt2 and model.onnx, an action detector backbone and head, and
    export.json says what goes in and what comes out.
    """

    checkpoint: str | None = None
    """A run, checkpoint or weights folder of a classifier or an action detector, or published
    weights."""
    to: Literal["pt2", "onnx", "both"] = "both"
    """Kind of files: torch.export, ONNX."""
    output_dir: str = "exported"
    """Folder for the files."""
    overwrite: bool = False
    """Replace the folder if it is of an earlier export."""

    def check(self) -> None:
        _require(
            self.checkpoint is not None, "checkpoint", None, "a run folder or published weights"
        )


@dataclass(frozen=True)
class ConvertConfig:
    """`hiera-video convert`: weights of a classifier or backbone in the layout of another project.

    What was written is read again, and all tensors must come back the same.
    """

    checkpoint: str | None = None
    """A file or folder in any of the layouts, or published weights."""
    to: Literal["hiera_video", "official", "timm", "transformers"] = "hiera_video"
    """Layout to write: a weights folder of this project; a .pth file; or, of image models, a
    folder for timm or transformers."""
    output: str | None = None
    """Folder, or file with to=official; must not exist."""

    def check(self) -> None:
        _require(self.checkpoint is not None, "checkpoint", None, "a file, a folder or a tag")
        _require(self.output is not None, "output", None, "the name of a file or folder")


@dataclass(frozen=True)
class DemoConfig:
    """`hiera-video demo`: generate a small data set, fine-tune on it, evaluate, predict."""

    output_dir: str = "demo"
    """Folder for the data and the run."""
    seed: int = 0
    """Of the data and the training."""

    def check(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True)
class DetectScoreConfig:
    """`hiera-video detect score`: frame mAP of action detections, from csv files alone."""

    ground_truth: str | None = None
    """AVA csv: video,second,x1,y1,x2,y2,action,person."""
    detections: str | None = None
    """AVA csv: video,second,x1,y1,x2,y2,action,score."""
    label_map: str | None = None
    """The evaluated classes: pbtxt, or text lines `id: name`."""
    excluded: str | None = None
    """csv of video,second that the slowfast protocol leaves out."""
    keyframes: str | None = None
    """csv of video,second of all key frames to evaluate. Null: as the protocol has it."""
    protocol: Literal["activitynet", "slowfast", "both"] = "both"
    """Which published protocol; docs/evaluation.md tells how they differ."""

    def check(self) -> None:
        for key in ("ground_truth", "detections", "label_map"):
            _require(getattr(self, key) is not None, key, None, "a file")


@dataclass(frozen=True)
class CheckAvaConfig:
    """`hiera-video data check-ava`: mistakes in annotations and videos, before they cost a run."""

    ground_truth: str | None = None
    """AVA csv: video,second,x1,y1,x2,y2,action,person."""
    label_map: str | None = None
    """All classes: pbtxt, or text lines `id: name`. Null: ids are not checked."""
    proposals: str | None = None
    """Person boxes: csv, JSON lines or pickle. Null: their recall is not computed."""
    proposal_score: float = 0.8
    """Lowest score of the proposals that will be evaluated; their recall is told beside that of
    all."""
    excluded: str | None = None
    """csv of video,second that the recall of the proposals leaves out."""
    videos: str | None = None
    """Folder of the video files, or of folders of frames. Null: they are not looked at."""
    start_sec: float = 0.0
    """Time stamp at which the files begin, seconds: 900 for AVA's cuts of 15 minutes."""
    fps: float | None = None
    """Expected frame rate, frames per second. Null: not checked; needed for folders of frames."""
    seconds: float | None = None
    """Expected length, seconds: 901 for AVA's cuts, 27,030 frames at 30 fps. Null: not checked."""
    deadline_sec: float = 60.0
    """Longest time that opening one video may take, seconds."""

    def check(self) -> None:
        _require(self.ground_truth is not None, "ground_truth", None, "a file")
        _require(
            0 <= self.proposal_score <= 1, "proposal_score", self.proposal_score, "from 0 to 1"
        )
        _require(self.start_sec >= 0, "start_sec", self.start_sec, "0 or more")
        for key in ("fps", "seconds", "deadline_sec"):
            if getattr(self, key) is not None:
                _check_positive(key, getattr(self, key))


@dataclass(frozen=True)
class DemoAvaConfig:
    """`hiera-video demo ava`: generate a small data set in AVA's files, train a detector, score it.

    The same model is trained on key frames alone too: their difference is what motion tells.
    """

    output_dir: str = "demo_ava"
    """Folder for the data and the runs."""
    seed: int = 0
    """Of the data and the training."""

    def check(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "0 or more")


RECIPES: dict[str, tuple[type, str]] = {  # by task
    "classification": (FinetuneConfig, "finetune"),
    "pretraining": (PretrainConfig, "pretrain"),
    "detection": (DetectTrainConfig, "detect train"),
}


def load_config(
    cls: type[Config],
    files: Sequence[str] = (),
    overrides: Sequence[str] = (),
    defaults: dict[str, Any] | None = None,
) -> Config:
    """The defaults of `cls`, then `defaults`, the files in order, and `key.path=value` overrides.

    A file that does not exist is looked up among the shipped recipes (`kinetics400/hiera_base`).

    Raises:
        ConfigError: naming the key or file, what is wrong and what is allowed.
    """
    config: DictConfig = OmegaConf.structured(cls)
    try:
        if defaults:
            config = OmegaConf.merge(config, defaults)  # type: ignore[assignment]
        for name in files:
            config = _merge(config, _load_yaml(find_config(name)), name)
        for override in overrides:
            if "=" not in override:
                raise ConfigError(f"{override!r} is not of the form key.path=value")
            config = _merge(config, _parse_override(override), override)
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    if not isinstance(result, cls):  # a YAML file that holds a list, for example
        raise ConfigError(f"the configuration is not a {cls.__name__}")
    return result


def load_flops_config(files: Sequence[str], overrides: Sequence[str]) -> FlopsConfig:
    """As `load_config`, but `files` may be a recipe of training.

    Raises:
        ConfigError: as `load_config`, and for files that are recipes of several commands or none.
    """
    asked = load_config(FlopsConfig, overrides=overrides).task
    try:
        return load_config(FlopsConfig, files, overrides)
    except ConfigError as error:  # not settings of this command
        errors = {str(error): "flops"}
    recipes: dict[str, Any] = {}
    for task, (cls, command) in RECIPES.items():
        if asked in (None, task):
            try:
                recipes[task] = load_config(cls, files)
            except ConfigError as error:
                errors[str(error)] = command
    if not recipes:
        if len(errors) == 1:  # whatever it is read as
            raise ConfigError(next(iter(errors)))
        reasons = "; ".join(f"{command}: {error}" for error, command in errors.items())
        raise ConfigError(f"no configuration of any of these. {reasons}")
    if len(recipes) > 1:
        commands = " or ".join(RECIPES[task][1] for task in recipes)
        tasks = " or ".join(f"task={task}" for task in recipes)
        raise ConfigError(f"{', '.join(files)}: it may be a recipe of {commands}; add {tasks}")
    ((task, recipe),) = recipes.items()
    defaults = {"task": task, "model": recipe.model.name}
    for part in (recipe.model, getattr(recipe, "views", None), recipe):
        same = asdict(part) if part is not None else {}
        keys = same.keys() & {setting.name for setting in fields(FlopsConfig)} - defaults.keys()
        defaults |= {key: same[key] for key in keys}
    return load_config(FlopsConfig, overrides=overrides, defaults=defaults)


def describe_keys(cls: type, prefix: str = "", defaults: object = None) -> list[str]:
    """`key (default): what it is` for each setting, from the strings below the fields."""
    said: dict[str, str] = {}
    for part in reversed(cls.__mro__[:-1]):  # a field may be said anew by a subclass
        said |= _notes(part.__module__)[part.__name__]
    lines = []
    for key, default in vars(defaults or cls()).items():
        if is_dataclass(default):
            lines += describe_keys(type(default), f"{prefix}{key}.", default)
        else:
            value = json.dumps(default)
            lines.append(f"  {prefix}{key} ({value}): {said[key]}")
    return lines


@functools.cache  # parsing class by class took a second of every command
def _notes(module: str) -> dict[str, dict[str, str]]:
    """The strings below the fields of each class of a module."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        definition.name: {
            ast.unparse(setting.target): " ".join(ast.literal_eval(note.value).split())
            for setting, note in itertools.pairwise(definition.body)
            if isinstance(setting, ast.AnnAssign) and isinstance(note, ast.Expr)
        }
        for definition in classes
    }


def to_yaml(config: Any) -> str:
    """The whole configuration, defaults included, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain data; tuples become lists, as in YAML."""
    return json.loads(json.dumps(asdict(config)))


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for each leaf that differs between two configurations."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return found


def trained_with(checkpoint: str, keys: Sequence[str] = ("clips", "views")) -> dict[str, Any]:
    """What the config.json of a weights folder or run folder says; nothing for other weights."""
    for folder in (Path(checkpoint), Path(checkpoint) / "weights"):
        if (folder / "config.json").is_file():
            try:
                saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(f"{folder / 'config.json'} is not JSON: {error}") from None
            return {key: saved[key] for key in keys if key in saved}
    return {}


def check_same_config(saved: Path, config: Any) -> None:
    """Compares a configuration with that of the run that is about to be resumed, if there is one.

    Keys that do not touch results may differ.

    Raises:
        ConfigError: naming the keys that differ, unless `overwrite_config` is set.
    """
    if not saved.exists() or config.overwrite_config:
        return
    changed = [
        line
        for line in differences(OmegaConf.to_container(_load_yaml(saved)), to_dict(config))  # type: ignore[arg-type]
        if line.split(":")[0] not in FREE_TO_CHANGE
    ]
    if changed:
        raise ConfigError(
            f"{saved.parent} holds a run with another configuration ({'; '.join(changed)}): choose "
            "another run_dir, or set overwrite_config=true to go on with the new one"
        )


def configs_folder() -> Path:
    """Where the recipes lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(name: str) -> Path:
    """A path as given, or a shipped recipe by its name, with or without `.yaml` and `configs/`."""
    shipped = configs_folder()
    relative = name.removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    for path in (Path(name), shipped / relative):
        if path.is_file():
            return path
    known = sorted(str(p.relative_to(shipped).with_suffix("")) for p in shipped.rglob("*.yaml"))
    near = difflib.get_close_matches(name.removesuffix(".yaml"), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "shipped are " + ", ".join(known)
    raise ConfigError(f"{name}: there is no such configuration file; {hint}")


def _load_yaml(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # PyYAML's errors have no common public base class
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: holds a list, not keys with values")
    return loaded


def _parse_override(override: str) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:  # as above
        raise ConfigError(f"{override}: not valid YAML: {' '.join(str(error).split())}") from None


def _merge(config: DictConfig, update: DictConfig, source: str) -> DictConfig:
    try:
        return OmegaConf.merge(config, update)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        message, key = str(error).splitlines()[0], _wrong_key(config, update)
        # OmegaConf leaves these two unfilled inside tuples.
        message = message.replace(" '$VALUE' of type '$VALUE_TYPE'", "")
        where = source if source.startswith(key) else f"{source}: {key}"
        raise ConfigError(f"{where}: {message}") from None


def _wrong_key(config: DictConfig, update: DictConfig) -> str:
    """The first key of `update` that cannot be merged: not every error of OmegaConf names it."""
    for name, value in update.items_ex(resolve=False):
        try:
            OmegaConf.merge(config, {name: value})
        except OmegaConfBaseException:
            if isinstance(value, DictConfig) and isinstance(config.get(name), DictConfig):
                return f"{name!s}.{_wrong_key(config[name], value)}"
            return str(name)
    return ""


def _require(condition: bool, key: str, value: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(
            f"{key} is {'not set' if value is None else repr(value)}: needed is {allowed}"
        )


def _check_positive(key: str, value: float) -> None:
    _require(value > 0, key, value, "a number above 0")


def _check_fraction(key: str, value: float) -> None:
    _require(0 <= value < 1, key, value, "from 0 up to less than 1")


def _check_range(key: str, value: tuple[float, float], most: float = float("inf")) -> None:
    allowed = "[low, high] with 0 < low <= high" + ("" if most == float("inf") else f" <= {most:g}")
    _require(0 < value[0] <= value[1] <= most, key, list(value), allowed)


def _check_training(config: FinetuneConfig | PretrainConfig) -> None:
    """What fine-tuning and pretraining have in common."""
    _require(config.data.train is not None, "data.train", None, "a list file or a folder")
    _check_backbone(config.model)
    _check_fraction("data.max_failed_frac", config.data.max_failed_frac)
    _check_range("augment.crop_area", config.augment.crop_area, 1.0)
    _check_range("augment.crop_aspect", config.augment.crop_aspect)
    _check_loop(config.train, config.optim)
    _check_reading(config.data)
    _check_clips(config.clips)


def _check_backbone(model: BackboneConfig) -> None:
    _check_fraction("model.drop_path", model.drop_path)
    _check_overrides("model.overrides", model.overrides, model)


def _check_overrides(key: str, overrides: dict[str, Any], config: Any) -> None:
    taken = {"num_classes", "input_size", *(setting.name for setting in fields(config))}
    for name in sorted(taken & overrides.keys()):
        _require(
            False,
            f"{key}.{name}",
            overrides[name],
            "none: it has a setting of its own, or follows from others",
        )


def _check_image_size(key: str, size: Any) -> None:
    _require(
        size is None
        or isinstance(size, int)
        or (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)),
        key,
        size,
        "a whole number of pixels, or [height, width]",
    )


def _check_loop(train: LoopConfig, optim: OptimConfig) -> None:
    for key in (
        *("epochs", "global_batch_size", "accumulation_steps", "num_repeats", "checkpoint_every"),
        *("keep_checkpoints", "log_every", "max_nonfinite_steps"),
    ):
        _check_positive(f"train.{key}", getattr(train, key))
    _check_positive("optim.lr", optim.lr)
    if optim.clip_grad is not None:  # 0 would mean: no clipping
        _check_positive("optim.clip_grad", optim.clip_grad)
    _require(train.seed >= 0, "train.seed", train.seed, "0 or more")
    _require(
        0 <= train.warmup_epochs < train.epochs,
        "train.warmup_epochs",
        train.warmup_epochs,
        f"0 up to less than train.epochs={train.epochs:g}",
    )


def _check_layer_decay(optim: OptimConfig) -> None:
    _require(0 < optim.layer_decay <= 1, "optim.layer_decay", optim.layer_decay, "above 0, up to 1")


def _check_keyframes(data: KeyframeDataConfig, clips: KeyframeClipConfig) -> None:
    _check_reading(data)
    _check_positive("clips.sampling_rate", clips.sampling_rate)
    if clips.target_fps is not None:
        _check_positive("clips.target_fps", clips.target_fps)
    _check_positive("data.frames_fps", data.frames_fps)
    _require(
        0 <= data.proposal_score <= 1, "data.proposal_score", data.proposal_score, "from 0 to 1"
    )
    if data.seconds is not None:
        first, last = data.seconds
        _require(first <= last, "data.seconds", list(data.seconds), "[first, last]")
        _require(
            data.val_keyframes is None,
            "data.seconds",
            list(data.seconds),
            "null with data.val_keyframes, which says the same",
        )


def _check_masking(masking: MaskingConfig) -> None:
    if masking.mask_ratio is not None:
        _require(
            0 < masking.mask_ratio < 1,
            "masking.mask_ratio",
            masking.mask_ratio,
            "above 0 and below 1",
        )


def _check_clips(clips: ClipConfig) -> None:
    _check_positive("clips.sampling_rate", clips.sampling_rate)
    if clips.target_fps is not None:
        _check_positive("clips.target_fps", clips.target_fps)


def _check_reading(data: ReadingConfig) -> None:
    _check_positive("data.deadline_sec", data.deadline_sec)
    _require(
        data.num_workers is None or data.num_workers >= 0,
        "data.num_workers",
        data.num_workers,
        "0 or more",
    )


def _check_views(views: ViewConfig, clips: ClipConfig) -> None:
    _require(views.num_crops in (1, 3), "views.num_crops", views.num_crops, "1 or 3")
    _check_positive("views.num_clips", views.num_clips)
    if views.short_side is not None:
        _check_positive("views.short_side", views.short_side)
    _check_clips(clips)
    _check_positive("views.batch_size", views.batch_size)
    _require(
        clips.sampling == "clip" or views.num_clips in (1, 2),
        "views.num_clips",
        views.num_clips,
        "1 or 2 with clips.sampling=segments",
    )
