import json
import logging
import os
from pathlib import Path

import pytest

from hiera_video.data.videos.records import (
    VideoRecord,
    read_class_names,
    read_splits,
    read_video_list,
)
from hiera_video.errors import AnnotationError
from hiera_video.settings.training import ClassificationData

DIGITS = "9" * 5000  # Python parses numbers of 4,300 digits at most
SSV2_LABELS = {"Closing something": "1", "Bending something until it breaks": "0"}


@pytest.fixture
def root(tmp_path):
    """A folder of empty files with the names that the lists below use."""
    for name in (
        "a.mp4",
        "b.mp4",
        "c.webm",
        "deep/d.mkv",
        "with space.mp4",
        "with, comma.mp4",
        "two  spaces.mp4",
        "vidéo 视频.mp4",
        'quo"te.mp4',
        "noext",
        "picture.JPEG",
        "train.mp4",
    ):
        touch(tmp_path / name)
    return tmp_path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def write(folder, name, content):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def pairs(videos):
    return [(record.name, record.labels) for record in videos.records]


AB = [("a.mp4", (1,)), ("b.mp4", (0,))]


# ---- lists without named columns


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a.mp4 1\nb.mp4 0\n", AB),
        ("a.mp4 1\nb.mp4 0", AB),
        ("a.mp4\t1\nb.mp4\t\t0\n", AB),
        ("a.mp4,1\nb.mp4, 0\n", AB),
        ("a.mp4   1\n\n  b.mp4 0  \n\n", AB),
        ("a.mp4 1\r\nb.mp4 0\r\n", AB),
        (b"\xef\xbb\xbfa.mp4 1\nb.mp4 0\n", AB),
        ("path label\na.mp4 1\nb.mp4 0\n", AB),
        ("a.mp4 1.0\nb.mp4 0.0\n", AB),
        (
            "with space.mp4 1\ntwo  spaces.mp4 0",
            [("with space.mp4", (1,)), ("two  spaces.mp4", (0,))],
        ),
        ("with space.mp4,1\na.mp4,0", [("with space.mp4", (1,)), ("a.mp4", (0,))]),
        ("with, comma.mp4 1\na.mp4 0", [("with, comma.mp4", (1,)), ("a.mp4", (0,))]),
        ("with, comma.mp4,1\na.mp4,0", [("with, comma.mp4", (1,)), ("a.mp4", (0,))]),
        ('"with, comma.mp4",1\n"a.mp4",0', [("with, comma.mp4", (1,)), ("a.mp4", (0,))]),
        ('"with space.mp4" 1\na.mp4 0', [("with space.mp4", (1,)), ("a.mp4", (0,))]),
        ('quo"te.mp4 1\na.mp4 0', [('quo"te.mp4', (1,)), ("a.mp4", (0,))]),
        ("vidéo 视频.mp4 1\na.mp4 0", [("vidéo 视频.mp4", (1,)), ("a.mp4", (0,))]),
        ("noext 1\na.mp4 0", None),
        ("a.mp4 1\nnoext 0", [("a.mp4", (1,)), ("noext", (0,))]),
        ("picture.JPEG 1\ndeep/d.mkv 0", [("picture.JPEG", (1,)), ("deep/d.mkv", (0,))]),
    ],
)
def test_path_label_lists(root, content, expected):
    source = write(root, "list.txt", content)
    if expected is None:
        with pytest.raises(AnnotationError, match=r"list\.txt:1: 'noext' is not a video"):
            read_video_list(source)
        return
    videos = read_video_list(source)
    assert pairs(videos) == expected
    assert videos.class_names == ("0", "1")
    assert videos.source == str(source)
    assert [record.path for record in videos.records] == [
        str(root / record.name) for record in videos.records
    ]


@pytest.mark.parametrize(
    "content",
    [
        "a.mp4,running\nb.mp4,air drumming\n",
        'a.mp4,running\nb.mp4,"air drumming"\n',
        'a.mp4 running\nb.mp4 "air drumming"\n',
        "a.mp4\trunning\nb.mp4\tair drumming\n",
        "path\tlabel\na.mp4\trunning\nb.mp4\tair drumming\n",
    ],
)
def test_labels_may_be_names(root, content):
    videos = read_video_list(write(root, "list.csv", content))
    assert videos.class_names == ("air drumming", "running")
    assert pairs(videos) == AB


