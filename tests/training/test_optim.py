import math

import pytest
import torch

from hiera_video.models.hiera import Hiera
from hiera_video.settings.training import Optim
from hiera_video.training.optim import (
    build_optimizer,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)

SMALL = dict(
    input_size=(4, 32, 32), embed_dim=8, stages=(1, 1, 1, 1), num_classes=3, mask_unit=(1, 8, 8)
)


def groups_of(model, layer_decay, pos_embed_lr_scale=None):
    return parameter_groups(
        model,
        weight_decay=0.05,
        layer_decay=layer_decay,
        layer_ids=model.layer_ids(),
        no_weight_decay=model.no_weight_decay(),
        pos_embed_lr_scale=pos_embed_lr_scale,
    )


def test_layer_decay_follows_slowfast():
    """Head at full rate, last block one decay below, stem `depth + 1` below (4 blocks here)."""
    model = Hiera(**SMALL)
    scale = {id(p): g["lr_scale"] for g in groups_of(model, 0.5) for p in g["params"]}
    assert scale[id(model.head.projection.weight)] == 1.0
    assert scale[id(model.norm.weight)] == 1.0
    assert scale[id(model.blocks[3].mlp.fc1.weight)] == 0.5
    assert scale[id(model.blocks[0].mlp.fc1.weight)] == 0.5**4
    assert scale[id(model.patch_embed.proj.weight)] == 0.5**5
    assert scale[id(model.pos_embed_spatial)] == 0.5**5


@pytest.mark.parametrize(
    ("arguments", "embeddings"),
    [
        ({}, {"pos_embed_spatial", "pos_embed_temporal"}),
        (
            {"input_size": (1, 32, 32), "patch_kernel": (1, 7, 7), "patch_stride": (1, 4, 4)}
            | {"patch_padding": (0, 3, 3), "sep_pos_embed": False, "global_pos_size": (2, 2)},
            {"pos_embed", "pos_embed_win"},
        ),
    ],
)
def test_position_embeddings_have_a_rate_of_their_own(arguments, embeddings):
    """In place of layer decay (arXiv 2306.00989, A.2), which all others follow."""
    model = Hiera(**SMALL | arguments)
    groups = groups_of(model, 0.5, pos_embed_lr_scale=0.3)
    group_of = {id(p): g for g in groups for p in g["params"]}
    for name, depth in model.layer_ids().items():
        scale = 0.3 if name in embeddings else 0.5 ** (5 - depth)
        assert group_of[id(model.get_parameter(name))]["lr_scale"] == scale, name
    assert embeddings <= model.layer_ids().keys()
    optimizer = build_optimizer(model, Optim(lr=1.0, layer_decay=0.5, pos_embed_lr_scale=0.3))
    set_learning_rate(optimizer, 0.1)
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == {0.1 * scale for scale in (0.3, *(0.5**k for k in range(6)))}


def test_vectors_and_position_embeddings_are_not_decayed():
    model = Hiera(**SMALL)
    decay = {id(p): g["weight_decay"] for g in groups_of(model, 1.0) for p in g["params"]}
    for name, parameter in model.named_parameters():
        vector = parameter.ndim == 1 or "pos_embed" in name
        assert decay[id(parameter)] == (0.0 if vector else 0.05), name


def test_frozen_parameters_are_left_out():
    model = Hiera(**SMALL)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    found = [p for g in groups_of(model, 1.0) for p in g["params"]]
    assert {id(p) for p in found} == {id(p) for p in model.head.parameters()}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-8),  # first step
        (5, (1e-8 + 1e-3) / 2),  # half of the warmup
        (10, 1e-3),  # peak
        (55, (1e-3 + 1e-5) / 2),  # half of the cosine
        (100, 1e-5),  # end
    ],
)
def test_schedule(step, expected):
    lr = learning_rate(step, total_steps=100, warmup_steps=10, peak=1e-3, first=1e-8, last=1e-5)
    assert lr == pytest.approx(expected)


def test_schedule_without_warmup_starts_at_the_peak():
    lr = learning_rate(0, total_steps=10, warmup_steps=0, peak=1.0, first=0.1, last=0.0)
    assert lr == 1.0


def test_schedule_in_steps_is_that_of_vitdet():
    """detectron2, projects/ViTDet: milestones 163889 and 177546 of 184375, 250 steps of warmup."""
    schedule = dict(total_steps=184_375, warmup_steps=250, peak=1.0, first=1e-3, last=0.5)
    expected = {0: 1e-3, 125: (1e-3 + 1) / 2, 250: 1.0, 163_888: 1.0, 163_889: 0.1}
    expected |= {177_545: 0.1, 177_546: 0.01, 184_374: 0.01}
    for step, lr in expected.items():
        found = learning_rate(step, **schedule, decay_at=(0.88889, 0.962962))
        assert found == pytest.approx(lr), step
    assert learning_rate(184_374, **schedule, decay_at=()) == 1.0


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_learning_rate_is_scaled_by_group(name):
    model = Hiera(**SMALL)
    optimizer = build_optimizer(model, Optim(optimizer=name, lr=1.0, layer_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([0.1 * 0.5**k for k in (5, 4, 3, 2, 1, 0)])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizers_are_fused(name):
    optimizer = build_optimizer(Hiera(**SMALL), Optim(optimizer=name))
    assert all(group["fused"] for group in optimizer.param_groups)


def test_first_sgd_step_is_plain_gradient_descent():
    model = Hiera(**SMALL)
    optimizer = build_optimizer(model, Optim(optimizer="sgd", lr=0.1, weight_decay=0.0))
    weight = model.head.projection.weight
    expected = weight.detach() - 0.1 * 1.9
    weight.sum().backward()
    optimizer.step()
    # Nesterov: gradient + 0.9 of the momentum, which is the gradient after one step.
    assert torch.allclose(weight, expected)
    assert math.isclose(optimizer.param_groups[0]["momentum"], 0.9)
