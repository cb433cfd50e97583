"""Inputs that a model does not take: the message says how to make one that it takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hiera_video import model_transform
from hiera_video.errors import ModelError
from hiera_video.models.hiera import Hiera
from hiera_video.models.loading import card_of
from hiera_video.models.normalize import Normalize
from tests.models.tiny_models import IMAGE, VIDEO, hiera, logits, official

pytestmark = pytest.mark.usefixtures("unchecked_shapes")  # whose errors would come first


@pytest.fixture(scope="module")
def video() -> Hiera:
    return hiera(VIDEO)


@pytest.fixture(scope="module")
def image() -> Hiera:
    return hiera(IMAGE)


def refused(model: Hiera, x: Any) -> str:
    with pytest.raises(ModelError) as error:
        model(x)
    return str(error.value)


def advice(model: Hiera, axes: str, x: Tensor) -> Tensor:
    """What the message advises to give instead of an input with these axes."""
    message = refused(model, x)
    assert f"it looks like [{', '.join(axes)}]" in message
    found = re.search(r"; give x((?:\.\w+\([\d, ]*\))*)$", message)
    assert found is not None, message
    for method, numbers in re.findall(r"\.(\w+)\(([\d, ]*)\)", found[1]):
        x = getattr(x, method)(*map(int, numbers.split(", ")))
    return x


# From the order that the model takes, [2, 3, 8, 64, 64], to others.
CLIPS: dict[str, Callable[[Tensor], Tensor]] = {
    "BTCHW": lambda x: x.transpose(1, 2),
    "BTHWC": lambda x: x.permute(0, 2, 3, 4, 1),
    "BCHWT": lambda x: x.permute(0, 1, 3, 4, 2),
    "CTHW": lambda x: x[0],
    "TCHW": lambda x: x[0].transpose(0, 1),
    "THWC": lambda x: x[0].permute(1, 2, 3, 0),
}
IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "BHWC": lambda x: x[:, :, 0].permute(0, 2, 3, 1),
    "CHW": lambda x: x[0, :, 0],
    "HWC": lambda x: x[0, :, 0].permute(1, 2, 0),
    "BTHWC": lambda x: x.permute(0, 2, 3, 4, 1),
}


@pytest.mark.parametrize("axes", CLIPS)
def test_axes_of_clips(axes: str, video: Hiera) -> None:
    x = torch.randn(2, 3, 8, 64, 64)
    given = advice(video, axes, CLIPS[axes](x))
    assert torch.equal(given, x if axes[0] == "B" else x[:1])


@pytest.mark.parametrize("axes", IMAGES)
def test_axes_of_images(axes: str, image: Hiera) -> None:
    x = torch.randn(2, 3, 1, 64, 64)
    given = advice(image, axes, IMAGES[axes](x))
    assert torch.equal(given.reshape(-1, 3, 1, 64, 64), x if axes[0] == "B" else x[:1])
    assert torch.equal(image(x[:, :, 0]), image(x))


def test_sizes(video: Hiera, image: Hiera) -> None:
    takes = re.escape("this model takes [B, 3, 8, 64, 64] ([B, C, T, H, W])")
    resize = f"{takes}: resize or resample the clip, or .* another image_size or num_frames$"
    assert re.search(resize, refused(video, torch.randn(1, 3, 8, 96, 96)))
    assert re.search(resize, refused(video, torch.randn(1, 3, 4, 64, 64)))
    assert re.search(f"{takes}: it is a batch of images", refused(video, torch.randn(2, 3, 64, 64)))
    message = refused(video, torch.randn(1, 16, 3, 96, 96))
    assert message.endswith("[B, T, C, H, W]; give x.permute(0, 2, 1, 3, 4), of that size")
    message = refused(image, torch.randn(2, 3, 96, 96))
    assert "this model takes [B, 3, 64, 64] ([B, C, H, W]): resize" in message


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (
            np.zeros((1, 3, 8, 64, 64), np.float32),
            "a ndarray: expected a tensor; torch.from_numpy",
        ),
        ([torch.zeros(3, 8, 64, 64)], "a list: expected a tensor; torch.stack"),
        ("clip.mp4", "a str: expected a tensor; hiera_video.open_video"),
        (torch.zeros(1, 3, 8, 64, 64, dtype=torch.uint8), r"hiera_video.model_transform\(card\)"),
    ],
)
def test_types(x: Any, words: str, video: Hiera) -> None:
    assert re.search(words, refused(video, x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:0], r"is \[0, 3, 8, 64, 64\], an empty batch: give at least one clip"),
        (lambda x: x.double(), r"float64, .*float32: give x\.to\(torch\.float32\)"),
        (lambda x: x.half(), r"float16, .* or convert the model, model\.to\(torch\.float16\)"),
    ],
)
def test_batches(change: Callable[[Tensor], Tensor], words: str, video: Hiera) -> None:
    x = change(torch.zeros(1, 3, 8, 64, 64))
    assert re.search(words, refused(video, x))
    with pytest.raises(ModelError, match=words):
        video.encode(x, kept=torch.zeros(len(x), 1, dtype=torch.int64))


def test_autocast_takes_other_types(video: Hiera) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert video(torch.zeros(1, 3, 8, 64, 64, dtype=torch.bfloat16)).isfinite().all()


@pytest.mark.parametrize("number", ["5", -5, 5.0, ["a", "b"]])
def test_classes_that_are_no_number(number: Any) -> None:
    model = hiera(VIDEO)
    before = model.head
    with pytest.raises(ModelError, match=r"num_classes is .*: expected a whole number, 0"):
        model.reset_classifier(number)
    assert model.head is before
    model.reset_classifier(np.int64(3))
    assert model.num_classes == 3


@pytest.mark.parametrize(
    "arguments",
    [{"input_size": 64}, {"embed_dim": 96.5}, {"drop_path": 2.0}, {"num_classes": "ten"}],
)
def test_arguments_of_the_class(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ModelError, match=f"^{name} is .*; it must be a "):
        Hiera(**arguments)


def test_indices_are_a_list(video: Hiera) -> None:
    indices: Any = 2
    with pytest.raises(ModelError, match="indices is 2: expected a list of stages"):
        video.forward_intermediates(torch.zeros(1, 3, 8, 64, 64), indices)


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        (torch.zeros(8, 64, 64, 3, dtype=torch.uint8), r"are torch\.uint8 \[8, 64, 64, 3\]"),
        (torch.zeros(1, 8, 64, 64, 3), "are torch.float32"),  # would be divided by 255 again
        (torch.zeros(1, 3, 8, 64, 64, dtype=torch.uint8), "as many channels as mean"),
        (np.zeros((1, 8, 64, 64, 3), np.uint8), "are a ndarray: expected a tensor"),
    ],
)
def test_clips_that_are_not_normalised(clips: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Normalize((0.5,) * 3, (0.5,) * 3)(clips)


def test_statistics() -> None:
    for mean, std in (
        ((114,) * 3, (57,) * 3),
        (0.5, 0.5),
        ((0.5,), (0,)),
        ("abc", (1,)),
        ((1,), [None]),
    ):
        statistics: Any = {"mean": mean, "std": std}
        with pytest.raises(ModelError, match=r"(mean|std) is .*: expected a number for each"):
            Normalize(**statistics)


def test_frames_for_the_transform() -> None:
    for frames in ("clip.mp4", torch.zeros(8, 64, 64, 3, dtype=torch.uint8)):
        transform: Any = model_transform(card_of(hiera(VIDEO)))
        with pytest.raises(ModelError, match=r"expected a NumPy array, uint8 .*as open_video"):
            transform(frames)
    unchecked: Any = model_transform
    with pytest.raises(ModelError, match=r"the card is a Hiera: model, card = load_model"):
        unchecked(hiera(VIDEO))


def test_official_state_dicts_fit_image_models(image: Hiera) -> None:
    """They have kernels of two dimensions, timm's too."""
    state = official(image)
    assert state["patch_embed.proj.weight"].shape == (16, 3, 7, 7)
    model = hiera(IMAGE, seed=1)
    model.load_state_dict(state)
    assert torch.equal(logits(model), logits(image))
    assert state["patch_embed.proj.weight"].dim() == 4  # the caller's is left alone
    with pytest.raises(RuntimeError, match="size mismatch for patch_embed"):
        hiera(VIDEO).load_state_dict(state, strict=False)


def test_torchscript(video: Hiera) -> None:
    with pytest.warns(), pytest.raises(ModelError, match="`hiera-video export` writes"):
        torch.jit.script(video)
