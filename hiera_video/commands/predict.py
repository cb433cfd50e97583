"""`hiera-video predict FILE...`: the most likely classes of videos or images."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from hiera_video.data.batches import Failure
from hiera_video.data.datasets import EvaluationViews
from hiera_video.data.order import evaluation_loader, num_workers, readable
from hiera_video.data.transforms import normalize
from hiera_video.data.videos.files import is_media
from hiera_video.data.videos.records import VideoRecord
from hiera_video.errors import UserError
from hiera_video.evaluation.results import top_classes
from hiera_video.evaluation.views import average_views, score_views
from hiera_video.models.weights import load_folder
from hiera_video.runtime.distributed import process_group
from hiera_video.runtime.logging import setup_logging
from hiera_video.runtime.results import exit_code
from hiera_video.settings.evaluation import PredictSettings
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import opener


def run(config: PredictSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Prints the classes of each file, or in one line why there are none; returns the exit code."""
    setup_logging()
    model, meta = load_folder(config.checkpoint)
    names = meta.get("class_names") or [str(c) for c in range(model.num_classes)]
    records = [VideoRecord(path, (), path) for path in files(config.inputs)]
    if dry_run:
        print("\n".join(record.path for record in records))
        return 0
    size = model.input_size[1:]
    views = EvaluationViews(
        records,
        ClipSampler.of(config.clips, model.input_size[0]),
        crop_size=size,
        views=config.views,
        open_video=opener(config.data),
    )
    # A process that decodes ahead pays for itself from the second file on.
    workers = min(num_workers(config.data, 1), len(records) - 1)
    failures: list[Failure] = []
    with process_group(config.device) as process:
        scored = score_views(
            model.to(process.device),
            readable(evaluation_loader(views, num_workers=workers), failures),
            partial(normalize, mean=meta["mean"], std=meta["std"]),
            crop_size=size,
            batch_size=config.views.batch_size,
            device=process.device,
            bf16=config.precision == "bf16",
            multi_label=meta.get("multi_label", False),
        )
        for sample, scores in scored:
            best = top_classes(average_views(scores), config.top_k)
            tell(records[sample.index].path, [(names[c], p) for c, p in best], as_json)
    for failure in failures:
        tell_failure(failure, as_json)
    return exit_code(done=len(records) - len(failures), failed=len(failures))


def files(inputs: list[str]) -> list[str]:
    """The files among the inputs, and the videos and images below the folders among them."""
    found: list[str] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = sorted(str(p) for p in path.rglob("*") if p.is_file() and is_media(str(p)))
            if not inside:
                raise UserError(f"{name}: a folder without videos or images")
            found += inside
        else:
            found.append(name)
    return found


def tell(path: str, classes: list[tuple[str, float]], as_json: bool) -> None:
    if as_json:
        top = [{"class": name, "probability": round(p, 6)} for name, p in classes]
        print(json.dumps({"path": path, "classes": top}, ensure_ascii=False), flush=True)
        return
    print(path)
    for name, p in classes:
        print(f"  {100 * p:5.1f} %  {name}", flush=True)


def tell_failure(failure: Failure, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": failure.path, "cause": failure.cause, "error": failure.message}))
    else:
        print(f"{failure.message}", flush=True)
