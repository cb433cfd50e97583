"""Maps against autograd and matrices written out, and at the places of the tokens they are of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hiera_video.analysis.attention import (
    default_stage,
    gradient_map,
    rollout_map,
    rollout_start,
)
from hiera_video.errors import ModelError
from hiera_video.models import blocks
from hiera_video.models.hiera import Hiera
from hiera_video.models.pretrained import create_model
from hiera_video.models.units import divided
from tests.models.tiny_models import IMAGE, VIDEO, hiera

TALL: dict[str, Any] = {**VIDEO, "input_size": (8, 64, 96)}
POOLED_TIME: dict[str, Any] = {**VIDEO, "mask_unit": (4, 8, 8), "q_pool": 2, "q_stride": (2, 2, 2)}
# As SAM 2's: windows of several units, a global block between them, and embeddings of any size.
WINDOWS: dict[str, Any] = {
    **IMAGE,
    "input_size": (1, 64, 128),
    "window_units": (1, 1, 2),
    "global_blocks": (4,),
    "global_pos_size": (4, 4),
    "stages": (1, 1, 3, 2),
}
TIME_WINDOWS: dict[str, Any] = {**TALL, "input_size": (16, 64, 64), "window_units": (2, 1, 2)}
SHORT: dict[str, Any] = {**VIDEO, "stages": (1, 1, 1, 1)}  # the third stage attends within units
# As timm's: the residual is a maximum beside a mean, branches are scaled.
ABSWIN: dict[str, Any] = {
    **IMAGE, "global_pos_size": (4, 4), "layer_scale": True, "expand_proj": False,
}  # fmt: skip
EVERYWHERE: dict[str, Any] = {**VIDEO, "input_size": (4, 32, 32), "mask_unit_attn": (False,) * 4}
CASES = {
    "video": TALL,
    "pooled_time": POOLED_TIME,
    "image": IMAGE,
    "windows": WINDOWS,
    "time_windows": TIME_WINDOWS,
    "short": SHORT,
    "abswin": ABSWIN,
    "everywhere": EVERYWHERE,
}
each_model = pytest.mark.parametrize("arguments", CASES.values(), ids=CASES.keys())


def clips_of(model: Hiera, batch: int = 2) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(batch, 3, *model.input_size)


def sharp(arguments: dict[str, Any]) -> Hiera:
    """A model whose tokens differ from one another, and which attends to few of them."""
    model = hiera(arguments)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.ones_(parameter)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
        elif name.endswith("qkv.weight"):
            parameter.data *= 2
        elif "pos_embed" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def grid(model: Hiera, stage: int) -> tuple[int, ...]:
    """Tokens along time, height and width after a stage."""
    shape = model.tokens_shape
    for pool in model.pools[: stage % len(model.stage_ends)]:
        shape = divided(shape, pool)
    return shape


# Gradient times activation.


@each_model
@pytest.mark.parametrize("stage", [0, 1, -2, -1])
def test_gradients_by_a_hook(arguments: dict[str, Any], stage: int) -> None:
    """A forward and a backward pass of the whole model, which keeps what the stage hands on."""
    model = sharp(arguments)
    outputs: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    end, is_last = model.stage_ends[stage], stage == -1
    is_whole = is_last or not model.architecture.get("expand_proj", True)
    clips, classes = clips_of(model), torch.tensor([4, 1])
    part = model.blocks[end] if is_whole else model.blocks[end + 1].norm1
    with part.register_forward_hook(keep):
        logits = model(clips)
    (logits[0, 4] + logits[1, 1]).backward()
    (output,) = outputs
    assert output.grad is not None
    relative = output.detach() - output.detach().mean(dim=(1, 2), keepdim=True)
    product = torch.einsum("bmud,bmud->bmu", output.grad, relative)
    expected = model.reroll(product.clamp(min=0)[..., None], stage)[..., 0]
    model.zero_grad()

    found = gradient_map(model, clips, classes, stage=stage)
    assert found.shape == (2, *grid(model, stage))
    assert 0.1 < float((found > 0).float().mean()) < 0.9
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_last_stage_is_plain_gradient_times_activation() -> None:
    """Because its tokens are averaged and normalised, products with the mean token add up to 0."""
    model = sharp(VIDEO)
    clips = clips_of(model, 1)
    tokens = model.forward_features(clips).detach().requires_grad_()
    model.forward_head(tokens)[0, 2].backward()
    assert tokens.grad is not None
    plain = (tokens.grad * tokens.detach()).sum(dim=-1)
    assert float(plain.sum().abs()) < 1e-3 * float(plain.abs().sum())
    found = gradient_map(model, clips, torch.tensor([2]), stage=-1)
    torch.testing.assert_close(found, plain.clamp(min=0), rtol=1e-2, atol=1e-3 * float(plain.max()))


class OneToken(Hiera):
    """A model whose logits are of one token of the last stage, (time, row, column)."""

    place = (0, 0, 0)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        t, row, column = self.place
        return self.head(self.reroll(x, -1)[:, t, row, column])


@pytest.mark.parametrize("place", [(0, 0, 0), (3, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_a_head_that_sees_one_token(place: tuple[int, int, int]) -> None:
    model = hiera(TALL)  # 4 x 2 x 3 tokens in the end
    model.__class__ = OneToken
    model.place = place
    maps = [gradient_map(model, clips_of(model, 1), torch.tensor([c]), stage=-1) for c in range(5)]
    seen = torch.stack(maps).amax(dim=0)[0]
    assert seen[place] > 0
    assert int((seen > 0).sum()) == 1


def test_a_head_that_sees_one_token_of_an_early_stage() -> None:
    """Of the first stage, whose tokens the second one reads one by one where nothing attends."""
    model = sharp(TALL)
    for block in model.blocks[1:]:
        torch.nn.init.zeros_(block.attn.proj.weight)
    model.__class__ = OneToken
    model.place = (1, 1, 2)  # of 4 x 2 x 3: in the first stage, rows 8 to 15 and columns 16 to 23
    maps = [gradient_map(model, clips_of(model, 1), torch.tensor([c]), stage=0) for c in range(5)]
    seen = torch.stack(maps).amax(dim=0)[0] > 0
    assert seen.shape == (4, 16, 24)
    assert seen[1, 8:, 16:].any()
    seen[1, 8:, 16:] = False
    assert not seen.any()


def test_the_class_of_the_highest_logit() -> None:
    model = sharp(VIDEO)
    clips = clips_of(model, 3)
    with torch.inference_mode():  # as commands call it
        top = model(clips).argmax(dim=1)
        found = gradient_map(model, clips)
        assert torch.equal(found, gradient_map(model, clips, top))
        alone = torch.cat([gradient_map(model, clip[None]) for clip in clips])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)
    others = gradient_map(model, clips, (top + 1) % 5)
    assert all(not torch.allclose(a, b) for a, b in zip(found, others, strict=True))


def test_pictures_without_a_time_axis() -> None:
    model = sharp(IMAGE)
    clips = clips_of(model)
    for find in (gradient_map, rollout_map):
        assert torch.equal(find(model, clips.squeeze(2)), find(model, clips))
        assert find(model, clips).shape[1] == 1


def test_stages_by_default() -> None:
    """The last with 8 tokens along each side."""
    for name, options, stage in (
        ("hiera_tiny_16x224", {}, 2),  # 56, 28, 14, 7
        ("hiera_tiny_224", {}, 2),
        ("hiera_small_abswin_256", {}, 3),  # 64, 32, 16, 8
        ("hiera_tiny_16x224", {"num_frames": 8, "image_size": 64}, 1),  # 16, 8, 4, 2
        ("hiera_tiny_16x224", {"num_frames": 8, "image_size": [64, 224]}, 1),
        ("hiera_tiny_16x224", {"num_frames": 8, "image_size": 32}, 0),  # 8, 4, 2, 1
    ):
        with torch.device("meta"):
            assert default_stage(create_model(name, **options)) == stage, name
    model = hiera(POOLED_TIME)  # 16, 8, 4, 4
    assert default_stage(model) == 1
    assert torch.equal(
        gradient_map(model, clips_of(model)), gradient_map(model, clips_of(model), stage=1)
    )


def test_what_has_no_gradient() -> None:
    model = hiera(VIDEO)
    clips = clips_of(model)
    for options, message in (
        ({"stage": 4}, "stage is 4: the model has stages 0 to 3"),
        ({"stage": -5}, "stage is -5"),
        ({"class_ids": torch.tensor([0, 5])}, r"class_ids is \[0, 5\]: the model has 5 classes"),
        ({"class_ids": torch.tensor([-1, 0])}, "class_ids"),
    ):
        with pytest.raises(ModelError, match=message):
            gradient_map(model, clips, **options)
    with pytest.raises(ModelError, match="has no classifier"):
        gradient_map(hiera(VIDEO, num_classes=0), clips)
    with pytest.raises(ModelError, match="clip"):
        gradient_map(model, clips[..., :32])


# Rollout.


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys [windows, heads, tokens, d] of every attention, as the model computes it."""
    calls: list[tuple[Tensor, Tensor]] = []
    attend: Callable[..., Tensor] = blocks.attend

    def record(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append((q.detach(), k.detach()))
        return attend(q, k, v)

    monkeypatch.setattr(blocks, "attend", record)
    return calls


def window_of(unit: int, model: Hiera, window: tuple[int, int, int]) -> tuple[int, int]:
    """The window that a unit lies in, and its place there, counted along the last axis first."""
    place = np.unravel_index(unit, model.units_shape)
    counts = divided(model.units_shape, window)
    outer = np.ravel_multi_index([p // w for p, w in zip(place, window, strict=True)], counts)
    inner = np.ravel_multi_index([p % w for p, w in zip(place, window, strict=True)], window)
    return int(outer), int(inner)


@each_model
def test_rollout_by_matrices(
    arguments: dict[str, Any], attended: list[tuple[Tensor, Tensor]]
) -> None:
    """One clip. The matrices of all blocks are written out and multiplied from the first on."""
    model = sharp(arguments)
    clips = clips_of(model, 1)
    model(clips)
    units, first = model.num_units, rollout_start(model)
    within = [block.attn.attends == "within units" for block in model.blocks]
    assert not any(within[first:])
    assert first == 0 or within[first - 1]
    total: Tensor | None = None
    for block, (q, k) in list(zip(model.blocks, attended, strict=True))[first:]:
        attends = block.attn.attends
        window = model.units_shape if attends == "everywhere" else attends
        in_window = int(np.prod(window))
        new, old = q.shape[2] // in_window, k.shape[2] // in_window  # tokens of a unit
        probabilities = torch.stack(
            [(of_q @ of_k.T / q.shape[-1] ** 0.5).softmax(-1) for of_q, of_k in zip(
                q.flatten(0, 1), k.flatten(0, 1), strict=True)]
        ).unflatten(0, q.shape[:2]).mean(dim=1)  # [windows, new, old]  # fmt: skip
        matrix = torch.zeros(units * new, units * old)
        for a, b in product(range(units), range(units)):
            (of_a, place_a), (of_b, place_b) = (window_of(x, model, window) for x in (a, b))
            if of_a == of_b:
                rows = slice(place_a * new, (place_a + 1) * new)
                columns = slice(place_b * old, (place_b + 1) * old)
                part = probabilities[of_a, rows, columns]
                matrix[a * new : (a + 1) * new, b * old : (b + 1) * old] += part / 2
        for unit, i, j in product(range(units), range(new), range(old // new)):
            matrix[unit * new + i, unit * old + j * new + i] += 0.5 * new / old
        assert torch.allclose(matrix.sum(dim=1), torch.ones(()))
        total = matrix if total is None else matrix @ total
    assert total is not None
    expected = total.mean(dim=0).view(1, units, -1, 1)

    found = rollout_map(model, clips)
    tokens = expected.shape[2] * units
    stage = next(s for s in range(4) if np.prod(grid(model, s)) == tokens)
    assert found.shape == (1, *grid(model, stage))
    torch.testing.assert_close(found, model.reroll(expected, stage)[..., 0], rtol=1e-4, atol=1e-7)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert float(found.std() / found.mean()) > 0.01


def test_rollout_of_even_attention_is_even() -> None:
    model = hiera(TALL)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
        torch.nn.init.zeros_(block.attn.qkv.bias)
    found = rollout_map(model, clips_of(model))
    assert found.shape == (2, 4, 4, 6)
    torch.testing.assert_close(found, torch.full_like(found, 1 / (4 * 4 * 6)))


def test_rollout_follows_the_time_steps() -> None:
    """Of two clips of which one is the other one shifted by a time step, without embeddings of
    time, so is the map."""
    model = sharp(TALL)
    torch.nn.init.zeros_(model.pos_embed_temporal)
    clips = clips_of(model, 1)
    model.patch_embed.proj.weight.data[:, :, 0] = 0  # patches no longer overlap in time
    found, shifted = (rollout_map(model, x) for x in (clips, clips.roll(2, dims=2)))
    assert not torch.allclose(found, shifted)
    torch.testing.assert_close(found.roll(1, dims=1), shifted, rtol=1e-3, atol=1e-6)


def test_rollout_needs_blocks_that_attend_everywhere() -> None:
    model = hiera(VIDEO, mask_unit_attn=(True,) * 4)
    with pytest.raises(ModelError, match="last block attends within them"):
        rollout_map(model, clips_of(model))
    without_classifier = hiera(VIDEO, num_classes=0)
    assert rollout_map(without_classifier, clips_of(model)).shape == (2, 4, 4, 4)
