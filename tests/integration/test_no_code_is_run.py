"""Reading a folder that somebody else wrote runs none of their code, whatever they replaced."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hiera_video.extraction.store import load_features

FINETUNE = ("train.epochs=2", "train.keep_checkpoints=1", "train.ema_decay=0.9")
BESIDE = (  # what other programs, and version 0.1, unpickle
    ".metadata",
    "__0_0.distcp",
    "optimizer.pt",
    "pytorch_model.bin",
    "model.pth",
    "data.pkl",
    "training_args.bin",
    "model.safetensors.index.json",
    "state.npy",
    "checkpoint",
)


class Touch:
    """Pickled, a call of `os.system`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Touch(marker), protocol=2)


def saved_by_torch(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"model": Touch(marker)}, file)
    return file.getvalue()


def saved_by_numpy(marker: Path) -> bytes:
    file = io.BytesIO()
    entries = dict.fromkeys(("features", "metadata"), np.array([Touch(marker)], object))
    np.savez(file, **entries)
    return file.getvalue()


def array_of_numpy(marker: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Touch(marker)], object), allow_pickle=True)
    return file.getvalue()


MAKERS = (pickled, saved_by_torch, saved_by_numpy, array_of_numpy)


@pytest.fixture(scope="module")
def run_dir(commands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    commands.train(folder, *FINETUNE)
    return folder


@pytest.fixture(scope="module")
def features(commands, run_dir, tmp_path_factory):
    """Features of one video in each format, by the format."""
    folder = tmp_path_factory.mktemp("features")
    for format in ("npz", "npy", "safetensors"):
        result = commands.run(
            *extract(commands, run_dir), f"output_dir={folder / format}", *to(format)
        )
        assert result.code == 0, result.err
    return folder


def extract(commands, weights):
    video = commands.toy / "val_0.mp4"
    return ("extract", video, f"checkpoint={weights}", "data.num_workers=1", "device=cpu")


def to(format):
    return (f"format={format}",)


def evaluate(commands, weights, output_dir):
    data = (f"data.val={commands.toy / 'val.csv'}", "data.num_workers=0", "device=cpu")
    return ("evaluate", f"checkpoint={weights}", *data, f"output_dir={output_dir}")


def files_in(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def assert_one_sentence(result):
    """Either the file is not needed, or one line says what is wrong."""
    assert "Traceback" not in result.err, result.err
    lines = [line for line in result.err.splitlines() if line.startswith("hiera-video ")]
    assert len(lines) == (0 if result.code == 0 else 1), result.err


def test_the_pickles_do_run_code(tmp_path):
    (marker := tmp_path / "ran").parent.joinpath("x").write_bytes(pickled(marker))
    pickle.loads((tmp_path / "x").read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("make", MAKERS)
def test_run_folder(commands, run_dir, tmp_path, make):
    marker, copy = tmp_path / "ran", tmp_path / "run"
    for file in files_in(run_dir):
        shutil.copytree(run_dir, copy)
        (copy / file).write_bytes(make(marker))
        for command in (
            commands.finetune(copy, *FINETUNE, "train.epochs=3", "overwrite_config=true"),
            commands.finetune(tmp_path / "new", f"model.init={copy}", "--dry-run"),
        ):
            assert_one_sentence(commands.run(*command))
            assert not marker.exists(), (file, command)
        shutil.rmtree(copy)


@pytest.mark.parametrize("make", MAKERS)
def test_beside_the_files_of_a_run(commands, run_dir, tmp_path, make):
    marker, copy = tmp_path / "ran", tmp_path / "run"
    shutil.copytree(run_dir, copy)
    for folder in {path.parent for path in run_dir.rglob("*") if path.is_file()}:
        for name in BESIDE:
            (copy / folder.relative_to(run_dir) / name).write_bytes(make(marker))
    for command in (
        commands.finetune(copy, *FINETUNE, "train.epochs=3", "overwrite_config=true"),
        evaluate(commands, copy, tmp_path / "eval"),
        (*extract(commands, copy / "weights"), f"output_dir={tmp_path / 'features'}"),
    ):
        result = commands.run(*command)
        assert result.code == 0, result.err
        assert not marker.exists(), command


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_weights_folder(commands, run_dir, tmp_path, make, name):
    marker, weights = tmp_path / "ran", tmp_path / "weights"
    shutil.copytree(run_dir / "weights", weights)
    (weights / name).write_bytes(make(marker))
    for command in (
        evaluate(commands, weights, tmp_path / "eval"),
        (*extract(commands, weights), f"output_dir={tmp_path / 'features'}"),
        commands.finetune(tmp_path / "new", f"model.init={weights}"),
        ("convert", f"checkpoint={weights}", "layout=official", f"output={tmp_path / 'x.pth'}"),
    ):
        result = commands.run(*command)
        assert result.code == 1
        result.reports(f"{weights / name} is ")
        assert not marker.exists()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin"])
def test_files_of_weights(commands, tmp_path, make, suffix):
    marker, file = tmp_path / "ran", tmp_path / f"weights.{suffix}"
    file.write_bytes(make(marker))
    result = commands.run(*commands.finetune(tmp_path / "new", f"model.init={file}"))
    assert result.code == 1
    result.reports(f"{file} is ")
    assert not marker.exists()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("format", ["npz", "npy", "safetensors"])
def test_feature_folder(commands, run_dir, features, tmp_path, make, format):
    marker, copy = tmp_path / "ran", tmp_path / format
    for file in files_in(features / format):
        shutil.copytree(features / format, copy)
        (copy / file).write_bytes(make(marker))
        for name in BESIDE:
            (copy / "features" / name).write_bytes(make(marker))
        for command in (
            (*extract(commands, run_dir), f"output_dir={copy}", *to(format)),
            (*extract(commands, run_dir), f"output_dir={copy}", "format=parquet"),
        ):
            assert_one_sentence(commands.run(*command))
            assert not marker.exists(), (file, command)
        shutil.rmtree(copy)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("suffix", ["npz", "npy", "safetensors"])
def test_load_features(tmp_path, make, suffix):
    marker, file = tmp_path / "ran", tmp_path / f"a.{suffix}"
    for path in (file, file.with_suffix(".json")):
        path.write_bytes(make(marker))
    with pytest.raises(RuntimeError, match=rf"{file}: not a file of features, or damaged"):
        load_features(file)
    assert not marker.exists()


@pytest.mark.parametrize("make", MAKERS)
def test_lists_and_configurations(commands, tmp_path, make):
    marker, new = tmp_path / "ran", tmp_path / "new"
    for name in ("x.csv", "x.json", "x.jsonl", "x.pkl", "x.pbtxt", "x.yaml"):
        file = tmp_path / name
        file.write_bytes(make(marker))
        for command in (
            commands.finetune(new, f"data.train={file}"),
            commands.finetune(new, f"data.class_names={file}"),
            ("finetune", "--config", file, f"run_dir={new}"),
            ("detect", "score", f"data.val={file}", f"detections={file}", f"data.label_map={file}"),
        ):
            result = commands.run(*command)
            assert result.code in (1, 2)
            assert_one_sentence(result)
            assert not marker.exists(), (file, command)
