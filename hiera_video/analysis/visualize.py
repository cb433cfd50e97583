"""What a masked autoencoder sees and predicts, as pictures.

A clip and its visible units -> `reconstruct` -> four rows of frames -> `contact_sheet` (one
picture) and `movie_frames` (the rows beside one another, over time).

The model predicts the first frame of each tubelet, every patch of it less its mean, over its
standard deviation. What the patch's brightness and contrast were is not predicted, so that a
picture needs them from somewhere; the mode says from where, and every picture states its mode:

  "normalised"               from nowhere: every patch is shown in its own normalised units, those
                             of the input too. Nothing hidden reaches the prediction.
  "visible_statistics"       the average over the visible patches of the clip, the same for every
                             predicted patch. Nothing hidden reaches the prediction.
  "ground_truth_statistics"  of the patch that was hidden: what most published pictures show. It
                             flatters the model, which has predicted neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hiera_video.files import replacing
from hiera_video.models.mae import MaskedAutoencoderHiera, reconstruction_losses
from hiera_video.models.masking import UnitMasking, kept_units
from hiera_video.models.normalize import Normalize
from hiera_video.video.writer import write_video

Mode = Literal["normalised", "visible_statistics", "ground_truth_statistics"]
Frames = UInt8[np.ndarray, "t H W 3"]
Picture = UInt8[np.ndarray, "H W 3"]

NORMALISED_RANGE = 2.5  # standard deviations from mid grey to black and to white
HIDDEN_GREY = 90  # darker than mid grey, which is a flat patch in normalised units
TILE_PX = 224  # smaller frames are enlarged to about this height
COLUMNS = 8  # frames side by side in a contact sheet; more go on below
GAP_PX = 6
INK, WARNING_INK, PAPER = (20, 20, 20), (190, 0, 0), (255, 255, 255)

EXPLANATIONS: dict[Mode, str] = {
    "normalised": (
        "Mode normalised: every patch less its mean, over its standard deviation; mid grey is 0, "
        f"black -{NORMALISED_RANGE}, white +{NORMALISED_RANGE}. Nothing hidden reaches the "
        "prediction."
    ),
    "visible_statistics": (
        "Mode visible_statistics: all predicted patches are given one brightness and contrast, the "
        "average of the visible patches. Nothing hidden reaches the prediction."
    ),
    "ground_truth_statistics": (
        "Mode ground_truth_statistics: each predicted patch is GIVEN THE TRUE brightness and "
        "contrast of what was hidden. This flatters the model, which predicts neither."
    ),
}
PREDICTION_LABELS: dict[Mode, str] = {
    "normalised": "prediction,\nnormalised",
    "visible_statistics": "prediction,\nvisible\nstatistics",
    "ground_truth_statistics": "prediction\n+ TRUE\nstatistics",
}


@dataclass(frozen=True)
class Reconstruction:
    """Four rows of frames, one for each step in time of the predicted tokens."""

    mode: Mode
    input: Frames
    visible: Frames  # of the input, on grey
    prediction: Frames  # of the hidden units, on grey
    paste_back: Frames  # the prediction where units are hidden, the input where they are visible
    loss: float  # mean squared error over the hidden units, in normalised units whatever the mode

    @property
    def rows(self) -> list[tuple[str, Frames]]:
        """The label of each row, and its frames."""
        return [
            ("input,\nnormalised" if self.mode == "normalised" else "input", self.input),
            ("visible\nunits", self.visible),
            (PREDICTION_LABELS[self.mode], self.prediction),
            ("prediction\n+ visible\nunits", self.paste_back),
        ]


def require_pixels(model: MaskedAutoencoderHiera) -> None:
    """Raises ValueError for a model whose predictions are no pixels."""
    if model.target != "pixels":
        raise ValueError(
            f"the model predicts target={model.target!r}: only target='pixels' can be shown as a "
            "picture"
        )


@torch.inference_mode()
def reconstruct(
    model: MaskedAutoencoderHiera,
    clip: Float[Tensor, "1 C T H W"],
    visible: Bool[Tensor, "1 M"],
    *,
    normalize: Normalize,
    mode: Mode = "normalised",
) -> Reconstruction:
    """What the model predicts of one clip from its visible units, as rows of pictures.

    Args:
        model: in evaluation mode, predicting pixels, with three colour channels.
        clip: normalised, on the model's device.
        visible: the units to see, on the CPU.
        normalize: what normalised the clip, on the model's device.
        mode: where the brightness and contrast of predicted patches come from, see above.

    Raises:
        ValueError: another mode, or a model whose predictions are no pixels.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}: allowed are {', '.join(get_args(Mode))}")
    require_pixels(model)
    kept = kept_units(visible).to(clip.device)
    predicted = model(clip, kept).float()  # [1, H, u, P]
    loss = float(reconstruction_losses(predicted, model.targets(clip, kept)))
    predicted, is_visible = predicted[0], visible[0].to(clip.device)

    first = clip[:, :, :: model.token_pixels[0]].float()  # of each tubelet
    patches = _to_units(rearrange(first, "1 c t h w -> t h w c"), model)  # [M, u, P]
    variance, centre = torch.var_mean(patches, dim=-1, keepdim=True)
    spread = (variance + 1e-6).sqrt()  # as in the model's targets
    if mode == "normalised":
        patches = (patches - centre) / spread
    elif mode == "visible_statistics":
        predicted = predicted * spread[is_visible].mean() + centre[is_visible].mean()
    else:
        predicted = predicted * spread[~is_visible] + centre[~is_visible]

    everywhere = torch.zeros_like(patches)
    everywhere[~is_visible] = predicted
    truth, guess = (
        _to_picture(_to_frames(x, model), mode, normalize) for x in (patches, everywhere)
    )
    seen = _to_frames(is_visible[:, None, None].expand_as(patches), model).cpu().numpy()
    grey = np.uint8(HIDDEN_GREY)
    return Reconstruction(
        mode,
        input=truth,
        visible=np.where(seen, truth, grey),
        prediction=np.where(seen, grey, guess),
        paste_back=np.where(seen, truth, guess),
        loss=loss,
    )


