"""`detect train` and `detect evaluate` on tiny generated videos, end to end."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hiera_video.data.boxes.files import read_boxes
from hiera_video.demo.actions import DemoAvaData, generate
from hiera_video.models.pretrained import create_autoencoder, create_model, load_model
from hiera_video.models.saving import save_model

SHAPE = {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 1, 1]}
CONFIG = {
    "model": {
        "name": "hiera_tiny_16x224",
        "num_frames": 4,
        "image_size": [64, 32],
        "overrides": SHAPE,
    },
    "clips": {"sampling_rate": 2, "target_fps": 12},
    "optim": {"lr": 1.0e-3, "clip_grad": None},
    "train": {
        "epochs": 2,
        "warmup_epochs": 0,
        "global_batch_size": 4,
        "precision": "fp32",
        "evaluate_every": None,
        "log_every": 100,
    },
    "device": "cpu",
}
HEAD = {"roi_head.projection.weight", "roi_head.projection.bias"}
NOTHING_LEARNT = ("train.epochs=0.1", "optim.lr=1e-30", "optim.final_lr=0", "optim.warmup_lr=0")


@pytest.fixture(scope="module")
def ava(tmp_path_factory):
    """A data set in AVA's files, and base.yaml."""
    data = DemoAvaData(tmp_path_factory.mktemp("ava"))
    generate(data, seed=3, train_videos=4, val_videos=3)
    paths = {"root": data.videos, "label_map": data.label_map, "train": data.train}
    config = CONFIG | {"data": {key: str(path) for key, path in paths.items()}}
    config["data"]["num_workers"] = 0
    (data.folder / "base.yaml").write_text(yaml.safe_dump(config))
    return data


def train(commands, ava, run_dir, *overrides, code=0):
    result = commands.run(*training(ava, run_dir, *overrides))
    assert result.code == code, result.err
    return result


def training(ava, run_dir, *overrides):
    config = ava.folder / "base.yaml"
    return ("detect", "train", "--config", config, f"run_dir={run_dir}", *overrides)


def evaluation(ava, checkpoint, output, *overrides):
    return (
        *("detect", "evaluate", f"checkpoint={checkpoint}", f"output_dir={output}"),
        *(f"data.val={ava.val}", f"data.root={ava.videos}", "data.num_workers=0", "device=cpu"),
        *overrides,
    )


def state_of(run_dir):
    return load_file(run_dir / "weights" / "model.safetensors")


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def keyframes_of(path):
    return {(row[0], float(row[1])) for row in rows_of(path)}


def losses(lines):
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.fixture(scope="module")
def trained(commands, ava, tmp_path_factory):
    """A run folder with validation on proposals."""
    folder = tmp_path_factory.mktemp("detector") / "run"
    overrides = (
        *(f"data.val={ava.val}", f"data.val_proposals={ava.val_proposals}"),
        *(f"data.val_excluded={ava.val_excluded}", "train.evaluate_every=1"),
    )
    train(commands, ava, folder, *overrides)
    return folder


# ---- training


def test_the_run_folder(ava, trained, lines_of):
    names = {path.name for path in trained.iterdir()} - {"tb"}
    assert names == {
        "config.yaml",
        "run.json",
        "train.log",
        "metrics.jsonl",
        "checkpoints",
        "weights",
        ".lock",
    }
    num_keyframes = len(keyframes_of(ava.train))
    steps = -(-num_keyframes // 4)
    lines = lines_of(trained / "metrics.jsonl")
    reported = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in reported] == list(range(1, 2 * steps + 1))
    assert sum(line["num_clips"] for line in reported) == 2 * num_keyframes
    validations = [line for line in lines if line["kind"] == "val"]
    assert [line["step"] for line in validations] == [steps, 2 * steps]
    for line in validations:
        assert 0 <= line["map_activitynet"] <= 1
        assert 0 <= line["map_slowfast"] <= 1
    config = json.loads((trained / "weights" / "config.json").read_text())
    assert config["label_map"]["1"] in (ava.label_map.read_text())
    assert config["clips"] == {"sampling_rate": 2, "target_fps": 12.0}
    model, _ = load_model(trained, kind="detector")
    assert model.encoder.input_size == (4, 64, 32)
    assert model.num_classes == len(config["label_map"])
    run = json.loads((trained / "run.json").read_text())
    assert run["data"]["keyframes"] == num_keyframes


