"""Columns that decide which videos and which parts are meant, and lines that mean something else
than `path label`: read as they are meant, or refused with the line and the way to write it."""

import json
import re
import unicodedata
from pathlib import Path

import pytest

from hiera_video.data.videos.records import VideoRecord, read_splits, read_video_list
from hiera_video.errors import AnnotationError
from hiera_video.settings.training import ClassificationData
from hiera_video.video.parts import Part
from hiera_video.video.reader import VideoError, check_file

NFC = "Café"
NFD = unicodedata.normalize("NFD", NFC)


@pytest.fixture
def root(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4", "two words.mp4"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def parts(videos):
    return [(record.name, record.part, record.labels) for record in videos.records]


# ---- parts of videos


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "path,start,end,label\na.mp4,0,0.3,x\na.mp4,0.3,,y\nb.mp4,,,x\n"),
        ("l.csv", "Video Path,Start Time,End Time,label\na.mp4,0,.3,x\na.mp4,.3,,y\nb.mp4,,,x\n"),
        ("l.csv", "path;time_start;time_end;label\na.mp4;0;0,3;x\na.mp4;0,3;;y\nb.mp4;;;x\n"),
        (
            "l.tsv",
            "filename\tstart_sec\tend_sec\tlabel\na.mp4\t0\t0.3\tx\na.mp4\t.3\t\ty\nb.mp4\t\t\tx",
        ),
        (
            "l.json",
            [
                {"path": "a.mp4", "start": 0, "end": 0.3, "label": "x"},
                {"path": "a.mp4", "start": 0.3, "end": None, "label": "y"},
                {"path": "b.mp4", "label": "x"},
            ],
        ),
        (
            "l.jsonl",
            '{"path": "a.mp4", "start": "0", "end": "0.3", "label": "x"}\n'
            '{"path": "a.mp4", "start": 0.3, "label": "y"}\n{"path": "b.mp4", "label": "x"}\n',
        ),
    ],
)
def test_parts_in_seconds(root, name, content):
    assert parts(read_video_list(write(root, name, content))) == [
        ("a.mp4#t=0,0.3", Part(0, 0.3), (0,)),
        ("a.mp4#t=0.3", Part(0.3, None), (1,)),
        ("b.mp4", None, (0,)),
    ]


def test_parts_in_frames(root):
    text = "path start_frame end_frame label\na.mp4 0 16 x\na.mp4 16 32.0 x\n"
    videos = read_video_list(write(root, "l.txt", text))
    assert parts(videos) == [
        ("a.mp4#frame=0,16", Part(0, 16, in_frames=True), (0,)),
        ("a.mp4#frame=16,32", Part(16, 32, in_frames=True), (0,)),
    ]
    assert [record.path for record in videos.records] == [str(root / "a.mp4")] * 2


def test_a_part_is_known_by_its_times(root, caplog):
    text = "path,start,end,label\na.mp4,0,1,x\na.mp4,1,2,y\na.mp4,0.0,1.0,x\n"
    videos = read_video_list(write(root, "l.csv", text))
    assert [record.name for record in videos.records] == ["a.mp4#t=0,1", "a.mp4#t=1,2"]
    assert "lines left out that repeat a video: 1" in caplog.text
    with pytest.raises(AnnotationError, match=r"l\.csv:4: 'a.mp4#t=0,1' is 'y', but 'x' in .*:2"):
        read_video_list(write(root, "l.csv", text.replace("1.0,x", "1.0,y")))
    other = read_video_list(write(root, "l.csv", text.replace("1,2", "1,3")))
    assert other.fingerprint != videos.fingerprint
    whole = read_video_list(write(root, "l.csv", "path,label\na.mp4,x\n"))
    assert whole.records[0] == VideoRecord(str(root / "a.mp4"), (0,), "a.mp4")


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ("start,end", "5,3", r"l\.csv:2: start is 5 and end is 3; the end must come after the"),
        ("start,end", "3,3", r"l\.csv:2: start is 3 and end is 3"),
        ("start,end", "-1,3", r"l\.csv:2: start is '-1'; expected seconds, such as 12\.5"),
        ("start,end", "0:05,9", r"l\.csv:2: start is '0:05'; expected seconds"),
        ("start,end", "nan,9", r"l\.csv:2: start is 'nan'; expected seconds"),
        ("start,end", "1,inf", r"l\.csv:2: end is 'inf'; expected seconds"),
        ("start_frame,end_frame", "1.5,9", r":2: start_frame is '1\.5'; expected the number of a"),
        ("end,fps", "3,25", r"the column end without a start; add start, with 0"),
        ("start,end_frame", "0,9", r"start and end_frame are seconds and frames; take one"),
        ("start,time_start", "0,0", r"the columns 'start', 'time_start' state the same; keep one"),
        ("start,duration", "0,9", r"column duration may be that of the part or of the video"),
        ("begin,finish", "0,9", r"l\.csv: the column 'begin' is not known, and may decide which"),
        ("clip_start,clip_end", "0,9", r"the column 'clip_start' is not known"),
        ("startTime,endTime", "0,9", r"the column 'starttime' is not known"),
        ("start (s),end (s)", "0,9", r"the column 'start_s' is not known"),
        ("subset,fold", "train,1", r"the column 'subset' is not known"),
        ("fps,fps", "25,30", r"l\.csv:1: more than one column is called 'fps'"),
    ],
)
def test_a_column_that_changes_the_meaning_is_never_dropped(root, columns, row, message):
    source = write(root, "l.csv", f"path,label,{columns}\na.mp4,x,{row}\n")
    with pytest.raises(AnnotationError, match=message):
        read_video_list(source)


