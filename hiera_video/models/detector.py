"""The action detector: a Hiera, and a head that classifies what the person in a box does.

The framework of SlowFast (arXiv 1812.03982, section 4; `ResNetRoIHead` in its head_helper.py),
which the Hiera paper follows (appendix A.1): one clip around a key frame, features of the last
stage averaged over time, RoIAlign, spatial maximum, one sigmoid an action. As in SlowFast's MViT,
tokens are normalised before. What differs is only that boxes are fractions of the clip's picture:
the stride of the map (32 pixels; 16 with q_pool=2) is then right by construction, whatever the
model.
"""

import math
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torchvision.ops import roi_align

from hiera_video.errors import ModelError, counted
from hiera_video.models.hiera import Head, Hiera, Trainable, outputs_of


class ActionDetector(Trainable):
    """Actions of the people in given boxes, at the middle of a clip.

    Args:
        encoder: with `num_classes=0`.
        num_classes: actions; output c is the action of id c + 1, AVA's ids being counted from 1.
        head_dropout: dropout before the classifier.
        roi_resolution: bins of RoIAlign along each side of a box.
    """

    in_float32, compiles_whole = ("roi_head",), False

    def __init__(
        self,
        encoder: Hiera,
        *,
        num_classes: int,
        head_dropout: float = 0.0,
        roi_resolution: int = 7,
    ) -> None:
        super().__init__()
        if encoder.num_classes:
            raise ModelError(f"the encoder has {counted(encoder.num_classes, 'class')}: expected 0")
        if num_classes < 1 or roi_resolution < 1:
            raise ModelError(
                f"num_classes is {num_classes}, roi_resolution {roi_resolution}: allowed is 1 or "
                "more"
            )
        self.encoder, self.head_dropout = encoder, head_dropout
        self.roi_resolution = roi_resolution
        self.roi_head = Head(encoder.num_features, num_classes, head_dropout)
        self.reset_classifier(num_classes)

    @property
    def num_classes(self) -> int:
        """Actions."""
        return outputs_of(self.roi_head)

    @property
    def detector_architecture(self) -> dict[str, int]:
        """Keyword arguments that build this detector again around the same encoder."""
        return {"num_classes": self.num_classes, "roi_resolution": self.roi_resolution}

    def forward(
        self,
        x: Shaped[Tensor, "B C *T H W"],
        boxes: Float[Tensor, "R 4"],
        clip_of_box: Int[Tensor, " R"],
    ) -> Float[Tensor, "R L"]:
        """Logits of each box, one a action; R may be 0.

        Args:
            x: normalised clips, of the encoder's `input_size`.
            boxes: corners (x1, y1, x2, y2) as fractions of the clip's picture, 0..1.
            clip_of_box: which of the clips each box lies in.
        """
        return self.roi_head(self.roi_features(self.feature_map(x), boxes, clip_of_box))

    def feature_map(self, x: Shaped[Tensor, "B C *T H W"]) -> Float[Tensor, "B D h w"]:
        """Tokens of the last stage, normalised, averaged over time."""
        tokens = self.encoder.norm(self.encoder.encode(x)[-1])
        return (
            self.encoder.reroll(tokens, stage=-1)
            .mean(dim=1, dtype=torch.float32)
            .permute(0, 3, 1, 2)
        )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles `feature_map`, by torch.compile with these arguments.

        The head has another number of boxes in each step, for which it is compiled again.
        """
        compiled = torch.compile(ActionDetector.feature_map, *args, **kwargs)
        self.feature_map = MethodType(compiled, self)  # type: ignore[method-assign]

    def roi_features(
        self,
        maps: Float[Tensor, "B D h w"],
        boxes: Float[Tensor, "R 4"],
        clip_of_box: Int[Tensor, " R"],
    ) -> Float[Tensor, "R D"]:
        """The maximum over each box, in float32.

        Bins are sampled as densely as the box is large on the map; pixel centres lie at halves
        ("aligned").
        """
        height, width = maps.shape[2:]
        x1, y1, x2, y2 = boxes.float().unbind(dim=1)
        cells = (x1 * width, y1 * height, x2 * width, y2 * height)
        rois = torch.stack([clip_of_box.float(), *cells], dim=1)
        bins = roi_align(maps.float(), rois, self.roi_resolution, sampling_ratio=0, aligned=True)
        return bins.amax(dim=(2, 3))

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh classifier for `num_classes` actions: normal 0.01, as SlowFast's.

        Biases say at first that a box has one action in the mean (arXiv 1708.02002, section 4.1).
        From 0, training begins with unlearning 80 halves, in which an encoder with random weights
        collapsed: after 250 steps of the demo it was still at chance.
        """
        weight = self.encoder.norm.weight
        head = Head(self.encoder.num_features, num_classes, self.head_dropout)
        for name, parameter in head.projection.named_parameters():
            if name == "weight":
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.constant_(parameter, -math.log(max(num_classes - 1, 1)))
        self.roi_head = head.to(weight.device, weight.dtype)
        if self.card is not None:
            self.card = self.card.without_classes()
