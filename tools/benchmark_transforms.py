"""The training transforms, compared with torchvision v2 on uint8 and timm on PIL images, one core.

    pip install -e '.[dev]'
    python tools/benchmark_transforms.py [--clips 200] [--frames 16] [--size 224]

First each of RandAugment's operations at magnitude 7; then RandAugment over `--clips` draws, the
same draws for all three; then the whole pipelines from 16x256x340. Everything is uint8, one thread.
The three take turns on the same clip, so that other work on the machine affects them equally.
Milliseconds per clip: the mean over draws, which is what a loader needs; for a single operation the
median of 21 calls.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from hiera_video.data.randaugment import OPERATIONS, RandAugment, apply_operation
from hiera_video.data.transforms import FinetuneTransform, PretrainTransform
from hiera_video.settings.training import Augment, Crop

MEAN, STD = (0.45,) * 3, (0.225,) * 3
FILL = [115, 115, 115]
Draw = list[tuple[str, float]]

TIMM = dict(zip(OPERATIONS, auto_augment._RAND_INCREASING_TRANSFORMS, strict=True))


def torchvision_operation(name: str, clip: torch.Tensor, argument: float) -> torch.Tensor:
    """The same operation by torchvision, on uint8 [T, 3, H, W].

    Its geometric operations are bilinear, because it has nothing else for tensors; those of the
    other two are bicubic.
    """
    width, height = clip.shape[-1], clip.shape[-2]
    degrees, translate, shear = 0.0, [0.0, 0.0], [0.0, 0.0]
    match name:
        case "auto_contrast":
            return tv.autocontrast(clip)
        case "equalize":
            return tv.equalize(clip)
        case "invert":
            return tv.invert(clip)
        case "posterize":
            return tv.posterize(clip, int(argument))
        case "solarize":
            return tv.solarize(clip, min(argument, 255))
        case "solarize_add":
            brighter = clip.clamp(max=255 - int(argument)) + int(argument)
            return torch.where(clip < 128, brighter, clip)
        case "color":
            return tv.adjust_saturation(clip, argument)
        case "contrast":
            return tv.adjust_contrast(clip, argument)
        case "brightness":
            return tv.adjust_brightness(clip, argument)
        case "sharpness":
            return tv.adjust_sharpness(clip, argument)
        case "rotate":
            degrees = -argument
        case "shear_x":
            shear = [np.degrees(np.arctan(argument)), 0.0]
        case "shear_y":
            shear = [0.0, np.degrees(np.arctan(argument))]
        case "translate_x":
            translate = [-argument * width, 0.0]
        case "translate_y":
            translate = [0.0, -argument * height]
    return tv.affine(
        clip,
        degrees,
        translate,
        1.0,
        shear,
        InterpolationMode.BILINEAR,
        fill=[float(f) for f in FILL],
    )


def timm_operation(name: str, image: Image.Image, argument: float) -> Image.Image:
    whole = int(argument) if argument.is_integer() else argument  # PIL wants bits as an int
    arguments = () if auto_augment.LEVEL_TO_ARG[TIMM[name]] is None else (whole,)
    return auto_augment.NAME_TO_OP[TIMM[name]](
        image, *arguments, fillcolor=tuple(FILL), resample=Image.Resampling.BICUBIC
    )


def ours(clip: np.ndarray, draw: Draw) -> None:
    for name, argument in draw:
        clip = apply_operation(name, clip, argument, np.array(FILL, np.uint8))


def by_torchvision(clip: torch.Tensor, draw: Draw) -> None:
    for name, argument in draw:
        clip = torchvision_operation(name, clip, argument)


def by_timm(clip: np.ndarray, draw: Draw) -> None:
    if not draw:
        return
    images = [Image.fromarray(frame) for frame in clip]
    for name, argument in draw:
        images = [timm_operation(name, image, argument) for image in images]
    np.stack([np.asarray(image) for image in images])


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def print_row(name: str, times: tuple[float, ...]) -> None:
    ratios = "".join(f"{t / times[0]:8.1f}x" for t in times[1:])
    print(f"{name:24s}" + "".join(f"{t:12.2f}" for t in times) + ratios)


def print_header(columns: list[str]) -> None:
    ratios = "".join(f"{'/ ours':>9s}" for _ in columns[2:])
    print(f"\n{columns[0]:24s}" + "".join(f"{c:>12s}" for c in columns[1:]) + ratios)


def randaugment(args: argparse.Namespace, clips: list[np.ndarray]) -> None:
    tensors = [torch.from_numpy(clip).permute(0, 3, 1, 2).contiguous() for clip in clips]

    def time_draw(index: int, draw: Draw) -> tuple[float, float, float]:
        clip, tensor = clips[index % len(clips)], tensors[index % len(clips)]
        return (
            milliseconds(lambda: ours(clip, draw)),
            milliseconds(lambda: by_torchvision(tensor, draw)),
            milliseconds(lambda: by_timm(clip, draw)),
        )

    print_header(["operation", "ours", "torchvision", "timm, PIL"])
    for name, operation in OPERATIONS.items():
        runs = [time_draw(i, [(name, operation.argument(0.7, (-1) ** i))]) for i in range(21)]
        print_row(name, tuple(statistics.median(column) for column in zip(*runs, strict=True)))

    augment, rng = RandAugment(MEAN), np.random.default_rng(0)
    runs = [time_draw(i, augment.draw(rng)) for i in range(args.clips)]
    mean = tuple(statistics.mean(column) for column in zip(*runs, strict=True))
    print_row(f"RandAugment, {args.clips} draws", mean)
    print(f"slowest draw of ours: {max(run[0] for run in runs):.1f} ms")


def pipelines(args: argparse.Namespace) -> None:
    """From a decoded 16x256x340 clip. torchvision's RandAugment has other operations, and
    applies both layers always; its random erasing has no per-pixel noise for uint8 video."""
    size = (args.size, args.size)
    frames = make_clip(args.frames, 256, 340, seed=9)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    flip = v2.RandomHorizontalFlip()
    peers = {
        "pretrain": (
            PretrainTransform(size, Crop()),
            v2.Compose([v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=False), flip]),
        ),
        "finetune": (
            FinetuneTransform(size, Augment(), mean=MEAN, std=STD),
            v2.Compose(
                [
                    v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=False),
                    flip,
                    v2.RandAugment(2, 7, 11, InterpolationMode.BILINEAR, FILL),
                    v2.RandomErasing(0.25),
                ]
            ),
        ),
    }
    print_header(["pipeline", "ours", "torchvision"])
    for name, (transform, peer) in peers.items():
        rng, runs = np.random.default_rng(0), []
        torch.manual_seed(0)
        for _ in range(args.clips):
            mine = milliseconds(lambda transform=transform, rng=rng: transform(frames, rng))
            runs.append((mine, milliseconds(lambda peer=peer: peer(tensor))))
        print_row(name, tuple(statistics.mean(column) for column in zip(*runs, strict=True)))


def make_clip(frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """Moving smooth shades and a sharp edge with a little noise, similar to video frames."""
    rng = np.random.default_rng(seed)
    wide = cv2.GaussianBlur(rng.normal(0, 1, (height, width + 2 * frames, 3)), (0, 0), 6)
    wide = 128 + wide * (50 / wide.std())
    wide[height // 3 : height // 2, width // 4 : width // 2] = (210, 40, 90)
    clip = np.stack([wide[:, 2 * t : 2 * t + width] for t in range(frames)])
    return np.clip(clip + rng.normal(0, 3, clip.shape), 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=200, help="random draws a comparison")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="side of the crop, in pixels")
    args = parser.parse_args()

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print(f"{args.frames}x{args.size}x{args.size} uint8, one thread, milliseconds a clip")
    print(f"torch {torch.__version__}, OpenCV {cv2.__version__}, Pillow {Image.__version__}")
    clips = [make_clip(args.frames, args.size, args.size, seed) for seed in range(4)]
    randaugment(args, clips)
    pipelines(args)


if __name__ == "__main__":
    main()
