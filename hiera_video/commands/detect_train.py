"""`hiera-video detect train`: train an action detector on key frames with boxes."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch

from hiera_video.data.boxes.keyframes import (
    TrainingKeyframeList,
    detections_of,
    read_evaluation,
    read_training,
)
from hiera_video.data.boxes.table import read_label_map
from hiera_video.data.datasets import KeyframeClips, TrainingKeyframes
from hiera_video.data.transforms import DetectionTransform
from hiera_video.evaluation.ava import frame_aps
from hiera_video.evaluation.scoring import score_keyframes
from hiera_video.models.card import ModelCard
from hiera_video.models.detector import ActionDetector
from hiera_video.models.loading import card_of
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import create_detector
from hiera_video.models.variants import input_statistics
from hiera_video.runtime.distributed import Process
from hiera_video.settings.training import DetectTrainSettings
from hiera_video.training.losses import DetectionLoss
from hiera_video.training.run import train
from hiera_video.training.task import Evaluate, Evaluation, Task
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import opener

logger = logging.getLogger(__name__)


class DetectTrainTask(Task):
    """Training of an action detector."""

    unit = "key frames"
    settings: DetectTrainSettings
    train: TrainingKeyframeList

    def __init__(self, settings: DetectTrainSettings) -> None:
        data = settings.data
        self.label_map = read_label_map(data.label_map)
        super().__init__(settings, read_training(data, self.label_map))
        self.val = None if data.val is None else read_evaluation(data, self.label_map)
        self.open_video = opener(data, data.frames_fps)
        self.evaluate_every = settings.train.evaluate_every

    def create(self, checkpoint: str | Path | None) -> ActionDetector:
        model = self.settings.model
        return create_detector(
            model.name,
            checkpoint=checkpoint,
            num_classes=max(self.label_map.names),
            **model.arguments(),
        )

    def prepare(self, model: ActionDetector, checkpoint: str | Path | None) -> None:
        known = model.card.label_map if model.card is not None else {}
        if known and known != self.label_map.names:
            logger.info(
                "%s has other actions: the classifier starts with random weights", checkpoint
            )
            model.reset_classifier(model.num_classes)

    def describe(self, model: ActionDetector) -> list[str]:
        boxes = sum(len(record.boxes) for record in self.train.records)
        val = f"{len(self.val.records)} validation key frames" if self.val else "no validation"
        num_frames = model.encoder.input_size[0]
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        return [
            f"{self.num_records} training key frames with {boxes} boxes from {self.train.source}, "
            f"{val}; {self.settings.model.name}, input {model.encoder.input_size}, "
            f"{model.num_classes} actions, {millions:.2f} M parameters; "
            f"{num_frames}x{self.settings.clips.sampling_rate} frames around each"
        ]

    def dataset(self, model: ActionDetector) -> TrainingKeyframes:
        return TrainingKeyframes(
            self.train.records,
            ClipSampler.of(self.settings.clips, model.encoder.input_size[0]),
            DetectionTransform(model.encoder.input_size[1:], self.settings.augment),
            num_repeats=self.settings.train.num_repeats,
            seed=self.settings.train.seed,
            start_sec=self.settings.data.start_sec,
            open_video=self.open_video,
        )

    def loss(self, model: ActionDetector, device: torch.device) -> DetectionLoss:
        normalize = Normalize(*input_statistics(model.encoder.architecture))
        return DetectionLoss(num_classes=model.num_classes, normalize=normalize, device=device)

    def evaluation(self, model: ActionDetector, process: Process) -> Evaluate | None:
        """Frame mAP on the validation key frames; every process takes its share of them."""
        if self.val is None:
            return None
        val = self.val
        clips = KeyframeClips(
            val.records,
            ClipSampler.of(self.settings.clips, model.encoder.input_size[0]),
            size=model.encoder.input_size[1:],
            start_sec=self.settings.data.start_sec,
            open_video=self.open_video,
        )

        def evaluate(model: ActionDetector) -> Evaluation:
            scored, failures = score_keyframes(
                model,
                clips,
                process,
                normalize=Normalize(*input_statistics(model.encoder.architecture)),
                batch_size=self.settings.batch_size,
                decoding=self.settings.data,
                bf16=self.settings.train.precision == "bf16",
            )
            if not process.is_main:
                return Evaluation({}, failures, "")
            scores = {keyframe.index: keyframe.scores for keyframe in scored}
            detections = detections_of(val.records, scores, self.label_map)
            results = frame_aps(
                val.ground_truth,
                detections,
                self.label_map,
                excluded=val.excluded,
                keyframes=val.keyframes,
            )
            means = {f"map_{protocol}": result.mean_ap for protocol, result in results.items()}
            figures = "  ".join(f"{name} {100 * value:.2f}" for name, value in means.items())
            return Evaluation(
                {**means, "decoded": len(scored)},
                failures,
                f"(boxes: {val.boxes})  {figures}  {len(scored)} of {len(val.records)} key frames",
            )

        return evaluate

    def card(self, model: ActionDetector) -> ModelCard:
        return card_of(
            model,
            label_map=dict(sorted(self.label_map.names.items())),
            groups=dict(sorted(self.label_map.groups.items())),
            clips=self.settings.clips,
        )


run = partial(train, DetectTrainTask)
