"""Folders of runs as they are found: whole, half-written, damaged, or of something else."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from hiera_video.errors import UserError
from hiera_video.report.common import curves, differing, failures, overview
from hiera_video.report.runs import evaluation_command, read_run, unique_names
from tests.report.synthetic import steps, write_json, write_lines

CONFIG = "data: {train: train.csv}\noptim: {lr: 1e-3}\n"


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("classification", {"config.yaml": CONFIG}),
        ("classification", {"metrics.jsonl": json.dumps(steps(1)[0])}),
        ("classification", {"report.json": '{"video": {"top1": 1.0}}'}),
        ("classification", {"eval/report.json": '{"video": {"top1": 1.0}}'}),
        ("pretraining", {"config.yaml": "masking: {mask_ratio: 0.9}\n"}),
        ("detection", {"config.yaml": "data: {label_map: actions.pbtxt}\n"}),
        ("detection", {"report.json": '{"protocols": {}}'}),
        ("instances", {"config.yaml": "model: {num_boxes: 512}\n"}),
        ("instances", {"eval/report.json": '{"kinds": {}}'}),
        ("extraction", {"index.jsonl": ""}),
    ],
)
def test_what_a_folder_is_follows_from_its_files(tmp_path, kind, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_run(tmp_path).kind == kind


@pytest.mark.parametrize("name", ["", "missing", "notes.txt"])
def test_other_folders_and_files_are_refused(tmp_path, name):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="not the folder of a run, of an evaluation or of an ext"):
        read_run(tmp_path / name)


def test_a_folder_of_runs_is_refused_with_their_names(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(CONFIG)
    (tmp_path / "other").mkdir()
    message = f"it holds runs: {str(tmp_path / 'a')!r}, {str(tmp_path / 'b')!r}"
    with pytest.raises(UserError, match=f"{re.escape(message)}$"):
        read_run(tmp_path)


def test_a_torn_last_line_is_counted_and_the_others_are_shown(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    write_lines(tmp_path / "metrics.jsonl", steps(3), torn='{"step": 4, "ki')
    run = read_run(tmp_path)
    assert run.problems == [f"{tmp_path / 'metrics.jsonl'}: 1 line cannot be read"]
    found, losses = run.series("train", "loss")
    assert found.tolist() == [1, 2, 3]
    assert losses.tolist() == [1, 1 / 2, 1 / 3]


def test_lines_that_are_no_records_of_steps_are_counted(tmp_path):
    lines = [*steps(2), {"kind": "train", "loss": 1}, {"step": "3", "kind": "train"}, [1], 2]
    write_lines(tmp_path / "metrics.jsonl", lines)
    run = read_run(tmp_path)
    assert len(run.metrics) == 2
    assert f"{tmp_path / 'metrics.jsonl'}: 4 lines cannot be read" in run.problems
    assert overview([run]).blocks


def test_a_figure_that_is_not_a_number_is_left_out_of_its_curve(tmp_path):
    lines = steps(3)
    lines[1]["loss"] = None  # as a step that was not finite
    write_lines(tmp_path / "metrics.jsonl", lines)
    assert read_run(tmp_path).series("train", "loss")[0].tolist() == [1, 3]


def test_a_run_that_has_only_begun_says_what_is_missing(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    run = read_run(tmp_path)
    assert run.problems == [f"{tmp_path / 'metrics.jsonl'}: no step was reported yet"]
    assert curves([run]) is None
    assert failures([run]) is None
    _, table = overview([run]).blocks
    (row,) = table.rows
    assert row[:4] == [run.name, "classification", None, "no"]


@pytest.mark.parametrize("name", ["run.json", "report.json", "config.yaml"])
@pytest.mark.parametrize("content", ['{"a": [1,', "[1, 2]", "7"])
def test_a_damaged_file_is_named_and_the_rest_is_read(tmp_path, name, content):
    (tmp_path / "config.yaml").write_text(CONFIG)
    write_lines(tmp_path / "metrics.jsonl", steps(2))
    (tmp_path / name).write_text(content)
    run = read_run(tmp_path)
    (problem,) = run.problems
    assert problem.startswith(str(tmp_path / name))
    assert len(run.metrics) == 2
    assert run.record == {}
    assert run.evaluations == []
    assert curves([run]).blocks


def test_names_have_as_many_folders_as_tell_runs_apart(tmp_path):
    folders = ["a/run", "b/run", "c/other"]
    for folder in folders:
        write_lines(tmp_path / folder / "metrics.jsonl", steps(1))
    runs = [read_run(tmp_path / folder) for folder in folders]
    assert unique_names(runs[1:]) == ["run", "other"]
    assert unique_names(runs) == folders
    assert unique_names([runs[0], runs[0]]) == [str(tmp_path / "a/run")] * 2


def test_settings_that_differ(tmp_path):
    texts = [CONFIG, "data: {train: train.csv}\noptim: {lr: 1e-4, betas: [0.9, 0.95]}\n"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "config.yaml").write_text(text)
    runs = [read_run(tmp_path / "0"), read_run(tmp_path / "1")]
    table = differing(runs)
    assert [column.name for column in table.columns] == ["setting", "0", "1"]
    assert table.rows == [["optim.betas", None, "[0.9, 0.95]"], ["optim.lr", "1e-3", "1e-4"]]
    assert "the same" in differing([runs[0], runs[0]]).text


def test_curves_of_runs_are_over_one_another_and_averaged(tmp_path):
    write_lines(tmp_path / "short/metrics.jsonl", steps(2))
    long = [line | {"loss": float(line["step"])} for line in steps(2500)]
    write_lines(tmp_path / "long/metrics.jsonl", long)
    section = curves([read_run(tmp_path / "short"), read_run(tmp_path / "long")])
    loss = section.blocks[0]
    assert [trace["name"] for trace in loss.data] == ["short", "long"]
    assert loss.data[0]["y"] == [1.0, 0.5]
    assert loss.data[1]["y"][:2] == [2.0, 5.0]  # of steps 1 to 3, and 4 to 6
    assert loss.data[1]["y"][-1] == 2500.0
    waiting = next(block for block in section.blocks if "waits" in block.caption)
    assert set(waiting.data[0]["y"]) == {0.25}  # half a second of two


def test_a_single_step_is_a_point(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", steps(1))
    loss = curves([read_run(tmp_path)]).blocks[0]
    assert loss.data[0]["mode"] == "lines+markers"
    write_lines(tmp_path / "metrics.jsonl", steps(2))
    assert curves([read_run(tmp_path)]).blocks[0].data[0]["mode"] == "lines"


def test_a_run_that_has_not_ended_is_evaluated_by_its_last_checkpoint_into_its_folder(tmp_path):
    for step in (9, 27):
        write_json(tmp_path / f"checkpoints/step_{step:08}/weights/config.json", {})
    (tmp_path / "checkpoints/step_00000030").mkdir()  # not written to the end
    (tmp_path / "config.yaml").write_text(CONFIG)
    run = read_run(tmp_path)
    assert shlex.split(evaluation_command(run, "detect evaluate", "data.val=a b.csv")) == [
        "hiera-video", "detect", "evaluate",
        f"checkpoint={tmp_path / 'checkpoints/step_00000027'}", f"output_dir={tmp_path / 'eval'}",
        "data.val=a b.csv",
    ]  # fmt: skip
    (tmp_path / "weights").mkdir()
    ended = evaluation_command(run, "evaluate", "data.val=a.csv")
    assert ended == f"hiera-video evaluate checkpoint={tmp_path} data.val=a.csv"


def test_failures_of_training_and_evaluation_are_listed_with_their_causes(tmp_path):
    failure = {"name": "a.mp4", "path": "/v/a.mp4", "cause": "truncated", "message": "cut off"}
    write_lines(tmp_path / "metrics.jsonl", steps(1))
    again = failure | {"message": "cut off at another frame"}
    write_lines(tmp_path / "failures.jsonl", [failure, again])  # in two epochs
    other = failure | {"name": "b.mp4", "cause": "missing"}
    write_json(tmp_path / "eval/report.json", {"video": {}, "failed": [failure, other]})
    section = failures([read_run(tmp_path)])
    (table,) = section.blocks
    assert [(row[0], row[1], row[3]) for row in table.rows] == [
        ("a.mp4", "truncated", "training"),
        ("a.mp4", "truncated", "evaluation eval"),
        ("b.mp4", "missing", "evaluation eval"),
    ]
    assert section.intro == "3 failures by cause: truncated 2, missing 1."


def test_failures_of_an_extraction_are_listed(tmp_path):
    write_lines(tmp_path / "index.jsonl", [])
    row = {"video": "a.mp4", "path": "/v/a.mp4", "cause": "truncated", "error": "cut off"}
    write_lines(tmp_path / "failures.jsonl", [row])
    (table,) = failures([read_run(tmp_path)]).blocks
    assert [row[:4] for row in table.rows] == [["a.mp4", "truncated", "cut off", "extraction"]]


def test_figures_of_validation_have_words_and_are_shares(tmp_path):
    lines = [{"step": 5, "kind": "val", "top1": 0.5, "map_slowfast": 0.25, "decoded": 96}]
    write_lines(tmp_path / "metrics.jsonl", lines)
    section = curves([read_run(tmp_path)])
    assert [plot.caption for plot in section.blocks] == [
        "Validation: Top-1 accuracy",
        "Validation: Frame mAP by the protocol slowfast",
    ]
    assert all(plot.layout["yaxis"]["tickformat"] == ".0%" for plot in section.blocks)
