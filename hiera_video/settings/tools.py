"""Settings of the commands on cost, speed and formats of models, and of the demos."""

from typing import Annotated, Literal, get_args

from annotated_types import MinLen

from hiera_video.settings.base import (
    Allowed,
    Count,
    Device,
    ImageSize,
    Operand,
    Output,
    Path,
    Seed,
    Settings,
)
from hiera_video.settings.evaluation import Checkpoint, Trained
from hiera_video.settings.model import Architecture, Masking, Target
from hiera_video.settings.video import Reading

Work = Literal["inference", "finetuning", "pretraining"]
Layout = Literal["hiera_video", "official", "timm", "transformers", "sam2"]


class FlopsSettings(Settings):
    """Count parameters, multiply-adds and activations of a model, by stage and in all.

    MODEL is a variant of `hiera_video.list_models()`. Instead of it, --config may name a recipe of
    finetune, pretrain or detect train, of which the model, the masking and the views are used.
    """

    model: Annotated[str | None, Operand("MODEL", is_list=False)] = None
    """A variant."""
    task: Literal["classification", "pretraining", "detection"] | None = None
    """One view classified, a masked clip reconstructed, or one box of a clip classified. Null: that
    of the recipe, else classification."""
    num_frames: Count | None = None
    """Frames of a clip. Null: as the variant."""
    image_size: ImageSize | None = None
    """Height and width of a clip, pixels: one number, or [height, width]. Null: as the variant."""
    num_classes: Count | None = None
    """Outputs of the classifier. Null: as the variant; 80, AVA's, in detection."""
    overrides: Architecture = Architecture()
    """Keyword arguments of `Hiera` that differ from the variant's, e.g. {mask_unit: [2, 8, 8]}."""
    masking: Masking = Masking()
    decoder_dim: Count = 512
    """Width of the decoder in pretraining."""
    decoder_depth: Count = 8
    """Blocks of the decoder in pretraining."""
    target: Target = "pixels"
    """What is predicted in pretraining."""
    roi_resolution: Count = 7
    """Bins of RoIAlign along each side of a box in detection."""
    num_clips: Count | None = None
    """Temporal clips of a video. Null: 5 for the classification of videos, else 1."""
    num_crops: Count | None = None
    """Spatial crops of a clip. Null: 3 for the classification of videos, else 1."""
    modules: bool = False
    """Also list each module, not only stages."""
    table: bool = False
    """Instead, the parameters of all variants, and their GMACs as the paper counts them."""

    def check_rules(self) -> None:
        self.require(
            not (self.table and self.model), "table", "false with a MODEL: it has all variants"
        )
        self.require(
            self.table or self.model is not None, "model", "a variant, or a recipe, or --table"
        )
        self.require(
            self.task != "pretraining" or self.num_classes is None,
            "num_classes",
            "null with task=pretraining, which has no classifier",
        )


class BenchmarkSettings(Settings):
    """Measure speed and memory of models, beside those of other libraries.

    MODEL is a variant of `hiera_video.list_models()`, by default hiera_base_16x224; several must be
    all of video or all of images. Weights and inputs are random: neither changes the speed.
    """

    models: Annotated[tuple[str, ...], Operand("MODEL")] = ()
    """Variants."""
    peers: bool = False
    """Measure torchvision's, pytorchvideo's, timm's and the official models by turns with ours, and
    pretraining with an encoder that computes the hidden units too. The last table has the speeds
    that the article claims beside those of this run."""
    only: str = ""
    """Restrict the peers to those whose names contain this text, e.g. official."""
    work: Annotated[tuple[Work, ...], MinLen(1)] = get_args(Work)
    """Forward passes, or steps of training without the optimizer."""
    precisions: Annotated[tuple[Literal["fp32", "bf16", "fp16"], ...], MinLen(1)] = ("fp32", "bf16")
    """Number types; fp16 on a GPU only. bf16 and fp16 are by autocast; in inference, our models are
    in this type, but the classifier in float32."""
    execution: Annotated[tuple[Literal["eager", "compiled"], ...], MinLen(1)] = ("eager",)
    """compiled: by torch.compile, whose first call takes a minute; inference as CUDA graphs."""
    batch_sizes: Annotated[tuple[Count, ...], MinLen(1)] = (1,)
    """Clips of a call. A size that does not fit into the memory is halved, with a message."""
    rounds: Count = 5
    """Rounds, of which the median is reported; each has as many calls as take half a second."""
    videos: Path | None = None
    """File, folder or list of videos: inference is measured with decoding too, of one clip a
    video, until `rounds` batches are done. Null: without decoding only."""
    data: Reading = Reading()
    output_dir: Output | None = None
    """Folder for results.json, results.md and accuracy_speed.png. Null: they are not written."""
    overwrite: bool = False
    """Replace results in output_dir."""
    device: Device = "auto"

    def check_rules(self) -> None:
        measured = "inference" in self.work and "eager" in self.execution
        self.require(
            self.videos is None or (measured and "fp16" not in self.precisions),
            "videos",
            "null unless inference is measured, eager, in fp32 or bf16: only that has decoding",
        )
        self.require(self.peers or not self.only, "only", "empty without --peers")