def test_columns_that_are_not_used_are_named_once(root, caplog):
    source = write(root, "l.csv", "path,label,Size,Frame Count\na.mp4,x,25,9\nb.mp4,y,25,9\n")
    for _ in range(2):
        read_video_list(source)
    (message,) = caplog.messages
    assert message == f"{source}: columns that are not used: 'size', 'frame_count'"
    caplog.clear()
    read_video_list(write(root, "l.csv", "path;label;;\na.mp4;x;;\n"))  # as a spreadsheet saves it
    read_video_list(source, labelled=False)
    assert not caplog.messages


def test_the_official_csv_of_kinetics_names_cut_files(tmp_path, caplog):
    (tmp_path / "xyz_000120_000130.mp4").touch()
    text = "label,youtube_id,time_start,time_end,split\nrun,xyz,120,130,train\n"
    expected = [("xyz_000120_000130.mp4", None, (0,))]
    assert parts(read_video_list(write(tmp_path, "k.csv", text))) == expected
    assert parts(read_video_list(write(tmp_path, "k.csv", text), split="train")) == expected
    assert not caplog.messages
    text = "path,label,youtube_id,time_start,time_end\na.mp4,run,xyz,120,130\n"
    with pytest.raises(AnnotationError, match="youtube_id and path both name the file"):
        read_video_list(write(tmp_path, "k.csv", text))


# ---- splits

SPLITS = "path,label,split\na.mp4,x,train\nb.mp4,y,val\nc.mp4,y,train\n"


def test_a_split_is_selected(root):
    source = write(root, "l.csv", SPLITS)
    names = {
        split: [record.name for record in read_video_list(source, split=split).records]
        for split in ("train", "val")
    }
    assert names == {"train": ["a.mp4", "c.mp4"], "val": ["b.mp4"]}
    one = write(root, "one.csv", "path,split\na.mp4,test\n")
    assert read_video_list(one).records == read_video_list(one, split="test").records
    numbers = write(root, "l.json", [{"path": f"{n}.mp4", "split": i} for i, n in enumerate("ab")])
    found = [read_video_list(numbers, split=split).records[0].name for split in "01"]
    assert found == ["a.mp4", "b.mp4"]


def test_a_split_must_be_chosen_and_exist(root):
    source = write(root, "l.csv", SPLITS)
    known = r"train \(2 rows\), val \(1 row\)"
    with pytest.raises(AnnotationError, match=rf"column split has {known}; choose one with split="):
        read_video_list(source)
    with pytest.raises(AnnotationError, match=rf"no row is of the split 'tain'; there are {known}"):
        read_video_list(source, split="tain")
    for other in ("path,label\na.mp4,x\n", "a.mp4 x\n"):
        with pytest.raises(AnnotationError, match="'train' is asked for, but there is no column"):
            read_video_list(write(root, "l.csv", other), split="train")
    with pytest.raises(AnnotationError, match="a folder, which has no column split"):
        read_video_list(root, split="train")


def test_training_and_validation_from_one_list(root, caplog):
    source = str(write(root, "l.csv", SPLITS))
    data = ClassificationData(train=source, val=source, split="train", val_split="val")
    train, val = read_splits(data)
    assert [record.name for record in train.records] == ["a.mp4", "c.mp4"]
    assert [record.name for record in val.records] == ["b.mp4"]
    assert not caplog.messages  # about videos in both
    with pytest.raises(AnnotationError, match=r"choose one with .*data\.val_split=NAME"):
        read_splits(ClassificationData(train=source, val=source, split="train"))
    with pytest.raises(AnnotationError, match=r"data\.val_split=val is given without data\.val"):
        read_splits(ClassificationData(train=source, split="train", val_split="val"))


