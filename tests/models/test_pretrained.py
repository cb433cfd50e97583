"""Models by name and from weights, folders that are written, and the names of the first edition."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import hiera_video
from hiera_video import ModelCard, create_model, load_model, save_model
from hiera_video.errors import ModelError, OutputError, WeightsError
from hiera_video.models.loading import card_of
from hiera_video.models.pretrained import create_autoencoder, create_detector
from hiera_video.settings.video import FrameSampling, Views
from tests.models.tiny_models import IMAGE, VIDEO, hiera, logits, official, saved


def test_create_model_takes_the_class_count_of_the_checkpoint(tmp_path: Path) -> None:
    with torch.device("meta"):
        tiny = create_model("hiera_tiny_16x224", num_classes=3, num_frames=4, image_size=64)
    tiny.to_empty(device="cpu").init_weights()
    source = saved(tmp_path / "x.pth", official(tiny))
    create = {"checkpoint": source, "num_frames": 4, "image_size": 64}
    model = create_model("hiera_tiny_16x224", **create)
    assert model.num_classes == 3
    assert torch.equal(logits(model), logits(tiny))
    assert create_model("hiera_tiny_16x224", **create, num_classes=6).num_classes == 6
    assert all(p.isfinite().all() for p in model.parameters())


# Folders.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask_unit": (2, 8, 8), "q_pool": 2, "num_classes": 0},
        {"mask_unit_attn": (True, False, False, True), "mlp_ratio": 3.0, "num_heads": 2},
        {"q_stride": (2, 2, 2), "q_pool": 1, "mask_unit": (2, 4, 4), "in_chans": 1},
        {k: v for k, v in IMAGE.items() if k.startswith(("input", "patch", "sep"))},
    ],
)
def test_folder_round_trip(changes: dict[str, Any], tmp_path: Path) -> None:
    model = hiera(VIDEO, **changes, drop_path=0.1)
    entries = {"clips": {"spacing": "linspace"}, "notes": {"sampling_rate": 4, "path": "é"}}
    save_model(tmp_path / "run" / "weights", model, **entries)
    for source in (tmp_path / "run" / "weights", tmp_path / "run"):
        again, card = load_model(source)
        assert not again.training
        assert again.architecture == model.architecture
        assert again.state_dict().keys() == model.state_dict().keys()
        for key, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], value)
    torch.manual_seed(0)
    x = torch.randn(1, model.in_chans, *model.input_size)
    with torch.inference_mode():
        assert torch.equal(again(x), model(x))
    assert card == again.card == card_of(model, **entries)
    assert card.num_classes == model.num_classes
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["weights"]


def test_config_of_a_folder(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "ü"]
    save_model(tmp_path / "w", hiera(VIDEO), class_names=names)
    config = json.loads((tmp_path / "w" / "config.json").read_text(encoding="utf-8"))
    assert config["class_names"] == names
    assert config["name"] == "custom (nearest hiera_tiny_16x224)"
    assert (config["mean"], config["std"]) == ([0.45] * 3, [0.225] * 3)
    save_model(tmp_path / "i", hiera(IMAGE), std=[1, 1, 1])
    config = json.loads((tmp_path / "i" / "config.json").read_text(encoding="utf-8"))
    assert (config["mean"], config["std"]) == ([0.485, 0.456, 0.406], [1, 1, 1])


def test_create_model_from_a_folder(tmp_path: Path) -> None:
    trained = hiera(VIDEO)
    folder = tmp_path / "w"
    save_model(folder, trained)
    assert torch.equal(logits(create_model(checkpoint=folder)), logits(trained))
    assert (
        create_model(None, checkpoint=str(folder), drop_path=0.3).blocks[-1].drop_path.rate == 0.3
    )
    longer = create_model(checkpoint=folder, num_frames=16, num_classes=2, image_size=(64, 96))
    assert logits(longer).shape == (2, 2)
    assert longer.input_size == (16, 64, 96)
    with pytest.raises(ValueError, match="the model is hiera_tiny_16x224"):
        create_model("hiera_tiny_16x224", checkpoint=folder)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, None),
        ({"num_frames": 16}, "resized (1): pos_embed_temporal"),
        ({"num_classes": 3}, "reinitialised (2): head.projection"),
        ({"num_classes": 0}, "dropped (2): head.projection"),
    ],
)
def test_what_a_checkpoint_does_not_give_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, int], what: str | None
) -> None:
    """Without changes, nothing is lost: what is saved again has the class names."""
    names = ("a", "b", "c", "d", "ü")
    save_model(tmp_path / "run", hiera(VIDEO), class_names=names)
    caplog.set_level(logging.INFO, "hiera_video")
    model = create_model(checkpoint=tmp_path / "run", **changes)
    warnings = [m for _, level, m in caplog.record_tuples if level == logging.WARNING]
    if what is None:
        assert not warnings
        assert f"{tmp_path / 'run'} (" in caplog.text
        save_model(tmp_path / "again", model)
        assert load_model(tmp_path / "again").card.class_names == names
    else:
        assert warnings[0].startswith(f"{tmp_path / 'run'} (")
        assert any(what in line for line in warnings)


def test_the_sizes_of_a_name_are_a_warning_where_the_checkpoint_has_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A name states sizes, as the docstring says; without one they are the checkpoint's."""
    caplog.set_level("WARNING")  # whatever tests before this one have set
    narrow: dict[str, Any] = {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 1, 1]}
    trained = create_model("hiera_tiny_16x224", num_frames=4, image_size=64, **narrow)
    save_model(tmp_path / "run", trained)
    assert create_model(checkpoint=tmp_path / "run").input_size == (4, 64, 64)
    assert not caplog.messages
    named = create_model("hiera_tiny_16x224", checkpoint=tmp_path / "run", **narrow)
    assert named.input_size == (16, 224, 224)
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert "pos_embed_temporal: 2 -> 8" in caplog.text
    assert "pos_embed_spatial: 16x16 -> 56x56" in caplog.text