def test_validation_says_what_evaluation_says(commands, ava, trained, lines_of, tmp_path):
    overrides = (f"data.val_proposals={ava.val_proposals}", f"data.val_excluded={ava.val_excluded}")
    result = commands.run(*evaluation(ava, trained, tmp_path, *overrides, "--json"))
    assert result.code == 0, result.err
    report = json.loads(result.out)
    last = lines_of(trained / "metrics.jsonl")[-1]
    for protocol, part in report["protocols"].items():
        assert part["mean_ap"] == pytest.approx(last[f"map_{protocol}"])
    assert last["decoded"] == report["decoded"] == report["expected"]


def test_dry_run_does_nothing(commands, ava, tmp_path):
    result = train(commands, ava, tmp_path / "run", "--dry-run")
    assert f"{len(keyframes_of(ava.train))} training key frames with" in result.out
    assert "clips in a forward pass) = 0." in result.out
    assert not (tmp_path / "run").exists()


def test_proposals_are_trained_on_too(commands, ava, tmp_path):
    """Those that equal the boxes: twice as many."""
    rows = {(video, second, *box) for video, second, *box, _, _ in rows_of(ava.train)}
    proposals = tmp_path / "proposals.csv"
    proposals.write_text("".join(",".join(row) + ",,0.9\n" for row in sorted(rows)))
    overrides = (f"data.train_proposals={proposals}", "--dry-run")
    plain = train(commands, ava, tmp_path, "--dry-run").out
    assert f"with {len(rows)} boxes of" in plain
    assert f"with {2 * len(rows)} boxes of" in train(commands, ava, tmp_path, *overrides).out
    result = train(commands, ava, tmp_path, *overrides, "data.proposal_score=0.95", code=1)
    result.reports("no proposal overlaps an annotated box", "data.proposal_score")


@pytest.mark.parametrize("kind", ["classifier", "autoencoder"])
def test_start_from_other_weights(commands, ava, tmp_path, kind):
    torch.manual_seed(1)
    size = dict(num_frames=4, image_size=(64, 32), **SHAPE)
    if kind == "classifier":
        model = create_model("hiera_tiny_16x224", num_classes=7, **size)
    else:
        small = dict(decoder_heads=2, decoder_dim=16, decoder_depth=1)
        model = create_autoencoder("hiera_tiny_16x224", **size, **small)
    save_model(tmp_path / "init", model)
    init = f"model.init={tmp_path / 'init'}"
    result = train(commands, ava, tmp_path / "run", init, *NOTHING_LEARNT)
    assert "reinitialised (2): roi_head.projection" in result.err
    encoder = model.state_dict() if kind == "classifier" else model.encoder.state_dict()
    state = state_of(tmp_path / "run")
    assert len(state) > len(HEAD) + 10
    for name in state.keys() - HEAD:
        difference = (state[name] - encoder[name.removeprefix("encoder.")]).abs().max()
        assert difference < 1e-20, name  # a step of 1e-30 moves a bias of 0