def test_parts_of_one_video_in_both_lists_are_not_the_same(root, caplog):
    train = write(root, "t.csv", "path,start,end,label\na.mp4,0,1,y\na.mp4,1,2,x\n")
    val = write(root, "v.csv", "path,start,end,label\na.mp4,1,2,x\na.mp4,2,3,x\n")
    read_splits(ClassificationData(train=str(train), val=str(val)))
    (message,) = caplog.messages
    assert message == f"1 of 2 videos of {val} are also in {train}: 'a.mp4#t=1,2'"


# ---- separators and names of columns, as spreadsheets write them


@pytest.mark.parametrize("separator", [";", "\t", ","])
@pytest.mark.parametrize(
    "column", ["path", "video_path", "file_name", "filename", "video", "File Name"]
)
def test_separators_and_names_of_the_column_of_paths(root, separator, column):
    lines = [f"label{separator}{column}", f"walk{separator}a.mp4", f"run{separator}two words.mp4"]
    videos = read_video_list(write(root, "l.csv", "\n".join(lines)))
    assert videos.class_names == ("run", "walk")
    assert parts(videos) == [("a.mp4", None, (1,)), ("two words.mp4", None, (0,))]


def test_semicolons_without_a_header(root):
    videos = read_video_list(write(root, "l.csv", "a.mp4;playing guitar\ntwo words.mp4; run\n"))
    assert parts(videos) == [("a.mp4", None, (0,)), ("two words.mp4", None, (1,))]
    videos = read_video_list(write(root, "l.txt", "a.mp4 0;1\nb.mp4 1\n"), multi_label=True)
    assert [record.labels for record in videos.records] == [(0, 1), (1,)]
    with pytest.raises(AnnotationError, match=r"l\.csv:2: 3 fields, .*quote .* contains ';'"):
        read_video_list(write(root, "l.csv", "path;label\na.mp4;x;y\n"))


# ---- lines of more than a path and a label


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("c.mp4 playing guitar", 'c.mp4 "playing guitar", or separate it by a tab'),
        ("C.MP4 playing the guitar", 'C.MP4 "playing the guitar"'),
        ('"c.mp4" playing guitar', 'c.mp4 "playing guitar"'),
        ("two words.mp4 playing guitar", 'two words.mp4 "playing guitar"'),
        ("c.mp4 3 5", "several labels are written 3;5, with multi_label"),
        ("c.mp4,3,5", "'path number-of-frames label' is for folders of frames"),
        ("c.mp4 0.5 1.5 2", "a part of a video needs a header, such as path,start,end,label"),
        ("c.mp4,12,run", "more than a path and a label need a header, such as path,label"),
        ("c.mp4\t12\trun", "more than a path and a label need a header"),
    ],
)
@pytest.mark.parametrize("number", [1, 2, 4])
def test_more_words_than_two(root, line, advice, number):
    lines = ["a.mp4 walk", "b.mp4 walk", "a.mp4 walk"]
    lines.insert(number - 1, line)
    with pytest.raises(AnnotationError, match=re.escape(advice)) as caught:
        read_video_list(write(root, "l.txt", "\n".join(lines)))
    assert f"l.txt:{number}: '" in str(caught.value)


def test_the_advice_is_right(root):
    text = 'a.mp4 walk\ntwo words.mp4 "playing guitar"\nb.mp4\tplaying guitar\n'
    videos = read_video_list(write(root, "l.txt", text))
    assert videos.class_names == ("playing guitar", "walk")
    assert [record.name for record in videos.records] == ["a.mp4", "two words.mp4", "b.mp4"]


def test_a_header_that_is_not_known_before_a_line_that_is_no_video(root):
    with pytest.raises(AnnotationError, match=r"l\.txt:1: 'clip' is not a video; if this is a hea"):
        read_video_list(write(root, "l.txt", "clip,action\nwithout_suffix,x\na.mp4,y\n"))


def test_a_header_that_stands_twice(root):
    with pytest.raises(AnnotationError, match=r"l\.csv:3: the header is repeated here; remove"):
        read_video_list(write(root, "l.csv", "path,label\na.mp4,x\nPath, label\nb.mp4,y\n"))


