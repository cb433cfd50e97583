"""`hiera-video instances score`: computes box and mask AP from COCO's json files."""

from hiera_video.data.instances.coco import read_coco, read_detections
from hiera_video.evaluation.instances import (
    Kind,
    check_has_objects,
    format_report,
    report_of,
    score_instances,
)
from hiera_video.runtime.results import print_json, print_result
from hiera_video.settings.evaluation import InstancesScoreSettings


def run(config: InstancesScoreSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Computes and prints AP; a UserError if it is not defined."""
    truth = read_coco(config.ground_truth)
    detections = read_detections(config.detections, truth)
    if dry_run:
        print_json({"images": len(truth.records), "detections": len(detections)})
        return 0
    kinds: list[Kind] = ["bbox", "segm"]
    if config.kinds in ("bbox", "segm"):
        kinds = [config.kinds]
    elif config.kinds is None and len(detections) and detections.segmentations is None:
        kinds = ["bbox"]
    results = score_instances(truth, detections, kinds)
    report = report_of(truth, detections, results)
    print_result(report, format_report(report), as_json=as_json)
    check_has_objects(truth)
    return 0
