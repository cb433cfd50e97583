"""What a model costs, against a formula that knows nothing of the code, and torch.

The variants and figures of the paper: tests/integration/test_flops.py.
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.analysis import complexity
from hiera_video.analysis.complexity import HANDLERS, by_stage, count, count_model
from hiera_video.models.masking import UnitMasking
from hiera_video.models.pretrained import create_autoencoder, create_detector, create_model
from tests.analysis.paper_costs import SIZES, encoder_by_hand

pytestmark = pytest.mark.usefixtures("unchecked_shapes")  # of traces


def on_meta(create, *args, **kwargs):
    with torch.device("meta"):
        return create(*args, **kwargs)


@pytest.mark.parametrize(("size", "frames", "side"), [("tiny", 8, 160), ("base", 1, 448)])
def test_other_sizes_of_input(size, frames, side):
    name = f"hiera_{size}_224" if frames == 1 else f"hiera_{size}_16x224"
    model = on_meta(create_model, name, num_frames=frames, image_size=side, num_classes=7)
    macs, _, width, _ = encoder_by_hand(size, frames, side)
    assert count_model(model)[""].macs == macs + 7 * width


@pytest.mark.parametrize(("size", "frames", "ratio"), [("base", 16, 0.9), ("tiny", 1, 0.6)])
def test_pretraining_pays_for_what_is_kept(size, frames, ratio):
    name = f"hiera_{size}_224" if frames == 1 else f"hiera_{size}_16x224"
    model = on_meta(create_autoencoder, name, decoder_heads=8)
    kept = UnitMasking(model.encoder.units_shape, ratio).num_visible
    cost = count_model(model, num_kept=kept)[""]

    macs, norms, width, left = encoder_by_hand(size, frames, 224, units=kept, pools=2)
    tokens = kept * 4  # of a unit, 2x2 are left for the decoder
    assert left == tokens
    first = SIZES[size][0]
    macs += tokens * width * (16 * first + 4 * 2 * first)  # fusion of the stages that pool
    macs += tokens * width * 512
    norms += tokens * width
    every = model.encoder.num_units * 4
    macs += 8 * (12 * every * 512**2 + 2 * every**2 * 512)
    hidden = every - tokens
    norms += 8 * 2 * every * 512 + hidden * 512
    macs += hidden * 512 * 16 * 16 * 3
    assert cost.macs == macs
    assert cost.operations["layer_norm"] == 5 * norms


def test_detection_adds_a_norm_and_a_box():
    model = on_meta(create_detector, "hiera_tiny_16x224", roi_resolution=3)
    cost = count_model(model)[""]
    macs, norms, width, tokens = encoder_by_hand("tiny", 16, 224)
    assert cost.macs == macs + 80 * width
    assert cost.operations["layer_norm"] == 5 * (norms + tokens * width)
    assert cost.operations["interpolation"] == 4 * width * 9 * 9  # 3x3 samples for each of 3x3 bins


def tiny(task, device="meta"):
    """A model of 4 x 64 x 64, and what it takes."""
    size = dict(num_frames=4, image_size=64)
    with torch.device(device):
        clip, kept = torch.rand(1, 3, 4, 64, 64), torch.empty(1, 3, dtype=torch.long)
        if task == "classification":
            return create_model("hiera_tiny_16x224", **size), (clip,)
        if task == "timm":
            model = create_model("hiera_small_abswin_256", image_size=64)
            return model, (clip[:, :, 0],)
        if task == "sam2":
            model = create_model("sam2_hiera_tiny", image_size=64, window_units=(1, 1, 1))
            return model, (clip[:, :, 0],)
        if task == "pretraining":
            model = create_autoencoder("hiera_tiny_16x224", decoder_heads=8, **size)
            return model, (clip, kept)
        boxes = torch.rand(1, 4), torch.zeros(1, dtype=torch.long)
        return create_detector("hiera_tiny_16x224", **size), (clip, *boxes)


@pytest.mark.parametrize("task", ["classification", "pretraining", "detection", "timm", "sam2"])
def test_torch_counts_the_same(task):
    """Its counter takes two for a multiply-add, and no LayerNorm."""
    model, inputs = tiny(task)  # on a CPU, its counter does not see fused attention
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    cost = count_model(model, num_kept=3)[""]
    assert cost.flops == counter.get_total_flops()
    assert count_model(tiny(task, "cpu")[0], num_kept=3)[""] == cost


def test_bfloat16_on_a_cpu_has_an_attention_of_its_own():
    model = create_model("hiera_tiny_16x224", num_frames=2, image_size=64).bfloat16()
    clip = torch.rand(1, 3, 2, 64, 64)
    costs = [count(model, (clip.bfloat16(),)), count(model.float(), (clip,))]
    assert costs[0][""] == costs[1][""]


def test_every_name_of_attention_has_a_handler():
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    forward = {n for n in names if "scaled_dot_product" in n and "backward" not in n}
    fused = {n for n in forward if n != "aten::_fused_sdp_choice"}
    assert "aten::scaled_dot_product_attention" in fused
    assert fused <= HANDLERS.keys()


@pytest.mark.parametrize("task", ["classification", "pretraining", "detection"])
def test_stages_add_up_and_lie_where_they_should(task):
    create = {
        "classification": create_model,
        "pretraining": create_autoencoder,
        "detection": create_detector,
    }[task]
    heads = {"decoder_heads": 8} if task == "pretraining" else {}
    model = on_meta(create, "hiera_tiny_16x224", **heads)
    costs = count_model(model, num_kept=39)
    stages = by_stage(model, costs)
    zero = complexity.Cost()
    assert sum(stages.values(), zero) == zero + costs[""]
    assert stages["rest"].macs == stages["rest"].activations == 0  # each product has its module
    assert stages["patches"].operations.keys() == {"convolution"}
    assert stages["stage 1"].parameters == 111840
    if task == "pretraining":
        assert stages["fusion"].macs == 39 * 4 * 768 * (16 * 96 + 4 * 192)
        assert costs["multi_scale_fusion_heads.1"].macs == 39 * 4 * 768 * 4 * 192
    prefix = "" if task == "classification" else "encoder."
    assert costs[f"{prefix}blocks.0.attn"].operations.keys() == {"linear", "attention"}


def test_modules_contain_their_children():
    model = on_meta(create_model, "hiera_tiny_224")
    costs = count_model(model)
    for parent, child in pairwise(["", "blocks", "blocks.4", "blocks.4.mlp", "blocks.4.mlp.fc1"]):
        assert costs[parent].macs > costs[child].macs > 0
    assert costs["blocks.4.mlp.fc1"].activations == 14 * 14 * 4 * 384


def test_nothing_is_warned_of_or_changed():
    model = on_meta(create_model, "hiera_tiny_224", drop_path=0.5).train()
    model.blocks[3].eval()
    before = {name: module.training for name, module in model.named_modules()}
    hooks = len(model._forward_hooks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count_model(model)
    assert before == {name: module.training for name, module in model.named_modules()}
    assert len(model._forward_hooks) == hooks


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner = nn.Module()
        self.inner.forward = function

    def forward(self, *inputs):
        return self.inner(*inputs)


def test_an_operator_that_nobody_reviewed_is_named():
    with pytest.raises(NotImplementedError, match=r"aten::fft_fft in inner") as failure:
        count(Applied(torch.fft.fft), (torch.rand(8),))
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (torch.matmul, [(2, 3, 4), (2, 4, 5)], {"linear": 2 * 3 * 4 * 5}),
        (torch.bmm, [(2, 3, 4), (2, 4, 5)], {"linear": 2 * 3 * 4 * 5}),
        (torch.mm, [(3, 4), (4, 5)], {"linear": 3 * 4 * 5}),
        (torch.addmm, [(5,), (3, 4), (4, 5)], {"linear": 3 * 4 * 5}),
        (F.linear, [(2, 3, 4), (5, 4)], {"linear": 2 * 3 * 4 * 5}),
        (F.conv2d, [(2, 4, 8, 8), (6, 4, 3, 3)], {"convolution": 2 * 6 * 36 * 4 * 9}),
        (
            lambda x, w: F.conv1d(x, w, stride=2, padding=1, groups=2),
            [(2, 4, 8), (6, 2, 3)],
            {"convolution": 2 * 6 * 4 * 2 * 3},
        ),
        (
            F.conv_transpose2d,
            [(2, 4, 8, 8), (4, 6, 3, 3)],
            {"convolution": 2 * 4 * 64 * 6 * 9},
        ),
        (
            F.scaled_dot_product_attention,
            [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)],
            {"attention": 2 * 3 * 5 * 7 * (8 + 4)},
        ),
        (lambda x: F.layer_norm(x, x.shape[1:]), [(2, 6)], {"layer_norm": 5 * 12}),
        (lambda x: x.amax(dim=1), [(2, 6)], {"pooling": 12}),
        (lambda x: x.max(dim=1).values, [(2, 6)], {"pooling": 12}),
        (lambda x: x.mean(dim=1), [(2, 6)], {"pooling": 12}),
        (lambda x: F.adaptive_avg_pool2d(x, 1), [(2, 6, 4, 4)], {"pooling": 192}),
        (
            lambda x: F.interpolate(x, size=(6, 6), mode="bilinear"),
            [(1, 2, 4, 4)],
            {"interpolation": 4 * 2 * 36},
        ),
        (
            lambda x: F.interpolate(x, size=(6, 6), mode="bicubic"),
            [(1, 2, 4, 4)],
            {"interpolation": 16 * 2 * 36},
        ),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operators(function, shapes, expected, device):
    if device == "meta" and function is F.conv_transpose2d:
        pytest.skip("torch cannot trace it there; no model of ours has one")
    inputs = tuple(torch.rand(shape, device=device) for shape in shapes)
    cost = count(Applied(function), inputs)[""]
    assert cost.operations == expected
    product = not {"layer_norm", "pooling", "interpolation"} & expected.keys()
    if product:
        assert cost.activations == math.prod(function(*inputs).shape)
    else:
        assert cost.macs == cost.activations == 0


def test_a_masked_autoencoder_needs_to_know_what_is_kept():
    with pytest.raises(ValueError, match="num_kept is None"):
        count_model(on_meta(create_autoencoder, "hiera_tiny_224", decoder_heads=8))