@pytest.mark.parametrize("content", ["a.mp4\nwith space.mp4\n", '"a.mp4"\nwith space.mp4\n'])
def test_a_list_of_paths_has_no_labels(root, content):
    videos = read_video_list(write(root, "list.txt", content))
    assert pairs(videos) == [("a.mp4", ()), ("with space.mp4", ())]
    assert videos.class_names == ()


def test_paths_are_absolute_and_normalised(root):
    lists = root / "lists"
    lists.mkdir()
    absolute = root / "b.mp4"
    source = write(lists, "list.txt", f"../a.mp4 0\n{absolute} 0\n")
    assert [record.path for record in read_video_list(source).records] == [
        str(root / "a.mp4"),
        str(absolute),
    ]
    source = write(lists, "other.txt", "d.mkv 0\n")
    (record,) = read_video_list(source, root=root / "deep").records
    assert record == VideoRecord(str(root / "deep/d.mkv"), (0,), "d.mkv")


def test_a_relative_root_starts_from_the_working_folder(root, monkeypatch):
    monkeypatch.chdir(root)
    (root / "lists").mkdir()
    source = write(root, "lists/list.txt", "d.mkv 0\n")
    (record,) = read_video_list("lists/list.txt", root="deep").records
    assert record.path == str(root / "deep/d.mkv")
    assert read_video_list(source, root="deep").records == (record,)


# ---- lists with named columns


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "path,label\na.mp4,1\nb.mp4,0\n"),
        ("l.csv", "Label , Path\n1, a.mp4\n0,b.mp4\n"),
        ("l.csv", 'video,fps,class\n"a.mp4",25,1\r\n"b.mp4","25",0\r\n\r\n'),
        ("l.csv", b"\xef\xbb\xbfpath,label\na.mp4,1\nb.mp4,0\n"),
        ("l.tsv", "filename\tlabels\na.mp4\t1\nb.mp4\t0\n"),
        ("l.txt", "path label\na.mp4 1\nb.mp4 0\n"),
        ("l.jsonl", '{"path": "a.mp4", "label": 1}\n\n{"path": "b.mp4", "label": "0"}\n'),
        ("l.ndjson", '{"Video": "a.mp4", "class": [1]}\r\n{"Video": "b.mp4", "class": 0}\r\n'),
        ("l.json", [{"path": "a.mp4", "label": 1}, {"path": "b.mp4", "label": 0}]),
    ],
)
def test_named_columns(root, name, content):
    videos = read_video_list(write(root, name, content))
    assert pairs(videos) == AB
    assert videos.class_names == ("0", "1")


def test_quoted_fields_hold_separators(root):
    source = write(root, "l.csv", 'path,label\n"with, comma.mp4","shooting, goal"\na.mp4,run\n')
    videos = read_video_list(source)
    assert videos.class_names == ("run", "shooting, goal")
    assert pairs(videos) == [("with, comma.mp4", (1,)), ("a.mp4", (0,))]


def test_numbers_in_a_class_name_column_are_names(root):
    videos = read_video_list(write(root, "l.csv", "path,class_name\na.mp4,2\nb.mp4,10\n"))
    assert videos.class_names == ("10", "2")
    assert pairs(videos) == AB


def test_a_table_without_labels_says_so(root, caplog):
    videos = read_video_list(write(root, "l.csv", "path,action\na.mp4,1\nb.mp4,0\n"))
    assert pairs(videos) == [("a.mp4", ()), ("b.mp4", ())]
    assert "no labels; the column of labels must be called 'label'" in caplog.text
    caplog.clear()
    assert len(read_video_list(write(root, "l.csv", "path\na.mp4\nb.mp4\n")).records) == 2
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "path,labels\na.mp4,2;0\nb.mp4,1\n"),
        ("l.csv", "path,labels\na.mp4,0|2|0\nb.mp4,1\n"),
        ("l.csv", 'path,labels\na.mp4,"[2, 0]"\nb.mp4,1;\n'),
        ("l.txt", "a.mp4 2;0\nb.mp4 1\n"),
        ("l.jsonl", '{"path": "a.mp4", "labels": [0, "2"]}\n{"path": "b.mp4", "labels": 1}\n'),
    ],
)
def test_several_labels(root, name, content):
    videos = read_video_list(write(root, name, content), multi_label=True)
    assert pairs(videos) == [("a.mp4", (0, 2)), ("b.mp4", (1,))]
    assert videos.class_names == ("0", "1", "2")
    with pytest.raises(AnnotationError, match=r"'a.mp4' has 2 labels.*with multi_label \(data\.m"):
        read_video_list(root / name)


