"""Files of boxes: every form read into the same table, every mistake named by its line."""

import io
import json
import logging
import os
import pickle

import numpy as np
import pytest

from hiera_video.data.boxes.files import (
    inspect_boxes,
    read_boxes,
    read_keyframes,
)
from hiera_video.data.boxes.table import (
    LabelMap,
    box_iou,
    read_label_map,
    write_detections,
)
from hiera_video.data.videos.folders import locate_videos
from hiera_video.errors import AnnotationError

DIGITS = "9" * 5000  # Python parses numbers of 4,300 digits at most
LABELS = LabelMap({1: "stand", 3: "sit", 4: "drink, slowly"}, {})
TRUTH = "a,0902,0.1,0.2,0.3,0.4,1,0\nb,0903,0,0,1,1,3,5\n"


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(table):
    names = [table.videos[v] for v in table.video]
    return list(
        zip(names, table.second.tolist(), table.boxes.tolist(), table.action.tolist(), strict=True)
    )


A = ("a", 902.0, [0.1, 0.2, 0.3, 0.4], 1)
B = ("b", 903.0, [0.0, 0.0, 1.0, 1.0], 3)

# ---- forms


@pytest.mark.parametrize(
    ("name", "content", "persons"),
    [
        ("x.csv", TRUTH, [0, 5]),
        ("x.csv", TRUTH.replace("\n", "\r\n"), [0, 5]),
        ("x.csv", "\ufeff" + TRUTH, [0, 5]),
        ("x.csv", TRUTH.replace("\n", "\n\n"), [0, 5]),
        ("x.csv", TRUTH.rstrip(), [0, 5]),
        ("x.csv", TRUTH.replace(",0903", ", 0903"), [0, 5]),
        ("x.csv", '"a",902,0.1,0.2,0.3,0.4,1,0\nb,903.0,0,0,1,1,3,5', [0, 5]),
        ("x.csv", "a,0902,0.1,0.2,0.3,0.4,1\nb,0903,0,0,1,1,3", [-1, -1]),
        (
            "x.csv",
            "video,second,x1,y1,x2,y2,action\na,902,.1,.2,.3,.4,1\nb,903,0,0,1,1,3",
            [-1, -1],
        ),
        (
            "x.csv",
            "video,x1,y1,x2,y2,second,label\na,.1,.2,.3,.4,902,stand\nb,0,0,1,1,903,sit",
            [-1, -1],
        ),
        (
            "x.jsonl",
            "\n".join(
                json.dumps(dict(video=v, second=s, x1=b[0], y1=b[1], x2=b[2], y2=b[3], action=c))
                for v, s, b, c in (A, B)
            ),
            [-1, -1],
        ),
    ],
)
def test_forms_of_ground_truth(tmp_path, name, content, persons):
    table = read_boxes("ground truth", write(tmp_path, name, content), LABELS)
    assert rows(table) == [A, B]
    assert table.person.tolist() == persons
    assert table.score is None
    assert table.boxes.dtype == np.float64
    assert table.action.dtype == table.video.dtype == np.int32
    assert all(table.is_box)


def test_rows_of_two_columns_mark_empty_key_frames(tmp_path):
    content = "a,0902\n" + TRUTH + '"c, d",0904\n\na, 0905\n'
    table = read_boxes("ground truth", write(tmp_path, "x.csv", content), LABELS)
    assert table.is_box.tolist() == [False, True, True, False, False]
    assert table.lines.tolist() == [1, 2, 3, 4, 6]
    assert [table.videos[v] for v in table.video] == ["a", "a", "b", "c, d", "a"]
    assert table.second.tolist() == [902, 902, 903, 904, 905]
    assert len(set(table.videos)) == len(table.videos) == 3


