"""The masked autoencoder: what it sees, how it decodes, and what it should predict."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hiera_video.models.blocks import HieraBlock
from hiera_video.models.hiera import Hiera, Size3, reroll, unroll
from hiera_video.models.mae import (
    MaskedAutoencoderHiera,
    fuse_stage,
    histograms_of_gradients,
    reconstruction_losses,
)
from hiera_video.models.masking import UnitMasking, kept_units

ENCODER: dict[str, Any] = {
    "input_size": (8, 32, 48),
    "num_classes": 0,
    "embed_dim": 8,
    "stages": (1, 1, 1),
    "mask_unit_attn": (True, True, False),
    "q_pool": 2,
    "mask_unit": (1, 4, 4),
}
DECODER: dict[str, Any] = {"decoder_heads": 2, "decoder_dim": 16, "decoder_depth": 2}
IMAGE: dict[str, Any] = {
    "input_size": (1, 32, 48),
    "patch_kernel": (1, 7, 7),
    "patch_stride": (1, 4, 4),
    "patch_padding": (0, 3, 3),
    "sep_pos_embed": False,
}


def of_frames(x: torch.Tensor) -> torch.Tensor:
    """Histograms of whole frames: [B, C, T, H, W] to [B, C * 9, T, H / 8, W / 8]."""
    frames = F.pad(rearrange(x, "b c t h w -> (b t) c h w"), [1] * 4, mode="reflect")
    sizes = {"b": x.shape[0], "c": x.shape[1], "i": x.shape[3] // 8, "j": x.shape[4] // 8}
    pattern = "(b t) (c n i j) -> b (c n) t i j"
    return rearrange(histograms_of_gradients(frames), pattern, **sizes)


UNITS: list[dict[str, Any]] = [  # of mask units with temporal extent, and poolings of them
    {"mask_unit": (2, 4, 4)},
    {"mask_unit": (4, 8, 4)},
    {"mask_unit": (4, 8, 8), "input_size": (8, 32, 64)},
    {"mask_unit": (4, 4, 4), "q_stride": (2, 2, 2), "input_size": (16, 32, 32)},
    {"mask_unit": (4, 8, 8), "q_stride": (2, 2, 2), "input_size": (16, 32, 64)},
    {"mask_unit": (4, 2, 6), "q_stride": (2, 1, 3), "q_pool": 1},
]


M = TypeVar("M", bound=nn.Module)


def randomised(model: M) -> M:
    """Far from the tiny initial values, so that all parts count."""
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3 if p.dim() == 1 else p[0].numel() ** -0.5)
    return model.eval()


def small(target: str = "pixels", **arguments: Any) -> MaskedAutoencoderHiera:
    encoder = Hiera(**{**ENCODER, **arguments})
    return randomised(MaskedAutoencoderHiera(encoder, **DECODER, target=target))


def clip(encoder: Hiera, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, encoder.in_chans, *encoder.input_size, dtype=dtype)


def some_visible(encoder: Hiera, batch: int = 2, num_kept: int | None = None) -> Tensor:
    """visible [B, M]: about a third, other units in each clip."""
    torch.manual_seed(2)
    order = torch.rand(batch, encoder.num_units).argsort(1)
    return order < (max(1, encoder.num_units // 3) if num_kept is None else num_kept)


def pixel_mask(visible: Tensor, encoder: Hiera) -> Tensor:
    """visible [B, M] for each pixel: [B, 1, T, H, W]."""
    mask = visible.view(-1, 1, *encoder.units_shape)
    for axis, size in enumerate(encoder.input_size):
        mask = mask.repeat_interleave(size // mask.shape[axis + 2], dim=axis + 2)
    return mask


def cells(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """All places in a grid, in order."""
    return list(itertools.product(*map(range, shape)))


# Only the kept units are seen.


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        IMAGE,
        *UNITS,
        {"patch_kernel": (2, 4, 4), "patch_padding": (0, 0, 0)},  # patches that do not overlap
        {"patch_kernel": (1, 2, 3), "patch_padding": (0, 0, 0)},  # with gaps between them
        {"patch_kernel": (2, 7, 6), "patch_padding": (0, 2, 2)},  # that reach out unevenly
        {"patch_kernel": (3, 5, 7), "patch_stride": (1, 2, 4), "patch_padding": (1, 2, 3)},
        # Units of one token, patches that reach beyond the neighbours.
        {
            "q_pool": 0,
            "mask_unit": (1, 1, 1),
            "patch_kernel": (7, 16, 14),
            "input_size": (8, 16, 24),
        }
        | {"patch_padding": (3, 6, 5)},
        {"q_pool": 0, "mask_unit": (1, 1, 3), "sep_pos_embed": False},
    ],
)
def test_kept_units_alone_embed_as_if_hidden_pixels_were_zeros(arguments: dict[str, Any]) -> None:
    encoder = randomised(Hiera(**{**ENCODER, **arguments})).double()
    visible = some_visible(encoder)
    kept = kept_units(visible)
    clips = [clip(encoder, dtype=torch.float64).requires_grad_() for _ in range(2)]
    masked = clips[0] * pixel_mask(visible, encoder)
    dense = encoder.embed(masked)[visible].unflatten(0, kept.shape)
    sparse = encoder.embed_units(clips[1], kept)
    torch.testing.assert_close(sparse, dense)

    weight = torch.randn_like(dense)
    names, parameters = zip(
        *[(n, p) for n, p in encoder.named_parameters() if n.startswith(("patch", "pos"))],
        strict=True,
    )
    gradients = [
        torch.autograd.grad((y * weight).sum(), [x, *parameters])
        for x, y in zip(clips, (dense, sparse), strict=True)
    ]
    for name, expected, own in zip(("clip", *names), *gradients, strict=True):
        assert own.abs().sum() > 0, name
        torch.testing.assert_close(own, expected, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("num_kept", [1, 24])
def test_one_unit_and_all_units(num_kept: int) -> None:
    encoder = randomised(Hiera(**ENCODER))
    visible = some_visible(encoder, num_kept=num_kept)
    x = clip(encoder) * pixel_mask(visible, encoder)
    with torch.no_grad():
        expected = encoder.embed(x)[visible].unflatten(0, (2, num_kept))
        torch.testing.assert_close(encoder.embed_units(x, kept_units(visible)), expected)


@pytest.mark.parametrize("arguments", [{}, IMAGE, *UNITS])
@torch.inference_mode()
def test_nothing_of_hidden_units_leaks(arguments: dict[str, Any]) -> None:
    model = small(**arguments)
    visible = some_visible(model.encoder)
    kept, x = kept_units(visible), clip(model.encoder)
    changed = torch.where(pixel_mask(visible, model.encoder), x, 100 * torch.randn_like(x))
    for a, b in zip(
        model.encoder.encode(x, kept), model.encoder.encode(changed, kept), strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(model(x, kept), model(changed, kept))
    assert not torch.equal(model.targets(x, kept), model.targets(changed, kept))


# Fusion and decoder.


@pytest.mark.parametrize(
    "pools",
    [
        [(1, 2, 2)],
        [(1, 2, 2), (1, 2, 2)],
        [(2, 2, 2), (2, 2, 2)],
        [(2, 1, 3), (1, 2, 2)],
        [(1, 3, 1), (2, 1, 2), (2, 2, 1)],
    ],
)
def test_fusing_a_stage_is_a_convolution_on_the_grid(pools: list[Size3]) -> None:
    torch.manual_seed(0)
    units = (2, 1, 3)
    kernel = tuple(math.prod(pool[axis] for pool in pools) for axis in range(3))
    unit = tuple(2 * n for n in kernel)  # 8 tokens are left of a unit
    head = nn.Conv3d(5, 7, kernel, kernel)
    x = torch.randn(2, 5, *(n * m for n, m in zip(units, unit, strict=True)))
    with torch.no_grad():
        fused = fuse_stage(unroll(x, unit, pools), head, pools)
        torch.testing.assert_close(
            reroll(fused, units, (2, 2, 2), []), head(x).movedim(1, -1), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("arguments", [{}, {"q_pool": 0}, *UNITS])
@torch.inference_mode()
def test_fusion_sums_the_stages_at_the_resolution_of_the_last(arguments: dict[str, Any]) -> None:
    model = small(**arguments)
    encoder, x = model.encoder, clip(model.encoder)
    stages = [encoder.reroll(y, stage=i).movedim(-1, 1) for i, y in enumerate(encoder.encode(x))]
    expected = stages[-1]
    for stage, head in zip(stages, model.multi_scale_fusion_heads, strict=False):
        expected = expected + head(stage)
    assert len(model.multi_scale_fusion_heads) == arguments.get("q_pool", 2)
    torch.testing.assert_close(
        encoder.reroll(model.fuse(encoder.encode(x)), stage=-1),
        encoder.norm(expected.movedim(1, -1)),
        rtol=1e-5,
        atol=1e-5,
    )


def decode_on_the_grid(model: MaskedAutoencoderHiera, x: Tensor, kept: Tensor) -> Tensor:
    """`decode` for one clip, x [K, u, E], with tokens in space-time order throughout."""
    units, unit = model.encoder.units_shape, model.unit_shape
    tokens = [n * m for n, m in zip(units, unit, strict=True)]
    grid = model.mask_token.expand(*tokens, -1).clone()
    place_of = {  # of a token of a unit on the grid
        (m, u): tuple(a * n + b for a, n, b in zip(cells(units)[m], unit, cell, strict=True))
        for m in range(math.prod(units))
        for u, cell in enumerate(cells(unit))
    }
    for row, m in enumerate(kept.tolist()):
        for u in range(math.prod(unit)):
            grid[place_of[m, u]] = model.decoder_embed(x[row, u])
    grid = (grid.flatten(0, 2) + model.decoder_pos_embed[0])[None, None]
    for block in model.decoder_blocks:
        grid = block(grid)
    grid = model.decoder_pred(model.decoder_norm(grid)).view(*tokens, -1)
    hidden = [m for m in range(math.prod(units)) if m not in kept.tolist()]
    return torch.stack(
        [torch.stack([grid[place_of[m, u]] for u in range(math.prod(unit))]) for m in hidden]
    )


@pytest.mark.parametrize("arguments", [{}, {"q_pool": 1}, IMAGE | {"q_pool": 1}, *UNITS])
@torch.inference_mode()
def test_decoding_is_that_of_the_space_time_order(arguments: dict[str, Any]) -> None:
    model = small(**arguments)
    kept = kept_units(some_visible(model.encoder))
    x = torch.randn(*kept.shape, math.prod(model.unit_shape), model.encoder.num_features)
    expected = [decode_on_the_grid(model, *clip) for clip in zip(x, kept, strict=True)]
    torch.testing.assert_close(model.decode(x, kept), torch.stack(expected), rtol=1e-5, atol=1e-5)


# Targets and loss.


def pixels_of_hidden_tokens(model: MaskedAutoencoderHiera, x: Tensor, kept: Tensor) -> Tensor:
    """Of one clip x [C, T, H, W], the first frame behind each hidden token: [H, u, C, p, q]."""
    units, unit, size = model.encoder.units_shape, model.unit_shape, model.token_pixels
    hidden = [place for m, place in enumerate(cells(units)) if m not in kept.tolist()]
    patches = []
    for place, cell in itertools.product(hidden, cells(unit)):
        t, top, left = ((a * n + b) * s for a, n, b, s in zip(place, unit, cell, size, strict=True))
        patches.append(x[:, t, top : top + size[1], left : left + size[2]])
    return torch.stack(patches).unflatten(0, (len(hidden), -1))


@pytest.mark.parametrize("arguments", [{}, IMAGE, *UNITS])
def test_pixels_of_a_token_are_normalised_in_the_official_order(arguments: dict[str, Any]) -> None:
    model = small(**arguments)
    x, kept = 3 * clip(model.encoder) + 1, kept_units(some_visible(model.encoder))
    patches = torch.stack([pixels_of_hidden_tokens(model, *c) for c in zip(x, kept, strict=True)])
    if model.encoder.input_size[0] > 1:  # video: height, width, channel
        patches = patches.movedim(3, -1)
    patches = patches.flatten(3)
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, unbiased=True, keepdim=True)
    expected = (patches - mean) / torch.sqrt(variance + 1e-6)
    torch.testing.assert_close(model.targets(x, kept), expected, rtol=1e-4, atol=1e-5)
    assert model(x, kept).shape == expected.shape


@pytest.mark.parametrize("target", ["pixels", "hog"])
@pytest.mark.parametrize("arguments", [{}, UNITS[4]])
def test_later_frames_of_a_token_do_not_count(arguments: dict[str, Any], target: str) -> None:
    model = small(target, **arguments)
    x, kept = clip(model.encoder), kept_units(some_visible(model.encoder))
    frames = model.token_pixels[0]
    assert frames > 1
    changed = x + (torch.arange(x.shape[2]) % frames > 0).view(-1, 1, 1)
    assert torch.equal(model.targets(changed, kept), model.targets(x, kept))
    assert not torch.equal(model.targets(changed.roll(1, 2), kept), model.targets(x, kept))


def test_a_flat_patch_has_a_finite_target() -> None:
    model = small()
    kept = kept_units(some_visible(model.encoder))
    assert torch.equal(
        model.targets(torch.ones_like(clip(model.encoder)), kept),
        torch.zeros(2, model.encoder.num_units - kept.shape[1], 1, 16 * 16 * 3),
    )


def test_the_loss_of_a_clip_is_the_mean_over_its_values() -> None:
    prediction, target = torch.randn(2, 3, 4, 5, 6).unbind()
    expected = [F.mse_loss(*pair).item() for pair in zip(prediction, target, strict=True)]
    assert reconstruction_losses(prediction, target).tolist() == pytest.approx(expected)


# Histograms of oriented gradients.


def test_histograms_are_those_of_a_loop_over_pixels() -> None:
    torch.manual_seed(0)
    frame = torch.randn(16, 24, dtype=torch.float64)
    image, rows, columns = frame.tolist(), *frame.shape
    expected = torch.zeros(9, rows // 8, columns // 8, dtype=torch.float64)
    for i, j in cells(frame.shape):
        up, down = abs(i - 1), rows - 1 - abs(rows - 2 - i)  # the border reflects
        left, right = abs(j - 1), columns - 1 - abs(columns - 2 - j)
        along_x = sum(
            n * (image[k][left] - image[k][right]) for k, n in ((up, 1), (i, 2), (down, 1))
        )
        along_y = sum(
            n * (image[up][k] - image[down][k]) for k, n in ((left, 1), (j, 2), (right, 1))
        )
        turn = math.atan2(along_x, along_y) % math.pi / math.pi
        expected[int(turn * 9), i // 8, j // 8] += math.hypot(along_x, along_y)
    expected /= expected.square().sum(0).sqrt()
    own = of_frames(frame[None, None, None])
    torch.testing.assert_close(own[0, :, 0], expected)


def test_each_channel_and_cell_has_unit_length() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 16, 24)
    histograms = of_frames(x)
    assert histograms.shape == (2, 3 * 9, 4, 2, 3)
    lengths = histograms.unflatten(1, (3, 9)).norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    alone = of_frames(x[1:, 2:, 3:])  # clips, channels and frames for themselves
    torch.testing.assert_close(histograms[1:, 18:, 3:], alone)
    assert not of_frames(torch.ones(1, 1, 1, 8, 8)).any()


@pytest.mark.parametrize(
    ("turns", "expected"), [((0, 1), 4), ((1, 0), 0), ((1, 1), 2), ((1, -1), 6)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_orientation_of_an_edge(turns: tuple[int, int], expected: int, sign: int) -> None:
    """Gradients along x, along y and along the two diagonals; light or dark first is one."""
    down, right = (n * torch.arange(32.0) for n in turns)
    ramp = sign * (down[:, None] + right)
    histograms = of_frames(ramp[None, None, None])[0, :, 0, 1:-1, 1:-1]
    assert torch.equal(histograms.argmax(0), torch.full((2, 2), expected))
    torch.testing.assert_close(histograms[expected], torch.ones(2, 2))


@pytest.mark.parametrize("arguments", [{}, IMAGE, {"q_pool": 1}, UNITS[4]])
def test_histograms_belong_to_their_token(arguments: dict[str, Any]) -> None:
    model = small("hog", **arguments)
    x, kept = clip(model.encoder), kept_units(some_visible(model.encoder))
    frames, p, q = model.token_pixels
    histograms = of_frames(x[:, :, ::frames])
    for axis, times in ((2, frames), (3, 8), (4, 8)):  # as pixels again
        histograms = histograms.repeat_interleave(times, dim=axis)
    pairs = zip(histograms, kept, strict=True)
    patches = torch.stack([pixels_of_hidden_tokens(model, *pair) for pair in pairs])
    expected = patches[..., ::8, ::8].flatten(3)
    assert expected.shape[3] == 27 * (p // 8) * (q // 8)
    torch.testing.assert_close(model.targets(x, kept), expected)
    assert model(x, kept).shape == expected.shape


# What is refused.


@pytest.mark.parametrize("arguments", [{"q_pool": 0}, {"patch_stride": (2, 4, 3)}])
def test_histograms_need_tokens_of_whole_cells(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"target is 'hog': its cells of 8 pixels do not fit"):
        small("hog", **arguments)


def test_the_decoder_heads_must_be_given_and_divide_the_width() -> None:
    encoder = Hiera(**ENCODER)
    with pytest.raises(TypeError, match="decoder_heads"):
        MaskedAutoencoderHiera(encoder)
    for heads in (0, 5):
        with pytest.raises(ValueError, match=f"decoder_heads is {heads}: decoder_dim=16 does not"):
            MaskedAutoencoderHiera(encoder, decoder_heads=heads, decoder_dim=16)


def test_an_encoder_with_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="the encoder has 5 classes: expected 0"):
        small(num_classes=5)


def test_an_unknown_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse first
    with pytest.raises(ValueError, match="target is 'flow': allowed are pixels, hog"):
        small("flow")


# Training.


def losses(model: nn.Module, x: Tensor, kept: Tensor) -> Tensor:
    return reconstruction_losses(model(x, kept), model.targets(x, kept))


@pytest.mark.parametrize("arguments", [{}, IMAGE, *UNITS])
def test_any_mask_unit_trains(arguments: dict[str, Any]) -> None:
    model = small(**arguments).train()
    masking, rng = UnitMasking(model.encoder.units_shape, 0.5), np.random.default_rng(0)
    visible = torch.from_numpy(np.stack([masking(rng), masking(rng)]))
    loss = losses(model, clip(model.encoder), kept_units(visible))
    assert loss.isfinite().all()
    loss.sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradient_checkpointing_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compute = HieraBlock.compute
    monkeypatch.setattr(HieraBlock, "compute", lambda *a: calls.append(1) or compute(*a))
    gradients = []
    for enable in (False, True):
        model = small(drop_path=0.2).train()
        model.set_grad_checkpointing(enable)
        x, kept = clip(model.encoder), kept_units(some_visible(model.encoder))
        torch.manual_seed(3)
        losses(model, x, kept).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert len(calls) == 5 + 2 * 5  # all of 3 + 2 blocks twice
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("target", ["pixels", "hog"])
def test_under_autocast_the_targets_and_the_loss_are_float32(target: str) -> None:
    model = small(target).train()
    x, kept = clip(model.encoder), kept_units(some_visible(model.encoder))
    with torch.no_grad():
        expected = losses(model, x, kept)
    with torch.autocast("cpu", torch.bfloat16):
        prediction, targets = model(x, kept), model.targets(x, kept)
        loss = reconstruction_losses(prediction, targets)
    assert (prediction.dtype, targets.dtype, loss.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert torch.equal(targets, model.targets(x, kept))
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    loss.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_one_graph_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # not for a compiler to trace
    model = small(stages=(1, 1), mask_unit_attn=(True, False), q_pool=1)
    x, kept = clip(model.encoder), kept_units(some_visible(model.encoder))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    try:
        torch.testing.assert_close(compiled(x, kept), model(x, kept))
    finally:
        torch.compiler.reset()


def test_initialisation_reaches_every_parameter() -> None:
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_what_the_optimizer_asks() -> None:
    model = small()
    assert model.no_weight_decay() == {
        "encoder.pos_embed_spatial",
        "encoder.pos_embed_temporal",
        "decoder_pos_embed",
        "mask_token",
    }
    assert model.layer_ids() == dict.fromkeys(dict(model.named_parameters()), 0)
