"""The backbone: units, sizes, regularisation, and what callers ask of a model."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from hiera_video.errors import ModelError
from hiera_video.models import blocks
from hiera_video.models.blocks import DropPath, Mlp
from hiera_video.models.hiera import Head, Hiera, reroll, unroll
from hiera_video.models.masking import kept_units
from hiera_video.models.units import pool_tokens, size3

SMALL: dict[str, Any] = {
    "input_size": (8, 64, 64),
    "num_classes": 5,
    "embed_dim": 16,
    "stages": (1, 2, 2, 1),
}


def small(**arguments: Any) -> Hiera:
    torch.manual_seed(0)
    model = Hiera(**{**SMALL, **arguments})
    for (
        parameter
    ) in model.parameters():  # far from the tiny initial values, so that all parts count
        nn.init.normal_(
            parameter, std=0.3 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
        )
    return model.eval()


def clip(model: Hiera, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, model.in_chans, *model.input_size)


# Units.


@pytest.mark.parametrize(
    ("units", "unit", "pools"),
    [
        ((2, 3, 4), (1, 8, 8), [(1, 2, 2)] * 3),
        ((1, 2, 2), (2, 8, 8), [(1, 2, 2)] * 3),
        ((2, 1, 3), (8, 8, 8), [(2, 2, 2)] * 3),
        ((2, 2, 1), (4, 4, 8), [(2, 1, 2), (1, 2, 2)]),
        ((3, 2, 2), (2, 3, 5), []),
        ((1, 1, 1), (1, 12, 6), [(1, 3, 1), (1, 2, 2)]),
    ],
)
def test_unroll_and_reroll(
    units: tuple[int, int, int], unit: tuple[int, int, int], pools: list[tuple[int, int, int]]
) -> None:
    t, h, w = (n * m for n, m in zip(units, unit, strict=True))
    x = torch.randn(2, 3, t, h, w)
    tokens = unroll(x, unit, pools)
    last = size3(n // math.prod(pool[axis] for pool in pools) for axis, n in enumerate(unit))
    assert tokens.shape == (2, math.prod(units), math.prod(unit), 3)
    assert torch.equal(reroll(tokens, units, last, pools), x.movedim(1, -1))
    for m in range(math.prod(units)):  # units come in space-time order
        i, j, k = (int(n) for n in torch.unravel_index(torch.tensor(m), units))
        a, b, c = unit
        block = x[:, :, i * a : (i + 1) * a, j * b : (j + 1) * b, k * c : (k + 1) * c]
        assert torch.allclose(tokens[:, m].sum(1), block.flatten(2).sum(2), atol=1e-4)

    pooled, left = tokens, list(pools)
    expected = x
    while left:
        step = left.pop(0)
        pooled = pool_tokens(pooled, math.prod(step))
        expected = F.max_pool3d(expected, step, step)
        assert torch.equal(reroll(pooled, units, last, left), expected.movedim(1, -1))


@pytest.mark.parametrize("mask_unit", [(1, 8, 8), (2, 8, 8), (4, 8, 16), (2, 16, 8)])
def test_a_block_within_units_spans_exactly_its_unit(mask_unit: tuple[int, int, int]) -> None:
    model = small(mask_unit=mask_unit)
    place = (1, 3, 9)
    x = torch.randn(1, 16, *model.tokens_shape)
    y = x.clone()
    y[(0, slice(None), *place)] += torch.randn(16)
    with torch.no_grad():
        before, after = (
            model.reroll(model.blocks[0](unroll(v, mask_unit, model.pools)), stage=0)
            for v in (x, y)
        )
    changed = (before != after).any(-1)[0]
    expected = torch.zeros_like(changed)
    starts = (p // m * m for p, m in zip(place, mask_unit, strict=True))
    expected[tuple(slice(s, s + m) for s, m in zip(starts, mask_unit, strict=True))] = True
    assert torch.equal(changed, expected)


def test_hidden_units_do_not_leak() -> None:
    model = small(mask_unit=(2, 8, 8))
    x = clip(model)
    visible = torch.zeros(2, model.num_units, dtype=torch.bool)
    visible[0, [0, 5]] = visible[1, [3, 6]] = True
    kept = kept_units(visible)
    pixels = visible.view(2, 1, *model.units_shape)
    for axis, side in enumerate((4, 32, 32)):  # mask_unit * patch_stride
        pixels = pixels.repeat_interleave(side, dim=axis + 2)
    with torch.no_grad():
        outputs = model.encode(x, kept)
        noisy = model.encode(torch.where(pixels, x, torch.randn_like(x)), kept)
    assert [tuple(o.shape[1:3]) for o in outputs] == [(2, 128), (2, 32), (2, 8), (2, 2)]
    for a, b in zip(outputs, noisy, strict=True):
        assert torch.equal(a, b)


# Sizes.


@pytest.mark.parametrize(
    "input_size", [(8, 64, 64), (16, 64, 64), (32, 64, 64), (8, 160, 160), (8, 320, 192)]
)
def test_sizes(input_size: tuple[int, int, int]) -> None:
    model = small(input_size=input_size)
    t, h, w = (n // s for n, s in zip(input_size, (2, 4, 4), strict=True))
    with torch.inference_mode():
        features = model.forward_intermediates(clip(model, 1))
    assert [tuple(f.shape[1:]) for f in features] == [
        (t, h >> i, w >> i, 16 << i) for i in range(4)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": (8, 472, 64)}, r"nearest that works is \(8, 480, 64\)"),
        ({"input_size": (8, 64, 76)}, r"nearest that works is \(8, 64, 64\)"),
        ({"input_size": (6, 64, 64), "mask_unit": (2, 8, 8)}, r"\(8, 64, 64\)"),
        ({"mask_unit": (1, 4, 8)}, r"multiple of \(1, 8, 8\), for example \(1, 8, 8\)"),
        ({"q_pool": 4}, "q_pool is 4"),
        ({"mask_unit_attn": (True, False)}, "mask_unit_attn has 2 entries for 4 stages"),
    ],
)
def test_refused_sizes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        Hiera(**{**SMALL, **arguments})


def test_refused_input() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"\[1, 3, 4, 64, 64\], this model takes \[B, 3, 8, 64"):
        model(torch.zeros(1, 3, 4, 64, 64))
    with pytest.raises(ValueError, match=r"\[1, 3, 64, 64\], this model takes \[B, 3, 8, 64"):
        model(torch.zeros(1, 3, 64, 64))  # no image model
    bytes_ = torch.zeros(1, 3, 8, 64, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"input is torch\.uint8: .*normalize\.Normalize makes"):
        model(bytes_)
    with pytest.raises(ValueError, match="indices has 4: the model has stages 0 to 3"):
        model.forward_intermediates(clip(model), indices=[4])


# The head and the features.


@torch.inference_mode()
def test_forward_parts_agree() -> None:
    model = small()
    x = clip(model)
    logits, features = model(x), model.forward_features(x)
    assert logits.shape == (2, 5)
    assert features.shape == (2, 4, 2, 2, 128)
    assert torch.allclose(model.forward_head(features), logits, atol=1e-5)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.allclose(model.get_classifier()(pooled), logits, atol=1e-5)
    last, first = model.forward_intermediates(x, indices=[-1, 0])
    assert torch.equal(last, features)
    assert first.shape == (2, 4, 16, 16, 16)
    assert not torch.allclose(logits.sum(1), torch.ones(2))  # no softmax, in evaluation either


@torch.inference_mode()
def test_features_come_in_space_time_order() -> None:
    """A change in one corner of the clip moves the early features of that corner only."""
    model = small(stages=(1, 1, 1, 1))
    x = clip(model, 1)
    y = x.clone()
    y[..., -2:, -8:, -8:] += 1.0
    before, after = (model.forward_intermediates(v, indices=[0, 1]) for v in (x, y))
    for a, b in zip(before, after, strict=True):
        changed = (a != b).any(-1)[0]
        t, h, w = changed.shape
        assert changed[-1, h // 2 :, w // 2 :].all()
        assert not changed[: t - 2].any()
        assert not changed[:, : h // 2].any()


def test_reset_classifier() -> None:
    model = small(head_dropout=0.5)
    model.reset_classifier(7)
    assert (model(clip(model)).shape, model.num_classes) == ((2, 7), 7)
    assert model.head.dropout.p == 0.5
    assert model.get_classifier().weight.abs().max() < 1e-3
    model.reset_classifier(0)
    assert model(clip(model)).shape == (2, model.num_features)


# Regularisation and training.


def test_drop_path() -> None:
    model = small(drop_path=0.5)
    assert [b.drop_path.rate for b in model.blocks] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    x = clip(model)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))

    drop = DropPath(0.25).train()
    kept = drop(torch.ones(4000, 2, 3))
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(kept[:, 0, 0], kept[:, 1, 2])  # a sample as a whole
    assert kept.mean().item() == pytest.approx(1.0, abs=0.05)


def test_a_head_takes_features_of_any_type() -> None:
    """As a linear layer does under autocast, in which features may be in half precision."""
    head, x = Head(4, 3, dropout=0.0), torch.randn(2, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(x), head(x.float()))


def test_head_dropout() -> None:
    model = small(head_dropout=0.5)
    x = clip(model)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for enable in (False, True):
        model = small(drop_path=0.2).train()
        model.set_grad_checkpointing(enable)
        x = clip(model)
        torch.manual_seed(2)
        model(x).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("num_stages", [None, 0, 1, 3, 4])
def test_gradient_checkpointing_of_the_first_stages(num_stages: int | None) -> None:
    """Equal gradients, and the blocks of those stages are computed twice."""
    gradients = []
    for enable in (False, True):
        model = small(drop_path=0.2).train()
        model.set_grad_checkpointing(enable, num_stages)
        computed: Counter[nn.Module] = Counter()
        for block in model.blocks:
            block.attn.register_forward_pre_hook(lambda attn, _, seen=computed: seen.update([attn]))
        x = clip(model)
        torch.manual_seed(2)
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        stages = 0 if not enable else 4 if num_stages is None else num_stages
        twice = sum(end + 1 for end in model.stage_ends[stages - 1 : stages]) if stages else 0
        expected = [2] * twice + [1] * (len(model.blocks) - twice)
        assert [computed[block.attn] for block in model.blocks] == expected
    assert all(map(torch.equal, *gradients))


def test_gradient_checkpointing_of_stages_that_the_model_does_not_have() -> None:
    with pytest.raises(ModelError, match=r"grad_checkpointing_stages is 5; .* from 0 to 4"):
        small().set_grad_checkpointing(num_stages=5)


def test_every_parameter_gets_a_gradient() -> None:
    model = small().train()
    model(clip(model)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_layer_ids_count_as_slowfast_does() -> None:
    model = small()
    ids = model.layer_ids()
    assert ids.keys() == dict(model.named_parameters()).keys()
    assert {ids[n] for n in ids if n.startswith(("patch_embed", "pos_embed"))} == {0}
    for i in range(6):
        assert {ids[n] for n in ids if n.startswith(f"blocks.{i}.")} == {i + 1}
    assert {ids[n] for n in ids if n.startswith(("norm.", "head."))} == {7}
    assert model.no_weight_decay() == {"pos_embed_spatial", "pos_embed_temporal"}


# Attention and compilers.


def test_attention_takes_four_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    real = F.scaled_dot_product_attention

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        shapes.append((tuple(q.shape), tuple(k.shape)))
        return real(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = small()
    with torch.inference_mode():
        model(clip(model, 1))
    d = 16  # width of a head
    assert shapes == [
        ((16, 1, 64, d), (16, 1, 64, d)),  # windows in the batch: 16 units of 64 tokens
        ((16, 2, 16, d), (16, 2, 64, d)),  # pooled queries
        ((16, 2, 16, d), (16, 2, 16, d)),
        ((16, 4, 4, d), (16, 4, 16, d)),
        ((1, 4, 64, d), (1, 4, 64, d)),  # from here on everywhere
        ((1, 8, 16, d), (1, 8, 64, d)),
    ]


def test_bfloat16_is_near_float32() -> None:
    model = small()
    x = clip(model)
    with torch.inference_mode():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(x)
            stages = model.encode(x)
    assert {stage.dtype for stage in stages} == {torch.bfloat16}
    assert rounded.dtype == torch.float32  # of the classifier
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_attention_reads_the_product_of_queries_keys_and_values(monkeypatch) -> None:
    """Windows of all stages are views: kernels of attention read them where they are."""
    seen = []
    attend = blocks.attend

    def noted(*tensors):
        seen.append([StorageWeakRef(x.untyped_storage()) for x in tensors])
        return attend(*tensors)

    monkeypatch.setattr(blocks, "attend", noted)
    model = small()
    with torch.no_grad():
        model(clip(model))
    for block, (q, k, v) in zip(model.blocks, seen, strict=True):
        assert k == v
        assert (q == k) == (block.pool == 1)  # the maximum of queries is another tensor


def test_one_graph_for_the_compiler() -> None:
    from jaxtyping import config

    config.update("jaxtyping_disable", True)  # its checks are not for a compiler to trace
    try:
        model = small(stages=(1, 1), q_pool=1, mask_unit_attn=(True, False))
        x = clip(model)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            assert torch.allclose(compiled(x), model(x), atol=1e-5)
    finally:
        config.update("jaxtyping_disable", False)
        torch.compiler.reset()


def test_initialisation_reaches_every_parameter() -> None:
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


class Adapter(nn.Module):
    """A layer in place of another one that it calls, with a random part of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2)
        self.up = nn.Linear(2, base.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(F.dropout(self.down(x), 0.5, self.training))


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", ["none", "frozen", "adapter", "hook"])
def test_an_mlp_has_the_gradients_of_its_parts(
    change: str, dtype: torch.dtype, checkpointed: bool
) -> None:
    torch.manual_seed(0)
    mlp = Mlp(8, 32)
    if change == "frozen":
        mlp.fc2.requires_grad_(False)
    if change == "adapter":
        mlp.fc2 = Adapter(mlp.fc2)
    if change == "hook":
        mlp.fc2.register_forward_pre_hook(lambda _, inputs: F.dropout(inputs[0], 0.5))
    x, target = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(2, 3, 5, 8)
    inputs = [x, *(p for p in mlp.parameters() if p.requires_grad)]

    def run(function: Any) -> list[torch.Tensor]:
        torch.manual_seed(1)  # of the dropout
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = checkpoint(function, x, use_reentrant=False) if checkpointed else function(x)
        assert out.dtype == dtype
        return [out, *torch.autograd.grad((out.float() * target).sum(), inputs)]

    ours, parts = run(mlp), run(lambda x: mlp.fc2(F.gelu(mlp.fc1(x))))
    assert all(torch.equal(a, b) for a, b in zip(ours, parts, strict=True))


@pytest.mark.parametrize("training", [False, True])
def test_an_mlp_keeps_no_gelu_for_the_backward_pass(training: bool) -> None:
    mlp = Mlp(8, 32).train(training)
    inputs = []  # of fc2
    mlp.fc2.register_forward_hook(
        lambda module, args, out: inputs.append(StorageWeakRef(args[0].untyped_storage()))
    )
    out = mlp(torch.randn(3, 8))
    assert [storage.expired() for storage in inputs] == [training]
    out.sum().backward()
    assert len(inputs) == 1


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_forward_hooks_of_an_mlp_are_called(name: str, grad: bool) -> None:
    mlp, x = Mlp(6, 8), torch.randn(3, 6)
    before = mlp(x)
    getattr(mlp, name).register_forward_hook(lambda module, args, out: out + 1)
    with torch.set_grad_enabled(grad):
        assert not torch.allclose(mlp(x), before)
