"""Pictures of the maps of `hiera_video.analysis.attention`, on the frames that a model saw."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hiera_video.analysis.sheets import (
    TEXT_COLOUR,
    Colour,
    Frames,
    Picture,
    Row,
    draw_grid,
    timed_grid,
)

PANELS = 8  # at most, in the sheet of a clip
OPACITY = 0.8  # of the colour of the highest value
DARKER = 0.6  # of the grey frames, on which bright colours are seen

Notes = Sequence[tuple[str, Colour]]


def enlarged(map: Float[Tensor, "t h w"], size: tuple[int, int, int]) -> Float[np.ndarray, "T H W"]:
    """The map at every pixel of a clip of `size` (frames, height, width), float32.

    Linear between the centres of tokens, in time too.
    """
    values = F.interpolate(
        map[None, None].float().cpu(), size=size, mode="trilinear", align_corners=False
    )
    return values[0, 0].numpy()


def overlaid(frames: Frames, values: Float[np.ndarray, "T H W"]) -> Frames:
    """The frames in dark grey, tinted by the values of a map, from its lowest to its highest.

    Colours are OpenCV's turbo, blue to red, and more opaque the higher the value. A map of one
    value leaves them grey.
    """
    lowest, highest = float(values.min()), float(values.max())
    level = (values - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(values)
    overlays = []
    for frame, of_frame in zip(frames, level, strict=True):
        grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        colours = cv2.applyColorMap((255 * of_frame).round().astype(np.uint8), cv2.COLORMAP_TURBO)
        opacity = OPACITY * of_frame[..., None]
        mixed = (1 - opacity) * DARKER * grey + opacity * colours[..., ::-1]
        overlays.append(mixed.round().astype(np.uint8))
    return np.stack(overlays)


def panels(
    frames: Frames, overlays: Frames, times_sec: Sequence[float], label: str, notes: Notes
) -> Picture:
    """Some frames of a clip, evenly spread, and below each its overlay.

    Args:
        times_sec: presentation time of each of the T frames.
        label: of the overlays.
        notes: texts below, with their colours.
    """
    number = min(PANELS, len(frames))
    shown = np.linspace(0, len(frames) - 1, number).round().astype(int)
    videos = [("input", frames[shown], TEXT_COLOUR), (label, overlays[shown], TEXT_COLOUR)]
    return draw_grid(timed_grid(videos, [times_sec[i] for i in shown]), notes)


def overlay_pictures(
    frames: Frames, overlays: Frames, times_sec: Sequence[float], label: str, notes: Notes
) -> Iterator[Picture]:
    """For each frame of a clip one picture of it beside its overlay; arguments as of `panels`."""
    for frame, overlay, time_sec in zip(frames, overlays, times_sec, strict=True):
        grid: list[Row] = [
            (["input", label], [frame, overlay], TEXT_COLOUR),
            ([f"{time_sec:.2f} s"], [], TEXT_COLOUR),
        ]
        yield draw_grid(grid, notes)
