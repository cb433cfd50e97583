"""Does pretraining help? Fine-tuning from scratch and after a short masked-autoencoder run.

    python tools/pretraining_helps.py OUTPUT_DIR [--seeds 0 1 2]

On the motions of the demo, but with textured figures over textured backgrounds, which only motion
sets apart. Pretraining sees all training videos without their labels; both ways of fine-tuning then
see the same few videos with labels, for the same number of steps, by the same recipe. Prints top-1
on the validation videos (one view) for each seed, which decides data, weights and order, and what
each part took. Runs the commands that one would type; goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from hiera_video.data import demo
from hiera_video.video.writer import write_video

TRAIN_SCENES, VAL_SCENES = 48, 12
TEXTURE_PX = 96
THREADS = {"OMP_NUM_THREADS": "1"}

MODEL = ["model.name=hiera_tiny_16x224", "model.num_frames=8", "model.image_size=64"]
SIZE = "embed_dim: 32, stages: [1, 2, 2, 1]"
CLIPS = ["clips.sampling_rate=1", "clips.target_fps=8"]
PRETRAIN = [
    *MODEL,
    f"model.overrides={{{SIZE}, mask_unit: [1, 4, 4]}}",
    *("model.decoder_heads=4", "model.decoder_dim=64", "model.decoder_depth=2"),
    *("masking.mask_ratio=0.6", "augment.flip=false", *CLIPS),
    *("optim.lr=2e-3", "optim.clip_grad=null"),
    *("train.global_batch_size=16", "train.precision=fp32", "train.checkpoint_every=8"),
]


def texture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Noise at three scales around a random colour, uint8 [height, width, 3]."""
    picture = np.zeros((height, width, 3))
    for grain in (3, 6, 12):
        cells = rng.uniform(-1, 1, (height // grain + 2, width // grain + 2, 3))
        cells = cells.astype(np.float32)
        picture += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(rng.uniform(90, 160, 3) + 45 * picture, 0, 255).astype(np.uint8)


def render(scene: demo.Scene, motion: str, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The scene with a texture in place of each colour; a figure's moves and grows with it."""
    height, width = scene.background.shape[:2]
    background = texture(height, width, rng)
    textures = [texture(TEXTURE_PX, TEXTURE_PX, rng) for _ in scene.figures]
    for index in range(scene.num_frames):
        picture = background.copy()
        for figure, cloth in zip(scene.figures, textures, strict=True):
            (x, y), radius = demo.place(scene, figure, motion, float(index / scene.fps))
            scale = 2 * radius / TEXTURE_PX
            for dx, dy in product((-width, 0, width), (-height, 0, height)):
                centre = np.array([x + dx, y + dy])
                if not (-radius < centre[0] < width + radius):
                    continue
                if not (-radius < centre[1] < height + radius):
                    continue
                corners = np.rint((radius * figure.outline + centre) * 16).astype(np.int32)
                inside = np.zeros((height, width), np.uint8)
                cv2.fillPoly(inside, [corners], 1, shift=4)
                left, top = centre - radius
                matrix = np.array([[scale, 0, left], [0, scale, top]], np.float32)
                moved = cv2.warpAffine(
                    cloth, matrix, (width, height), borderMode=cv2.BORDER_REFLECT
                )
                picture = np.where(inside[..., None], moved, picture)
        yield picture


def generate(folder: Path, seed: int, few: int) -> None:
    """train.csv, few.csv (the first `few` scenes of it), val.csv, and their videos."""
    total = (TRAIN_SCENES + VAL_SCENES) * len(demo.CLASSES)
    with tqdm(total=total, unit="video", disable=None) as bar:
        for split, scenes in (("train", TRAIN_SCENES), ("val", VAL_SCENES)):
            lines = []
            for number in range(scenes):
                scene = demo.draw_scene(seed, split, number)
                for label, motion in enumerate(demo.CLASSES):
                    path = folder / f"{split}_{number:03d}_{motion}.mp4"
                    lines.append(f"{path.name} {label}\n")
                    if not path.exists():
                        rng = np.random.default_rng([seed, split == "val", number])
                        frames = render(scene, motion, rng)
                        write_video(path, frames, scene.fps, options=demo.ENCODER)
                    bar.update()
            (folder / f"{split}.csv").write_text("".join(lines))
            if split == "train":
                (folder / "few.csv").write_text("".join(lines[: few * len(demo.CLASSES)]))


def command(*arguments: str) -> float:
    """Runs a command of hiera-video; the seconds that it took."""
    start = time.monotonic()
    print("$ hiera-video", *arguments, file=sys.stderr, flush=True)
    subprocess.run(
        [sys.executable, "-m", "hiera_video", *arguments], check=True, env=os.environ | THREADS
    )
    return time.monotonic() - start


def last_accuracy(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["top1"] for line in lines if line["kind"] == "val"][-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--few", type=int, default=24, help="scenes with labels, of 48")
    parser.add_argument("--pretrain-epochs", type=int, default=96, help="effective: 4 a pass")
    parser.add_argument("--finetune-steps", type=int, default=480)
    args = parser.parse_args()
    for seed in args.seeds:
        folder = args.output_dir / f"seed_{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        generate(folder, seed, args.few)
        mae = folder / "mae"
        epochs = args.pretrain_epochs
        command(
            "pretrain",
            *PRETRAIN,
            *(f"data.train={folder / 'train.csv'}", f"run_dir={mae}", f"train.seed={seed}"),
            *(f"train.epochs={epochs}", f"train.warmup_epochs={epochs // 10}"),
        )
        steps_a_pass = -(-args.few * len(demo.CLASSES) // 16)
        passes = max(1, args.finetune_steps // steps_a_pass)
        for name, init in (("scratch", "null"), ("pretrained", str(mae))):
            command(
                *("finetune", "--config", "demo/finetune", f"model.init={init}"),
                *(f"data.train={folder / 'few.csv'}", f"data.val={folder / 'val.csv'}"),
                *(f"run_dir={folder / name}", f"train.seed={seed}", f"train.epochs={passes}"),
                *(
                    f"train.evaluate_every={max(1, passes // 4)}",
                    f"train.checkpoint_every={passes}",
                ),
            )
    print("seed  from scratch  after pretraining")
    for seed in args.seeds:
        folder = args.output_dir / f"seed_{seed}"
        scratch, pretrained = (last_accuracy(folder / n) for n in ("scratch", "pretrained"))
        print(f"{seed:4}  {100 * scratch:10.1f} %  {100 * pretrained:15.1f} %")


if __name__ == "__main__":
    main()