def test_start_from_a_detector_keeps_its_classifier_if_it_knows_the_actions(
    commands, ava, trained, tmp_path
):
    init = f"model.init={trained}"
    train(commands, ava, tmp_path / "same", init, *NOTHING_LEARNT)
    before, same = state_of(trained), state_of(tmp_path / "same")
    assert all(torch.equal(before[name], same[name]) for name in before)
    names = ava.label_map.read_text().replace('"blinking"', '"winking"')
    (tmp_path / "other.pbtxt").write_text(names)
    other = f"data.label_map={tmp_path / 'other.pbtxt'}"
    result = train(commands, ava, tmp_path / "other", init, other, *NOTHING_LEARNT)
    result.reports(str(trained), "has other classes: the classifier starts with random weights")
    state = state_of(tmp_path / "other")
    assert {n for n in before if not torch.equal(before[n], state[n])} == HEAD


@pytest.mark.parametrize(
    ("override", "code", "parts"),
    [
        ("model.image_size=72", 2, ["(4, 72, 72)", "(4, 64, 64)"]),
        ("model.image_size=[64,32,32]", 2, ["model.image_size", "[height, width]"]),
        ("model.overrides.mask_unit=[1,3,4]", 2, ["mask_unit is (1, 3, 4)"]),
        ("model.roi_resolution=0", 2, ["model.roi_resolution", "0"]),
        ("data.label_map=null", 2, ["data.label_map is not set"]),
        ("augment.zoom=[0.5,1]", 2, ["augment.zoom is [0.5, 1]"]),
        ("data.proposal_iou=0", 2, ["data.proposal_iou is 0"]),
        ("data.train=/nowhere.csv", 2, ["data.train is '/nowhere.csv'"]),
    ],
)
def test_a_mistake_is_reported_in_one_line(commands, ava, tmp_path, override, code, parts):
    result = train(commands, ava, tmp_path / "run", override, code=code)
    result.reports(*parts)
    assert not (tmp_path / "run" / "checkpoints").exists()


# ---- evaluation


@pytest.mark.parametrize("boxes", ["ground truth", "proposals"])
def test_evaluation_is_what_score_says_of_its_detections(commands, ava, trained, tmp_path, boxes):
    chosen = () if boxes == "ground truth" else (f"data.val_proposals={ava.val_proposals}",)
    result = commands.run(*evaluation(ava, trained, tmp_path / "out", *chosen))
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["boxes"] == boxes
    assert f"boxes: {boxes}" in result.out
    assert report["failed"] == []
    table = read_boxes("detections", tmp_path / "out" / "detections.csv")
    source = rows_of(ava.val if boxes == "ground truth" else ava.val_proposals)
    scored = {(*row[:2], *row[2:6]) for row in source if not chosen or float(row[-1]) >= 0.8}
    num_actions = len(json.loads((trained / "weights" / "config.json").read_text())["label_map"])
    assert len(table) == len(scored) * num_actions
    assert ((table.score > 0) & (table.score < 1)).all()
    named = (
        keyframes_of(ava.val) | keyframes_of(ava.val_proposals) if chosen else keyframes_of(ava.val)
    )
    assert report["keyframes"] == len(named)

    result = commands.run(
        *("detect", "score", "--ground-truth", ava.val, "--label-map", ava.label_map, "--json"),
        *("--detections", tmp_path / "out" / "detections.csv"),
        *("--keyframes", tmp_path / "out" / "keyframes.csv"),
    )
    assert result.code == 0, result.err
    again = json.loads(result.out)["protocols"]
    assert set(again) == {"activitynet", "slowfast"}
    for protocol, part in report["protocols"].items():
        assert part["mean_ap"] == again[protocol]["mean_ap"]
        assert part["classes"] == again[protocol]["classes"]

    result = commands.run(*evaluation(ava, trained, tmp_path / "out", *chosen))
    assert result.code == 1
    result.reports(str(tmp_path / "out"), "overwrite=true")


def test_excluded_key_frames_are_not_scored(commands, ava, trained, tmp_path):
    excluded = f"data.val_excluded={ava.val_excluded}"
    result = commands.run(*evaluation(ava, trained, tmp_path, excluded, "--json"))
    report = json.loads(result.out)
    out = keyframes_of(ava.val_excluded)
    assert report["excluded_keyframes"] == len(out) > 0
    table = read_boxes("detections", tmp_path / "detections.csv")
    found = {(table.videos[v], s) for v, s in zip(table.video, table.second, strict=True)}
    assert found == keyframes_of(ava.val) - out


