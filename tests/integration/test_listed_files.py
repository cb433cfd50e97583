"""Listed files are looked up before a run, or decoded; folders of frames are videos."""

import json
from collections import Counter

import cv2
import pytest

from hiera_video.commands import detect_evaluate  # noqa: F401 - before the decoder is replaced
from tests.dying_decoder import open_or_die
from tests.integration.conftest import moving_square
from tests.video.striped_video import make_striped_video


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Folders train/ and val/ with one folder for each class, in it one for the frames of each
    video: squares that move to the left or to the right, 12 frames at 25 fps."""
    folder = tmp_path_factory.mktemp("frames")
    for split, count in (("train", 3), ("val", 1)):
        for label in ("left", "right"):
            for video in range(count):
                path = folder / split / label / f"v{video}"
                path.mkdir(parents=True)
                for number, frame in enumerate(moving_square(label == "right", 12, video), 1):
                    cv2.imwrite(str(path / f"img_{number:05d}.jpg"), frame)
    return folder


def test_missing_files_are_counted_before_the_run(commands, list_of, trained, tmp_path, lines_of):
    rows = [*((commands.toy / f"train_{i}.mp4", ("left", "right")[i % 2]) for i in range(4))]
    rows[1:1] = [("gone/a.mp4", "left"), ("gone/b.mp4", "right")]
    listed = list_of(tmp_path / "list.csv", rows)
    said = "2 of 6 files of", "are missing, the first is", str(tmp_path / "gone" / "a.mp4")
    val = (
        "evaluate",
        f"checkpoint={trained}",
        f"data.val={listed}",
        f"output_dir={tmp_path / 'e'}",
    )
    extract = ("extract", listed, f"checkpoint={trained}", f"output_dir={tmp_path / 'f'}")
    train = [
        *commands.finetune(tmp_path / "run", f"data.train={listed}", f"data.val={listed}"),
        "train.epochs=1",
    ]
    pretrain = [*commands.pretrain(tmp_path / "mae", f"data.train={listed}"), "train.epochs=1"]
    for arguments, key in ((val, "val"), (extract, "FILE"), (train, "train"), (pretrain, "train")):
        result = commands.run(*arguments, "--dry-run")
        assert result.code == 3, result.err
        result.reports(key if key == "FILE" else f"data.{key}", *said)
    assert not list(tmp_path.glob("*/"))
    result = commands.run(*train)
    assert result.code == 3
    result.reports("data.train", *said)
    result.reports("data.val", *said)
    before = result.err.index("2 of 6 files")
    assert before < result.err.index("training videos")
    failed = lines_of(tmp_path / "run" / "failures.jsonl")
    assert Counter(line["cause"] for line in failed) == {"missing": 4}  # of both lists


def test_more_missing_files_than_a_run_allows(commands, list_of, tmp_path):
    rows = [(commands.toy / f"train_{i}.mp4", ("left", "right")[i % 2]) for i in range(4)]
    rows += [(f"gone/{i}.mp4", "left") for i in range(6)]
    listed = f"data.train={list_of(tmp_path / 'list.csv', rows)}"
    for flags in (["--dry-run"], []):
        result = commands.run(*commands.finetune(tmp_path / "run", listed, *flags))
        assert result.code == 1
        result.reports("data.train: 6 of 10 records cannot be read, more than data.max_failed_frac")
        assert not (tmp_path / "run" / "checkpoints").exists()
    more = (listed, "data.max_failed_frac=0.6", "--dry-run")
    assert commands.run(*commands.finetune(tmp_path / "run", *more)).code == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_files_are_decoded_on_request(commands, list_of, trained, tmp_path, num_workers):
    """Of a damaged file, neither its end nor what follows damage is part of the first batch."""
    good = commands.toy / "val_0.mp4"
    cut = make_striped_video(tmp_path / "cut.mp4", 30, container_options={"movflags": "+faststart"})
    cut.write_bytes(cut.read_bytes()[:-2500])
    (tmp_path / "empty.mp4").touch()
    rows = [(good, "left"), (cut, "right"), (tmp_path / "empty.mp4", "left"), ("none.mp4", "left")]
    listed = list_of(tmp_path / "list.csv", rows)
    how = ("data.check=decode", f"data.num_workers={num_workers}", "--dry-run")
    arguments = (
        "evaluate",
        f"checkpoint={trained}",
        f"data.val={listed}",
        f"output_dir={tmp_path}",
    )
    result = commands.run(*arguments, *how)
    assert result.code == 3
    assert json.loads(result.out)["unreadable"] == {"missing": 1, "truncated": 1, "empty": 1}
    for path in (cut, tmp_path / "empty.mp4"):
        result.reports(" W ", f"{path}: ")
    result.reports("data.val: 4 files checked: ", "1 missing", "1 truncated", "1 empty")
    result = commands.run(*commands.finetune(tmp_path / "run", *how))
    assert result.code == 0
    result.reports("data.train: 10 files checked: all can be read")


def test_a_decoder_that_dies_is_a_failure_of_its_file(
    commands, list_of, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr("hiera_video.data.checks.opener", lambda *_: open_or_die)
    (tmp_path / "exit.mp4").touch()
    rows = [(commands.toy / "val_0.mp4", "left"), (tmp_path / "exit.mp4", "right")]
    listed = list_of(tmp_path / "list.csv", rows)
    arguments = (
        "evaluate",
        f"checkpoint={trained}",
        f"data.val={listed}",
        f"output_dir={tmp_path}",
    )
    how = ("data.check=decode", "data.num_workers=1", "--dry-run")
    result = commands.run(*arguments, *how)
    assert result.code == 3
    assert json.loads(result.out)["unreadable"] == {"crashed": 1}


def test_frames_in_folders_of_classes(commands, frames, tmp_path, trained):
    train, val = f"data.train={frames / 'train'}", f"data.val={frames / 'val'}"
    fps = "data.frames_fps=25"
    for flags in (["--dry-run"], []):
        result = commands.run(*commands.finetune(tmp_path / "run", train, *flags))
        assert result.code == 2
        result.reports("data.train: 72 of 72 files are pictures", "data.frames_fps", "data.stills")
    assert not (tmp_path / "run" / "checkpoints").exists()
    result = commands.run(*commands.finetune(tmp_path / "run", train, val, fps, "train.epochs=1"))
    assert result.code == 0, result.err
    assert "6 training videos of 2 classes" in result.err
    assert "training videos of each class: 'left' 3, 'right' 3" in result.err
    result = commands.run(*commands.pretrain(tmp_path / "mae", train, fps, "--dry-run"))
    assert result.code == 0
    assert "6 training videos" in result.out
    stills = (train, "data.stills=true", "--dry-run")
    assert "72 training videos" in commands.run(*commands.finetune(tmp_path / "a", *stills)).out
    evaluate = ("evaluate", f"checkpoint={trained}", val, f"output_dir={tmp_path}", "--dry-run")
    assert json.loads(commands.run(*evaluate, fps).out)["videos"] == 2
    result = commands.run(*evaluate)
    assert result.code == 2
    result.reports("data.val: 24 of 24 files are pictures")


@pytest.mark.parametrize("place", ["right", "right/v0"])
def test_a_folder_of_frames_is_predicted_and_extracted(
    commands, frames, tmp_path, trained, lines_of, place
):
    """As a list of it, which names it as a path."""
    folder, fps = frames / "val" / place, "data.frames_fps=25"
    checkpoint = f"checkpoint={trained}"
    result = commands.run("predict", folder, checkpoint, fps, "--json")
    assert result.code == 0, result.err
    (answer,) = map(json.loads, result.out.splitlines())
    assert answer["path"] == str(frames / "val" / "right" / "v0")
    assert "are pictures" not in result.err
    out = f"output_dir={tmp_path}"
    assert commands.run("extract", folder, checkpoint, fps, out, "device=cpu").code == 0
    (row,) = lines_of(tmp_path / "index.jsonl")
    assert (row["video"], row["video_frames"]) == ("v0", 12)
    result = commands.run("extract", folder, checkpoint, f"{out}/b")
    assert result.code == 2
    result.reports("FILE: 12 of 12 files are pictures")


def test_flips_of_classes_that_tell_left_from_right_are_warned_of(commands, tmp_path):
    for flip in ("true", "false"):
        overrides = (f"augment.flip={flip}", "--dry-run")
        result = commands.run(*commands.finetune(tmp_path / "run", *overrides))
        assert result.code == 0
        warned = "classes distinguish left and right: 'left', 'right'; set augment.flip=false"
        assert (warned in result.err) == (flip == "true")
