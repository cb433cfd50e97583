"""`convert` end to end: there and back, and mistakes in one line."""

import json

import pytest
from safetensors.torch import load_file

from hiera_video.models.hiera import Hiera
from hiera_video.models.saving import save_model

IMAGE = {
    "input_size": (1, 32, 32),
    "embed_dim": 8,
    "stages": (1, 1, 1, 1),
    "patch_kernel": (1, 7, 7),
    "patch_stride": (1, 4, 4),
    "patch_padding": (0, 3, 3),
    "sep_pos_embed": False,
}


@pytest.fixture
def weights(tmp_path):
    save_model(tmp_path / "w", Hiera(**IMAGE, num_classes=3), class_names=["a", "b", "c"])
    return tmp_path / "w"


def test_to_transformers(commands, weights, tmp_path):
    convert = (
        "convert",
        f"checkpoint={weights}",
        "layout=transformers",
        f"output={tmp_path / 'x'}",
    )
    result = commands.run(*convert, "--dry-run")
    assert (result.code, result.out) == (0, f"{tmp_path / 'x'}\n")
    assert not (tmp_path / "x").exists()
    result = commands.run(*convert)
    assert result.code == 0, result.err
    tensors = len(load_file(weights / "model.safetensors"))
    line = f"{tmp_path / 'x'} (transformers layout): {tensors} tensors, read again the same\n"
    assert result.out == line
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    result = commands.run(*convert)
    assert result.code == 1
    result.reports(f"{tmp_path / 'x'} exists: choose another name")


def test_weights_that_are_not_finite(commands, diverged, tmp_path):
    result = commands.run("convert", f"checkpoint={diverged}", f"output={tmp_path / 'x'}")
    assert result.code == 1
    result.reports(f"{diverged} holds values that are not finite: head.projection.bias")
    assert not list(tmp_path.iterdir())


def test_mistakes(commands, weights, tmp_path):
    assert commands.run("convert", f"checkpoint={weights}").code == 2
    result = commands.run("convert", "checkpoint=nowhere", f"output={tmp_path / 'x'}")
    assert result.code == 2
    result.reports("checkpoint is 'nowhere': there is no such file or folder")
    convert = ("convert", f"checkpoint={weights}", f"output={tmp_path / 'x'}", "--json")
    result = commands.run(*convert, "layout=timm")
    assert result.code == 2
    result.reports("timm builds its models by name and at one size")
    for layout, text in (("timm", "the name of a folder"), ("sam2", "sam2 has no model like")):
        file = ("convert", f"checkpoint={weights}", f"output={tmp_path / 'x.pt'}")
        result = commands.run(*file, f"layout={layout}")
        assert result.code == 2
        result.reports(text)
    assert not (tmp_path / "x").exists()
    report = json.loads(commands.run(*convert, "layout=official").out)
    assert (report["layout"], report["path"]) == ("official", str(tmp_path / "x"))