def test_actions_that_are_evaluated(commands, ava, trained, tmp_path):
    known = json.loads((trained / "weights" / "config.json").read_text())["label_map"]
    (tmp_path / "some.txt").write_text(f"2: {known['2']}\n")
    chosen = f"data.label_map={tmp_path / 'some.txt'}"
    result = commands.run(*evaluation(ava, trained, tmp_path / "a", chosen, "--json"))
    assert result.code == 0, result.err
    for part in json.loads(result.out)["protocols"].values():
        assert [c["id"] for c in part["classes"]] == [2]
    assert set(read_boxes("detections", tmp_path / "a" / "detections.csv").action.tolist()) == {2}
    (tmp_path / "some.txt").write_text("2: fly\n")
    result = commands.run(*evaluation(ava, trained, tmp_path / "b", chosen))
    assert result.code == 1
    result.reports("some.txt: action 2 is 'fly', but", str(trained))
    assert not (tmp_path / "b").exists()


def test_dry_run_of_evaluation(commands, ava, trained, tmp_path):
    result = commands.run(*evaluation(ava, trained, tmp_path / "out", "--dry-run"))
    assert result.code == 0, result.err
    assert json.loads(result.out)["keyframes_to_score"] == len(keyframes_of(ava.val))
    assert not (tmp_path / "out").exists()


def test_each_video_of_key_frames_is_decoded_once_on_request(commands, ava, trained, tmp_path):
    names = {line.split(",")[0] for line in ava.val.read_text().splitlines()}
    how = ("--dry-run", "data.check=decode")
    result = commands.run(*evaluation(ava, trained, tmp_path / "out", *how))
    assert result.code == 0, result.err
    assert json.loads(result.out)["unreadable"] == {}
    result.reports(f"data.val: {len(names)} files checked: all can be read")


@pytest.fixture
def broken(ava, tmp_path):
    """The folder of the videos, with one that cannot be read, and its name."""
    folder = tmp_path / "videos"
    shutil.copytree(ava.videos, folder)
    name = rows_of(ava.val)[0][0]
    (folder / f"{name}.mp4").write_text("not a video\n" * 100)
    return folder, name


def test_a_video_that_cannot_be_read(commands, ava, trained, broken, tmp_path):
    folder, name = broken
    result = commands.run(*evaluation(ava, trained, tmp_path / "out", f"data.root={folder}"))
    assert result.code == 3
    assert "Traceback" not in result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    lost = [keyframe for keyframe in keyframes_of(ava.val) if keyframe[0] == name]
    assert len(report["failed"]) == len(lost) == report["expected"] - report["decoded"]
    for failure in report["failed"]:
        assert failure["cause"] == "not_a_video"
        assert failure["name"].startswith(f"{name},")
        assert f"failed: {failure['message']}" in result.out.splitlines()
    assert "without key frames that failed" in result.out
    rows = [row for row in rows_of(ava.val) if row[0] == name]
    for protocol, part in report["protocols"].items():
        left_out = report["protocols_without_failed"][protocol]
        counted, kept = (
            sum(c["ground_truth"] for c in result["classes"]) for result in (part, left_out)
        )
        assert counted == len(rows_of(ava.val))
        assert kept == counted - len(rows)
        recall = part["counts"]["detections_right"]
        assert recall == left_out["counts"]["detections_right"]
        assert part["mean_ap"] != left_out["mean_ap"]


