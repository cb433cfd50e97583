"""A decoder that crashes or hangs costs its video one recorded failure, in every command."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from hiera_video.commands import (  # noqa: F401
    detect_evaluate,
    detect_train,
    evaluate,
    finetune,
    predict,
    pretrain,
)
from hiera_video.runtime import workers
from tests.dying_decoder import open_or_die

CAUSES = {"exit.mp4": "crashed", "hang.mp4": "hung"}
DYING = tuple(CAUSES)
WORKERS = ("data.num_workers=2", "data.deadline_sec=0.5")


@pytest.fixture(autouse=True)
def _dying_decoder(monkeypatch):
    for name, module in [*sys.modules.items()]:
        if name.startswith("hiera_video.") and hasattr(module, "opener"):
            monkeypatch.setattr(module, "opener", lambda *_: open_or_die)
    monkeypatch.setattr(workers, "GRACE_SEC", 0.5)


@pytest.fixture
def videos(commands, list_of, tmp_path):
    """A list of four good videos and two deadly ones."""
    names = [commands.toy / f"train_{i}.mp4" for i in range(4)]
    paths = [names[0], tmp_path / DYING[0], names[1], tmp_path / DYING[1], *names[2:]]
    for name in DYING:
        (tmp_path / name).touch()
    rows = [(path, ("left", "right")[i % 2]) for i, path in enumerate(paths)]
    return list_of(tmp_path / "list.csv", rows, "path,class_name")


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
def test_training(commands, videos, lines_of, tmp_path, command):
    run_dir = tmp_path / "run"
    arguments = getattr(commands, command)(run_dir, f"data.train={videos}", *WORKERS)
    epochs = 2
    if command == "finetune":
        arguments += [f"data.val={videos}", f"train.epochs={epochs}"]
    else:
        arguments += [f"train.epochs={2 * epochs}"]  # of two repeats
    result = commands.run(*arguments)
    assert result.code in (0, 3), result.err
    failures = lines_of(run_dir / "failures.jsonl")
    number = epochs + (command == "finetune")  # reads of the list
    assert sorted((f["path"], f["cause"]) for f in failures) == sorted(
        [(str(tmp_path / name), cause) for name, cause in CAUSES.items()] * number
    )
    assert all(f["message"].startswith(f["path"]) for f in failures)
    steps = [line for line in lines_of(run_dir / "metrics.jsonl") if line["kind"] == "train"]
    assert sum(line["num_clips"] for line in steps) == 4 * epochs * (1 + (command == "pretrain"))
    assert (run_dir / "weights" / "model.safetensors").exists()


def test_evaluation(commands, videos, trained, tmp_path):
    result = commands.run(
        "evaluate",
        f"checkpoint={trained}",
        f"data.val={videos}",
        f"output_dir={tmp_path / 'eval'}",
        "device=cpu",
        *WORKERS,
    )
    assert result.code == 3, result.err
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert (report["expected"], report["decoded"]) == (6, 4)
    assert sorted(f["cause"] for f in report["failed"]) == ["crashed", "hung"]
    with open(tmp_path / "eval" / "predictions.csv", encoding="utf-8") as file:
        assert sum("decoding process" in str(row) for row in csv.DictReader(file)) == 2


def test_prediction(commands, videos, trained, tmp_path):
    good = commands.toy / "train_0.mp4"
    result = commands.run(
        "predict", f"checkpoint={trained}", good, tmp_path / DYING[0], good, "device=cpu", *WORKERS
    )
    assert result.code == 3, result.err
    assert "its decoding process died with exit code 7" in result.out
    assert result.out.count(" %  ") == 4
