"""Layers, pooling, types of number, and the models that features are taken from."""

from __future__ import annotations

import pytest
import torch

from hiera_video.extraction.features import FeatureExtractor, fingerprint
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import create_autoencoder, create_model, load_model
from hiera_video.models.saving import save_model

TINY = {"num_frames": 4, "image_size": 32, "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
NORMALIZE = Normalize((0.45,) * 3, (0.225,) * 3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("hiera_tiny_16x224", num_classes=5, **TINY).eval()


@pytest.fixture(scope="module")
def views():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 255, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)


def extractor(model, **changes):
    settings = {"layer": "pre_logits", "device": torch.device("cpu"), "normalize": NORMALIZE}
    settings |= changes
    return FeatureExtractor(model, **settings)


@torch.inference_mode()
def test_stages_are_in_space_time_order(model, views):
    clips = NORMALIZE(views)
    for stage, expected in enumerate(model.forward_intermediates(clips)):
        layer = f"stage{stage + 1}"
        tokens = extractor(model, layer=layer, pooling="none")(views)
        torch.testing.assert_close(tokens, expected)
        for pooling, axes in (("mean", (1, 2, 3)), ("spatial", (2, 3)), ("temporal", 1)):
            pooled = extractor(model, layer=layer, pooling=pooling)(views)
            torch.testing.assert_close(pooled, expected.mean(axes))


@torch.inference_mode()
def test_pre_logits_and_logits(model, views):
    clips = NORMALIZE(views)
    features = extractor(model)(views)
    torch.testing.assert_close(model.head(features), model(clips))
    torch.testing.assert_close(extractor(model, layer="logits")(views), model(clips))


def test_features_do_not_depend_on_the_batch(model, views):
    together = extractor(model)(views)
    apart = torch.cat([extractor(model)(view[None]) for view in views])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_types(model, views, dtype, precision):
    features = extractor(model, dtype=dtype, precision=precision)(views)
    assert features.dtype == getattr(torch, dtype)
    torch.testing.assert_close(features.float(), extractor(model)(views), atol=0.1, rtol=0.1)


def test_layers_that_a_model_lacks(model):
    headless = create_model("hiera_tiny_16x224", num_classes=0, **TINY)
    with pytest.raises(ValueError, match="no classifier, take pre_logits"):
        extractor(headless, layer="logits")
    with pytest.raises(ValueError, match="only mean works"):
        extractor(model, pooling="spatial")
    with pytest.raises(ValueError, match="stage1, stage2, stage3, stage4, pre_logits"):
        extractor(model, layer="stage5")


def test_fingerprint_distinguishes_weights_and_architectures(model):
    same = create_model("hiera_tiny_16x224", num_classes=5, **TINY)
    assert fingerprint(same) != fingerprint(model)
    same.load_state_dict(model.state_dict())
    assert fingerprint(same) == fingerprint(model)


def test_backbones_of_folders(model, tmp_path):
    save_model(tmp_path / "classifier", model)
    loaded, card = load_model(tmp_path / "classifier", kind="backbone")
    assert fingerprint(loaded) == fingerprint(model)
    assert (card.mean, card.std) == ((0.45,) * 3, (0.225,) * 3)
    assert card.kind == "classifier"
    longer, _ = load_model(tmp_path / "classifier", num_frames=8, image_size=64, kind="backbone")
    assert longer.input_size == (8, 64, 64)

    mae = create_autoencoder(
        "hiera_tiny_16x224",
        decoder_heads=2,
        decoder_dim=16,
        decoder_depth=1,
        **TINY,
    )
    save_model(tmp_path / "mae", mae)
    encoder, card = load_model(tmp_path / "mae", kind="backbone")
    assert card.kind == "backbone"
    assert encoder.num_classes == 0
    assert extractor(encoder)(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)).shape == (1, 64)
