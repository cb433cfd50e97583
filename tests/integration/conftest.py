"""Tiny data sets, a tiny model, and ways to start the commands on them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from hiera_video.cli.main import main
from hiera_video.demo.shapes import DemoInstancesData, generate
from hiera_video.models.pretrained import load_model
from hiera_video.models.saving import save_model
from hiera_video.video.writer import write_video
from tests.integration import tiny_instances as tiny
from tests.late_store import LateStore

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # for `from tests.video.striped_video import ...`
    sys.path.insert(0, str(ROOT))
NUM_TRAIN, NUM_VAL = 10, 7
UNREADABLE = 3  # of the validation videos

BASE = """
model:
  name: hiera_tiny_16x224
  num_frames: 4
  image_size: 32
  overrides: {embed_dim: 8, num_heads: 1, stages: [1, 1, 1, 1]}
data: {train: TOY/train.csv, val: null, num_workers: 0}
clips: {sampling_rate: 2}
augment:
  {flip: false, mixup: 0, cutmix: 0, rand_augment_magnitude: null, erasing_prob: 0,
   crop_area: [0.6, 1.0]}
optim: {lr: 1.0e-2}
train:
  {epochs: 3, warmup_epochs: 0, global_batch_size: 4, num_repeats: 1, precision: fp32,
   evaluate_every: null, checkpoint_every: 3, log_every: 100}
views: {num_clips: 2, num_crops: 3, batch_size: 5}
device: cpu
"""

PRETRAIN = """
model:
  name: hiera_tiny_16x224
  num_frames: 4
  image_size: 32
  overrides: {embed_dim: 8, num_heads: 1, stages: [1, 1, 1, 1], mask_unit: [1, 4, 4]}
  decoder_heads: 2
  decoder_dim: 16
  decoder_depth: 1
masking: {mask_ratio: 0.5}
data: {train: TOY/train.csv, num_workers: 0}
clips: {sampling_rate: 2}
optim: {lr: 1.0e-2, clip_grad: null}
train:
  {epochs: 6, warmup_epochs: 0, global_batch_size: 4, num_repeats: 2, precision: fp32,
   log_every: 100}
device: cpu
"""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def reports(self, *parts: str) -> None:
        """Asserts that one line on stderr, and no traceback, says all of `parts`."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if all(part in line for part in parts)]
        assert len(lines) == 1, self.err


def run(*arguments: object) -> Result:
    """A command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), err.getvalue())


def run_forked(*arguments: object) -> Result:
    """A command in a forked process, where the threads of OpenCV do not exist."""
    cv2.setNumThreads(0)
    return run(*arguments)


def run_rank(
    connection: Connection, variables: dict[str, object], arguments: tuple[object, ...]
) -> None:
    """Runs a command with more environment variables, and sends its result."""
    os.environ.update({name: str(value) for name, value in variables.items()})
    connection.send(run_forked(*arguments))


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | changes


def start(*arguments: object, processes: int = 0, **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own, or in several of torchrun's; `err` is joined to `out`."""
    launcher = ["-m", "hiera_video"]
    if processes:
        port = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        launcher = [
            "-m",
            "torch.distributed.run",
            *port,
            f"--nproc_per_node={processes}",
            *launcher,
        ]
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_signals,
        **options,
    )


