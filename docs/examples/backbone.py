"""Hiera as a backbone.

Of your own network: `forward_intermediates` gives the maps of any stages of a clip, in space-time
order, and computes only the stages up to the last of them. Of torchvision's detectors: a
`FeaturePyramid` gives the maps of a picture with strides of 4, 8, 16 and 32 pixels.
"""

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN

from hiera_video import create_model
from hiera_video.models.pyramid import FeaturePyramid
from hiera_video.training.optim import parameter_groups, set_learning_rate


class ActionTimeline(nn.Module):
    """Scores for every second frame of a clip, from the last two stages of a Hiera."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        # With weights: create_model("hiera_tiny_16x224", checkpoint=..., num_classes=0, ...)
        self.backbone = create_model("hiera_tiny_16x224", num_classes=0, image_size=(64, 96))
        self.heads = nn.ModuleList(
            nn.Linear(dim, num_outputs) for dim in self.backbone.stage_dims[2:]
        )

    def forward(self, clips: torch.Tensor) -> torch.Tensor:  # [B, 3, 16, 64, 96], normalised
        maps = self.backbone.forward_intermediates(clips, indices=[2, 3])  # 2 x [B, t, h, w, D]
        return sum(head(x.mean(dim=(2, 3))) for head, x in zip(self.heads, maps, strict=True))


def optimizer_of(model: ActionTimeline) -> torch.optim.Optimizer:
    """AdamW with layer decay: each layer learns slower than the next one."""
    depths = {f"backbone.{name}": depth for name, depth in model.backbone.layer_ids().items()}
    top = max(depths.values())
    groups = parameter_groups(
        model,
        weight_decay=0.05,
        layer_decay=0.8,
        layer_ids={name: depths.get(name, top) for name, _ in model.named_parameters()},
        no_weight_decay={f"backbone.{name}" for name in model.backbone.no_weight_decay()},
    )
    optimizer = torch.optim.AdamW(groups)
    set_learning_rate(optimizer, 1e-4)
    return optimizer


def detectors() -> tuple[FasterRCNN, MaskRCNN]:
    """Detectors of boxes, and of boxes and masks, for 90 classes and the background."""
    # Published weights that fit any size: checkpoint="sbb2_e200_in12k_ft_in1k"
    sizes = dict(num_classes=91, min_size=128, max_size=192)
    encoders = (create_model("hiera_small_abswin_256", num_classes=0) for _ in range(2))
    boxes, masks = (FeaturePyramid(encoder) for encoder in encoders)
    return FasterRCNN(boxes, **sizes), MaskRCNN(masks, **sizes)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = ActionTimeline(num_outputs=5)
    scores = model(torch.randn(2, 3, 16, 64, 96))  # 2 clips
    optimizer = optimizer_of(model)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    print(f"timeline {list(scores.shape)}, {len(rates)} learning rates up to {rates[-1]:.0e}")

    picture = torch.rand(3, 120, 160)  # 0..1; torchvision's detectors resize and normalise it
    target = {"boxes": torch.tensor([[20.0, 30.0, 90.0, 110.0]]), "labels": torch.tensor([17])}
    faster, mask = detectors()
    losses = faster([picture], [target])  # in training mode
    sum(losses.values()).backward()
    print(f"losses of the box detector: {', '.join(losses)}")
    with torch.inference_mode():
        (found,) = mask.eval()([picture])
    print(f"maps of the mask detector: strides {mask.backbone.body.strides}")
    print(f"found: {', '.join(found)}, masks of {list(found['masks'].shape[1:])} pixels")
