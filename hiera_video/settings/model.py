"""Settings of models."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import model_serializer

from hiera_video.settings.base import ImageSize, Length, Natural, Rate, Settings, Size3, Weights

Width = Annotated[int, Ge(1), Le(16_384)]
Heads = Annotated[int, Ge(1), Le(1024)]
Depth = Annotated[int, Ge(1), Le(1000)]
Padding = Annotated[int, Ge(0), Le(1024)]
GridSide = Annotated[int, Ge(1), Le(1024)]
Bins = Annotated[int, Ge(1), Le(128)]
PosEmbedResize = Literal["window", "bicubic"]
Target = Literal["pixels", "hog"]
MAX_CLASSES = 1_000_000
MaskingKind = Literal["random", "tube", "frame", "block"]


class Architecture(Settings):
    """Keyword arguments of `Hiera` that replace those of the variant. Null: the variant's."""

    is_compact = True

    in_chans: Annotated[int, Ge(1), Le(256)] | None = None
    """Colour channels of the input."""
    embed_dim: Width | None = None
    """Width of the first stage; it doubles with each stage."""
    num_heads: Heads | None = None
    """Attention heads of the first stage; they double with each stage."""
    stages: Annotated[tuple[Depth, ...], MinLen(1), MaxLen(8)] | None = None
    """Blocks of each stage."""
    q_pool: Annotated[int, Ge(0), Le(7)] | None = None
    """Stage transitions that pool."""
    q_stride: Size3 | None = None
    """Tokens merged by a pooling step, along (time, height, width)."""
    mask_unit: Size3 | None = None
    """Tokens of a mask unit, along (time, height, width)."""
    mask_unit_attn: tuple[bool, ...] | None = None
    """For each stage, attention within mask units (true) or over all tokens."""
    window_units: Size3 | None = None
    """Mask units, along (time, height, width), of the windows in which other blocks attend."""
    global_blocks: tuple[Natural, ...] | None = None
    """Blocks that attend over all tokens in spite of window_units, counted from 0."""
    patch_kernel: Size3 | None = None
    """Kernel of the patch embedding, along (time, height, width), pixels."""
    patch_stride: Size3 | None = None
    """Stride of the patch embedding, along (time, height, width), pixels."""
    patch_padding: tuple[Padding, Padding, Padding] | None = None
    """Padding of the patch embedding, along (time, height, width), pixels."""
    sep_pos_embed: bool | None = None
    """A spatial plus a temporal position embedding instead of one over space and time."""
    global_pos_size: tuple[GridSide, GridSide] | None = None
    """Size in tokens, (height, width), of the global part of an absolute-window embedding."""
    global_pos_antialias: bool | None = None
    """Interpolate the global part with antialiasing (timm), or without (SAM 2)."""
    layer_scale: bool | None = None
    """A learned factor for each channel of the branches of a block."""
    expand_proj: bool | None = None
    """A linear layer in the residual where the width doubles, or maximum beside mean (timm)."""
    mlp_ratio: Annotated[float, Gt(0), Le(64)] | None = None
    """Hidden width of the MLP over the width of the block."""

    @model_serializer
    def arguments(self) -> dict[str, Any]:
        """The arguments that are set."""
        return {key: value for key, value in self if value is not None}


class FullArchitecture(Architecture):
    input_size: Size3 | None = None
    """Frames, height and width of a clip, pixels."""


class HieraArguments(FullArchitecture):
    """All keyword arguments of `Hiera`."""

    num_classes: Annotated[int, Ge(0), Le(MAX_CLASSES)] = 0
    """Outputs of the classifier, 0 for none."""
    drop_path: Rate = 0.0
    """Rate of stochastic depth in the last block."""
    head_dropout: Rate = 0.0
    """Dropout before the classifier."""


