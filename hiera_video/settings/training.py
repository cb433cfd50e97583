"""Settings of training: data, augmentation, optimizer, loop, and the four training commands."""

from typing import Annotated, Literal

from annotated_types import Ge, Le

from hiera_video.settings.base import (
    Allowed,
    Ascending,
    Count,
    Device,
    Natural,
    NonNegative,
    Output,
    Path,
    Positive,
    Probability,
    Rate,
    Seed,
    Settings,
    Share,
)
from hiera_video.settings.model import (
    Autoencoder,
    Backbone,
    Classifier,
    Detector,
    Masking,
    Segmenter,
)
from hiera_video.settings.video import Clips, Decoding, FrameSampling, Listed, MultiView, Reading

VideoList = Annotated[Path, Allowed("a list file or a folder")]
BoxList = Annotated[Path, Allowed("a list of boxes")]
Precision = Literal["auto", "bf16", "fp16", "fp32", "tf32"]
Arithmetic = Literal["bf16", "fp16", "fp32", "tf32"]  # what a precision is on a device


class TrainingData(Decoding):
    max_failed_frac: Rate = 0.05
    """Training stops when more than this fraction of the records (videos, key frames) that were
    read so far, and more than 5 of them, cannot be read. Each counts once in a run."""


class PretrainingData(Reading, TrainingData):
    train: VideoList
    """Training videos: a list (csv, txt, json, jsonl), or a folder. Labels are not used."""


class ClassificationData(Reading, TrainingData):
    train: VideoList
    """Training videos: a list (csv, txt, json, jsonl), or a folder with one folder a class."""
    val: VideoList | None = None
    """Validation videos, in the same forms."""
    split: str | None = None
    """Rows of `train` to use, by its column `split`, e.g. train. Null: it has one split or no such
    column."""
    val_split: str | None = None
    """Rows of `val` to use, by its column `split`, e.g. val. Null: as for `split`."""
    class_names: Path | None = None
    """Text file with one class name a line, or a json label map. Null: from the data."""
    multi_label: bool = False
    """A video may have several classes: sigmoid, and mean average precision instead of top-1."""
    balanced: bool = False
    """Draw training videos so that every class is equally likely."""


class KeyframeData(Listed):
    """Lists of boxes at key frames, and where their videos are."""

    root: Path | None = None
    """Folder that holds each video, or a folder of its frames, under its name in the lists. Null:
    the folder of the list."""
    start_sec: float = 0.0
    """Time stamp of the annotations at which the files begin, seconds: 0 for AVA's whole films, 900
    where they were cut as SlowFast's instructions say."""
    frames_fps: Positive = 30.0
    """Frames per second of folders of frames."""
    val: BoxList | None = None
    """Ground truth to evaluate with: AVA csv, or csv or JSON lines with named columns."""
    val_proposals: Path | None = None
    """Detected person boxes to score: SlowFast's csv, mmaction2's pickle, or csv or JSON lines with
    named columns. Null: the boxes of the ground truth, an easier protocol that the report names."""
    proposal_score: Probability = 0.8
    """Lowest score of a proposal that is used."""
    val_excluded: Path | None = None
    """Key frames to leave out: csv of video,second."""
    val_keyframes: Path | None = None
    """All key frames that count, also those without people: csv of video,second."""
    keyframe_range_sec: Annotated[tuple[float, float], Ascending] | None = None
    """Without val_keyframes: every second from the first to the last counts, [902, 1798] for AVA.
    Null: the key frames that the ground truth or the proposals name."""

    def check_rules(self) -> None:
        self.require(
            self.keyframe_range_sec is None or self.val_keyframes is None,
            "keyframe_range_sec",
            "null beside val_keyframes, which states the same",
        )


class DetectionData(KeyframeData, TrainingData):
    train: BoxList
    """Ground truth to train on, in the same forms as `val`."""
    train_excluded: Path | None = None
    """Key frames to leave out of training."""
    train_proposals: Path | None = None
    """Detected person boxes to train on as well, where they meet the ground truth."""
    proposal_iou: Share = 0.9
    """Least intersection over union of such a box with an annotated one."""
    label_map: Annotated[Path, Allowed("a list of actions")]
    """Actions and their ids, from 1: AVA's pbtxt with all 80, or a text file with one a line."""


class PictureData(Listed):
    """Pictures with objects, in COCO's json."""

    root: Path | None = None
    """Folder that the file names in `train` start from. Null: the folder of the json."""
    val_root: Path | None = None
    """Folder that the file names in `val` start from. Null: as for `root`."""
    val: Annotated[Path, Allowed("a json file")] | None = None
    """Pictures to evaluate on, in COCO's json."""


