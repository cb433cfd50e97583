"""`visualize attention`: a map and pictures of it, or one line with the reason, for every file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hiera_video import create_model, load_model, model_transform, open_video, save_model
from hiera_video.analysis.attention import LIMITS, gradient_map, rollout_map
from hiera_video.video.clips import ClipSampler

IMAGE: dict[str, Any] = {"image_size": 64, "embed_dim": 8, "stages": (1, 1, 1, 1)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an image model; its classes have names that are numbers."""
    torch.manual_seed(0)
    model = create_model("hiera_tiny_224", num_classes=3, **IMAGE)
    folder = tmp_path_factory.mktemp("pictures") / "weights"
    save_model(folder, model, class_names=["2", "0", "cat"], views={"num_crops": 1})
    return folder


def look(commands: Any, checkpoint: Path, output_dir: Path, *arguments: object) -> Any:
    return commands.run(
        "visualize", "attention", f"checkpoint={checkpoint}", f"output_dir={output_dir}",
        "device=cpu", *arguments,
    )  # fmt: skip


def seen(checkpoint: Path, path: Path) -> tuple[Any, torch.Tensor, np.ndarray]:
    """A model, the middle crop of the middle clip as its input, and the times of the frames."""
    model, card = load_model(checkpoint)
    with open_video(path) as video:
        (indices,) = ClipSampler.of(card.clips, model.input_size[0]).uniform_clips(video, 1)
        crops = model_transform(card)(video.frames(indices))
        return model, crops[len(crops) // 2][None], video.frame_times_sec[indices]


def test_maps_of_every_file(commands: Any, trained: Path, tmp_path: Path) -> None:
    videos = [commands.toy / f"val_{i}.mp4" for i in range(2)]
    bad = tmp_path / "empty.mp4"
    bad.touch()
    out = tmp_path / "out"
    result = look(commands, trained, out, "--json", videos[0], bad, videos[1])
    assert result.code == 3, result.err
    first, failed, second = map(json.loads, result.out.splitlines())
    assert failed == {
        "path": str(bad), "cause": "empty", "error": f"{bad}: is empty (0 bytes); fetch it again"
    }  # fmt: skip
    for path, record in zip(videos, (first, second), strict=True):
        model, clip, times_sec = seen(trained, path)
        with torch.inference_mode():
            scores = model(clip)[0].softmax(dim=0)
        best = int(scores.argmax())
        name = ["left", "right"][best]
        assert record["prediction"] == record["class"] == {
            "id": best, "name": name, "probability": pytest.approx(float(scores[best]), abs=1e-5)
        }  # fmt: skip
        assert (record["method"], record["stage"]) == ("gradient", "stage1")  # 8 x 8 tokens
        assert record["map_shape"] == [2, 8, 8]
        assert record["limits"] == LIMITS["gradient"]
        stem = f"{out}/{path.stem}_gradient"
        assert record["mp4"] == f"{stem}.mp4"
        assert record["panels"] == f"{stem}_panels.png"
        assert record["npz"] == f"{stem}.npz"
        with open_video(record["mp4"]) as video:
            assert len(video) == 4
        assert Image.open(record["panels"]).width > 4 * 224
        with np.load(record["npz"]) as found:
            expected = gradient_map(model, clip, stage=0)[0].numpy()
            np.testing.assert_allclose(found["map"], expected, rtol=1e-4, atol=1e-9)
            assert found["map"].max() > 0
            assert found["map"].dtype == np.float32
            assert np.array_equal(found["frame_times_sec"], times_sec)
            # The middle one of three crops of 40 x 48 pixels, of which it has the whole height.
            left, top, right, bottom = found["crop_xyxy_norm"]
            assert (top, bottom) == (0, 1)
            assert left == pytest.approx(1 - right, abs=0.03)
            assert right - left == pytest.approx(40 / 48, abs=0.02)
            texts = {key: str(found[key]) for key in ("method", "stage", "class_name", "limits")}
            assert texts == {
                "method": "gradient", "stage": "stage1", "class_name": name,
                "limits": LIMITS["gradient"],
            }  # fmt: skip
            assert found["class_id"] == best
    assert len(list(out.iterdir())) == 6


def test_a_class_by_name_or_number(commands: Any, trained: Path, tmp_path: Path) -> None:
    path = commands.toy / "val_0.mp4"
    model, clip, _ = seen(trained, path)
    for i, (given, class_id) in enumerate((("left", 0), ("right", 1), ("0", 0), ("1", 1))):
        out = tmp_path / str(i)
        result = look(commands, trained, out, path, f"class_name={given}", "stage=stage2", "--json")
        assert result.code == 0, result.err
        record = json.loads(result.out)
        assert (record["class"]["id"], record["stage"]) == (class_id, "stage2")
        with np.load(record["npz"]) as found:
            expected = gradient_map(model, clip, torch.tensor([class_id]), stage=1)[0].numpy()
            np.testing.assert_allclose(found["map"], expected, rtol=1e-4, atol=1e-9)
    other = "left" if record["prediction"]["name"] == "right" else "right"
    result = look(commands, trained, tmp_path / "text", path, f"class_name={other}")
    assert result.code == 0, result.err
    said, limits, *written = result.out.splitlines()
    assert said.startswith(f"{path}: {other} (")
    assert f"Predicted: {record['prediction']['name']} (" in said
    assert limits == f"  {LIMITS['gradient']}"
    assert sorted(written) == sorted(f"  {file}" for file in (tmp_path / "text").iterdir())


def test_rollout(commands: Any, trained: Path, tmp_path: Path) -> None:
    path = commands.toy / "val_0.mp4"
    result = look(commands, trained, tmp_path, path, "method=rollout", "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record["class"] is record["stage"] is None
    assert record["limits"] == LIMITS["rollout"]
    assert record["prediction"]["name"] in ("left", "right")
    model, clip, _ = seen(trained, path)
    with np.load(record["npz"]) as found:
        np.testing.assert_allclose(found["map"], rollout_map(model, clip)[0].numpy(), rtol=1e-4)
        assert (found["class_id"], str(found["class_name"]), str(found["stage"])) == (-1, "", "")
    for setting in ("class_name=left", "stage=stage2"):
        result = look(commands, trained, tmp_path / "other", path, "method=rollout", setting)
        assert result.code == 2
        result.reports(setting.partition("=")[0], "null with method=rollout")


def test_a_picture_has_pictures(commands: Any, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    noise = np.random.default_rng(0).integers(0, 255, (90, 80, 3), np.uint8)
    Image.fromarray(noise).save(file)
    result = look(commands, pictures, tmp_path / "out", file, "--json", "class_name=0")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record["class"]["id"] == 1  # names come before numbers
    assert record["map_shape"] == [1, 8, 8]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "picture_gradient.npz", "picture_gradient.png", "picture_gradient_panels.png"
    ]  # fmt: skip
    assert Image.open(record["png"]).width > 2 * 224
    # Resized to a short side of 73 pixels (256/224 of 64): 82 x 73, of which the centre is shown.
    with np.load(record["npz"]) as found:
        expected = np.array([5 / 73, 9 / 82, 69 / 73, 73 / 82])
        np.testing.assert_allclose(found["crop_xyxy_norm"], expected, atol=0.7 / 73)


def test_what_the_frames_show_is_what_the_model_sees(
    commands: Any, trained: Path, tmp_path: Path
) -> None:
    """The input in the panels, enlarged 7 times, is the middle crop."""
    path = commands.toy / "val_1.mp4"
    record = json.loads(look(commands, trained, tmp_path, path, "--json").out)
    panels = np.asarray(Image.open(record["panels"]))[::7, ::7].astype(int)
    _, clip, _ = seen(trained, path)
    _, card = load_model(trained)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (card.mean, card.std))
    frame = (255 * (clip[0, :, 0] * std + mean)).round().permute(1, 2, 0).numpy().astype(int)
    places = np.lib.stride_tricks.sliding_window_view(panels, frame.shape)[:, :, 0]
    assert np.abs(places - frame).max(axis=(-3, -2, -1)).min() <= 1


def test_nothing_is_replaced_silently(commands: Any, trained: Path, tmp_path: Path) -> None:
    path = commands.toy / "val_0.mp4"
    result = look(commands, trained, tmp_path, path, "--dry-run")
    assert result.code == 0
    planned = result.out.splitlines()
    assert not list(tmp_path.iterdir())
    assert look(commands, trained, tmp_path, path).code == 0
    files = {str(file): file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(planned) == sorted(files)
    result = look(commands, trained, tmp_path, path, "stage=stage3")
    assert result.code == 1
    result.reports("val_0_gradient.mp4", "overwrite=true")
    assert files == {str(file): file.read_bytes() for file in tmp_path.iterdir()}
    assert look(commands, trained, tmp_path, path, "stage=stage3", "overwrite=true").code == 0
    assert files != {str(file): file.read_bytes() for file in tmp_path.iterdir()}


def test_scores_that_are_not_finite(commands: Any, diverged: Path, tmp_path: Path) -> None:
    path = commands.toy / "val_0.mp4"
    for number, arguments in enumerate(([], ["method=rollout"], ["class_name=right"])):
        out = tmp_path / str(number)
        result = look(commands, diverged, out, path, "--json", *arguments)
        assert result.code == 1
        (record,) = map(json.loads, result.out.splitlines())
        assert (record["path"], record["cause"]) == (str(path), "not_finite")
        assert "other weights" in record["error"]
        assert not list(out.iterdir())


def test_what_is_refused(commands: Any, trained: Path, pictures: Path, tmp_path: Path) -> None:
    path, out = commands.toy / "val_0.mp4", tmp_path / "out"
    for setting, parts in (
        ("class_name=rigth", ("class_name is 'rigth'", "did you mean 'right'?")),
        ("class_name=zebra", ("one of the 2 classes", "there are 'left', 'right'")),
        ("class_name=2", ("class_name is '2'", "0 to 1")),
        ("class_name=-1", ("class_name is '-1'",)),
        ("stage=stage5", ("stage",)),
        ("method=lime", ("method",)),
    ):
        result = look(commands, trained, out, path, setting)
        assert result.code == 2, setting
        result.reports(*parts)
    result = look(commands, trained, out, tmp_path / "nowhere.mp4")
    assert result.code == 2
    result.reports("there is no such file or folder")
    torch.manual_seed(0)
    folder = tmp_path / "three"
    three = {**IMAGE, "stages": (1, 1, 1), "q_pool": 2, "mask_unit_attn": (True,) * 3}
    model = create_model("hiera_tiny_224", num_classes=2, **three)
    save_model(folder, model)
    result = look(commands, folder, out, path, "stage=stage4")
    assert result.code == 2
    result.reports("stage is stage4: the model has 3 stages")
    result = look(commands, folder, out, path, "method=rollout")
    assert result.code == 2
    result.reports("rollout needs blocks", "use the gradient map")
    assert not out.exists()


def test_a_picture_is_a_still_clip_for_a_model_of_several_frames(
    commands: Any, trained: Path, tmp_path: Path
) -> None:
    file = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "red").save(file)
    result = look(commands, trained, tmp_path / "out", file, "--dry-run")
    assert result.code == 0, result.err
    result.reports(f"1 of 1 files are pictures, such as {file}", "clip in which nothing moves")
    result = look(commands, trained, tmp_path / "out", commands.toy / "val_0.mp4", "--dry-run")
    assert "pictures" not in result.err