def test_an_empty_file_has_no_rows(tmp_path):
    for content in ("", "\n\n", "video,second,x1,y1,x2,y2", "video,second,x1,y1,x2,y2\n\n"):
        assert len(read_boxes("ground truth", write(tmp_path, "x.csv", content), LABELS)) == 0
        assert len(read_boxes("detections", write(tmp_path, "x.csv", content))) == 0


def test_lines_count_blank_ones_and_the_header(tmp_path):
    path = write(tmp_path, "x.csv", "a,902,0,0,1,1,1,1\n\nb,902,0,0,1,1,1,1\n")
    assert read_boxes("ground truth", path).lines.tolist() == [1, 3]
    path = write(tmp_path, "x.csv", "video,second,x1,y1,x2,y2\na,902,0,0,1,1\nb,902,0,0,1,1\n")
    assert read_boxes("proposals", path).lines.tolist() == [2, 3]


def test_every_line_of_a_long_file_is_numbered(tmp_path):
    """Of several megabytes, which are parsed in parts."""
    row = "a,0902,0.1234567890,0.2345678901,0.3456789012,0.4567890123,1,0.5\n"
    lines = [row] * 50_000
    lines[20_000:20_000], lines[40_000] = ["a,0903\n", "\n"], row.replace("0902", "late")
    table = inspect_boxes("detections", write(tmp_path, "x.csv", "".join(lines)), None)
    assert np.flatnonzero(~table.is_box).tolist() == [20_000]
    expected = [*range(1, 20_002), *range(20_003, 40_001), *range(40_002, 50_003)]
    assert table.lines.tolist() == expected
    (problem,) = (problem for problem in table.problems if problem.kind == "row")
    assert (problem.line, problem.text) == (40_001, "second is 'late'; expected a finite number")


def test_slowfast_proposals(tmp_path):
    content = "a,0902,0.036,0.098,0.550,0.979,,0.995518\na,0902,0,0,1,1,,0.5\n"
    table = read_boxes("proposals", write(tmp_path, "x.csv", content))
    assert table.score.tolist() == [0.995518, 0.5]
    assert table.action.tolist() == [0, 0]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_proposals(tmp_path, protocol):
    content = {"a,0902": np.array([[0, 0, 0.5, 0.5, 0.9]]), "b,x,0903": np.zeros((0, 5))}
    path = write(tmp_path, "x.pkl", pickle.dumps(content, protocol=protocol))
    table = read_boxes("proposals", path)
    assert table.videos == ("a", "b,x")
    assert table.score[0] == 0.9
    assert table.is_box.tolist() == [True, False]


def test_pickles_of_older_numpy(tmp_path):
    data = pickle.dumps({"a,0902": np.array([[0, 0, 0.5, 0.5, 0.9]])}, protocol=2)
    data = data.replace(b"numpy._core.", b"numpy.core.")
    assert read_boxes("proposals", write(tmp_path, "x.pkl", data)).score.tolist() == [0.9]


class Runs:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_never_runs_code(tmp_path):
    path = write(tmp_path, "x.pkl", pickle.dumps({"a,0902": Runs(tmp_path / "ran")}))
    with pytest.raises(AnnotationError, match=r"x\.pkl: refused \(it asks for posix\.mkdir\)"):
        read_boxes("proposals", path)
    assert not (tmp_path / "ran").exists()
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object))
    for content in (b"", b"nonsense", pickle.dumps([1]), pickle.dumps({"a": np.ones((1, 5))})):
        with pytest.raises(AnnotationError, match=r"x\.pkl"):
            read_boxes("proposals", write(tmp_path, "x.pkl", content))


