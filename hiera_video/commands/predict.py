"""`hiera-video predict FILE...`: the most likely classes of videos or images."""

from hiera_video.data.batches import Failure
from hiera_video.data.checks import warn_of_pictures, warn_of_unreadable
from hiera_video.data.loader import evaluation_loader, readable
from hiera_video.data.videos.folders import files_among
from hiera_video.data.videos.records import VideoRecord
from hiera_video.evaluation.prediction import classify, load_model, views_of
from hiera_video.evaluation.views import Scorer
from hiera_video.runtime.distributed import process_group
from hiera_video.runtime.results import exit_code, print_planned, print_result
from hiera_video.settings.evaluation import PredictSettings
from hiera_video.video.open import opener


def run(config: PredictSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Prints the classes of each file, or in one line why there are none; returns the exit code."""
    paths = files_among(config.inputs, has_frames=config.data.frames_fps is not None)
    with process_group(config.device, config.precision, config.compile) as process:
        model, card = load_model(
            config.checkpoint, kind="classifier", weights_key=config.weights_key
        )
        records = [VideoRecord(path, (), path) for path in paths]
        views = views_of(records, model, config.clips, config.views, config.data)
        warn_of_pictures(paths, views.sampler.num_frames, config.checkpoint)
        if dry_run:
            print_planned(paths, as_json=as_json)
            num_failed = warn_of_unreadable(records, opener(config.data))
            return exit_code(done=len(paths) - num_failed, failed=num_failed)
        failures: list[Failure] = []
        scorer = Scorer.of(
            model, card, process.device, config.views.batch_size, process.precision, config.compile
        )
        samples = readable(evaluation_loader(views, config.data), failures)
        classified = classify(scorer, samples, views, failures, card.classes, config.top_k)
        for sample, classes in classified:
            path = paths[sample.index]
            top = [{"class": name, "probability": round(p, 6)} for name, p in classes]
            lines = [path, *(f"  {100 * p:5.1f} %  {name}" for name, p in classes)]
            print_result({"path": path, "classes": top}, lines, as_json=as_json)
    for failure in failures:
        record = {"path": failure.path, "cause": failure.cause, "error": failure.message}
        print_result(record, [failure.message], as_json=as_json)
    return exit_code(done=len(paths) - len(failures), failed=len(failures))
