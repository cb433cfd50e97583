"""Features of a folder of videos, and nearest neighbours.

`hiera-video extract` decodes each frame once, survives broken files and resumes; this program runs
it and reads its files. Random weights are enough to find the copies of videos, as here. To find
videos of the same kind, give published weights, `checkpoint=hiera_base_16x224.mae_k400_ft_k400`.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from videos import make_videos

from hiera_video import create_model, load_features, save_model

SMALL = dict(embed_dim=16, stages=(1, 1, 1, 1), num_frames=4, image_size=64)


def extract() -> None:
    """Writes features/features/NAME.mp4.npz, the features of my_videos/NAME.mp4.

    Windows of 4 frames at a distance of 4 begin every 8 frames: 3 in a video of 25 frames, of which
    the last is filled up.
    """
    command = ["hiera_video", "extract", "my_videos", "checkpoint=untrained", "output_dir=features"]
    command += ["clips.sampling_rate=4", "windows.clip_stride=8", "device=cpu"]
    subprocess.run([sys.executable, "-m", *command], check=True)  # in a shell: hiera-video extract


def similarities(files: list[Path]) -> np.ndarray:
    """The cosine similarity of all pairs of videos: [N, N], -1 for a video and itself."""
    means = []
    for file in files:
        video = load_features(file)  # features: [windows, D]; center_sec: [windows]
        means.append(video.features.mean(axis=0))
    x = np.stack(means)
    x -= x.mean(axis=0)  # what all videos share says nothing
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -1.0)
    return similarity


if __name__ == "__main__":
    torch.manual_seed(0)
    make_videos(Path("my_videos/originals"), 6)
    make_videos(Path("my_videos/copies"), 6, crf=40)  # the same scenes, compressed more
    save_model("untrained", create_model("hiera_tiny_16x224", num_classes=0, **SMALL))
    extract()
    root = Path("features/features")
    files = sorted(root.rglob("*.npz"))
    names = [file.relative_to(root).as_posix() for file in files]
    similarity = similarities(files)
    for name, row in list(zip(names, similarity, strict=True))[:3]:
        best = np.argsort(-row)[:3]
        print(f"{name}: {', '.join(f'{names[i]} {row[i]:.2f}' for i in best)}")
    found = [Path(names[i]).parts[1:] for i in similarity.argmax(axis=1)]
    right = sum(Path(name).parts[1:] == other for name, other in zip(names, found, strict=True))
    print(f"for {right} of {len(files)} videos, the nearest is the same scene")
