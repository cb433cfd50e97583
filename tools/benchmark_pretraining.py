"""Pretraining beside the official code, and its parts beside the whole, as ratios from one run.

    git clone https://github.com/facebookresearch/hiera ../hiera   # v0.1.4
    python tools/benchmark_pretraining.py --official ../hiera [--model hiera_base_16x224]

A step is forward, loss and backward of one clip at mask ratio 0.9, with random weights and the same
kept units for all. Official: 16 decoder heads, the public builders' number. Ours: with 16, and with
the paper's 8. Beside them our own step of fine-tuning, without masks. Then the encoder at 0.9
against the whole one, and the embedding of visible units against convolving the masked clip. All
take turns in this process; times are medians. Peak memory is measured in a process of its own for
each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import benchmark_model
import numpy as np
import torch
import torch.nn.functional as F
from benchmark_model import PRECISIONS, sync, told_by_child

from hiera_video import Hiera, create_autoencoder, create_model
from hiera_video.models.mae import reconstruction_losses
from hiera_video.models.masking import UnitMasking, kept_units

STEPS = ("official", "ours, 16 heads", "ours, 8 heads", "ours, fine-tuning")
RATIO = 0.9

Call = Callable[[], object]


def step_of(which: str, precision: str, args: argparse.Namespace) -> Call:
    """One call is a step of training, without the optimizer."""
    torch.manual_seed(0)
    clips = torch.randn(args.batch, 3, 16, 224, 224).to(args.device)
    dtype = PRECISIONS[precision]
    autocast = partial(torch.autocast, args.device, dtype=dtype, enabled=dtype is not None)
    visible = visible_units((8, 7, 7), args.batch)
    if which == "official":
        model = benchmark_model.official(f"mae_{args.model}", args)

        def loss() -> torch.Tensor:
            return model(clips, mask=visible.to(args.device))[0]

    elif which == "ours, fine-tuning":
        model = create_model(args.model).to(args.device)
        labels = torch.zeros(args.batch, dtype=torch.long, device=args.device)

        def loss() -> torch.Tensor:
            return F.cross_entropy(model(clips).float(), labels)

    else:
        heads = int(which.split()[1])
        model = create_autoencoder(args.model, decoder_heads=heads).to(args.device)
        kept = kept_units(visible).to(args.device)

        def loss() -> torch.Tensor:
            prediction = model(clips, kept)
            return reconstruction_losses(prediction, model.targets(clips, kept)).mean()

    model.train()

    def step() -> None:
        with autocast():
            value = loss()
        value.backward()
        model.zero_grad(set_to_none=True)

    return step


def visible_units(units: tuple[int, int, int], batch: int) -> torch.Tensor:
    """Bool [batch, M]."""
    masking, rng = UnitMasking(units, RATIO), np.random.default_rng(0)
    return torch.from_numpy(np.stack([masking(rng) for _ in range(batch)]))


def by_turns(calls: dict[str, Call], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each."""
    seconds: dict[str, list[float]] = {which: [] for which in calls}
    for repeat in range(args.repeats + 1):
        for which, call in calls.items():
            sync(args.device)
            start = time.perf_counter()
            call()
            sync(args.device)
            if repeat:  # the first call warms up
                seconds[which].append(time.perf_counter() - start)
    return {which: statistics.median(values) for which, values in seconds.items()}


def masked_convolution(model: Hiera, clips: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """The official way to the tokens of visible units: [B, K, U, D]."""
    shown = visible.unflatten(1, (1, *model.units_shape))
    for axis, side in enumerate(
        m * p for m, p in zip(model.mask_unit, model.patch_stride, strict=True)
    ):
        shown = shown.repeat_interleave(side, dim=axis + 2)
    return model.embed(clips * shown)[visible].unflatten(0, (len(visible), -1))


@torch.no_grad()
def encoder_parts(args: argparse.Namespace) -> None:
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


def child(which: str, precision: str, args: argparse.Namespace) -> None:
    """Prints the peak memory of the first step, GiB above the loaded model."""
    step = step_of(which, precision, args)
    benchmark_model.print_peak(step, args.device)


def main() -> None:
    args = benchmark_model.arguments(__doc__, child_words=2)
    if args.child:
        child(*args.child, args)
        return
    print(f"{args.model}, batch {args.batch}, {args.device}, torch {torch.__version__}")
    print(f"{torch.get_num_threads()} threads")
    encoder_parts(args)
    for precision in PRECISIONS:
        seconds = by_turns({w: step_of(w, precision, args) for w in STEPS}, args)
        for which in STEPS:
            gib = told_by_child(__file__, [which, precision], args)
            if which == "official":
                official_gib = gib
            print(
                f"{precision:5} {which:18} {seconds[which]:6.3f} s "
                f"(official {seconds['official'] / seconds[which]:.2f}x)  {gib:.3f} GiB "
                f"(official {official_gib / gib:.2f}x)",
                flush=True,
            )


if __name__ == "__main__":
    main()