def test_home_folders_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_model("~/w", hiera(VIDEO))
    assert torch.equal(logits(create_model(checkpoint="~/w")), logits(hiera(VIDEO)))
    assert load_model("~/w")[1].num_classes == 5
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    with hiera_video.open_video("~/a.png") as video:
        assert (video.height, video.width) == (4, 6)
    assert not (tmp_path / "~").exists()


def test_saving_replaces_weights_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = hiera(VIDEO), hiera(VIDEO, seed=1)
    save_model(tmp_path / "w", first)
    save_model(tmp_path / "w", second)
    assert torch.equal(logits(load_model(tmp_path / "w")[0]), logits(second))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="is not a weights folder"):
        save_model(tmp_path / "mine", first)
    assert (tmp_path / "mine" / "thesis.tex").exists()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    for name in ("w", "new"):
        with pytest.raises(OSError, match="no space left"):
            save_model(tmp_path / name, first)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "w"]
    assert torch.equal(logits(load_model(tmp_path / "w")[0]), logits(second))


def test_files_have_the_mode_of_new_files(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    save_model(tmp_path / "w", hiera(VIDEO))
    modes = {path.stat().st_mode for path in [tmp_path / "new", *(tmp_path / "w").iterdir()]}
    assert len(modes) == 1


def test_weights_that_cannot_be_written(tmp_path: Path, files_up_to: Any) -> None:
    message = f"^{tmp_path / 'w'} cannot be written .File too large.: make room"
    with files_up_to(10_000), pytest.raises(OutputError, match=message):
        save_model(tmp_path / "w", hiera(VIDEO))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"class_names": ["a"]}, "the card: there are 1 class_names for 5 classes"),
        ({"num_classes": 5, "class_names": []}, "num_classes: the model decides, give none"),
        ({"class_name": ["a"]}, "'class_name' is unknown.*; did you mean 'class_names'"),
        ({"mean": 3}, "the card: mean is 3; it must be a list"),
        ({"notes": {"scores": object()}}, r"config\.json cannot hold the card"),
    ],
)
def test_refused_entries(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        save_model(tmp_path / "w", hiera(VIDEO), **entries)
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("unchecked_shapes")  # which knows types, too
def test_arguments_of_other_types(tmp_path: Path) -> None:
    save: Any = save_model
    model = hiera(VIDEO)
    with pytest.raises(ModelError, match=r"the folder is a Hiera: .* save_model\(folder, model\)"):
        save(model, tmp_path / "w")
    with pytest.raises(ModelError, match=r"the card is a list: .* such as class_names=\[\.\.\.\]"):
        save(tmp_path / "w", model, ["a", "b"])
    with pytest.raises(ModelError, match=r"the model is a tuple: .*; load_model returns model"):
        save(tmp_path / "w", (model, None))
    assert not any(tmp_path.iterdir())


def test_the_pair_is_not_the_model(tmp_path: Path) -> None:
    save_model(tmp_path / "w", hiera(VIDEO))
    loaded: Any = load_model(tmp_path / "w")
    with pytest.raises(TypeError, match=r"write model, card = load_model\(\.\.\.\), and call the"):
        loaded(torch.zeros(1))
    with pytest.raises(AttributeError, match=r"returns a pair.* which has 'eval': model\.eval"):
        loaded.eval()
    with pytest.raises(AttributeError, match="no attribute 'zzz'"):
        _ = loaded.zzz
    assert pickle.loads(pickle.dumps(loaded)).card == copy.deepcopy(loaded).card == loaded.card


# Models that their card does not describe.


def test_a_linear_classifier_assigned_by_hand_is_described(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    save_model(tmp_path / "first", hiera(VIDEO), class_names=[*"abcde"], mean=(0.5, 0.5, 0.5))
    model, card = load_model(tmp_path / "first", kind="classifier")
    model.head.projection = nn.Linear(128, 5)  # which may be for the same classes
    save_model(tmp_path / "same", model)
    assert load_model(tmp_path / "same")[1] == card
    model.head.projection = nn.Linear(128, 9)
    assert model.num_classes == 9
    assert not caplog.messages
    save_model(tmp_path / "w", model)
    (warning,) = caplog.messages
    assert "replaced by one of 9 outputs: the names of the 5 classes before are left" in warning
    again, card = load_model(tmp_path / "w", kind="classifier")
    assert torch.equal(logits(again), logits(model))
    assert (card.num_classes, card.class_names, card.mean) == (9, (), (0.5, 0.5, 0.5))
    caplog.clear()
    save_model(tmp_path / "w", model, class_names=[*"123456789"])
    assert not caplog.messages
    assert load_model(tmp_path / "w")[1].class_names == tuple("123456789")
    with pytest.raises(WeightsError, match="there are 5 class_names for 9 classes"):
        save_model(tmp_path / "w", model, class_names=[*"abcde"])
    model.head.projection = nn.Identity()
    save_model(tmp_path / "features", model)
    assert load_model(tmp_path / "features")[1].kind == "backbone"


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "head", nn.Linear(128, 9)),
        lambda model: setattr(model.head, "projection", nn.Linear(128, 9, bias=False)),
        lambda model: setattr(model.head, "projection", nn.Linear(64, 9)),
        lambda model: setattr(model.head, "projection", nn.Sequential(nn.Linear(128, 9))),
    ],
)
def test_other_classifiers_assigned_by_hand_are_not_saved(change: Any, tmp_path: Path) -> None:
    model = hiera(VIDEO)
    change(model)
    with pytest.raises(WeightsError, match=r"head\..* expected .*model\.reset_classifier\("):
        save_model(tmp_path / "w", model)
    assert not any(tmp_path.iterdir())
    model.reset_classifier(9)
    save_model(tmp_path / "w", model)
    assert load_model(tmp_path / "w", kind="classifier")[0].num_classes == 9


