"""`data build-lists` end to end: what is listed, what is missing, mistakes in one line."""

import copy
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
    result.reports("FOLDER is train_all.csv: expected a folder of videos or pictures")


INATURALIST = {
    "info": {"year": 2018},
    "images": [
        {"id": 7, "file_name": "train_val2018/Aves/1/a.jpg"},
        {"id": 3, "file_name": "train_val2018/Fungi/0/b.jpg"},
        {"id": 4, "file_name": "train_val2018/Aves/2/c.jpg"},
    ],
    "annotations": [
        {"id": 0, "image_id": 3, "category_id": 0},
        {"id": 1, "image_id": 7, "category_id": 2},
        {"id": 2, "image_id": 4, "category_id": 1},
        {"id": 9, "image_id": 4, "category_id": 1},  # as where boxes are annotated
    ],
    "categories": [
        {"id": 2, "name": "Ara ararauna"},
        {"id": 0, "name": "2"},  # hidden, as in 2018 and 2019
        {"id": 1, "name": "Anser  anser"},
    ],
}


def pictures(commands, place, annotations, *more):
    for name in ("train_val2018/Aves/1/a.jpg", "train_val2018/Fungi/0/b.jpg", "a/arch/1.jpg"):
        (place / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "data" / name).write_bytes(b"picture")
    line = ("data", "build-lists", "data", f"annotations={annotations}", "output=train.csv")
    return commands.run(*line, *more)


def test_the_json_of_inaturalist(commands, place):
    (place / "train2018.json").write_text(json.dumps(INATURALIST))
    result = pictures(commands, place, "train2018.json", "--json")
    assert result.code == 3
    report = json.loads(result.out)
    assert (report["videos"], report["listed"], report["class_names"]) == (
        3,
        2,
        "train.class_names.txt",
    )
    assert report["missing"] == ["train_val2018/Aves/2/c.jpg"]
    assert (place / "train.class_names.txt").read_text() == "2\nAnser anser\nAra ararauna\n"
    videos = read_video_list(place / "train.csv", class_names=place / "train.class_names.txt")
    listed = [(record.name.removeprefix("data/"), record.labels) for record in videos.records]
    assert listed == [("train_val2018/Aves/1/a.jpg", (2,)), ("train_val2018/Fungi/0/b.jpg", (0,))]
    direct = commands.run("finetune", "data.train=train2018.json")
    assert direct.code == 1
    direct.reports("`hiera-video data build-lists` makes a list of iNaturalist's json")


def test_the_lines_of_places365(commands, place):
    (place / "places.txt").write_text("/a/arch/1.jpg 12\n/a/arch/2.jpg 12\n/b/bar/1.jpg 39\n")
    result = pictures(commands, place, "places.txt")
    assert result.code == 3
    assert "train.csv: 1 of 3 pictures, 2 missing or empty" in result.out
    assert "no picture is left of 39" in result.out
    assert (place / "train.csv").read_text() == "path,label\ndata/a/arch/1.jpg,12\n"
    assert not (place / "train.class_names.txt").exists()


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["images"], None, "no list 'images'; expected images, annotations and categories"),
        (["images", 0, "id"], "7", "entry 1 of 'images' has no whole number as id"),
        (["images", 0, "id"], 3, "id 3 stands twice in 'images'"),
        (["images", 0, "id"], 8, "annotation 1: image_id is 7, which no image of the file has"),
        (["images", 0, "file_name"], 5, "image 7: file_name is 5; expected a path"),
        (["annotations", 2, "image_id"], 3, "annotation 2: image 3 is of category 1 here, but of"),
        (["annotations", 1, "category_id"], 3, "annotation 1: category_id is 3, which no category"),
        (["annotations", 1, "image_id"], [7], "annotation 1: image_id is [7], which no image of"),
        (["annotations", 1, "image_id"], 3, "image 3 is of category 2 here, but of 0 before"),
        (["annotations"], INATURALIST["annotations"][:1], "image 7: no annotation has this"),
        (["categories", 2, "id"], 3, "no category has the id 1; ids are class ids, 0 to 2 for 3"),
        (["categories", 2, "name"], "2 ", "categories 0 and 1 are both called '2'"),
        (["categories", 2, "name"], None, "category 1: None is not a name"),
    ],
)
def test_mistakes_in_json_are_named_with_their_id(commands, place, keys, value, said):
    content = copy.deepcopy(INATURALIST)
    entry = content
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = value
    (place / "a.json").write_text(json.dumps(content))
    result = pictures(commands, place, "a.json")
    assert result.code == 1
    result.reports(f"a.json: {said}" if keys[-1] in ("images", "id") else said, "a.json: ")


def test_json_has_no_splits(commands, place):
    (place / "a.json").write_text(json.dumps(INATURALIST))
    result = pictures(commands, place, "a.json", "split=val")
    assert result.code == 1
    result.reports("a.json: the split 'val' is asked for, but a .json file has no column split")
