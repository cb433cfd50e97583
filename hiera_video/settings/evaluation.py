"""Settings of the commands that use trained models on videos, and of those that check data."""

from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

from hiera_video.settings.base import (
    Allowed,
    Count,
    Device,
    NonNegative,
    Operand,
    Output,
    Path,
    Positive,
    Probability,
    Seed,
    Settings,
    Weights,
)
from hiera_video.settings.model import Masking
from hiera_video.settings.training import BoxList, KeyframeData, Precision, VideoList
from hiera_video.settings.video import (
    Clips,
    Decoding,
    FrameSampling,
    Listed,
    MultiView,
    Reading,
    Windowing,
    check_segments,
)

Checkpoint = Annotated[
    Weights,
    Allowed("a run, checkpoint or weights folder, published weights, or a file of weights"),
]
Files = Annotated[list[Path], MinLen(1), Operand("FILE"), Allowed("at least one file or folder")]
Layer = Literal["stage1", "stage2", "stage3", "stage4", "pre_logits", "logits"]
Pooling = Literal["mean", "spatial", "temporal", "none"]
DType = Literal["float32", "float16", "bfloat16"]
MapMethod = Literal["gradient", "rollout"]
Stage = Literal["stage1", "stage2", "stage3", "stage4"]
Mode = Literal["normalised", "visible_statistics", "ground_truth_statistics"]


class Trained(Settings):
    """Settings that all commands with a trained model have."""

    checkpoint: Checkpoint
    """A run, checkpoint or weights folder, published weights, or a file of weights."""
    weights_key: str | None = None
    """Of several states in a file, the one to take, such as model_ema. Null: the plain one."""


class Inference(Trained):
    """Settings that all commands with a trained model and data have."""

    device: Device = "auto"
    precision: Precision = "auto"
    """Arithmetic of the model. bf16, fp16: all of it in this type, but the classifier in float32;
    tf32: float32 with products in TF32; auto: bf16 where the device has it, else fp16 on CUDA, else
    fp32."""

    compile: bool = False
    """torch.compile the model: the first batch takes a minute or more, the others less time. All
    batches have one size, to which the last is padded."""


class WritingInference(Inference):
    overwrite: bool = False
    """Replace results in output_dir."""


class EvaluationData(Reading):
    val: VideoList
    """Videos to evaluate on: a list file or a folder, as for training."""
    class_names: Path | None = None
    """Classes of a checkpoint that does not name them: a file with one name a line, in id order, or
    JSON. Null: as the checkpoint states them."""


class EvaluateSettings(MultiView, WritingInference):
    """Compute the multi-view accuracy of a trained classifier."""

    data: EvaluationData
    output_dir: Output | None = None
    """Folder for report.json, scores.npz and predictions.csv. Null: eval/ of the run folder."""


class PredictSettings(MultiView, Inference):
    """Print the most likely classes of videos or images."""

    inputs: Files
    """Files, or folders of files."""
    top_k: Count = 5
    """How many classes to print."""
    data: Decoding = Decoding()