def test_a_replaced_classifier_of_a_detector(tmp_path: Path) -> None:
    tiny: dict[str, Any] = {"embed_dim": 8, "stages": [1, 1, 1, 1], "num_frames": 4}
    detector = create_detector("hiera_tiny_16x224", num_classes=2, image_size=64, **tiny)
    save_model(tmp_path / "first", detector, label_map={1: "sit", 2: "run"})
    detector, _ = load_model(tmp_path / "first", kind="detector")
    detector.roi_head.projection = nn.Linear(64, 3)
    save_model(tmp_path / "w", detector)
    again, card = load_model(tmp_path / "w", kind="detector")
    assert (again.num_classes, card.label_map) == (3, {})


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models(wrap: Any, tmp_path: Path) -> None:
    model = hiera(VIDEO)
    save_model(tmp_path / "w", wrap(model))
    assert torch.equal(logits(load_model(tmp_path / "w")[0]), logits(model))


def test_models_of_others_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the model is a Sequential: expected a Hiera"):
        save_model(tmp_path / "w", nn.Sequential(hiera(VIDEO)))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("notes", [{"format": "pt"}, {"name": "mine"}, {"mean": 3}])
def test_notes_that_the_folder_could_not_be_read_with(notes: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"notes: it has {next(iter(notes))}, which config.json"):
        save_model(tmp_path / "w", hiera(VIDEO), notes=notes)
    with pytest.raises(WeightsError, match="changes when it is written as JSON"):
        save_model(tmp_path / "w", hiera(VIDEO), notes={"a": float("inf")})
    assert not any(tmp_path.iterdir())


