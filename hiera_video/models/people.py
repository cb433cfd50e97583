"""People in single frames: torchvision's Faster R-CNN, trained on COCO."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torchvision.models.detection import (
    FasterRCNN,
    FasterRCNN_ResNet50_FPN_V2_Weights,
    fasterrcnn_resnet50_fpn_v2,
)

from hiera_video.errors import NotFetched, WeightsError
from hiera_video.models.checkpoint import differences, not_finite, shorten
from hiera_video.models.download import fetch_file
from hiera_video.models.tensors import read_state

logger = logging.getLogger(__name__)

PUBLISHED = FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1  # box AP 46.7 on COCO val2017
CLASSES = PUBLISHED.meta["categories"]  # COCO's, and the background
PERSON = CLASSES.index("person")


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
        FetchError, WeightsNotFoundError: as `fetch_file` and `read_state`.
        WeightsError: the file holds something else, or values that are not finite.
    """
    path = fetch_weights() if weights is None else Path(weights)
    state = read_state(path).tensors
    model = fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=len(CLASSES), box_score_thresh=0.0
    )
    if differs := differences(state, model.state_dict()):
        raise WeightsError(
            f"{path} is not a fasterrcnn_resnet50_fpn_v2 of {len(CLASSES)} classes: "
            f"{shorten(differs, 1)}"
        )
    if bad := not_finite(state):  # with which the detector finds nobody
        raise WeightsError(f"{path} holds values that are not finite: {shorten(bad)}; use another")
    model.load_state_dict(state)
    return model.eval()


def fetch_weights() -> Path:
    """The file that torchvision publishes; errors are those of `fetch_file`."""
    return fetch_file(PUBLISHED.url, "BSD-3-Clause")


def announce_weights() -> None:
    """Logs what `fetch_weights` would fetch, in a dry run."""
    try:
        fetch_weights()
    except NotFetched as what:
        logger.info("%s: about %.0f MB", what, PUBLISHED.meta["_file_size"])


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
