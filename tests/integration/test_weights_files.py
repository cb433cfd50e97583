"""Weights as others have them, in the commands: files, converted folders, and class names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hiera_video import create_model, load_model, save_model
from hiera_video.cli.main import COMMANDS
from hiera_video.models.conversion import convert
from hiera_video.models.hiera import Hiera
from hiera_video.models.loading import card_of
from hiera_video.models.variants import VARIANTS, VIDEO
from tests.integration.test_convert import IMAGE

NAMES = ("left", "right")
SMALL = "hiera_nano_16x224"


@pytest.fixture(autouse=True, scope="module")
def small_variant() -> Iterator[None]:
    """A file without a card must be of a variant."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            VARIANTS, SMALL, {**VIDEO, "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
        )
        yield


@pytest.fixture(scope="module")
def official(small_variant: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the official code and SlowFast write it, with an average beside the weights.

    The average has the logits of the two classes exchanged.
    """
    torch.manual_seed(0)
    state = create_model(SMALL, num_classes=2, num_frames=2, image_size=32).state_dict()
    state["head.projection.weight"] = torch.randn(2, 64)
    averaged = {**state}
    for key in ("head.projection.weight", "head.projection.bias"):
        averaged[key] = state[key].flip(0)
    path = tmp_path_factory.mktemp("official") / "hiera.pth"
    torch.save({"model_state": state, "model_ema": averaged, "epoch": 3, "cfg": "TRAIN:"}, path)
    return path


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names") / "classes.txt"
    path.write_text("\n".join(NAMES))
    return path


def evaluate(commands: Any, checkpoint: Path, output: Path, *more: str) -> Any:
    val = f"data.val={commands.toy / 'val.csv'}"
    checkpoint_and_output = (f"checkpoint={checkpoint}", f"output_dir={output}")
    quick = ("data.num_workers=0", "device=cpu", "views.num_clips=1", "views.num_crops=1")
    return commands.run("evaluate", *checkpoint_and_output, val, *quick, *more)


def test_an_official_file_is_evaluated_and_named(
    commands: Any, official: Path, names: Path, tmp_path: Path
) -> None:
    result = evaluate(commands, official, tmp_path / "nameless")
    assert result.code == 1
    result.reports("unknown class", f"{official} does not name its 2 classes: data.class_names=")
    result = evaluate(commands, official, tmp_path / "named", f"data.class_names={names}")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "named" / "report.json").read_text())
    assert report["decoded"] == 7
    assert "model_state, of model_state, model_ema (weights_key=model_ema" in result.err
    # Of two classes, exchanged logits give the rest of the accuracy.
    ema = evaluate(
        commands, official, tmp_path / "ema", f"data.class_names={names}", "weights_key=model_ema"
    )
    assert ema.code == 0, ema.err
    averaged = json.loads((tmp_path / "ema" / "report.json").read_text())
    assert averaged["video"]["top1"] == pytest.approx(1 - report["video"]["top1"])

    output = f"output={tmp_path / 'converted'}"
    convert = ("convert", f"checkpoint={official}", output, f"data.class_names={names}")
    assert commands.run(*convert).code == 0
    assert load_model(tmp_path / "converted")[1].class_names == NAMES
    again = evaluate(commands, tmp_path / "converted", tmp_path / "again")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "again" / "report.json").read_text())["video"] == report["video"]


def test_the_other_commands_take_a_file(commands: Any, official: Path, tmp_path: Path) -> None:
    video, checkpoint = commands.toy / "val_0.mp4", f"checkpoint={official}"
    key = "weights_key=model_ema"
    predict = ("predict", video, checkpoint, "views.num_clips=1", "device=cpu", "--json")
    plain, averaged = (
        {c["class"]: c["probability"] for c in json.loads(commands.run(*words).out)["classes"]}
        for words in (predict, (*predict, key))
    )
    assert plain == pytest.approx({"0": averaged["1"], "1": averaged["0"]}, abs=1e-5)
    output = f"output_dir={tmp_path / 'features'}"
    result = commands.run("extract", video, checkpoint, key, output, "device=cpu", "--dry-run")
    assert result.code == 0, result.err
    export = ("export", checkpoint, key, "format=pt2", f"output_dir={tmp_path}/e", "--dry-run")
    assert commands.run(*export).code == 0
    result = commands.run("detect", "predict", video, checkpoint, f"boxes={official}")
    assert result.code == 1
    result.reports(f"{official} is a classifier; expected an action detector")


def test_every_command_with_a_checkpoint_has_a_weights_key() -> None:
    for name, cls in COMMANDS.items():
        has = "checkpoint" in cls.model_fields
        assert ("weights_key" in cls.model_fields) == has, name


def test_training_starts_from_one_of_several_states(
    commands: Any, official: Path, tmp_path: Path
) -> None:
    start = (f"model.init={official}", f"model.name={SMALL}", "--dry-run")
    for key, taken in (("null", "model_state"), ("model_ema", "model_ema")):
        words = commands.finetune(tmp_path / "run", *start, f"model.weights_key={key}")
        result = commands.run(*words)
        assert result.code == 0, result.err
        assert f"taken (1): {taken}, of model_state, model_ema" in result.err
    result = commands.run(*commands.finetune(tmp_path / "run", "model.weights_key=ema"))
    assert result.code == 2
    result.reports("model.weights_key is 'ema'; it must be null without init")


def test_class_names_that_do_not_fit(
    commands: Any, trained: Path, official: Path, tmp_path: Path
) -> None:
    three, turned = tmp_path / "three.txt", tmp_path / "turned.txt"
    three.write_text("a\nb\nc\n")
    turned.write_text("right\nleft\n")
    for checkpoint, file, parts in (
        (official, three, ("which has 3 names: the checkpoint has 2 classes",)),
        (trained, turned, ("class 0 is 'right': it is 'left' in the checkpoint",)),
    ):
        given = f"data.class_names={file}"
        result = evaluate(commands, checkpoint, tmp_path / "x", given)
        assert result.code == 2
        result.reports(f"data.class_names is {file}", *parts)
        output = f"output={tmp_path / 'x'}"
        result = commands.run("convert", f"checkpoint={checkpoint}", output, given)
        assert result.code == 2
        result.reports(f"data.class_names is {file}", *parts)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("layout", ["transformers", "hiera_video"])
def test_what_convert_wrote_is_evaluated(layout: Any, commands: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Hiera(**IMAGE, num_classes=2)
    convert(model, card_of(model, class_names=NAMES), layout, tmp_path / "w")
    result = evaluate(commands, tmp_path / "w", tmp_path / "out")
    assert result.code == 0, result.err


def test_a_card_of_the_required_entries_is_enough(commands: Any, tmp_path: Path) -> None:
    save_model(tmp_path / "w", Hiera(**IMAGE, num_classes=2))
    path = tmp_path / "w" / "config.json"
    content = json.loads(path.read_text())
    needed = {key: content[key] for key in ("format", "architecture", "num_classes")}
    assert needed.keys() < content.keys()
    path.write_text(json.dumps({**needed, "class_names": NAMES}))
    result = evaluate(commands, tmp_path / "w", tmp_path / "out")
    assert result.code == 0, result.err
