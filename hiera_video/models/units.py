"""Mask units: groups of tokens that are kept or hidden as one, and attend to one another early on.

Inside the models tokens lie *unrolled*, as `[B, M, U, D]`: M mask units in space-time order, U
tokens in each, ordered such that the tokens that a pooling step merges lie `U / stride` apart.
Pooling is then a maximum over one axis, and hiding a unit drops a row.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from hiera_video.errors import ModelError

# einops keeps a table of the types that it has seen, which torch.compile guards: types that are new
# while a model is traced would make it compile the model again at the second call.
for seen in (torch.empty(1, device="cpu"), nn.Parameter(torch.empty(1, device="cpu"))):
    rearrange(seen, "n -> n")

Size3 = tuple[int, int, int]  # along (time, height, width)


def unroll(
    x: Shaped[Tensor, "B D t h w"], mask_unit: Size3, pools: Sequence[Size3]
) -> Shaped[Tensor, "B M U D"]:
    """Groups tokens by mask unit, and inside a unit by the pooling step that merges them.

    `pools` are the strides of the pooling steps, first step first. Units come in space-time order.
    """
    grid, unit, steps = _axes(pools)
    pooled = divided(mask_unit, [math.prod(axis) for axis in zip(*pools, strict=True)] or (1, 1, 1))
    sizes = dict(zip("thw", pooled, strict=True)) | steps
    return rearrange(x, f"b d {grid} -> b (T H W) ({unit}) d", **sizes)


def reroll(
    x: Float[Tensor, "B M U D"], units: Size3, pooled: Size3, pools: Sequence[Size3]
) -> Float[Tensor, "B t h w D"]:
    """The inverse of `unroll`, for a grid of `units` mask units.

    `pools` are the steps that still separate tokens of a unit, first step first; `pooled` are the
    tokens that the last of them will leave of a unit.
    """
    grid, unit, steps = _axes(pools)
    sizes = dict(zip("THWthw", units + pooled, strict=True)) | steps
    return rearrange(x, f"b (T H W) ({unit}) d -> b {grid} d", **sizes)


def _axes(pools: Sequence[Size3]) -> tuple[str, str, dict[str, int]]:
    """Patterns of einops for the axes of a grid of tokens and for those of a unit, and sizes.

    A step merges neighbours, so that it is the innermost of what is left along an axis, and it
    comes first in a unit. One pattern for all steps is one copy.
    """
    steps: dict[str, int] = {}
    axes, unit = ["T t", "H h", "W w"], "t h w"
    for number in reversed(range(len(pools))):
        names = [f"{letter}{number}" for letter in "ijk"]
        steps |= dict(zip(names, pools[number], strict=True))
        axes = [f"{axis} {name}" for axis, name in zip(axes, names, strict=True)]
        unit = f"{' '.join(names)} {unit}"
    return " ".join(f"({axis})" for axis in axes), unit, steps


def pool_tokens(x: Tensor, size: int) -> Tensor:
    """Maximum over the tokens that a pooling step merges: [B, M, U, ...] -> [B, M, U/size, ...]."""
    if size == 1:
        return x
    x = x.unflatten(2, (size, -1))
    # Equal values. amax is 11 times faster forward on a CPU, but its backward, which shares the
    # gradient between ties, is slower than that of max, which sends it to one of them.
    return x.max(dim=2).values if torch.is_grad_enabled() else x.amax(dim=2)


def unravel(index: Int[Tensor, "*any"], shape: Size3) -> tuple[Tensor, Tensor, Tensor]:
    """Places along three axes of positions in the flattened `shape`."""
    _, h, w = shape
    return index // (h * w), index // w % h, index % w


def size3(values: Iterable[int]) -> Size3:
    t, h, w = values
    return int(t), int(h), int(w)


def times(size: Iterable[int], by: Iterable[int]) -> Size3:
    """`size` times `by` along each axis."""
    return size3(n * m for n, m in zip(size, by, strict=True))


def divided(size: Iterable[int], by: Iterable[int]) -> Size3:
    """`size` over `by` along each axis, rounded down."""
    return size3(n // d for n, d in zip(size, by, strict=True))


def check_sizes(
    input_size: Size3, patch_stride: Size3, mask_unit: Size3, q_stride: Size3, q_pool: int
) -> None:
    """Raises ModelError, with the nearest sizes that do, where these do not fit together."""
    pooled = size3(s**q_pool for s in q_stride)
    if not _fits(mask_unit, pooled):
        raise ModelError(
            f"mask_unit is {tuple(mask_unit)}: with q_pool={q_pool} and q_stride={tuple(q_stride)} "
            f"it must be a multiple of {pooled}, for example {_nearest(mask_unit, pooled)}"
        )
    needed = times(patch_stride, mask_unit)
    if _fits(input_size, needed):
        return
    near = _nearest(input_size, needed)
    advice = f"the nearest that works is {near}: num_frames={near[0]} image_size={[*near[1:]]}"
    if _fits(input_size, patch_stride):
        tokens = divided(input_size, patch_stride)
        units = [_divisor(*axis) for axis in zip(tokens, pooled, mask_unit, strict=True)]
        if all(units):
            advice += f", or for its {tokens} tokens mask_unit={size3(units)}"
    raise ModelError(
        f"input_size is {tuple(input_size)} (frames, height, width): it must be a multiple of "
        f"{needed} (patch_stride x mask_unit) along each; {advice}"
    )


def check_windows(units: Size3, window_units: Size3) -> None:
    """Raises ModelError unless a grid of `units` mask units divides into windows of such."""
    if not _fits(units, window_units):
        near = [_divisor(n, 1, w) for n, w in zip(units, window_units, strict=True)]
        raise ModelError(
            f"window_units is {tuple(window_units)}: the input has {units} mask units along (time, "
            f"height, width), which do not divide by it; for example {size3(near)}"
        )


def check_patches(input_size: Size3, kernel: Size3, stride: Size3, padding: Size3) -> None:
    """Raises ModelError unless the patches of a clip are as many as its size over their stride."""
    axes = zip(input_size, kernel, stride, padding, strict=True)
    found = size3((n + 2 * p - k) // s + 1 for n, k, s, p in axes)
    if found != (needed := divided(input_size, stride)):
        raise ModelError(
            f"patch_padding is {tuple(padding)}: with patch_kernel={tuple(kernel)} and "
            f"patch_stride={tuple(stride)} there are {found} patches, expected {needed}"
        )


def _fits(values: Size3, multiples: Size3) -> bool:
    return all(v > 0 and v % m == 0 for v, m in zip(values, multiples, strict=True))


def _divisor(number: int, multiple_of: int, near: int) -> int:
    """The divisor of `number` that is a multiple of `multiple_of` and nearest to `near`; or 0."""
    found = [n for n in range(multiple_of, number + 1, multiple_of) if number % n == 0]
    return min(found, key=lambda n: abs(n - near), default=0)


def _nearest(values: Size3, multiples: Size3) -> Size3:
    return size3(max(1, round(v / m)) * m for v, m in zip(values, multiples, strict=True))
