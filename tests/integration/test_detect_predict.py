"""`detect predict`: detections and an overlay for every video, or one line with the reason."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch

from hiera_video.commands.detect_predict import clip_size
from hiera_video.data.boxes.files import read_boxes
from hiera_video.evaluation.views import Scorer
from hiera_video.models import people
from hiera_video.models.pretrained import create_detector, create_segmenter, load_model
from hiera_video.models.saving import save_model
from hiera_video.video.open import open_video
from hiera_video.video.writer import write_video

MODULE = "hiera_video.commands.detect_predict"
NAMES = {"1": "walk", "2": "über (etwas) sprechen", "3": "sit"}


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A weights folder of a tiny action detector with random weights."""
    torch.manual_seed(0)
    model = create_detector(
        "hiera_tiny_16x224",
        num_frames=4,
        image_size=32,
        num_classes=3,
        embed_dim=8,
        num_heads=1,
        stages=(1, 1, 1, 1),
    )
    folder = tmp_path_factory.mktemp("detector") / "weights"
    save_model(folder, model, label_map=NAMES, clips={"sampling_rate": 2, "target_fps": None})
    return folder


@pytest.fixture(scope="module")
def files(commands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    shutil.copy(commands.toy / "val_0.mp4", folder / "a.mp4")
    (folder / "empty.mp4").touch()
    rows = ["a,0.2,0.5,0.1,0.9,0.9,,0.95", "a,0.2,0.1,0.2,0.4,0.8,,0.9", "a,0.4,0.1,0.2,0.4,1,,1"]
    rows += ["a,0.4,0.6,0.2,0.7,0.8,,0.5", "empty,0.2,0.5,0.1,0.9,0.9,,0.95"]
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    return folder


def predict(commands, detector, output_dir, *arguments):
    return commands.run(
        "detect",
        "predict",
        f"checkpoint={detector}",
        f"output_dir={output_dir}",
        "device=cpu",
        "min_score=0",
        *arguments,
    )


def test_boxes_of_a_csv(commands, detector, files, tmp_path):
    result = predict(
        commands, detector, tmp_path, files / "a.mp4", f"boxes={files / 'boxes.csv'}", "top_k=2"
    )
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == f"{files / 'a.mp4'}: 3 boxes of people in 2 key frames"
    table = read_boxes("detections", tmp_path / "a_detections.csv")
    assert table.videos == ("a",)
    assert table.second.tolist() == [0.2] * 6 + [0.4] * 3
    assert table.action.tolist() == [1, 2, 3] * 3
    assert table.boxes[::3, 0].tolist() == [0.1, 0.5, 0.1]  # from left to right
    said = json.loads((tmp_path / "a_detections.json").read_text(encoding="utf-8"))
    assert said["path"] == str(files / "a.mp4")
    assert [keyframe["second"] for keyframe in said["keyframes"]] == [0.2, 0.4]
    scores = dict(zip(zip(np.repeat(range(3), 3), table.action), table.score))  # noqa: B905
    boxes = [box for keyframe in said["keyframes"] for box in keyframe["boxes"]]
    for number, box in enumerate(boxes):
        best = [(action["name"], action["score"]) for action in box["actions"]]
        assert len(best) == 2
        assert best[0][1] >= best[1][1]
        for action in box["actions"]:
            assert action["name"] == NAMES[str(action["id"])]
            assert action["score"] == pytest.approx(scores[number, action["id"]], abs=1e-5)
    with open_video(files / "a.mp4") as video, open_video(tmp_path / "a_overlay.mp4") as overlay:
        assert len(overlay) == len(video)
        assert overlay.fps == pytest.approx(video.fps, rel=1e-3)
        assert min(overlay.height, overlay.width) >= 360


def test_files_of_one_size_share_a_model(commands, detector, files, monkeypatch, tmp_path):
    """It is copied, and compiled, once for each size of clips."""
    made, of = [], Scorer.of
    monkeypatch.setattr(Scorer, "of", lambda *how: made.append(of(*how)) or made[-1])
    shutil.copy(files / "a.mp4", tmp_path / "b.mp4")
    rows = ["a,0.2,0.5,0.1,0.9,0.9,,1", "b,0.2,0.5,0.1,0.9,0.9,,1"]
    (tmp_path / "boxes.csv").write_text("\n".join(rows) + "\n")
    inputs = (files / "a.mp4", tmp_path / "b.mp4")
    boxes = f"boxes={tmp_path / 'boxes.csv'}"
    result = predict(commands, detector, tmp_path / "out", *inputs, boxes, "precision=bf16")
    assert result.code == 0, result.err
    assert len(made) == 1
    scores = [read_boxes("detections", tmp_path / f"out/{n}_detections.csv").score for n in "ab"]
    np.testing.assert_array_equal(*scores)


def test_boxes_may_have_actions_by_name(commands, detector, files, tmp_path):
    """As annotations have them, by the names of the checkpoint's label map, or by any id."""
    rows = ["video,second,x1,y1,x2,y2,action", 'a,0.2,0.5,0.1,0.9,0.9,"über (etwas) sprechen"']
    rows += ["a,0.2,0.5,0.1,0.9,0.9,sit", "a,0.4,0.1,0.2,0.4,0.8,77"]
    boxes = tmp_path / "annotated.csv"
    boxes.write_text("\n".join(rows), encoding="utf-8")
    result = predict(commands, detector, tmp_path, files / "a.mp4", f"boxes={boxes}")
    assert result.code == 0, result.err
    assert "2 boxes of people in 2 key frames" in result.out
    boxes.write_text("\n".join([*rows, "a,0.2,0.1,0.1,0.4,0.9,stand"]), encoding="utf-8")
    result = predict(commands, detector, tmp_path / "x", files / "a.mp4", f"boxes={boxes}")
    assert result.code == 1
    result.reports(f"{boxes}:5: action is 'stand'; expected", "a name of the label map")


def test_people_are_detected_at_key_frames(commands, detector, files, tmp_path, monkeypatch):
    seen = []

    def detect(frames, *, min_score):
        assert min_score == 0.6
        seen.extend(frames)
        boxes = np.array([[0.1, 0.1, 0.6, 0.9]])
        return [people.People(boxes, np.array([0.9])) for _ in frames]

    monkeypatch.setattr(f"{MODULE}.person_detector", lambda *arguments: detect)
    result = predict(
        commands, detector, tmp_path, files / "a.mp4", "every_sec=0.08", "detector_score=0.6"
    )
    assert result.code == 0, result.err
    with open_video(files / "a.mp4") as video:
        expected = video.frames(np.arange(0, len(video), 2))  # of 25 a second
    np.testing.assert_array_equal(np.stack(seen), expected)
    table = read_boxes("detections", tmp_path / "a_detections.csv")
    assert np.unique(table.second) == pytest.approx(0.08 * np.arange(len(expected)))


def test_nobody_is_there(commands, detector, files, tmp_path, monkeypatch):
    nobody = people.People(np.empty((0, 4)), np.empty(0))
    monkeypatch.setattr(
        f"{MODULE}.person_detector", lambda *arguments: lambda f, min_score: [nobody] * len(f)
    )
    result = predict(commands, detector, tmp_path, files / "a.mp4")
    assert result.code == 0, result.err
    assert "0 boxes of people in 0 key frames" in result.out
    assert (tmp_path / "a_detections.csv").read_text() == ""
    assert (tmp_path / "a_overlay.mp4").exists()


def test_people_are_found_by_a_segmenter(commands, detector, files, tmp_path):
    """A run of `instances train` in place of torchvision's detector; its category 7 is people."""
    torch.manual_seed(0)
    model = create_segmenter(
        "hiera_tiny_224",
        image_size=64,
        num_classes=2,
        channels=8,
        hidden=8,
        embed_dim=8,
        num_heads=1,
        stages=(1, 1, 1, 1),
    )
    with torch.no_grad():
        predictor = model.roi_heads.box_predictor
        predictor.cls_score.weight.zero_()
        predictor.cls_score.bias.copy_(torch.tensor([-9.0, -9.0, 9.0]))  # all is class 2
        predictor.bbox_pred.weight.zero_()
    save_model(tmp_path / "run/weights", model, label_map={3: "cat", 7: "person"})
    save_model(tmp_path / "cats", model, label_map={3: "cat", 7: "dog"})
    arguments = (files / "a.mp4", "every_sec=0.2", f"detector={tmp_path / 'run'}")
    result = predict(commands, detector, tmp_path / "out", *arguments)
    assert result.code == 0, result.err
    said = json.loads((tmp_path / "out/a_detections.json").read_text(encoding="utf-8"))
    boxes = [box["box"] for keyframe in said["keyframes"] for box in keyframe["boxes"]]
    assert boxes
    assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in boxes)

    for source, parts in (
        (tmp_path / "cats", ("has no category 'person', but 'cat', 'dog'",)),
        (detector, ("is an action detector; expected an instance segmenter",)),
    ):
        for option in ((), ("--dry-run",)):
            arguments = (files / "a.mp4", f"detector={source}", *option)
            result = predict(commands, detector, tmp_path / "none", *arguments)
            assert result.code == 1
            result.reports(str(source), *parts)


