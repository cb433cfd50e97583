"""`hiera-video detect train`: train an action detector on key frames with boxes."""

from functools import partial
from pathlib import Path

import torch

from hiera_video.data.batches import Failure
from hiera_video.data.boxes.keyframes import (
    KeyframeEvaluation,
    TrainingKeyframeList,
    detections_of,
    num_boxes,
    read_evaluation,
    read_training,
)
from hiera_video.data.boxes.table import read_label_map
from hiera_video.data.checks import warn_of_flips, warn_of_similar
from hiera_video.data.datasets import TrainingKeyframes
from hiera_video.data.transforms import DetectionTransform
from hiera_video.errors import counted
from hiera_video.evaluation.ava import frame_aps
from hiera_video.evaluation.scoring import KeyframeScores, keyframe_clips_of, score_keyframes
from hiera_video.evaluation.views import Scorer
from hiera_video.models.card import ModelCard
from hiera_video.models.detector import ActionDetector
from hiera_video.models.loading import card_of
from hiera_video.models.pretrained import create_detector
from hiera_video.runtime.distributed import Process
from hiera_video.settings.training import DetectTrainSettings
from hiera_video.training.losses import DetectionLoss
from hiera_video.training.run import train
from hiera_video.training.task import Task
from hiera_video.video.open import opener


class DetectTrainTask(Task):
    """Training of an action detector."""

    unit = "key frames"
    settings: DetectTrainSettings
    train: TrainingKeyframeList
    val: KeyframeEvaluation | None = None

    def __init__(self, settings: DetectTrainSettings) -> None:
        data = settings.data
        self.label_map = read_label_map(data.label_map)
        super().__init__(settings, read_training(data, self.label_map))
        boxes, actions = num_boxes(self.train.records), len(self.label_map.names)
        warn_of_flips(self.label_map.names.values(), settings.augment.flip)
        warn_of_similar(self.label_map.names.values())
        self.contents = f" with {counted(boxes, 'box')} of {counted(actions, 'action')}"
        if data.val is not None:
            self.val = read_evaluation(data, self.label_map)
            self.val_note = f"boxes: {self.val.boxes}"
        self.evaluate_every = settings.train.evaluate_every

    def create(self, checkpoint: str | Path | None) -> ActionDetector:
        arguments, number = self.settings.model.arguments(checkpoint), max(self.label_map.names)
        return create_detector(checkpoint=checkpoint, num_classes=number, **arguments)

    def dataset(self, model: ActionDetector) -> TrainingKeyframes:
        return TrainingKeyframes(
            self.train.records,
            self.sampler(model),
            DetectionTransform(model.encoder.input_size[1:], self.settings.augment),
            num_repeats=self.settings.train.num_repeats,
            seed=self.settings.train.seed,
            start_sec=self.settings.data.start_sec,
            open_video=opener(self.settings.data),
        )

    def loss(self, model: ActionDetector, device: torch.device) -> DetectionLoss:
        normalize = self.normalize(model)
        return DetectionLoss(num_classes=model.num_classes, normalize=normalize, device=device)

    def score(
        self, model: ActionDetector, process: Process
    ) -> tuple[list[KeyframeScores], list[Failure]]:
        settings = self.settings
        assert self.val is not None
        clips = keyframe_clips_of(self.val.records, model, settings.clips, settings.data)
        how = (process.device, settings.batch_size, process.precision)
        scorer = Scorer.of(model, self.card(model), *how)
        return score_keyframes(scorer, clips, process, settings.data)

    def figures(self, scored: list[KeyframeScores]) -> dict[str, float]:
        """Frame mAP by both protocols."""
        val = self.val
        assert val is not None
        results = frame_aps(
            val.ground_truth,
            detections_of(val.records, {k.index: k.scores for k in scored}, self.label_map),
            self.label_map,
            excluded=val.excluded,
            keyframes=val.keyframes,
        )
        return {f"map_{protocol}": result.mean_ap for protocol, result in results.items()}

    def card(self, model: ActionDetector) -> ModelCard:
        return card_of(
            model,
            label_map=dict(sorted(self.label_map.names.items())),
            groups=dict(sorted(self.label_map.groups.items())),
            clips=self.settings.clips,
        )


run = partial(train, DetectTrainTask)
