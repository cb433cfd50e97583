"""What is shown is what was seen and predicted, where it was, and nothing that was hidden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hiera_video.analysis.sheets import COLUMNS, write_png
from hiera_video.analysis.visualize import (
    HIDDEN_GREY,
    NORMALISED_RANGE,
    WARNING_COLOUR,
    Mode,
    Reconstruction,
    contact_sheet,
    describe,
    movie_frames,
    reconstruct,
    write_movie,
)
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.masking import UnitMasking, hidden_units
from hiera_video.models.normalize import Normalize
from hiera_video.video.open import open_video

MEAN, STD = (0.45, 0.4, 0.5), (0.225, 0.25, 0.2)
MODES: tuple[Mode, ...] = get_args(Mode)
HONEST: tuple[Mode, ...] = ("normalised", "visible_statistics")

VIDEO: dict[str, Any] = {"input_size": (8, 64, 96), "mask_unit": (1, 8, 8)}
LONG_UNITS: dict[str, Any] = {**VIDEO, "mask_unit": (2, 8, 8)}
POOLED_TIME: dict[str, Any] = {**VIDEO, "mask_unit": (2, 8, 8), "q_pool": 1, "q_stride": (2, 2, 2)}
IMAGE: dict[str, Any] = {
    "input_size": (1, 64, 96),
    "patch_kernel": (1, 7, 7),
    "patch_stride": (1, 4, 4),
    "patch_padding": (0, 3, 3),
    "sep_pos_embed": False,
}
each_model = pytest.mark.parametrize(
    "arguments",
    [VIDEO, LONG_UNITS, POOLED_TIME, IMAGE],
    ids=["video", "long_units", "pooled_time", "image"],
)


def autoencoder(arguments: dict[str, Any], **options: Any) -> MaskedAutoencoderHiera:
    torch.manual_seed(0)
    small = {"num_classes": 0, "embed_dim": 8, "stages": (1, 1, 1, 1), "q_pool": 2}
    encoder = Hiera(**{**small, **arguments})
    decoder = {"decoder_heads": 2, "decoder_dim": 16, "decoder_depth": 1, **options}
    return MaskedAutoencoderHiera(encoder, **decoder).eval()


def noise(model: MaskedAutoencoderHiera, seed: int = 0) -> np.ndarray:
    """uint8 [T, H, W, 3]."""
    shape = (*model.encoder.input_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def draw(model: MaskedAutoencoderHiera, ratio: float = 0.5) -> np.ndarray:
    """bool [M]."""
    return UnitMasking(model.encoder.units_shape, ratio)(np.random.default_rng(1))


def show(
    model: MaskedAutoencoderHiera, frames: np.ndarray, visible: np.ndarray, mode: Mode
) -> Reconstruction:
    normalize = Normalize(MEAN, STD)
    clip = normalize(torch.from_numpy(frames)[None])
    units = torch.from_numpy(visible)[None]
    return reconstruct(model, clip, units, normalize=normalize, mode=mode)


def by_pixel(model: MaskedAutoencoderHiera, units: np.ndarray) -> np.ndarray:
    """A value for each unit [M] at each pixel of the clip that the unit covers, [T, H, W]."""
    encoder = model.encoder
    grid = units.reshape(encoder.units_shape)
    for axis in range(3):
        grid = grid.repeat(encoder.mask_unit[axis] * encoder.patch_stride[axis], axis)
    return grid


def first_frames(model: MaskedAutoencoderHiera, frames: np.ndarray) -> np.ndarray:
    return frames[:: model.token_pixels[0]]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Callable[[MaskedAutoencoderHiera], None]:
    """Makes a model predict its targets."""

    def change(model: MaskedAutoencoderHiera) -> None:
        monkeypatch.setattr(model, "forward", model.targets)

    return change


# The rows.


@each_model
@pytest.mark.parametrize("mode", MODES)
def test_shapes_and_what_is_copied(arguments: dict[str, Any], mode: Mode) -> None:
    model = autoencoder(arguments)
    frames, visible = noise(model), draw(model)
    shown = show(model, frames, visible, mode)
    seen = first_frames(model, by_pixel(model, visible))
    assert seen.any()
    assert not seen.all()
    for _, row, _ in shown.rows:
        assert row.dtype == np.uint8
        assert row.shape == (*seen.shape, 3)
    if mode != "normalised":
        assert np.array_equal(shown.input, first_frames(model, frames))
    assert np.array_equal(shown.visible[seen], shown.input[seen])
    assert (shown.visible[~seen] == HIDDEN_GREY).all()
    assert (shown.prediction[seen] == HIDDEN_GREY).all()
    assert np.array_equal(shown.paste_back[seen], shown.input[seen])
    assert np.array_equal(shown.paste_back[~seen], shown.prediction[~seen])
    assert np.isfinite(shown.loss)


@each_model
def test_only_true_statistics_bring_the_truth_back(
    arguments: dict[str, Any], oracle: Callable[[MaskedAutoencoderHiera], None]
) -> None:
    model = autoencoder(arguments)
    frames, visible = noise(model) // 2 + 20, draw(model)
    frames[:, :32] //= 3  # darker above, with less contrast
    oracle(model)
    truth = first_frames(model, frames).astype(int)
    shown = {mode: show(model, frames, visible, mode) for mode in MODES}
    assert shown["normalised"].loss == 0.0
    errors = {mode: np.abs(shown[mode].paste_back - truth) for mode in MODES}
    assert errors["ground_truth_statistics"].max() <= 1
    assert errors["visible_statistics"].mean() > 5
    assert errors["normalised"].mean() > 5
    # In normalised units too, a perfect prediction looks as the input does.
    assert np.array_equal(shown["normalised"].paste_back, shown["normalised"].input)


@each_model
@pytest.mark.parametrize("mode", HONEST)
def test_nothing_hidden_reaches_the_prediction(arguments: dict[str, Any], mode: Mode) -> None:
    model = autoencoder(arguments)
    visible = draw(model)
    frames, others = noise(model), noise(model, seed=5) // 4
    seen = by_pixel(model, visible)[..., None]
    changed = np.where(seen, frames, others)
    before, after = (show(model, clip, visible, mode) for clip in (frames, changed))
    assert np.array_equal(before.prediction, after.prediction)
    assert np.array_equal(before.paste_back, after.paste_back)
    assert np.array_equal(before.visible, after.visible)
    assert not np.array_equal(before.input, after.input)
    assert before.loss != after.loss
    # The pixels that are seen do count.
    changed = np.where(seen, others, frames)
    assert not np.array_equal(before.prediction, show(model, changed, visible, mode).prediction)


def test_true_statistics_do_reach_the_prediction() -> None:
    model = autoencoder(VIDEO)
    frames, visible = noise(model), draw(model)
    changed = np.where(by_pixel(model, visible)[..., None], frames, frames // 4)
    before, after = (
        show(model, clip, visible, "ground_truth_statistics") for clip in (frames, changed)
    )
    assert not np.array_equal(before.prediction, after.prediction)


@each_model
def test_units_lie_where_they_belong(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = autoencoder(arguments)
    units, visible = model.encoder.num_units, draw(model)
    levels = 20 + np.arange(units, dtype=np.uint8) * (200 // units)
    frames = by_pixel(model, levels)[..., None].repeat(3, axis=3)

    def number(x: Tensor, kept: Tensor) -> Tensor:
        """Predicts the normalised value that is shown as the level of each unit."""
        values = (torch.from_numpy(levels) / 255 - 0.5) * 2 * NORMALISED_RANGE
        tokens = model.decoder_pos_embed.shape[1] // units
        hidden = values[hidden_units(kept, units)]
        return hidden[..., None, None].expand(-1, -1, tokens, model.decoder_pred.out_features)

    monkeypatch.setattr(model, "forward", number)
    expected, seen = (first_frames(model, by_pixel(model, x)) for x in (levels, visible))
    shown = show(model, frames, visible, "normalised")
    assert np.array_equal(shown.prediction[..., 0], np.where(seen, HIDDEN_GREY, expected))
    shown = show(model, frames, visible, "visible_statistics")
    assert np.array_equal(shown.visible[..., 2], np.where(seen, expected, HIDDEN_GREY))


def test_visible_statistics_are_the_average_of_visible_patches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = autoencoder(VIDEO)
    frames, visible = noise(model), np.zeros(model.encoder.num_units, dtype=bool)
    visible[:3] = True
    seen = by_pixel(model, visible)
    frames[~seen] //= 5
    flat = torch.zeros(1, len(visible) - 3, 4, model.decoder_pred.out_features)
    monkeypatch.setattr(model, "forward", lambda x, kept: flat)
    shown = show(model, frames, visible, "visible_statistics")
    seen = first_frames(model, seen)
    mean, std = np.array(MEAN), np.array(STD)
    average = ((first_frames(model, frames)[seen] / 255 - mean) / std).mean()  # over colours too
    assert np.abs(shown.prediction[~seen] / 255 - (average * std + mean)).max() < 1 / 255


# Layout.


def random_rows(num_frames: int, height: int = 224, width: int = 224) -> Reconstruction:
    rng = np.random.default_rng(0)
    shape = (num_frames, height // 16, width // 16, 3)
    rows = [
        rng.integers(0, 256, shape, dtype=np.uint8).repeat(16, 1).repeat(16, 2) for _ in range(4)
    ]
    return Reconstruction("normalised", *rows, loss=0.5)


def place(picture: np.ndarray, frame: np.ndarray) -> tuple[int, int]:
    """(y, x) at which exactly this frame lies in a picture."""
    bottom, right = frame.shape[0] - 1, frame.shape[1] - 1
    corners = picture[: len(picture) - bottom, : picture.shape[1] - right] == frame[0, 0]
    corners &= picture[bottom:, right:] == frame[-1, -1]
    for y, x in np.argwhere(corners.all(axis=-1)):
        if np.array_equal(picture[y : y + bottom + 1, x : x + right + 1], frame):
            return int(y), int(x)
    raise AssertionError("the frame is not there")


def nearest_place(picture: np.ndarray, frame: np.ndarray) -> tuple[tuple[int, int], float]:
    """(y, x) at which something most like this frame lies, and the mean squared difference."""
    least, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(picture, frame, cv2.TM_SQDIFF))
    return (y, x), least / frame.size


@pytest.mark.parametrize("num_frames", [1, 8, 11])
def test_every_frame_is_on_the_sheet_in_order(num_frames: int) -> None:
    shown = random_rows(num_frames, width=32)
    sheet = contact_sheet(shown, list(range(num_frames)), "caption")
    places = np.empty((num_frames, 4, 2), dtype=int)
    for row, (_, frames, _) in enumerate(shown.rows):
        for frame in range(num_frames):
            places[frame, row] = place(sheet, frames[frame])
    blocks = np.split(places, range(COLUMNS, num_frames, COLUMNS))
    for block in blocks:
        assert (np.diff(block[..., 0], axis=1) >= 224).all()  # rows go down
        assert (np.diff(block[..., 0], axis=0) == 0).all()
        assert (np.diff(block[..., 1], axis=0) >= 32).all()  # times go to the right
        assert (np.diff(block[..., 1], axis=1) == 0).all()
    for above, below in pairwise(blocks):
        assert below[0, 0, 0] >= above[0, -1, 0] + 224
    assert (sheet[:, -1] == 255).all()  # nothing is cut off


def test_the_mode_stands_on_the_pictures() -> None:
    shown = random_rows(2)
    for row in (shown.input, shown.visible, shown.prediction, shown.paste_back):
        row[:] = 128
    versions = [replace(shown, mode=mode) for mode in MODES]
    sheets = [contact_sheet(version, [0.0, 0.1], "caption") for version in versions]
    movies = [next(movie_frames(version, [0.0, 0.1], "caption")) for version in versions]
    for pictures in (sheets, movies):
        assert len({picture.tobytes() for picture in pictures}) == len(MODES)
        warned = [bool((picture == WARNING_COLOUR).all(-1).any()) for picture in pictures]
        assert warned == [mode == "ground_truth_statistics" for mode in MODES]
    captions = [contact_sheet(shown, [0.0, 0.1], text) for text in ("caption", "another")]
    assert not np.array_equal(*captions)
    times = [contact_sheet(shown, seconds, "caption") for seconds in ([0.0, 0.1], [0.0, 0.2])]
    assert not np.array_equal(*times)


def test_the_caption_states_the_masking() -> None:
    masking = UnitMasking((8, 7, 7), 0.9, "tube")
    text = describe(random_rows(8), masking)
    assert text.startswith("Tube masking hides 92 %: 360 of 392 mask units, 8x7x7")
    assert "loss 0.5000" in text


def test_frames_of_small_models_are_enlarged() -> None:
    model = autoencoder({**VIDEO, "input_size": (4, 32, 32)}, decoder_depth=0)
    visible = np.array([True, False])
    shown = show(model, noise(model), visible, "visible_statistics")
    sheet = contact_sheet(shown, [0.0, 0.1], "caption")
    assert place(sheet, shown.input[1].repeat(7, 0).repeat(7, 1)) > (0, 0)


# Files.


def test_png_round_trip(tmp_path: Path) -> None:
    sheet = contact_sheet(random_rows(2), [0.0, 0.1], "caption")
    path = tmp_path / "a sheet, 日本語.png"
    path.write_text("older")
    write_png(path, sheet)
    assert np.array_equal(np.asarray(Image.open(path)), sheet)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("height", "width"), [(224, 224), (208, 272)])
def test_movie_round_trip(tmp_path: Path, height: int, width: int) -> None:
    shown = random_rows(5, height, width)
    times = [0.5, 0.75, 1.0, 1.25, 1.25]  # the last frame stands for one past the end
    write_movie(tmp_path / "out.mp4", shown, times, "caption")
    with open_video(tmp_path / "out.mp4") as video:
        assert video.fps == pytest.approx(4)
        decoded = video.frames(range(len(video)))
    assert len(decoded) == 5
    for frame, picture in enumerate(decoded):
        corners = []
        for _, frames, _ in shown.rows:
            corner, difference = nearest_place(picture, frames[frame])
            assert difference < 500  # chroma at half the resolution; another frame: above 10,000
            corners.append(corner)
        (a, b), (c, d) = corners[:2], corners[2:]
        assert a[0] == b[0] < c[0] == d[0]
        assert a[1] == c[1] < b[1] == d[1]


def test_movie_of_a_moment(tmp_path: Path) -> None:
    write_movie(tmp_path / "out.mp4", random_rows(2), [0.0, 0.0], "caption")
    with open_video(tmp_path / "out.mp4") as video:
        assert len(video) == 2
