"""Parts of a pretraining step relative to the whole, as ratios from one run.

    python tools/benchmark_pretraining.py [--model hiera_base_16x224] [--batch 1] [--repeats 5]

The encoder at mask ratio 0.9 against the encoder on all units, and the embedding of visible units
against convolving the masked clip. They take turns; times are medians. `hiera-video benchmark
work=[pretraining] --peers` measures whole steps, also of the official code.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from hiera_video import Hiera, create_model
from hiera_video.analysis.speed import synchronize
from hiera_video.models.masking import UnitMasking, kept_units

RATIO = 0.9

Call = Callable[[], object]


def visible_units(units: tuple[int, int, int], batch: int) -> torch.Tensor:
    """Bool [batch, M]."""
    masking, rng = UnitMasking(units, RATIO), np.random.default_rng(0)
    return torch.from_numpy(np.stack([masking(rng) for _ in range(batch)]))


def by_turns(calls: dict[str, Call], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each call."""
    seconds: dict[str, list[float]] = {which: [] for which in calls}
    for repeat in range(args.repeats + 1):
        for which, call in calls.items():
            synchronize(args.device)
            start = time.perf_counter()
            call()
            synchronize(args.device)
            if repeat:  # the first call warms up
                seconds[which].append(time.perf_counter() - start)
    return {which: statistics.median(values) for which, values in seconds.items()}


def masked_convolution(model: Hiera, clips: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Tokens of the visible units [B, K, U, D], computed as the official code does."""
    shown = visible.unflatten(1, (1, *model.units_shape))
    for axis, side in enumerate(
        m * p for m, p in zip(model.mask_unit, model.patch_stride, strict=True)
    ):
        shown = shown.repeat_interleave(side, dim=axis + 2)
    return model.embed(clips * shown)[visible].unflatten(0, (len(visible), -1))


@torch.no_grad()
def parts(args: argparse.Namespace) -> None:
    model = create_model(args.model, num_classes=0, q_pool=2).eval().to(args.device)
    clips = torch.randn(args.batch, 3, *model.input_size[:1], 224, 224, device=args.device)
    visible = visible_units(model.units_shape, args.batch).to(args.device)
    kept = kept_units(visible)
    seconds = by_turns(
        {
            "whole": lambda: model.encode(clips),
            "at 0.9": lambda: model.encode(clips, kept),
            "masked": lambda: masked_convolution(model, clips, visible),
            "visible": lambda: model.embed_units(clips, kept),
        },
        args,
    )
    same = torch.equal(masked_convolution(model, clips, visible), model.embed_units(clips, kept))
    print(f"encoder at 0.9: {seconds['at 0.9'] / seconds['whole']:.1%} of the whole one's time")
    print(
        f"embedding, forward: {1e3 * seconds['masked']:.1f} ms masked, "
        f"{1e3 * seconds['visible']:.1f} ms of visible units alone "
        f"({seconds['masked'] / seconds['visible']:.1f}x), identical: {same}"
    )
    with torch.enable_grad():
        grad = torch.randn_like(model.embed_units(clips, kept))
        seconds = by_turns(
            {
                "masked": lambda: masked_convolution(model, clips, visible).backward(grad),
                "visible": lambda: model.embed_units(clips, kept).backward(grad),
            },
            args,
        )
    print(
        f"embedding, forward and backward: {1e3 * seconds['masked']:.1f} ms, "
        f"{1e3 * seconds['visible']:.1f} ms ({seconds['masked'] / seconds['visible']:.1f}x)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="hiera_base_16x224")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(f"{args.model}, batch {args.batch}, {args.device}, torch {torch.__version__}")
    print(f"{torch.get_num_threads()} threads")
    parts(args)


if __name__ == "__main__":
    main()
