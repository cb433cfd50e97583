"""A training loop of one's own.

Lists, clips, augmentation, batches and loss are those of `hiera-video finetune`; the loop is plain
torch. With `num_workers` above 0, videos are decoded in other processes: a file that crashes a
decoder is then a failure of its batch. The data sets also work in a `torch.utils.data.DataLoader`
with `batch_sampler=order` and `hiera_video.data.batches.collate_clips`.

The folder `trained` that it writes is a checkpoint for `hiera-video evaluate`, `predict` and
`extract`.
"""

from pathlib import Path

import numpy as np
import torch
from videos import make_videos

from hiera_video import create_model, load_model, save_model
from hiera_video.data.datasets import TrainingClips
from hiera_video.data.loader import training_loader
from hiera_video.data.order import TrainingOrder
from hiera_video.data.transforms import FinetuneTransform
from hiera_video.data.videos.records import read_video_list
from hiera_video.models.normalize import Normalize
from hiera_video.settings.training import Augment
from hiera_video.settings.video import Decoding
from hiera_video.training.losses import ClassificationLoss
from hiera_video.video.clips import ClipSampler

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
SHAPE = (4, 64, 64)  # frames, height and width of a clip
# Leave these out for models and augmentation as in the paper.
SMALL = dict(num_frames=4, image_size=64, embed_dim=16, stages=(1, 1, 1, 1))
PLAIN = dict(rand_augment_magnitude=None, erasing_prob=0.0, mixup=0.0, cutmix=0.0)


def train() -> None:
    videos = read_video_list("my_videos/train")  # a folder with a folder for each class, or a list
    classes = videos.class_names
    # From published weights: create_model("hiera_base_16x224", checkpoint="mae_k400", ...)
    model = create_model("hiera_tiny_16x224", num_classes=len(classes), **SMALL)
    augment = Augment(flip=False, crop_area=(0.5, 1.0), label_smoothing=0.0, **PLAIN)
    clips = TrainingClips(
        videos.records,
        ClipSampler(num_frames=4, sampling_rate=4),
        FinetuneTransform(SHAPE[1:], augment, mean=MEAN, std=STD),
        num_repeats=2,  # clips from each decoded video
        seed=0,
    )
    steps = dict(start_step=0, end_step=40, global_batch_size=8, accumulation_steps=1)
    order = TrainingOrder(len(clips), **steps, seed=0)
    here = Decoding(num_workers=0)  # decode in this process
    loader = training_loader(clips, order, clip_shape=(*SHAPE, 3), decoding=here)
    normalize = Normalize(MEAN, STD)
    loss_function = ClassificationLoss(augment, num_classes=len(classes), normalize=normalize)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for step, batch in enumerate(loader):  # batch.clips: uint8 [B, T, H, W, 3]
        for failure in batch.failures:  # videos that could not be read; they have no clips here
            print(failure.message)
        # The loss is a sum over clips; failures leave fewer of them.
        loss = loss_function(model, batch, np.random.default_rng([0, step])) / max(len(batch), 1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    save_model("trained", model, class_names=classes)


if __name__ == "__main__":  # the processes that decode import this file
    torch.manual_seed(0)
    make_videos(Path("my_videos/train"), 8)
    make_videos(Path("my_videos/val"), 4, seed=1)
    train()
    trained = load_model("trained")
    files = sorted(Path("my_videos/val").rglob("*.mp4"))  # in folders with the names of classes
    # predict gives pairs of class and probability, the most likely class first.
    right = sum(trained.predict(file)[0][0] == file.parent.name for file in files)
    print(f"accuracy: {right} of {len(files)} videos")
