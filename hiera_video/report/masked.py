"""The section about a masked autoencoder: what it predicts of hidden parts of training videos."""

from __future__ import annotations

import numpy as np
import torch

from hiera_video.analysis.sheets import fps_of
from hiera_video.analysis.visualize import describe, movie_frames, reconstruct
from hiera_video.data.videos.records import read_video_list
from hiera_video.errors import UserError
from hiera_video.evaluation.prediction import model_transform
from hiera_video.models.masking import UnitMasking
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import load_model
from hiera_video.report.blocks import Block, Card, Gallery, Notice, Section
from hiera_video.report.features import spread
from hiera_video.report.media import MediaFolder
from hiera_video.report.runs import Run
from hiera_video.settings.load import load_settings
from hiera_video.settings.training import PretrainSettings
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import opener
from hiera_video.video.reader import VideoError

MAX_VIDEOS = 4  # each is one forward pass
PANEL_PX = 720  # short side


def reconstruction_sections(run: Run, folder: MediaFolder, num_videos: int) -> list[Section]:
    """Reconstructions of the centre clips of some training videos, spread over their list."""
    title = f"Reconstructions: {run.name}"
    if not (run.folder / "weights").is_dir():
        text = "The run has no weights yet: reconstructions appear when it has ended."
        return [Section(title, [Notice(text)])]
    try:
        settings = load_settings(PretrainSettings, [str(run.folder / "config.yaml")])
        model, card = load_model(str(run.folder), kind="autoencoder")
        if model.target != "pixels":
            text = f"The model predicts {model.target}, which is no picture."
            return [Section(title, [Notice(text)])]
        data = settings.data
        listed = read_video_list(
            data.train,
            root=data.root,
            labelled=False,
            split=data.split,
            frames_fps=data.frames_fps,
        )
    except UserError as error:
        return [Section(title, [Notice(str(error))])]
    masking = UnitMasking.of(model.encoder, settings.masking)
    sampler = ClipSampler.of(settings.clips, model.encoder.input_size[0])
    transform, normalize = model_transform(card), Normalize(card.mean, card.std)
    cards: list[Card] = []
    blocks: list[Block] = []
    for place, number in enumerate(spread(len(listed.records), min(num_videos, MAX_VIDEOS))):
        record = listed.records[number]
        try:
            with record.open(opener(data, sampler.num_frames)) as video:
                frames, times_sec = sampler.middle_clip(video)
        except VideoError as error:
            blocks.append(Notice(str(error)))
            continue
        visible = torch.from_numpy(masking(np.random.default_rng([settings.train.seed, place])))
        made = reconstruct(model, transform(frames), visible[None], normalize=normalize)
        shown_sec = times_sec[:: model.token_pixels[0]]
        movie = movie_frames(made, shown_sec, describe(made, masking))
        media = folder.of_frames(movie, fps_of(shown_sec), PANEL_PX)
        cards.append(Card(record.name, media, [("reconstruction loss", f"{made.loss:.4f}")]))
    caption = "Input, visible units, prediction, and both"
    blocks.append(Gallery(caption, cards, is_wide=True))
    intro = (
        "Each patch is shown without its mean and its contrast, which the model does not predict. "
        "The prediction has nothing of the hidden patches."
    )
    return [Section(title, blocks, intro)]