class ExtractSettings(WritingInference):
    """Write features of many videos, one file a video, and an index.

    FILE is a folder, searched at any depth, or a list (csv, txt, json, jsonl), or several videos.
    The same command resumes where it stopped.
    """

    inputs: Annotated[Files, Allowed("a folder, a list, or videos")]
    """A folder or a list, or files."""
    output_dir: Output = "features"
    """Folder for the features, index.jsonl and failures.jsonl."""
    layer: Layer = "pre_logits"
    """Tokens of a stage; the mean of the last tokens, normalised; or the classifier's outputs."""
    pooling: Pooling = "mean"
    """Pooling of a stage's tokens [t, h, w, D]: mean leaves [D], spatial [t, D], temporal
    [h, w, D]."""
    dtype: DType = "float32"
    """Type of the stored numbers; bfloat16 with format=safetensors only."""
    format: Literal["npz", "npy", "safetensors", "parquet"] = "npz"
    """Kind of file. npy: with a json file beside it; parquet: npz files, and one table of all."""
    num_frames: Count | None = None
    """Frames of a clip. Null: as the model was trained."""
    image_size: Count | None = None
    """Height and width of a clip, pixels. Null: as the model was trained."""
    clips: Clips = Clips()
    windows: Windowing = Windowing()
    data: Reading = Reading()
    batch_size: Count = 16
    """Views in one forward pass; views of several videos share it."""
    engine: Literal["local", "ray"] = "local"
    """local: this machine, or torchrun's processes. ray: Ray Data, on a cluster."""
    gpus_per_model: Annotated[float, Ge(0.01), Le(1)] = 1.0
    """With engine=ray: share of a GPU that each copy of the model takes. 0.5: two share a GPU."""
    retry_failed: bool = False
    """Read all videos again that failed before, not only those whose files have changed."""

    def check_rules(self) -> None:
        self.require(
            self.layer.startswith("stage") or self.pooling == "mean",
            "pooling",
            f"mean with layer={self.layer}, which has no axes left",
        )
        self.require(
            self.dtype != "bfloat16" or self.format == "safetensors",
            "dtype",
            f"float32 or float16 with format={self.format}, which has no bfloat16; or "
            "format=safetensors",
        )
        self.require(
            self.data.num_workers != 0, "data.num_workers", "1 or more: decoding may crash"
        )
        self.require(
            self.engine == "local" or self.data.backend != "torchcodec-cuda",
            "data.backend",
            "another one with engine=ray, whose decoding processes have no GPU",
        )
        self.require(
            self.engine == "ray" or self.gpus_per_model == 1,
            "gpus_per_model",
            "1 with engine=local, where each process has a GPU of its own",
        )
        self.require(
            self.windows.kind == "views" or self.clips.sampling == "clip",
            "clips.sampling",
            "clip with windows.kind=dense: segments are parts of a whole video",
        )
        check_segments(self, self.clips, "windows.num_clips", self.windows.num_clips)


class DetectionEvaluationData(KeyframeData):
    val: BoxList
    """Ground truth to evaluate with: AVA csv, or csv or JSON lines with named columns."""
    label_map: Path | None = None
    """Actions that are evaluated: AVA's pbtxt with 60. Null: all that the model knows."""


class DetectEvaluateSettings(WritingInference):
    """Compute the frame mAP of a trained action detector, in both protocols."""

    data: DetectionEvaluationData
    clips: FrameSampling = FrameSampling()
    batch_size: Count = 16
    """Clips in a forward pass."""
    output_dir: Output | None = None
    """Folder for report.json, detections.csv and keyframes.csv (those that count). Null: eval/ of
    the run folder."""


class DetectPredictSettings(WritingInference):
    """Detect what the people in videos do, and draw an overlay.

    People are found by torchvision's detector or an instance segmenter, or given in `boxes`.
    """

    inputs: Files
    """Videos."""
    boxes: Path | None = None
    """Boxes of people, and with them the key frames: csv of video,second,x1,y1,x2,y2,,score, where
    video is a file's name and second counts from its first frame. Null: they are detected."""
    detector: Annotated[Path, Allowed("a run of instances train, or a .pth file")] | None = None
    """What finds people: a run, checkpoint or weights folder of `instances train` with a category
    "person", or weights of torchvision's fasterrcnn_resnet50_fpn_v2, a .pth file. Null: the latter,
    fetched."""
    detector_score: Probability = 0.8
    """Lowest score of a person's box that is used, detected or given."""
    every_sec: Positive = 1.0
    """Distance between key frames where people are detected, seconds."""
    min_score: Probability = 0.3
    """Lowest score of an action in the overlay and the JSON file; the csv has all."""
    top_k: Count = 3
    """Most actions of a person in the overlay and the JSON file."""
    data: Decoding = Decoding()
    clips: FrameSampling = FrameSampling()
    output_dir: Output = "detections"
    """Folder for NAME_detections.csv, NAME_detections.json and NAME_overlay.mp4 of each file."""
    batch_size: Count = 8
    """Clips in a forward pass."""

    def check_rules(self) -> None:
        self.require(
            self.boxes is None or self.detector is None,
            "detector",
            "null beside boxes, which replace detected people",
        )


