"""A folder that `save_model` wrote, without any settings of training, in every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hiera_video import create_autoencoder, create_model, save_model
from hiera_video.cli.main import COMMANDS
from hiera_video.demo.shapes import DemoInstancesData, generate
from hiera_video.models.pretrained import create_detector, create_segmenter

NAME = "hiera_tiny_16x224"
TINY: dict[str, Any] = {"num_frames": 4, "image_size": 32, "embed_dim": 8, "stages": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights folders classifier/ (with class names), nameless/, and one of each other kind."""
    folder = tmp_path_factory.mktemp("bare")
    torch.manual_seed(0)
    model = create_model(NAME, num_classes=2, **TINY)
    save_model(folder / "classifier", model, class_names=["left", "right"])
    save_model(folder / "nameless", model)
    decoder = {"decoder_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
    size = {**TINY, "num_frames": 8, "image_size": 64}
    save_model(folder / "autoencoder", create_autoencoder(NAME, **decoder, **size))
    save_model(folder / "detector", create_detector(NAME, num_classes=3, **TINY))
    size = {**TINY, "num_frames": 1, "image_size": 64}
    segmenter = create_segmenter("hiera_tiny_224", num_classes=3, channels=8, hidden=16, **size)
    save_model(folder / "segmenter", segmenter)
    generate(DemoInstancesData(folder / "shapes"), seed=0, train_pictures=1, val_pictures=2)
    return folder


# For each command that takes a checkpoint: its kind, and the arguments beside it.
ARGUMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "evaluate": ("classifier", ("data.val=TOY/val.csv", "output_dir=OUT", "device=cpu")),
    "predict": ("classifier", ("TOY/val_0.mp4", "device=cpu")),
    "extract": ("classifier", ("TOY/val_0.mp4", "output_dir=OUT", "device=cpu")),
    "export": ("classifier", ("format=pt2", "output_dir=OUT")),
    "convert": ("classifier", ("layout=official", "output=OUT.pth")),
    "visualize mae": ("autoencoder", ("TOY/val_0.mp4", "output_dir=OUT", "device=cpu")),
    "visualize attention": (
        "classifier",
        ("TOY/val_0.mp4", "output_dir=OUT", "device=cpu"),
    ),
    "detect evaluate": (
        "detector",
        ("data.val=BOXES", "data.root=TOY", "output_dir=OUT", "device=cpu"),
    ),
    "detect predict": ("detector", ("TOY/val_0.mp4", "boxes=BOXES", "output_dir=OUT")),
    "instances evaluate": (
        "segmenter",
        ("data.val=SHAPES/val.json", "data.root=SHAPES/pictures", "output_dir=OUT", "device=cpu"),
    ),
    "instances predict": (
        "segmenter",
        ("SHAPES/pictures/val_0000.png", "output_dir=OUT", "device=cpu"),
    ),
}


def run(commands: Any, bare: Path, tmp_path: Path, command: str, *more: str) -> Any:
    kind, arguments = ARGUMENTS[command]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("val_0,0.2,0.1,0.1,0.9,0.9,2,1\n")
    places = {"TOY": commands.toy, "OUT": tmp_path / "out", "BOXES": boxes}
    if kind == "segmenter":
        places["SHAPES"] = bare / "shapes"
    filled = []
    for argument in arguments:
        for place, path in places.items():
            argument = argument.replace(place, str(path))
        filled.append(argument)
    return commands.run(*command.split(), f"checkpoint={bare / kind}", *filled, *more)


@pytest.mark.parametrize("command", ARGUMENTS)
def test_every_command_takes_a_bare_folder(
    command: str, commands: Any, bare: Path, tmp_path: Path
) -> None:
    result = run(commands, bare, tmp_path, command)
    assert result.code == 0, result.err


def test_no_command_is_missing() -> None:
    takes = {name for name, cls in COMMANDS.items() if "checkpoint" in cls.model_fields}
    assert takes == ARGUMENTS.keys()


def test_ids_stand_for_names_that_nobody_knows(commands: Any, bare: Path, tmp_path: Path) -> None:
    checkpoint = f"checkpoint={bare / 'nameless'}"
    result = commands.run("predict", checkpoint, commands.toy / "val_0.mp4", "--json")
    assert {entry["class"] for entry in json.loads(result.out)["classes"]} == {"0", "1"}
    (tmp_path / "val.csv").write_text(f"path,label\n{commands.toy / 'val_0.mp4'},1\n")
    evaluate = (
        "evaluate",
        checkpoint,
        f"data.val={tmp_path / 'val.csv'}",
        f"output_dir={tmp_path}",
    )
    result = commands.run(*evaluate)
    assert result.code == 0, result.err

    result = run(commands, bare, tmp_path, "detect predict", "min_score=0", "top_k=3")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "val_0_detections.json").read_text())
    actions = found["keyframes"][0]["boxes"][0]["actions"]
    assert {(action["id"], action["name"]) for action in actions} == {(1, "1"), (2, "2"), (3, "3")}


def test_a_label_map_names_the_actions_of_a_bare_detector(
    commands: Any, bare: Path, tmp_path: Path
) -> None:
    names = tmp_path / "actions.txt"
    names.write_text("sit\nrun\njump\n")
    result = run(commands, bare, tmp_path, "detect evaluate", f"data.label_map={names}")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["protocols"]["slowfast"]["mean_ap"] is not None


@pytest.mark.parametrize(
    ("command", "kind", "parts"),
    [
        ("evaluate", "autoencoder", ("is a masked autoencoder", "model.init=")),
        ("predict", "detector", ("is an action detector", "hiera-video detect ...")),
        ("detect predict", "classifier", ("is a classifier; expected an action detector",)),
        ("detect evaluate", "autoencoder", ("is a masked autoencoder", "detect train")),
        ("visualize mae", "classifier", ("is a classifier", "hiera-video pretrain")),
        ("visualize attention", "autoencoder", ("is a masked autoencoder", "model.init=")),
        ("visualize attention", "segmenter", ("is an instance segmenter; expected a classifier",)),
        ("export", "autoencoder", ("is a masked autoencoder", "model.init=")),
    ],
)
def test_the_kind_is_checked_first(
    command: str, kind: str, parts: tuple[str, ...], commands: Any, bare: Path, tmp_path: Path
) -> None:
    result = run(commands, bare, tmp_path, command, f"checkpoint={bare / kind}")
    assert result.code == 1
    result.reports(str(bare / kind), *parts)
    assert not (tmp_path / "out").exists()
