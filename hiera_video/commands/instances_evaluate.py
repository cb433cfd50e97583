"""`hiera-video instances evaluate`: AP of a trained Mask R-CNN, and its detections."""

from collections import Counter
from dataclasses import asdict, replace
from typing import Any

from hiera_video.data.checks import check_videos
from hiera_video.data.instances.coco import (
    Detections,
    InstanceList,
    check_categories,
    read_coco,
    write_detections,
)
from hiera_video.data.instances.datasets import WholePictures
from hiera_video.data.instances.masks import mask_library
from hiera_video.data.loader import start_decoding
from hiera_video.evaluation.instances import (
    InstanceAP,
    Kind,
    check_has_objects,
    check_truth,
    format_report,
    report_of,
    score_instances,
)
from hiera_video.evaluation.scoring import detections_of, find_objects
from hiera_video.evaluation.views import Scorer
from hiera_video.files import make_writable_folder, replacing_all, write_json
from hiera_video.models.pretrained import load_model
from hiera_video.runtime.distributed import any_process, on_main, process_group
from hiera_video.runtime.environment import environment
from hiera_video.runtime.results import evaluation_folder, exit_code, print_json, print_result
from hiera_video.settings.evaluation import InstancesEvaluateSettings
from hiera_video.video.open import opener

RESULTS = ("report.json", "detections.json")


def run(config: InstancesEvaluateSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Evaluates and writes the results; returns the exit code."""
    data = config.data
    mask_library()  # before hours of work, not after
    with process_group(config.device, config.precision, config.compile) as process:
        if not dry_run:
            start_decoding(data)
        folder = evaluation_folder(config, RESULTS)
        model, card = load_model(
            config.checkpoint, kind="segmenter", weights_key=config.weights_key
        )
        val = read_coco(data.val, data.root)
        names = {category.id: category.name for category in val.categories}
        if card.label_map or len(names) != model.num_classes:
            check_categories(val, card.actions, config.checkpoint)
        check_truth(val)
        check_has_objects(val)
        unreadable = on_main(lambda: check_videos("data.val", data.val, val.records, data))
        size = model.encoder.input_size[1:]
        protocol = {
            "input_size": list(size),
            "backend": data.backend,
            "precision": process.precision,
        }
        if dry_run:
            print_json(
                {"pictures": len(val.records), "unreadable": unreadable, **protocol}, indent=2
            )
            num_failed = unreadable.total()
            return exit_code(done=len(val.records) - num_failed, failed=num_failed)
        scorer = Scorer.of(
            model, card, process.device, config.batch_size, process.precision, config.compile
        )
        if process.is_main:  # before hours of work, not after
            make_writable_folder(folder)
        pictures = WholePictures(val.records, size=size, open_video=opener(data))
        found, failures = find_objects(scorer, pictures, process, data, progress=process.is_main)
        if process.is_main:
            detections = detections_of(val, found, str(folder / "detections.json"))
            report: dict[str, Any] = {
                "checkpoint": config.checkpoint,
                "data": data.val,
                "expected": len(val.records),
                "decoded": len(found),
                **report_of(val, detections, scores(val, detections)),
                "failed": [asdict(failure) for failure in failures],
                **protocol,
                "decoded_by": Counter(objects.backend for objects in found),
                "settings": config.model_dump(mode="json"),
                "environment": environment(),
            }
            with replacing_all({name: folder / name for name in RESULTS}) as parts:
                write_json(parts["report.json"], report)
                write_detections(parts["detections.json"], detections)
            lines = [
                f"{len(found)} of {len(val.records)} pictures decoded, {len(failures)} failed; all "
                "objects of those that failed count as missed",
                *format_report(report),
                *(f"failed: {failure.message}" for failure in failures),
                f"results are in {folder}",
            ]
            print_result(report, lines, as_json=as_json)
        return exit_code(done=any_process(bool(found)), failed=any_process(bool(failures)))


def scores(val: InstanceList, detections: Detections) -> dict[Kind, InstanceAP]:
    """AP of boxes and of masks; objects are small or large by the area of what is scored.

    As in detectron2, with which the paper's figures were computed, masks are scored without boxes.
    """
    of_masks = replace(detections, boxes_xywh=None)
    return {
        **score_instances(val, detections, ["bbox"]),
        **score_instances(val, of_masks, ["segm"]),
    }