def test_other_changes_by_hand_are_not_saved(tmp_path: Path) -> None:
    model = hiera(VIDEO)
    model.adapter = nn.Linear(2, 2)
    with pytest.raises(WeightsError, match=r"adapter\.bias is \[2\], expected none.*torch.save"):
        save_model(tmp_path / "w", model)
    assert not any(tmp_path.iterdir())


# What a model remembers of the weights that it loaded.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder of a classifier."""
    save_model(
        tmp_path / "run" / "weights",
        hiera(VIDEO),
        class_names=[*"abcde"],
        multi_label=True,
        mean=(0.5, 0.5, 0.5),
        clips={"sampling_rate": 2},
        views={"num_clips": 2},
    )
    return tmp_path / "run"


def test_nothing_is_lost_on_the_way_through_python(folder: Path, tmp_path: Path) -> None:
    _, card = load_model(folder)
    assert card.class_names == ("a", "b", "c", "d", "e")
    for model in (create_model(checkpoint=folder), load_model(folder, kind="classifier")[0]):
        save_model(tmp_path / "again", model)
        assert load_model(tmp_path / "again")[1] == card
    save_model(tmp_path / "again", model, views={"num_clips": 5})
    assert load_model(tmp_path / "again")[1].views == Views(num_clips=5)
    assert load_model(tmp_path / "again")[1].multi_label


def test_a_fresh_classifier_has_no_class_names(folder: Path, tmp_path: Path) -> None:
    model, card = load_model(folder, kind="classifier")
    model.reset_classifier(5)
    other = create_model(checkpoint=folder, num_classes=3)
    backbone = create_model(checkpoint=folder, num_classes=0)
    for changed in (model, other, backbone):
        save_model(tmp_path / "again", changed)
        again = load_model(tmp_path / "again")[1]
        assert (again.class_names, again.multi_label) == ((), False)
        assert (again.mean, again.clips) == ((0.5, 0.5, 0.5), FrameSampling(sampling_rate=2))
    with pytest.raises(WeightsError, match="5 class_names for 3 classes"):
        save_model(tmp_path / "again", other, card)


def test_the_card_is_of_the_model_not_of_the_file(folder: Path) -> None:
    model, card = load_model(folder, kind="classifier", num_frames=16, image_size=96)
    assert card.architecture == model.architecture
    assert card.architecture["input_size"] == (16, 96, 96)
    assert card.class_names == ("a", "b", "c", "d", "e")


def test_models_without_weights_have_no_card() -> None:
    assert create_model("hiera_tiny_16x224", embed_dim=8, stages=[1, 1, 1, 1]).card is None


# Kinds.


@pytest.fixture
def kinds(tmp_path: Path) -> dict[str, Path]:
    """A weights folder of each kind."""
    name = "hiera_tiny_16x224"
    tiny: dict[str, Any] = {"num_frames": 4, "image_size": 64}
    tiny |= {"embed_dim": 8, "stages": [1, 1, 1, 1]}
    decoder = {"decoder_heads": 1, "decoder_dim": 16, "decoder_depth": 1}
    models = {
        "classifier": create_model(name, num_classes=3, **tiny),
        "backbone": create_model(name, num_classes=0, **tiny),
        "autoencoder": create_autoencoder(name, **decoder, **tiny),
        "detector": create_detector(name, num_classes=2, **tiny),
    }
    for kind, model in models.items():
        save_model(tmp_path / kind, model)
    return {kind: tmp_path / kind for kind in models}


