"""`hiera-video demo` and `demo ava`: the way from videos to figures, on generated data, in minutes.

The steps are the commands that one would type, run as processes of their own and printed before.
Longer than other commands, because it is two: both demos share all but their steps and their end.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hiera_video.data.boxes.files import read_ground_truth, read_keyframes
from hiera_video.data.boxes.keyframes import detections_of, keyframe_records
from hiera_video.data.boxes.table import read_label_map
from hiera_video.demo import actions as demo_ava
from hiera_video.demo import motions as demo
from hiera_video.errors import UserError
from hiera_video.evaluation.ava import frame_ap
from hiera_video.settings.tools import DemoAvaSettings, DemoSettings

MARKER = "demo.json"  # in a folder that this command made: {"seed": ...}
# More threads do not make so small a model faster, and beside the decoding processes on 2 cores its
# steps took 0.3 to 1.0 s with two, 0.3 to 0.5 s with one.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
PROTOCOL = "slowfast"  # of the figures that `demo ava` prints
SINGLE_FRAME = [  # the same model on the key frame alone
    "model.name=hiera_tiny_224",
    "model.num_frames=1",
    "model.overrides.mask_unit=[1,8,8]",
]


def run(
    config: DemoSettings | DemoAvaSettings, *, dry_run: bool = False, as_json: bool = False
) -> int:
    """Goes on where an earlier start in the same folder stopped; returns the exit code."""
    folder = Path(config.output_dir)
    kind = "ava" if isinstance(config, DemoAvaSettings) else "classes"
    check_folder(folder, {"seed": config.seed, "kind": kind})
    steps = (
        detection_steps(folder, config.seed) if kind == "ava" else class_steps(folder, config.seed)
    )
    if dry_run:
        for command in steps:
            print(as_typed(command))
        return 0

    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    marker = json.dumps({"seed": config.seed, "kind": kind})
    (folder / MARKER).write_text(marker + "\n", encoding="utf-8")
    tell(f"Writing videos of moving figures, whose actions motion alone tells, to {folder}/data")
    if kind == "ava":
        demo_ava.generate(demo_ava.DemoAvaData(folder / "data"), seed=config.seed)
    else:
        demo.generate(demo.DemoData(folder / "data"), seed=config.seed)
    printed = ""
    for command in steps:
        report = report_of(command)
        if report and report.exists():
            tell(f"Evaluated already: {report}")
            continue
        code, printed = call(command, as_json)
        if code:
            return code
    tell_end = tell_detection if kind == "ava" else tell_classes
    tell_end(folder, config.seed, printed, round(time.monotonic() - started), as_json)
    return 0


def report_of(command: list[str]) -> Path | None:
    """Where an evaluation writes its report; None for other commands."""
    if "evaluate" not in command:
        return None
    (checkpoint,) = (part for part in command if part.startswith("checkpoint="))
    return Path(checkpoint.partition("=")[2]) / "eval" / "report.json"


# Classes of whole videos.


def class_steps(folder: Path, seed: int) -> list[list[str]]:
    data, run_dir = demo.DemoData(folder / "data"), folder / "run"
    lists = [f"data.{key}={getattr(data, key)}" for key in ("train", "val", "class_names")]
    finetune = ["finetune", "--config=demo/finetune", *lists]
    finetune += [f"run_dir={run_dir}", f"train.seed={seed}"]
    evaluate = ["evaluate", f"checkpoint={run_dir}", f"data.val={data.val}"]
    return [finetune, evaluate, ["predict", str(data.example), f"checkpoint={run_dir}"]]


def tell_classes(folder: Path, seed: int, prediction: str, seconds: int, as_json: bool) -> None:
    report = folder / "run" / "eval" / "report.json"
    accuracy = json.loads(report.read_text(encoding="utf-8"))
    paths = {"data": folder / "data", "training": folder / "run"}
    paths |= {"weights": folder / "run" / "weights", "evaluation": report.parent}
    if as_json:
        result: dict[str, Any] = {"seed": seed}
        result |= {key: accuracy[key] for key in ("video", "clip", "views", "expected", "decoded")}
        result |= {"prediction": json.loads(prediction), "seconds": seconds}
        print(json.dumps(result | {"paths": {name: str(path) for name, path in paths.items()}}))
        return
    top1, expected = 100 * accuracy["video"]["top1"], accuracy["expected"]
    print(f"\nDone in {seconds} s: {top1:.1f} % of {expected} videos are right")
    tell_paths(paths)


# Actions of each figure.


def detection_steps(folder: Path, seed: int) -> list[list[str]]:
    data = demo_ava.DemoAvaData(folder / "data")
    root = f"data.root={data.videos}"
    lists = [root, f"data.label_map={data.label_map}"]
    steps = []
    for name, settings in (("run", []), ("single_frame", SINGLE_FRAME)):
        train = ["detect", "train", "--config=demo/ava", *lists, f"data.train={data.train}"]
        steps.append([*train, *settings, f"run_dir={folder / name}", f"train.seed={seed}"])
        evaluate = ["detect", "evaluate", f"checkpoint={folder / name}", root]
        excluded = f"data.val_excluded={data.val_excluded}"
        steps.append([*evaluate, f"data.val={data.val}", excluded])
    predict = ["detect", "predict", str(data.example), f"checkpoint={folder / 'run'}"]
    predict += [f"boxes={data.val_proposals}", f"output_dir={folder / 'predicted'}"]
    return [*steps, [*predict, "overwrite=true"]]


def tell_detection(folder: Path, seed: int, _: str, seconds: int, as_json: bool) -> None:
    means = {"chance": chance(demo_ava.DemoAvaData(folder / "data"), seed)}
    for name in ("single_frame", "run"):
        report = json.loads((folder / name / "eval" / "report.json").read_text(encoding="utf-8"))
        means[name] = report["protocols"][PROTOCOL]["mean_ap"]
    paths = {"data": folder / "data", "training": folder / "run"}
    paths |= {"evaluation": folder / "run" / "eval", "overlay": folder / "predicted"}
    if as_json:
        result = {"seed": seed, "protocol": PROTOCOL, "boxes": "ground truth", "mean_ap": means}
        places = {name: str(path) for name, path in paths.items()}
        print(json.dumps(result | {"seconds": seconds, "paths": places}))
        return
    print(
        f"\nDone in {seconds} s. Frame mAP at IoU 0.5 on ground-truth boxes, protocol {PROTOCOL}:"
    )
    for name, what in (
        ("run", "8 frames around the key frame"),
        ("single_frame", "the key frame alone"),
        ("chance", "scores at random"),
    ):
        print(f"  {100 * means[name]:5.1f} %  {what}")
    tell_paths(paths)


def chance(data: demo_ava.DemoAvaData, seed: int) -> float:
    """Frame mAP of random scores for the ground-truth boxes, the mean of 20 draws."""
    truth, labels = read_ground_truth(data.val), read_label_map(data.label_map)
    excluded = read_keyframes(data.val_excluded)
    paths = dict.fromkeys(truth.videos, "")
    records = keyframe_records(truth, paths, excluded=excluded)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(20):
        scores = {i: rng.random((len(r.boxes), len(labels.names))) for i, r in enumerate(records)}
        detections = detections_of(records, scores, labels)
        classes = list(labels.names)
        result = frame_ap(truth, detections, classes=classes, protocol=PROTOCOL, excluded=excluded)
        means.append(result.mean_ap)
    return float(np.mean(means))


# Both.


def check_folder(folder: Path, made: dict[str, Any]) -> None:
    """Raises UserError for a folder that holds something else, or another demo or seed."""
    marker = folder / MARKER
    if not marker.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"output_dir={folder} holds other files: choose another folder")
        return
    try:
        earlier = {"kind": "classes"} | json.loads(marker.read_text(encoding="utf-8"))
        seed, kind = earlier["seed"], earlier["kind"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{marker} is damaged: remove {folder} or choose another") from None
    if kind != made["kind"]:
        raise UserError(f"output_dir={folder} holds another demo: choose another folder")
    if seed != made["seed"]:
        raise UserError(
            f"output_dir={folder} holds the demo of seed={seed}: choose another folder, remove "
            "it, or set that seed"
        )


def as_typed(command: list[str]) -> str:
    settings = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
    return shlex.join([*settings, "hiera-video", *command])


def tell(line: str) -> None:
    print(f"\n{line}", file=sys.stderr, flush=True)


def tell_paths(paths: dict[str, Path]) -> None:
    for name, path in paths.items():
        print(f"  {name:10}  {path}")


def call(command: list[str], as_json: bool) -> tuple[int, str]:
    """Runs a command, passing SIGTERM on; its exit code, and with `as_json` what it printed."""
    tell(f"$ {as_typed(command)}")
    arguments = [sys.executable, "-m", "hiera_video", *command, *(["--json"] if as_json else [])]
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE if as_json else None,
        env=os.environ | ENVIRONMENT,
        text=True,
        encoding="utf-8",
    ) as process:
        previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            out, _ = process.communicate()
        finally:
            signal.signal(signal.SIGTERM, previous)
    code = process.returncode
    return (code if code >= 0 else 128 - code), out or ""