class ExportSettings(Trained):
    """Export a model as torch.export and ONNX files, each compared with it.

    A classifier becomes model.pt2 and model.onnx, an action detector backbone and head, and
    export.json describes inputs and outputs.
    """

    checkpoint: Checkpoint
    """A run, checkpoint or weights folder, published weights, or a file of weights, of a classifier
    or an action detector."""
    format: Literal["pt2", "onnx", "both"] = "both"
    """Kind of files: torch.export, ONNX."""
    output_dir: Output = "exported"
    """Folder for the files."""
    overwrite: bool = False
    """Replace the folder if an earlier export wrote it."""


class ClassNames(Settings):
    class_names: Path | None = None
    """Classes of a checkpoint that does not name them: a file with one name a line, in id order, or
    JSON. Null: as the checkpoint states them."""


class ConvertSettings(Trained):
    """Write weights of a classifier or backbone in the layout of another project.

    What was written is read again, and all tensors must come back the same.
    """

    checkpoint: Checkpoint
    """A file or folder in any of the layouts, or published weights."""
    layout: Layout = "hiera_video"
    """Layout to write: a weights folder of this project; a .pth file; or, of image models, a
    folder for timm or transformers, or a .pt file with an encoder of SAM 2."""
    output: Annotated[Output, Allowed("the name of a file or folder that does not exist")]
    """Folder, or file with layout=official and layout=sam2; must not exist."""
    data: ClassNames = ClassNames()

    def check_rules(self) -> None:
        is_file = self.layout in ("official", "sam2")
        self.require(
            is_file or not self.output.endswith((".pth", ".pt", ".safetensors")),
            "output",
            f"the name of a folder with layout={self.layout}; layout=official writes a .pth file",
        )


class ReportSettings(Settings):
    """Write a page that shows the results of runs: curves, classes, confusions, videos, boxes.

    RUN is the folder of a training run, of an evaluation or of an extraction. Several training runs
    are drawn over one another, with the settings that differ.
    """

    runs: Annotated[list[Path], MinLen(1), Operand("RUN"), Allowed("at least one folder")]
    """Folders of runs, evaluations or extractions."""
    output_dir: Output | None = None
    """Folder for index.html and what it shows. Null: report/ in the folder of the only run."""
    num_videos: Count = 24
    """Most videos that are shown in each list; a report of more takes longer and more space."""
    overwrite: bool = False
    """Replace an earlier report."""

    def check_rules(self) -> None:
        self.require(
            self.output_dir is not None or len(self.runs) == 1,
            "output_dir",
            "a folder, when there are several runs",
        )


class DemoSettings(Settings):
    """Generate a small data set, fine-tune a classifier on it, evaluate and predict."""

    output_dir: Output = "demo"
    """Folder for the data and the run."""
    seed: Seed = 0
    """Seed of the data and the training."""


class DemoAvaSettings(DemoSettings):
    """Generate a small data set in AVA's files, train an action detector on it and score it.

    The same model is trained on key frames alone too: the difference is what motion contributes.
    """

    output_dir: Output = "demo_ava"
    """Folder for the data and the runs."""


class DemoInstancesSettings(DemoSettings):
    """Generate pictures with masks in COCO's json, train a Mask R-CNN on them and score it."""

    output_dir: Output = "demo_instances"
    """Folder for the data and the run."""


class DoctorSettings(Settings):
    """Report versions, devices and decoders, and test whether the installation works.

    Add the report to the report of a bug. It names no user and no machine, and nothing is fetched.
    """
