"""Predictions from Python equal those of the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import hiera_video
from hiera_video.errors import WeightsError
from hiera_video.video.clips import ClipSampler
from hiera_video.video.reader import VideoError


def test_predict_gives_what_the_command_prints(commands, trained):
    path = commands.toy / "val_0.mp4"
    printed = commands.run("predict", f"checkpoint={trained}", "device=cpu", path, "--json")
    expected = {c["class"]: c["probability"] for c in json.loads(printed.out)["classes"]}
    loaded = hiera_video.load_model(trained)
    classes = loaded.predict(path)
    assert [name for name, _ in classes] == list(expected)
    assert dict(classes) == pytest.approx(expected, abs=1e-6)
    assert len(loaded.predict(path, top_k=1)) == 1
    with pytest.raises(VideoError, match="no such file"):
        loaded.predict("nowhere.mp4")
    for top_k in (0, -1, "5"):
        with pytest.raises(ValueError, match=r"top_k is .* a whole number of at least 1"):
            loaded.predict(path, top_k)
    with pytest.raises(TypeError, match="path is a list: predict takes one path"):
        loaded.predict([path])


def test_scores_that_are_not_finite_are_no_prediction(commands, diverged):
    loaded = hiera_video.load_model(diverged)
    with pytest.raises(WeightsError, match=r"val_0\.mp4: its scores are not finite in fp32"):
        loaded.predict(commands.toy / "val_0.mp4")


def test_the_transform_and_the_views_give_the_same(commands, trained):
    path = commands.toy / "val_1.mp4"
    loaded = hiera_video.load_model(trained)
    model, card = loaded
    transform = hiera_video.model_transform(card)
    with hiera_video.open_video(path) as video:
        sampler = ClipSampler.of(card.clips, model.input_size[0])
        clips = sampler.uniform_clips(video, card.views.num_clips, card.views.clip_rule)
        inputs = torch.cat([transform(video.frames(clip)) for clip in clips])
    assert inputs.shape == (2 * 3, 3, 4, 32, 32)
    with torch.inference_mode():
        mean = model(inputs).softmax(dim=1).mean(dim=0).numpy()
    expected = dict(loaded.predict(path))
    np.testing.assert_allclose(mean, [expected[name] for name in card.classes], atol=1e-6)


def test_only_classifiers_predict(tmp_path):
    backbone = hiera_video.create_model("hiera_tiny_224", num_classes=0, embed_dim=8, image_size=64)
    hiera_video.save_model(tmp_path / "weights", backbone)
    loaded = hiera_video.load_model(tmp_path / "weights")
    assert loaded.card.kind == "backbone"
    with pytest.raises(WeightsError, match="expected a classifier"):
        loaded.predict("a.mp4")
