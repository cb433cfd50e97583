"""The section about where a classifier looks in the videos that it gets most wrong."""

from __future__ import annotations

import numpy as np
import torch

from hiera_video.analysis.attention import LIMITS, default_stage, gradient_map
from hiera_video.analysis.attention_pictures import enlarged, overlaid
from hiera_video.analysis.sheets import fps_of
from hiera_video.data.transforms import Crops
from hiera_video.errors import UserError
from hiera_video.evaluation.prediction import with_class_names
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import load_model
from hiera_video.report.blocks import Block, Card, Gallery, Media, Notice, Section
from hiera_video.report.runs import Evaluation
from hiera_video.report.scores import EvaluatedVideos, Scores
from hiera_video.settings.evaluation import EvaluateSettings
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import opener
from hiera_video.video.reader import VideoError

MAX_VIDEOS = 6  # each takes a forward and a backward pass


def attention_section(
    evaluation: Evaluation,
    scores: Scores,
    videos: EvaluatedVideos,
    num_videos: int,
) -> Section:
    """Gradient maps of the predicted class, for the videos of the highest loss."""
    title = f"Where the model looks: {evaluation.folder.name}"
    if videos.note is not None:
        return Section(title, [Notice(videos.note)])
    try:
        settings = EvaluateSettings.model_validate(evaluation.settings)
    except ValueError:
        text = f"{evaluation.folder / 'report.json'}: of another version: evaluate again"
        return Section(title, [Notice(text)])
    try:
        model, card = load_model(
            settings.checkpoint, kind="classifier", weights_key=settings.weights_key
        )
        card = with_class_names(card, settings.data.class_names)
    except UserError as error:
        return Section(title, [Notice(str(error))])
    if list(card.classes) != scores.class_names:
        text = f"{settings.checkpoint}: other classes than those evaluated: evaluate again"
        return Section(title, [Notice(text)])
    sampler = ClipSampler.of(settings.clips, model.input_size[0])
    crops = Crops(model.input_size[1:], settings.views.num_crops, settings.views.short_side)
    normalize = Normalize(card.mean, card.std)
    cards = []
    for number in np.argsort(-scores.loss, kind="stable")[: min(num_videos, MAX_VIDEOS)].tolist():
        name = scores.names[number]
        predicted = int(scores.mean[number].argmax())
        facts = [
            ("label", scores.label(number)),
            ("map of", scores.class_names[predicted]),
        ]
        if name not in videos.records:
            cards.append(Card(name, videos.media(number), facts))  # which says why
            continue
        try:
            with videos.records[name].open(opener(videos.data)) as video:
                frames, times_sec = sampler.middle_clip(video)
        except VideoError as error:
            cards.append(Card(name, Media(note=str(error)), facts))
            continue
        seen = crops(frames)[crops.num_crops // 2]
        inputs = normalize(torch.from_numpy(seen)[None])
        values = gradient_map(model, inputs, torch.tensor([predicted]))[0]
        overlays = overlaid(seen, enlarged(values, model.input_size))
        beside = np.concatenate([seen, overlays], axis=2)
        cards.append(Card(name, videos.folder.of_frames(beside, fps_of(times_sec)), facts))
    caption = "The middle clip, and beside it the map of its predicted class"
    blocks: list[Block] = [Gallery(caption, cards)]
    intro = (
        f"Gradient at stage {default_stage(model) + 1}, from blue (the lowest value of the clip) "
        f"to red. {LIMITS['gradient']}"
    )
    return Section(title, blocks, intro)
