"""The scores of an evaluation, and its videos."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from hiera_video.data.videos.records import VideoRecord, read_video_list
from hiera_video.errors import UserError, counted
from hiera_video.report.blocks import Media
from hiera_video.report.media import MediaFolder
from hiera_video.report.runs import Evaluation
from hiera_video.settings.evaluation import EvaluationData
from hiera_video.video.open import opener

logger = logging.getLogger(__name__)

SMALLEST = 1e-12  # probability, so that each loss is finite


@dataclass(frozen=True)
class Scores:
    """The content of scores.npz, for N videos of V views and L classes."""

    names: list[str]
    labels: list[tuple[int, ...]]
    views: np.ndarray  # float32 [N, V, L], probabilities
    class_names: list[str]
    multi_label: bool

    @classmethod
    def read(cls, evaluation: Evaluation) -> Scores:
        """The scores of an evaluation.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = evaluation.folder / "scores.npz"
        is_multi = "mean_average_precision" in evaluation.report.get("video", {})
        try:
            with np.load(path, allow_pickle=False) as file:
                labels = [
                    tuple(map(int, filter(None, t.split(";")))) for t in file["labels"].tolist()
                ]
                names, views = file["names"].tolist(), file["scores"]
                class_names = file["class_names"].tolist()
            scores = cls(names, labels, views, class_names, is_multi)
            scores.check()
        except FileNotFoundError:
            raise UserError(f"{path}: there is no such file; evaluate again") from None
        except Exception as error:  # zip, NumPy and the text of labels fail in their own ways
            raise UserError(f"{path}: damaged ({error}); evaluate again") from None
        return scores

    def check(self) -> None:
        """Raises ValueError unless the parts fit together."""
        if not len(self.names) == len(self.labels) == len(self.views):
            raise ValueError("names, labels and scores are of different numbers of videos")
        if len(self.names) and self.views.shape[2:] != (len(self.class_names),):
            shape, number = list(self.views.shape), len(self.class_names)
            raise ValueError(f"scores of shape {shape} for {counted(number, 'class')}")
        for ids in self.labels:
            if any(not 0 <= c < len(self.class_names) for c in ids):
                raise ValueError(f"a label that is no class, {ids}")
            if not self.multi_label and len(ids) != 1:
                raise ValueError(f"{counted(len(ids), 'label')} in place of one")

    @cached_property
    def mean(self) -> np.ndarray:
        """Float64 [N, L]: the prediction of each video."""
        return self.views.mean(axis=1, dtype=np.float64)

    @cached_property
    def targets(self) -> np.ndarray:
        """Bool [N, L]."""
        targets = np.zeros(self.mean.shape, bool)
        for row, ids in zip(targets, self.labels, strict=True):
            row[list(ids)] = True
        return targets

    @cached_property
    def loss(self) -> np.ndarray:
        """Cross-entropy of each video with its label, nats; of several, of each class, summed."""
        if not self.multi_label:
            labels = [ids[0] for ids in self.labels]
            return -np.log(self.mean[np.arange(len(labels)), labels].clip(SMALLEST, 1))
        of_targets = np.where(self.targets, self.mean, 1 - self.mean)
        return -np.log(of_targets.clip(SMALLEST, 1)).sum(axis=1)

    @cached_property
    def of_label(self) -> np.ndarray:
        """Probability of the label in each view, float [N, V]; of several labels their mean."""
        if not self.multi_label:
            labels = np.array(self.labels)[:, :, None]  # N 1 1
            return np.take_along_axis(self.views, labels, axis=2)[..., 0]
        counts = self.targets.sum(axis=1).clip(1)
        return np.einsum("nvl,nl->nv", self.views, self.targets) / counts[:, None]

    def label(self, number: int) -> str:
        return ", ".join(self.class_names[c] for c in self.labels[number])


class EvaluatedVideos:
    """The videos of an evaluation, which its list finds again.

    Args:
        folder: where their pictures go.

    Attributes:
        note: why there are none; None if the list was read.
        records: of the list, by name.
    """

    def __init__(self, evaluation: Evaluation, scores: Scores, folder: MediaFolder) -> None:
        self.names, self.folder = scores.names, folder
        self.note: str | None = None
        self.records: dict[str, VideoRecord] = {}
        self._made: dict[int, Media] = {}
        try:
            self.data = evaluation.data(EvaluationData)
            listed = read_video_list(
                self.data.val,
                root=self.data.root,
                class_names=scores.class_names,
                multi_label=scores.multi_label,
                split=self.data.split,
                frames_fps=self.data.frames_fps,
            )
        except UserError as error:
            self.note = str(error)
            logger.warning(
                "%s: the page shows no videos: %s; relative paths start from the current folder",
                evaluation.folder,
                error,
            )
            return
        self.records = {record.name: record for record in listed.records}

    def media(self, number: int) -> Media:
        """Small pictures of video `number`, which are made once; or why there are none."""
        if number not in self._made:
            record = self.records.get(self.names[number])
            if record is None:
                return Media(note=self.note or f"no longer in {self.data.val}")
            self._made[number] = self.folder.of(partial(record.open, opener(self.data)))
        return self._made[number]
