"""How much of the maps of `hiera-video visualize attention` lies on the demo's moving figures.

    hiera-video demo output_dir=demo
    OMP_NUM_THREADS=1 python tools/attention_localizes.py demo [--seed 0]

For the validation videos of the demo whose figures move or change their size, the share of a map's
sum that lies in the boxes of the figures, over the share of the clip's pixels that do: 1 is chance,
the most is 1 over that share of pixels. Maps are those of the command, enlarged to the clip's
pixels. "Same map" is the cosine between the maps of the two most likely classes: 1 if the map
ignores the class.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hiera_video import open_video
from hiera_video.analysis.attention import default_stage, gradient_map, rollout_map
from hiera_video.analysis.attention_pictures import enlarged
from hiera_video.data.transforms import Crops
from hiera_video.demo.motions import CLASSES, DemoData, Scene, draw_scene, place
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import load_model
from hiera_video.video.clips import ClipSampler


def boxes_at(scene: Scene, time_sec: float) -> np.ndarray:
    """uint8 [H, W, 3]: 255 in the boxes of the figures, which enter again on the other side."""
    height, width = scene.background.shape[:2]
    picture = np.zeros((height, width, 3), np.uint8)
    for figure in scene.figures:
        position, radius = place(scene, figure, time_sec)
        corners = radius * figure.outline + position
        for shift in product((-width, 0, width), (-height, 0, height)):
            low, high = corners.min(axis=0) + shift, corners.max(axis=0) + shift
            x1, y1 = np.floor(low).astype(int).clip(0, (width, height))
            x2, y2 = (np.ceil(high).astype(int) + 1).clip(0, (width, height))
            picture[y1:y2, x1:x2] = 255
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder that `hiera-video demo` wrote")
    parser.add_argument("--seed", type=int, default=0, help="of that demo")
    parser.add_argument("--scenes", type=int, default=12, help="of the validation videos")
    arguments = parser.parse_args()
    model, card = load_model(arguments.demo / "run", kind="classifier")
    assert card.clips
    assert card.views
    num_frames, height, width = model.input_size
    sampler = ClipSampler.of(card.clips, num_frames)
    crops = Crops((height, width), card.views.num_crops, card.views.short_side)
    normalize = Normalize(card.mean, card.std)
    data = DemoData(arguments.demo / "data")
    stages = range(len(model.stage_ends))
    ratios: dict[str, list[float]] = {}
    cosines: dict[str, list[float]] = {}
    areas, sizes = [], {}
    moving = [motion for motion in CLASSES if motion != "standing_still"]
    for number, motion in product(range(arguments.scenes), moving):
        scene = draw_scene(arguments.seed, "val", number, motion)
        with open_video(data.folder / f"videos/{motion}/val_{number:03d}.mp4") as video:
            (indices,) = sampler.uniform_clips(video, 1)
            frames, times_sec = video.frames(indices), video.frame_times_sec[indices]
        boxes = np.stack([boxes_at(scene, float(time_sec)) for time_sec in times_sec])
        seen, boxes = (crops(x)[crops.num_crops // 2] for x in (frames, boxes))
        is_inside = boxes[..., 0] > 127
        areas.append(is_inside.mean())
        clip = normalize(torch.from_numpy(seen)[None])
        with torch.inference_mode():
            first, second = model(clip)[0].topk(2).indices

        def maps(class_id: Tensor, clip: Tensor = clip) -> dict[str, Tensor]:
            ids = class_id[None]
            found = {
                f"gradient, stage{s + 1}": gradient_map(model, clip, ids, stage=s)[0]
                for s in stages
            }
            return {**found, "rollout": rollout_map(model, clip)[0]}

        other = maps(second)
        for name, values in maps(first).items():
            sizes[name] = " x ".join(map(str, values.shape))
            pixels = enlarged(values, model.input_size)
            share = pixels[is_inside].sum() / pixels.sum() if pixels.any() else 0.0
            ratios.setdefault(name, []).append(share / is_inside.mean())
            cosine = torch.cosine_similarity(values.flatten(), other[name].flatten(), dim=0)
            cosines.setdefault(name, []).append(float(cosine))
    print(f"{len(areas)} videos; {np.mean(areas):.3f} of the pixels lie in boxes")
    print("| map | tokens | times chance | exceeded by 9 of 10 videos | same map |")
    print("|---|---|---|---|---|")
    for name, of_videos in ratios.items():
        mark = " (default)" if name == f"gradient, stage{default_stage(model) + 1}" else ""
        low = np.quantile(of_videos, 0.1)
        print(
            f"| {name}{mark} | {sizes[name]} | {np.mean(of_videos):.2f} | {low:.2f} "
            f"| {np.mean(cosines[name]):.2f} |"
        )


if __name__ == "__main__":
    main()
