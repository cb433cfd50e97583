"""`data build-lists` end to end: what is listed, what is missing, mistakes in one line."""

import json

import pytest

from hiera_video.data.videos.records import read_video_list

KINETICS = """label,youtube_id,time_start,time_end,split
run,-abc_1,7,17,train
air drum,xyz,120,130,train
swim,gone,1,11,train
run,half,0,10,train
"""
FILES = ("train/deep/-abc_1_000007_000017.mp4", "train/xyz.mkv", "fixed/xyz.mp4", "fixed/xyz.jpg")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory: an annotation file and folders of videos, one of them empty."""
    for file in (*FILES, "train/half_000000_000010.mp4"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"" if "half" in file else b"video")
    (tmp_path / "train_all.csv").write_text(KINETICS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(commands, *more, annotations="train_all.csv"):
    line = ("data", "build-lists", "fixed", "train", f"annotations={annotations}")
    return commands.run(*line, "output=train.csv", *more)


def test_what_is_there_and_what_is_missing(commands, place):
    result = build(commands)
    assert result.code == 3
    assert "train.csv: 2 of 4 videos, 2 missing or empty" in result.out
    assert "classes: 2; no video is left of swim" in result.out
    missing = (place / "train.missing.txt").read_text().splitlines()
    assert missing[0] == "gone_000001_000011.mp4 missing"
    assert missing[1].startswith("half_000000_000010.mp4 empty: ")
    videos = read_video_list(place / "train.csv")
    assert videos.class_names == ("air drum", "run")
    listed = [(record.name, record.labels) for record in videos.records]
    assert listed == [("train/deep/-abc_1_000007_000017.mp4", (1,)), ("fixed/xyz.mp4", (0,))]
    again = build(commands)
    assert again.code == 1
    again.reports("train.csv exists: remove it")


def test_a_dry_run_and_json(commands, place):
    result = build(commands, "--dry-run", "--json")
    assert result.code == 3
    report = json.loads(result.out)
    assert (report["videos"], report["listed"]) == (4, 2)
    assert report["missing"] == ["gone_000001_000011.mp4"]
    assert report["classes_without_videos"] == ["swim"]
    assert not (place / "train.csv").exists()


def test_a_list_without_labels(commands, place):
    (place / "test.csv").write_text("youtube_id,time_start,time_end,split\nxyz,120,130,test\n")
    assert build(commands, annotations="test.csv").code == 0
    assert (place / "train.csv").read_text() == "path\nfixed/xyz.mp4\n"
    assert not (place / "train.missing.txt").exists()


def test_the_split_of_a_csv_of_several(commands, place):
    (place / "all.csv").write_text(KINETICS + "swim,xyz,1,2,val\n")
    result = build(commands, annotations="all.csv")
    assert result.code == 1
    result.reports("train (4 rows), val (1 row); choose one with split=NAME")
    assert "data." not in result.err
    assert build(commands, "split=val", annotations="all.csv").code == 0
    assert (place / "train.csv").read_text() == "path,label\nfixed/xyz.mp4,swim\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("label,youtube_id,time_start,time_end\nrun,a,soon,2\n", "a.csv:2: time_start and"),
        ("path,label\na.mp4,run\n", "a.csv:2: not of an official Kinetics file"),
        ("label,youtube_id,time_start,time_end\nrun,a,1,2\n", "none of the 1 videos of a.csv"),
    ],
)
def test_mistakes_in_the_annotations(commands, place, content, said):
    (place / "a.csv").write_text(content)
    result = build(commands, annotations="a.csv")
    assert result.code == 1
    result.reports(said)


def test_a_file_in_place_of_a_folder(commands, place):
    result = build(commands, "train_all.csv")
    assert result.code == 2
    result.reports("FOLDER is train_all.csv: expected a folder of videos")
