"""What new users write into lists, and the message, which alone must be enough to correct it."""

import json
import os
import re

import pytest

from hiera_video.data.videos.records import read_class_names, read_video_list
from hiera_video.errors import AnnotationError

AB = [{"path": "a.mp4", "label": "run"}, {"path": "b.mp4", "label": "jump"}]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A working folder with a.mp4, b.mp4, `my clip.mp4`, `#c.mp4` and videos/d.mp4."""
    folder = tmp_path / "here"
    (folder / "videos").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "my clip.mp4", "#c.mp4", "videos/d.mp4"):
        (folder / name).touch()
    monkeypatch.chdir(folder)
    return folder


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def refused(source, message, **options):
    with pytest.raises(AnnotationError, match=message) as caught:
        read_video_list(source, **options)
    return str(caught.value)


def listed(source, **options):
    videos = read_video_list(source, **options)
    labels = [[videos.class_names[i] for i in record.labels] for record in videos.records]
    return list(zip([record.name for record in videos.records], labels, strict=True))


# ---- the label before the path

FIRST = (
    r"{} is read as a path, and there is no such file, but there is 'a\.mp4'; .* as in a\.mp4,{}"
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "path,label\nrun,a.mp4\njump,b.mp4\n", r"l\.csv:2: 'run' is read as the path"),
        ("l.csv", "path,label\na.mp4,jump\nrun,b.mp4\n", r"l\.csv:3: 'run' is read as the path"),
        ("l.json", [{"path": "run", "label": "a.mp4"}], r"entry 1: 'run' is read .*exchange them"),
        ("l.csv", "run,a.mp4\njump,b.mp4\n", "l.csv:1: " + FIRST.format("'run,a.mp4'", "run")),
        ("l.txt", "air drum a.mp4\n", "l.txt:1: " + FIRST.format("'air drum a.mp4'", "air drum")),
        ("l.txt", "0\ta.mp4\n1\tb.mp4\n", "l.txt:1: " + FIRST.format(r"'0\\ta.mp4'", "0")),
        ("l.txt", "b.mp4 0\n1 a.mp4\n", "l.txt:2: " + FIRST.format("'1 a.mp4'", "1")),
        ("l.txt", "0 a.mp4 run\n", "l.txt:1: " + FIRST.format("'0 a.mp4'", "run")),
        ("l.txt", "0 gone.mp4\n", r"l\.txt:1: '0 gone\.mp4' is read .* as in gone\.mp4,0"),
    ],
)
@pytest.mark.parametrize("class_names", [None, ["run", "jump"]])
def test_a_label_before_the_path(root, name, content, message, class_names):
    refused(write(root, name, content), message, class_names=class_names)


def test_paths_that_look_like_a_label_and_a_path_are_read(root):
    (root / "0 a.mp4").touch()
    source = write(root, "l.txt", "0 a.mp4\nmy clip.mp4\n")
    assert listed(source) == [("0 a.mp4", []), ("my clip.mp4", [])]
    (root / "frames").mkdir()
    assert listed(write(root, "l.csv", "path,label\nframes,a.mp4\n")) == [("frames", ["a.mp4"])]


# ---- other content than a list


@pytest.mark.parametrize(
    ("content", "header"),
    [("run\njump\n", 0), ("abseiling\nair drumming\n", 0), ("0\n1\n", 0), ("label\nrun\n", 1)],
)
def test_labels_alone(root, content, header):
    text = refused(write(root, "l.csv", content), r"l\.csv: none of the first 2 videos exists")
    for part in (
        "if they are class names",
        "class_names (data.class_names)",
        "needs a column path",
    ):
        assert part in text


@pytest.mark.parametrize("name", ["l.csv", "l.txt", "l"])
@pytest.mark.parametrize(
    "content", [json.dumps(AB), json.dumps(AB, indent=1), "\n".join(map(json.dumps, AB))]
)
def test_json_under_another_name(root, name, content):
    refused(write(root, name, content), rf"{name}: its content is JSON; call the file \.json, or")


@pytest.mark.parametrize("name", ["l.json", "l.jsonl"])
@pytest.mark.parametrize("content", ["path,label\na.mp4,run\n", "a.mp4 run\n", "0 a.mp4\n"])
def test_lines_in_a_file_of_json(root, name, content):
    refused(write(root, name, content), rf"{name}: its content is not JSON, .*\.txt or \.csv")


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ({"a.mp4": "run", "b.mp4": "jump"}, "its keys are paths: write an object for each"),
        ({"version": 1, "database": {"a": {"annotations": []}}}, "ActivityNet.*path, start, end"),
        ({"path": {"0": "a.mp4"}, "label": {"0": "run"}}, r"to_json\(FILE, orient='records'\)"),
        ({"path": ["a.mp4"], "label": ["run"]}, r"orient='records'"),
        ({"columns": ["path"], "index": [0], "data": [["a.mp4"]]}, r"orient='records'"),
        ({"train": AB, "val": AB}, "what is under 'train', 'val' to a file of its own"),
        ({"videos": [{"id": 1}], "annotations": [{"video_id": 1}]}, "this is COCO's form"),
        ({"run": ["a.mp4"], "jump": ["b.mp4"]}, "write an object for each path, with its label"),
        ({"a": {"label": "run"}}, "put the key of each video into its object, as the path"),
        ({"run": 0, "jump": "1"}, r"if this is a map from class names .*\(data\.class_names\)"),
        (AB[0], r"this is one video: put \[ \] around it"),
        ({}, r"expected a list such as \[\{"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_json_objects_say_how_to_make_a_list(root, content, advice):
    refused(write(root, "l.json", content), rf"l\.json: a JSON object .*{advice}")


def test_a_list_in_json_lines(root):
    refused(write(root, "l.jsonl", AB), r"a line of \.jsonl is an object.* in a \.json file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.mp4,run\n".encode("utf-16"), "UTF-16 text, or no text at all; save it as UTF-8"),
        ("a.mp4,run\n".encode("utf-16-be"), "UTF-16 text"),
        (b"PK\x03\x04\x14\x00\x06\x00", "a workbook or an archive, not text; save a table as csv"),
        (b"\x1f\x8b\x08\x00", "a compressed file; unpack it"),
    ],
)
def test_files_that_are_no_text(root, content, message):
    (root / "l.csv").write_bytes(content)
    refused(root / "l.csv", rf"l\.csv: {message}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.txt", "0 run\n1 jump\n", "its lines hold ids and names, such as '1 jump'"),
        ("n.csv", "id,name\n1,run\n2,jump\n3,swim\n", "ids and names, such as '3,swim'"),
        ("n.csv", "name,id\nrun,0\njump,1\n", "ids and names, such as 'jump,1'"),
        ("n.txt", "a.mp4 run\nb.mp4 jump\n", "n.txt: a list of videos, such as 'a.mp4 run'; exp"),
        ("n.txt", '["run", "jump"]', r"n\.txt: its content is JSON; call the file \.json"),
        ("n.jsonl", '{"id": 0, "name": "run"}\n', r"n\.jsonl: its lines are JSON, such as \{"),
        ("n.json", "run\njump\n", r"n\.json: its content is not JSON"),
    ],
)
def test_class_names_in_another_form(tmp_path, name, content, message):
    with pytest.raises(AnnotationError, match=message):
        read_class_names(write(tmp_path, name, content))


@pytest.mark.parametrize(
    "names",
    [
        ("2 fingers", "1 finger"),
        ("level 1", "level 2"),
        ("7 up",),
        ("[a] b", "{c}"),
        ("1 run", "999999999 jumps"),  # quickly: the numbers between them are not listed
    ],
)
def test_names_that_hold_numbers_or_brackets(tmp_path, names):
    assert read_class_names(write(tmp_path, "n.txt", "\n".join(names))) == names
    assert read_class_names(write(tmp_path, "n.json", ["1 finger", "2 fingers"]))[1] == "2 fingers"


# ---- what other programs put around fields and lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("'my clip.mp4' run\n'b.mp4' jump\n", r"l\.txt:1: the quotes in 'my clip\.mp4' are read"),
        ("path,label\na.mp4,run\n'b.mp4','jump'\n", r":3: .*write b\.mp4 without quotes, or \"b\."),
        ("a.mp4,run\n\u201cmy clip.mp4\u201d,jump\n", r":2: .*write my clip\.mp4 without quotes"),
        ("a.mp4,'run'\nb.mp4,'jump'\n", r":1: the quotes in 'run' are read as a part of the class"),
        ("a.mp4 'run fast'\n", r':1: .* quote a label of several words, a\.mp4 "run fast", or'),
        ('"a.mp4 run"\n"b.mp4 jump"\n', r':1: .*the quotes hold both: write "a\.mp4" "run"'),
        ("a.mp4 run # good\n", r"l\.txt:1: .*lists have no comments; remove '# good'"),
        ("a.mp4 = run\n", r"l\.txt:1: .*; remove '=' between path and label"),
        ("a.mp4 -> run fast\n", r"l\.txt:1: .*; remove '->' between path and label"),
        ("path\na.mp4,run\n", r"followed by ',run' .* the header must name all columns"),
        ("# all videos\na.mp4 run\n", r"l\.txt:1: '# all videos' is no comment"),
        ("a.mp4 run\n# of day 2\nb.mp4 jump\n", r"l\.txt:2: '# of day 2' is no comment"),
        ("a.mp4 run\n#gone.mp4 jump\n", r"l\.txt:2: .*or begin it with \./ if it is a path"),
        ("# all\npath,label\na.mp4,run\n", r"l\.txt:1: '# all' is no comment"),
        ("path,label\n# a, b, c\na.mp4,run\n", r"l\.txt:2: '# a,b,c' is no comment"),
        ("path,label\n#gone.mp4,run\na.mp4,run\n", r"l\.txt:2: '#gone\.mp4' is no comment"),
        ("a.mp4,run,\n", r"l\.txt:1: .*remove ',' from the end of the line"),
        ("path,label\na.mp4,run,,\n", r"l\.txt:2: 4 fields.*remove ',' from the end of the line"),
        ("path label\na.mp4 run\npath label\n", r"l\.txt:3: the header is repeated here"),
        ("a.mp4|run\nb.mp4|jump\n", r"followed by '\|run' in the list: separate path and"),
        ("a.mp4 0.5\nb.mp4 1.5\n", r"l\.txt:1: label '0\.5' is no class id, which is a whole"),
        ("path,label\na.mp4,run\nb.mp4,nan\n", r"l\.txt:3: label 'nan' is no class id"),
        ("path,label\na.mp4,\"['run']\"\n", r"l\.txt:2: label \['run'\] is not JSON, such as \["),
    ],
)
def test_fields_and_lines(root, content, message):
    refused(write(root, "l.txt", content), message)


def test_what_is_no_mistake(root):
    """Files with such names, and class names that are known, are read as before."""
    (root / "'e'.mp4").touch()
    (root / "'f").touch()
    lines = "#c.mp4 run\n'e'.mp4 run\n./#gone.mp4 jump\n"
    found = [("#c.mp4", ["run"]), ("'e'.mp4", ["run"]), ("./#gone.mp4", ["jump"])]
    assert listed(write(root, "l.txt", lines)) == found
    assert listed(write(root, "l.csv", "#path,label\na.mp4,run\n")) == [("a.mp4", ["run"])]
    quoted = write(root, "l.csv", "a.mp4,'run'\nb.mp4,1.5\n")
    assert listed(quoted, class_names=["'run'", "1.5"]) == [
        ("a.mp4", ["'run'"]),
        ("b.mp4", ["1.5"]),
    ]
    numbers = write(root, "l.csv", "path,class_name\na.mp4,0.5\nb.mp4,nan\n")
    assert listed(numbers) == [("a.mp4", ["0.5"]), ("b.mp4", ["nan"])]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("header", ["", "label{}path\n"])
def test_a_first_line_may_state_the_separator(root, separator, header):
    """As spreadsheets write it; the lines keep their numbers."""
    fields = ("run", "a.mp4") if header else ("a.mp4", "run")
    text = f"sep={separator}\n{header.format(separator)}{separator.join(fields)}\n"
    if separator == " " and header:
        return  # a header in words begins with the path
    assert listed(write(root, "l.csv", text)) == [("a.mp4", ["run"])]
    refused(write(root, "m.csv", text + "'b.mp4'" * 2), rf"m\.csv:{3 + bool(header)}: ")


# ---- files that are elsewhere


@pytest.mark.parametrize(
    ("name", "content", "options", "advice"),
    [
        ("l.txt", "d.mp4 run\n", {}, "'d.mp4' is in HERE/videos: set root (data.root=HERE/videos)"),
        ("lists/l.txt", "videos/d.mp4 run\n", {}, "'videos/d.mp4' is in HERE: set root"),
        ("l.txt", "here/a.mp4 run\n", {}, "'here/a.mp4' is in UP: set root (data.root=UP)"),
        ("l.txt", "a.mp4 run\n", {"root": "videos"}, "'a.mp4' is in HERE: set root"),
        ("l.txt", "x/y/a.mp4 0\n", {}, "there is 'a.mp4' in HERE: remove 'x/y/' from the paths"),
        ("l.txt", "/home/me/videos/d.mp4 0\n", {}, "'videos/d.mp4' in HERE: remove '/home/me/' fr"),
        ("l.txt", "/home/me/a.mp4 0\n", {"root": "videos"}, "paths, and set root (data.root=HERE)"),
        ("l.txt", "C:\\me\\a.mp4 0\n", {}, "'a.mp4' in HERE: remove 'C:\\\\me\\\\' from the paths"),
        ("l.txt", "videos\\d.mp4 0\n", {}, "write / between folders, not the backslashes"),
        ("l.txt", "a.avi run\n", {}, "there is 'a.mp4': write names as they are, with the suffix"),
        ("l.txt", "a run\nb jump\n", {}, "there is 'a.mp4': write names as they are"),
        ("l.txt", "A.MP4 run\n", {}, "there is 'a.mp4': write names as they are"),
        ("l.txt", "l.mp4 run\n", {}, "HERE/l.mp4; set root (data.root) to the folder"),  # not l.txt
        ("l.txt", "vidoes/e.mp4 run\n", {}, "did you mean 'HERE/videos'?"),
        ("l.txt", "d.mp4 videos\n", {}, "there is 'videos/d.mp4': write the folders into the list"),
        ("l.txt", "gone.mp4 run\n", {}, "HERE/gone.mp4; set root (data.root) to the folder"),
        ("l.txt", "/x/gone.mp4 0\n", {}, "for example /x/gone.mp4: there is no such file or"),
        ("l.txt", f"{'x' * 300}/e.mp4 0\n", {}, "there is no such file or folder"),
        ("l.json", [{"path": "e\0.mp4", "label": 0}], {}, "none of the first 1 videos exists"),
        ("l.txt", f"{'x ' * 400_000}e.mp4\n", {}, "no file has a path of 800"),
    ],
)
def test_where_the_files_are(root, name, content, options, advice):
    text = refused(write(root, name, content), "none of|no file", **options)
    places = {"HERE": str(root), "UP": str(root.parent)}
    assert re.sub("HERE|UP", lambda match: places[match[0]], advice) in text
    assert "below the root" in text or "/x/" in text or "/home" in text or "no file has" in text


def test_folders_that_have_the_names_of_classes_are_no_videos(root):
    os.makedirs(root / "classes/run")
    assert "if they are class names" in refused(write(root, "l.txt", "run\njump\n"), "none of the")
