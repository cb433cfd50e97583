"""Scores of the views of videos, and their average.

Softmax per view in float32, then the mean over views, as in SlowFast's TestMeter and VideoMAE's
merge. Views of several videos share a forward pass.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hiera_video.data.batches import Failure, ViewSample
from hiera_video.models.card import ModelCard
from hiera_video.models.inference import InferenceModel
from hiera_video.models.normalize import Normalize
from hiera_video.runtime.transfer import Fetch, transfer_for
from hiera_video.settings.training import Arithmetic


class Indexed(Protocol):
    @property
    def index(self) -> int:
        """Of the record."""


Sample = TypeVar("Sample", bound=Indexed)


@dataclass(kw_only=True)
class Scorer(InferenceModel):
    """Clips to probabilities: an `InferenceModel` of logits, and what to make of these.

    Args:
        multi_label: sigmoid instead of softmax.
    """

    multi_label: bool = False

    @classmethod
    def of(
        cls,
        model: nn.Module,
        card: ModelCard,
        device: torch.device,
        batch_size: int,
        precision: Arithmetic = "fp32",
        compile: bool = False,
    ) -> Self:
        """For a model that its card describes."""
        return cls(
            model,
            Normalize(card.mean, card.std),
            device=device,
            batch_size=batch_size,
            precision=precision,
            compile=compile,
            multi_label=card.multi_label or card.kind == "detector",
        )

    def __call__(self, clips: Tensor, *boxes: Tensor) -> Tensor:
        """Probabilities, float32 [B, L], on the host; NaN in rows with a logit that is not finite.

        Args:
            clips: uint8 [B, T, h, w, C], on any device.
            boxes: further inputs of the model.
        """
        return self.probabilities(clips, *boxes).cpu()

    @torch.inference_mode()
    def probabilities(self, clips: Tensor, *boxes: Tensor) -> Tensor:
        """The same on the device."""
        logits = self.outputs(clips, *boxes).float()
        scores = logits.sigmoid() if self.multi_label else logits.softmax(dim=1)
        # Asked of the logits, because the sigmoid of an infinite one is 0 or 1.
        is_finite = logits.isfinite().all(dim=1, keepdim=True)
        return scores.where(is_finite, torch.nan)

    def outputs(self, clips: Tensor, *boxes: Tensor) -> Any:
        """What the model itself makes of clips, on the device."""
        return super().__call__(clips, *boxes)

    def finite(
        self,
        scored: Iterable[tuple[Sample, np.ndarray]],
        records: Sequence[Any],
        failures: list[Failure],
    ) -> Iterator[tuple[Sample, np.ndarray]]:
        """The samples with finite scores; the records of the others are appended to `failures`.

        Args:
            scored: samples with their scores, as of `score_views`.
            records: those that the samples index.
        """
        for sample, scores in scored:
            if np.isfinite(scores).all():
                yield sample, scores
            else:
                record = records[sample.index]
                failures.append(Failure.not_finite(record, "its scores are", self.precision))


def score_views(
    scorer: Scorer, videos: Iterable[ViewSample], crop_size: tuple[int, int]
) -> Iterator[tuple[ViewSample, np.ndarray]]:
    """Yields each video with the probabilities of its views, float32 [V, L], in order.

    On CUDA, those of a batch are awaited once the model has the next one.

    Args:
        crop_size: height and width of a view, pixels.
    """
    transfer = transfer_for(scorer.device)
    begun: deque[ViewSample] = deque()  # videos of which scores are missing

    def views() -> Iterator[Tensor]:
        for video in videos:
            begun.append(video)
            frames = transfer.to_device(video.frames)
            yield from (video.view(frames, i, crop_size) for i in range(video.num_views))

    def launched() -> Iterator[tuple[None, Fetch]]:
        pixels = views()
        while batch := list(islice(pixels, scorer.batch_size)):
            yield None, transfer.launch(scorer.probabilities, torch.stack(batch))

    scores = list[Tensor]()
    for _, of_batch in transfer.results(launched()):
        scores += of_batch
        while begun and len(scores) >= begun[0].num_views:
            video = begun.popleft()
            yield video, torch.stack(scores[: video.num_views]).numpy()
            del scores[: video.num_views]


def average_views(scores: np.ndarray) -> np.ndarray:
    """The mean over views of probabilities [V, L]: float32 [L]."""
    return scores.mean(axis=0, dtype=np.float64).astype(np.float32)