class InstanceData(PictureData, TrainingData):
    train: Annotated[Path, Allowed("a json file")]
    """Pictures to train on, in COCO's json (instances_train2017.json)."""


class Crop(Settings):
    """Random resized crops and flips."""

    crop_area: Annotated[tuple[Share, Share], Ascending] = (0.5, 1.0)
    """Area of the random resized crop, fraction of the frame."""
    crop_aspect: Annotated[tuple[Positive, Positive], Ascending] = (0.75, 1.3333)
    """Width over height of the crop."""
    flip: bool = True
    """Flip half of the clips horizontally. Off for SSv2: its labels distinguish left and right."""


class Augment(Crop):
    crop_area: Annotated[tuple[Share, Share], Ascending] = (0.08, 1.0)
    """Area of the random resized crop, fraction of the frame."""
    rand_augment_magnitude: Annotated[float, Ge(0), Le(10)] | None = 7.0
    """Magnitude of RandAugment. Null: no RandAugment."""
    rand_augment_std: NonNegative = 0.5
    """Standard deviation of that magnitude."""
    erasing_prob: Probability = 0.25
    """Probability that a box of the clip is replaced by noise."""
    mixup: NonNegative = 0.8
    """Beta parameter of mixup. 0: no mixup."""
    cutmix: NonNegative = 1.0
    """Beta parameter of cutmix. 0: no cutmix."""
    label_smoothing: Rate = 0.1
    """Probability mass spread over all classes."""


class DetectionAugment(Settings):
    zoom: Annotated[tuple[Annotated[float, Ge(1)], Annotated[float, Ge(1)]], Ascending] = (
        8 / 7,
        10 / 7,
    )
    """Size of the resized picture over the smallest that covers the crop (short sides of 256 to
    320 for crops of 224)."""
    flip: bool = True
    """Flip half of the clips horizontally."""


class InstanceAugment(Settings):
    scale: Annotated[tuple[Positive, Positive], Ascending] = (0.1, 2.0)
    """Size of the picture over the largest that fits the input (large-scale jitter)."""
    flip: bool = True
    """Flip half of the pictures horizontally."""


class Optim(Settings):
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """SGD has Nesterov momentum 0.9."""
    lr: Positive = 8e-4
    """Peak learning rate, absolute: for the global batch, never rescaled."""
    warmup_lr: NonNegative = 1e-8
    """Learning rate of the first step."""
    final_lr: NonNegative = 1e-5
    """Learning rate at the end of the cosine."""
    decay_at: tuple[Share, ...] | None = None
    """Parts of the run, 0..1, after each of which the learning rate is a tenth, as in detectron2's
    schedules; none of them, [], leaves it constant. Null: a cosine down to final_lr."""
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """Decay rates of AdamW's running averages."""
    weight_decay: NonNegative = 0.05
    """Weight decay of matrices; vectors and position embeddings have none."""
    layer_decay: Share = 1.0
    """Learning rate of a block over that of the block above it."""
    pos_embed_lr_scale: Positive | None = None
    """Learning rate of position embeddings over `lr`, in place of what layer_decay leaves of it:
    0.5 in the paper at 448 pixels. Null: as layer_decay says."""
    clip_grad: Positive | None = 5.0
    """Largest norm of the gradient. Null: not clipped."""


class Loop(Settings):
    epochs: Positive = 100.0
    """Length, effective epochs: num_repeats for each pass over the videos."""
    warmup_epochs: NonNegative = 10.0
    """Linear warmup, effective epochs."""
    global_batch_size: Count = 256
    """Videos (not clips) a step, over all processes."""
    accumulation_steps: Count = 1
    """Parts in which each process goes through its share of a step."""
    num_repeats: Count = 2
    """Clips of each decoded video (repeated sampling)."""
    precision: Precision = "auto"
    """bf16, fp16: autocast; weights, loss and optimizer stay in float32, and with fp16 the loss is
    scaled; tf32: float32 with products in TF32; auto: bf16 where the device has it, else fp16 on
    CUDA, else fp32."""
    seed: Seed = 0
    """Decides the order of the videos and all randomness."""
    compile: bool = False
    """torch.compile the model; of detectors and segmenters, the encoder."""
    checkpoint_every: Positive = 1.0
    """Distance between checkpoints, passes over the training videos."""
    keep_checkpoints: Count = 2
    """How many checkpoints stay on disk."""
    log_every: Count = 10
    """Distance between console lines, steps."""
    max_nonfinite_steps: Count = 10
    """Steps in a row with a non-finite gradient (each is skipped) after which training stops."""

    def check_rules(self) -> None:
        is_shorter = self.warmup_epochs < self.epochs
        self.require(
            is_shorter,
            "warmup_epochs",
            f"less than train.epochs={self.epochs:g}: write train.warmup_epochs="
            f"{self.epochs / 10:g} beside it, a tenth",
        )


