"""Each layout there and back, what the other libraries make of it, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hiera_video.models import conversion as convert_module
from hiera_video.models.card import ModelCard
from hiera_video.models.conversion import convert
from hiera_video.models.detector import ActionDetector
from hiera_video.models.hiera import Hiera
from hiera_video.models.layouts import from_official, to_official
from hiera_video.models.loading import card_of, load_weights
from hiera_video.models.pretrained import create_autoencoder, create_model, load_model
from hiera_video.models.saving import save_model
from hiera_video.settings.tools import Layout

IMAGE: dict[str, Any] = {
    "input_size": (1, 64, 64),
    "num_classes": 5,
    "embed_dim": 16,
    "stages": (1, 2, 2, 1),
    "patch_kernel": (1, 7, 7),
    "patch_stride": (1, 4, 4),
    "patch_padding": (0, 3, 3),
    "sep_pos_embed": False,
}
VIDEO: dict[str, Any] = {**IMAGE, "input_size": (4, 64, 64), "sep_pos_embed": True}
VIDEO |= {"patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4), "patch_padding": (1, 3, 3)}
NAMES = ("a", "b", "c", "d", "ü")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)


def described(model: Hiera, **entries: Any) -> ModelCard:
    names = NAMES if model.num_classes else ()
    return card_of(model, **{"mean": MEAN, "std": STD, "class_names": names, **entries})


def with_values(model: Hiera, seed: int = 0) -> Hiera:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def tiny() -> Hiera:
    with torch.device("meta"):
        model = create_model("hiera_tiny_224", num_classes=5)
    return with_values(model.to_empty(device="cpu"))


@pytest.mark.parametrize("layout", ["official", "timm", "transformers"])
@pytest.mark.parametrize("num_classes", [5, 0])
def test_names_there_and_back(layout: Layout, num_classes: int) -> None:
    model = with_values(Hiera(**{**IMAGE, "num_classes": num_classes}))
    renamed = from_official(model.state_dict(), layout, IMAGE["stages"])
    found, state = to_official(renamed)
    assert found == layout
    assert state["patch_embed.proj.weight"].dim() == 4
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].unsqueeze(2)
    assert equal(state, model.state_dict())


@pytest.mark.parametrize("to", ["hiera_video", "official", "timm", "transformers"])
def test_files_there_and_back(to: Layout, tiny: Hiera, tmp_path: Path) -> None:
    count = convert(tiny, described(tiny), to, tmp_path / "there" / "x")
    assert count == len(tiny.state_dict())
    again, card = load_model(tmp_path / "there" / "x", kind="backbone")
    assert again.architecture == tiny.architecture
    assert equal(again.state_dict(), tiny.state_dict())
    if to != "official":
        assert card.class_names == NAMES
    if to in ("hiera_video", "timm"):
        assert card.mean == MEAN
    convert(again, card, "hiera_video", tmp_path / "back")
    model, card = load_model(tmp_path / "back", kind="classifier")
    assert equal(model.state_dict(), tiny.state_dict())
    assert card.name == "hiera_tiny_224"


def test_video_and_its_size(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = create_model("hiera_tiny_16x224", num_classes=2, num_frames=8, image_size=96)
    with_values(model.to_empty(device="cpu"))
    convert(model, card_of(model), "official", tmp_path / "x.pth")
    again, _ = load_model(tmp_path / "x.pth", kind="backbone")
    assert again.architecture == model.architecture
    assert equal(again.state_dict(), model.state_dict())


def test_transformers_gives_the_same_logits(tmp_path: Path) -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    from transformers import HieraForImageClassification, HieraModel

    model, clips = with_values(Hiera(**IMAGE)), torch.randn(2, 3, 1, 64, 64)
    convert(model, described(model), "transformers", tmp_path / "x")
    other, info = HieraForImageClassification.from_pretrained(
        tmp_path / "x", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert other.config.id2label[4] == "ü"
    with torch.inference_mode():
        assert torch.allclose(other.eval()(clips[:, :, 0]).logits, model(clips), atol=1e-4)

    model.reset_classifier(0)
    convert(model, described(model), "transformers", tmp_path / "features")
    backbone = HieraModel.from_pretrained(tmp_path / "features").eval()
    with torch.inference_mode():
        assert torch.allclose(backbone(clips[:, :, 0]).pooler_output, model(clips), atol=1e-4)


def test_timm_gives_the_same_logits(tiny: Hiera, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    convert(tiny, described(tiny), "timm", tmp_path / "x")
    other = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True).eval()
    assert tuple(other.pretrained_cfg["mean"]) == MEAN
    clips = torch.randn(1, 3, 1, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(other(clips[:, :, 0]), tiny(clips), atol=1e-4)


def test_autoencoders_give_their_encoder(tmp_path: Path) -> None:
    arguments = {"embed_dim": 16, "stages": (1, 1, 1, 1), "decoder_dim": 16, "decoder_depth": 1}
    mae = create_autoencoder(
        "hiera_tiny_16x224", num_frames=4, image_size=64, decoder_heads=2, **arguments
    )
    save_model(tmp_path / "mae", mae)
    model, card = load_model(tmp_path / "mae", kind="backbone")
    assert model.num_classes == 0
    convert(model, card, "official", tmp_path / "x.pth")
    again = Hiera(**model.architecture, num_classes=0)
    assert load_weights(again, tmp_path / "x.pth").loaded_frac == 1.0
    assert equal(again.state_dict(), mae.encoder.state_dict())


def test_detectors_give_their_encoder(tmp_path: Path) -> None:
    detector = ActionDetector(Hiera(**{**VIDEO, "num_classes": 0}), num_classes=2)
    save_model(tmp_path / "detector", detector)
    model, card = load_model(tmp_path / "detector", kind="backbone")
    convert(model, card, "official", tmp_path / "x.pth")
    again = Hiera(**model.architecture, num_classes=0)
    assert load_weights(again, tmp_path / "x.pth").loaded_frac == 1.0
    assert equal(again.state_dict(), detector.encoder.state_dict())


def test_refusals(tmp_path: Path) -> None:
    video, image = Hiera(**VIDEO), Hiera(**IMAGE)
    for to in ("timm", "transformers"):
        with pytest.raises(ValueError, match=f"{to} has image models only"):
            convert(video, described(video), to, tmp_path / "x")
    with pytest.raises(ValueError, match="timm builds its models by name"):
        convert(image, described(image), "timm", tmp_path / "x")
    small = Hiera(**IMAGE, mask_unit=(1, 4, 4), q_pool=2)
    with pytest.raises(ValueError, match="refuses mask units of 4 tokens: expected a multiple of"):
        convert(small, described(small), "transformers", tmp_path / "x")
    (tmp_path / "there").touch()
    with pytest.raises(FileExistsError, match="exists: choose another name"):
        convert(image, described(image), "transformers", tmp_path / "there")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]

    convert(image, described(image), "official", tmp_path / "custom.pth")
    with pytest.raises(ValueError, match=r"of no variant .* does not state its architecture"):
        load_model(tmp_path / "custom.pth", kind="backbone")


def test_transformers_states_the_architecture(tmp_path: Path) -> None:
    other = {"input_size": (1, 64, 128), "num_heads": 2, "mask_unit": (1, 8, 16), "mlp_ratio": 2.0}
    model = with_values(Hiera(**{**IMAGE, **other}, q_pool=2))
    convert(model, described(model), "transformers", tmp_path / "x")
    again, _ = load_model(tmp_path / "x", kind="backbone")
    assert again.architecture == model.architecture
    clips = torch.randn(1, 3, 1, 64, 128)
    with torch.inference_mode():
        assert torch.equal(again.eval()(clips), model(clips))

    path = tmp_path / "x" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_heads": [2, 4, 4, 4]}))
    with pytest.raises(ValueError, match=r"num_heads is \[2, 4, 4, 4\]: expected \[2, 4, 8, 16\]"):
        load_model(tmp_path / "x", kind="backbone")


def test_folders_that_transformers_wrote(tmp_path: Path) -> None:
    """Autoencoders pool once less; configs of version 4 leave out what has its default."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    from transformers import HieraConfig, HieraForPreTraining, HieraModel

    config = HieraConfig(
        embed_dim=16, image_size=[64, 64], depths=[1, 2, 2, 1], decoder_hidden_size=16,
        decoder_depth=1, decoder_num_heads=1, num_query_pool=2,
    )  # fmt: skip
    HieraForPreTraining(config).save_pretrained(tmp_path / "mae")
    config.num_query_pool = 3
    HieraModel(config).save_pretrained(tmp_path / "backbone")
    path = tmp_path / "backbone" / "config.json"
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({key: stated[key] for key in stated if key != "num_heads"}))
    expected = Hiera(**{**IMAGE, "num_classes": 0}).architecture
    for name in ("mae", "backbone"):
        model, card = load_model(tmp_path / name, kind="backbone")
        assert model.architecture == expected
        assert (model.num_classes, card.class_names) == (0, ())


def test_what_a_layout_has_no_place_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        model = Hiera(**IMAGE)
        card = described(model, multi_label=True, clips={"sampling_rate": 1})
        convert(model, card, "transformers", tmp_path / "x")
    assert "the transformers layout has no place for mean, std, clips" in caplog.text


@pytest.mark.parametrize("to", ["official", "transformers"])
def test_nothing_is_left_of_what_does_not_come_back(
    to: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(*arguments: Any) -> dict[str, Tensor]:
        state = from_official(*arguments)
        key = next(key for key in state if key.endswith("fc1.bias"))
        return {**state, key: state[key] + 1}

    monkeypatch.setattr(convert_module, "from_official", spoilt)
    model = Hiera(**IMAGE)
    with pytest.raises(RuntimeError, match=r"written: blocks\.0\.mlp\.fc1\.bias$"):
        convert(model, described(model), to, tmp_path / "x")
    assert not any(tmp_path.iterdir())