def test_nothing_can_be_read(commands, ava, trained, tmp_path):
    for video in {row[0] for row in rows_of(ava.val)}:
        (tmp_path / f"{video}.mp4").touch()
    result = commands.run(*evaluation(ava, trained, tmp_path / "out", f"data.root={tmp_path}"))
    assert result.code == 1
    assert "Traceback" not in result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["decoded"] == 0
    assert report["protocols"]["slowfast"]["mean_ap"] == 0
    assert report["protocols_without_failed"]["slowfast"]["mean_ap"] is None
    assert (tmp_path / "out" / "detections.csv").read_text() == ""


def test_scores_that_are_not_finite(commands, ava, trained, tmp_path):
    model, card = load_model(trained)
    with torch.no_grad():
        model.get_parameter("roi_head.projection.bias")[0] = torch.nan
    save_model(tmp_path / "diverged", model, card)
    result = commands.run(*evaluation(ava, tmp_path / "diverged", tmp_path / "out"))
    assert result.code == 1
    assert "Traceback" not in result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["decoded"] == 0
    names = {f"{video},{second:g}" for video, second in keyframes_of(ava.val)}
    assert {failure["name"] for failure in report["failed"]} == names
    assert {failure["cause"] for failure in report["failed"]} == {"not_finite"}
    assert report["protocols"]["slowfast"]["mean_ap"] == 0

    init, val = f"model.init={tmp_path / 'diverged'}", f"data.val={ava.val}"
    result = train(commands, ava, tmp_path / "run", init, val, "train.epochs=1", code=1)
    result.reports("weights are not finite", "optim.lr")
    assert not (tmp_path / "run" / "weights").exists()


# ---- bad lists


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{video},0001,0.1,0.1,0.5,0.5,99,0", [":2: ", "action 99 is not in the label map"]),
        ("{video},0001,0.5,0.1,0.1,0.5,1,0", [":2: ", "box 0.5,0.1,0.1,0.5 has no area"]),
        ("{video},0001,0.1,0.1,0.5,1.5,1,0", [":2: ", "leaves the picture"]),
        ("{video},0001,0.1,nan,0.5,0.5,1,0", [":2: ", "nan"]),
        ("{video},-1,0.1,0.1,0.5,0.5,1,0", [":2: ", "second is -1"]),
    ],
)
def test_a_wrong_line_is_named(commands, ava, trained, tmp_path, line, parts):
    first = ava.val.read_text().splitlines()[0]
    bad = tmp_path / "bad.csv"
    bad.write_text(f"{first}\n{line.format(video=first.split(',')[0])}\n")
    for arguments in (
        training(ava, tmp_path / "run", f"data.train={bad}"),
        training(ava, tmp_path / "run", f"data.val={bad}"),
        evaluation(ava, trained, tmp_path / "out", f"data.val={bad}"),
    ):
        result = commands.run(*arguments)
        assert result.code == 1
        result.reports(str(bad), *parts)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()


def test_lists_with_nothing_to_do(commands, ava, trained, tmp_path):
    empty = tmp_path / "empty.csv"
    empty.touch()
    train(commands, ava, tmp_path / "run", f"data.train={empty}", code=1).reports(
        f"{empty}: no key frame with a box"
    )
    for override in (f"data.val_proposals={empty}", "data.keyframe_range_sec=[50,60]"):
        result = commands.run(*evaluation(ava, trained, tmp_path / "out", override))
        assert result.code == 1
        result.reports("no box in any of the", "evaluated key frames")
    assert not (tmp_path / "out").exists()


