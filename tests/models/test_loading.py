"""Every layout of weights, what is adapted, what is refused, and what the report says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from hiera_video import create_model, load_model, save_model
from hiera_video.errors import WeightsError
from hiera_video.models.checkpoint import HEAD, Checkpoint, read_checkpoint
from hiera_video.models.layouts import rename
from hiera_video.models.loading import (
    LoadReport,
    inflate_patches,
    load_weights,
    resize_spatial,
    resize_temporal,
)
from tests.models.tiny_models import (
    IMAGE,
    VIDEO,
    State,
    autoencoder,
    hiera,
    logits,
    official,
    saved,
)

# Layouts.


def timm_layout(state: State) -> State:
    names = {"head.projection.": "head.fc.", "norm.": "head.norm."}
    return {rename(key, names): value for key, value in state.items()}


def transformers_layout(state: State, stages: tuple[int, ...] = (1, 2, 2, 1)) -> State:
    places = [f"encoder.stages.{s}.layers.{i}" for s, n in enumerate(stages) for i in range(n)]
    renamed = {}
    for key, value in state.items():
        if key.startswith("blocks."):
            _, block, rest = key.split(".", 2)
            rest = rest.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
            key = f"hiera.{places[int(block)]}.{rest}"
        else:
            key = {
                "pos_embed": "hiera.embeddings.position_embeddings",
                "patch_embed.proj.weight": "hiera.embeddings.patch_embeddings.projection.weight",
                "patch_embed.proj.bias": "hiera.embeddings.patch_embeddings.projection.bias",
                "norm.weight": "hiera.pooler.layernorm.weight",
                "norm.bias": "hiera.pooler.layernorm.bias",
                "head.projection.weight": "classifier.weight",
                "head.projection.bias": "classifier.bias",
            }[key]
        renamed[key] = value
    return renamed


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


LAYOUTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "official": (lambda s: {"model_state": s, "config": {"embed_dim": 16}}, "official"),
    "model": (lambda s: {"model": s, "epoch": 3, "optimizer": {"state": {}}}, "official"),
    "module": (lambda s: {"module": s}, "official"),
    "state_dict": (lambda s: {"state_dict": s}, "official"),
    "bare": (lambda s: s, "official"),
    "ddp": (prefixed("module."), "official"),
    "compiled": (prefixed("_orig_mod."), "official"),
    "compiled_ddp": (prefixed("module._orig_mod."), "official"),
    "averaged": (lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.")(s)}, "official"),
    "timm": (timm_layout, "timm"),
    "transformers": (transformers_layout, "transformers"),
    "half": (lambda s: {key: value.double() for key, value in s.items()}, "official"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str, tmp_path: Path) -> None:
    wrap, layout = LAYOUTS[name]
    trained, model = hiera(IMAGE), hiera(IMAGE, seed=1)
    report = load_weights(model, saved(tmp_path / "x.pth", wrap(official(trained))))
    assert torch.equal(logits(model), logits(trained))
    assert report.layout == layout
    assert report.loaded_frac == 1.0
    assert sorted(report.loaded) == sorted(n for n, _ in model.named_parameters())
    assert report.resized == report.reinitialised == []
    assert report.dropped == (["n_averaged"] if name == "averaged" else [])


def test_safetensors_file_and_foreign_folder(tmp_path: Path) -> None:
    trained, model = hiera(IMAGE), hiera(IMAGE, seed=1)
    save_file(transformers_layout(official(trained)), tmp_path / "model.safetensors")
    load_weights(model, tmp_path / "model.safetensors")
    assert torch.equal(logits(model), logits(trained))

    (tmp_path / "config.json").write_text('{"model_type": "hiera"}')
    model = hiera(IMAGE, seed=1)
    assert load_weights(model, str(tmp_path)).layout == "transformers"
    assert torch.equal(logits(model), logits(trained))
    assert model.card is None
    # transformers leaves defaults out, and this model does not have them.
    with pytest.raises(WeightsError, match="embed_dim is 96, the weights have 16"):
        load_model(tmp_path)


def test_timm_model_gives_the_same_logits(tmp_path: Path) -> None:
    timm_hiera = pytest.importorskip("timm.models.hiera")
    torch.manual_seed(0)
    other = timm_hiera.Hiera(
        img_size=(64, 64), num_classes=5, embed_dim=16, stages=(1, 2, 2, 1), norm_layer="LayerNorm"
    ).eval()
    nn.init.normal_(other.head.fc.weight)
    model = hiera(IMAGE)
    assert load_weights(model, saved(tmp_path / "x.pth", other.state_dict())).loaded_frac == 1.0
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(model(x.unsqueeze(2)), other(x), atol=1e-5)


def test_timm_video_model_gives_the_same_logits(tmp_path: Path) -> None:
    timm_hiera = pytest.importorskip("timm.models.hiera")
    torch.manual_seed(0)
    other = timm_hiera.Hiera(
        img_size=(8, 64, 64),
        num_classes=5,
        embed_dim=16,
        stages=(1, 2, 2, 1),
        q_stride=(1, 2, 2),
        mask_unit_size=(1, 8, 8),
        patch_kernel=(3, 7, 7),
        patch_stride=(2, 4, 4),
        patch_padding=(1, 3, 3),
        sep_pos_embed=True,
    ).eval()
    nn.init.normal_(other.head.fc.weight)
    model = hiera(VIDEO)
    assert load_weights(model, saved(tmp_path / "x.pth", other.state_dict())).loaded_frac == 1.0
    x = torch.randn(2, 3, 8, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(model(x), other(x), atol=1e-5)


def test_transformers_model_gives_the_same_logits(tmp_path: Path) -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    from transformers import HieraConfig, HieraForImageClassification, HieraForPreTraining

    config = HieraConfig(
        embed_dim=16, image_size=[64, 64], depths=[1, 2, 2, 1], num_heads=[1, 2, 4, 8], num_labels=5
    )
    torch.manual_seed(0)
    other = HieraForImageClassification(config).eval()
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.1)
    other.save_pretrained(tmp_path)
    model = hiera(IMAGE)
    assert load_weights(model, tmp_path).loaded_frac == 1.0
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(model(x.unsqueeze(2)), other(x).logits, atol=1e-4)

    config.decoder_hidden_size, config.decoder_depth, config.decoder_num_heads = 32, 2, 2
    config.num_query_pool = 2
    HieraForPreTraining(config).save_pretrained(tmp_path / "mae")
    report = load_weights(model, tmp_path / "mae")
    assert report.renamed == ["encoder_norm -> norm"]
    assert report.reinitialised == list(HEAD)
    assert len(report.loaded) == len(model.state_dict()) - 2


# Masked autoencoders and classifiers.


def test_masked_autoencoder(tmp_path: Path) -> None:
    trained = hiera(VIDEO)
    source = saved(tmp_path / "mae.pth", {"model_state": autoencoder(trained)})
    model = hiera(VIDEO, seed=1)
    report = load_weights(model, source)
    assert report.renamed == ["encoder_norm -> norm"]
    assert report.reinitialised == list(HEAD)
    assert len(report.dropped) == 8
    assert torch.equal(model.norm.weight, trained.norm.weight)
    assert torch.equal(model.blocks[3].attn.qkv.weight, trained.blocks[3].attn.qkv.weight)
    assert model.head.projection.weight.abs().max() < 1e-3  # fresh
    text = str(report)
    assert text.splitlines()[0].startswith(f"{source} (official layout): loaded ")
    assert "reinitialised (2): head.projection.weight, head.projection.bias" in text
    assert "dropped (8): mask_token, decoder_pos_embed" in text
    assert "and 2 more" in text

    assert read_checkpoint(source).num_classes is None
    features = hiera(VIDEO, seed=1, num_classes=0)
    report = load_weights(features, source)
    assert (report.reinitialised, report.loaded_frac) == ([], 1.0)


def test_class_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = hiera(VIDEO)
    source = saved(tmp_path / "x.pth", official(trained))
    model = hiera(VIDEO, seed=1, num_classes=7)
    with caplog.at_level("INFO"):
        report = load_weights(model, source)
    assert caplog.messages == str(report).split("\n")
    assert report.reinitialised == list(HEAD)
    assert logits(model).shape == (2, 7)
    assert report.loaded_frac == pytest.approx(
        1 - 7 * 129 / sum(p.numel() for p in model.parameters())
    )

    report = load_weights(hiera(VIDEO, num_classes=0), source)
    assert report.dropped == list(HEAD)


# Other sizes.


def test_other_lengths_and_sizes(tmp_path: Path) -> None:
    trained = hiera(VIDEO)
    source = saved(tmp_path / "x.pth", official(trained))
    model = hiera(VIDEO, seed=1, input_size=(16, 96, 160))
    report = load_weights(model, source)
    assert report.resized == [
        "pos_embed_temporal: 4 -> 8 (linear)",
        "pos_embed_spatial: 16x16 -> 24x40 (window)",
    ]
    assert report.loaded_frac == 1.0
    assert model.pos_embed_spatial.shape == (1, 960, 16)
    assert logits(model, 1).isfinite().all()
    model = hiera(VIDEO, input_size=(4, 64, 64))
    report = load_weights(model, source)
    assert report.resized == ["pos_embed_temporal: 4 -> 2 (linear)"]
    assert torch.equal(model.pos_embed_spatial, trained.pos_embed_spatial)
    pairs = trained.pos_embed_temporal.unflatten(1, (2, 2)).mean(2)
    assert torch.allclose(model.pos_embed_temporal, pairs, atol=1e-6)


def test_window_resize_keeps_patterns_in_step() -> None:
    pattern, ramp = torch.randn(1, 4, 8, 8), torch.linspace(-1, 1, 7)[:, None].expand(7, 7)
    smooth = F.interpolate(ramp[None, None], scale_factor=8, mode="bicubic")
    smooth = smooth - smooth.unflatten(3, (7, 8)).unflatten(2, (7, 8)).mean((2, 4)).tile(7, 7)
    grid = pattern.tile(7, 7) + smooth
    for size in ((40, 40), (64, 64), (80, 48)):
        out = resize_spatial(grid, size, (8, 8), "window")
        rest = F.interpolate(smooth, size=size, mode="bicubic")
        tiled = pattern.tile(size[0] // 8, size[1] // 8)
        assert torch.allclose(out, tiled + rest, atol=1e-5)
        plain = resize_spatial(grid, size, (8, 8), "bicubic")
        assert (plain - tiled - rest).std() > 0.1 * pattern.std()
    assert torch.allclose(resize_spatial(grid, (56, 56), (8, 8), "window"), grid, atol=1e-5)


def test_refused_resizes() -> None:
    grid = torch.randn(1, 4, 12, 12)
    with pytest.raises(ValueError, match="12x12 tokens does not divide into windows of 8x8"):
        resize_spatial(grid, (24, 24), (8, 8), "window")
    assert resize_spatial(grid, (24, 24), (8, 8), "bicubic").shape == (1, 4, 24, 24)
    with pytest.raises(ValueError, match="allowed are 'window' and 'bicubic'"):
        resize_spatial(grid, (24, 24), (8, 8), "bilinear")


def test_resize_works_in_float32() -> None:
    grid = torch.randn(1, 4, 16, 16, dtype=torch.bfloat16)
    assert resize_spatial(grid, (24, 24), (8, 8), "window").dtype == torch.float32
    assert resize_temporal(torch.randn(1, 4, 8, dtype=torch.float16), 8).dtype == torch.float32


def test_resize_modes(tmp_path: Path) -> None:
    source = saved(tmp_path / "x.pth", official(hiera(VIDEO)))
    window, bicubic = (hiera(VIDEO, input_size=(8, 96, 96)) for _ in range(2))
    load_weights(window, source)
    report = load_weights(bicubic, source, pos_embed_resize="bicubic")
    assert report.resized == ["pos_embed_spatial: 16x16 -> 24x24 (bicubic)"]
    assert not torch.allclose(window.pos_embed_spatial, bicubic.pos_embed_spatial, atol=1e-3)


def test_folder_states_a_grid_that_is_not_square(tmp_path: Path) -> None:
    wide = hiera(VIDEO, input_size=(8, 32, 128))  # 8 x 32 tokens, as many as 16 x 16
    save_model(tmp_path / "w", wide)
    same, square = hiera(VIDEO, 1, input_size=(8, 32, 128)), hiera(VIDEO, 1)
    assert load_weights(same, tmp_path / "w").resized == []
    assert load_weights(square, tmp_path / "w").resized == [
        "pos_embed_spatial: 8x32 -> 16x16 (window)"
    ]
    source = saved(tmp_path / "x.pth", official(wide))
    with pytest.raises(ValueError, match="may be for several sizes"):
        load_weights(same, source)


# Image weights in video models.


def test_a_still_clip_has_the_logits_of_the_image(tmp_path: Path) -> None:
    trained, model = hiera(IMAGE), hiera(VIDEO, seed=1)
    report = load_weights(model, saved(tmp_path / "x.pth", official(trained)))
    assert report.resized == [
        "patch_embed.proj.weight: inflated over 3 frames, zero but in the middle",
        "pos_embed_temporal: 4 zeros, an image has no times",
    ]
    assert report.loaded_frac == 1.0
    still = torch.randn(2, 3, 1, 64, 64)
    with torch.inference_mode():
        expected, found = trained(still), model(still.expand(-1, -1, 8, -1, -1))
    assert (found - expected).abs().max() < 2e-5 * expected.std()


def test_inflated_kernel() -> None:
    kernel = torch.randn(4, 3, 1, 7, 7)
    for frames in (1, 2, 3, 5):
        inflated = inflate_patches(kernel, frames)
        assert inflated.shape == (4, 3, frames, 7, 7)
        assert torch.equal(inflated[:, :, frames // 2], kernel[:, :, 0])
        assert inflated.count_nonzero() == kernel.numel()


def test_image_sizes(tmp_path: Path) -> None:
    trained = hiera(IMAGE)
    source = saved(tmp_path / "x.pth", official(trained))
    model = hiera(IMAGE, seed=1, input_size=(1, 96, 64))
    assert load_weights(model, source).resized == ["pos_embed: 16x16 -> 24x16 (window)"]
    assert logits(model).isfinite().all()


# Refusals.


def refused(path: Path, message: str, arguments: dict[str, Any] = VIDEO, **options: Any) -> None:
    model = hiera(arguments)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(model, path, **options)
    assert str(path) in str(error.value)
    for key, value in model.state_dict().items():  # whole or not at all
        assert torch.equal(value, before[key]), key


def test_unknown_and_missing_keys(tmp_path: Path) -> None:
    state = official(hiera(VIDEO))
    path = saved(tmp_path / "x.pth", {**state, "blocks.0.attn.rel_pos_h": torch.ones(2)})
    refused(path, r"1 of its \d+ keys are not, blocks\.0\.attn\.rel_pos_h")
    path = saved(tmp_path / "x.pth", {f"_{key}": value for key, value in state.items()})
    refused(path, "not a Hiera in a layout that is known: .*_pos_embed_spatial")
    del state["blocks.3.mlp.fc1.bias"]
    path = saved(tmp_path / "x.pth", state)
    refused(path, r"not fit the model: blocks\.3\.mlp\.fc1\.bias is missing, expected \[\d+\]$")


@pytest.mark.parametrize(
    ("file", "model", "differs"),
    [
        ("small_16x224", "tiny_16x224", r"stages \(1, 2, 11, 2\), not \(1, 2, 7, 2\)"),
        ("base_plus_16x224", "base_16x224", "embed_dim 112, not 96"),
        ("base_224", "large_16x224", r"embed_dim 96, not 144, stages \(2, 3, 16, 3\), not"),
        ("huge_16x224", "tiny_224", "embed_dim 256, not 96"),
    ],
)
def test_other_variants(file: str, model: str, differs: str) -> None:
    with torch.device("meta"):
        checkpoint = Checkpoint("x.pth", "official", create_model(f"hiera_{file}").state_dict())
        other = create_model(f"hiera_{model}")
    message = rf"x\.pth looks like hiera_{file}, the model is hiera_{model}: the file has {differs}"
    with pytest.raises(ValueError, match=message):
        load_weights(other, checkpoint)


def test_other_architectures(tmp_path: Path) -> None:
    model = hiera(VIDEO, embed_dim=24)
    path = saved(tmp_path / "w.pth", official(model))
    refused(path, r"looks like custom \(nearest hiera_tiny_16x224\), .* embed_dim 24, not 16")
    other = hiera(VIDEO, num_heads=2)
    save_model(tmp_path / "w", other)
    refused(tmp_path / "w", "num_heads 2, not 1")
    refused(saved(tmp_path / "m.pth", official(hiera(VIDEO, mlp_ratio=2.0))), "blocks.0.mlp.fc1")
    refused(
        saved(tmp_path / "c.pth", official(hiera(VIDEO, in_chans=1))), "patch_embed.proj.weight"
    )
    video = saved(tmp_path / "v.pth", official(hiera(VIDEO)))
    refused(video, "patches over 3 frames do not fit", IMAGE)


def test_report_is_readable() -> None:
    report = LoadReport("x.pth", "timm", loaded=["a"], reinitialised=["b"], loaded_frac=0.5)
    assert str(report) == (
        "x.pth (timm layout): loaded 1 of 2 tensors, 50.0% of the parameters\n"
        "  reinitialised (1): b"
    )
