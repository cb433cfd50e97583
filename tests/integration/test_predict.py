"""`predict`: an answer or one line with the reason for every file."""

import json
import shutil

import pytest
from PIL import Image

from hiera_video.video.writer import write_video


@pytest.fixture(scope="module")
def files(commands, tmp_path_factory):
    """A video, one of them with an unusual name, a picture, and three files that are no videos."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copy(commands.toy / "val_0.mp4", folder / "a.mp4")
    shutil.copy(commands.toy / "val_1.mp4", folder / "ein Vídeo, 日本語 = 1.mp4")
    Image.new("RGB", (50, 40), "red").save(folder / "picture.png")
    (folder / "empty.mp4").touch()
    (folder / "notes.txt").write_text("hello")
    return folder


def predict(commands, checkpoint, *arguments):
    return commands.run("predict", f"checkpoint={checkpoint}", "device=cpu", *arguments)


def test_an_answer_for_every_file_of_a_folder(commands, trained, files):
    result = predict(commands, trained, files)
    assert result.code == 3
    assert "Traceback" not in result.err
    result.reports("1 of 4 files are pictures", "clip in which nothing moves", "data.frames_fps")
    lines = result.out.splitlines()
    for name in ("a.mp4", "ein Vídeo, 日本語 = 1.mp4", "picture.png"):
        at = lines.index(str(files / name))
        shares = [float(line.split()[0]) for line in lines[at + 1 : at + 3]]
        assert sum(shares) == pytest.approx(100, abs=0.2)
        assert shares == sorted(shares, reverse=True)
        assert {line.split()[-1] for line in lines[at + 1 : at + 3]} == {"left", "right"}
    (failed,) = [line for line in lines if "empty.mp4" in line]
    assert failed == f"{files / 'empty.mp4'}: is empty (0 bytes); fetch it again"
    assert "notes.txt" not in result.out  # not among a folder's videos and pictures
    assert len(lines) == 3 * 3 + 1


def test_a_named_file_is_tried_whatever_it_is_called(commands, trained, files):
    result = predict(commands, trained, files / "notes.txt", files / "empty.mp4")
    assert result.code == 1  # nothing could be read
    assert result.out.startswith(f"{files / 'notes.txt'}: ")
    predict(commands, trained, files / "notes.txt").reports("takes videos, not lists", "data.val=")
    result = predict(commands, trained, files / "a.mp4", files / "nowhere.mp4")
    assert result.code == 2
    result.reports(f"FILE is '{files / 'nowhere.mp4'}': there is no such file", "1 of 2")
    assert result.out == ""


def test_json_lines(commands, trained, files):
    result = predict(commands, trained, "--json", files / "a.mp4", files / "empty.mp4", "top_k=1")
    assert result.code == 3
    good, bad = map(json.loads, result.out.splitlines())
    assert good["path"] == str(files / "a.mp4")
    ((best),) = good["classes"]
    assert best["class"] in ("left", "right")
    assert 0.5 <= best["probability"] <= 1
    assert bad["path"] == str(files / "empty.mp4")
    assert bad["cause"] == "empty"
    assert "is empty" in bad["error"]


def test_it_agrees_with_evaluate(commands, trained, tmp_path):
    val = commands.toy / "val.csv"
    commands.run("evaluate", f"checkpoint={trained}", f"data.val={val}", f"output_dir={tmp_path}")
    by_evaluate = (tmp_path / "predictions.csv").read_text().splitlines()[1].split(",")
    result = predict(commands, trained, "--json", commands.toy / "val_0.mp4")
    best = json.loads(result.out)["classes"][0]
    assert by_evaluate[2] == best["class"]
    assert float(by_evaluate[3]) == pytest.approx(best["probability"], abs=1e-5)


def test_a_file_that_announces_more_frames_than_it_has(commands, trained, tmp_path):
    frames = [commands.toy / "val_0.mp4", tmp_path / "whole.mp4"]
    shutil.copy(*frames)
    data = bytearray(frames[1].read_bytes())
    at = data.index(b"mdat") + 4
    moov = data.index(b"moov")
    # The last third of the pictures' bytes is gone, the index still lists them.
    cut = at + (moov - at) * 2 // 3
    data[cut : moov - 4] = bytes(moov - 4 - cut)
    (tmp_path / "hollow.mp4").write_bytes(data)
    result = predict(commands, trained, tmp_path / "hollow.mp4")
    assert result.code in (0, 1)
    assert "Traceback" not in result.err
    if result.code:
        assert result.out.startswith(f"{tmp_path / 'hollow.mp4'}: ")
        assert result.out.count("\n") == 1


def test_a_video_shorter_than_a_clip(commands, trained, tmp_path, toy):
    import numpy as np

    write_video(tmp_path / "one.mp4", [np.full((32, 32, 3), 9, np.uint8)], 25)
    assert predict(commands, trained, tmp_path / "one.mp4").code == 0
    result = predict(commands, trained, tmp_path / "one.mp4", "clips.end_policy=error")
    assert result.code == 1
    assert result.out.startswith(f"{tmp_path / 'one.mp4'}: 1 frame, a clip covers 8")


def test_scores_that_are_no_numbers(commands, diverged, files):
    result = predict(commands, diverged, files / "a.mp4", files / "empty.mp4")
    assert result.code == 1
    assert "%" not in result.out
    said = sorted(result.out.splitlines())
    assert said[0].startswith(f"{files / 'a.mp4'}: its scores are not finite in fp32; use other")
    result = predict(commands, diverged, "--json", files / "a.mp4")
    assert result.code == 1
    (record,) = map(json.loads, result.out.splitlines())
    assert record == {"path": str(files / "a.mp4"), "cause": "not_finite", "error": said[0]}


def test_dry_run_lists_the_files(commands, trained, files):
    result = predict(commands, trained, files, "--dry-run")
    assert result.code == 3
    names = ("a.mp4", "ein Vídeo, 日本語 = 1.mp4", "empty.mp4", "picture.png")
    expected = sorted(str(files / name) for name in names)
    assert result.out.splitlines() == expected
    result.reports("cannot be read:", "empty.mp4: is empty (0 bytes)")
    assert json.loads(predict(commands, trained, files, "--dry-run", "--json").out) == expected
    assert predict(commands, trained, files / "a.mp4", "--dry-run").code == 0


def test_an_empty_folder(commands, trained, tmp_path):
    result = predict(commands, trained, tmp_path)
    assert result.code == 1
    result.reports(str(tmp_path), "no videos or images in it")


def test_no_files_and_no_checkpoint(commands, trained, files):
    result = predict(commands, trained)
    assert result.code == 2
    result.reports("FILE", "at least one file or folder")
    result = commands.run("predict", files / "a.mp4")
    assert result.code == 2
    result.reports("checkpoint", "a run, checkpoint or weights folder")
    result = predict(commands, files / "nowhere", files / "a.mp4")
    assert result.code == 2
    result.reports(str(files / "nowhere"))
