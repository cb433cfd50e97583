"""`hiera-video instances predict FILE...`: the objects in one's own pictures, drawn onto them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hiera_video.analysis.overlay import Person, draw_people
from hiera_video.analysis.sheets import write_png
from hiera_video.data.batches import Failure, PictureSample
from hiera_video.data.checks import warn_of_unreadable
from hiera_video.data.instances.masks import bitmap, mask_library, plain
from hiera_video.data.instances.transforms import fitted
from hiera_video.data.videos.folders import files_among
from hiera_video.data.videos.records import VideoRecord
from hiera_video.evaluation.scoring import PictureObjects, objects_of
from hiera_video.evaluation.views import Scorer
from hiera_video.files import replacing_all, write_json
from hiera_video.models.card import ModelCard
from hiera_video.models.pretrained import load_model
from hiera_video.runtime.distributed import process_group
from hiera_video.runtime.results import exit_code, output_files, print_planned, print_result
from hiera_video.settings.evaluation import InstancesPredictSettings
from hiera_video.video.open import opener
from hiera_video.video.reader import VideoError

OUTPUTS = {"json": "objects.json", "overlay": "overlay.png"}


def run(config: InstancesPredictSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Writes the objects and an overlay of each file, or prints why not; returns the exit code."""
    mask_library()
    paths = files_among(config.inputs)
    outputs = output_files(config, paths, OUTPUTS)
    with process_group(config.device, config.precision, config.compile) as process:
        model, card = load_model(
            config.checkpoint, kind="segmenter", weights_key=config.weights_key
        )
        if dry_run:
            print_planned((file for files in outputs for file in files.values()), as_json=as_json)
            records = [VideoRecord(path, (), path) for path in paths]
            failed = warn_of_unreadable(records, opener(config.data))
            return exit_code(done=len(paths) - failed, failed=failed)
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        failed = 0
        scorer = Scorer.of(model, card, process.device, 1, process.precision, config.compile)
        for path, files in zip(paths, outputs, strict=True):
            try:
                with opener(config.data)(path) as video:
                    if len(video) != 1:
                        raise VideoError(
                            path, "not_a_video", f"has {len(video)} frames: expected a picture"
                        )
                    picture, backend = video.frames([0])[0], video.backend
                objects = find(scorer, picture, model.encoder.input_size[1:], backend)
            except VideoError as error:
                failed += 1
                said = {"path": path, "cause": error.cause, "error": str(error)}
                print_result(said, [str(error)], as_json=as_json)
                continue
            if objects is None:
                failed += 1
                record = VideoRecord(path, (), path)
                failure = Failure.not_finite(record, "its objects are", process.precision)
                said = {"path": path, "cause": failure.cause, "error": failure.message}
                print_result(said, [failure.message], as_json=as_json)
                continue
            found = described(objects, card, config.min_score)
            size = {"height": picture.shape[0], "width": picture.shape[1]}
            with replacing_all(files) as parts:
                write_json(parts["json"], {"path": path, **size, "objects": found})
                write_png(parts["overlay"], drawn(picture, found))
            names = ", ".join(f"{o['name']} {o['score']:.2f}" for o in found) or "nothing"
            print_result(
                {"path": path, "objects": found, **{k: str(file) for k, file in files.items()}},
                [f"{path}: {names}", *(f"  {file}" for file in files.values())],
                as_json=as_json,
            )
    return exit_code(done=len(paths) - failed, failed=failed)


def find(
    scorer: Scorer, picture: np.ndarray, shown: tuple[int, int], backend: str
) -> PictureObjects | None:
    """The objects of a picture; None if the outputs of the model are not finite.

    Args:
        shown: height and width of the model's input.
    """
    size = (picture.shape[0], picture.shape[1])
    canvas, shape = fitted(picture, shown)
    sample = PictureSample(0, torch.from_numpy(canvas[None]), shape, size, backend)
    (found,) = scorer.outputs(sample.clip[None])
    return objects_of(sample, found) if found["is_finite"] else None


def described(objects: PictureObjects, card: ModelCard, min_score: float) -> list[dict[str, Any]]:
    """The objects with a score of at least `min_score`, as in COCO's results, with names."""
    ids = sorted(card.actions)
    rows = zip(
        objects.boxes.tolist(), objects.labels, objects.scores.tolist(), objects.masks, strict=True
    )
    return [
        {
            "category_id": ids[label - 1],
            "name": card.actions[ids[label - 1]],
            "score": round(score, 6),
            "bbox": [round(n, 3) for n in (x1, y1, x2 - x1, y2 - y1)],
            "segmentation": plain(mask),
        }
        for (x1, y1, x2, y2), label, score, mask in rows
        if score >= min_score
    ]


def drawn(picture: np.ndarray, objects: list[dict[str, Any]]) -> np.ndarray:
    """The picture with boxes, masks and names, the surest object on top."""
    height, width = picture.shape[:2]
    shown = []
    for found in reversed(objects):
        x, y, w, h = found["bbox"]
        box = (x / width, y / height, (x + w) / width, (y + h) / height)
        mask = bitmap(found["segmentation"], height, width)
        shown.append(Person(box, ((found["name"], found["score"]),), mask))
    return draw_people(picture, shown)
