"""The instance segmenter: Mask R-CNN (arXiv 1703.06870) on the pyramid of a Hiera.

Its heads are those of detectron2's `projects/ViTDet/configs/common/models/mask_rcnn_vitdet.py`,
from torchvision's parts: two convolutions in the RPN; four convolutions and one linear layer in the
box head; LayerNorm in the pyramid and the heads. torchvision's RoIAlign counts pixels from their
corners, detectron2's from their centres.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from hiera_video.errors import ModelError, counted
from hiera_video.models.hiera import Hiera, Trainable
from hiera_video.models.layers import autocast_off
from hiera_video.models.pyramid import feature_pyramid

ANCHOR_SIDES = ((32,), (64,), (128,), (256,), (512,))  # pixels, of the maps with strides 4 to 64
ASPECTS = ((0.5, 1.0, 2.0),) * len(ANCHOR_SIDES)
LEVELS = ("0", "1", "2", "3")  # in which boxes are classified
MASK_SIDE = 14  # bins of a box of which a mask is predicted
# Pixels of the input by which masks lie to the right of their boxes and below: RoIAlign, by which
# torchvision makes the masks to learn, takes the index of a pixel for its centre.
MASK_SHIFT = 0.5
PASTED_PIXELS = 1 << 25  # at a time


class InstanceSegmenter(Trainable):
    """Boxes, classes and masks of the objects in pictures of one size.

    Args:
        encoder: with `num_classes=0` and four stages.
        num_classes: classes of objects, counted from 1: 0 is the background.
        channels: of the pyramid and of all convolutions in the heads.
        hidden: width of the linear layer in the box head.
        num_boxes: boxes of a picture of which a training step classifies a sample.
    """

    in_float32, compiles_whole = ("rpn", "roi_heads"), False

    def __init__(
        self,
        encoder: Hiera,
        *,
        num_classes: int,
        channels: int = 256,
        hidden: int = 1024,
        num_boxes: int = 512,
    ) -> None:
        super().__init__()
        if encoder.num_classes:
            raise ModelError(f"the encoder has {counted(encoder.num_classes, 'class')}: expected 0")
        if min(num_classes, channels, hidden, num_boxes) < 1:
            raise ModelError(
                f"num_classes is {num_classes}, channels {channels}, hidden {hidden}, num_boxes "
                f"{num_boxes}: expected 1 or more"
            )
        if len(encoder.stage_dims) != len(LEVELS) or encoder.input_size[0] != 1:
            raise ModelError(
                f"the encoder has {len(encoder.stage_dims)} stages and takes "
                f"{encoder.input_size[0]} frames: expected 4 stages and 1 frame, as of image models"
            )
        encoder.norm.requires_grad_(False)  # which no stage uses
        self.encoder, self.channels, self.hidden = encoder, channels, hidden
        self.num_boxes = num_boxes
        self.reset_heads(num_classes)

    def reset_heads(self, num_classes: int | None = None) -> None:
        """Fresh values for everything but the encoder.

        Args:
            num_classes: None: as before.
        """
        num_classes = self.num_classes if num_classes is None else num_classes
        encoder, channels, hidden = self.encoder, self.channels, self.hidden
        norm = partial(LayerNorm2d, eps=1e-6)
        self.fpn = feature_pyramid(encoder, channels)
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(ANCHOR_SIDES, ASPECTS),
            RPNHead(channels, len(ASPECTS[0]), conv_depth=2),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 1000, "testing": 1000},
            nms_thresh=0.7,
        )
        sides = 7, MASK_SIDE
        boxes, masks = (MultiScaleRoIAlign(list(LEVELS), side, sampling_ratio=2) for side in sides)
        self.roi_heads = RoIHeads(
            box_roi_pool=boxes,
            box_head=FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [hidden], norm),
            box_predictor=nn.Identity(),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=self.num_boxes,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            mask_roi_pool=masks,
            mask_head=MaskRCNNHeads(channels, [channels] * 4, 1, norm),
            mask_predictor=nn.Identity(),
        )
        self.reset_classifier(num_classes)
        weight = encoder.norm.weight
        for part in (self.fpn, self.rpn, self.roi_heads):
            part.to(weight.device, weight.dtype)

    @property
    def segmenter_architecture(self) -> dict[str, int]:
        """Keyword arguments that build this segmenter again around the same encoder."""
        return {
            "num_classes": self.num_classes,
            "channels": self.channels,
            "hidden": self.hidden,
        }

    def forward(
        self, x: Shaped[Tensor, "B C *T H W"], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> Any:
        """In training the sum of the losses, in evaluation the objects of each picture.

        Args:
            x: normalised pictures of the encoder's `input_size`.
            targets: of each picture `boxes` [n, 4] (x1 y1 x2 y2, pixels), `labels` [n] and `masks`
                uint8 [n, H, W].

        Returns:
            A float32 scalar, the mean over the pictures; or for each picture `boxes` [n, 4],
            `labels` [n], `scores` [n], and `masks` [n, 28, 28]: the probability of the object
            in each part of its box, moved by `MASK_SHIFT`, see `whole_masks`. The highest score
            comes first. `is_finite`: whether all that was computed is; if not, objects may lack.
        """
        maps = self.feature_maps(x)
        # Corners of boxes and their logarithms need float32.
        with autocast_off(x):
            pictures = x.flatten(1, -3)  # of which the RPN asks the size
            sizes = [self.encoder.input_size[1:]] * len(pictures)
            heads = self.roi_heads
            with recorded(self.rpn.head, heads.box_predictor, heads.mask_predictor) as outputs:
                proposals, losses = self.rpn(ImageList(pictures, sizes), maps, targets)
                found, more = heads(maps, proposals, sizes, targets)
        if self.training:
            return torch.stack([*losses.values(), *more.values()]).sum()
        (objectness, deltas), (logits, corners), masks = outputs
        rows = [
            torch.cat([logits, corners], dim=1).split([len(boxes) for boxes in proposals]),
            masks.split([len(picture["boxes"]) for picture in found]),
        ]
        return [
            {
                **picture,
                "masks": picture["masks"].squeeze(1),
                "is_finite": torch.stack([part.isfinite().all() for part in parts]).all(),
            }
            for picture, *parts in zip(
                found, *rows, *maps.values(), *objectness, *deltas, strict=True
            )
        ]

    def feature_maps(self, x: Shaped[Tensor, "B C *T H W"]) -> dict[str, Tensor]:
        """The pyramid of normalised pictures, float32 maps [B, `channels`, h, w]."""
        stages = self.encoder.forward_intermediates(x)
        maps = self.fpn(
            {
                key: rearrange(m, "b 1 h w d -> b d h w")
                for key, m in zip(LEVELS, stages, strict=True)
            }
        )
        return {key: value.float() for key, value in maps.items()}

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the encoder alone, by torch.compile with these arguments.

        The heads have another number of boxes in each step, for which they are compiled again.
        """
        compiled = torch.compile(Hiera.encode, *args, **kwargs)
        self.encoder.encode = MethodType(compiled, self.encoder)  # type: ignore[method-assign]

    @property
    def num_classes(self) -> int:
        """Classes of objects, without the background."""
        return self.roi_heads.box_predictor.cls_score.out_features - 1

    def reset_classifier(self, num_classes: int) -> None:
        """Fresh last layers for objects of `num_classes` classes."""
        if self.card is not None:
            self.card = self.card.without_classes()
        weight = self.encoder.norm.weight
        for name, predictor in (
            ("box_predictor", FastRCNNPredictor(self.hidden, num_classes + 1)),
            ("mask_predictor", MaskRCNNPredictor(self.channels, self.channels, num_classes + 1)),
        ):
            setattr(self.roi_heads, name, predictor.to(weight.device, weight.dtype))


