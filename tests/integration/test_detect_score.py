"""`detect score` and `data check-ava` end to end: figures, exit codes, mistakes in one line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.video.striped_video import make_striped_video

GOLDEN = Path(__file__).parents[1] / "golden" / "ava"
TRUTH = "a,0002,0.1,0.1,0.5,0.5,1,0\na,0003,0.1,0.1,0.5,0.5,2,0\nb,0001\n"
DETECTIONS = "a,0002,0.1,0.1,0.5,0.5,1,0.9\nc,0002,0.1,0.1,0.5,0.5,1,0.95\n"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "truth.csv").write_text(TRUTH)
    (tmp_path / "detections.csv").write_text(DETECTIONS)
    (tmp_path / "labels.txt").write_text("1: stand\n2: sit\n3: run\n")
    return tmp_path


def score(files, *more):
    return (
        "detect",
        "score",
        f"ground_truth={files / 'truth.csv'}",
        f"detections={files / 'detections.csv'}",
        f"label_map={files / 'labels.txt'}",
        *more,
    )


def test_score_of_both_protocols(commands, files):
    result = commands.run(*score(files, "--json"))
    assert result.code == 0
    report = json.loads(result.out)
    means = {name: part["mean_ap"] for name, part in report["protocols"].items()}
    assert means == {"activitynet": 0.5, "slowfast": 0.25}
    for part in report["protocols"].values():
        assert part["without_ground_truth"] == ["run"]
    assert report["detections"]["videos_without_ground_truth"] == ["c"]
    text = commands.run(*score(files)).out
    assert "protocol activitynet: frame mAP at IoU 0.5" in text
    assert "mAP 25.00 %" in text
    assert "counted as wrong: 1 detection at key frames without ground truth" in text
    assert "1 video without ground truth, such as 'c'" in text


def test_score_of_the_golden_files(commands):
    result = commands.run(
        "detect",
        "score",
        f"ground_truth={GOLDEN / 'gt.csv'}",
        f"detections={GOLDEN / 'detections.csv'}",
        f"label_map={GOLDEN / 'ava_action_list.pbtxt'}",
        f"excluded={GOLDEN / 'excluded.csv'}",
        "--protocol",
        "slowfast",
        "--json",
    )
    report = json.loads(result.out)["protocols"]["slowfast"]
    assert report["mean_ap"] == pytest.approx(0.4534, abs=1e-3)
    assert list(report["groups"]) == ["pose", "object", "person"]


def test_empty_detections_and_keyframes(commands, files):
    (files / "detections.csv").write_text("")
    assert "no detection was evaluated" in commands.run(*score(files)).out
    (files / "detections.csv").write_text(DETECTIONS)
    (files / "keyframes.csv").write_text("a,2\nc,2\n")
    result = commands.run(*score(files, "--keyframes", str(files / "keyframes.csv"), "--json"))
    for part in json.loads(result.out)["protocols"].values():
        assert part["mean_ap"] == 0.5
        assert part["counts"]["ground_truth_beyond_keyframes"] == 1


def test_empty_key_frames_in_detections(commands, files):
    (files / "detections.csv").write_text("a,0001\n" + DETECTIONS)
    report = json.loads(commands.run(*score(files, "--json")).out)
    assert report["protocols"]["slowfast"]["mean_ap"] == 0.25


def test_rows_of_other_classes_are_reported_once(commands, files):
    (files / "truth.csv").write_text(TRUTH + "a,0002,0.1,0.1,0.5,0.5,9,0\n" * 2)
    text = commands.run(*score(files, "--protocol", "slowfast")).out
    assert "left out: 2 ground-truth rows of classes that are not evaluated" in text
    assert "1 row repeating an earlier row" in text
    assert "label map" not in text


def test_no_ground_truth_is_no_success(commands, files):
    for content in ("", "b,0001\n", "a,0002,0.1,0.1,0.5,0.5,9,0\n"):
        (files / "truth.csv").write_text(content)
        result = commands.run(*score(files, "--json"))
        assert result.code == 1
        result.reports("truth.csv: no box of an evaluated class")
        assert json.loads(result.out)["protocols"]["slowfast"]["mean_ap"] is None


def test_mistakes_are_one_line(commands, files):
    for value in ("nan", "inf", "-Infinity", "1e999"):
        (files / "detections.csv").write_text(DETECTIONS + f"a,0002,0.1,0.1,0.5,0.5,1,{value}\n")
        result = commands.run(*score(files))
        assert result.code == 1
        result.reports(f"detections.csv:3: score is '{value}'; expected a finite number")
    assert commands.run("detect", "score").code == 2
    assert commands.run(*score(files, "--protocol", "coco")).code == 2


def check(files, *more):
    return (
        "data",
        "check-ava",
        "--json",
        f"ground_truth={files / 'truth.csv'}",
        f"label_map={files / 'labels.txt'}",
        *more,
    )


def test_check_ava(commands, files):
    (files / "truth.csv").write_text(TRUTH + "b,0002,0.1,0.1,0.5,0.5,2,0\n")
    (files / "excluded.csv").write_text("b,2\n")
    (files / "proposals.csv").write_text(
        "a,0002,0.1,0.1,0.5,0.5,,0.9\na,0003,0.1,0.1,0.5,0.5,,0.7\nb,0002,0,0,1,1,,0.9\n"
    )
    arguments = check(
        files, f"proposals={files / 'proposals.csv'}", f"excluded={files / 'excluded.csv'}"
    )
    result = commands.run(*arguments)
    assert result.code == 0
    report = json.loads(result.out)
    assert report["proposals"]["ground_truth_boxes"] == 2
    assert report["proposals"]["share"] == 1
    assert report["proposals"]["share_with_proposal_score"] == 0.5
    text = commands.run(*(word for word in arguments if word != "--json")).out
    assert "proposals reach 2 of 2 ground-truth boxes at IoU 0.5: 100.00 %" in text
    assert "those with a score of 0.8 or more reach 1: 50.00 %" in text
    report_at = json.loads(commands.run(*arguments, "--proposal-score", "0.7").out)
    assert report_at["proposals"]["share_with_proposal_score"] == 1
    assert report["ground_truth"]["empty_keyframes"] == 1
    assert report["problems"] == []


def test_check_ava_lists_all_problems(commands, files):
    lines = ["a,0002,0.5,0.1,0.4,0.5,1,0", "a,0002,0.1,0.1,1.5,0.5,9,0", "a,x,0,0,1,1,1,1"]
    (files / "truth.csv").write_text(TRUTH + "\n".join(lines) + "\n" + TRUTH.split("\n")[0])
    (files / "videos").mkdir()
    make_striped_video(files / "videos" / "a.mp4", 20)
    result = commands.run(*check(files, "--videos", str(files / "videos"), "--expected-fps", "50"))
    assert result.code == 3
    problems = "\n".join(json.loads(result.out)["problems"])
    for text in (
        "truth.csv:4: box 0.5,0.1,0.4,0.5 has no area",
        "truth.csv:5: box 0.1,0.1,1.5,0.5",
        "truth.csv:5: action 9 is not in the label map",
        "truth.csv:6: second is 'x'",
        "truth.csv:7: repeats an earlier row",
        "video 'b' is missing",
        "outside, for example at",
        "frames per second instead of 50",
    ):
        assert text in problems
    assert commands.run("data", "check-ava").code == 2


def test_check_ava_compares_the_stated_rate_of_frames_with_the_expected_one(commands, files):
    (files / "truth.csv").write_text("a,0000,0.1,0.1,0.5,0.5,1,0\n")
    folder = files / "videos" / "a"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (48, 32)).save(folder / f"{number}.png")
    arguments = check(files, f"videos={folder.parent}")
    result = commands.run(*arguments)
    assert result.code == 2
    result.reports(
        f"data.frames_fps is null: set it to the frames per second of the folder {folder}"
    )
    result = commands.run(*arguments, "data.frames_fps=25", "expected_fps=30")
    assert result.code == 3
    (problem,) = json.loads(result.out)["problems"]
    assert problem == f"{folder}: 25.000 frames per second instead of 30"
    assert commands.run(*arguments, "expected_fps=30").code == 0


def test_check_ava_finds_proposals_of_other_files(commands, files):
    (files / "proposals.csv").write_text("a,0002,0.1,0.1,0.5,0.5,1,7\nabc,0002,0,0,1,1,,1\n")
    result = commands.run(*check(files, "--proposals", str(files / "proposals.csv")))
    assert result.code == 3
    first, second = json.loads(result.out)["problems"]
    assert "proposals.csv:1: score is 7; expected 0..1" in first
    assert "proposals.csv: 1 of 2 videos are not in the ground truth: 'abc'" in second
    assert commands.run(*check(files, "--proposal-score", "2")).code == 2


def test_check_ava_of_no_rows(commands, files):
    (files / "truth.csv").write_text("")
    result = commands.run(*check(files))
    assert result.code == 3
    assert "truth.csv: no rows" in "".join(json.loads(result.out)["problems"])


def test_check_ava_finds_gaps_in_folders_of_frames(commands, files):
    for name, numbers in (("a", range(1, 9)), ("b", (1, 2, 4))):
        (files / "videos" / name).mkdir(parents=True)
        for number in numbers:
            (files / "videos" / name / f"{number:04d}.jpg").touch()
    arguments = check(files, "--videos", str(files / "videos"))
    result = commands.run(*arguments, "--expected-fps", "2")
    assert result.code == 3
    (problem,) = json.loads(result.out)["problems"]
    assert "has frames 1 to 4, but not 3" in problem
    assert commands.run(*arguments).code == 2