# ---- label maps


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.pbtxt", 'item {\n  name: "stand"\n  id: 1\n}\nitem {\n  name: "sit"\n  id: 3\n}\n'),
        (
            "x.pbtxt",
            'label {\n  name: "stand"\n  label_id: 1\n  label_type: PERSON_MOVEMENT\n}\n'
            'label { name: "sit" label_id: 3 label_type: OBJECT_MANIPULATION }\n',
        ),
        ("x.txt", "1: stand\n3: sit\n"),
        ("x.json", '{"stand": 1, "sit": 3}'),
    ],
)
def test_forms_of_label_maps(tmp_path, name, content):
    labels = read_label_map(write(tmp_path, name, content))
    assert labels.names == {1: "stand", 3: "sit"}
    assert labels.groups == ({1: "pose", 3: "object"} if "label_type" in content else {})


def test_plain_names_have_ids_from_1(tmp_path):
    assert read_label_map(write(tmp_path, "x.txt", "stand\nsit\n")).names == {1: "stand", 2: "sit"}


def test_groups_of_ava_only():
    labels = read_label_map("tests/golden/ava/ava_action_list.pbtxt")
    assert {labels.groups[c] for c in (1, 14)} == {"pose"}
    assert {labels.groups[c] for c in (15, 63)} == {"object"}
    assert {labels.groups[c] for c in (64, 80)} == {"person"}


@pytest.mark.parametrize(
    "content",
    [
        *('item { name: "a" }', 'item { name: "a" id: 0 }', "1: a\n1: b\n", "1: a\n2: a\n"),
        *(f"{DIGITS}: a\n", f'item {{ name: "a" id: {DIGITS} }}', "100001: a\n", "1: a\0\n"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_bad_label_maps(tmp_path, content):
    with pytest.raises(AnnotationError, match=r"x\.txt:\d"):
        read_label_map(write(tmp_path, "x.txt", content))


# ---- mistakes

GOOD = "a,0902,0.1,0.2,0.3,0.4,1,0.5\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,0902,0.1,0.2,0.3,0.4,1,0.5,7", "9 columns; expected 8"),
        ("a,0902,0.1,0.2,0.3", "5 columns"),
        ("a,late,0.1,0.2,0.3,0.4,1,0.5", "second is 'late'; expected a finite number"),
        ("a,-1,0.1,0.2,0.3,0.4,1,0.5", "second is -1"),
        ("a,,0.1,0.2,0.3,0.4,1,0.5", "second is empty"),
        (",0902,0.1,0.2,0.3,0.4,1,0.5", "no video named"),
        ("a,0902,nan,0.2,0.3,0.4,1,0.5", "x1 is 'nan'; expected a finite number"),
        ("a,0902,0.1,0.2,,0.4,1,0.5", "x2 is empty"),
        ("a,0902,0.1,0.2,0.3,0.4,1,nan", "score is 'nan'; expected a finite number"),
        ("a,0902,0.1,0.2,0.3,0.5,1,", "no score; each detection needs one"),
        ("a,0902,0.1,0.2,0.3,0.4,jump,0.5", "action is 'jump'"),
        ("a,0902,0.1,0.2,0.3,0.4,1.5,0.5", "expected a whole number"),
        ("a,0902,0.1,0.2,0.3,0.4,0,0.5", "action is '0'; expected a whole number from 1"),
    ],
)
def test_unreadable_rows_of_detections(tmp_path, line, message):
    path = write(tmp_path, "x.csv", GOOD + line + "\n" + GOOD.replace("a", "b"))
    with pytest.raises(AnnotationError, match=r"x\.csv:2: ") as raised:
        read_boxes("detections", path, LABELS)
    assert message in str(raised.value)
    table = inspect_boxes("detections", path, LABELS)
    assert [problem.line for problem in table.problems] == [2]
    stays = message.startswith(("second is -1", "no score"))  # in the table, for other uses
    assert len(table) == 2 + stays


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,0902,-0.1,0.2,0.3,0.4,1,0", "leaves the picture"),
        ("a,0902,0.1,0.2,30,40,1,0", "corners are fractions 0..1"),
        ("a,0902,0.3,0.2,0.1,0.4,1,0", "expected x1 < x2"),
        ("a,0902,0.1,0.2,0.3,0.2,1,0", "has no area"),
        ("a,0902,0.1,0.2,0.3,0.4,81,0", "action 81 is not in the label map, which has 3 ids"),
        ("a,0902,0.1,0.2,0.3,0.4,2,0", "action 2 is not in the label map"),
    ],
)
def test_mistakes_in_ground_truth(tmp_path, line, message):
    path = write(tmp_path, "x.csv", f"{TRUTH}{line}\n{line}7\n")
    with pytest.raises(AnnotationError, match=r"x\.csv:3: .*and 1 more such lines") as raised:
        read_boxes("ground truth", path, LABELS)
    assert message in str(raised.value)
    assert len(read_boxes("ground truth", path, LABELS, strict=False)) == 4


