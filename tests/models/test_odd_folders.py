"""Weights folders whose files were changed: each loads as a model that computes, or is refused in
one sentence that names the file, in little time."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hiera_video import load_model
from hiera_video.errors import WeightsError
from hiera_video.models.conversion import convert
from hiera_video.models.loading import card_of, encoder_of
from hiera_video.models.saving import save_model
from hiera_video.models.sources import load_card
from tests.models.tiny_models import IMAGE, hiera

FIRST_EDITION = Path(__file__).parents[1] / "golden" / "first_edition"
MAX_SEC = 5.0
DELETED = object()
VALUES = (
    None,
    True,
    -1,
    0,
    2,
    10**9,
    10**30,
    1.5,
    1e308,
    math.nan,
    math.inf,
    "x",
    "8",
    DELETED,
    [],
    [1],
    [10**7] * 4,
    ["a", "a"],
    {},
    {"a": 1},
    {"01": "a"},
)
Path_ = tuple[str | int, ...]


def places(content: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The keys that lead to each entry of JSON, at any depth."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def changed(content: dict[str, Any], place: Path_, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(content)
    group: Any = content
    for key in place[:-1]:
        group = group[key]
    if value is DELETED:
        del group[place[-1]]
    else:
        group[place[-1]] = value
    return content


def compute(folder: Path) -> None:
    """A forward pass of the encoder."""
    model, _ = load_model(folder)
    encoder = encoder_of(model)
    with torch.inference_mode():
        assert encoder(torch.zeros(1, encoder.in_chans, *encoder.input_size)).isfinite().all()


def error_of(call: Callable[[], Any]) -> str:
    """What a call is refused with, or "" if it is not; quickly."""
    start, message = time.perf_counter(), ""
    try:
        call()
    except WeightsError as error:
        message = str(error)
    assert time.perf_counter() - start < MAX_SEC
    assert len(message.splitlines()) <= 1
    assert len(message) < 500
    return message


def refused(call: Callable[[], Any], *names: str) -> str:
    """The sentence with which a call is refused; `names` occur in it."""
    message = error_of(call)
    assert message
    assert all(name in message for name in names), message
    return message


# ---- config.json


@pytest.mark.parametrize("kind", ["classifier", "autoencoder", "detector"])
@pytest.mark.usefixtures("unchecked_shapes")
def test_each_entry_of_a_card(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(FIRST_EDITION / kind, folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    num_refused = num_loaded = 0
    own = ("num_classes", kind, "masking", "label_map", "groups")
    for place in places(content):
        if kind != "classifier" and place[0] not in own:
            continue  # it was tried with the classifier
        for value in VALUES:
            path.write_text(json.dumps(changed(content, place, value)))
            if message := error_of(lambda: load_card(folder)):
                num_refused += 1
                assert str(path) in message
                named = (place[0], "classes", "is not JSON: NaN", "is not JSON: Infinity")
                assert value is DELETED or any(key in message for key in named), (place, message)
            elif place[0] in ("architecture", "autoencoder", "detector", "num_classes"):
                num_loaded += 1
                message = error_of(lambda: compute(folder))
                assert not message or str(folder) in message, (place, value, message)
    assert num_refused > 100
    assert num_loaded > 0


@pytest.mark.parametrize("group", ["architecture", "clips", "views", "detector", "autoencoder"])
def test_an_unknown_key_in_a_group(group: str, tmp_path: Path) -> None:
    kind = group if group in ("detector", "autoencoder") else "classifier"
    folder = tmp_path / "weights"
    shutil.copytree(FIRST_EDITION / kind, folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(changed(content, (group, "other"), 1)))
    refused(lambda: load_card(folder), str(path), f"{group}.other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a", "b", "b", "a"]}, "class_names has 'a', 'b' more than once"),
        ({"class_names": ["a", "b", "c"]}, "there are 3 class_names for 4 classes"),
        ({"num_classes": 10**9}, "num_classes is 1000000000; it must be 1000000 or less"),
        (
            {"num_classes": None},
            "num_classes is None: without an autoencoder, detector or segmenter, expected",
        ),
        ({"autoencoder": {}}, "num_classes is 4: of a masked autoencoder, expected null"),
        (
            {"detector": {"num_classes": 1}},
            "num_classes is 4: of an action detector, expected null",
        ),
        ({"label_map": {"1": "a"}}, "label_map has 1: the detector has 0 actions"),
        ({"std": [0.2, 0.0, 0.2]}, "std.1 is 0; it must be 1e-06 or more"),
        ({"std": [58, 58, 58]}, "std.2 is 58; it must be 1 or less"),
        ({"mean": [123.7, 116.3, 103.5]}, "mean.2 is 103.5; it must be 1 or less"),
        ({"views": {"num_clips": 10**9}}, "views.num_clips is 1000000000; it must be 256 or less"),
        ({"views": {"num_crops": 2}}, "views.num_crops: it is neither 1 nor 3"),
        ({"views": {"num_crops": None}}, "views.num_crops is not set; it must be a whole number"),
        ({"format": "other"}, "format is missing or another one: expected 'hiera_video'"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(FIRST_EDITION / "classifier", folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(lambda: load_card(folder), f"{path}: {message}")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("embed_dim", 8, "architecture.embed_dim is 8, the weights have 4"),
        ("stages", [1000] * 8, "architecture.stages is (1000, 1000, 1000"),
        ("num_heads", 3, "embed_dim is 4: num_heads=3 does not divide it"),
        ("q_pool", 2, "q_pool is 2: allowed are 0 to 1"),
        ("mask_unit", [1, 3, 3], "mask_unit is (1, 3, 3)"),
        ("input_size", [8, 30, 30], "input_size is (8, 30, 30)"),
        ("input_size", [8, 64, 64], "pos_embed_spatial is [1, 64, 4], expected [1, 256, 4]"),
        ("patch_padding", [1, 9, 9], "patch_padding is (1, 9, 9): with patch_kernel=(3, 7, 7)"),
        ("mlp_ratio", 2, "blocks.0.mlp.fc1.bias is [16], expected [8]"),
    ],
)
def test_an_architecture_that_is_not_that_of_the_weights(
    place: str, value: Any, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(FIRST_EDITION / "classifier", folder)
    path = folder / "config.json"
    content = changed(json.loads(path.read_text()), ("architecture", place), value)
    path.write_text(json.dumps(content))
    for load in (load_model, lambda f: load_model(f, num_frames=16, image_size=64)):
        refused(lambda load=load: load(folder), str(path), message)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"a"',
        "[" * 100_000,
        '{"a":' * 100_000,
        "\0" * 100,
        '{"format": "hiera_video"}',
        '{"format": [[[]]]}',
        '{"architecture": {}}',
        '{"format": "hiera_video", "num_classes": ' + "9" * 5000 + "}",
        b"\xff\xfe{}",
        '{"format": "hiera_video", "architecture": ' + "[" * 900 + "]" * 900 + "}",
    ],
)
def test_texts_that_are_no_cards(text: str | bytes, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(FIRST_EDITION / "classifier", folder)
    path = folder / "config.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    for load in (load_card, load_model):
        refused(lambda load=load: load(folder), str(path))


def test_notes_are_kept_unless_they_are_too_deep(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(FIRST_EDITION / "classifier", folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "my_note": [{"a": [1]}]}))
    model, _ = load_model(folder)
    save_model(tmp_path / "again", model)
    assert load_card(tmp_path / "again").notes == {"my_note": [{"a": [1]}]}
    path.write_text(json.dumps(content)[:-1] + ', "my_note": ' + "[" * 500 + "]" * 500 + "}")
    refused(lambda: load_card(folder), str(path), "depth")


def test_nothing_is_interpolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "password")
    folder = tmp_path / "weights"
    shutil.copytree(FIRST_EDITION / "classifier", folder)
    path = folder / "config.json"
    text = "${oc.env:SECRET}"
    content = json.loads(path.read_text()) | {"license": text, "note": text}
    content["class_names"][0] = text
    path.write_text(json.dumps(content))
    card = load_card(folder)
    assert (card.license, card.notes["note"], card.class_names[0]) == (text, text, text)
    path.write_text(json.dumps(content | {"num_classes": "${oc.env:SECRET}"}))
    assert "password" not in refused(lambda: load_card(folder), "num_classes")


@pytest.mark.usefixtures("unchecked_shapes")
def test_each_entry_of_a_config_of_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    model = hiera(IMAGE)
    convert(model, card_of(model, class_names=list("abcde")), "transformers", folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["pretrained_cfg"] = {"mean": [0.4] * 3, "std": [0.2] * 3}
    for key in content:
        for value in (None, -1, "x", [10**7] * 4):
            path.write_text(json.dumps(changed(content, (key,), value)))
            message = error_of(lambda: compute(folder))
            assert not message or "config.json" in message, (key, value, message)


def test_a_name_of_two_classes_gets_the_id(tmp_path: Path) -> None:
    """Two classes of ImageNet are called crane."""
    model = hiera(IMAGE)
    convert(model, card_of(model, class_names=list("abcde")), "transformers", tmp_path / "w")
    path = tmp_path / "w" / "config.json"
    content = json.loads(path.read_text())
    names = {"0": "bird", "1": "crane", "2": "fish", "3": "crane", "4": "dog"}
    path.write_text(json.dumps(content | {"id2label": names}))
    _, card = load_model(tmp_path / "w")
    assert card.class_names == ("bird", "crane 1", "fish", "crane 3", "dog")


# ---- model.safetensors


def overwrite(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


BEYOND = {"blocks.0.norm1.weight": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4]}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: os.truncate(path, 100),
        overwrite(b""),
        overwrite(bytes(5000)),
        overwrite(struct.pack("<Q", 10**18) + b"{}"),
        overwrite(header("{")),
        overwrite(header("[]")),
        overwrite(header("{}")),
        overwrite(header('{"a":' * 10_000)),
        overwrite(header(json.dumps(BEYOND)) + bytes(4)),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_damaged_tensors(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(FIRST_EDITION / "classifier", folder)
    damage(folder / "model.safetensors")
    refused(lambda: load_model(folder), str(folder / "model.safetensors"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_tensors_that_are_no_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(FIRST_EDITION / "classifier", folder)
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, "norm.bias": state["norm.bias"].to(dtype)}, path)
    refused(lambda: load_model(folder), f"{path}: norm.bias is {dtype}: expected floats")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_other_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(FIRST_EDITION / "classifier", folder)
    path = folder / "model.safetensors"
    state = load_file(FIRST_EDITION / "classifier" / "model.safetensors")
    save_file({key: value.to(dtype) for key, value in state.items()}, path)
    model, _ = load_model(folder)
    assert model.norm.bias.dtype == torch.float32
    assert torch.equal(model.norm.bias, state["norm.bias"].to(dtype).float())


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_other_tensors(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(FIRST_EDITION / "classifier", folder)
    path = folder / "model.safetensors"
    state = load_file(path)
    if change == "missing":
        del state["blocks.1.norm1.bias"]
    elif change == "extra":
        state["blocks.7.norm1.bias"] = torch.zeros(3)
    else:
        state["blocks.1.norm1.bias"] = torch.zeros(3)
    save_file(state, path)
    refused(lambda: load_model(folder), str(folder), "blocks.")
