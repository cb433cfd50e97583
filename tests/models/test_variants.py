"""Variants, and the arguments of `create_model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hiera_video import create_model, list_models
from hiera_video.models.hiera import Hiera
from hiera_video.models.variants import variant_name

# Millions of parameters: the paper's sizes, counted from its table 8, 1000 and 400 classes; the
# last five as timm 1.0.31 has them.
PARAMETERS = {
    "hiera_tiny_224": 27.91,
    "hiera_small_224": 35.01,
    "hiera_base_224": 51.52,
    "hiera_base_plus_224": 69.90,
    "hiera_large_224": 213.74,
    "hiera_huge_224": 672.78,
    "hiera_tiny_16x224": 27.48,
    "hiera_small_16x224": 34.58,
    "hiera_base_16x224": 51.09,
    "hiera_base_plus_16x224": 69.39,
    "hiera_large_16x224": 213.09,
    "hiera_huge_16x224": 671.63,
    "hiera_small_abswin_256": 34.36,
    "sam2_hiera_tiny": 26.85,
    "sam2_hiera_small": 33.95,
    "sam2_hiera_base_plus": 68.68,
    "sam2_hiera_large": 212.15,
}


def create_on_meta(*args: Any, **kwargs: Any) -> Hiera:
    with torch.device("meta"):
        return create_model(*args, **kwargs)


def test_list_models() -> None:
    assert list_models() == list(PARAMETERS)
    assert list_models("*base*_16x224") == ["hiera_base_16x224", "hiera_base_plus_16x224"]
    assert len(list_models(pretrained=True)) == 32
    assert "hiera_base_16x224.mae_k400_ft_k400" in list_models("*16x224*", pretrained=True)
    assert not list_models("hiera_tiny_16x224*", pretrained=True)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    model = create_on_meta(name)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(count, 2) == PARAMETERS[name]
    assert variant_name(model.architecture) == name


@pytest.mark.parametrize(
    ("arguments", "input_size"),
    [
        ({"num_frames": 8}, (8, 224, 224)),
        ({"num_frames": 32, "image_size": 160}, (32, 160, 160)),
        ({"image_size": (320, 192)}, (16, 320, 192)),
    ],
)
def test_sizes(arguments: dict[str, Any], input_size: tuple[int, int, int]) -> None:
    assert create_on_meta("hiera_tiny_16x224", **arguments).input_size == input_size


def test_overrides_as_from_yaml() -> None:
    model = create_on_meta(
        "hiera_tiny_16x224", mask_unit=[2, 8, 8], q_pool=2, in_chans=1, stages=[1, 1, 2, 1]
    )
    assert model.mask_unit == (2, 8, 8)
    assert len(model.pools) == 2
    assert len(model.blocks) == 5
    assert create_on_meta("hiera_tiny_224", num_classes=0)(
        torch.zeros(1, 3, 1, 224, 224, device="meta")
    ).shape == (1, 768)


def test_images_without_a_time_axis() -> None:
    model = create_model("hiera_tiny_224", image_size=32, embed_dim=8, stages=[1, 1, 1, 1]).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        for method in (model, model.forward_features, lambda x: model.forward_intermediates(x)[1]):
            assert torch.equal(method(x), method(x.unsqueeze(2)))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("hiera_bsae_16x224", {}, "'hiera_bsae_16x224' is unknown.*mean 'hiera_base_16x224'"),
        ("hiera_base_16x224.mae_k600", {}, "did you mean 'hiera_base_16x224.mae_k400'"),
        ("hiera_base_16x224.mae_k400", {"checkpoint": "x.pth"}, "no checkpoint beside it"),
        ("hiera_tiny_16x224", {"mask_units": (1, 8, 8)}, "did you mean 'mask_unit'"),
        ("hiera_tiny_16x224", {"image_size": 472}, r"\(16, 480, 480\)"),
        ("hiera_tiny_16x224", {"image_size": (224, 450)}, r"\(16, 224, 448\)"),
        ("hiera_tiny_16x224", {"num_frames": 7}, r"\(8, 224, 224\)"),
        ("hiera_tiny_16x224", {"mask_unit": (1, 6, 8)}, r"multiple of \(1, 8, 8\)"),
        ("hiera_tiny_16x224", {"q_pool": 4}, "q_pool is 4: allowed are 0 to 3"),
        ("hiera_tiny_224", {"num_frames": 16}, "image model, of 1 frame"),
        ("hiera_tiny_16x224", {"pretrained": True}, r"name the weights, .*checkpoint=\.\.\."),
        ("hiera_tiny_16x224", {"features_only": True}, "forward_intermediates"),
        ("hiera_tiny_16x224", {"global_pool": ""}, r"forward_head\(x, pre_logits=True\)"),
        (
            "hiera_tiny_16x224",
            {"zzz": 1},
            r"^'zzz' is unknown\. Arguments are: [^?]*, num_frames, image_size$",
        ),
        (None, {}, "name is None"),
        ("hiera_base_224.mae_in1k_ft", {}, r"published weights have this name; did you mean .*1k'"),
        ("hiera_base_224.zzz", {}, r"weights are hiera_base_224\.mae_in1k, .*_ft_in1k$"),
        ("hiera_tiny_16x224.mae_k40", {}, r"of hiera_tiny_16x224 are published; there are"),
        ("facebook/hiera-base-224-hf", {}, "not the name of a variant, .* hf://OWNER/NAME"),
        (5, {}, "5 is not the name of a variant"),
        ("hiera_tiny_16x224", {"image_size": "large"}, "image_size is 'large'; it must be a whole"),
        (
            "hiera_tiny_16x224",
            {"image_size": (16, 64, 64)},
            r"image_size is .* or \[height, width\]",
        ),
        ("hiera_tiny_16x224", {"num_frames": 0}, "num_frames is 0; it must be a whole number"),
        ("hiera_tiny_16x224", {"stages": 5}, "stages is 5; it must be a list"),
        ("hiera_tiny_16x224", {"drop_path": 1.5}, "drop_path is 1.5; it must be a number"),
        ("hiera_tiny_16x224", {"mask_unit": (8, 8)}, "mask_unit is .* must be a list of 3"),
        ("hiera_tiny_16x224", {"pos_embed_resize": "linear"}, "it must be window or bicubic"),
        ("hiera_tiny_16x224", {"strict": False}, "strict is no argument: a load is whole"),
        ("hiera_tiny_16x224", {"freeze": True}, r"model\.requires_grad_\(False\)"),
        ("hiera_tiny_16x224", {"img_size": 64}, r"image_size=\.\.\. and num_frames="),
        ("hiera_tiny_16x224", {"drop_rate": 0.1}, "head_dropout"),
        ("hiera_tiny_16x224", {"frames": 8}, "did you mean 'num_frames'"),
        ("hiera_tiny_16x224", {"embed_dim": 97, "num_heads": 2}, "num_heads=2 does not divide it"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")  # which knows types, too
def test_refusals(name: str | None, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_on_meta(name, **arguments)


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        create_model("hiera_tiny_224", checkpoint=tmp_path / "weights.pth")
    with pytest.raises(
        FileNotFoundError, match=r"published weights are hiera_base_16x224\.mae_k400,"
    ):
        create_model("hiera_tiny_16x224", checkpoint="mae_k400")  # nobody has published it
    with pytest.raises(
        FileNotFoundError, match="hiera_large_224 has no such tag; did you mean 'mae_in1k_ft_in1k"
    ):
        create_model("hiera_large_224", checkpoint="mae_in1k_ft_in")


def test_none_stands_for_the_default() -> None:
    """As messages about wrong arguments say (`or null`)."""
    arguments: dict[str, Any] = {"input_size": None, "stages": None}
    with torch.device("meta"):
        assert Hiera(**arguments, num_classes=0).input_size == (16, 224, 224)
