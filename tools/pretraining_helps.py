"""Effect of pretraining: fine-tuning from random weights and from a short masked-autoencoder run.

    pip install scikit-learn
    python tools/pretraining_helps.py OUTPUT_DIR [--seeds 0 1 2]

The handwritten digits of scikit-learn drift through noise; few videos have labels. Pretraining uses
all training videos without their labels. Each fine-tuning then uses the same few labelled videos,
for the same steps, with the same recipe, at each of the same learning rates. Only the first weights
differ:

* scratch: `model.init` is null;
* start: the weights that pretraining starts with, so that their effect is not attributed to
  pretraining. They are the usual ones of an autoencoder, except that position embeddings are sines
  instead of noise of 0.02: from noise, runs this short do not learn the positions of hidden units;
* pretrained: the weights that pretraining ends with.

Prints the loss of pretraining over its last 100 steps (predicting zero gives 1), how much the input
features of the classifier differ between the validation videos before fine-tuning (standard
deviation, of features whose root mean square is 1), and a Markdown table of top-1 on these videos,
one view of each, after the last step. A seed decides data, weights and order. The program runs the
commands of a user, with one thread each, and resumes if it was stopped. Three seeds took 29 minutes
on 2 cores of an AMD EPYC with other work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float32, UInt8
from sklearn.datasets import load_digits
from torch import Tensor

from hiera_video import create_autoencoder, create_model, open_video, save_model
from hiera_video.data.videos.records import read_video_list
from hiera_video.demo.motions import ENCODER, DemoData, write_text
from hiera_video.files import json_text
from hiera_video.models.normalize import Normalize
from hiera_video.models.variants import input_statistics
from hiera_video.video.clips import ClipSampler
from hiera_video.video.writer import write_video

NAME = "hiera_tiny_16x224"
SIZE = {"num_frames": 4, "image_size": 64}
SMALL = {"embed_dim": 32, "stages": [1, 2, 2, 1]}
DECODER = {"decoder_heads": 4, "decoder_dim": 64, "decoder_depth": 2}
VIDEOS, REPEATS = 4, 4  # a step of pretraining
BATCH = 16  # videos, a step of fine-tuning
STARTS = ("scratch", "start", "pretrained")

NUM_VAL = 397  # of the 1797 digits; pretraining has the others
SIDE_PX, NUM_FRAMES, FPS = 64, 8, Fraction(8)
DIGIT_PX = (52, 62)  # side of a digit's square
GREY, DIGIT_GREY, NOISE_GREY = 100, 100, 25  # background; a digit's ink above it; noise's deviation


def write_digits(data: DemoData, few: Path, seed: int, labelled: int) -> None:
    """Writes videos and lists of them; `few` is the list of `labelled` videos of each digit.

    Existing videos are kept, so that an interrupted call can be repeated.
    """
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    lines = []
    (data.folder / "videos").mkdir(parents=True, exist_ok=True)
    for number in order.tolist():
        name = f"videos/{number:04d}.mp4"
        if not (data.folder / name).exists():
            # Not float64, which OpenCV 5.0 warps wrongly with cubic interpolation.
            ink = digits.images[number].astype(np.float32) / 16
            frames = drifting(ink, np.random.default_rng([seed, number]))
            write_video(data.folder / name, frames, FPS, options=ENCODER | {"crf": "12"})
        lines.append(f"{name} {digits.target[number]}\n")
    train, val = lines[NUM_VAL:], lines[:NUM_VAL]
    with_labels = [
        line
        for digit in range(10)
        for line in [line for line in train if line.endswith(f" {digit}\n")][:labelled]
    ]
    write_text(data.class_names, "".join(f"{digit}\n" for digit in range(10)))
    for path, of in ((data.train, train), (few, with_labels), (data.val, val)):
        write_text(path, "".join(of))


def drifting(
    ink: Float32[np.ndarray, "8 8"], rng: np.random.Generator
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """A slightly rotated digit that moves from one place in the picture to another, in noise."""
    size, degrees = rng.uniform(*DIGIT_PX), rng.uniform(-10, 10)
    first, last = rng.uniform(size / 2, SIDE_PX - size / 2, (2, 2))
    centre = (len(ink) - 1) / 2
    for share in np.linspace(0, 1, NUM_FRAMES):
        matrix = cv2.getRotationMatrix2D((centre, centre), degrees, size / len(ink))
        matrix[:, 2] += first + share * (last - first) - centre
        drawn = cv2.warpAffine(ink, matrix, (SIDE_PX, SIDE_PX), flags=cv2.INTER_CUBIC)
        noise = NOISE_GREY * rng.standard_normal(drawn.shape)
        grey = np.clip(GREY + DIGIT_GREY * np.clip(drawn, 0, 1) + noise, 0, 255).astype(np.uint8)
        yield np.repeat(grey[..., None], 3, axis=2)


def sines(*axes: tuple[int, int]) -> Tensor:
    """Sine embeddings of a grid, [places, sum of dims]: a part for each axis (places, dim)."""
    parts = []
    for axis, (places, dim) in enumerate(axes):
        rates = 10000 ** -(torch.arange(dim // 2) / (dim // 2))
        angles = torch.arange(places)[:, None] * rates
        shape = [places if a == axis else 1 for a in range(len(axes))]
        part = torch.cat([angles.sin(), angles.cos()], dim=1).view(*shape, dim)
        parts.append(part.expand(*(n for n, _ in axes), dim))
    return torch.cat(parts, dim=-1).flatten(0, -2)


def overrides(mask_unit: list[int]) -> dict[str, object]:
    return {**SMALL, "mask_unit": mask_unit}


PRETRAINED = overrides([1, 4, 4])  # 16 units of 16 pixels a side, the size of a predicted patch
FINETUNED = overrides([1, 8, 8])  # pooling three times allows no smaller one


@torch.no_grad()
def write_start(folder: Path, seed: int) -> None:
    """Writes the first weights of an autoencoder, with sines for positions."""
    torch.manual_seed(seed)
    model = create_autoencoder(NAME, **SIZE, **DECODER, **PRETRAINED)
    encoder, dim = model.encoder, model.encoder.stage_dims[0]
    t, h, w = encoder.tokens_shape
    encoder.pos_embed_spatial[0] = sines((h, dim // 2), (w, dim // 2)) / 2
    encoder.pos_embed_temporal[0] = sines((t, dim)) / 2
    dim = model.decoder_pos_embed.shape[-1]
    t, h, w = (n // p for n, p in zip(encoder.input_size, model.token_pixels, strict=True))
    model.decoder_pos_embed[0] = sines((t, dim // 4), (h, dim // 4), (w, dim // 2))
    save_model(folder, model)


def pretrain(data: DemoData, start: Path, run: Path, lr: str, steps: int, seed: int) -> None:
    videos = sum(1 for _ in data.train.open())
    epochs = steps * VIDEOS * REPEATS / videos  # effective
    command(
        *("pretrain", f"data.train={data.train}", f"run_dir={run}", f"model.init={start}"),
        *(f"model.name={NAME}", *(f"model.{key}={value}" for key, value in SIZE.items())),
        f"model.overrides={json_text(PRETRAINED)}",
        *(f"model.{key}={value}" for key, value in DECODER.items()),
        *("masking.kind=tube", "masking.mask_ratio=0.75"),
        *("augment.flip=false", "augment.crop_area=[0.8,1.0]"),
        *("clips.sampling_rate=1", f"clips.target_fps={FPS}"),
        *(f"optim.lr={lr}", "optim.clip_grad=1.0", f"train.seed={seed}"),
        *(f"train.global_batch_size={VIDEOS}", f"train.num_repeats={REPEATS}"),
        *(f"train.epochs={epochs}", f"train.warmup_epochs={epochs / 10}"),
        *("train.precision=fp32", "train.checkpoint_every=5", "train.log_every=500"),
    )


def finetune(
    data: DemoData, few: Path, init: str, lr: str, run: Path, steps: int, seed: int
) -> None:
    epochs = steps / math.ceil(sum(1 for _ in few.open()) / BATCH)
    command(
        *("finetune", "--config=demo/finetune", f"data.train={few}", f"data.val={data.val}"),
        *(f"data.class_names={data.class_names}", f"run_dir={run}", f"model.init={init}"),
        *(f"model.{key}={value}" for key, value in SIZE.items()),
        *(f"model.overrides={json_text(FINETUNED)}", "augment.crop_area=[0.8,1.0]"),
        *(f"optim.lr={lr}", f"train.seed={seed}", f"train.epochs={epochs}"),
        *(f"train.warmup_epochs={epochs / 20}", f"train.global_batch_size={BATCH}"),
        *(f"train.evaluate_every={epochs}", f"train.checkpoint_every={epochs}"),
    )


def command(*arguments: str) -> None:
    print("$ hiera-video", *arguments, file=sys.stderr, flush=True)
    subprocess.run(
        [sys.executable, "-m", "hiera_video", *arguments],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@torch.no_grad()
def spread(data: DemoData, init: str | Path | None, seed: int) -> float:
    """Standard deviation of pooled, normalised features between the validation videos."""
    torch.manual_seed(seed)
    model = create_model(NAME, checkpoint=init, num_classes=0, **SIZE, **FINETUNED).eval()
    sampler = ClipSampler(num_frames=SIZE["num_frames"], sampling_rate=1, target_fps=float(FPS))
    clips = []
    for record in read_video_list(data.val, class_names=data.class_names).records:
        with record.open(open_video) as video:
            clips.append(video.frames(sampler.uniform_clips(video, 1)[0]))
    normalize = Normalize(*input_statistics(model.architecture))
    features = model(normalize(torch.from_numpy(np.stack(clips))))
    return features.std(dim=0).mean().item()


def logged(run: Path, kind: str, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if line["kind"] == kind]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labelled", type=int, default=5, help="videos of each digit with labels")
    parser.add_argument("--pretrain-steps", type=int, default=5000, help="of 16 clips")
    parser.add_argument("--pretrain-lr", default="5e-4")
    parser.add_argument("--finetune-steps", type=int, default=200, help="of 16 clips")
    parser.add_argument("--lrs", nargs="+", default=["2e-4", "5e-4", "1e-3"], help="of fine-tuning")
    args = parser.parse_args()
    began = time.monotonic()
    for seed in args.seeds:
        folder = args.output_dir / f"seed_{seed}"
        data = DemoData(folder / "data")
        few = data.folder / f"few_{args.labelled}.csv"
        write_digits(data, few, seed, args.labelled)
        write_start(folder / "start", seed)
        pretrain(
            *(data, folder / "start", folder / "mae"), args.pretrain_lr, args.pretrain_steps, seed
        )
        inits = dict(zip(STARTS, ("null", f"{folder / 'start'}", f"{folder / 'mae'}"), strict=True))
        for name, init in inits.items():
            for lr in args.lrs:
                run = folder / f"{name}_{lr}"
                finetune(data, few, init, lr, run, args.finetune_steps, seed)
    print(f"{time.monotonic() - began:.0f} s, {torch.__version__}")
    folders = [args.output_dir / f"seed_{seed}" for seed in args.seeds]
    losses = [statistics.mean(logged(f / "mae", "train", "loss")[-100:]) for f in folders]
    print("loss of pretraining:", *(f"{loss:.3f}" for loss in losses))
    for name, start in zip(STARTS, (None, "start", "mae"), strict=True):
        spreads = (
            spread(DemoData(folder / "data"), start and folder / start, seed)
            for seed, folder in zip(args.seeds, folders, strict=True)
        )
        print(f"spread of features, {name}:", *(f"{value:.3f}" for value in spreads))
    print(f"| first weights | lr | {' | '.join(f'seed {s}' for s in args.seeds)} | mean |")
    print("|---|---|" + "---|" * (len(args.seeds) + 1))
    for name in STARTS:
        for lr in args.lrs:
            top1 = [100 * logged(f / f"{name}_{lr}", "val", "top1")[-1] for f in folders]
            cells = " | ".join(f"{value:.1f}" for value in (*top1, statistics.mean(top1)))
            print(f"| {name} | {lr} | {cells} |")


if __name__ == "__main__":
    main()
