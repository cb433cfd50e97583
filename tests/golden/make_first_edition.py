"""How `first_edition/` was made: a run, weights and features that commit 8b73b55 wrote.

    python tests/golden/make_first_edition.py FOLDER

The folder is not to be written again by later code: it proves that later code resumes, evaluates
and reads what earlier code wrote. FOLDER must not exist; the files of features contain its path.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
MODEL = (
    "model.name=hiera_tiny_16x224",
    "model.num_frames=8",
    "model.image_size=32",
)
SHAPE = (
    "{embed_dim: 4, num_heads: 1, stages: [1, 1], q_pool: 1, mask_unit_attn: [true, false], "
    "mask_unit: [1, 4, 4]}"
)
LOOP = (
    "train.warmup_epochs=2",
    "train.global_batch_size=4",
    "train.num_repeats=2",
    "train.precision=fp32",
    "train.log_every=10",
    "train.keep_checkpoints=1",
    "clips.sampling_rate=2",
    "data.num_workers=0",
    "device=cpu",
)
FINETUNE = (
    "finetune",
    *MODEL,
    f"model.overrides={SHAPE}",
    "data.train=videos/train.csv",
    "data.val=videos/val.csv",
    "augment.crop_area=[0.4, 1]",
    "augment.rand_augment_magnitude=5",
    "augment.mixup=0.3",
    "augment.label_smoothing=0.05",
    "optim.optimizer=sgd",  # one state a parameter, where AdamW has three: a smaller checkpoint
    "optim.lr=0.2",
    "train.epochs=40",  # as many steps
    "train.ema_decay=0.8",
    "train.evaluate_every=5",  # passes of two steps
    "train.checkpoint_every=5",
    "views.num_clips=2",
    *LOOP,
)
PRETRAIN = (
    "pretrain",
    *MODEL,
    f"model.overrides={SHAPE}",
    "model.decoder_heads=2",
    "model.decoder_dim=8",
    "model.decoder_depth=1",
    "masking.kind=tube",
    "masking.mask_ratio=0.75",
    "data.train=videos/train.csv",
    "optim.lr=1e-2",
    "train.epochs=40",
    *LOOP,
)
DETECT = (
    "detect",
    "train",
    *MODEL,
    f"model.overrides={SHAPE}",
    "model.roi_resolution=3",
    "data.train=videos/train_boxes.csv",
    "data.label_map=videos/actions.txt",
    "clips.target_fps=12",
    "optim.lr=1e-2",
    "train.epochs=30",
    *LOOP,
)
EXTRACT = (
    "extract",
    "checkpoint=classifier",
    "windows.clip_stride=4",
    "data.num_workers=1",
    "batch_size=2",
    "device=cpu",
)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hiera_video", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a killed command's own processes end with it
    )


def run(folder: Path, *arguments: str) -> str:
    """What a command prints."""
    process = start(folder, *arguments)
    out, _ = process.communicate()
    assert process.returncode == 0, (arguments, process.returncode)
    return out


def kill_when(process: subprocess.Popen[str], is_time: Callable[[], bool]) -> None:
    while not is_time():
        assert process.poll() is None, "the command ended before it was to be killed"
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def make_runs(folder: Path) -> None:
    """A run that was killed some steps after a checkpoint, and the weights of three that ended."""
    metrics = folder / "stopped" / "metrics.jsonl"
    process = start(folder, *FINETUNE, "run_dir=stopped")
    kill_when(process, lambda: metrics.exists() and '"step": 23' in metrics.read_text())
    shutil.rmtree(folder / "stopped" / "tb", ignore_errors=True)
    record = folder / "stopped" / "run.json"
    started = json.loads(record.read_text())
    started["starts"][0]["command"][0] = "hiera-video"  # without the place of its installation
    record.write_text(json.dumps(started, indent=2))

    run_dir = folder / "run"
    for command, name in (
        (FINETUNE, "classifier"),
        (PRETRAIN, "autoencoder"),
        (DETECT, "detector"),
    ):
        run(folder, *command, f"run_dir={run_dir.name}")
        (run_dir / "weights").rename(folder / name)
        if command is FINETUNE:  # what the killed run has to end with
            (run_dir / "metrics.jsonl").rename(folder / "classifier_metrics.jsonl")
        shutil.rmtree(run_dir)


def make_features(folder: Path) -> None:
    """All features of val.csv, and what an extraction left that was killed in the middle."""
    run(folder, *EXTRACT, "listed.csv", "output_dir=features")
    stopped = folder / "stopped_features"

    def in_the_middle() -> bool:
        return any(stopped.rglob("*.npz")) and any(stopped.rglob("*.mp4.json"))

    while True:
        command = (*EXTRACT, "listed_with_text.csv", f"output_dir={stopped.name}")
        kill_when(start(folder, *command), in_the_middle)
        if not (stopped / "index.jsonl").exists() and len(list(stopped.rglob("*.npz"))) < 4:
            return
        shutil.rmtree(stopped)


def make_expected(folder: Path) -> None:
    """expected.json: what the commands print and write with the weights."""
    evaluated = json.loads(
        run(
            folder,
            "evaluate",
            "checkpoint=classifier",
            "data.val=videos/val.csv",
            "output_dir=evaluated",
            "device=cpu",
            "--json",
        )
    )
    predicted = run(
        folder, "predict", "videos/val_0.mp4", "checkpoint=classifier", "device=cpu", "--json"
    )
    detected = json.loads(
        run(
            folder,
            "detect",
            "evaluate",
            "checkpoint=detector",
            "data.val=videos/val_boxes.csv",
            "output_dir=detected",
            "device=cpu",
            "--json",
        )
    )
    visualized = run(
        folder,
        "visualize",
        "mae",
        "videos/val_0.mp4",
        "checkpoint=autoencoder",
        "output_dir=visualized",
        "device=cpu",
        "--json",
    )
    run(
        folder,
        "extract",
        "videos/val_0.mp4",
        "checkpoint=autoencoder",
        "output_dir=extracted",
        "device=cpu",
    )
    (features,) = (folder / "extracted").rglob("*.npz")
    for report in (evaluated, detected):
        del report["environment"]
    expected = {
        "evaluate": evaluated,
        "scores": np.load(folder / "evaluated" / "scores.npz")["scores"].tolist(),
        "predict": json.loads(predicted),
        "detect evaluate": detected,
        "detections": (folder / "detected" / "detections.csv").read_text().splitlines(),
        "visualize mae": json.loads(visualized),
        "extract": np.load(features)["features"].tolist(),
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    for name in ("evaluated", "detected", "visualized", "extracted"):
        shutil.rmtree(folder / name)


def main(folder: Path) -> None:
    shutil.copytree(HERE / "videos", folder / "videos")
    (folder / "text.mp4").write_text("not a video\n")
    rows = [f"videos/val_{number}.mp4\n" for number in range(4)]
    (folder / "listed.csv").write_text("".join(["path\n", *rows]))
    (folder / "listed_with_text.csv").write_text("".join(["path\n", "text.mp4\n", *rows]))
    make_runs(folder)
    make_features(folder)
    make_expected(folder)
    shutil.rmtree(folder / "videos")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