def whole_masks(
    masks: Float[Tensor, "n h w"], boxes: Float[Tensor, "n 4"], size: tuple[int, int]
) -> Iterator[Bool[Tensor, "k H W"]]:
    """Masks of boxes as masks of a whole picture of `size` = (height, width).

    They come in parts of about `PASTED_PIXELS`: 100 masks of a photograph of 12 million pixels
    would take 1.2 GB.

    A pixel belongs to an object from a probability of a half on, which is interpolated between the
    centres of the parts of the box, and falls to 0 around it. torchvision's function for this
    moves the edges of a box to whole pixels.

    Args:
        boxes: x1 y1 x2 y2 in pixels of that picture, which they may leave.
    """
    bins = torch.arange(masks.shape[-1], device=masks.device)

    def weights(first: Tensor, last: Tensor, number: int) -> Tensor:
        """[n, number, bins]: of the bins, at the centre of each pixel."""
        pixels = torch.arange(number, device=masks.device) + 0.5
        places = (pixels - first[:, None]) / (last - first)[:, None] * len(bins) - 0.5
        return (1 - (places[..., None] - bins).abs()).clamp(min=0)

    most = max(1, PASTED_PIXELS // (size[0] * size[1]))
    for own, corners in zip(masks.split(most), boxes.split(most), strict=True):
        x1, y1, x2, y2 = corners.T
        rows, columns = weights(y1, y2, size[0]), weights(x1, x2, size[1])
        yield rows @ own @ columns.mT >= 0.5


@contextmanager
def recorded(*modules: nn.Module) -> Iterator[list[Any]]:
    """What modules return meanwhile, in the order of their calls."""
    outputs: list[Any] = []
    hooks = [m.register_forward_hook(lambda *call: outputs.append(call[2])) for m in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
