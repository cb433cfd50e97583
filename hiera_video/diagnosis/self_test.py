"""A short test of the package's own code: a forward pass, a training step, a decoding process."""

import contextlib
import itertools
import math
import time

import torch

from hiera_video.data.batches import ClipBatch
from hiera_video.data.datasets import TrainingClips
from hiera_video.data.loader import training_loader
from hiera_video.data.order import TrainingOrder
from hiera_video.data.transforms import FinetuneTransform
from hiera_video.data.videos.records import VideoRecord
from hiera_video.diagnosis.clip import CLIP
from hiera_video.diagnosis.findings import OTHER, Finding
from hiera_video.diagnosis.model import (
    NUM_CLASSES,
    NUM_FRAMES,
    SIDE,
    known_clip,
    normalize,
    relative_error,
    tiny_model,
)
from hiera_video.models.variants import input_statistics
from hiera_video.runtime.distributed import ALONE
from hiera_video.settings.training import Augment, Loop, Optim
from hiera_video.settings.video import Decoding
from hiera_video.training.loop import train_steps
from hiera_video.training.losses import ClassificationLoss
from hiera_video.training.optim import build_optimizer
from hiera_video.video.clips import ClipSampler

MAX_ERROR = 1e-4  # of the deviation of the logits; measured: 3e-7
LIMIT_SEC = 10.0  # for reading the clip
LABEL = 1
AUGMENT = Augment(mixup=0, cutmix=0, rand_augment_magnitude=None, erasing_prob=0)


def forward() -> Finding:
    """Whether the logits of a tiny model are the stored ones."""
    model = tiny_model()
    with torch.inference_mode():
        error = relative_error(model(normalize(model)(known_clip())))
    data = {"relative_error": error if math.isfinite(error) else None}
    if not error <= MAX_ERROR:
        text = f"wrong logits, off by {error:.2g} of their deviation"
        return Finding("forward pass", text, "failed", OTHER, data)
    return Finding("forward pass", "a tiny model gives the stored logits", data=data)


def decoding_process() -> tuple[Finding, ClipBatch | None]:
    """Whether a decoding process starts and returns batches; the first of them."""
    model = tiny_model()
    mean, std = input_statistics(model.architecture)
    clips = TrainingClips(
        [VideoRecord(str(CLIP), (LABEL,), "clip")] * 2,
        ClipSampler(num_frames=NUM_FRAMES, sampling_rate=2),
        FinetuneTransform((SIDE, SIDE), AUGMENT, mean=mean, std=std),
        num_repeats=2,
        seed=0,
    )
    # Two batches: a single one would be decoded by this process.
    order = TrainingOrder(
        2, global_batch_size=1, accumulation_steps=1, start_step=0, end_step=2, seed=0
    )
    decoding = Decoding(num_workers=1, deadline_sec=LIMIT_SEC)
    shape = (NUM_FRAMES, SIDE, SIDE, 3)
    loader = training_loader(clips, order, clip_shape=shape, decoding=decoding)
    started = time.perf_counter()
    with contextlib.closing(iter(loader)) as ready:
        batches = list(ready)
    data = {"seconds": round(time.perf_counter() - started, 2)}
    failures = [failure.message for batch in batches for failure in batch.failures]
    if failures:
        return Finding("decoding process", failures[0], "failed", OTHER, data), None
    text = f"started and returned {len(batches)} batches in {data['seconds']:.1f} s"
    return Finding("decoding process", text, data=data), batches[0]


def training_step(batch: ClipBatch | None) -> Finding:
    """Whether a step on a batch, or on the known clip, lowers its loss."""
    batch = batch or ClipBatch(known_clip(), [(LABEL,)], ["clip"])
    model = tiny_model().train()
    optim = Optim(optimizer="sgd", lr=0.02)
    steps = train_steps(
        model,
        ClassificationLoss(AUGMENT, num_classes=NUM_CLASSES, normalize=normalize(model)),
        build_optimizer(model, optim),
        itertools.repeat(batch),
        start_step=0,
        end_step=2,
        loop=Loop(epochs=1, warmup_epochs=0, global_batch_size=1, precision="fp32"),
        lr_at=lambda _: optim.lr,
        clip_grad=optim.clip_grad,
        process=ALONE,
    )
    before, after = (step.loss for step in steps)
    data = {"losses": [loss if math.isfinite(loss) else None for loss in (before, after)]}
    text = f"the loss goes from {before:.3f} to {after:.3f}"
    if not after < before:
        return Finding("training step", text, "failed", OTHER, data)
    return Finding("training step", text, data=data)