def test_bad_files_are_reported_and_the_others_are_done(commands, detector, files, tmp_path):
    shutil.copy(files / "a.mp4", tmp_path / "other.mp4")
    inputs = [files / "empty.mp4", tmp_path / "other.mp4", files / "a.mp4"]
    boxes = f"boxes={files / 'boxes.csv'}"
    result = predict(commands, detector, tmp_path / "out", *inputs, boxes)
    assert result.code == 3
    assert "Traceback" not in result.err
    first, second, third, *_ = result.out.splitlines()
    assert first == f"{files / 'empty.mp4'}: is empty (0 bytes); fetch it again"
    assert second.startswith(
        f"{tmp_path / 'other.mp4'}: {files / 'boxes.csv'} names no video 'other'"
    )
    assert third.startswith(f"{files / 'a.mp4'}: 3 boxes")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a_detections.csv", "a_detections.json", "a_overlay.mp4"}


def test_scores_that_are_not_finite(commands, detector, files, tmp_path):
    model, card = load_model(detector)
    with torch.no_grad():
        model.get_parameter("roi_head.projection.bias")[0] = torch.inf  # the sigmoid of it is 1
    save_model(tmp_path / "diverged", model, card)
    boxes = f"boxes={files / 'boxes.csv'}"
    out = tmp_path / "out"
    result = predict(commands, tmp_path / "diverged", out, "--json", files / "a.mp4", boxes)
    assert result.code == 1
    (line,) = map(json.loads, result.out.splitlines())
    assert line["error"].startswith(f"{files / 'a.mp4'}: its scores are not finite in fp32")
    assert not list(out.iterdir())