class InstancesEvaluationData(Listed):
    val: Annotated[Path, Allowed("a json file")]
    """Pictures to evaluate on, in COCO's json (instances_val2017.json)."""
    root: Path | None = None
    """Folder that the file names in `val` start from. Null: the folder of the json."""


class InstancesEvaluateSettings(WritingInference):
    """Compute the AP of a trained Mask R-CNN, of boxes and of masks."""

    data: InstancesEvaluationData
    batch_size: Count = 4
    """Pictures in a forward pass."""
    output_dir: Output | None = None
    """Folder for report.json and detections.json, COCO's results. Null: eval/ of the run folder."""


class InstancesPredictSettings(WritingInference):
    """Find the objects in pictures, and draw them."""

    inputs: Files
    """Pictures, or folders of pictures."""
    min_score: Probability = 0.5
    """Lowest score of an object that is drawn and written."""
    data: Decoding = Decoding()
    output_dir: Output = "objects"
    """Folder for NAME_objects.json and NAME_overlay.png of each file."""


class DetectScoreSettings(Settings):
    """Compute the frame mAP of action detections from csv files alone."""

    ground_truth: BoxList
    """AVA csv: video,second,x1,y1,x2,y2,action,person."""
    detections: BoxList
    """AVA csv: video,second,x1,y1,x2,y2,action,score."""
    label_map: Annotated[Path, Allowed("a list of actions")]
    """The evaluated classes: pbtxt, or text lines `id: name`."""
    excluded: Path | None = None
    """csv of video,second that the slowfast protocol leaves out."""
    keyframes: Path | None = None
    """csv of video,second of all key frames to evaluate. Null: as the protocol defines them."""
    protocol: Literal["activitynet", "slowfast", "both"] = "both"
    """Published protocol: that of the ActivityNet challenge, which ignores detections at key frames
    without ground truth, or SlowFast's, which leaves out excluded key frames."""


class InstancesScoreSettings(Settings):
    """Compute the AP of detected boxes and masks from COCO's json files alone."""

    ground_truth: Annotated[Path, Allowed("COCO's json")]
    """Json with images, annotations and categories, as instances_val2017.json."""
    detections: Annotated[Path, Allowed("COCO's json")]
    """Json with a list of image_id, category_id, bbox, score and, for masks, segmentation."""
    kinds: Literal["bbox", "segm", "both"] | None = None
    """What is compared: boxes (bbox) or masks (segm). Null: masks too, if the detections have
    them."""


class VisualizeSettings(Trained):
    """Show what a masked autoencoder sees and predicts, as pictures."""

    inputs: Files
    """Files; the centre clip of each is shown."""
    checkpoint: Checkpoint
    """A run, checkpoint or weights folder, published weights, or a file of weights, of a masked
    autoencoder."""
    mode: Mode = "normalised"
    """Source of the brightness and contrast of predicted patches: none, all patches being shown in
    normalised units; the average of the visible patches; or the hidden patches themselves, which
    flatters the model."""
    masking: Masking = Masking()
    clips: Clips = Clips()
    decoder_heads: Count | None = None
    """Attention heads of the decoder. Null: as the checkpoint states; published weights do not."""
    output_dir: Output = "visualize"
    """Folder for NAME_MODE.png and NAME_MODE.mp4 of each file."""
    overwrite: bool = False
    """Replace pictures in output_dir."""
    seed: Seed = 0
    """Decides, with the position of a file among the inputs, which units are visible."""
    data: Decoding = Decoding()
    device: Device = "auto"


