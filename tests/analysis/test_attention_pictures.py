"""Maps lie on the pixels of their tokens, and colours follow their values."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from hiera_video.analysis.attention_pictures import (
    DARKER,
    OPACITY,
    PANELS,
    enlarged,
    overlaid,
    overlay_pictures,
    panels,
)
from hiera_video.analysis.sheets import TEXT_COLOUR

NOTES = [("a note", TEXT_COLOUR)]


def noise(num_frames: int = 8, height: int = 224, width: int = 240) -> np.ndarray:
    shape = (num_frames, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def place(sheet: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """(top, left) of a picture in a sheet that contains it to the bit."""
    wanted = (sheet.astype(np.float32), picture.astype(np.float32))
    score = cv2.matchTemplate(*wanted, cv2.TM_SQDIFF)
    top, left = np.unravel_index(score.argmin(), score.shape)
    assert np.array_equal(sheet[top : top + len(picture), left:][:, : picture.shape[1]], picture)
    return int(top), int(left)


@pytest.mark.parametrize("token", [(0, 0, 0), (1, 0, 2), (3, 1, 1)])
def test_a_token_lies_on_its_pixels(token: tuple[int, int, int]) -> None:
    values = torch.zeros(4, 2, 3)  # of 8 x 32 x 48 pixels: a token has 2 x 16 x 16
    values[token] = 1
    pixels = enlarged(values, (8, 32, 48))
    assert pixels.shape == (8, 32, 48)
    of_tokens = pixels.reshape(4, 2, 2, 16, 3, 16).mean(axis=(1, 3, 5))
    assert np.unravel_index(of_tokens.argmax(), of_tokens.shape) == token
    assert np.sort(of_tokens, axis=None)[-2] < 0.5 * of_tokens.max()
    assert np.allclose(enlarged(torch.full((4, 2, 3), 0.3), (8, 32, 48)), 0.3)
    assert enlarged(torch.ones(1, 7, 7), (1, 224, 224)).shape == (1, 224, 224)


def test_colours_follow_the_values_of_the_whole_clip() -> None:
    frames = noise(3, 32, 32)
    values = np.full((3, 32, 32), 0.2, np.float32)
    values[1, 5, 6], values[2, 9, 9] = 1.0, 0.6
    shown = overlaid(frames, values)
    grey = frames.astype(float) @ (0.299, 0.587, 0.114)
    plain = values == np.float32(0.2)
    assert np.abs(shown[plain] - DARKER * grey[plain][:, None]).max() <= 1.1
    turbo = cv2.applyColorMap(np.array([[255, 128]], np.uint8), cv2.COLORMAP_TURBO)[0, :, ::-1]
    assert turbo[0, 0] > turbo[0, 2]  # the highest value is red
    for (t, y, x), colour, level in (((1, 5, 6), turbo[0], 1.0), ((2, 9, 9), turbo[1], 0.5)):
        expected = OPACITY * level * colour + (1 - OPACITY * level) * DARKER * grey[t, y, x]
        assert np.abs(shown[t, y, x] - expected).max() <= 1.6
    assert np.array_equal(overlaid(frames, 3 * values - 1)[1], shown[1])


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_map_of_one_value_has_no_colours(value: float) -> None:
    shown = overlaid(noise(2, 32, 32), np.full((2, 32, 32), value, np.float32))
    assert np.ptp(shown, axis=-1).max() == 0


@pytest.mark.parametrize("num_frames", [1, 3, 16])
def test_panels_have_the_overlay_below_the_frame(num_frames: int) -> None:
    frames = noise(num_frames)
    overlays = 255 - frames
    times = [0.1 * i for i in range(num_frames)]
    sheet = panels(frames, overlays, times, "a label", NOTES)
    number = min(num_frames, PANELS)
    lefts = []
    for i in {0, num_frames - 1}:  # the ends are always shown
        (top, left), (below, same) = place(sheet, frames[i]), place(sheet, overlays[i])
        assert below > top + 224
        assert left == same
        lefts.append(left)
    assert sheet.shape[1] >= number * 240
    assert num_frames == 1 or lefts[0] != lefts[1]


def test_pictures_show_each_frame_beside_its_overlay() -> None:
    frames = noise(2)
    pictures = [*overlay_pictures(frames, 255 - frames, [0.0, 0.5], "a label", NOTES)]
    assert len(pictures) == 2
    for frame, picture in zip(frames, pictures, strict=True):
        (top, left), (same, right) = place(picture, frame), place(picture, 255 - frame)
        assert top == same
        assert right >= left + 240
        assert not picture.shape[0] % 2
        assert not picture.shape[1] % 2
