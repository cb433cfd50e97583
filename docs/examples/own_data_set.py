"""A data set of one's own.

Here, a table states what happens at which second of a long video, and each sample is the clip
around such a second. `VideoRecord` and `TrainingClips` (see the training loop) are simpler where a
whole video, or a part of it from one second to another, has a label.
"""

import csv
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from videos import CLASSES, FPS, moving_bar

from hiera_video import create_model, open_video
from hiera_video.data.transforms import FinetuneTransform
from hiera_video.models.normalize import Normalize
from hiera_video.settings.training import Augment
from hiera_video.video.clips import ClipSampler
from hiera_video.video.writer import write_video

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)


class Moments(Dataset):
    """Clips around seconds of videos, uint8 [T, H, W, 3], with class ids.

    The table has the columns path, second and action; ids are positions in `classes`.
    """

    def __init__(self, table: str) -> None:
        with open(table, newline="") as file:
            self.rows = list(csv.DictReader(file))
        self.classes = sorted({row["action"] for row in self.rows})
        # 4 frames at the distance of 4 frames of a video of 30 per second, whatever the file has.
        self.sampler = ClipSampler(num_frames=4, sampling_rate=4, target_fps=30)
        self.transform = FinetuneTransform(64, Augment(flip=False), mean=MEAN, std=STD)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.rows[index]
        with open_video(row["path"]) as video:  # a VideoError says why a file cannot be read
            # Only these frames are decoded: uint8 [4, H, W, 3].
            frames = video.frames(self.sampler.keyframe_clip(video, float(row["second"])))
        rng = np.random.default_rng(int(torch.randint(2**62, ())))  # follows torch.manual_seed
        return torch.from_numpy(self.transform(frames, rng)), self.classes.index(row["action"])


def write_data() -> None:
    """A video in which a bar falls, slides and falls again, two seconds each, and its table."""
    rng = np.random.default_rng(0)
    falling, sliding = CLASSES
    actions = (falling, sliding, falling)
    write_video("long.mp4", chain(*(moving_bar(a, 2 * FPS, rng) for a in actions)), FPS)
    rows = [f"long.mp4,{2 * i + 1},{action}" for i, action in enumerate(actions)]
    Path("moments.csv").write_text("\n".join(["path,second,action", *rows]))


if __name__ == "__main__":  # for DataLoader's num_workers, whose processes may import this file
    torch.manual_seed(0)
    write_data()
    moments = Moments("moments.csv")
    normalize = Normalize(MEAN, STD)  # from bytes to the input of the model, on its device
    model = create_model("hiera_tiny_16x224", num_classes=2, num_frames=4, image_size=64)
    for clips, labels in DataLoader(moments, batch_size=3):
        logits = model(normalize(clips))  # [3, 2]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
    print(f"{len(moments)} moments, labels {[moments.classes[i] for i in labels]}")
    print(f"clips {list(clips.shape)}, logits {list(logits.shape)}, loss {loss.item():.2f}")
