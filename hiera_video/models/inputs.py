"""What a model says about an input that it does not take."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiera_video.errors import ModelError

# Orders of axes that other libraries have.
OF_CLIPS = ("BTCHW", "BTHWC", "BCHWT", "CTHW", "TCHW", "THWC")
OF_IMAGES = ("BTCHW", "BTHWC", "BHWC", "CTHW", "CHW", "HWC")
OF_FRAMES = "hiera_video.model_transform(card) makes one of decoded frames"
HOW = {  # types of inputs, and what makes a tensor of them
    "ndarray": "torch.from_numpy(x) makes one of an array",
    "list": "torch.stack(x) makes one of a list of clips",
    "tuple": "torch.stack(x) makes one of a list of clips",
    "LoadedModel": "model, card = load_model(...) gives the model, which takes one",
}


def check_input(x: Any, in_chans: int, input_size: Sequence[int]) -> None:
    """Raises ModelError unless `x` is a floating-point tensor [B, C, T, H, W] of that size."""
    if not isinstance(x, Tensor):
        how = HOW.get(type(x).__name__, "hiera_video.open_video reads a file; " + OF_FRAMES)
        raise ModelError(f"the input is a {type(x).__name__}: expected a tensor; {how}")
    if not x.is_floating_point():
        raise ModelError(
            f"the input is {x.dtype}: expected normalised clips in floating point, which "
            "hiera_video.models.normalize.Normalize makes of uint8 [B, T, H, W, C], and "
            "hiera_video.model_transform(card) of decoded frames"
        )
    if tuple(x.shape[1:]) != (in_chans, *input_size):
        raise ModelError(_other_shape(x.shape, in_chans, input_size))
    if x.shape[0] == 0:
        raise ModelError(f"the input is {list(x.shape)}, an empty batch: give at least one clip")


def check_weight(x: Tensor, weight: Tensor) -> None:
    """Raises ModelError if `x` and the weight that it is to meet differ in device or type."""
    for what, own, other in (
        ("on", x.device, weight.device),
        ("of", x.dtype, weight.dtype),
    ):
        if own != other:
            raise ModelError(
                f"the input is {what} {own}, the weights are {what} {other}: give x.to({other}) "
                f"or convert the model, model.to({own})"
            )


def _other_shape(shape: torch.Size, in_chans: int, input_size: Sequence[int]) -> str:
    """What is wrong with a shape, and the order of axes that it seems to have."""
    sizes = dict(zip("CTHW", (in_chans, *input_size), strict=True))
    is_image = sizes["T"] == 1
    axes = "CHW" if is_image else "CTHW"
    want = ", ".join(str(sizes[axis]) for axis in axes)
    message = f"the input is {list(shape)}, this model takes [B, {want}] ({_shown('B' + axes)})"
    if not is_image and len(shape) == 4 and shape[0] != sizes["T"] and shape[1] == in_chans:
        return f"{message}: it is a batch of images, or a clip without a batch axis"
    fitting = {  # how many axes have the size that they should have
        layout: sum(shape[i] == sizes.get(axis) for i, axis in enumerate(layout))
        for layout in (OF_IMAGES if is_image else OF_CLIPS)
        if len(layout) == len(shape) and shape[layout.index("C")] == in_chans
    }
    layout = max(fitting, key=fitting.__getitem__, default="")
    is_exact = layout != "" and fitting[layout] == len(layout.replace("B", ""))
    has_channels = len(shape) == len(axes) + 1 and shape[1] == in_chans
    if not layout or (has_channels and not is_exact):
        return (
            f"{message}: resize or resample the clip, or build the model with another image_size "
            "or num_frames"
        )
    order = [layout.index(axis) for axis in "BCTHW" if axis in layout]
    turned = "x" if order == sorted(order) else f"x.permute({', '.join(map(str, order))})"
    turned += "" if "B" in layout else ".unsqueeze(0)"
    more = "" if is_exact else ", of that size"
    return f"{message}: it looks like {_shown(layout)}; give {turned}{more}"


def _shown(layout: str) -> str:
    return f"[{', '.join(layout)}]"
