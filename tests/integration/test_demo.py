"""The demo end to end on fewer videos, and what it says about a folder that is there already."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from hiera_video.commands import demo as command
from hiera_video.demo import actions as demo_ava
from hiera_video.demo import motions as demo
from hiera_video.settings.load import load_settings
from hiera_video.settings.training import FinetuneSettings
from tests.integration.conftest import environment, run


@pytest.fixture
def few_steps(monkeypatch):
    """Trains for two epochs; the processes that the demo starts find the package."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    for name in ("class_steps", "detection_steps"):
        monkeypatch.setattr(command, name, shortened(getattr(command, name)))


def shortened(steps):
    """`steps`, with two epochs of training."""
    recipes = {"--config=demo/finetune", "--config=demo/ava"}
    return lambda folder, seed: [
        ([*words, "train.epochs=2"] if recipes & {*words} else words, report)
        for words, report in steps(folder, seed)
    ]


def call_here(words, as_json):
    """As `command.call`, in this process, which saves it the imports."""
    result = run(*words, *(["--json"] if as_json else []))
    return result.code, result.out


@pytest.fixture
def few_videos(few_steps, monkeypatch):
    """16 training and 8 validation videos, two epochs."""
    write_all = demo.generate

    def write_few(data, *, seed):
        write_all(data, seed=seed, train_scenes=2, val_scenes=1)

    monkeypatch.setattr(demo, "generate", write_few)
    monkeypatch.setattr(demo, "DURATION_SEC", (1.0, 1.2))


def test_trains_evaluates_predicts_and_resumes(tmp_path, few_videos, monkeypatch):
    folder = tmp_path / "a demo"
    first = run("demo", f"output_dir={folder}", "seed=3", "--json")
    assert first.code == 0, first.err
    result = json.loads(first.out)
    assert result["seed"] == 3
    assert (result["expected"], result["decoded"]) == (8, 8)
    assert result["views"] == {"num_clips": 5, "num_crops": 3}
    assert 0 <= result["video"]["top1"] <= 1
    assert result["prediction"]["path"].startswith(str(folder))
    assert all((folder / path).exists() for path in result["paths"].values())
    meta = json.loads((folder / "run" / "weights" / "config.json").read_text())
    assert tuple(meta["class_names"]) == demo.CLASSES

    weights = (folder / "run" / "weights" / "model.safetensors").read_bytes()
    monkeypatch.setattr(command, "call", call_here)
    again = run("demo", f"output_dir={folder}", "seed=3", "--json")
    assert again.code == 0, again.err
    assert "Evaluated already" in again.err
    assert json.loads(again.out)["video"] == result["video"]
    assert (folder / "run" / "weights" / "model.safetensors").read_bytes() == weights

    other = run("demo", f"output_dir={folder}", "seed=4")
    assert other.code == 1
    other.reports("holds the demo of seed=3", "another folder")


def test_a_step_that_fails_ends_the_demo_with_its_code(tmp_path, few_videos):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "demo.json").write_text('{"seed": 0}\n')
    (tmp_path / "demo" / "run").write_text("in the way\n")
    result = run("demo", f"output_dir={tmp_path / 'demo'}")
    assert result.code not in (0, 3)
    assert "hiera-video finetune" in result.err
    assert "hiera-video evaluate" not in result.err


def test_dry_run_lists_commands_that_can_be_typed_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("demo", "output_dir=some where", "--dry-run")
    assert result.code == 0
    commands = [shlex.split(line) for line in result.out.splitlines()]
    assert [words[:3] for words in commands] == [
        ["OMP_NUM_THREADS=1", "hiera-video", name] for name in ("finetune", "evaluate", "predict")
    ]
    settings = [word for word in commands[0][3:] if not word.startswith("--")]
    config = load_settings(FinetuneSettings, ["demo/finetune"], settings)
    assert config.run_dir == "some where/run"
    assert config.augment.flip is False  # left and right are classes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"mine.txt": "x"}, ["holds other files", "another folder"]),
        ({"demo.json": "{"}, ["demo.json is damaged"]),
        ({"demo.json": '{"seed": 1}'}, ["seed=1", "another folder"]),
    ],
)
def test_leaves_the_folders_of_others_alone(tmp_path, content, parts):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    result = run("demo", f"output_dir={tmp_path}")
    assert result.code == 1
    result.reports(*parts)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_objects_need_their_library_before_anything_is_drawn(tmp_path, monkeypatch, arguments):
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    result = run("demo", "instances", f"output_dir={tmp_path / 'demo'}", *arguments)
    assert result.code == 1
    result.reports("pip install 'hiera-video[instances]'")
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    result = run("demo", f"output_dir={tmp_path / 'file'}")
    assert result.code == 2
    result.reports(f"{tmp_path / 'file'} is a file; name a folder")


def test_detection_prints_the_figures_of_the_detector_of_one_frame_and_of_chance(
    tmp_path, few_steps, monkeypatch
):
    monkeypatch.setattr(command, "call", call_here)
    write_all = demo_ava.generate

    def write_few(data, *, seed):
        write_all(data, seed=seed, train_videos=4, val_videos=3)

    monkeypatch.setattr(demo_ava, "generate", write_few)
    folder = tmp_path / "ava"
    first = run("demo", "ava", f"output_dir={folder}", "seed=3", "--json")
    assert first.code == 0, first.err
    result = json.loads(first.out)
    assert (result["seed"], result["protocol"], result["boxes"]) == (3, "slowfast", "ground truth")
    assert result["mean_ap"].keys() == {"run", "single_frame", "chance"}
    assert all(0 < value < 1 for value in result["mean_ap"].values())
    for name in ("run", "single_frame"):
        report = json.loads((folder / name / "eval" / "report.json").read_text())
        assert report["protocols"]["slowfast"]["mean_ap"] == result["mean_ap"][name]
        assert report["failed"] == []
    assert {path.suffix for path in (folder / "predicted").iterdir()} == {".csv", ".json", ".mp4"}
    one = json.loads((folder / "single_frame" / "weights" / "config.json").read_text())
    assert one["num_frames"] == 1

    again = run("demo", "ava", f"output_dir={folder}", "seed=3")
    assert again.code == 0, again.err
    assert again.err.count("Evaluated already") == 2
    for what in ("8 frames around the key frame", "the key frame alone", "scores at random"):
        assert what in again.out
    other = run("demo", f"output_dir={folder}", "seed=3")
    assert other.code == 1
    other.reports("holds the demo of seed=3 and kind ava")