def _to_units(
    frames: Float[Tensor, "t H W C"], model: MaskedAutoencoderHiera
) -> Float[Tensor, "M u P"]:
    """Pixels by mask unit and token, ordered as the model predicts them."""
    pixels, units, sizes = _orders(model)
    return rearrange(frames, f"{pixels} -> {units}", **sizes)


def _to_frames(values: Tensor, model: MaskedAutoencoderHiera) -> Tensor:
    """The inverse of `_to_units`, [M, u, P] -> [t, H, W, C]."""
    pixels, units, sizes = _orders(model)
    return rearrange(values, f"{units} -> {pixels}", **sizes)


def _orders(model: MaskedAutoencoderHiera) -> tuple[str, str, dict[str, int]]:
    """einops patterns of frames and of units, see `MaskedAutoencoderHiera.targets`, and sizes."""
    is_image = model.encoder.patch_stride[0] == 1
    sizes = dict(zip("ijk", model.encoder.units_shape, strict=True))
    sizes |= dict(zip("thw", model.unit_shape, strict=True))
    sizes |= dict(zip("pq", model.token_pixels[1:], strict=True))
    values = "(c p q)" if is_image else "(p q c)"
    return "(i t) (j h p) (k w q) c", f"(i j k) (t h w) {values}", sizes


def _to_picture(frames: Float[Tensor, "t H W 3"], mode: Mode, normalize: Normalize) -> Frames:
    """Values as uint8 colours; black and white end what lies beyond."""
    if mode == "normalised":
        colours = 0.5 + frames / (2 * NORMALISED_RANGE)
    else:
        colours = frames * normalize.std + normalize.mean
    return (255 * colours).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


# Layout.


def describe(reconstruction: Reconstruction, masking: UnitMasking) -> str:
    """The sentence on masking and loss that stands below a picture."""
    hidden, (t, h, w) = masking.num_units - masking.num_visible, masking.units
    return (
        f"{masking.kind.capitalize()} masking hides {100 * hidden / masking.num_units:.0f} %: "
        f"{hidden} of {masking.num_units} mask units, {t}x{h}x{w} along time, height and "
        f"width. Reconstruction loss {reconstruction.loss:.4f}."
    )