def test_each_kind_is_loaded_as_it_is(kinds: dict[str, Path]) -> None:
    for kind, folder in kinds.items():
        for asked in (None, kind):
            model, card = load_model(folder, kind=asked)
            assert card.kind == kind
            assert card == model.card == card_of(model)
            assert not model.training


def test_all_kinds_have_a_backbone(kinds: dict[str, Path]) -> None:
    for kind, folder in kinds.items():
        model, card = load_model(folder, kind="backbone")
        assert isinstance(model, hiera_video.Hiera)
        assert card.kind == ("classifier" if kind == "classifier" else "backbone")
        assert model.num_classes == (3 if kind == "classifier" else 0)
        assert len(model.pools) == 3
        whole = load_model(folder)[0]
        encoder = whole if isinstance(whole, hiera_video.Hiera) else whole.encoder
        assert torch.equal(model.norm.weight, encoder.norm.weight)


def test_other_kinds_are_refused_before_the_weights_are_read(kinds: dict[str, Path]) -> None:
    for kind, folder in kinds.items():
        (folder / "model.safetensors").unlink()
        for asked in ("classifier", "autoencoder", "detector"):
            if asked != kind:
                with pytest.raises(WeightsError, match=f"^{folder} is an? .*; expected an? "):
                    load_model(folder, kind=asked)
    message = r"mae_k400 is a masked autoencoder.*model\.init=hiera_base_16x224\.mae_k400`$"
    with pytest.raises(WeightsError, match=message):
        load_model("hiera_base_16x224.mae_k400", kind="classifier")


# Published weights.


def test_published_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with torch.device("meta"):
        state = create_model("hiera_tiny_224").state_dict()
    state = {key: torch.zeros(value.shape) for key, value in state.items()}
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].squeeze(2)
    saved(cache / "hiera_tiny_224.pth", {"model_state": state})
    for name, checkpoint in (
        ("hiera_tiny_224.mae_in1k_ft_in1k", None),
        ("hiera_tiny_224", "mae_in1k_ft_in1k"),
        ("hiera_tiny_16x224", "hiera_tiny_224.mae_in1k_ft_in1k"),
    ):
        model = create_model(name, checkpoint=checkpoint)
        assert model.num_classes == 1000
        assert not any(p.any() for p in model.parameters())
    assert model.card is not None
    assert model.card.license == "CC-BY-NC-4.0"
    assert model.card.architecture == model.architecture

    model, card = load_model("hiera_tiny_224.mae_in1k_ft_in1k", kind="classifier")
    assert (card.name, card.num_classes) == ("hiera_tiny_224", 1000)
    save_model(tmp_path / "w", model)
    assert load_model(tmp_path / "w")[1] == card


# Names of the first edition.


def test_from_pretrained_and_save_pretrained(tmp_path: Path) -> None:
    model = hiera_video.Hiera(**VIDEO)
    with pytest.warns(DeprecationWarning, match=r"use hiera_video\.save_model"):
        model.save_pretrained(tmp_path / "x", class_names=[*"abcde"], sampling_rate=4)
    with pytest.warns(DeprecationWarning, match=r"use hiera_video\.load_model"):
        again = hiera_video.Hiera.from_pretrained(tmp_path / "x")
    assert isinstance(again.card, ModelCard)
    assert again.card.class_names == ("a", "b", "c", "d", "e")
    assert again.card.notes == {"sampling_rate": 4}
    assert not again.training
    with pytest.warns(DeprecationWarning, match="save_model"):
        again.save_pretrained(tmp_path / "y", rate=1)
    card = load_model(tmp_path / "y")[1]
    assert card == again.card.model_copy(update={"notes": {"sampling_rate": 4, "rate": 1}})
    with (
        pytest.warns(DeprecationWarning, match="load_model"),
        pytest.raises(ValueError, match=r"revision is 'v1', but .*x is no repository"),
    ):
        hiera_video.Hiera.from_pretrained(tmp_path / "x", revision="v1")
