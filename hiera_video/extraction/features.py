"""Clips to features: which layer, how it is pooled, in which type of number."""

import hashlib
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from hiera_video.files import json_text
from hiera_video.models.hiera import Hiera
from hiera_video.models.inference import InferenceModel
from hiera_video.models.normalize import Normalize
from hiera_video.settings.evaluation import DType, Layer, Pooling
from hiera_video.settings.training import Arithmetic

POOLED_AXES: dict[Pooling, tuple[int, ...]] = {
    "mean": (1, 2, 3),
    "spatial": (2, 3),
    "temporal": (1,),
    "none": (),
}


@dataclass
class FeatureExtractor:
    """A model that turns views into features.

    Args:
        layer: a stage's tokens, not normalised, in space-time order; "pre_logits", the mean of the
            last ones, normalised; or "logits".
        pooling: of a stage's tokens [t, h, w, D]: "mean" leaves [D], "spatial" [t, D] (the mean
            over space), "temporal" [h, w, D] (the mean over time), "none" all.
        normalize: with the mean and standard deviation of the colours that the model expects.
        dtype: of the features.
        precision: see `InferenceModel`.
        compile: likewise.
        batch_size: most views in a call.

    Raises:
        ValueError: the model has no such layer, or it has no axes to pool.
    """

    model: Hiera
    _: KW_ONLY
    layer: Layer
    pooling: Pooling = "mean"
    normalize: Normalize
    device: torch.device
    dtype: DType = "float32"
    precision: Arithmetic = "fp32"
    compile: bool = False
    batch_size: int = 16

    def __post_init__(self) -> None:
        layer, model = self.layer, self.model
        stages = [f"stage{i + 1}" for i in range(len(model.stage_ends))]
        if layer not in (*stages, "pre_logits", "logits"):
            raise ValueError(f"layer is {layer!r}: this model has {', '.join(stages)}, pre_logits")
        if layer == "logits" and not model.num_classes:
            raise ValueError("layer is 'logits': this model has no classifier, take pre_logits")
        if layer not in stages and self.pooling != "mean":
            raise ValueError(f"pooling is {self.pooling!r}: {layer} has no axes, only mean works")

    def __call__(self, views: UInt8[Tensor, "B T H W C"]) -> Shaped[Tensor, "B ..."]:
        """Features in `dtype`, on the device; the views may be on the host, pinned or not."""
        return self.inference(views)

    @cached_property
    def inference(self) -> InferenceModel:
        """The model on the device."""
        return InferenceModel(
            self.model,
            self.normalize,
            device=self.device,
            batch_size=self.batch_size,
            precision=self.precision,
            compile=self.compile,
            run=self._run,
        )

    def warm_up(self) -> None:
        """Compiles the model if that is wanted, and puts it on the device."""
        shape = (self.batch_size, *self.model.input_size, self.model.in_chans)
        inference = self.inference
        if self.compile:
            clips = torch.zeros(shape, dtype=torch.uint8)
            for _ in range(2):  # the first compiles, the second records a CUDA graph
                inference(clips)

    def _run(self, model: Hiera, clips: Tensor) -> Tensor:
        dtype = getattr(torch, self.dtype)
        if self.layer == "logits":
            return model(clips).to(dtype)
        if self.layer == "pre_logits":
            return model.forward_head(model.encode(clips)[-1], pre_logits=True).to(dtype)
        stage = int(self.layer.removeprefix("stage")) - 1
        (tokens,) = model.forward_intermediates(clips, [stage])  # [B, t, h, w, D]
        axes = POOLED_AXES[self.pooling]
        return (tokens.mean(axes, dtype=torch.float32) if axes else tokens).to(dtype)


def fingerprint(model: Hiera) -> str:
    """Hash of a model: its architecture and the values of its weights."""
    digest = hashlib.sha256(json_text(model.architecture, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
