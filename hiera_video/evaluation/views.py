"""Scores of the views of videos, and their average.

Softmax per view in float32, then the mean over views, as in SlowFast's TestMeter and VideoMAE's
merge. Views of several videos share a forward pass.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from hiera_video.data.batches import ViewSample


@torch.inference_mode()
def score_views(
    model: nn.Module,
    videos: Iterable[ViewSample],
    normalize: Callable[[Tensor], Tensor],
    *,
    crop_size: tuple[int, int],
    batch_size: int,
    device: torch.device,
    bf16: bool = False,
    multi_label: bool = False,
) -> Iterator[tuple[ViewSample, np.ndarray]]:
    """Yields each video with the probabilities of its views, float32 [V, L], in order.

    Args:
        normalize: uint8 [B, T, h, w, C] to float [B, C, T, h, w], on the device.
        crop_size: height and width of a view, pixels.
        batch_size: views in a forward pass.
        multi_label: sigmoid instead of softmax.
    """
    model.eval()
    waiting: deque[tuple[ViewSample, list[Tensor]]] = deque()  # with the scores so far
    batch: list[tuple[list[Tensor], Tensor]] = []  # the video's scores, and the view's pixels

    def run() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(normalize(torch.stack([pixels for _, pixels in batch]))).float()
        probabilities = logits.sigmoid() if multi_label else logits.softmax(dim=1)
        for (scores, _), row in zip(batch, probabilities.cpu(), strict=True):
            scores.append(row)
        batch.clear()

    def finished() -> Iterator[tuple[ViewSample, np.ndarray]]:
        while waiting and len(waiting[0][1]) == waiting[0][0].num_views:
            video, scores = waiting.popleft()
            yield video, torch.stack(scores).numpy()

    for video in videos:
        frames = video.frames.to(device, non_blocking=True)
        scores: list[Tensor] = []
        waiting.append((video, scores))
        for i in range(video.num_views):
            batch.append((scores, video.view(frames, i, crop_size)))
            if len(batch) == batch_size:
                run()
        yield from finished()
    if batch:
        run()
    yield from finished()


def average_views(scores: np.ndarray) -> np.ndarray:
    """The mean over views of probabilities [V, L]: float32 [L]."""
    return scores.mean(axis=0, dtype=np.float64).astype(np.float32)
