"""Who finds the people in frames: torchvision's detector, or an instance segmenter."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8

from hiera_video.data.instances.transforms import fitted
from hiera_video.errors import OTHER_WEIGHTS, WeightsError, listing
from hiera_video.evaluation.scoring import on_picture
from hiera_video.evaluation.views import Scorer
from hiera_video.models.checkpoint import not_finite, shorten
from hiera_video.models.people import People, detect_people, load_person_detector
from hiera_video.models.pretrained import load_model
from hiera_video.models.sources import find
from hiera_video.settings.training import Arithmetic

PERSON = "person"  # the category, as COCO calls it
Frames = UInt8[np.ndarray, "N H W 3"] | Sequence[UInt8[np.ndarray, "H W 3"]]


class PersonDetector(Protocol):
    def __call__(self, frames: Frames, *, min_score: float) -> list[People]:
        """The people of each frame, in one forward pass.

        Args:
            min_score: lowest score of a box that is returned, 0..1.

        Raises:
            WeightsError: the outputs of the model are not finite.
        """


def person_detector(
    source: str | Path | None, device: torch.device, precision: Arithmetic = "fp32"
) -> PersonDetector:
    """The detector that a file or folder holds.

    Args:
        source: a segmenter (a run, checkpoint or weights folder) with a category "person", or a
            file as of `load_person_detector`. None: what torchvision publishes.
        precision: of a segmenter, see `InferenceModel`.

    Raises:
        FetchError, WeightsError, WeightsNotFoundError: as `load_person_detector` and `load_model`.
        WeightsError: a segmenter that knows no people, or values that are not finite.
    """
    if source is None or (Path(source).is_file() and find(source)[1] == {}):
        return partial(detect_people, load_person_detector(source).to(device))
    model, card = load_model(source, kind="segmenter")
    names = [card.actions[id] for id in sorted(card.actions)]
    if PERSON not in names:
        raise WeightsError(
            f"{source} has no category {PERSON!r}, but {listing(names)}; expected a segmenter that "
            "was trained with people"
        )
    if bad := not_finite(model.state_dict()):  # with which it finds nobody
        raise WeightsError(
            f"{source} holds values that are not finite: {shorten(bad)}; use another"
        )
    scorer = Scorer.of(model, card, device, batch_size=1, precision=precision)
    size = model.encoder.input_size[1:]
    return SegmentedPeople(scorer, size, names.index(PERSON) + 1, str(source))


@dataclass(frozen=True)
class SegmentedPeople:
    """A `PersonDetector`: a segmenter, of whose objects the people are taken.

    Args:
        size: height and width of its input.
        label: of people.
        source: names it in errors.
    """

    scorer: Scorer
    size: tuple[int, int]
    label: int
    source: str

    def __call__(self, frames: Frames, *, min_score: float) -> list[People]:
        if not len(frames):
            return []
        scorer = self.scorer
        canvases, shapes = zip(*(fitted(frame, self.size) for frame in frames), strict=True)
        clips = torch.from_numpy(np.stack(canvases)[:, None])
        people = []
        for frame, shape, found in zip(frames, shapes, scorer.outputs(clips), strict=True):
            if not found["is_finite"]:
                other = "precision=fp32 or " if scorer.precision in ("bf16", "fp16") else ""
                raise WeightsError(
                    f"the outputs of {self.source} are not finite in {scorer.precision}; use "
                    f"{other}{OTHER_WEIGHTS}"
                )
            height, width = frame.shape[:2]
            objects = on_picture(found, shape, (height, width))
            kept = (objects["labels"] == self.label) & (objects["scores"] >= min_score)
            boxes = objects["boxes"][kept].double().cpu().numpy() / (width, height, width, height)
            people.append(People(boxes, objects["scores"][kept].double().cpu().numpy()))
        return people
