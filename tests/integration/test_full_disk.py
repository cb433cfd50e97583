"""A full disk: one sentence that names the file, and nothing that the next run stumbles over."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from hiera_video.training import checkpoint
from hiera_video.training.run_folder import RunReport

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


def test_a_checkpoint_that_does_not_fit_ends_the_run_at_the_next_step(
    commands, tmp_path, monkeypatch, lines_of, weights_of
):
    """The one before stays, and the run resumes from it."""
    longer = ["train.epochs=4", "train.checkpoint_every=1"]
    commands.train(tmp_path / "whole", *longer)
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        result = commands.run(*commands.finetune(run_dir, *longer))
    assert result.code == 1
    result.reports("step_00000006", "cannot be written (No space left on device): make room")
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_00000003"]
    assert lines_of(run_dir / "metrics.jsonl")[-1]["step"] in (7, 8)  # noticed then
    result = commands.train(run_dir, *longer)
    assert weights_of(run_dir) == weights_of(tmp_path / "whole")
    assert "step_00000003" in result.err


def test_a_checkpoint_that_does_not_fit_ends_all_processes(commands, tmp_path, monkeypatch):
    longer = ["train.epochs=4", "train.checkpoint_every=1"]
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        results = commands.together(*commands.finetune(tmp_path, *longer))
    assert [result.code for result in results] == [1, 1], results
    for result in results:
        result.reports("step_00000006", "cannot be written (No space left on device): make room")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def fill_the_disk(patch) -> None:
    """There is no room for the checkpoint of step 6, which step 7 waits to know."""
    write_tensors, step = checkpoint.write_tensors, RunReport.step

    def writing(path: Path, *args) -> None:
        if "step_00000006" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_tensors(path, *args)

    def stepping(self, done, lap) -> None:
        step(self, done, lap)
        if done.step == 7:
            for thread in threading.enumerate():
                if "_write" in thread.name:
                    thread.join()

    patch.setattr(checkpoint, "write_tensors", writing)
    patch.setattr(RunReport, "step", stepping)
