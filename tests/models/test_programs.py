"""Exported files give what the model gives, at any batch size; what differs is reported."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hiera_video.models import programs as export_module
from hiera_video.models.detector import ActionDetector
from hiera_video.models.hiera import Hiera
from hiera_video.models.programs import Comparison, Format, check_installed, export, parts_of

SMALL: dict[str, Any] = {"embed_dim": 16, "stages": (1, 1, 1, 1), "num_classes": 5}
VIDEO = {**SMALL, "input_size": (4, 64, 64)}
IMAGE: dict[str, Any] = {
    **SMALL,
    "input_size": (1, 64, 96),
    "mask_unit": (1, 8, 8),
    "patch_kernel": (1, 7, 7),
    "patch_stride": (1, 4, 4),
    "patch_padding": (0, 3, 3),
    "sep_pos_embed": False,
}
FORMATS = [
    "pt2",
    pytest.param(
        "onnx",
        marks=pytest.mark.skipif(
            any(importlib.util.find_spec(name) is None for name in export_module.NEEDED["onnx"]),
            reason="needs onnx, onnxruntime and onnxscript",
        ),
    ),
]


def hiera(**arguments: Any) -> Hiera:
    """With weights large enough for differences to show."""
    torch.manual_seed(0)
    model = Hiera(**arguments)
    for parameter in model.parameters():
        nn.init.normal_(
            parameter, std=0.3 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
        )
    return model


def load(format: Format, path: Path) -> Callable[..., Tensor]:
    if format == "onnx":
        return export_module._load_onnx(path)
    return torch.export.load(path).module()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("arguments", [{**VIDEO, "mask_unit": (2, 8, 8)}, IMAGE])
def test_classifier(format: Format, arguments: dict[str, Any], tmp_path: Path) -> None:
    model = hiera(**arguments, drop_path=0.5, head_dropout=0.5).train()
    (part,) = parts_of(model)
    assert (part.name, part.output) == ("model", "logits")
    compared = export(part, format, tmp_path / f"model.{format}")
    assert compared.agrees, compared
    assert compared.largest > 0.1
    clips = torch.randn(5, 3, *arguments["input_size"])
    with torch.no_grad():
        expected = model(clips)
    assert torch.allclose(load(format, compared.path)(clips), expected, atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_detector(format: Format, tmp_path: Path) -> None:
    detector = ActionDetector(hiera(**{**VIDEO, "num_classes": 0}), num_classes=4)
    nn.init.normal_(detector.roi_head.projection.weight)
    backbone, head = parts_of(detector)
    for part in (backbone, head):
        compared = export(part, format, tmp_path / f"{part.name}.{format}")
        assert compared.agrees, compared
        assert compared.largest > 0.1
    clips = torch.randn(2, 3, *VIDEO["input_size"])
    maps = load(format, tmp_path / f"backbone.{format}")(clips)
    head_file = load(format, tmp_path / f"head.{format}")
    within = [[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0], [0.4, 0.4, 0.5, 0.5]]
    odd = [[-0.2, 0.5, 1.3, 1.1], [0.7, 0.7, 0.7, 0.7], [1.5, 0.0, 2.0, 1.0]]  # beyond, and empty
    boxes = torch.tensor(within + odd)
    clip_of_box = torch.tensor([1, 0, 1, 0, 0, 1])
    for count in (6, 1, 0):
        with torch.no_grad():
            expected = detector.eval()(clips, boxes[:count], clip_of_box[:count])
        out = head_file(maps, boxes[:count], clip_of_box[:count])
        assert torch.allclose(out, expected, atol=1e-4)
        assert out.shape == (count, 4)


def test_features_without_a_classifier() -> None:
    (part,) = parts_of(hiera(**{**VIDEO, "num_classes": 0}))
    assert part.output == "features"


@pytest.mark.parametrize(
    ("difference", "largest", "agrees"),
    [
        (9e-5, 20.0, True),
        (2e-4, 20.0, False),
        (9e-8, 1e-3, True),
        (2e-7, 1e-3, False),
        (0.0, 0.0, True),
        (float("nan"), 1.0, False),
    ],
)
def test_agreement(difference: float, largest: float, agrees: bool) -> None:
    assert Comparison(Path("x"), difference, largest).agrees is agrees


def test_wrong_files_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shifted = SimpleNamespace(module=lambda: lambda clips: part.module(clips) + 2e-4)
    monkeypatch.setattr(torch.export, "load", lambda _: shifted)
    (part,) = parts_of(hiera(**VIDEO))
    compared = export(part, "pt2", tmp_path / "model.pt2")
    assert not compared.agrees
    assert str(compared).startswith("model.pt2: differs by 2.0e-04 at most, in outputs up to ")


def test_missing_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        export_module.importlib.util,
        "find_spec",
        lambda name: None if name.startswith("onnx") else find_spec(name),
    )
    check_installed("pt2")
    message = r"onnx files need onnx, onnxruntime, onnxscript: pip install 'hiera-video\[onnx\]'"
    with pytest.raises(ImportError, match=message):
        check_installed("onnx")
