"""Several processes do what one does, with gloo; none of them may hang.

All but the last are forked, with the variables that torchrun sets; test_extract.py and the last
start torchrun.
"""

import csv
import json
import os
import signal
import time

import numpy as np
import pytest

from hiera_video.commands import finetune
from hiera_video.runtime import watch


def test_evaluation_of_a_list_that_does_not_divide(commands, trained, tmp_path):
    """Seven videos, one unreadable, on two processes: report, predictions and scores of one."""
    arguments = ("evaluate", f"checkpoint={trained}", f"data.val={commands.toy / 'val_bad.csv'}")
    arguments = (*arguments, "data.num_workers=0", "device=cpu")
    alone = commands.run(*arguments, f"output_dir={tmp_path / 'one'}")
    assert alone.code == 3
    together = commands.together(*arguments, f"output_dir={tmp_path / 'two'}")
    assert [result.code for result in together] == [3, 3], together

    one, two = (json.loads((tmp_path / n / "report.json").read_text()) for n in ("one", "two"))
    assert one.pop("environment")
    assert two.pop("environment")
    for report, n in ((one, "one"), (two, "two")):
        assert report["settings"].pop("output_dir") == str(tmp_path / n)
    assert one == two
    assert one["expected"] == 7
    assert one["decoded"] == 6
    ours, theirs = (np.load(tmp_path / n / "scores.npz") for n in ("one", "two"))
    assert ours["names"].tolist() == theirs["names"].tolist()
    np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-6)
    tables = []
    for n in ("one", "two"):
        with open(tmp_path / n / "predictions.csv", encoding="utf-8", newline="") as file:
            tables.append(list(csv.reader(file)))
    assert [[c for c in row if "." not in c[:2]] for row in tables[0]] == [
        [c for c in row if "." not in c[:2]] for row in tables[1]
    ]  # all but the probabilities, which the scores are compared for


SMALL_STEPS = "optim.lr=1.0e-3"  # larger ones magnify the rounding of sums in another order


@pytest.fixture(scope="module")
def alone(commands, tmp_path_factory, lines_of):
    """Losses of one process without accumulation."""
    folder = tmp_path_factory.mktemp("alone")
    commands.train(folder, SMALL_STEPS)
    return [line["loss"] for line in lines_of(folder / "metrics.jsonl")]


def test_training_on_two_processes(commands, alone, tmp_path, lines_of):
    """Ten videos in batches of four: the last step of an epoch gives each process one video."""
    results = commands.together(*commands.finetune(tmp_path, SMALL_STEPS))
    assert [result.code for result in results] == [0, 0], results
    losses = [line["loss"] for line in lines_of(tmp_path / "metrics.jsonl")]
    np.testing.assert_allclose(losses, alone, atol=1e-5)


def test_accumulation(commands, alone, tmp_path, lines_of):
    commands.train(tmp_path, SMALL_STEPS, "train.accumulation_steps=2")
    losses = [line["loss"] for line in lines_of(tmp_path / "metrics.jsonl")]
    np.testing.assert_allclose(losses, alone, atol=1e-5)


def test_processes_without_videos_do_not_hang(commands, list_of, tmp_path, lines_of):
    """The last step of an epoch has one video for two processes of two parts each; one file, read
    by one process alone, fails."""
    toy = commands.toy
    names = [*(f"train_{i}.mp4" for i in range(4)), "text.mp4"]
    rows = [(toy / name, ("left", "right")[i % 2]) for i, name in enumerate(names)]
    train = list_of(tmp_path / "train.csv", rows, "path,class_name")
    overrides = (
        SMALL_STEPS,
        f"data.train={train}",
        "train.accumulation_steps=2",
        "train.epochs=4",
        "train.ema_decay=0.5",
        f"data.val={toy / 'val_bad.csv'}",
        "train.evaluate_every=2",
    )
    together = commands.together(*commands.finetune(tmp_path / "two", *overrides))
    assert [result.code for result in together] == [3, 3], together
    assert (tmp_path / "two" / "weights" / "model.safetensors").exists()
    result = commands.run(*commands.finetune(tmp_path / "one", *overrides))
    assert result.code == 3
    one, two = (lines_of(tmp_path / n / "metrics.jsonl") for n in ("one", "two"))
    for ours, theirs in zip(one, two, strict=True):
        for key in ours.keys() - {"step_sec", "data_sec", "checkpoint_sec", "val_sec"}:
            assert theirs[key] == (
                ours[key] if isinstance(ours[key], str) else pytest.approx(ours[key], abs=1e-4)
            )
    failed = [
        sorted((line["step"], line["name"]) for line in lines_of(tmp_path / n / "failures.jsonl"))
        for n in ("one", "two")
    ]
    assert failed[0] == failed[1]
    assert len(failed[0]) == 4 + 2  # epochs, validations


def test_an_evaluation_that_takes_the_main_process_long_is_waited_for(
    commands, tmp_path, monkeypatch
):
    """In a step, the other one would give up."""
    figures = finetune.FinetuneTask.figures
    monkeypatch.setattr(watch, "LIMIT_SEC", 1.5)
    monkeypatch.setattr(
        finetune.FinetuneTask, "figures", lambda *given: time.sleep(3) or figures(*given)
    )
    overrides = ("train.epochs=2", "train.evaluate_every=1")
    overrides = (*overrides, f"data.val={commands.toy / 'val.csv'}", "train.global_batch_size=10")
    results = commands.together(*commands.finetune(tmp_path, *overrides))
    assert [result.code for result in results] == [0, 0], results


def test_sigterm_to_torchrun_saves(commands, tmp_path, lines_of, weights_of):
    overrides = ("train.epochs=30", "train.checkpoint_every=100", "data.num_workers=1")
    process = commands.start(*commands.finetune(tmp_path, *overrides), processes=2)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    result = commands.finish(process)
    assert result.out.count("stopped by SIGTERM; saved step") == 1
    assert "killed by signal" not in result.out
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step_")) == len(lines_of(metrics))