def test_a_time_past_the_end(commands, detector, files, tmp_path):
    (tmp_path / "late.csv").write_text("a,900,0.1,0.1,0.5,0.5,,0.9\n")
    result = predict(
        commands, detector, tmp_path, "--json", files / "a.mp4", f"boxes={tmp_path / 'late.csv'}"
    )
    assert result.code == 1
    (line,) = result.out.splitlines()
    assert "900 s" in json.loads(line)["error"]


def test_frames_that_are_too_long(commands, detector, files, tmp_path):
    write_video(tmp_path / "a.mp4", [np.zeros((16, 160, 3), np.uint8)] * 15, 25)
    boxes = f"boxes={files / 'boxes.csv'}"
    result = predict(commands, detector, tmp_path / "out", tmp_path / "a.mp4", boxes)
    assert result.code == 1
    assert "a.mp4: its frames have 160 x 16 pixels" in result.out
    assert "up to 8 times as long as wide" in result.out


def test_a_name_that_is_not_utf8(commands, detector, files, tmp_path):
    stem = "\\udcff\x1b"
    video = shutil.copy(files / "a.mp4", tmp_path / os.fsdecode(b"\xff\x1b.mp4"))
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(f"{stem},0.2,0.5,0.1,0.9,0.9,,0.95\n")
    for folder in (tmp_path / "1", tmp_path / "2"):  # the second from what the first has written
        result = predict(commands, detector, folder, video, f"boxes={boxes}", "detector_score=0")
        assert result.code == 0, result.err
        assert "\x1b" not in result.out
        boxes = folder / f"{stem}_detections.csv"
    said = json.loads((folder / f"{stem}_detections.json").read_text("utf-8"))
    assert said["path"] == str(video)
    with open_video(folder / f"{stem}_overlay.mp4") as overlay:
        assert len(overlay) > 0


def test_results_are_not_replaced_unless_asked(commands, detector, files, tmp_path):
    arguments = (files / "a.mp4", f"boxes={files / 'boxes.csv'}")
    assert predict(commands, detector, tmp_path, *arguments).code == 0
    result = predict(commands, detector, tmp_path, *arguments)
    assert result.code == 1
    result.reports(str(tmp_path / "a_overlay.mp4"), "overwrite=true")
    assert predict(commands, detector, tmp_path, *arguments, "overwrite=true").code == 0
    result = predict(commands, detector, tmp_path / "new", *arguments, "--dry-run")
    assert result.code == 0
    assert len(result.out.splitlines()) == 3
    assert not (tmp_path / "new").exists()


def test_settings_that_cannot_be(commands, detector, files, tmp_path):
    result = predict(commands, detector, tmp_path, files / "a.mp4", "boxes=b.csv", "detector=d.pth")
    assert result.code == 2
    result.reports("detector", "null beside boxes")
    result = predict(commands, detector, tmp_path, files / "a.mp4", "detector=nowhere.pth")
    assert result.code == 2
    result.reports("detector is 'nowhere.pth'", "no such file")


def test_people_beside_the_centre_are_seen(commands, detector, tmp_path):
    """A picture 4 times as wide as high: of the centre crop, both of its ends lie outside."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (8, 64, 256, 3), dtype=np.uint8)
    write_video(tmp_path / "wide.mp4", iter(frames), 8)
    rows = [f"wide,0.5,{x},0.2,{x + 0.1},0.9,,0.9" for x in (0.02, 0.85)]
    (tmp_path / "boxes.csv").write_text("\n".join(rows) + "\n")
    boxes = f"boxes={tmp_path / 'boxes.csv'}"
    assert predict(commands, detector, tmp_path, tmp_path / "wide.mp4", boxes).code == 0
    left, right = read_boxes("detections", tmp_path / "wide_detections.csv").score.reshape(2, 3)
    assert (left != right).all()


@pytest.mark.parametrize(
    ("frame", "size"),
    [((180, 320), (32, 64)), ((320, 180), (64, 32)), ((100, 100), (32, 32)), ((9, 40), (32, 128))],
)
def test_clips_have_the_shape_of_the_frame(detector, frame, size):
    model, _ = load_model(detector, kind="detector")
    assert clip_size(model, *frame) == size