def test_a_separator_may_belong_to_a_given_name(root):
    source = write(root, "l.csv", "path,label\na.mp4,open|close\nb.mp4,run\n")
    videos = read_video_list(source, class_names=["run", "open|close"])
    assert pairs(videos) == AB


# ---- class names


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "run\nair drumming\n"),
        ("names.txt", b"\xef\xbb\xbfrun\r\nair drumming\r\n\r\n"),
        ("names.json", {"air drumming": "1", "run": 0}),
        ("names.json", ["run", "air drumming"]),
    ],
)
def test_class_names_files(root, name, content):
    source = write(root, "l.csv", "path,label\na.mp4,air drumming\nb.mp4,run\n")
    names = write(root, name, content)
    videos = read_video_list(source, class_names=names)
    assert videos.class_names == read_class_names(str(names)) == ("run", "air drumming")
    assert pairs(videos) == AB


def test_given_class_names_fix_ids_and_their_number(root):
    names = ["run", "jump", "swim"]
    videos = read_video_list(write(root, "l.txt", "a.mp4 1\nb.mp4 0\n"), class_names=names)
    assert videos.class_names == ("run", "jump", "swim")
    assert pairs(videos) == AB
    unlabelled = read_video_list(write(root, "l.txt", "a.mp4\n"), class_names=names)
    assert unlabelled.class_names == ("run", "jump", "swim")


def test_derived_ids_reach_the_highest(root):
    videos = read_video_list(write(root, "l.txt", "a.mp4 4\nb.mp4 0\n"))
    assert videos.class_names == ("0", "1", "2", "3", "4")
    again = read_video_list(write(root, "v.txt", "c.webm 3\n"), class_names=videos.class_names)
    assert pairs(again) == [("c.webm", (3,))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.txt", "", r"n\.txt: no class names"),
        ("n.txt", "run\n\nswim\n", r"n\.txt:2: '' is not a name"),
        ("n.txt", "run\nswim\nrun\n", r"'run' more than once"),
        ("n.txt", b"r\xe9union\n", r"not UTF-8 text \(byte 1\)"),
        ("n.json", {"run": 1, "swim": 2}, r"ids must be 0 to 1, each once"),
        ("n.json", {"run": 0.5}, r"expected a map from class name to id"),
        ("n.json", {"0": "run"}, r"expected a map from class name to id"),
        ("n.json", "text", r"not JSON"),
        ("n.json", [1, 2], r"n\.json:1: 1 is not a name"),
        ("n.json", {}, r"no class names"),
    ],
)
def test_bad_class_names(tmp_path, name, content, message):
    with pytest.raises(AnnotationError, match=message):
        read_class_names(write(tmp_path, name, content))


def test_missing_class_names_file(tmp_path):
    with pytest.raises(AnnotationError, match=r"none\.txt: No such file"):
        read_class_names(tmp_path / "none.txt")
    with pytest.raises(AnnotationError, match="class_names: no class names"):
        read_class_names([])


# ---- folders


def test_a_folder_per_class(tmp_path, caplog):
    for name in (
        "run/b.mp4",
        "run/a.webm",
        "run/day 1/été/c.MOV",
        "jump/pic.JPEG",
        "jump/.hidden.mp4",
        "jump/.cache/d.mp4",
        "jump/notes.txt",
        "jump/more.txt",
        "empty/README",
        ".git/config.mp4",
        "loose.mp4",
    ):
        touch(tmp_path / name)
    videos = read_video_list(tmp_path)
    assert videos.class_names == ("empty", "jump", "run")
    assert pairs(videos) == [
        ("jump/pic.JPEG", (1,)),
        ("run/a.webm", (2,)),
        ("run/b.mp4", (2,)),
        ("run/day 1/été/c.MOV", (2,)),
    ]
    assert videos.records[3].path == str(tmp_path / "run/day 1/été/c.MOV")
    (message,) = [record.getMessage() for record in caplog.records]
    for part in ("1 beside the class folders", "3 hidden", "2 with extension .txt", "(none)"):
        assert part in message