class AttentionSettings(Trained):
    """Show where a classifier looks in a clip, as maps over space and time.

    The middle clip of each file is shown, in its middle crop: what the model sees in one view.
    """

    inputs: Files
    """Files."""
    checkpoint: Checkpoint
    """A run, checkpoint or weights folder, published weights, or a file of weights, of a
    classifier."""
    method: MapMethod = "gradient"
    """Gradient of a class times the output of a stage; or attention rollout, which is the same for
    all classes."""
    class_name: str | None = None
    """Class that the gradient is of: a name, or an id from 0. Null: the most likely of the clip."""
    stage: Stage | None = None
    """Stage at whose output the gradient is taken. Null: the last with 8 x 8 tokens or more."""
    clips: Clips = Clips()
    output_dir: Output = "visualize"
    """Folder for NAME_METHOD.mp4 (of image models, .png), NAME_METHOD_panels.png and
    NAME_METHOD.npz of each file."""
    overwrite: bool = False
    """Replace files in output_dir."""
    data: Decoding = Decoding()
    device: Device = "auto"

    def check_rules(self) -> None:
        for key in ("class_name", "stage"):
            self.require(
                self.method == "gradient" or getattr(self, key) is None,
                key,
                "null with method=rollout, which does not use it",
            )


class BuildListsSettings(Settings):
    """Write a list of the files of Kinetics, iNaturalist or Places365 that are there.

    An official annotation file names them. Videos of Kinetics are called YOUTUBE-ID_START_END
    (seconds, six digits) or YOUTUBE-ID, at any depth of the folders; pictures are looked up by
    their paths in the annotations. Of several files, that of the folder which stands first is
    taken, so a folder of replacements goes first. Paths are relative to the list. Missing and empty
    files are left out, and named in a file beside the list.
    """

    inputs: Annotated[list[Path], MinLen(1), Operand("FOLDER"), Allowed("at least one folder")]
    """Folders of videos or pictures."""
    annotations: Path
    """Official file: Kinetics' csv (label,youtube_id,time_start,time_end,split), iNaturalist's json
    (images, annotations, categories), or Places365's txt (lines of a path and a class id)."""
    split: str | None = None
    """Rows of the csv to use, by its column `split`, e.g. train. Null: it has one split or no such
    column."""
    output: Annotated[Output, Allowed("the name of a file that does not exist")]
    """The list: csv with path,label. Of iNaturalist's json, all class names are written beside it,
    as LIST.class_names.txt."""


class CheckAvaSettings(Settings):
    """Find mistakes in AVA annotations, proposals and videos before they cost a run."""

    ground_truth: BoxList
    """AVA csv: video,second,x1,y1,x2,y2,action,person."""
    label_map: Path | None = None
    """All classes: pbtxt, or text lines `id: name`. Null: ids are not checked."""
    proposals: Path | None = None
    """Person boxes: csv, JSON lines or pickle. Null: their recall is not computed."""
    proposal_score: Probability = 0.8
    """Lowest score of the proposals that will be evaluated; their recall is reported beside that of
    all."""
    excluded: Path | None = None
    """csv of video,second that the recall of the proposals leaves out."""
    videos: Path | None = None
    """Folder of the video files, or of folders of frames. Null: videos are not checked."""
    start_sec: NonNegative = 0.0
    """Time stamp at which the files begin, seconds: 900 for AVA's cuts of 15 minutes."""
    expected_fps: Positive | None = None
    """Expected frame rate, frames per second; also that of folders of frames where
    data.frames_fps is null. Null: not checked."""
    expected_duration_sec: Positive | None = None
    """Expected length, seconds: 901 for AVA's cuts, 27,030 frames at 30 fps. Null: not checked."""
    data: Decoding = Decoding()