def heed_signals() -> None:
    """Processes that a shell starts in the background, and all below them, ignore SIGINT; with
    nohup also SIGHUP."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def finish(process: subprocess.Popen[str], timeout_sec: float = 120) -> Result:
    """Waits for a process; a hanging one fails the test."""
    try:
        out, _ = process.communicate(timeout=timeout_sec)
    finally:
        process.kill()
    return Result(process.returncode, out, out)


@dataclass(frozen=True)
class Commands:
    """`run`, `start` and `finish`, and shorthand for the tiny configuration."""

    toy: Path

    def run(self, *arguments: object) -> Result:
        return run(*arguments)

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        return start(*arguments, **options)

    def fork(self, *arguments: object) -> multiprocessing.process.BaseProcess:
        """As `start`, without the seconds that importing torch takes; what it says is lost."""
        context = multiprocessing.get_context("fork")
        process = context.Process(target=run_forked, args=arguments)
        process.start()
        return process

    def together(self, *arguments: object, timeout_sec: float = 120) -> list[Result]:
        """A command in two forked processes, with the variables that torchrun sets; by rank.

        As `start(..., processes=2)`, without the seconds that three imports of torch take.
        """
        store = LateStore()
        context, ranks = multiprocessing.get_context("fork"), []
        for rank in range(2):
            ours, theirs = context.Pipe(duplex=False)
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": store.port}
            variables |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
            process = context.Process(target=run_rank, args=(theirs, variables, arguments))
            process.start()
            theirs.close()
            ranks.append((process, ours))
        store.start()
        deadline = time.monotonic() + timeout_sec
        try:
            results = []
            for process, ours in ranks:
                assert ours.poll(max(0, deadline - time.monotonic())), "the processes hang"
                results.append(ours.recv())
                assert self.exit_code(process) == 0
            return results
        finally:
            for process, _ in ranks:
                process.kill()

    def exit_code(self, process: multiprocessing.process.BaseProcess) -> int:
        """Waits for a forked process; not by join(), which its own workers hold up."""
        deadline = time.monotonic() + 60
        while process.exitcode is None:
            assert time.monotonic() < deadline, "the process does not end"
            time.sleep(0.005)
        return process.exitcode

    def finish(self, process: subprocess.Popen[str], timeout_sec: float = 120) -> Result:
        return finish(process, timeout_sec)

    def finetune(self, run_dir: Path, *overrides: object) -> list[str]:
        """Arguments of a training run."""
        config = self.toy / "base.yaml"
        return ["finetune", "--config", str(config), f"run_dir={run_dir}", *map(str, overrides)]

    def pretrain(self, run_dir: Path, *overrides: object) -> list[str]:
        """Arguments of a pretraining run."""
        config = self.toy / "pretrain.yaml"
        return ["pretrain", "--config", str(config), f"run_dir={run_dir}", *map(str, overrides)]

    def train(self, run_dir: Path, *overrides: object) -> Result:
        """Trains in this process; must succeed."""
        result = run(*self.finetune(run_dir, *overrides))
        assert result.code == 0, result.err
        return result


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the processes that tests start: sums then come out the same to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _no_sync() -> Iterator[None]:
    """Files need not survive a loss of power; waiting for the disk is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def moving_square(rightwards: bool, num_frames: int, seed: int) -> Iterator[np.ndarray]:
    """Frames uint8 [40, 48, 3]: a square on a plain ground of random colour."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(20, 120, 3, dtype=np.uint8)
    for t in range(num_frames):
        frame = np.tile(ground, (40, 48, 1))
        x = 4 + t if rightwards else 32 - t
        frame[14:26, x : x + 12] = 230
        yield frame


def write_list(path: Path, rows: list[tuple[str, object]], header: str = "path,label") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base.yaml, pretrain.yaml, and lists of videos: train.csv (10), val.csv (7),
    val_bad.csv (one of them no video).

    The classes are "left" and "right".
    """
    folder = tmp_path_factory.mktemp("toy")
    names = ("left", "right")
    rows: dict[str, list[tuple[str, object]]] = {"train": [], "val": []}
    for split, number in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        for i in range(number):
            file = f"{split}_{i}.mp4"
            frames = moving_square(bool(i % 2), 14 + i % 3, seed=i)
            write_video(folder / file, frames, 25, options={"preset": "ultrafast", "threads": "1"})
            rows[split].append((file, names[i % 2]))
        write_list(folder / f"{split}.csv", rows[split], "path,class_name")
    (folder / "text.mp4").write_text("not a video\n" * 100)
    rows["val"][UNREADABLE] = ("text.mp4", names[UNREADABLE % 2])
    write_list(folder / "val_bad.csv", rows["val"], "path,class_name")
    (folder / "base.yaml").write_text(BASE.replace("TOY", str(folder)))
    (folder / "pretrain.yaml").write_text(PRETRAIN.replace("TOY", str(folder)))
    return folder


@pytest.fixture(scope="session")
def commands(toy: Path) -> Commands:
    return Commands(toy)


@pytest.fixture(scope="session")
def trained(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder. Do not write into it: give evaluation an output_dir."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    commands.train(folder, f"data.val={commands.toy / 'val.csv'}")
    return folder


@pytest.fixture(scope="session")
def diverged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder in which a single value, a bias of the classifier, is NaN."""
    model, card = load_model(trained)
    with torch.no_grad():
        model.get_parameter("head.projection.bias")[0] = torch.nan
    folder = tmp_path_factory.mktemp("diverged") / "weights"
    save_model(folder, model, card)
    return folder


@pytest.fixture(scope="session")
def lines_of() -> Callable[[Path], list[dict[str, Any]]]:
    """The records of a file of JSON lines."""
    return lambda path: [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="session")
def list_of() -> Callable[..., Path]:
    """Writes a list of (path, label): `list_of(path, rows, header="path,label")`."""
    return write_list


@pytest.fixture(scope="session")
def weights_of() -> Callable[[Path], bytes]:
    """The bytes of the weights that a run left."""
    return lambda run_dir: (run_dir / "weights" / "model.safetensors").read_bytes()


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DemoInstancesData:
    """Generated pictures with masks, and base.yaml."""
    data = DemoInstancesData(tmp_path_factory.mktemp("shapes"))
    generate(data, seed=3, train_pictures=tiny.NUM_TRAIN, val_pictures=tiny.NUM_VAL)
    paths = {"train": str(data.train), "root": str(data.pictures), "num_workers": 0}
    (data.folder / "base.yaml").write_text(yaml.safe_dump(tiny.CONFIG | {"data": paths}))
    return data


@pytest.fixture(scope="session")
def segmenter(
    commands: Commands, shapes: DemoInstancesData, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run folder of `instances train`, with validation. Do not write into it."""
    folder = tmp_path_factory.mktemp("segmenter") / "run"
    result = commands.run(*tiny.training(shapes, folder, f"data.val={shapes.val}", "--json"))
    assert result.code == 0, result.err
    (folder / "printed.json").write_text(result.out)
    return folder


@pytest.fixture(scope="session")
def broken_shapes(shapes: DemoInstancesData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pictures of `shapes`; one of each list is not a picture."""
    folder = tmp_path_factory.mktemp("broken")
    for path in shapes.pictures.iterdir():
        (folder / path.name).symlink_to(path)
    for name in ("val_0001.png", "train_0002.png"):
        (folder / name).unlink()
        (folder / name).write_text("not a picture\n" * 100)
    return folder


@pytest.fixture(scope="session")
def diverged_segmenter(segmenter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of `segmenter` with one bias of the classifier that is not a number."""
    model, card = load_model(segmenter)
    with torch.no_grad():
        model.get_parameter("roi_heads.box_predictor.cls_score.bias")[1] = torch.nan
    folder = tmp_path_factory.mktemp("diverged") / "weights"
    save_model(folder, model, card)
    return folder
