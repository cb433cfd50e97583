"""Extraction on a Ray cluster: Ray Data moves windows from CPU decoders to GPU model actors.

The same decoding process, under the same supervision, works inside each decoding actor, so that a
file that kills it costs that file; Ray repeats what an actor or a machine that died had to do. The
driver stores what comes back, so that outputs and resuming are those of a local run. Videos and
the output folder must have the same paths on all machines.
"""

import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from hiera_video.errors import MissingLibrary
from hiera_video.extraction.features import FeatureExtractor
from hiera_video.extraction.reading import End, ReadWindows, Window
from hiera_video.extraction.runner import Assembly, extract_windows
from hiera_video.runtime.precision import arithmetic, set_tf32
from hiera_video.runtime.workers import Workers

Batch = dict[str, np.ndarray]


class Decoder:
    """Videos to rows: one for each window, and one for the end."""

    def __init__(self, work: ReadWindows) -> None:
        self.workers = Workers(work, 1, limit_sec=work.deadline_sec)

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        jobs = ([video] for video in batch["video"])
        for result in self.workers.results(jobs):
            if result is not None:
                place, value = result
                yield {"index": batch["index"][[place]], "value": _pickled([value])}


class Model:
    """Windows to features, with their number and seconds; the ends of videos pass through."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        set_tf32(arithmetic(extractor.precision, device))  # in this process, on this device
        self.extractor = replace(extractor, device=device)
        self.is_warm = False

    def __call__(self, batch: Batch) -> Batch:
        values = [pickle.loads(value) for value in batch["value"]]
        places = [i for i, value in enumerate(values) if isinstance(value, Window)]
        if places:
            # Not before: Ray makes all calls in a thread of their own, and CUDA graphs belong to
            # the thread that records them.
            if not self.is_warm:
                self.extractor.warm_up()
                self.is_warm = True
            views = torch.from_numpy(np.stack([values[i].views for i in places]))
            start = time.perf_counter()
            rows = extract_windows(self.extractor, views).cpu()
            seconds = (time.perf_counter() - start) / len(places)
            for i, row in zip(places, rows, strict=True):
                values[i] = (values[i].n, row.clone(), seconds)
        return {"index": batch["index"], "value": _pickled(values)}


def _pickled(values: Sequence[Any]) -> np.ndarray:
    return np.array([pickle.dumps(value) for value in values], object)


def check_installed() -> None:
    """Raises MissingLibrary if Ray is not installed."""
    if find_spec("ray") is None:
        raise MissingLibrary("engine=ray needs Ray: pip install 'hiera-video[ray]'")


def models_per_gpu(gpus_per_model: float) -> int:
    """Model actors that fit a GPU: an actor's share lies on one, so that the rest stays unused."""
    return int(1 / gpus_per_model + 1e-9)  # 1 / 0.2 may be a little less than 5


def extract_with_ray(
    assembly: Assembly,
    work: ReadWindows,
    extractor: FeatureExtractor,
    *,
    gpus_per_model: float = 1.0,
) -> None:
    """What `extract` does, on the Ray cluster that this process belongs to, or a local one.

    Args:
        gpus_per_model: share of a GPU that each model actor takes, 0 < share <= 1.
    """
    import ray

    if not assembly.videos:
        return
    if not ray.is_initialized():
        ray.init()
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    num_models = num_gpus * models_per_gpu(gpus_per_model)
    jobs = [{"index": index, "video": video} for index, video in enumerate(assembly.videos)]
    results = (
        ray.data.from_items(jobs)
        .map_batches(
            Decoder,
            fn_constructor_args=(work,),
            batch_size=1,
            concurrency=(1, assembly.summary.num_workers),
            num_cpus=1,
        )
        .map_batches(
            Model,
            fn_constructor_args=(extractor,),
            batch_size=extractor.batch_size // work.crops.num_crops,
            concurrency=max(1, num_models),
            num_cpus=0,
            num_gpus=gpus_per_model if num_gpus else 0,
        )
    )
    for row in results.iter_rows():
        value = pickle.loads(row["value"])
        if isinstance(value, End):
            assembly.end(row["index"], value)
            continue
        n, features, seconds = value
        assembly.summary.clips += work.crops.num_crops
        assembly.summary.model_sec += seconds
        assembly.add([(row["index"], n)], features[None])
