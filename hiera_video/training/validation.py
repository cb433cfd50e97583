"""Scores of a list of videos, shared out over the processes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from hiera_video.data.batches import Failure
from hiera_video.data.datasets import EvaluationViews
from hiera_video.data.loaders import evaluation_loader, readable
from hiera_video.data.transforms import normalize
from hiera_video.evaluation.classification import VideoScores
from hiera_video.evaluation.views import score_views
from hiera_video.training.distributed import Process, gather_on_main


def validate(
    model: nn.Module,
    views: EvaluationViews,
    process: Process,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    num_workers: int,
    bf16: bool,
    multi_label: bool,
    progress: bool = False,
) -> tuple[list[VideoScores], list[Failure]]:
    """The scores of all videos that could be read, and the others; both in the order of the list.

    Every process takes its share; the main process gets the whole, the others what they did.

    Args:
        batch_size: views in a forward pass.
        num_workers: decoding processes beside this one.
        progress: show a bar, on a terminal.
    """
    loader = evaluation_loader(
        views, rank=process.rank, world_size=process.world_size, num_workers=num_workers
    )
    failures: list[Failure] = []
    scored = score_views(
        model,
        readable(tqdm(loader, unit="video", disable=None if progress else True), failures),
        partial(
            normalize,
            mean=torch.tensor(mean, device=process.device),
            std=torch.tensor(std, device=process.device),
        ),
        crop_size=views.crop_size,
        batch_size=batch_size,
        device=process.device,
        bf16=bf16,
        multi_label=multi_label,
    )
    videos = [
        VideoScores(v.index, views.records[v.index].labels, scores, v.backend)
        for v, scores in scored
    ]
    gathered = gather_on_main((videos, failures)) or [(videos, failures)]
    videos = sorted((v for part, _ in gathered for v in part), key=lambda v: v.index)
    place = {record.name: i for i, record in enumerate(views.records)}
    failures = sorted((f for _, part in gathered for f in part), key=lambda f: place[f.name])
    return videos, failures