class DetectionLoop(Loop):
    evaluate_every: Positive | None = 5.0
    """Distance between evaluations, passes over the training data. Null: at the end only."""


class Train(DetectionLoop):
    train_only: Literal["all", "head"] = "all"
    """head: a linear probe on the frozen backbone (its last norm is trained too)."""
    freeze_stages: Natural = 0
    """Stages, from the first, that are not trained; with any, the patch embedding is not either."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh each class by the inverse of its share of the training videos."""
    ema_decay: Rate | None = None
    """Evaluate and export an exponential moving average of the weights with this decay."""

    def check_rules(self) -> None:
        super().check_rules()
        self.require(
            self.train_only == "all" or self.freeze_stages == 0,
            "freeze_stages",
            "0 with train_only=head, which freezes the backbone already",
        )


class RunSettings(Settings):
    """Settings that all training commands have."""

    data: TrainingData
    model: Backbone
    optim: Optim = Optim()
    train: Loop
    run_dir: Output
    device: Device = "auto"
    overwrite_config: bool = False
    """Resume a run although its saved configuration differs."""


class FinetuneSettings(MultiView, RunSettings):
    """Train a classifier on videos or images."""

    data: ClassificationData
    model: Classifier = Classifier()
    augment: Augment = Augment()
    train: Train = Train()
    run_dir: Output = "runs/finetune"
    """Folder of the run; a run found there is resumed."""

    def check_rules(self) -> None:
        super().check_rules()
        self.require(
            self.train.train_only == "all" or self.model.init is not None,
            "model.init",
            "weights, when train.train_only=head: a probe on random features measures nothing",
        )


class PretrainSettings(RunSettings):
    """Train a masked autoencoder on videos or images without labels."""

    data: PretrainingData
    model: Autoencoder = Autoencoder()
    masking: Masking = Masking()
    clips: Clips = Clips()
    augment: Crop = Crop()
    optim: Optim = Optim(warmup_lr=1e-6, final_lr=1e-6, betas=(0.9, 0.95), clip_grad=0.02)
    train: Loop = Loop(epochs=800.0, warmup_epochs=120.0, global_batch_size=512, num_repeats=4)
    run_dir: Output = "runs/pretrain"
    """Folder of the run; a run found there is resumed."""

    def check_rules(self) -> None:
        self.require(
            self.model.decoder_heads is not None or self.model.init is not None,
            "model.decoder_heads",
            "8 (the paper's video recipes) or 16 (its image recipes, all public builders)",
        )
        self.require(
            self.optim.layer_decay == 1.0,
            "optim.layer_decay",
            "1.0 in pretraining: all layers learn alike",
        )


class DetectTrainSettings(RunSettings):
    """Train an action detector on key frames with boxes, as in AVA."""

    data: DetectionData
    model: Detector = Detector()
    clips: FrameSampling = FrameSampling()
    augment: DetectionAugment = DetectionAugment()
    optim: Optim = Optim(lr=1e-4, final_lr=1e-6, warmup_lr=1e-6)
    train: DetectionLoop = DetectionLoop(
        epochs=30.0, warmup_epochs=5.0, global_batch_size=128, num_repeats=1
    )
    batch_size: Count = 16
    """Clips in a forward pass of evaluation."""
    run_dir: Output = "runs/detect"
    """Folder of the run; a run found there is resumed."""


class InstancesTrainSettings(RunSettings):
    """Train a Mask R-CNN on pictures with boxes and masks of objects, as in COCO."""

    data: InstanceData
    model: Segmenter = Segmenter()
    augment: InstanceAugment = InstanceAugment()
    optim: Optim = Optim(lr=3.5e-5, final_lr=3.5e-7, warmup_lr=3.5e-8, weight_decay=0.1)
    train: DetectionLoop = DetectionLoop(
        epochs=100.0, warmup_epochs=0.14, global_batch_size=64, num_repeats=1
    )
    batch_size: Count = 4
    """Pictures in a forward pass of evaluation."""
    run_dir: Output = "runs/instances"
    """Folder of the run; a run found there is resumed."""