def test_ids_count_from_1_in_every_file(tmp_path):
    path = write(tmp_path, "x.csv", TRUTH + "a,0902,0.1,0.2,0.3,0.4,0,0\n")
    for labels in (LABELS, None):
        with pytest.raises(
            AnnotationError, match=r"x\.csv:3: action is '0'; expected a whole number from 1"
        ):
            read_boxes("ground truth", path, labels, strict=False)
    with pytest.raises(AnnotationError, match=r"x\.csv:1: action is '0'"):
        read_boxes("proposals", write(tmp_path, "x.csv", "a,0902,0,0,1,1,0,0.5\n"))


def test_repeated_rows_are_logged(tmp_path, caplog):
    path = write(tmp_path, "x.csv", TRUTH + TRUTH)
    with caplog.at_level(logging.WARNING, logger="hiera_video"):
        assert len(read_boxes("ground truth", path, LABELS)) == 4
    assert "2 repeated rows, the first in line 3" in caplog.text


def test_detections_need_scores_and_actions(tmp_path):
    with pytest.raises(AnnotationError, match=r"x\.csv:1: no score"):
        read_boxes("detections", write(tmp_path, "x.csv", "a,0902,0,0,1,1,1\n"))
    rows = [dict(video="a", second=1, x1=0, y1=0, x2=1, y2=1, action=1, score=0.5)] * 2
    rows[1] = {key: value for key, value in rows[1].items() if key != "score"}
    with pytest.raises(AnnotationError, match=r"x\.jsonl:2: no score"):
        read_boxes("detections", write(tmp_path, "x.jsonl", "\n".join(map(json.dumps, rows))))
    with pytest.raises(AnnotationError, match=r"x\.csv:2: no action"):
        read_boxes("detections", write(tmp_path, "x.csv", GOOD + "a,0902,0,0,1,1,,0.5\n"))


def test_detections_may_name_empty_key_frames(tmp_path):
    for content, expected in (("a,0901\n" + GOOD, [False, True]), ("a,0901\n", [False])):
        table = read_boxes("detections", write(tmp_path, "x.csv", content))
        assert table.is_box.tolist() == expected
        assert (~np.isnan(table.score)).tolist() == expected


def test_proposals_have_scores_from_0_to_1_or_none(tmp_path):
    box = "a,0902,0,0,1,1,1"
    with pytest.raises(AnnotationError, match=r"x\.csv:2: score is 7; .* person id of a ground-tr"):
        read_boxes("proposals", write(tmp_path, "x.csv", f"{box},1\n{box},7\n"))
    rows = [dict(video="a", second=second, x1=0, y1=0, x2=1, y2=1) for second in (1, 2)]
    content = "\n".join(map(json.dumps, [rows[0], rows[1] | {"score": 0.5}]))
    with pytest.raises(AnnotationError, match=r"x\.jsonl:1: no score, but other rows have one"):
        read_boxes("proposals", write(tmp_path, "x.jsonl", content))
    content = "\n".join(map(json.dumps, rows))
    assert read_boxes("proposals", write(tmp_path, "x.jsonl", content)).score is None
    table = read_boxes("proposals", write(tmp_path, "x.csv", f"b,0901\n{box},0\n{box},1\n"))
    assert table.score[1:].tolist() == [0, 1]


