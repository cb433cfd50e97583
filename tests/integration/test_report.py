"""`report` on what the commands really write."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("plotly")
pytest.importorskip("jinja2")


@pytest.fixture
def made(commands, trained, tmp_path):
    """A copy of a run that was evaluated on a list with an unreadable video, and on its own."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for name, data, code in (("eval", "val_bad.csv", 3), ("eval_train", "train.csv", 0)):
        result = commands.run(
            "evaluate",
            f"checkpoint={run}",
            f"data.val={commands.toy / data}",
            f"output_dir={run / name}",
            "data.num_workers=0",
            "device=cpu",
            "views.num_clips=2",
            "views.num_crops=1",
        )
        assert result.code == code, result.err
    return run


def test_a_run_with_evaluations(commands, made):
    result = commands.run("report", made, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["problems"] == []
    assert found["sections"] == [
        "Overview",
        "Training",
        "Accuracy: eval",
        "Confusions: eval",
        "Videos: eval",
        "Where the model looks: eval",
        "Accuracy: eval_train",
        "Confusions: eval_train",
        "Labels to check: eval_train",
        "Failures",
    ]
    page = (made / "report" / "index.html").read_text("utf-8")
    for name in ("eval", "eval_train"):
        report = json.loads((made / name / "report.json").read_text())
        for value in report["video"].values():
            assert f'data-value="{value}"' in page
    assert "text.mp4" in page
    assert "not_a_video" in page
    # Of 7 one cannot be read; the same 6 with their maps; and the training list.
    assert page.count("<video") == 6 + 6 + 10


def test_a_pretraining_run_beside_another_run(commands, made, tmp_path):
    result = commands.run(*commands.pretrain(tmp_path / "mae", "train.epochs=1"))
    assert result.code == 0, result.err
    arguments = ("report", tmp_path / "mae", made, f"output_dir={tmp_path / 'page'}")
    result = commands.run(*arguments, "num_videos=3", "--json")
    assert result.code == 0, result.err
    sections = json.loads(result.out)["sections"]
    assert sections[:3] == ["Overview", "Training", "mae: Reconstructions: mae"]
    assert "run: Accuracy: eval" in sections
    page = (tmp_path / "page" / "index.html").read_text("utf-8")
    assert "reconstruction loss" in page
    assert "Settings that differ" in page
    assert "masking.mask_ratio" in page


def test_a_run_that_has_not_ended(commands, made, tmp_path):
    shutil.rmtree(made / "weights")
    shutil.rmtree(made / "eval")
    (made / "eval_train" / "scores.npz").unlink()
    with open(made / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "ki')
    result = commands.run("report", made)
    assert result.code == 0, result.err
    assert "metrics.jsonl: 1 line cannot be read" in result.out
    page = (made / "report" / "index.html").read_text("utf-8")
    assert "there is no such file; evaluate again" in page


def test_a_folder_of_something_else_is_refused(commands, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    result = commands.run("report", tmp_path)
    assert result.code == 1
    result.reports(str(tmp_path), "expected config.yaml, report.json or index.jsonl")
    assert not (tmp_path / "report").exists()