def contact_sheet(
    reconstruction: Reconstruction, times_sec: Sequence[float], caption: str
) -> Picture:
    """The four rows below one another, labelled at the left, times along the top.

    Args:
        times_sec: presentation time of each of the t frames.
        caption: from `describe`; the explanation of the mode follows it.
    """
    rows = [(label, _enlarged(frames)) for label, frames in reconstruction.rows]
    times = [f"{time_sec:.2f} s" for time_sec in times_sec]
    num_frames, tile_height, tile_width = rows[0][1].shape[:3]
    font, line_px = _font(tile_height)
    label_px = max(_text_px(label, font) for label, _ in rows) + 3 * GAP_PX
    column_px = max(tile_width, *(_text_px(time, font) for time in times)) + GAP_PX
    columns = min(num_frames, COLUMNS)
    blocks = range(0, num_frames, columns)
    block_px = line_px + len(rows) * (tile_height + GAP_PX) + GAP_PX
    width = max(label_px + columns * column_px, 2 * tile_height)  # space for words, at least
    lines = _caption_lines(reconstruction.mode, caption, font, width - 3 * GAP_PX)
    height = GAP_PX + len(blocks) * block_px + len(lines) * line_px + GAP_PX

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for block, start in enumerate(blocks):
        top = GAP_PX + block * block_px
        shown = range(start, min(start + columns, num_frames))
        for column, frame in enumerate(shown):
            x = label_px + column * column_px
            draw.text((x + tile_width // 2, top), times[frame], INK, font, anchor="ma")
        for row, (label, frames) in enumerate(rows):
            y = top + line_px + row * (tile_height + GAP_PX)
            ink = _ink(reconstruction.mode) if row >= 2 else INK
            draw.multiline_text((2 * GAP_PX, y + tile_height // 2), label, ink, font, anchor="lm")
            for column, frame in enumerate(shown):
                sheet.paste(Image.fromarray(frames[frame]), (label_px + column * column_px, y))
    _write_lines(draw, lines, 2 * GAP_PX, height - GAP_PX - len(lines) * line_px, font, line_px)
    return np.asarray(sheet)


def movie_frames(
    reconstruction: Reconstruction, times_sec: Sequence[float], caption: str
) -> Iterator[Picture]:
    """The four rows as two by two, one picture for each time; sides are even, as video needs.

    Args as those of `contact_sheet`.
    """
    rows = [(" ".join(label.split()), _enlarged(frames)) for label, frames in reconstruction.rows]
    tile_height, tile_width = rows[0][1].shape[1:3]
    font, line_px = _font(tile_height)
    width = GAP_PX + 2 * (max(tile_width, *(_text_px(label, font) for label, _ in rows)) + GAP_PX)
    width += width % 2
    cell_px = line_px + tile_height + GAP_PX
    lines = _caption_lines(reconstruction.mode, caption, font, width - 2 * GAP_PX)
    height = GAP_PX + 2 * cell_px + (1 + len(lines)) * line_px + GAP_PX
    height += height % 2

    ground = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(ground)
    corners = [
        (GAP_PX + (row % 2) * (width // 2 - GAP_PX // 2), GAP_PX + row // 2 * cell_px)
        for row in range(len(rows))
    ]
    for row, ((label, _), corner) in enumerate(zip(rows, corners, strict=True)):
        draw.text(corner, label, _ink(reconstruction.mode) if row >= 2 else INK, font)
    below = GAP_PX + 2 * cell_px
    _write_lines(draw, lines, GAP_PX, below + line_px, font, line_px)
    for frame, time_sec in enumerate(times_sec):
        picture = ground.copy()
        for (_, frames), (x, y) in zip(rows, corners, strict=True):
            picture.paste(Image.fromarray(frames[frame]), (x, y + line_px))
        ImageDraw.Draw(picture).text((GAP_PX, below), f"{time_sec:.2f} s", INK, font)
        yield np.asarray(picture)


def _enlarged(frames: Frames) -> Frames:
    """Pixels repeated, so that frames of small models are not lost beside their labels."""
    factor = max(1, round(TILE_PX / frames.shape[1]))
    return repeat(frames, "t h w c -> t (h p) (w q) c", p=factor, q=factor)


def _font(tile_height: int) -> tuple[ImageFont.FreeTypeFont, int]:
    """Pillow's own font, and the height of a line of it in pixels."""
    size = max(16, tile_height // 12)
    return ImageFont.load_default(size=size), round(1.4 * size)


def _text_px(text: str, font: ImageFont.FreeTypeFont) -> int:
    return max(round(font.getlength(line)) for line in text.split("\n"))


def _ink(mode: Mode) -> tuple[int, int, int]:
    """The colour of what is said about predictions."""
    return WARNING_INK if mode == "ground_truth_statistics" else INK


def _caption_lines(
    mode: Mode, caption: str, font: ImageFont.FreeTypeFont, width: int
) -> list[tuple[str, tuple[int, int, int]]]:
    """Caption and explanation, broken into lines of at most `width` pixels, with their colours."""
    lines = []
    for text, ink in ((caption, INK), (EXPLANATIONS[mode], _ink(mode))):
        line = ""
        for word in text.split():
            if line and font.getlength(f"{line} {word}") > width:
                lines.append((line, ink))
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append((line, ink))
    return lines


def _write_lines(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[tuple[str, tuple[int, int, int]]],
    x: int,
    y: int,
    font: ImageFont.FreeTypeFont,
    line_px: int,
) -> None:
    for number, (line, ink) in enumerate(lines):
        draw.text((x, y + number * line_px), line, ink, font)


# Files.


def write_png(path: str | os.PathLike[str], picture: Picture) -> None:
    """The file appears under its name when it is complete; an older one is replaced then."""
    with replacing(path) as part:
        Image.fromarray(picture).save(part, format="png")


def write_movie(
    path: str | os.PathLike[str],
    reconstruction: Reconstruction,
    times_sec: Sequence[float],
    caption: str,
) -> None:
    """The pictures of `movie_frames` as an mp4, as fast as the video itself."""
    frames = movie_frames(reconstruction, times_sec, caption)
    write_video(path, frames, _frame_rate(times_sec), options={"crf": "18"})


def _frame_rate(times_sec: Sequence[float]) -> Fraction:
    """Frames per second; one, where all show the same moment."""
    steps = np.diff(times_sec)
    steps = steps[steps > 0]  # none at the end of a short video, whose last frame is repeated
    return Fraction(1 / float(np.median(steps))) if steps.size else Fraction(1)