@pytest.mark.parametrize("num_rows", [10, 5_000, 50_000])
def test_a_quote_that_is_not_closed_is_one_line(tmp_path, num_rows):
    path = write(tmp_path, "x.csv", GOOD + '"' + GOOD * num_rows)
    with pytest.raises(
        AnnotationError, match=r"x\.csv:(2: .* has 1 column;|.*; check the quotes$)"
    ) as raised:
        read_boxes("detections", path)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(AnnotationError, match="No such file"):
        read_boxes("detections", tmp_path / "none.csv")
    with pytest.raises(AnnotationError, match=r"x\.csv:1: no column second, x1"):
        read_boxes("detections", write(tmp_path, "x.csv", "video,time_stamp,a\nx,1,2\n"))
    with pytest.raises(AnnotationError, match="not UTF-8"):
        read_boxes("detections", write(tmp_path, "x.csv", b"\xe9," + GOOD.encode()))
    for name in ("a.csv", "a.jsonl", "a.pkl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(AnnotationError, match=rf"{name}: a folder, a pipe or a device"):
            read_boxes("proposals", tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", GOOD + GOOD.replace("0902", DIGITS), r"x\.csv:2: second is '9+'"),
        ("x.csv", GOOD + GOOD.replace("0.2", "0.\x002"), r"x\.csv:2: y1 is '0\.\\x002'"),
        ("x.csv", GOOD + f'"{"a" * 200_000}",1,2\n', r"x\.csv:2: field larger than field limit"),
        ("x.csv", f'"{"a" * 200_000}",1,2\n', r"x\.csv:1: field larger than field limit"),
        ("x.jsonl", f'\n{{"video": "a", "second": {DIGITS}}}', r"x\.jsonl:2: not JSON"),
        ("x.jsonl", '\n{"video": "a", "x1": Infinity}', r"x\.jsonl:2: .*Infinity is not a value"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_a_parser_refuses_is_named_by_its_line(tmp_path, name, content, message):
    with pytest.raises(AnnotationError, match=message):
        read_boxes("detections", write(tmp_path, name, content))


ROWS = "video,second,x1,y1,x2,y2,action\na,902,0.1,0.2,0.3,0.4,1\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.csv",
            ROWS.replace(",", ";"),
            r"x\.csv:1: 'video;second;x1.* has 1 column; expected 8, s",
        ),
        ("x.csv", ROWS + "# day 2\n", r"x\.csv:3: '# day 2' has 1 column; expected 7, separated"),
        ("x.csv", "sep=;\n" + ROWS, r"x\.csv:1: the separator is ';'; columns .* by commas"),
        ("x.csv", ROWS.replace("video", "file"), r"x\.csv:1: no column video; expected video, sec"),
        ("x.csv", "\n" + ROWS.replace("x1", "left"), r"x\.csv:2: no column x1; expected video"),
        ("x.csv", '{"video": "a", "second": 1}\n', r"x\.csv: its content is JSON; call the file"),
        ("x.json", "[]", r"x\.json: boxes are csv, JSON lines or pickles; .* \.jsonl"),
        ("x.jsonl", ROWS, r"x\.jsonl: its content is not JSON, .*\.csv"),
    ],
)
def test_other_forms_are_named(tmp_path, name, content, message):
    with pytest.raises(AnnotationError, match=message):
        read_boxes("ground truth", write(tmp_path, name, content))


@pytest.mark.parametrize("before", ["\n", "sep=,\n", "sep=,\n \n"])
def test_lines_before_the_header(tmp_path, before):
    table = read_boxes("ground truth", write(tmp_path, "x.csv", before + ROWS + "a,903\n"))
    first = before.count("\n") + 2
    assert (table.videos, table.second.tolist()) == (("a",), [902, 903])
    assert table.lines.tolist() == [first, first + 1]


