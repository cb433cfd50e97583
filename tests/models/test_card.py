"""The card: what it says, what it is written as, and what is refused."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hiera_video.errors import ModelError, UserError, WeightsError
from hiera_video.models.card import ModelCard
from hiera_video.models.variants import VARIANTS
from hiera_video.settings.video import Clips, FrameSampling

FIRST_EDITION = Path(__file__).parents[1] / "golden" / "cards"


def card(name: str = "hiera_tiny_16x224", **fields: Any) -> ModelCard:
    architecture = {key: value for key, value in VARIANTS[name].items() if key != "num_classes"}
    return ModelCard(**{"architecture": architecture, "num_classes": 2, **fields})


def read(name: str) -> dict[str, Any]:
    return json.loads((FIRST_EDITION / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "classifier"),
        ({"num_classes": 0}, "backbone"),
        ({"num_classes": None, "autoencoder": {}}, "autoencoder"),
        ({"num_classes": None, "detector": {"num_classes": 3, "roi_resolution": 7}}, "detector"),
    ],
)
def test_kind(fields: dict[str, Any], kind: str) -> None:
    assert card(**fields).kind == kind


def test_what_is_not_given() -> None:
    video, image = card(), card("hiera_base_224")
    assert (video.name, image.name) == ("hiera_tiny_16x224", "hiera_base_224")
    assert (video.mean, video.std) == ((0.45,) * 3, (0.225,) * 3)
    assert (image.mean, image.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert not video.multi_label
    assert video.class_names == ()
    assert video.classes == ("0", "1")
    detector = {"num_classes": 2, "roi_resolution": 7}
    assert card(num_classes=None, detector=detector).actions == {1: "1", 2: "2"}


def test_cards_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        card().multi_label = True
    with pytest.raises(WeightsError, match=r"^ModelCard: class_name is unknown$"):
        card(class_name=["a", "b"])


def test_without_classes() -> None:
    clips = Clips(sampling_rate=2)
    trained = card(class_names=("a", "b"), multi_label=True, clips=clips)
    other = trained.without_classes()
    assert (other.class_names, other.multi_label) == ((), False)
    assert other.clips == clips
    assert trained.class_names == ("a", "b")


# config.json.


@pytest.mark.parametrize("name", ["classifier", "autoencoder", "detector"])
def test_first_edition(name: str) -> None:
    """Read whole, and written again with the same entries."""
    content = read(name)
    found = ModelCard.from_json(content, "config.json")
    assert found.kind == name
    assert found.notes == {}
    assert json.loads(json.dumps(found.to_json())) == content
    assert found.architecture["stages"] == (1, 1, 1, 1)


def test_first_edition_of_a_bare_folder() -> None:
    """It has no `multi_label`, and an entry of the user's own."""
    content = read("bare")
    found = ModelCard.from_json(content, "config.json")
    assert (found.class_names, found.multi_label) == (("left", "right"), False)
    assert found.notes == {"sampling_rate": 4}
    assert json.loads(json.dumps(found.to_json())) == {**content, "multi_label": False}


def test_settings_of_training_are_typed() -> None:
    classifier = ModelCard.from_json(read("classifier"), "config.json")
    assert classifier.clips == Clips(sampling_rate=2, target_fps=25.0)
    detector = ModelCard.from_json(read("detector"), "config.json")
    assert type(detector.clips) is FrameSampling
    assert detector.clips == FrameSampling(sampling_rate=2)


def test_names_and_ids_of_actions() -> None:
    found = ModelCard.from_json(read("detector"), "config.json")
    assert found.actions == found.label_map == {1: "sit", 2: "run"}
    assert found.groups == {1: "pose", 2: "pose"}


@pytest.mark.parametrize(
    "fields",
    [
        {"class_names": ("a", "ü"), "multi_label": True},
        {"clips": {"target_fps": None}, "views": {"num_clips": 2}, "notes": {"notes": "a", "b": 1}},
        {"num_classes": 0, "mean": (0, 0, 0), "std": (1, 1, 1)},
        {"num_classes": None, "autoencoder": {"decoder_heads": 8}, "masking": {"kind": "tube"}},
        {
            "num_classes": None,
            "detector": {"num_classes": 3, "roi_resolution": 7},
            "label_map": {1: "a", 3: "c"},
            "license": "MIT",
            "url": "https://a.b/c.pth",
        },
    ],
)
def test_round_trip(fields: dict[str, Any]) -> None:
    before = card(**fields)
    text = json.dumps(before.to_json())
    assert ModelCard.from_json(json.loads(text), "config.json") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": {}}, "^w/config.json: architecture: it lacks input_size, embed_dim"),
        (
            {"num_classes": "many"},
            "^w/config.json: num_classes is 'many'; it must be a whole number",
        ),
        ({"mean": [0.5]}, r"^w/config.json: mean\.\d is missing"),
        ({"class_names": ["a"]}, "^w/config.json: there are 1 class_names for 2 classes$"),
        ({"label_map": {"sit": 1}}, r"^w/config.json: label_map\.sit"),
        ({"clips": [1]}, r"^w/config.json: clips is \[1\]; it must be keys with values"),
        (
            {"clips": {"sampling_rate": 0}},
            r"^w/config.json: clips\.sampling_rate is 0; it must be 1 or more",
        ),
        (
            {"clips": {"sampling": "clip", "sampling_rate": 0}},
            r"^w/config.json: clips\.sampling_rate is 0; it must be 1 or more",
        ),
        ({"views": {"clips": 1}}, r"^w/config.json: views\.clips is unknown"),
    ],
)
def test_wrong_entries_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        ModelCard.from_json({**card().to_json(), **change}, "w/config.json")


def test_missing_entries_are_named() -> None:
    with pytest.raises(WeightsError, match=r"^w/config.json lacks architecture, num_classes$"):
        ModelCard.from_json({"format": "hiera_video"}, "w/config.json")


def test_what_is_not_json() -> None:
    with pytest.raises(WeightsError, match=r"config.json cannot hold .*object"):
        card(notes={"scores": object()}).to_json()


# What the weights serve for.

KINDS: dict[str, dict[str, Any]] = {
    "classifier": {},
    "backbone": {"num_classes": 0},
    "autoencoder": {"num_classes": None, "autoencoder": {}},
    "detector": {"num_classes": None, "detector": {"num_classes": 3}},
}


@pytest.mark.parametrize("has", KINDS)
@pytest.mark.parametrize("needed", KINDS)
def test_require(has: str, needed: Any) -> None:
    given = card(**KINDS[has])
    if needed in (has, "backbone"):
        given.require(needed, "w")
        return
    with pytest.raises(UserError, match=rf"^w is an? .*{has}.*; expected an? .*{needed}: a run of"):
        given.require(needed, "w")


def test_advice() -> None:
    with pytest.raises(WeightsError, match=r"Fine-tune it: .* model\.init=runs/mae`$"):
        card(**KINDS["autoencoder"]).require("classifier", "runs/mae")
    with pytest.raises(WeightsError, match=r"`hiera-video detect \.\.\.` take it"):
        card(**KINDS["detector"]).require("classifier", "w")


def test_an_unknown_kind_is_named() -> None:
    unchecked: Any = inspect.unwrap(ModelCard.require)  # whose annotation tests check, too
    with pytest.raises(ModelError, match=r"'detctor' is unknown.*did you mean 'detector'"):
        unchecked(card(), "detctor", "x")
