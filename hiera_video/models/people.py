"""People in single frames: torchvision's Faster R-CNN, trained on COCO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8

from hiera_video.errors import WeightsError, WeightsNotFoundError
from hiera_video.models.download import fetch_file

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

# torchvision's FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1, box AP 46.7 on COCO val2017.
URL = "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"
LICENSE = "BSD-3-Clause"
NUM_CLASSES = 91  # COCO's, and the background
PERSON = 1


class People(NamedTuple):
    """The people of one frame, the surest first."""

    boxes: Float[np.ndarray, "n 4"]  # x1 y1 x2 y2, fractions of the frame
    scores: Float[np.ndarray, " n"]


def load_person_detector(weights: str | Path | None = None) -> FasterRCNN:
    """The detector, in evaluation mode.

    Args:
        weights: what torch.save wrote of a `fasterrcnn_resnet50_fpn_v2` with 91 classes. None:
            those that torchvision publishes, fetched into torch.hub's cache at first use.

    Raises:
        ConnectionError: they cannot be fetched; says which file to put where by hand.
        WeightsNotFoundError: there is no such file.
        WeightsError: the file holds something else.
    """
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    path = fetch_file(URL, LICENSE) if weights is None else Path(weights)
    if not path.is_file():
        raise WeightsNotFoundError(f"{path}: there is no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise WeightsError(f"{path} is damaged or not a file of weights") from error
    model = fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES, box_score_thresh=0.0
    )
    expected = model.state_dict()
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise WeightsError(f"{path} holds no state dict")
    wrong = sorted(expected.keys() ^ state.keys())
    wrong += [k for k in expected if k in state and expected[k].shape != state[k].shape]
    if wrong:
        raise WeightsError(
            f"{path} is not a fasterrcnn_resnet50_fpn_v2 of {NUM_CLASSES} classes: {len(wrong)} "
            f"tensors are missing, unknown or of another shape, the first is {wrong[0]}"
        )
    model.load_state_dict(state)
    return model.eval()


@torch.inference_mode()
def detect_people(
    model: FasterRCNN,
    frames: UInt8[np.ndarray, "N H W 3"] | Sequence[UInt8[np.ndarray, "H W 3"]],
    *,
    min_score: float,
) -> list[People]:
    """The people of each frame, in one forward pass on the model's device.

    Args:
        min_score: lowest score of a box that is returned, 0..1.
    """
    device = next(model.parameters()).device
    pictures = [
        torch.from_numpy(np.ascontiguousarray(frame)).to(device).permute(2, 0, 1).float() / 255
        for frame in frames
    ]
    if not pictures:
        return []
    found = []
    for frame, result in zip(frames, model(pictures), strict=True):
        height, width = frame.shape[:2]
        kept = (result["labels"] == PERSON) & (result["scores"] >= min_score)
        boxes = result["boxes"][kept].double().cpu().numpy() / (width, height, width, height)
        found.append(People(boxes, result["scores"][kept].double().cpu().numpy()))
    return found