def test_lines_of_mmaction2(tmp_path):
    """`frame_dir total_frames label`, of which the frames 0 to total_frames are used."""
    for name in ("v_1", "day 2/v_2"):
        (tmp_path / name).mkdir(parents=True)
    videos = read_video_list(write(tmp_path, "l.txt", "v_1 163 1\nday 2/v_2 20 0\n"))
    assert parts(videos) == [
        ("v_1#frame=0,163", Part(0, 163, in_frames=True), (1,)),
        ("day 2/v_2#frame=0,20", Part(0, 20, in_frames=True), (0,)),
    ]
    assert videos.records[1].path == str(tmp_path / "day 2/v_2")
    (tmp_path / "take 3").mkdir()  # a folder whose name ends with a number
    assert parts(read_video_list(write(tmp_path, "l.txt", "take 3 1\n"))) == [
        ("take 3", None, (1,))
    ]
    message = r"l\.txt:1: 'v', followed by 3 and 5, is not a folder of frames; .*3;5"
    with pytest.raises(AnnotationError, match=message):
        read_video_list(write(tmp_path, "l.txt", "v 3 5\nw 3 5\n"))


# ---- paths and labels that look right


@pytest.mark.parametrize("label", [1.0, [1.0], 1, "1", "1.0"])
def test_ids_as_pandas_writes_them(root, label):
    source = write(root, "l.json", [{"path": "a.mp4", "label": label}])
    assert parts(read_video_list(source)) == [("a.mp4", None, (1,))]


def test_ids_with_leading_zeros(root):
    with pytest.raises(AnnotationError, match=r"l\.txt:2: label '10', .*ids have no leading zeros"):
        read_video_list(write(root, "l.txt", "a.mp4 007\nb.mp4 10\n"))
    source = write(root, "l.txt", "a.mp4 01\n")
    with pytest.raises(AnnotationError, match=r"unknown class '01'.*ids have no leading zeros"):
        read_video_list(source, class_names=["x", "y"])
    assert read_video_list(write(root, "l.txt", "a.mp4 00\nb.mp4 01\n")).class_names == ("00", "01")


def test_addresses_are_not_paths(root):
    for address in ("https://example.org/a.mp4", "s3://bucket/a.mp4", "file:///data/a.mp4"):
        with pytest.raises(AnnotationError, match=rf"l\.csv:2: '{address}' is an address"):
            read_video_list(write(root, "l.csv", f"a.mp4,x\n{address},x\n"))


def test_backslashes(root):
    hint = "write / between folders, not the backslashes of Windows"
    with pytest.raises(AnnotationError, match=hint):
        read_video_list(write(root, "l.csv", "path,label\nclips\\a.mp4,x\n"))
    with pytest.raises(VideoError, match=f"no such file; {hint}"):
        check_file(str(root / "clips\\a.mp4"))
    (root / "d\\e.mp4").touch()  # a name that a file may have here
    assert read_video_list(write(root, "l.csv", "d\\e.mp4,x\n")).records[0].name == "d\\e.mp4"


def test_unicode_forms_of_paths(root):
    (root / NFC).mkdir()
    (root / NFC / "a.mp4").touch()
    there = re.escape(f"there is {str(root / NFC / 'a.mp4')!a}, the same letters in another")
    with pytest.raises(AnnotationError, match=there):
        read_video_list(write(root, "l.csv", f"{NFD}/a.mp4,x\n"))
    with pytest.raises(VideoError, match=there):
        check_file(str(root / NFD / "a.mp4"))
    with pytest.raises(VideoError, match="no such file; check its path"):
        check_file(str(root / NFC / "b.mp4"))


def test_unicode_forms_of_classes(root):
    forms = re.escape(f"{NFD!a} and {NFC!a} are the same letters in two Unicode forms")
    with pytest.raises(AnnotationError, match=forms):
        read_video_list(write(root, "l.csv", f"a.mp4,{NFD}\nb.mp4,{NFC}\n"))
    with pytest.raises(AnnotationError, match=forms):
        read_video_list(write(root, "l.csv", "a.mp4,0\n"), class_names=[NFD, NFC])
    message = re.escape(f"which is {NFD!a}, but {NFC!a} among the known classes")
    with pytest.raises(AnnotationError, match=message):
        read_video_list(write(root, "l.csv", f"a.mp4,{NFD}\n"), class_names=[NFC, "x"])


def test_home_folders_in_lists(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    (record,) = read_video_list(write(root, "l.csv", "~/a.mp4,x\n"), root="/").records
    assert (record.name, Path(record.path)) == ("~/a.mp4", root / "a.mp4")
