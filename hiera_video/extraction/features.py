"""Clips to features: which layer, how it is pooled, in which type of number."""

import hashlib
from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from hiera_video.files import json_text
from hiera_video.models.hiera import Hiera
from hiera_video.models.normalize import Normalize
from hiera_video.settings.evaluation import DType, Layer, Pooling

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
        bf16: run the model under bfloat16 autocast.
        dtype: of the features.

    Raises:
        ValueError: the model has no such layer, or it has no axes to pool.
    """

    model: Hiera
    _: KW_ONLY
    layer: Layer
    pooling: Pooling = "mean"
    normalize: Normalize
    device: torch.device
    bf16: bool = False
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        layer, model = self.layer, self.model
        stages = [f"stage{i + 1}" for i in range(len(model.stage_ends))]
        if layer not in (*stages, "pre_logits", "logits"):
            raise ValueError(f"layer is {layer!r}: this model has {', '.join(stages)}, pre_logits")
        if layer == "logits" and not model.num_classes:
            raise ValueError("layer is 'logits': this model has no classifier, take pre_logits")
        if layer not in stages and self.pooling != "mean":
            raise ValueError(f"pooling is {self.pooling!r}: {layer} has no axes, only mean works")
        self.model.to(self.device).eval()
        self.normalize.to(self.device)

    @torch.inference_mode()
    def __call__(self, views: UInt8[Tensor, "B T H W C"]) -> Shaped[Tensor, "B ..."]:
        """Features in `dtype`, on the device; the views may be on the host, pinned or not."""
        views = views.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            features = self._run(self.normalize(views))
        return features.to(getattr(torch, self.dtype))

    def _run(self, clips: Tensor) -> Tensor:
        if self.layer == "logits":
            return self.model(clips)
        if self.layer == "pre_logits":
            return self.model.forward_head(self.model.encode(clips)[-1], pre_logits=True)
        stage = int(self.layer.removeprefix("stage")) - 1
        (tokens,) = self.model.forward_intermediates(clips, [stage])  # [B, t, h, w, D]
        axes = POOLED_AXES[self.pooling]
        return tokens.float().mean(axes) if axes else tokens


def fingerprint(model: Hiera) -> str:
    """Hash of a model: its architecture and the values of its weights."""
    digest = hashlib.sha256(json_text(model.architecture, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