def test_a_video_name_that_is_not_unicode_is_a_video_that_is_missing(tmp_path):
    content = '{"video": "\\ud800", "second": 1, "x1": 0, "y1": 0, "x2": 1, "y2": 1}'
    table = read_boxes("proposals", write(tmp_path, "x.jsonl", content))
    assert table.videos == ("\\ud800",)
    assert locate_videos(table.videos, tmp_path) == ({}, ["\\ud800"])
    assert locate_videos(["x" * 300, "a\0b"], tmp_path) == ({}, ["x" * 300, "a\0b"])


@pytest.mark.parametrize(
    "header",
    ["video_id,timestamp", "Video,Second", " VIDEO , TIME ", "Video_ID,t_sec", "video,sec"],
)
def test_headers_of_key_frames_in_any_case(tmp_path, header):
    expected = [("a", 902.0), ("Video", 903.5)]
    path = write(tmp_path, "x.csv", f"\ufeff\n{header}\na,902\nVideo,903.5\n")
    assert read_keyframes(path) == expected
    path = write(tmp_path, "x.csv", "Timestamp,people,Video\n902,3,a\n903.5,1,Video\n")
    assert read_keyframes(path) == expected


def test_keyframes(tmp_path):
    path = write(tmp_path, "x.csv", "video_id,timestamp\na,0902\nb,903.5\n\n")
    assert read_keyframes(path) == [("a", 902.0), ("b", 903.5)]
    with pytest.raises(AnnotationError, match=r"x\.csv:2: 'a'"):
        read_keyframes(write(tmp_path, "x.csv", "a,1\na\n"))
    with pytest.raises(AnnotationError, match=r"x\.csv:2: field larger than field limit"):
        read_keyframes(write(tmp_path, "x.csv", f"a,1\n{'b' * 200_000},1\n"))


# ---- writing, geometry, videos


def test_written_detections_read_back_the_same(tmp_path):
    rng = np.random.default_rng(0)
    content = "".join(
        f"{v},{s},{x},{y},{x + 0.1},{y + 0.1},{c},{p}\n"
        for v, s, (x, y, p), c in zip(
            ["a", '"b,c"', "é"], ["0902", "903.25", "7"], rng.random((3, 3)) * 0.9, [1, 3, 4],
            strict=True,
        )
    )  # fmt: skip
    table = read_boxes("detections", write(tmp_path, "x.csv", content))
    write_detections(tmp_path / "y.csv", table)
    again = read_boxes("detections", tmp_path / "y.csv")
    assert again.videos == table.videos == ("a", "b,c", "é")
    for name in ("video", "second", "boxes", "action", "score"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    assert (tmp_path / "y.csv").read_text("utf-8").startswith("a,0902,")
    assert not list(tmp_path.glob("*.tmp"))


def test_box_iou():
    a = np.array([[0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5]])
    np.testing.assert_allclose(
        box_iou(a, np.array([[0, 0, 0.5, 1], [0.5, 0.5, 0.5, 0.5]])), [[0.5, 0], [0, 0]]
    )


def test_videos_are_found_by_name(tmp_path):
    for name in ("a.mkv", "deep/b.mp4", "frames/0001.jpg", "twice.mp4", "twice.avi", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found, missing = locate_videos(["a", "deep/b", "a.mkv", "frames", "nowhere"], tmp_path)
    assert {name: path.name for name, path in found.items()} == {
        "a": "a.mkv", "deep/b": "b.mp4", "a.mkv": "a.mkv", "frames": "frames",
    }  # fmt: skip
    assert missing == ["nowhere"]
    with pytest.raises(AnnotationError, match=r"all match the video 'twice'"):
        locate_videos(["twice"], tmp_path)
    with pytest.raises(AnnotationError, match="no such folder"):
        locate_videos(["a"], tmp_path / "none")
