"""`hiera-video extract` from end to end: what it writes, what it survives, what it says."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import stat
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext

from hiera_video import files as files_module
from hiera_video import load_features, open_video
from hiera_video.data.transforms import resize_short_side
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import load_model
from tests.video.striped_video import make_audio, make_striped_video

GOOD = ("a.mp4", "a.mkv", "left/a.mp4", "right/mit Leerzeichen, 日本.mp4", "right/short.mp4")
BAD = {
    "empty.mp4": "empty",
    "text.mp4": "not_a_video",
    "right/cut.mp4": "truncated",
    "audio.mp4": "no_video_stream",
    "gone.mp4": "missing",
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of five good videos and five bad ones."""
    folder = tmp_path_factory.mktemp("videos")
    for i, name in enumerate(GOOD):
        (folder / name).parent.mkdir(exist_ok=True)
        make_striped_video(folder / name, 3 if "short" in name else 25 + i, (40, 64))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n" * 100)
    data = (folder / "a.mp4").read_bytes()
    (folder / "right" / "cut.mp4").write_bytes(data[: len(data) // 2])
    make_audio(folder / "audio.mp4")
    (folder / "gone.mp4").symlink_to("/nowhere/gone.mp4")
    return folder


@pytest.fixture(scope="module")
def arguments(videos, trained):
    """Of `extract`, but for the output folder."""
    return (
        "extract",
        videos,
        f"checkpoint={trained}",
        "windows.clip_stride=3",
        "device=cpu",
        "precision=fp32",
    )


@pytest.fixture(scope="module")
def whole(commands, arguments, tmp_path_factory):
    """The outputs of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "features"
    result = commands.run(*arguments, f"output_dir={folder}")
    assert result.code == 3, result.err
    return folder


def outputs(folder: Path) -> dict[str, Path]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): p for p in files}


def rows(folder: Path, table: str = "index.jsonl") -> dict[str, dict]:
    lines = (folder / table).read_text(encoding="utf-8").splitlines()
    found = {row["video"]: row for row in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def assert_same(one: Path, two: Path) -> None:
    """The same files, features, times and metadata, all but how long it took."""
    ours, theirs = outputs(one), outputs(two)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith(".npz"):
            a, b = load_features(ours[name]), load_features(theirs[name])
            np.testing.assert_allclose(a.features, b.features, atol=1e-5)
            np.testing.assert_array_equal(a.start_sec, b.start_sec)
            np.testing.assert_array_equal(a.end_sec, b.end_sec)
            for metadata in (a.metadata, b.metadata):
                metadata["facts"].pop("seconds")
            assert a.metadata == b.metadata
    for table in ("index.jsonl", "failures.jsonl"):
        a, b = rows(one, table), rows(two, table)
        for row in (*a.values(), *b.values()):
            row.pop("seconds")
        assert a == b


def test_what_is_written(whole):
    index = rows(whole)
    assert index.keys() == {*GOOD, *BAD}
    assert {name: row["cause"] for name, row in index.items() if row["status"] == "failed"} == BAD
    assert rows(whole, "failures.jsonl").keys() == BAD.keys()
    assert {n for n, row in index.items() if row.get("is_short")} == {"right/short.mp4"}
    assert set(outputs(whole / "features")) == {f"{name}.npz" for name in GOOD}
    for name in GOOD:
        loaded = load_features(whole / index[name]["output"])
        assert len(loaded.features) == index[name]["num_windows"] == len(loaded.start_sec)


def test_features_that_are_not_finite_are_not_stored(commands, videos, diverged, tmp_path):
    arguments = ("extract", videos, f"checkpoint={diverged}", "layer=logits", "device=cpu")
    result = commands.run(*arguments, f"output_dir={tmp_path}", "precision=fp32")
    assert result.code == 1
    assert rows(tmp_path).keys() == {*GOOD, *BAD}
    causes = {name: row["cause"] for name, row in rows(tmp_path, "failures.jsonl").items()}
    assert causes == BAD | dict.fromkeys(GOOD, "not_finite")
    advice = "feature 0 is not finite in fp32; use other weights, for example of an earlier"
    assert advice in rows(tmp_path)["a.mp4"]["error"]
    assert not list(tmp_path.rglob("*.npz"))


def test_a_cut_off_video_says_what_is_missing(commands, trained, tmp_path):
    (tmp_path / "v").mkdir()
    path = make_striped_video(
        tmp_path / "v" / "cut.mp4", 60, (40, 64), container_options={"movflags": "faststart"}
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    make_striped_video(tmp_path / "v" / "whole.mp4", 20, (40, 64))
    result = commands.run(
        *("extract", tmp_path / "v", f"checkpoint={trained}", "windows.clip_stride=8"),
        *("device=cpu", f"output_dir={tmp_path / 'out'}"),
    )
    assert result.code == 0, result.err
    damage = {name: row["damage"] for name, row in rows(tmp_path / "out").items()}
    assert damage["whole.mp4"] is None
    assert "is damaged" in damage["cut.mp4"]
    assert f"done as far as it goes: {path}: is damaged" in result.out
    assert "whole.mp4" not in result.out


def test_features_are_those_of_the_same_frames_by_hand(whole, videos, trained):
    model, card = load_model(trained, kind="classifier")
    loaded = load_features(whole / "features" / "left" / "a.mp4.npz")
    settings = loaded.metadata["settings"]
    with open_video(videos / "left" / "a.mp4") as video:
        assert len(video) == 27
        for n, start in enumerate(range(0, 27 - 8 + 3, 3)):  # the last is padded
            positions = (start + np.arange(4) * 7 / 3).astype(int).clip(0, 26)
            frames = resize_short_side(video.frames(positions), settings["short_side"])
            top, left = ((size - 32 + 1) // 2 for size in frames.shape[1:3])
            clip = torch.from_numpy(frames[None, :, top : top + 32, left : left + 32].copy())
            with torch.inference_mode():
                tokens = model.forward_features(Normalize(card.mean, card.std)(clip))
                expected = model.norm(tokens.mean((1, 2, 3)))[0]
            np.testing.assert_allclose(loaded.features[n], expected.numpy(), atol=1e-5)
            assert loaded.start_sec[n] == pytest.approx(start / 25)
            assert loaded.end_sec[n] == pytest.approx(min(start + 8, 27) / 25)
    assert len(loaded.features) == n + 1


@pytest.mark.parametrize(
    ("layer", "pooling", "shape"),
    [
        ("stage1", "none", (2, 8, 8, 8)),
        ("stage3", "spatial", (2, 32)),
        ("stage2", "temporal", (4, 4, 16)),
        ("stage4", "mean", (64,)),
        ("logits", "mean", (2,)),
    ],
)
def test_layers_and_pooling(commands, videos, trained, tmp_path, layer, pooling, shape):
    result = commands.run(
        *("extract", videos / "a.mp4", f"checkpoint={trained}", f"output_dir={tmp_path}"),
        *(f"layer={layer}", f"pooling={pooling}", "device=cpu"),
    )
    assert result.code == 0, result.err
    (output,) = (tmp_path / "features").rglob("*.npz")
    features = load_features(output).features
    assert features.shape == (4, *shape)
    maps = commands.run(
        *("extract", videos / "a.mp4", f"checkpoint={trained}", f"output_dir={tmp_path / 'maps'}"),
        *("layer=stage4", "pooling=none", "format=safetensors", "dtype=bfloat16", "device=cpu"),
    )
    assert maps.code == 0, maps.err


def test_crops_and_views(commands, videos, trained, tmp_path):
    """Probabilities of evaluation's views, from the logits of the same views."""
    result = commands.run(
        *("extract", videos / "a.mp4", f"checkpoint={trained}", f"output_dir={tmp_path}"),
        *("layer=logits", "windows.kind=views", "windows.num_clips=2", "windows.num_crops=3"),
        *("batch_size=4", "device=cpu"),
    )
    assert result.code == 0, result.err
    (output,) = (tmp_path / "features").rglob("*.npz")
    logits = load_features(output).features
    assert logits.shape == (2, 3, 2)
    predicted = commands.run(
        *("predict", videos / "a.mp4", f"checkpoint={trained}", "--json", "device=cpu"),
        *("views.num_clips=2", "views.num_crops=3"),
    )
    classes = json.loads(predicted.out)["classes"]
    ours = torch.from_numpy(logits).softmax(-1).mean((0, 1))
    assert sorted(c["probability"] for c in classes) == pytest.approx(
        sorted(ours.tolist()), abs=1e-5
    )


def test_resuming_does_nothing_twice(commands, arguments, whole):
    before = {name: p.stat().st_mtime_ns for name, p in outputs(whole / "features").items()}
    result = commands.run(*arguments, f"output_dir={whole}", "--json")
    assert result.code == 3
    report = json.loads(result.out)
    assert (report["done"], report["failed"], report["this_process"]["clips"]) == (5, 5, 0)
    assert before == {n: p.stat().st_mtime_ns for n, p in outputs(whole / "features").items()}


def test_videos_added_and_mended_later(commands, videos, trained, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(videos / "a.mp4", folder / "a.mp4")
    (folder / "b.mp4").write_bytes(b"")
    (folder / "d.mp4").write_bytes(b"")
    arguments = ("extract", folder, f"checkpoint={trained}", f"output_dir={tmp_path / 'out'}")
    result = commands.run(*arguments, "device=cpu")
    assert result.code == 3
    assert "have changed; --retry-failed reads all" in result.out
    shutil.copy(videos / "a.mkv", folder / "c.mkv")
    shutil.copy(videos / "a.mp4", folder / "b.mp4")
    result = commands.run(*arguments, "device=cpu", "--json")
    assert result.code == 3
    assert json.loads(result.out)["this_process"]["done"] == 2
    index = rows(tmp_path / "out")
    assert {name: row["status"] for name, row in index.items()} == {
        **{"a.mp4": "done", "b.mp4": "done", "c.mkv": "done", "d.mp4": "failed"}
    }
    again = commands.run(*arguments, "device=cpu", "--json")
    assert json.loads(again.out)["this_process"]["failed"] == 0
    again = commands.run(*arguments, "device=cpu", "--retry-failed", "--json")
    assert json.loads(again.out)["this_process"]["failed"] == 1


def test_features_of_another_data_set(commands, trained, tmp_path):
    """Uncompressed videos of the same name and size, in two folders."""
    for name, first in (("one", 0), ("two", 7)):
        (tmp_path / name).mkdir()
        make_striped_video(
            tmp_path / name / "a.avi", 20, (40, 64), codec="rawvideo", streams=[first]
        )
    assert (tmp_path / "one/a.avi").stat().st_size == (tmp_path / "two/a.avi").stat().st_size
    arguments = (f"checkpoint={trained}", f"output_dir={tmp_path / 'out'}", "device=cpu")
    assert commands.run("extract", tmp_path / "one", *arguments).code == 0
    result = commands.run("extract", tmp_path / "two", *arguments)
    assert result.code == 1
    result.reports(str(tmp_path / "two/a.avi"), str(tmp_path / "one/a.avi"), "overwrite=true")
    (tmp_path / "one").rename(tmp_path / "moved")
    result = commands.run("extract", tmp_path / "moved", *arguments, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["this_process"]["clips"] == 0
    assert rows(tmp_path / "out")["a.avi"]["path"] == str(tmp_path / "moved" / "a.avi")


def test_a_clock_that_jumps_is_in_the_index(commands, trained, tmp_path):
    pts = [40 * number + 3_600_000 * (number >= 10) for number in range(20)]
    path = make_striped_video(tmp_path / "a.mp4", 20, (40, 64), pts=pts)
    arguments = ("extract", path, f"checkpoint={trained}", "device=cpu")
    lengths = {}
    for gap in ("null", "1"):
        out = tmp_path / gap
        assert commands.run(*arguments, f"output_dir={out}", f"data.max_gap_sec={gap}").code == 0
        (row,) = rows(out).values()
        assert "has no frame for 3600.040 s after frame 9" in row["note"]
        assert row["damage"] is None
        lengths[gap] = row["duration_sec"]
    assert lengths["null"] - lengths["1"] == pytest.approx(3599.04, abs=2e-3)
    result = commands.run(*arguments, f"output_dir={out}", "data.max_gap_sec=2")
    result.reports("max_gap_sec was 1.0, is 2.0")


def test_pixels_that_are_not_square_are_in_the_index(commands, trained, tmp_path):
    square = make_striped_video(tmp_path / "a.mp4", 20, (40, 64))
    with av.open(square) as source, av.open(tmp_path / "b.mp4", "w") as copy:
        stream = source.streams.video[0]
        target = copy.add_stream_from_template(stream)
        change = BitStreamFilterContext("h264_metadata=sample_aspect_ratio=4/3", stream, target)
        for packet in source.demux(stream):
            for changed in change.filter(packet if packet.size else None):
                changed.stream = target
                copy.mux(changed)
    arguments = (square, tmp_path / "b.mp4", f"checkpoint={trained}", "device=cpu")
    assert commands.run("extract", *arguments, f"output_dir={tmp_path}").code == 0
    found = [(row["height"], row["width"], row["pixel_aspect"]) for row in rows(tmp_path).values()]
    assert found == [(40, 64, 1), (40, 64, pytest.approx(4 / 3))]


def test_other_settings_need_a_word(commands, videos, trained, tmp_path):
    arguments = ("extract", videos / "a.mp4", f"checkpoint={trained}", f"output_dir={tmp_path}")
    assert commands.run(*arguments, "device=cpu").code == 0
    result = commands.run(*arguments, "layer=stage1", "device=cpu")
    assert result.code == 1
    result.reports("layer was pre_logits, is stage1", "overwrite=true")
    assert commands.run(*arguments, "layer=stage1", "--overwrite", "device=cpu").code == 0
    (output,) = (tmp_path / "features").rglob("*.npz")
    assert load_features(output).features.shape == (4, 8)


def test_lists_with_paths_outside_of_their_folder(commands, videos, trained, tmp_path, list_of):
    (tmp_path / "lists").mkdir()
    shutil.copy(videos / "a.mp4", tmp_path / "above.mp4")
    listed = [("../above.mp4",), (str(videos / "a.mkv"),)]
    table = list_of(tmp_path / "lists" / "list.csv", listed, "path")
    out = tmp_path / "out"
    result = commands.run(
        "extract", table, f"checkpoint={trained}", f"output_dir={out}", "device=cpu"
    )
    assert result.code == 0, result.err
    assert len(outputs(out / "features")) == 2
    assert all(name.startswith("_elsewhere/") for name in outputs(out / "features"))
    assert not list(tmp_path.glob("*.npz"))


def test_one_table(commands, arguments, whole):
    import pyarrow.parquet as parquet

    assert commands.run(*arguments, f"output_dir={whole}", "--format", "parquet").code == 3
    table = parquet.read_table(whole / "features.parquet").to_pydict()
    (whole / "features.parquet").unlink()
    assert set(table["video"]) == set(GOOD)
    place = table["video"].index("a.mkv")
    expected = load_features(whole / "features" / "a.mkv.npz")
    np.testing.assert_array_equal(table["features"][place], expected.features[0])
    assert table["end_sec"][place] == expected.end_sec[0]


def test_killed_at_random_moments(commands, arguments, whole, tmp_path):
    """Each run is killed, the last is not: the result is that of the run that never was."""
    rng = random.Random(0)
    out = tmp_path / "killed"
    for _ in range(6):
        process = commands.start(*arguments, f"output_dir={out}", "data.num_workers=1")
        deadline = time.monotonic() + 60
        seen = len(list(out.rglob("*.npz")))
        while process.poll() is None and len(list(out.rglob("*.npz"))) == seen < len(GOOD):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert commands.run(*arguments, f"output_dir={out}").code == 3
    assert_same(whole, out)


def test_two_processes(commands, arguments, whole, tmp_path):
    result = commands.finish(
        commands.start(*arguments, f"output_dir={tmp_path / 'two'}", processes=2)
    )
    assert result.code != 0  # torchrun's own code says only that a process gave one
    assert "exitcode  : 3" in result.out, result.out
    assert_same(whole, tmp_path / "two")


def test_a_full_disk(commands, arguments, whole, tmp_path, monkeypatch):
    """After extract.json and two more files nothing can be written."""
    left = [3]

    def fsync(descriptor):
        left[0] -= stat.S_ISREG(os.fstat(descriptor).st_mode)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files_module.os, "fsync", fsync)
        result = commands.run(*arguments, f"output_dir={tmp_path / 'out'}")
    assert result.code == 1
    result.reports("No space left on device", "make room")
    assert len(outputs(tmp_path / "out")) == 3
    assert commands.run(*arguments, f"output_dir={tmp_path / 'out'}").code == 3
    assert_same(whole, tmp_path / "out")


def test_on_ray_with_a_worker_killed(commands, arguments, whole, tmp_path):
    pytest.importorskip("ray.data")
    psutil = pytest.importorskip("psutil")
    out = tmp_path / "ray"
    process = commands.start(
        *arguments, f"output_dir={out}", "--engine", "ray", "data.num_workers=1"
    )
    deadline = time.monotonic() + 300
    killed = False
    while process.poll() is None and not killed:
        assert time.monotonic() < deadline
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if "Decoder" in " ".join(child.cmdline()):
                    child.kill()
                    killed = True
            except psutil.Error:
                continue
        time.sleep(0.02)
    result = commands.finish(process, timeout_sec=600)
    assert killed
    assert result.code == 3, result.out
    assert_same(whole, out)


def test_dry_run_writes_nothing(commands, arguments, tmp_path):
    result = commands.run(*arguments, f"output_dir={tmp_path / 'out'}", "--dry-run")
    assert result.code == 3  # one of them is not there
    assert json.loads(result.out)["to_do"] == 10
    assert json.loads(result.out)["unreadable"] == {"missing": 1}
    assert not (tmp_path / "out").exists()


def test_all_failed(commands, videos, trained, tmp_path):
    arguments = ("extract", videos / "text.mp4", f"checkpoint={trained}", f"output_dir={tmp_path}")
    assert commands.run(*arguments).code == 1


@pytest.mark.parametrize(
    ("setting", "reported"),
    [
        ("dtype=bfloat16", "dtype"),
        ("pooling=none", "pooling"),
        ("windows.num_crops=2", "windows.num_crops"),
        ("clips.sampling=segments", "clips.sampling"),
        ("data.num_workers=0", "data.num_workers"),
        ("windows.clip_stride=0", "windows.clip_stride"),
        ("windows.num_clips=3", "5 with kind=dense, which does not use it"),
        ("windows.kind=views", "windows.clip_stride"),
        ("layer=stage5", "layer"),
        ("gpus_per_model=0.5", "gpus_per_model"),
    ],
)
def test_settings_that_do_not_fit(commands, arguments, tmp_path, setting, reported):
    result = commands.run(*arguments, f"output_dir={tmp_path}", setting)
    assert result.code == 2
    result.reports(reported)


def test_no_input(commands, trained, videos):
    result = commands.run("extract", f"checkpoint={trained}")
    assert result.code == 2
    result.reports("FILE", "a folder, a list, or videos")
    result = commands.run("extract", videos, videos / "a.mp4", f"checkpoint={trained}")
    assert result.code == 1
    result.reports("give one folder, one list, or nothing but videos")