def test_bad_key_frames_are_skipped_counted_and_listed(commands, ava, tmp_path, lines_of):
    """Past the end, and of a video that is not there; a repeated row is logged, and learnt once."""
    rows = ava.train.read_text().splitlines()
    video = rows[0].split(",")[0]
    bad = [f"{video},0090,0.1,0.1,0.5,0.5,1,0", "nowhere,0001,0.1,0.1,0.5,0.5,1,0", rows[0]]
    (tmp_path / "train.csv").write_text("\n".join([*rows, *bad]) + "\n")
    overrides = (f"data.train={tmp_path / 'train.csv'}", "train.epochs=1")
    result = train(commands, ava, tmp_path / "run", *overrides, code=3)
    assert "Traceback" not in result.err
    result.reports("data.train: 1 of 5 files of", "are missing, the first is", "/nowhere")
    result.reports("train.csv: 1 repeated row, the", f"first in line {len(rows) + 3}")
    failed = {line["name"]: line for line in lines_of(tmp_path / "run" / "failures.jsonl")}
    assert {name: line["cause"] for name, line in failed.items()} == {
        f"{video},90": "timestamps",
        "nowhere,1": "missing",
    }
    assert "key frame at 90 s, but the video covers 0 to" in failed[f"{video},90"]["message"]
    assert "data.start_sec" in failed[f"{video},90"]["message"]
    lines = lines_of(tmp_path / "run" / "metrics.jsonl")
    assert sum(line["num_clips"] for line in lines) == len(keyframes_of(ava.train))


# ---- one way to the same end


RANDOM = ("train.num_repeats=2", "train.epochs=12", "model.drop_path=0.3", "model.head_dropout=0.3")


def test_killed_and_resumed_equals_uninterrupted(commands, ava, tmp_path, weights_of, lines_of):
    overrides = (*RANDOM, "train.checkpoint_every=0.5")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(commands, ava, whole, *overrides)
    for moment in (5, 11):
        process = commands.fork(*training(ava, broken, *overrides))
        metrics, deadline = broken / "metrics.jsonl", time.monotonic() + 60
        while not metrics.exists() or metrics.read_text().count("\n") < moment:
            assert time.monotonic() < deadline, f"never reached step {moment}"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert commands.exit_code(process) == -signal.SIGKILL
        assert not (broken / "weights").exists()
    result = train(commands, ava, broken, *overrides)
    assert "resumed from" in result.err
    assert weights_of(broken) == weights_of(whole)
    one, two = (lines_of(folder / "metrics.jsonl") for folder in (whole, broken))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert losses(two) == losses(one)


def test_two_processes_train_and_evaluate_as_one(commands, ava, tmp_path, lines_of, broken):
    folder, _ = broken
    overrides = (f"data.val={ava.val}", f"data.val_proposals={ava.val_proposals}", "train.epochs=1")
    train(commands, ava, tmp_path / "one", *overrides)
    results = commands.together(*training(ava, tmp_path / "two", *overrides))
    assert [result.code for result in results] == [0, 0], results
    one, two = (lines_of(tmp_path / n / "metrics.jsonl") for n in ("one", "two"))
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-5)
    assert [line["num_clips"] for line in two[:-1]] == [line["num_clips"] for line in one[:-1]]
    assert two[-1]["decoded"] == one[-1]["decoded"]

    arguments = (tmp_path / "one", tmp_path / "eval one", f"data.root={folder}")
    assert commands.run(*evaluation(ava, *arguments)).code == 3
    arguments = (tmp_path / "one", tmp_path / "eval two", f"data.root={folder}", "batch_size=3")
    results = commands.together(*evaluation(ava, *arguments))
    assert [result.code for result in results] == [3, 3], results
    ours, theirs = (
        read_boxes("detections", tmp_path / f"eval {n}" / "detections.csv") for n in ("one", "two")
    )
    assert ours.videos == theirs.videos
    for column in ("video", "second", "boxes", "action"):
        assert np.array_equal(getattr(ours, column), getattr(theirs, column))
    np.testing.assert_allclose(ours.score, theirs.score, atol=1e-6)
    reports = [
        json.loads((tmp_path / f"eval {n}" / "report.json").read_text()) for n in ("one", "two")
    ]
    for key in ("expected", "decoded", "failed", "keyframes", "boxes_outside_of_the_crop"):
        assert reports[0][key] == reports[1][key]
    assert reports[0]["failed"]