def test_a_folder_without_other_files_logs_nothing(tmp_path, caplog):
    touch(tmp_path / "2/a.mp4")
    touch(tmp_path / "10/b.mp4")
    videos = read_video_list(f"{tmp_path}{os.sep}")
    assert videos.class_names == ("10", "2")
    assert pairs(videos) == [("10/b.mp4", (0,)), ("2/a.mp4", (1,))]
    assert not caplog.records


def test_a_folder_without_classes_is_unlabelled(tmp_path, monkeypatch):
    touch(tmp_path / "b.mp4")
    touch(tmp_path / "a b.ppm")
    monkeypatch.chdir(tmp_path)
    videos = read_video_list(".")
    assert pairs(videos) == [("a b.ppm", ()), ("b.mp4", ())]
    assert videos.records[1].path == str(tmp_path / "b.mp4")
    assert videos.class_names == ()


def test_folders_with_given_class_names(tmp_path):
    touch(tmp_path / "run/a.mp4")
    videos = read_video_list(tmp_path, class_names=["jump", "run"])
    assert (videos.class_names, pairs(videos)) == (("jump", "run"), [("run/a.mp4", (1,))])
    with pytest.raises(AnnotationError, match=r"run/a\.mp4: unknown class 'run'.*'running'"):
        read_video_list(tmp_path, class_names=["running", "jump"])


def test_links_in_circles_end(tmp_path):
    touch(tmp_path / "elsewhere/a.mp4")
    (tmp_path / "data/run").mkdir(parents=True)
    (tmp_path / "data/swim").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/run/again").symlink_to(tmp_path / "data/run")
    touch(tmp_path / "data/run/b.mp4")
    for place in ("data/itself", "data/run/itself"):
        (tmp_path / place).symlink_to(tmp_path / place)
    assert pairs(read_video_list(tmp_path / "data")) == [("run/b.mp4", (0,)), ("swim/a.mp4", (1,))]


@pytest.mark.parametrize("labelled", [True, False])
def test_folders_of_any_depth(tmp_path, deep_folder, labelled):
    touch(deep_folder / "a.mp4")
    (record,) = read_video_list(tmp_path, labelled=labelled).records
    assert record.path == str(deep_folder / "a.mp4")