class Backbone(Settings):
    name: str = "hiera_base_16x224"
    """A variant of `hiera_video.list_models()`."""
    init: Weights | None = None
    """Weights to start from: a file, a weights, run or checkpoint folder, or a published tag.
    Null: random weights."""
    weights_key: str | None = None
    """Of several states in the file `init`, the one to take, such as model_ema. Null: the plain
    one."""
    num_frames: Length | None = None
    """Frames of a clip. Null: as the variant."""
    image_size: ImageSize | None = None
    """Height and width of a clip, pixels: one number, or [height, width]. Null: as the variant."""
    overrides: Architecture = Architecture()
    """Keyword arguments of `Hiera` that differ from the variant's, e.g. {mask_unit: [2, 8, 8]}."""
    drop_path: Rate = 0.0
    """Rate of stochastic depth in the last block."""
    pos_embed_resize: PosEmbedResize = "window"
    """How position embeddings are resized: aware of attention windows, or plainly bicubic."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    grad_checkpointing_stages: Natural | None = None
    """With grad_checkpointing, only in so many stages from the first, which hold most of the
    memory. Null: everywhere."""

    def check_rules(self) -> None:
        super().check_rules()
        self.require(
            self.weights_key is None or self.init is not None, "weights_key", "null without init"
        )
        self.require(
            self.grad_checkpointing or self.grad_checkpointing_stages is None,
            "grad_checkpointing_stages",
            "null without grad_checkpointing=true",
        )

    def arguments(self, checkpoint: object) -> dict[str, Any]:
        """Keyword arguments of the builders in `hiera_video.models`, weights left out.

        Args:
            checkpoint: beside which they are given; `weights_key` is of `init` alone.
        """
        others = {"init", "overrides", "grad_checkpointing", "grad_checkpointing_stages"}
        if checkpoint is None or checkpoint != self.init:
            others.add("weights_key")
        return self.model_dump(exclude=others) | self.overrides.arguments()


class Classifier(Backbone):
    head_dropout: Rate = 0.0
    """Dropout before the classifier."""


class Detector(Classifier):
    roi_resolution: Bins = 7
    """Bins of RoIAlign along each side of a box."""


class SegmenterHeads(Settings):
    channels: Width = 256
    """Channels of the feature pyramid and of the convolutions in the heads."""
    hidden: Width = 1024
    """Width of the linear layer that classifies boxes."""


class Segmenter(SegmenterHeads, Backbone):
    name: str = "hiera_base_224"
    """An image variant of `hiera_video.list_models()`."""
    num_boxes: Annotated[int, Ge(1), Le(10_000)] = 512
    """Boxes of a picture of which a training step classifies a sample, a quarter with objects."""


class Decoder(Settings):
    """Keyword arguments of `MaskedAutoencoderHiera` beside its encoder."""

    decoder_heads: Heads | None = None
    """Attention heads of the decoder. No tensor's shape shows them: 8 in the paper's video recipes,
    16 in its image recipes and in all public builders. Null: as `init` states, which must then be
    a folder that pretraining wrote."""
    decoder_dim: Width = 512
    """Width of the decoder."""
    decoder_depth: Depth = 8
    """Blocks of the decoder."""
    target: Target = "pixels"
    """What is predicted in hidden units: normalised pixels, or histograms of oriented gradients."""

    def check_rules(self) -> None:
        super().check_rules()
        self.require(
            self.decoder_heads is None or self.decoder_dim % self.decoder_heads == 0,
            "decoder_heads",
            f"a divisor of decoder_dim={self.decoder_dim}",
        )


class Autoencoder(Decoder, Backbone):
    """A masked autoencoder: its encoder, which is a backbone, and its decoder."""


class Masking(Settings):
    kind: MaskingKind = "random"
    """Each mask unit on its own, one spatial pattern for all times, whole time steps, or boxes."""
    mask_ratio: Annotated[float, Gt(0), Lt(1)] | None = None
    """Fraction of the mask units that is hidden. Null: 0.9 for video, 0.6 for images."""
