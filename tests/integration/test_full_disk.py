"""A full disk: one sentence that names the file, and nothing that the next run stumbles over."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

OUTPUT = {  # of each command, in its folder; its arguments
    # Without decoding processes, to which the limit would apply as well.
    "evaluate": (
        "eval",
        ["evaluate", "checkpoint=RUN", "data.val=TOY/val.csv", "data.num_workers=0", "device=cpu"],
    ),
    "visualize": ("eval", ["visualize", "mae", "TOY/val_0.mp4", "checkpoint=MAE", "device=cpu"]),
    "attention": (
        "eval",
        ["visualize", "attention", "TOY/val_0.mp4", "checkpoint=RUN", "device=cpu"],
    ),
    "export": ("eval", ["export", "checkpoint=RUN", "format=pt2"]),
    "official": ("w.pth", ["convert", "checkpoint=RUN", "layout=official"]),
    "hiera_video": ("w", ["convert", "checkpoint=RUN", "layout=hiera_video"]),
}


@pytest.fixture(scope="module")
def autoencoder(commands, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mae") / "run"
    result = commands.run(*commands.pretrain(folder, "train.epochs=1"))
    assert result.code == 0, result.err
    return folder


def arguments_of(name, commands, trained, autoencoder, folder) -> list[str]:
    output, arguments = OUTPUT[name]
    key = "output" if "convert" in arguments else "output_dir"
    places = {"RUN": trained, "MAE": autoencoder, "TOY": commands.toy}
    for word, place in places.items():
        arguments = [argument.replace(word, str(place)) for argument in arguments]
    return [*arguments, f"{key}={folder / output}"]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", OUTPUT)
def test_a_file_that_does_not_fit(commands, trained, autoencoder, tmp_path, files_up_to, name):
    arguments = arguments_of(name, commands, trained, autoencoder, tmp_path)
    with files_up_to(300):
        result = commands.run(*arguments)
    assert result.code == 1
    result.reports(str(tmp_path / OUTPUT[name][0]), "cannot be written (File too large): make room")
    assert not files_below(tmp_path)
    result = commands.run(*arguments)
    assert result.code == 0, result.err


@pytest.mark.parametrize("num_written", [1, 2, 3])
def test_an_evaluation_whose_files_do_not_all_fit(
    commands, trained, autoencoder, tmp_path, monkeypatch, num_written
):
    arguments = arguments_of("evaluate", commands, trained, autoencoder, tmp_path)
    left = [num_written]

    def fsync(descriptor: int) -> None:
        left[0] -= stat.S_ISREG(os.fstat(descriptor).st_mode)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        result = commands.run(*arguments)
    assert result.code == 1
    result.reports(str(tmp_path / "eval"), "cannot be written (No space left on device): make room")
    assert not files_below(tmp_path)
    assert commands.run(*arguments).code == 0
    assert len(files_below(tmp_path)) == 4


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_training_ends_if_its_messages_cannot_be_written(commands, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").symlink_to("/dev/full")
    result = commands.run(*commands.finetune(tmp_path / "run"))
    assert result.code == 1
    result.reports("train.log cannot be written (No space left on device): make room")
    assert not (tmp_path / "run" / "weights").exists()


@pytest.mark.parametrize("num_bytes", [500, 4000, 50_000])
def test_training_resumes_when_there_is_room(commands, tmp_path, files_up_to, num_bytes):
    """The configuration does not fit; what grows does not; the checkpoint does not."""
    longer = ["train.epochs=12", "train.checkpoint_every=12"]
    arguments = commands.finetune(tmp_path / "run", *longer)
    with files_up_to(num_bytes):
        result = commands.run(*arguments)
    assert result.code == 1
    result.reports(str(tmp_path / "run"), "cannot be written (File too large): make room")
    assert commands.run(*arguments).code == 0
