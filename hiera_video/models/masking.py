"""Which mask units of a clip stay visible: random, tube, frame and block masking.

Every sample of a batch keeps the same number of units, so that the visible ones of a batch make one
tensor. The number is rounded as in the official code: `int(units * (1 - mask_ratio))`, of the units
themselves (random, block), of those of one time step (tube), or of the time steps (frame).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hiera_video.errors import ModelError
from hiera_video.models.units import Size3
from hiera_video.models.variants import paper_mask_ratio
from hiera_video.settings.model import Masking, MaskingKind

if TYPE_CHECKING:
    from hiera_video.models.hiera import Hiera

BLOCK_SIDE = (0.25, 0.5)  # of a box, as a share of the clip's extent along that axis


@dataclass(frozen=True)
class UnitMasking:
    """Draws the visible units of one clip.

    Args:
        units: how many mask units a clip has along (time, height, width).
        mask_ratio: share of the units to hide. The paper takes 0.9 for video and 0.6 for images;
            with 0.9 of (8, 7, 7) units 39 stay.
        kind: "random", each unit for itself, whatever its time and place; "tube", one spatial
            pattern for all times (VideoMAE, arXiv 2203.12602); "frame", whole time steps; "block",
            boxes of neighbouring units, a quarter to half of the clip along each axis, until
            enough are hidden; a box that leaves the clip on one side enters on the other.

    Raises:
        ModelError: the ratio keeps nothing or everything; names ratios that do neither.
    """

    units: Size3
    mask_ratio: float
    kind: MaskingKind = "random"

    @classmethod
    def of(cls, encoder: Hiera, settings: Masking) -> UnitMasking:
        """For the clips of an encoder, as configured; without a ratio with that of the paper."""
        ratio = settings.mask_ratio or paper_mask_ratio(encoder.architecture)
        return cls(encoder.units_shape, ratio, settings.kind)

    def __post_init__(self) -> None:
        if self.kind not in get_args(MaskingKind):
            allowed = ", ".join(get_args(MaskingKind))
            raise ModelError(f"masking.kind is {self.kind!r}: allowed are {allowed}")
        drawn = self._num_drawn
        if not 0 < self.num_visible < self.num_units:
            what = {"tube": "units of a time step", "frame": "time steps"}.get(self.kind, "units")
            kept = "nothing" if self.num_visible <= 0 else "everything"
            sentence = (
                f"masking.mask_ratio is {self.mask_ratio:g}, which keeps {kept} of {drawn} {what}"
            )
            if drawn == 1:
                raise ModelError(f"{sentence}: {self.kind} masking needs more; take another kind")
            most = math.floor((1 - 1 / drawn) * 10**6) / 10**6
            if not int(drawn * (1 - most)):  # 1 - 0.8 is a little less than a fifth
                most = round(most - 1e-6, 6)
            raise ModelError(f"{sentence}: allowed is more than 0, up to {most:g}")

    @property
    def num_units(self) -> int:
        return math.prod(self.units)

    @property
    def num_visible(self) -> int:
        """Units that stay, the same number in every clip."""
        return self._num_kept * (self.num_units // self._num_drawn)

    @property
    def _num_kept(self) -> int:
        """How many of them are drawn."""
        return int(self._num_drawn * (1 - self.mask_ratio))

    @property
    def _num_drawn(self) -> int:
        """Number of things (units, places or time steps) of which some are drawn."""
        t, h, w = self.units
        return {"tube": h * w, "frame": t}.get(self.kind, t * h * w)

    def __call__(self, rng: np.random.Generator) -> Bool[np.ndarray, " M"]:
        """True = visible; M units in space-time order."""
        if self.kind == "block":
            return self._outside_boxes(rng)
        drawn = np.zeros(self._num_drawn, dtype=bool)
        drawn[rng.permutation(self._num_drawn)[: self._num_kept]] = True
        t, h, w = self.units
        if self.kind == "tube":
            return np.tile(drawn, t)
        return np.repeat(drawn, h * w) if self.kind == "frame" else drawn

    def _outside_boxes(self, rng: np.random.Generator) -> Bool[np.ndarray, " M"]:
        visible = np.ones(self.num_units, dtype=bool)
        to_hide = self.num_units - self.num_visible
        low, high = BLOCK_SIDE
        while to_hide:
            box = []
            for n in self.units:
                side = rng.integers(max(1, round(low * n)), max(1, round(high * n)), endpoint=True)
                box.append((rng.integers(n) + np.arange(side)) % n)
            inside = np.ravel_multi_index(np.ix_(*box), self.units).ravel()
            fresh = inside[visible[inside]][:to_hide]  # of the last box, as much as is left to hide
            visible[fresh] = False
            to_hide -= len(fresh)
        return visible


def kept_units(visible: Bool[Tensor, "B M"]) -> Int[Tensor, "B K"]:
    """The indices of the visible units of each clip, ascending: what the models take.

    Their number is a shape, so that a model compiles to one graph and never waits for the device;
    call this where `visible` lies on the CPU.

    Raises:
        ValueError: the clips keep different numbers of units, or none.
    """
    counts = visible.sum(dim=1)
    if int(counts.min()) != int(counts.max()) or not int(counts.min()):
        raise ValueError(
            f"the clips of the batch keep {counts.tolist()} units: expected one number above 0"
        )
    return visible.nonzero()[:, 1].unflatten(0, (len(visible), -1))


def hidden_units(kept: Int[Tensor, "B K"], num_units: int) -> Int[Tensor, "B L"]:
    """The indices of the others of `num_units` units, ascending."""
    is_kept = torch.zeros(len(kept), num_units, dtype=torch.int8, device=kept.device)
    is_kept.scatter_(1, kept, 1)
    return is_kept.argsort(dim=1, stable=True)[:, : num_units - kept.shape[1]]
