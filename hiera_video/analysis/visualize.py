"""Pictures of the input and the prediction of a masked autoencoder.

`reconstruct` makes four rows of frames of a clip and its visible units; `contact_sheet` draws all
of them in one picture, and `movie_frames` one picture for each time.

The model predicts the first frame of each tubelet, with each patch normalised by its mean and
standard deviation. Its brightness and contrast are not predicted; the mode decides where they come
from, and every picture states it, as in `MODES`. Most published pictures show the true ones.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from hiera_video.analysis.sheets import (
    TEXT_COLOUR,
    Colour,
    Frames,
    Picture,
    Row,
    draw_grid,
    timed_grid,
    write_pictures,
)
from hiera_video.models.mae import MaskedAutoencoderHiera, reconstruction_losses
from hiera_video.models.masking import UnitMasking, kept_units
from hiera_video.models.normalize import Normalize
from hiera_video.settings.evaluation import Mode

NORMALISED_RANGE = 2.5  # standard deviations from mid grey to black and to white
HIDDEN_GREY = 90  # darker than mid grey, which is a flat patch in normalised units
WARNING_COLOUR: Colour = (190, 0, 0)

MODES: dict[Mode, tuple[str, str]] = {  # label of predictions, explanation
    "normalised": (
        "prediction, normalised",
        "Mode normalised: every patch minus its mean, divided by its standard deviation; mid grey "
        f"is 0, black -{NORMALISED_RANGE}, white +{NORMALISED_RANGE}. The prediction contains "
        "nothing of hidden patches.",
    ),
    "visible_statistics": (
        "prediction, visible statistics",
        "Mode visible_statistics: all predicted patches have the same brightness and contrast, the "
        "average of the visible patches. The prediction contains nothing of hidden patches.",
    ),
    "ground_truth_statistics": (
        "prediction + TRUE statistics",
        "Mode ground_truth_statistics: each predicted patch has the TRUE brightness and contrast "
        "of the hidden patch, which the model has not predicted: it looks better than it is.",
    ),
}


@dataclass(frozen=True)
class Reconstruction:
    """Four rows of frames, with one frame for each time step of the predicted tokens."""

    mode: Mode
    input: Frames
    visible: Frames  # the visible units, on grey
    prediction: Frames  # the predicted units, on grey
    paste_back: Frames  # the predicted and the visible units
    loss: float  # mean squared error over the hidden units, in normalised units in every mode

    @property
    def rows(self) -> list[tuple[str, Frames, Colour]]:
        """Label, frames and text colour of each row."""
        input_label = "input, normalised" if self.mode == "normalised" else "input"
        return [
            (input_label, self.input, TEXT_COLOUR),
            ("visible units", self.visible, TEXT_COLOUR),
            (MODES[self.mode][0], self.prediction, self.prediction_ink),
            ("prediction + visible units", self.paste_back, self.prediction_ink),
        ]

    @property
    def prediction_ink(self) -> Colour:
        """The colour of texts about predictions."""
        return WARNING_COLOUR if self.mode == "ground_truth_statistics" else TEXT_COLOUR


@torch.inference_mode()
def reconstruct(
    model: MaskedAutoencoderHiera,
    clip: Float[Tensor, "1 C T H W"],
    visible: Bool[Tensor, "1 M"],
    *,
    normalize: Normalize,
    mode: Mode = "normalised",
) -> Reconstruction:
    """Predicts one clip from its visible units.

    Args:
        model: in evaluation mode, predicting pixels, with three colour channels.
        clip: normalised, on the model's device.
        visible: the visible units, on the CPU.
        normalize: the normalisation of the clip, on the model's device.
        mode: source of the brightness and contrast of predicted patches.
    """
    kept = kept_units(visible).to(clip.device)
    predicted = model(clip, kept).float()  # [1, H, u, P]
    loss = float(reconstruction_losses(predicted, model.targets(clip, kept)))
    predicted, is_visible = predicted[0], visible[0].to(clip.device)

    # Orders of pixels in frames and in the model's units, see `MaskedAutoencoderHiera.targets`.
    is_image = model.encoder.patch_stride[0] == 1
    frames = "(i t) (j h p) (k w q) c"
    units = f"(i j k) (t h w) {'(c p q)' if is_image else '(p q c)'}"
    sizes = dict(zip("ijk", model.encoder.units_shape, strict=True))
    sizes |= dict(zip("thw", model.unit_shape, strict=True))
    sizes |= dict(zip("pq", model.token_pixels[1:], strict=True))

    first = clip[:, :, :: model.token_pixels[0]].float()  # of each tubelet
    first = rearrange(first, "1 c t h w -> t h w c")
    patches = rearrange(first, f"{frames} -> {units}", **sizes)  # [M, u, P]
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
    to_frames = partial(rearrange, pattern=f"{units} -> {frames}", **sizes)
    truth, guess = (_to_picture(to_frames(x), mode, normalize) for x in (patches, everywhere))
    seen = to_frames(is_visible[:, None, None].expand_as(patches)).cpu().numpy()
    grey = np.uint8(HIDDEN_GREY)
    return Reconstruction(
        mode,
        input=truth,
        visible=np.where(seen, truth, grey),
        prediction=np.where(seen, grey, guess),
        paste_back=np.where(seen, truth, guess),
        loss=loss,
    )


def _to_picture(frames: Float[Tensor, "t H W 3"], mode: Mode, normalize: Normalize) -> Frames:
    """Converts values to uint8 colours, clipped to black and white."""
    if mode == "normalised":
        colours = 0.5 + frames / (2 * NORMALISED_RANGE)
    else:
        colours = frames * normalize.std + normalize.mean
    return (255 * colours).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


# Layout.


def describe(reconstruction: Reconstruction, masking: UnitMasking) -> str:
    """A caption that states the masking and the loss."""
    hidden, (t, h, w) = masking.num_units - masking.num_visible, masking.units
    return (
        f"{masking.kind.capitalize()} masking hides {100 * hidden / masking.num_units:.0f} %: "
        f"{hidden} of {masking.num_units} mask units, {t}x{h}x{w} along time, height and "
        f"width. Reconstruction loss {reconstruction.loss:.4f}."
    )


def contact_sheet(
    reconstruction: Reconstruction, times_sec: Sequence[float], caption: str
) -> Picture:
    """All frames in one picture: the four rows of a reconstruction, with times above them.

    Args:
        times_sec: presentation time of each of the t frames.
        caption: from `describe`; the explanation of the mode is added.
    """
    return draw_grid(timed_grid(reconstruction.rows, times_sec), _notes(reconstruction, caption))


def movie_frames(
    reconstruction: Reconstruction, times_sec: Sequence[float], caption: str
) -> Iterator[Picture]:
    """One picture for each time, with the frames of the four rows as two by two.

    For the arguments see `contact_sheet`.
    """
    labels, videos, inks = zip(*reconstruction.rows, strict=True)
    for i, time_sec in enumerate(times_sec):
        pictures = [frames[i] for frames in videos]
        grid: list[Row] = [([*labels[k : k + 2]], pictures[k : k + 2], inks[k]) for k in (0, 2)]
        grid.append(([f"{time_sec:.2f} s"], [], TEXT_COLOUR))
        yield draw_grid(grid, _notes(reconstruction, caption))


def _notes(reconstruction: Reconstruction, caption: str) -> list[tuple[str, Colour]]:
    explanation = MODES[reconstruction.mode][1]
    return [(caption, TEXT_COLOUR), (explanation, reconstruction.prediction_ink)]


def write_movie(
    path: str | os.PathLike[str],
    reconstruction: Reconstruction,
    times_sec: Sequence[float],
    caption: str,
) -> None:
    """Writes the pictures of `movie_frames` as mp4, at the speed of the video."""
    write_pictures(path, movie_frames(reconstruction, times_sec, caption), times_sec)
