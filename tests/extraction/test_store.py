"""Outputs: complete or absent, named within the folder, read back as they were written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os

import numpy as np
import pytest
import torch

from hiera_video.data.batches import Failure
from hiera_video.data.videos.records import VideoRecord
from hiera_video.errors import OutputError, UserError
from hiera_video.extraction import store as store_module
from hiera_video.extraction.identity import content_hash, file_state
from hiera_video.extraction.reading import Read
from hiera_video.extraction.store import (
    FeatureStore,
    Rows,
    StoreError,
    load_features,
    output_names,
)

FACTS = {"num_windows": 3, "is_short": False, "backend": "pyav"}


def write(store, name, features):
    rows = Rows(store.folder)
    for n in reversed(range(len(features))):  # in any order
        rows.put(n, features[n])
    start = np.arange(len(features)) * 0.5
    video = VideoRecord(f"/v/{name}", (), name)
    store.write(video, rows, Read(start, start + 1, FACTS, 0.0, 0.0))
    rows.close()


@pytest.mark.parametrize("format", ["npz", "npy", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 4, 5)])
def test_round_trip(tmp_path, format, dtype, shape):
    store = FeatureStore(tmp_path, format, {"layer": "stage2"})
    features = torch.randn(shape).to(getattr(torch, dtype))
    write(store, "a/ß 日本.mp4", features)
    loaded = load_features(store.output("a/ß 日本.mp4"))
    assert loaded.features.dtype == dtype
    np.testing.assert_array_equal(loaded.features, features.numpy())
    assert loaded.start_sec.tolist() == [0.0, 0.5, 1.0]
    assert loaded.center_sec.tolist() == [0.5, 1.0, 1.5]
    assert loaded.end_sec.tolist() == [1.0, 1.5, 2.0]
    assert loaded.metadata["settings"] == {"layer": "stage2"}
    assert loaded.metadata["facts"] == FACTS
    assert store.row("a/ß 日本.mp4")["status"] == "done"
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]


def test_bfloat16(tmp_path):
    store = FeatureStore(tmp_path, "safetensors", {})
    features = torch.randn(3, 5).bfloat16()
    write(store, "a", features)
    np.testing.assert_array_equal(
        load_features(store.output("a")).features, features.float().numpy()
    )


def test_another_kind_of_file(tmp_path):
    with pytest.raises(ValueError, match=r"\.npz, \.npy or \.safetensors"):
        load_features(tmp_path / "a.h5")


def test_names_do_not_collide_and_stay_inside(tmp_path):
    root = str(tmp_path / "root")
    paths = [
        *("a.mp4", "a.mkv", "x/a.mp4", "y/a.mp4", "with space/ä 日本.mp4"),
        *("../a.mp4", "../../etc/a.mp4", "/etc/a.mp4", "/etc/../../a.mp4"),
    ]
    names = output_names([os.path.normpath(os.path.join(root, p)) for p in paths], root)
    assert names[:5] == paths[:5]
    assert len(set(names)) == len(names)
    for name in names:
        assert not name.startswith("/")
        assert ".." not in name.split("/")
    assert names[7] == "_elsewhere/etc/a.mp4"


def test_long_and_undecodable_names():
    long, other = output_names([f"/r/{'ü' * 120}1.mp4", f"/r/{'ü' * 120}2.mp4"], "/r")
    assert long != other
    assert len(long.encode()) <= 200
    (name,) = output_names([os.fsdecode(b"/r/\xff.mp4")], "/r")
    assert name == "\\xff.mp4" or name.isprintable()
    json.dumps(name, ensure_ascii=False).encode()


def test_names_that_do_collide():
    with pytest.raises(StoreError, match="same output"):
        output_names(["/etc/a.mp4", "/r/_elsewhere/etc/a.mp4"], "/r")
    with pytest.raises(StoreError, match="below the output"):
        output_names(["/r/a", "/r/a.npz/b"], "/r")


def test_failures_and_what_is_pending(tmp_path):
    store = FeatureStore(tmp_path, "npz", {"layer": "stage1"})
    pending = {"retry_failed": False, "overwrite": False}
    assert store.is_pending("a", "/v/a", **pending)
    store.fail(Failure("a", "/v/a", "missing", "/v/a: no such file"), 0.1)
    assert not store.is_pending("a", "/v/a", **pending)
    assert store.is_pending("a", "/v/a", retry_failed=True, overwrite=False)
    assert store.is_pending("a", "/w/a", **pending)  # another video of that name
    assert store.write_tables({"a": "/v/a"})[0]["cause"] == "missing"
    assert (tmp_path / "failures.jsonl").read_text().count("\n") == 1
    write(store, "a", torch.zeros(3, 1))
    assert store.row("a")["status"] == "done"
    assert not store.failure("a").exists()
    store.write_tables({"a": "/v/a", "not yet": "/v/b"})
    assert (tmp_path / "failures.jsonl").read_text() == ""
    assert (tmp_path / "index.jsonl").read_text().count("\n") == 1


def write_of(store, path):
    """Writes features that say which file they were made of."""
    rows = Rows(store.folder)
    rows.put(0, torch.zeros(1))
    facts = FACTS | file_state(path) | {"sha256": content_hash(path)}
    read = Read(np.array([0.0]), np.array([1.0]), facts, 0.0, 0.0)
    store.write(VideoRecord(path, (), "a"), rows, read)
    rows.close()


PENDING = {"retry_failed": False, "overwrite": False}


@pytest.mark.parametrize("content", [b"123", b"54321"], ids=["another size", "the same size"])
@pytest.mark.parametrize("place", ["a", "b"], ids=["in its place", "elsewhere"])
def test_another_file_under_the_same_name(tmp_path, content, place):
    store, film = FeatureStore(tmp_path, "npz", {}), tmp_path / "a"
    film.write_bytes(b"12345")
    write_of(store, str(film))
    assert not store.is_pending("a", str(film), **PENDING)
    other = tmp_path / place
    other.write_bytes(content)
    os.utime(other, (2, 2))
    with pytest.raises(StoreError, match=rf"^{other} is not known .*{film}.*another output_dir"):
        store.is_pending("a", str(other), **PENDING)
    assert store.is_pending("a", str(other), retry_failed=False, overwrite=True)
    store.fail(Failure("a", str(other), "truncated", "is cut off"), 0.0)
    assert store.write_tables({"a": str(other)})[0]["status"] == "failed"
    assert not store.output("a").exists()


def test_the_same_file_elsewhere(tmp_path):
    store, film, moved = FeatureStore(tmp_path, "npz", {}), tmp_path / "a", tmp_path / "b"
    film.write_bytes(b"12345")
    write_of(store, str(film))
    os.utime(film, (2, 2))
    assert not store.is_pending("a", str(film), **PENDING)
    film.rename(moved)
    assert not store.is_pending("a", str(moved), **PENDING)
    assert store.write_tables({"a": str(moved)})[0]["path"] == str(moved)
    assert not store.is_pending("a", str(film), **PENDING)  # features outlive their video
    with pytest.raises(StoreError, match=r"cannot be compared: .*No such file"):
        store.is_pending("a", str(tmp_path / "c"), **PENDING)
    os.mkfifo(tmp_path / "d")
    with pytest.raises(StoreError, match=r"cannot be compared: .*regular file"):
        store.is_pending("a", str(tmp_path / "d"), **PENDING)


def test_frames_in_another_order_are_another_video(tmp_path):
    hashes = set()
    for names in (("1.png", "2.png"), ("2.png", "1.png"), ("1.png", "3.png")):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name, content in zip(names, (b"x", b"y"), strict=True):
            (folder / name).write_bytes(content)
        assert file_state(str(folder))["size_bytes"] == 2
        hashes.add(content_hash(str(folder)))
    assert len(hashes) == 3


def test_a_film_of_many_parts_is_read_once(tmp_path):
    film, reads = tmp_path / "a", []
    film.write_bytes(b"12345")
    for _ in range(3):
        content_hash(str(film), lambda: reads.append(1))
    assert len(reads) == 1
    film.write_bytes(b"54321")
    os.utime(film, (2, 2))
    assert content_hash(str(film)) == hashlib.sha256(b"54321").hexdigest()


def test_frames_at_another_rate(tmp_path):
    store, film = FeatureStore(tmp_path, "npz", {}), tmp_path / "a"
    film.write_bytes(b"12345")
    write_of(store, str(film))
    with pytest.raises(StoreError, match="at None frames per second, now 5"):
        store.is_pending("a", str(film), **PENDING, frames_fps=5)


def test_a_failure_is_of_the_file_as_it_was(tmp_path):
    store, film = FeatureStore(tmp_path, "npz", {}), tmp_path / "a"
    store.fail(Failure("a", str(film), "missing", "no such file"), 0.0)
    assert not store.is_pending("a", str(film), **PENDING)
    film.write_bytes(b"cut")
    assert store.is_pending("a", str(film), **PENDING)
    store.fail(Failure("a", str(film), "truncated", "is cut off"), 0.0)
    assert not store.is_pending("a", str(film), **PENDING)
    film.write_bytes(b"who")
    os.utime(film, (2, 2))
    assert store.is_pending("a", str(film), **PENDING)
    store.fail(Failure("a", str(film), "changed", "was changed while it was read"), 0.0)
    assert store.is_pending("a", str(film), **PENDING)


def test_other_formats_of_a_video_go(tmp_path):
    for format in ("npy", "safetensors", "npz"):
        write(FeatureStore(tmp_path, format, {"to": format}), "a", torch.zeros(3, 1))
        files = sorted(path.name for path in (tmp_path / "features").iterdir())
        assert files == (["a.json", "a.npy"] if format == "npy" else [f"a.{format}"])


def test_other_formats_of_the_same_settings_stay(tmp_path):
    write(FeatureStore(tmp_path, "npz", {}), "a", torch.zeros(3, 1))
    npy = FeatureStore(tmp_path, "npy", {})
    npy.fail(Failure("a", "/v/a", "missing", "gone"), 0.0)
    assert FeatureStore(tmp_path, "npz", {}).row("a")["status"] == "done"
    write(npy, "a", torch.zeros(3, 1))
    files = sorted(path.name for path in (tmp_path / "features").iterdir())
    assert files == ["a.json", "a.npy", "a.npz"]


def test_another_precision_is_refused_with_the_one_to_take(tmp_path):
    """By precision=auto, another machine may have one that nobody has chosen."""
    with FeatureStore(tmp_path, "npz", {"layer": "stage2", "precision": "fp32"}).writing():
        pass
    found = (
        r"\(precision was fp32, is bf16\): set precision=fp32, as there, choose another output_dir"
    )
    with pytest.raises(StoreError, match=found):
        FeatureStore(tmp_path, "npz", {"layer": "stage2", "precision": "bf16"}).check()
    with pytest.raises(StoreError, match=r"is stage3\): choose another output_dir"):
        FeatureStore(tmp_path, "npz", {"layer": "stage3", "precision": "fp32"}).check()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "null", '{"hash": 1}', '{"hash": "1"}', "[" * 100_000, "\0"]
)
def test_damaged_records_are_named(tmp_path, content):
    store = FeatureStore(tmp_path, "npz", {})
    with store.writing():
        pass
    for path in (tmp_path / "extract.json", store.failure("a")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(StoreError, match=r"extract\.json is damaged .*: remove it"):
        store.check()
    with pytest.raises(StoreError, match=r"a\.json is damaged .*: remove it"):
        store.row("a")


@pytest.mark.parametrize(
    "change",
    [
        dict(features=np.zeros((2, 5))),  # of another number of windows
        dict(features=np.float32(1.0)),
        dict(metadata=np.array("[")),
        dict(metadata=np.array("[]")),
        dict(metadata=np.array('{"path": "a", "hash": "1", "settings": {}, "facts": {}}')),
        dict(metadata=np.array({}, object)),
    ],
)
def test_damaged_features_are_named(tmp_path, change):
    store = FeatureStore(tmp_path, "npz", {})
    write(store, "a", torch.zeros(3, 5))
    path = store.output("a")
    with np.load(path) as file:
        arrays = {**file, **change}
    np.savez(path, **arrays)
    with pytest.raises(StoreError, match=rf"{path}: not a file of features, or damaged"):
        load_features(path)
    if "metadata" in change:
        with pytest.raises(StoreError, match=rf"{path}: not a file of features, or damaged"):
            store.row("a")


def test_features_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.npz: there is no such file"):
        load_features(tmp_path / "a.npz")


def test_two_runs_at_once(tmp_path):
    store, other = (FeatureStore(tmp_path / "x", "npz", {"layer": layer}) for layer in "12")
    with store.writing():
        with pytest.raises(UserError, match=rf"x is in use by process {os.getpid()} .* output_dir"):
            other.writing().__enter__()
        assert json.loads((tmp_path / "x" / "extract.json").read_text())["hash"] == store.hash
    with store.writing():
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(OutputError, match=r"x cannot be written .*make it writable"):
        FeatureStore(tmp_path / "x", "npz", {"layer": "stage2"}).writing().__enter__()


def test_other_settings(tmp_path):
    write(FeatureStore(tmp_path, "npz", {"layer": "stage1"}), "a", torch.zeros(3, 1))
    other = FeatureStore(tmp_path, "npz", {"layer": "stage2"})
    with pytest.raises(StoreError, match="layer was stage1, is stage2"):
        other.is_pending("a", "/v/a", retry_failed=False, overwrite=False)
    assert other.is_pending("a", "/v/a", retry_failed=False, overwrite=True)
    with FeatureStore(tmp_path, "npz", {"layer": "stage1"}).writing():
        pass
    with pytest.raises(StoreError, match="layer was stage1, is stage2"):
        other.check()
    other.fail(Failure("a", "/v/a", "missing", "gone"), 0.0)
    assert other.row("a")["status"] == "failed"
    # what failed with other settings may work with these
    assert FeatureStore(tmp_path, "npz", {"layer": "stage1"}).row("a") is None


@pytest.mark.parametrize("format", ["npz", "npy", "safetensors"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, format):
    store = FeatureStore(tmp_path, format, {})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*make room"):
        write(store, "a", torch.zeros(3, 1))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    monkeypatch.undo()
    write(store, "a", torch.zeros(3, 1))
    assert store.row("a")["status"] == "done"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_while_rows_come_in(tmp_path, monkeypatch):
    """Closing the rows tries to write them once more, and must not hide what is wrong."""
    monkeypatch.setattr(
        store_module.tempfile,
        "TemporaryFile",
        lambda dir: open("/dev/full", "w+b"),  # noqa: SIM115
    )
    with (
        pytest.raises(OutputError, match=r"No space left on device.*make room"),
        contextlib.closing(Rows(tmp_path)) as rows,
    ):
        rows.put(0, torch.zeros(5))


def test_a_killed_overwrite_of_two_files_is_no_output(tmp_path, monkeypatch):
    """Times of the new settings beside features of the old ones would pass for complete."""
    write(FeatureStore(tmp_path, "npy", {"layer": "stage1"}), "a", torch.zeros(3, 1))
    new = FeatureStore(tmp_path, "npy", {"layer": "stage2"})
    replaced = []

    def killed(source, target):
        if replaced:
            raise KeyboardInterrupt
        replaced.append(target)
        os.rename(source, target)

    monkeypatch.setattr(store_module.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(new, "a", torch.ones(3, 1))
    assert new.row("a") is None


def test_a_damaged_output(tmp_path):
    store = FeatureStore(tmp_path, "npz", {})
    write(store, "a", torch.zeros(3, 1))
    store.output("a").write_bytes(b"PK")
    with pytest.raises(StoreError, match="damaged"):
        store.row("a")
