"""What is looked at before a run begins, on records without a model."""

import logging
import os

import numpy as np
import pytest
from PIL import Image

from hiera_video.data.checks import (
    check_videos,
    decoding_failures,
    warn_of_flips,
    warn_of_similar,
    warn_of_still_model,
)
from hiera_video.data.videos.records import VideoRecord, read_splits, read_video_list
from hiera_video.errors import AnnotationError, ConfigError
from hiera_video.runtime.progress import Progress
from hiera_video.settings.training import ClassificationData
from hiera_video.settings.video import Reading
from hiera_video.video.open import opener
from hiera_video.video.reader import VideoError
from tests.video.striped_video import make_striped_video


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def draw(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(path, **options)
    return path


def names(videos):
    return [(record.name, *record.labels) for record in videos.records]


# ---- files that are not there


def test_all_files_are_looked_up_and_the_first_that_is_missing_is_named(tmp_path, caplog):
    """More than one thread takes, in any order; a link to nothing, and no name of a file at all."""
    paths = [str(touch(tmp_path / str(i % 7) / f"{i}.mp4")) for i in range(600)]
    os.symlink(tmp_path / "nothing.mp4", tmp_path / "link.mp4")
    paths[550:550] = [str(tmp_path / "link.mp4"), "/\0.mp4"]
    os.remove(paths[400])
    records = [VideoRecord(path, (), path) for path in paths]
    with caplog.at_level(logging.WARNING, "hiera_video"):
        found = check_videos("data.val", "list.csv", records, Reading())
    assert found == {"missing": 3}
    text = f"data.val: 3 of 602 files of list.csv are missing, the first is {paths[400]}"
    assert caplog.messages == [text]
    caplog.clear()
    check_videos("data.val", "list.csv", records[550:551], Reading())
    assert f"link.mp4; it is a link to '{tmp_path}/nothing.mp4', which does not" in caplog.text
    caplog.clear()
    assert not check_videos("data.val", "list.csv", records[:100], Reading())
    assert not caplog.messages


@pytest.mark.parametrize("num_workers", [0, 2])
def test_files_are_decoded_with_progress(tmp_path, monkeypatch, num_workers):
    done = []

    class Bar(Progress):
        def update(self, n=1):
            done.append((n, self.total))

    monkeypatch.setattr("hiera_video.data.checks.Progress", Bar)
    paths = [str(make_striped_video(tmp_path / f"{n}.mp4", 3)) for n in range(3)]
    paths.append(str(touch(tmp_path / "empty.mp4")))
    records = [VideoRecord(path, (), path) for path in paths]
    (failure,) = decoding_failures(records, Reading(num_workers=num_workers))
    assert (failure.path, failure.cause) == (paths[3], "empty")
    assert done == [(1, 4)] * 4


# ---- frames and pictures


@pytest.fixture
def frames(tmp_path):
    """Two classes of two videos each, as numbered pictures; one picture has no number.

    A hidden file, as macOS writes them, makes no folder of frames.
    """
    for label in "ab":
        for video in ("v1", "deep/v2"):
            for number in range(1, 4):
                draw(tmp_path / "train" / label / video / f"img_{number:05d}.jpg")
    draw(tmp_path / "train" / "b" / "v1" / "cover.png")
    draw(tmp_path / "train" / "b" / "._000.png")
    return tmp_path / "train"


def test_a_folder_of_numbered_pictures_is_one_video(frames, caplog):
    videos = read_video_list(frames, frames_fps=25)
    assert names(videos) == [("a/deep/v2", 0), ("a/v1", 0), ("b/deep/v2", 1), ("b/v1", 1)]
    assert caplog.messages == [
        f"{frames}: files left out: 1 hidden, 1 in folders of frames, without a number"
    ]
    assert not check_videos("data.train", "", videos.records, Reading(frames_fps=25), 4)
    unlabelled = read_video_list(frames, labelled=False, frames_fps=25)
    assert names(unlabelled) == [("a/deep/v2",), ("a/v1",), ("b/deep/v2",), ("b/v1",)]
    itself = read_video_list(frames / "a" / "v1", labelled=False, frames_fps=25)
    assert names(itself) == [("v1",)]
    assert itself.records[0].path == str(frames / "a" / "v1")


def test_pictures_are_no_clips_unless_that_is_asked_for(frames):
    pictures = read_video_list(frames)
    assert len(pictures.records) == 13
    message = (
        r"data\.train: 13 of 13 files are pictures, such as .*img_00001\.jpg, and clips .* have "
    )
    with pytest.raises(ConfigError, match=message + "4 frames; .* set data.frames_fps to"):
        check_videos("data.train", "", pictures.records, Reading(), 4)
    for data, num_frames in ((Reading(stills=True), 4), (Reading(), 1)):
        assert not check_videos("data.train", "", pictures.records, data, num_frames)
    draw(frames / "b" / "still.png")  # frames_fps makes no frames of what lies in a class folder
    mixed = read_video_list(frames, frames_fps=25)
    with pytest.raises(ConfigError, match=r"1 of 5 files are pictures, such as .*still\.png"):
        check_videos("data.train", "", mixed.records, Reading(frames_fps=25), 4)


def test_pictures_that_move_are_clips(tmp_path):
    grey = [Image.fromarray(np.full((8, 8, 3), 30 * i, np.uint8)) for i in range(3)]
    path = draw(tmp_path / "page.png")
    grey[0].save(tmp_path / "moving.webp", save_all=True, append_images=grey[1:])
    records = [VideoRecord(str(tmp_path / "moving.webp"), (), "")]
    assert not check_videos("data.val", "", records, Reading(), 4)
    with pytest.raises(ConfigError, match=r"such as .*page\.png"):
        check_videos("data.val", "", [*records, VideoRecord(str(path), (), "")], Reading(), 4)


def test_a_picture_under_the_name_of_a_video_is_no_clip(tmp_path):
    draw(tmp_path / "page.png").rename(tmp_path / "page.mp4")
    record = VideoRecord(str(tmp_path / "page.mp4"), (), "")
    with pytest.raises(VideoError, match=r"page\.mp4: is a picture.*data\.stills=true") as caught:
        record.open(opener(Reading(), 4))
    assert caught.value.cause == "not_a_video"
    check = Reading(check="decode", num_workers=0)
    assert check_videos("data.val", "", [record], check, 4) == {"not_a_video": 1}
    for data, num_frames in ((Reading(stills=True), 4), (Reading(), 1)):
        with record.open(opener(data, num_frames)) as video:
            assert len(video) == 1


def test_the_list_may_state_the_rate_of_tiff_pages(tmp_path):
    grey = [Image.fromarray(np.full((8, 8, 3), 30 * i, np.uint8)) for i in range(3)]
    grey[0].save(tmp_path / "pages.tif", save_all=True, append_images=grey[1:])
    (tmp_path / "list.csv").write_text("path,label,fps\npages.tif,x,10\n")
    (record,) = read_video_list(tmp_path / "list.csv").records
    with record.open(opener(Reading(), 2)) as video:
        assert np.allclose(video.frame_times_sec, [0, 0.1, 0.2])


def test_the_list_may_state_the_rate_of_each_folder(frames):
    rows = ["path,label,fps", "a/v1,x,10", 'b/v1,y,"12,5"', "b/deep/v2,y,"]
    rows += [
        f"{make_striped_video(frames / 'video.mp4', 3)},x,unknown"
    ]  # of a file, it is not used
    (frames / "list.csv").write_text("\n".join(rows[:3] + rows[4:]))
    videos = read_video_list(frames / "list.csv")
    assert [record.frames_fps for record in videos.records] == [10, 12.5, None]
    with videos.records[1].open(opener(Reading(frames_fps=99))) as video:
        assert video.frame_times_sec.tolist() == [0, 0.08, 0.16]
    assert not check_videos("data.val", "", videos.records, Reading(), 4)
    fingerprint = videos.fingerprint
    (frames / "list.csv").write_text("\n".join([*rows, "a/deep/v2,x,"]))
    videos = read_video_list(frames / "list.csv")
    assert videos.fingerprint != fingerprint
    message = "2 of 5 videos are folders of frames, such as .*b/deep/v2; set data.frames_fps"
    with pytest.raises(ConfigError, match=message):
        check_videos("data.val", "", videos.records, Reading(), 4)
    assert not check_videos("data.val", "", videos.records, Reading(frames_fps=25), 4)
    (frames / "empty").mkdir()
    (frames / "list.csv").write_text("path,label\nempty,x\na/v1,y\n")
    videos = read_video_list(frames / "list.csv")
    with pytest.raises(ConfigError, match=r"1 of 2 videos are folders of frames, such as .*a/v1"):
        check_videos("data.val", "", videos.records, Reading(), 4)
    (frames / "list.csv").write_text("path,label,fps\na/v1,x,5\na/v1,x,10\n")
    with pytest.raises(AnnotationError, match=r"csv:3: 'a/v1' has 10.0 .*, but 5.0 in .*csv:2"):
        read_video_list(frames / "list.csv")
    (frames / "list.csv").write_text("path,fps\na/v1,0\n")
    with pytest.raises(AnnotationError, match=r"list\.csv:2: fps is 0; expected frames per sec"):
        read_video_list(frames / "list.csv")


# ---- classes


@pytest.fixture
def splits_beside(tmp_path):
    for split in ("Train", "val"):
        for label in "ab":
            touch(tmp_path / split / label / f"{label}.mp4")
    return tmp_path


def test_the_folder_of_the_splits_is_refused(splits_beside):
    parent = splits_beside
    message = f"'Train', 'val' are splits, not classes; give .* data.train={parent}/Train and "
    with pytest.raises(AnnotationError, match=f"{message}data.val={parent}/val"):
        read_video_list(parent)
    assert read_video_list(parent / "Train").class_names == ("a", "b")
    assert len(read_video_list(parent, labelled=False).records) == 4
    assert read_video_list(parent, class_names=["val", "Train"]).records[0].labels == (1,)


def test_one_class_is_an_error(tmp_path):
    touch(tmp_path / "train" / "a" / "1.mp4")
    read = {"train": str(tmp_path / "train")}
    with pytest.raises(
        AnnotationError, match="all videos are of the class 'a'; a classifier needs"
    ):
        read_splits(ClassificationData(**read))
    (tmp_path / "train" / "b").mkdir()  # without a video
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(AnnotationError, match="all videos are of the class 'a'"):
        read_splits(ClassificationData(**read, class_names=str(tmp_path / "names.txt")))
    touch(tmp_path / "train" / "b" / "2.mp4")
    assert read_splits(ClassificationData(**read))[0].class_names == ("a", "b")


@pytest.mark.parametrize(
    ("ids", "warning"),
    [
        (
            (1, 2),
            "1 of 3 classes have no video in {}: '0'; ids count from 0: if these count from 1",
        ),
        ((0, 3), "2 of 4 classes have no video in {}: '1', '2'"),
        ((0, 1), None),
    ],
)
def test_ids_without_videos_are_named_without_a_validation_list(tmp_path, caplog, ids, warning):
    for name in "ab":
        touch(tmp_path / f"{name}.mp4")
    source = tmp_path / "train.txt"
    source.write_text(f"a.mp4 {ids[0]}\nb.mp4 {ids[1]}\n")
    train, _ = read_splits(ClassificationData(train=str(source)))
    assert len(train.class_names) == max(ids) + 1
    assert len(caplog.messages) == (warning is not None)
    if warning:
        assert caplog.messages[0].startswith(warning.format(source))


@pytest.mark.parametrize(
    ("name", "has_side"),
    [
        ("Turning the camera left while filming", True),
        ("turn_right", True),
        ("swipeLeft", True),
        ("LINKS abbiegen", True),
        ("tourner à droite", True),
        ("girar a la izquierda", True),
        ("mano destra", True),
        ("повернуть налево", True),
        ("向左转", True),
        ("오른손", True),
        ("vanster", False),
        ("va\u0308nster", True),  # ä as two code points
        ("leftover food", False),
        ("bright lights", False),
        ("cleft", False),
        ("playing link", False),
    ],
)
def test_names_that_tell_left_from_right(caplog, name, has_side):
    warn_of_flips([name, "jumping"], True)
    assert [f"left and right: {name!r}; set augment.flip=false" in m for m in caplog.messages] == (
        [True] if has_side else []
    )
    caplog.clear()
    warn_of_flips([name], False)
    assert not caplog.messages


@pytest.mark.parametrize(
    "name", ["run Fast", "run  fast", " run fast ", "run_fast", "run\u00a0fast", "run \uff46ast"]
)
def test_class_names_that_are_written_in_two_ways(caplog, name):
    warn_of_similar(["run fast", "run faster", "runfast", name])
    (message,) = caplog.messages
    assert message.startswith("names of classes differ only in capitals, blanks, _ or Unicode form")
    assert f": 'run fast' and {name!r}; if they are one class" in message
    caplog.clear()
    warn_of_similar(["run fast", "run faster", "runfast"])
    assert not caplog.messages


# ---- a model of pictures


@pytest.mark.parametrize(
    ("name", "num_frames", "files", "said"),
    [
        ("hiera_tiny_224", 1, "a.mp4 b.png c.mp4", "2 of 3 training files are videos"),
        ("hiera_base_224.mae_in1k", 1, "a.mp4", "model.name=hiera_base_16x224 is for videos"),
        ("hiera_small_abswin_256", 1, "a.mp4", "model.name=hiera_small_16x224 is for videos"),
        ("sam2_hiera_tiny", 1, "a.mp4", "model.name=hiera_base_16x224 is for videos"),
        ("hiera_tiny_224", 1, "b.png", ""),
        ("hiera_tiny_16x224", 16, "a.mp4", ""),
    ],
)
def test_a_model_of_pictures_that_is_given_videos_is_named(name, num_frames, files, said, caplog):
    records = [VideoRecord(file, (0,), file) for file in files.split()]
    warn_of_still_model(name, num_frames, records)
    assert said in caplog.text
    assert len(caplog.messages) == bool(said)
