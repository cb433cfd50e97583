"""Parts of videos in all commands: they give what files give that hold only these frames."""

import csv
import json

import cv2
import numpy as np
import pytest

from hiera_video import load_features
from tests.integration.conftest import moving_square

FPS = "data.frames_fps=25"
PARTS = (("long", 0, 9, "right"), ("long", 9, 20, "left"), ("other", 3, 15, "left"))


def write_frames(folder, frames):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:03d}.png"), frame)


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """parts.csv names parts of two folders of frames, in seconds; cut.csv the same frames as
    folders of their own; bad.csv has a part that lies outside; mmaction2.txt has its lines."""
    base = tmp_path_factory.mktemp("parts")
    frames = {"long": list(moving_square(True, 20, 0)), "other": list(moving_square(False, 18, 1))}
    for name in frames:
        write_frames(base / name, frames[name])
    parts, cut = ["path,start,end,class_name,split"], ["path,class_name"]
    for i, (name, first, stop, label) in enumerate(PARTS):
        write_frames(base / f"cut_{i}", frames[name][first:stop])
        parts.append(f"{name},{first / 25},{stop / 25},{label},train")
        cut.append(f"cut_{i},{label}")
    (base / "cut.csv").write_text("\n".join(cut))
    (base / "bad.csv").write_text("\n".join([*parts, "long,7,8,left,train"]))
    (base / "parts.csv").write_text("\n".join([*parts, "missing,0,1,left,test"]))
    (base / "mmaction2.txt").write_text("long 9 1\nother 18 0\n")
    return base


def test_evaluation(commands, trained, lists, tmp_path):
    how = ("evaluate", f"checkpoint={trained}", "device=cpu", "data.num_workers=0", FPS)
    for name, more in (("cut", ()), ("parts", ["data.split=train"]), ("bad", ())):
        result = commands.run(
            *how, f"data.val={lists / name}.csv", f"output_dir={tmp_path / name}", *more
        )
        assert result.code == (3 if name == "bad" else 0), result.err
    one, two = (np.load(tmp_path / name / "scores.npz") for name in ("cut", "parts"))
    np.testing.assert_array_equal(one["scores"], two["scores"])
    names = ["long#t=0,0.36", "long#t=0.36,0.8", "other#t=0.12,0.6"]
    assert two["names"].tolist() == names
    with open(tmp_path / "bad" / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == [*names, "long#t=7,8"]
    assert "the part from second 7 to second 8 lies outside of the video" in rows[3]["failure"]
    (failure,) = json.loads((tmp_path / "bad" / "report.json").read_text())["failed"]
    assert (failure["name"], failure["cause"]) == ("long#t=7,8", "timestamps")


def test_extraction(commands, trained, lists, tmp_path, lines_of):
    how = (
        f"checkpoint={trained}",
        "windows.clip_stride=3",
        "device=cpu",
        "data.num_workers=1",
        FPS,
    )
    assert (
        commands.run("extract", lists / "cut.csv", *how, f"output_dir={tmp_path / 'c'}").code == 0
    )
    parts = ("extract", lists / "bad.csv", *how, f"output_dir={tmp_path / 'p'}")
    for again in (False, True):
        result = commands.run(*parts)
        assert result.code == 3, result.err
        assert ("0 of 4 videos are to be read" in result.err) == again
        index = lines_of(tmp_path / "p" / "index.jsonl")
        names = ["long#t=0,0.36", "long#t=0.36,0.8", "other#t=0.12,0.6", "long#t=7,8"]
        assert [row["video"] for row in index] == names
        assert [row["cause"] for row in index] == [None, None, None, "timestamps"]
    for i, (_, first, stop, _) in enumerate(PARTS):
        cut = load_features(tmp_path / "c" / "features" / f"cut_{i}.npz")
        part = load_features(tmp_path / "p" / index[i]["output"])
        np.testing.assert_allclose(part.features, cut.features, atol=1e-5)
        np.testing.assert_allclose(part.start_sec, cut.start_sec + first / 25)  # of the video
        assert index[i]["video_frames"] == stop - first


def test_training(commands, lists, tmp_path, weights_of, lines_of):
    more = ("train.epochs=1", "train.global_batch_size=3", "data.max_failed_frac=0.5", FPS)
    trained = {}
    for name, code, source in (
        ("cut", 0, [f"data.train={lists / 'cut.csv'}"]),
        ("parts", 0, [f"data.train={lists / 'parts.csv'}", "data.split=train"]),
        ("bad", 3, [f"data.train={lists / 'bad.csv'}"]),
    ):
        result = commands.run(*commands.finetune(tmp_path / name, *source, *more))
        assert result.code == code, result.err
        trained[name] = weights_of(tmp_path / name)
    assert trained["cut"] == trained["parts"]
    (failure,) = lines_of(tmp_path / "bad" / "failures.jsonl")
    assert (failure["name"], failure["cause"]) == ("long#t=7,8", "timestamps")


def test_splits_and_mmaction2s_lists(commands, lists, trained, tmp_path, lines_of):
    source = f"data.train={lists / 'parts.csv'}"
    result = commands.run(*commands.finetune(tmp_path / "run", source, FPS))
    result.reports(
        "the column split has train (3 rows), test (1 row); choose one with split=NAME (data.split="
    )
    assert result.code != 0
    source = f"data.train={lists / 'mmaction2.txt'}"
    result = commands.run(*commands.pretrain(tmp_path / "run", source, FPS, "--dry-run"))
    assert result.code == 0, result.err
    result = commands.run(
        "extract",
        lists / "mmaction2.txt",
        f"checkpoint={trained}",
        FPS,
        f"output_dir={tmp_path / 'f'}",
        "device=cpu",
    )
    assert result.code == 0, result.err
    index = lines_of(tmp_path / "f" / "index.jsonl")
    assert [(row["video"], row["video_frames"]) for row in index] == [
        ("long#frame=0,9", 9),
        ("other#frame=0,18", 18),
    ]