def test_a_folder_whose_path_is_too_long(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        os.mkdir("x" * 250)
        os.chdir("x" * 250)
    with pytest.raises(AnnotationError, match="xxx: File name too long"):
        read_video_list(tmp_path)


def test_the_order_within_a_folder(tmp_path):
    for name in ("run/b/z.mp4", "run/b.mp4", "run/a/y.mp4", "run/a/c/x.mp4", "run/c.mp4"):
        touch(tmp_path / name)
    names = [record.name for record in read_video_list(tmp_path).records]
    assert names == ["run/b.mp4", "run/c.mp4", "run/a/y.mp4", "run/a/c/x.mp4", "run/b/z.mp4"]


@pytest.mark.parametrize("name", ["run/notes.txt", "notes.txt", ".a.mp4"])
def test_a_folder_without_videos(tmp_path, name):
    touch(tmp_path / name)
    with pytest.raises(AnnotationError, match=r"no videos or images in it; known are .*\.mp4"):
        read_video_list(tmp_path)


def test_a_folder_takes_no_root(tmp_path):
    with pytest.raises(AnnotationError, match="takes no root"):
        read_video_list(tmp_path, root=tmp_path)


# ---- the official lists


KINETICS = """label,youtube_id,time_start,time_end,split
run,-abc_1,7,17,train
air drum,xyz,120,130,train
"""


@pytest.mark.parametrize(
    ("files", "paths"),
    [
        (["-abc_1_000007_000017.mp4"], ["-abc_1_000007_000017.mp4", "xyz_000120_000130.mp4"]),
        (
            ["run/-abc_1_000007_000017.mp4", "air_drum/xyz_000120_000130.mp4"],
            ["run/-abc_1_000007_000017.mp4", "air_drum/xyz_000120_000130.mp4"],
        ),
        (
            ["run/-abc_1_000007_000017.mp4", "air drum/other.mp4"],
            ["run/-abc_1_000007_000017.mp4", "air drum/xyz_000120_000130.mp4"],
        ),
    ],
)
def test_official_kinetics_list(tmp_path, files, paths):
    for file in files:
        touch(tmp_path / "videos" / file)
    videos = read_video_list(write(tmp_path, "train.csv", KINETICS), root=tmp_path / "videos")
    assert videos.class_names == ("air drum", "run")
    assert pairs(videos) == [
        ("-abc_1_000007_000017.mp4", (1,)),
        ("xyz_000120_000130.mp4", (0,)),
    ]
    assert [record.path for record in videos.records] == [
        str(tmp_path / "videos" / path) for path in paths
    ]


def test_official_kinetics_test_list_has_no_labels(tmp_path):
    touch(tmp_path / "xyz_000120_000130.mp4")
    source = write(tmp_path, "t.csv", "youtube_id,time_start,time_end,split\nxyz,120,130,test\n")
    assert pairs(read_video_list(source)) == [("xyz_000120_000130.mp4", ())]
    source = write(tmp_path, "t.csv", KINETICS.replace(",7,", ",soon,"))
    with pytest.raises(AnnotationError, match=r"t\.csv:2: time_start and time_end"):
        read_video_list(source)


DATASETS = Path(__file__).parents[2] / "datasets"


@pytest.mark.parametrize(
    ("name", "count"),
    [("kinetics400", 400), ("kinetics600", 600), ("kinetics700", 700), ("ssv2", 174)],
)
def test_shipped_class_names_are_in_official_order(name, count):
    names = read_class_names(DATASETS / name / "class_names.txt")
    assert len(names) == count
    assert list(names) == sorted(names)  # so that names derived from a complete list agree


SSV2 = [
    {
        "id": "78687",
        "label": "holding a pen",
        "template": "Closing [something]",
        "placeholders": [],
    },
    {"id": "42326", "label": "x", "template": "Bending [something] until it breaks"},
]


@pytest.mark.parametrize("extension", [".webm", ".mp4"])
@pytest.mark.parametrize("names", [None, SSV2_LABELS])
def test_ssv2(tmp_path, extension, names):
    for video in ("78687", "42326"):
        touch(tmp_path / "videos" / f"{video}{extension}")
    source = write(tmp_path, "something-something-v2-train.json", SSV2)
    if names is not None:
        names = write(tmp_path, "something-something-v2-labels.json", names)
    videos = read_video_list(source, root=tmp_path / "videos", class_names=names)
    assert videos.class_names == ("Bending something until it breaks", "Closing something")
    assert pairs(videos) == [("78687", (1,)), ("42326", (0,))]
    assert videos.records[0].path == str(tmp_path / "videos" / f"78687{extension}")


def test_ssv2_test_list_has_no_labels(tmp_path):
    touch(tmp_path / "7.webm")
    videos = read_video_list(write(tmp_path, "test.json", [{"id": 7}]))
    assert videos.records == (VideoRecord(str(tmp_path / "7.webm"), (), "7"),)


# ---- mistakes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # empty, and not lists at all
        ("l.csv", "", r"l\.csv: no videos listed"),
        ("l.csv", "\n \n", r"l\.csv: no videos listed"),
        ("l.csv", "path,label\n", r"l\.csv: no videos listed"),
        ("l.json", [], r"l\.json: no videos listed"),
        ("l.jsonl", "", r"l\.jsonl: no videos listed"),
        ("l.csv", b"a.mp4 \xff\xfe", r"l\.csv:1: not UTF-8 text \(byte 6\); save it as UTF-8"),
        ("l.mp4", "", r"l\.mp4: a single video; give a list"),
        # labels
        (
            "l.txt",
            "a.mp4 1\nb.mp4\n",
            r"l\.txt:2: 'b.mp4' has no label, unlike 1 other video; label all",
        ),
        ("l.csv", "a.mp4,1\nb.mp4,\n", r"l\.csv:2: 'b.mp4' has no label"),
        ("l.csv", "path,label\n\na.mp4,\nb.mp4,1\n", r"l\.csv:3: 'a.mp4' has no label"),
        ("l.jsonl", '{"path":"a.mp4","label":0}\n{"path":"b.mp4"}', r":2: 'b.mp4' has no label"),
        ("l.txt", "a.mp4 -1\nb.mp4 0\n", r"l\.txt:1: class id -1 must be 0 to"),
        ("l.txt", "a.mp4 1\nb.mp4 1600000000\n", r"l\.txt:2: class id 1600000000 must be 0 to"),
        ("l.txt", "a.mp4 1\nb.mp4 run\n", r"l\.txt:2: label 'run', but '1' in .*l\.txt:1; use"),
        ("l.jsonl", '{"path":"a.mp4","label":true}', r":1: label True must be a class id"),
        ("l.jsonl", '{"path":"a.mp4","label":[1.5]}', r":1: label 1.5 must be a class id"),
        ("l.csv", 'path,label\na.mp4,"[1,]"\n', r"l\.csv:2: label \[1,\] is not JSON, such as"),
        ("l.txt", "a.mp4 0\nb.mp4 1\n./a.mp4 1\n", r"l\.txt:3: './a.mp4' is '1', but '0' in .*:1"),
        # columns
        ("l.csv", "path,label\na, b.mp4,1\n", r"l\.csv:2: 3 fields, but the header has 2 .*quote"),
        ("l.csv", "path,label\na.mp4\n", r"l\.csv:2: 1 field, but the header has 2"),
        ("l.csv", 'path,label\n"a.mp4,1\nb.mp4,1\n', r"l\.csv:3: .*check the quotes"),
        ("l.csv", "path,label\n,1\n", r"l\.csv:2: no path in column 'path'"),
        ("l.csv", "url,action\na.mp4,1\n", r"l\.csv:1: 'url' is not a video; if this is a header"),
        ("l.jsonl", '{"url": "a.mp4"}\n', r"l\.jsonl:1: no column of paths among 'url'; call it"),
        ("l.jsonl", '{"path": 3}\n', r"l\.jsonl:1: no path"),
        # JSON
        ("l.jsonl", '{"path": "a.mp4"}\n{"path"', r"l\.jsonl:2: not JSON"),
        ("l.jsonl", "3\n", r"l\.jsonl: its content is not JSON, which begins with \["),
        ("l.json", '{"path": "a.mp4"}\n{"path": "b.mp4"}\n', r"l\.json:2: not JSON .*\.jsonl file"),
        ("l.json", SSV2_LABELS, r"l\.json: .*expected a list .*class_names"),
        ("l.json", [{"id": "1", "template": ["a"]}], r"l\.json: entry 1: expected an id"),
        ("l.json", [{"template": "a", "id": ""}], r"l\.json: entry 1: expected an id"),
        # what a parser refuses in its own way
        ("l.txt", f"a.mp4 {DIGITS}\n", r"l\.txt:1: class id 9+ must be 0 to 99999"),
        ("l.csv", f"path,label\na.mp4,-{DIGITS}\n", r"l\.csv:2: class id -9+ must be"),
        ("l.jsonl", f'{{"path":"a.mp4","label":{DIGITS}}}', r"l\.jsonl:1: not JSON"),
        ("l.jsonl", '{"path":"a.mp4","label":NaN}', r"l\.jsonl:1: .*NaN is not a value of JSON"),
        ("l.json", "[" * 100_000, r"l\.json: not JSON .*nested too deeply"),
        (
            "l.csv",
            f"label,youtube_id,time_start,time_end\nx,y,{DIGITS},1",
            r":2: .*must be seconds",
        ),
        ("l.csv", f"path,label\n{'b' * 200_000},1\n", r"l\.csv:2: field larger than field limit"),
        ("l.txt", f'a.mp4 1\n"{"b" * 200_000}.mp4" 1\n', r"l\.txt:2: field larger than"),
        ("l.txt", f"a.mp4 1\n{'b' * 2_000_000}.mp4 1\n", r"l\.txt:2: a line of 2,000,006 char"),
        ("l.json", [{"path": "b" * 2_000_000}], r"l\.json: entry 1: a text of more than"),
        # names of classes that no output could hold
        ("l.csv", "path,label\na.mp4,x\0\n", r"l\.csv: class name 'x\\x00' holds NUL"),
        ("l.json", [{"path": "a.mp4", "label": "\ud800"}], r"l\.json: class name '\\ud800'"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_mistakes_are_named(root, name, content, message):
    with pytest.raises(AnnotationError, match=message) as caught:
        read_video_list(write(root, name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.mp4,3", r"l\.csv:2: class id 3 must be 0 to 2, because there are 3 class names"),
        ("a.mp4,runing", r"l\.csv:2: unknown class 'runing'; did you mean 'running'\?"),
        ("a.mp4,Zumba", r"l\.csv:2: unknown class 'Zumba'; known are 'running', 'swimming', '0'"),
        ("a.mp4,0", r"l\.csv:2: label '0' may be class id 0 or the name of class 2; .*class_name"),
    ],
)
def test_labels_that_do_not_fit_the_class_names(root, line, message):
    source = write(root, "l.csv", f"b.mp4,1\n{line}\n")
    with pytest.raises(AnnotationError, match=message):
        read_video_list(source, class_names=["running", "swimming", "0"])


def test_missing_source_and_root(root):
    with pytest.raises(AnnotationError, match=r"none\.csv: no such file or folder"):
        read_video_list(root / "none.csv")
    source = write(root, "l.csv", "a.mp4,1\n")
    with pytest.raises(AnnotationError, match=r"root .*/none is not a folder; set root"):
        read_video_list(source, root=root / "none")


def test_missing_videos_are_left_to_the_reader_unless_none_is_there(root):
    lines = [f"gone{i}.mp4 0" for i in range(30)]
    lines[19] = "a.mp4 0"
    assert len(read_video_list(write(root, "l.txt", "\n".join(lines))).records) == 30
    lines[19], lines[20] = lines[20], lines[19]
    with pytest.raises(
        AnnotationError, match=r"none of the first 20 .*below the root .*gone0\.mp4"
    ):
        read_video_list(write(root, "l.txt", "\n".join(lines)))


def test_a_repeated_line_is_kept_once_and_counted(root, caplog):
    videos = read_video_list(write(root, "l.txt", "a.mp4 0\nb.mp4 1\n./a.mp4 0\n"))
    assert pairs(videos) == [("a.mp4", (0,)), ("b.mp4", (1,))]
    assert caplog.record_tuples[0][1:] == (
        logging.WARNING,
        f"{root / 'l.txt'}: lines left out that repeat a video: 1",
    )


# ---- two lists together


def splits(train, val, **changes):
    val = None if val is None else str(val)
    return read_splits(ClassificationData(train=str(train), val=val, **changes))


def test_what_two_lists_share_and_lack_is_logged(root, caplog):
    train = write(root, "train.csv", "a.mp4,jump\nb.mp4,run\n")
    val = write(root, "val.csv", "b.mp4,jump\nc.webm,run\n")
    splits(train, write(root, "other.csv", "c.webm,run\n"))
    assert not caplog.text
    names = write(root, "names.txt", "run\njump\nswim\nsurf\n")
    trained, validated = splits(train, val, class_names=str(names))
    assert trained.class_names == validated.class_names == ("run", "jump", "swim", "surf")
    unseen, shared = [record.getMessage() for record in caplog.records]
    assert shared == f"1 of 2 videos of {val} are also in {train}: 'b.mp4'"
    assert unseen == f"2 of 4 classes have no video in {train}: 'swim', 'surf'"


def test_a_validation_list_has_the_classes_of_its_training_list(root):
    train = write(root, "train.csv", "a.mp4,jump\nb.mp4,run\n")
    assert splits(train, None)[1] is None
    with pytest.raises(AnnotationError, match=r"val\.csv:1: unknown class 'swim'"):
        splits(train, write(root, "val.csv", "c.webm,swim\n"))
    for lists in (("a.mp4\n", "b.mp4,run\n"), ("a.mp4,run\nc.webm,jump\n", "b.mp4\n")):
        paths = [write(root, name, text) for name, text in zip("tv", lists, strict=True)]
        with pytest.raises(AnnotationError, match="no label for 1 video, for example"):
            splits(*paths)
