"""The generated demo data set for instance segmentation, in COCO's json.

Pictures of 128 x 128 pixels show discs, squares and triangles of random size and turn, in colours
unlike that of the background, which is noise. A shape may hide a part of those before it; a mask
has the visible pixels. Of a shape that is hidden by more than half nothing is annotated, and
nothing is drawn.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from hiera_video.demo.motions import SPLITS, numbered
from hiera_video.files import replacing, write_json
from hiera_video.runtime.progress import Progress

CLASSES = ("disc", "square", "triangle")  # ids count from 1
CORNERS = {"square": 4, "triangle": 3}
SIDE = 128  # of a picture, pixels
NUM_SHAPES = (1, 4)
RADIUS = (14, 32)  # of the circle around a shape, pixels
VISIBLE_FRAC = 0.5
SHIFT = 4  # fractional bits of corners


class DemoInstancesData:
    """Paths of the parts of the data set; `example` is a validation picture."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pictures = folder, folder / "pictures"
        self.train, self.val = folder / "train.json", folder / "val.json"
        self.example = self.pictures / "val_0000.png"


def generate(
    data: DemoInstancesData, *, seed: int, train_pictures: int = 1200, val_pictures: int = 150
) -> None:
    """Writes pictures and annotations, which depend on the seed only."""
    data.pictures.mkdir(parents=True, exist_ok=True)
    splits: dict[str, dict[str, list[Any]]] = {
        split: {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
        }
        for split in SPLITS
    }
    for split, number in Progress(numbered(train_pictures, val_pictures), unit="picture"):
        picture, shapes = draw(seed, split, number)
        content, name = splits[split], f"{split}_{number:04d}.png"
        with replacing(data.pictures / name) as part:
            part.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
        size = {"height": SIDE, "width": SIDE}
        content["images"].append({"id": number, "file_name": name, **size})
        for class_id, mask in shapes:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": class_id,
                    "bbox": box_of(mask),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [SIDE, SIDE], "counts": run_lengths(mask)},
                }
            )
    for split, path in (("train", data.train), ("val", data.val)):
        with replacing(path) as part:
            write_json(part, splits[split])


def draw(
    seed: int, split: str, number: int
) -> tuple[UInt8[np.ndarray, "H W 3"], list[tuple[int, Bool[np.ndarray, "H W"]]]]:
    """Picture `number` of a split, and class ids and masks of its shapes."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
    picture = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 6, picture.shape)
    picture = (picture * 0.3 + 90 + noise).clip(0, 255).astype(np.uint8)
    shapes: list[tuple[int, np.ndarray]] = []
    areas: list[int] = []
    for _ in range(rng.integers(*NUM_SHAPES, endpoint=True)):
        class_id = int(rng.integers(len(CLASSES))) + 1
        mask = draw_mask(CLASSES[class_id - 1], rng)
        left = [(other, seen & ~mask) for other, seen in shapes]
        if any(
            seen.sum() < VISIBLE_FRAC * area for (_, seen), area in zip(left, areas, strict=True)
        ):
            continue
        shapes = [*left, (class_id, mask)]
        areas.append(int(mask.sum()))
        colour = rng.integers(0, 70, 3) + 185 * rng.integers(0, 2, 3)  # unlike the background
        shade = colour + rng.normal(0, 6, (SIDE, SIDE, 3))
        picture[mask] = shade.clip(0, 255).astype(np.uint8)[mask]
    return picture, shapes


def draw_mask(name: str, rng: np.random.Generator) -> Bool[np.ndarray, "H W"]:
    """A shape at a random place, whole in the picture."""
    radius, turn = rng.uniform(*RADIUS), rng.uniform(0, 2 * math.pi)
    centre = rng.uniform(radius, SIDE - 1 - radius, 2)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    if name not in CORNERS:
        at = tuple(round(c * 2**SHIFT) for c in centre)
        cv2.circle(mask, at, int(radius * 2**SHIFT), 1, cv2.FILLED, shift=SHIFT)
        return mask.astype(bool)
    angles = turn + np.arange(CORNERS[name]) * 2 * math.pi / CORNERS[name]
    corners = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillPoly(mask, [np.round(corners * 2**SHIFT).astype(np.int32)], 1, shift=SHIFT)
    return mask.astype(bool)


def box_of(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """The smallest box around a mask: x, y, width, height."""
    y, x = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [int(x[0]), int(y[0]), int(x[-1] - x[0]) + 1, int(y[-1] - y[0]) + 1]


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """COCO's uncompressed run lengths: of zeros and ones in turn, down the columns."""
    pixels = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(pixels, prepend=False))
    return np.diff([0, *starts, pixels.size]).tolist()
