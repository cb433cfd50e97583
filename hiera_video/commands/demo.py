"""`hiera-video demo`, `demo ava`, `demo instances`: from data to figures, on generated data.

The steps are commands as a user would type them; each is printed and runs in its own process.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hiera_video.data.boxes.files import read_boxes, read_keyframes
from hiera_video.data.boxes.keyframes import detections_of, keyframe_records
from hiera_video.data.boxes.table import read_label_map
from hiera_video.data.instances.masks import mask_library
from hiera_video.demo import actions, motions, shapes
from hiera_video.errors import UserError, message_line
from hiera_video.evaluation.ava import frame_ap
from hiera_video.files import write_json
from hiera_video.runtime.dry_run import in_the_way
from hiera_video.runtime.results import print_json, print_lines, print_planned
from hiera_video.runtime.signals import handling_stops
from hiera_video.settings.tools import DemoAvaSettings, DemoInstancesSettings, DemoSettings

MARKER = "demo.json"  # in a folder that this command made: {"seed": ...}
# More threads do not make so small a model faster, and beside the decoding processes on 2 cores its
# steps took 0.3 to 1.0 s with two, 0.3 to 0.5 s with one.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
KINDS = {DemoAvaSettings: "ava", DemoInstancesSettings: "instances"}  # others: classes
PROTOCOL = "slowfast"  # of the figures that `demo ava` prints
RUNS = {  # of `demo ava`: what the detector sees, and the settings of its training
    "run": ("8 frames around the key frame", []),
    "single_frame": (
        "the key frame alone",
        ["model.name=hiera_tiny_224", "model.num_frames=1", "model.overrides.mask_unit=[1,8,8]"],
    ),
}
Steps = list[tuple[list[str], Path | None]]  # commands, and the reports that evaluations write


def run(config: DemoSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Resumes an earlier call with the same folder; returns the exit code."""
    folder, seed = Path(config.output_dir), config.seed
    kind = KINDS.get(type(config), "classes")
    made = {"seed": seed, "kind": kind}
    if kind == "instances":
        mask_library()  # its first step would miss it after the pictures were drawn
    with in_the_way(config, "output_dir"):
        check_folder(folder, made)
    make_steps = {"ava": detection_steps, "instances": instance_steps}.get(kind, class_steps)
    steps = make_steps(folder, seed)
    if dry_run:
        print_planned((as_typed(command) for command, _ in steps), as_json=as_json)
        return 0

    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MARKER, made)
    if kind == "instances":
        print_progress(f"Writing pictures of shapes, with masks, to {folder}/data")
        shapes.generate(shapes.DemoInstancesData(folder / "data"), seed=seed)
    else:
        print_progress(f"Writing videos of figures, whose classes are motions, to {folder}/data")
        if kind == "ava":
            actions.generate(actions.DemoAvaData(folder / "data"), seed=seed)
        else:
            motions.generate(motions.DemoData(folder / "data"), seed=seed)
    printed = ""
    for command, report in steps:
        if report and report.exists():
            print_progress(f"Evaluated already: {report}")
            continue
        code, printed = call(command, as_json)
        if code:
            return code
    seconds = round(time.monotonic() - started)
    if kind == "ava":
        result, text = detection_result(folder, seed)
    elif kind == "instances":
        result, text = instance_result(folder)
    else:
        result, text = class_result(folder, printed)
    parts = {"data": "data", "training": "run", "weights": "run/weights", "evaluation": "run/eval"}
    parts |= {"overlay": "predicted"} if kind != "classes" else {}
    paths = {name: str(folder / part) for name, part in parts.items()}
    if as_json:
        print_json({"seed": seed, **result, "seconds": seconds, "paths": paths})
        return 0
    listed = [f"  {name:10}  {path}" for name, path in paths.items()]
    print_lines(["", *f"Done in {seconds} s. {text}".split("\n"), *listed])
    return 0


# Classes of whole videos.


def class_steps(folder: Path, seed: int) -> Steps:
    data, run_dir = motions.DemoData(folder / "data"), folder / "run"
    checkpoint = f"checkpoint={run_dir}"
    lists = [f"data.{key}={getattr(data, key)}" for key in ("train", "val", "class_names")]
    train = ["finetune", "--config=demo/finetune", *lists]
    return [
        ([*train, f"run_dir={run_dir}", f"train.seed={seed}"], None),
        (["evaluate", checkpoint, f"data.val={data.val}"], report_of(run_dir)),
        (["predict", str(data.example), checkpoint], None),
    ]


def class_result(folder: Path, prediction: str) -> tuple[dict[str, Any], str]:
    """The accuracy, and with --json the printed prediction: as JSON data, and as text."""
    report = json.loads(report_of(folder / "run").read_text(encoding="utf-8"))
    result = {key: report[key] for key in ("video", "clip", "views", "expected", "decoded")}
    if prediction:
        result["prediction"] = json.loads(prediction)
    top1 = 100 * report["video"]["top1"]
    return result, f"{top1:.1f} % of {report['expected']} videos are right"


# Actions of each figure.


def detection_steps(folder: Path, seed: int) -> Steps:
    data = actions.DemoAvaData(folder / "data")
    root = f"data.root={data.videos}"
    train = ["detect", "train", "--config=demo/ava", root, f"data.label_map={data.label_map}"]
    lists = [root, f"data.val={data.val}", f"data.val_excluded={data.val_excluded}"]
    steps: Steps = []
    for name, (_, settings) in RUNS.items():
        run_dir = folder / name
        how = [f"data.train={data.train}", *settings, f"run_dir={run_dir}", f"train.seed={seed}"]
        evaluate = ["detect", "evaluate", f"checkpoint={run_dir}", *lists]
        steps += [([*train, *how], None), (evaluate, report_of(run_dir))]
    predict = ["detect", "predict", str(data.example), f"checkpoint={folder / 'run'}"]
    predict += [f"boxes={data.val_proposals}", f"output_dir={folder / 'predicted'}"]
    return [*steps, ([*predict, "overwrite=true"], None)]


def detection_result(folder: Path, seed: int) -> tuple[dict[str, Any], str]:
    """The frame mAP of both detectors and of chance: as JSON data, and as text."""
    means, lines = {}, [f"Frame mAP at IoU 0.5 on ground-truth boxes, protocol {PROTOCOL}:"]
    for name, (what, _) in RUNS.items():
        report = json.loads(report_of(folder / name).read_text(encoding="utf-8"))
        means[name] = report["protocols"][PROTOCOL]["mean_ap"]
        lines.append(f"  {100 * means[name]:5.1f} %  {what}")
    means["chance"] = chance(actions.DemoAvaData(folder / "data"), seed)
    lines.append(f"  {100 * means['chance']:5.1f} %  scores at random")
    return {"protocol": PROTOCOL, "boxes": "ground truth", "mean_ap": means}, "\n".join(lines)


def chance(data: actions.DemoAvaData, seed: int) -> float:
    """Frame mAP of random scores for the ground-truth boxes, the mean of 20 draws."""
    truth, labels = read_boxes("ground truth", data.val), read_label_map(data.label_map)
    excluded = read_keyframes(data.val_excluded)
    records = keyframe_records(truth, dict.fromkeys(truth.videos, ""), excluded=excluded)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(20):
        scores = {i: rng.random((len(r.boxes), len(labels.names))) for i, r in enumerate(records)}
        result = frame_ap(
            truth,
            detections_of(records, scores, labels),
            classes=list(labels.names),
            protocol=PROTOCOL,
            excluded=excluded,
        )
        means.append(result.mean_ap)
    return float(np.mean(means))


# Objects in pictures.


def instance_steps(folder: Path, seed: int) -> Steps:
    data, run_dir = shapes.DemoInstancesData(folder / "data"), folder / "run"
    root, checkpoint = f"data.root={data.pictures}", f"checkpoint={run_dir}"
    train = ["instances", "train", "--config=demo/instances", f"data.train={data.train}", root]
    evaluate = ["instances", "evaluate", checkpoint, f"data.val={data.val}", root]
    # So short a training leaves many wrong objects with lower scores.
    predict = ["instances", "predict", str(data.example), checkpoint, "min_score=0.8"]
    return [
        ([*train, f"run_dir={run_dir}", f"train.seed={seed}"], None),
        (evaluate, report_of(run_dir)),
        ([*predict, f"output_dir={folder / 'predicted'}", "overwrite=true"], None),
    ]


def instance_result(folder: Path) -> tuple[dict[str, Any], str]:
    """The AP of boxes and masks: as JSON data, and as text."""
    report = json.loads(report_of(folder / "run").read_text(encoding="utf-8"))
    lines = ["AP on pictures that were not trained on, at IoU 0.5:"]
    for kind, name in (("bbox", "boxes"), ("segm", "masks")):
        lines.append(f"  {100 * report['kinds'][kind]['ap_50']:5.1f} %  {name}")
    return {"kinds": report["kinds"]}, "\n".join(lines)


# All.


def check_folder(folder: Path, made: dict[str, Any]) -> None:
    """Raises UserError for a folder that holds something else than the demo `made`."""
    marker = folder / MARKER
    if not marker.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"output_dir={folder} holds other files: choose another folder")
        return
    try:
        earlier = {"kind": "classes"} | json.loads(marker.read_text(encoding="utf-8"))
        found = f"the demo of seed={earlier['seed']} and kind {earlier['kind']}"
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{marker} is damaged: remove {folder} or choose another") from None
    if earlier != made:
        raise UserError(f"output_dir={folder} holds {found}: choose another folder, or remove it")


def report_of(run_dir: Path) -> Path:
    return run_dir / "eval" / "report.json"


def as_typed(command: list[str]) -> str:
    settings = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
    return shlex.join([*settings, "hiera-video", *command])


def print_progress(line: str) -> None:
    print(f"\n{message_line(line)}", file=sys.stderr, flush=True)


def call(command: list[str], as_json: bool) -> tuple[int, str]:
    """Runs a command; its exit code, and with `as_json` what it printed. Passes signals on."""
    print_progress(f"$ {as_typed(command)}")
    arguments = [sys.executable, "-m", "hiera_video", *command, *(["--json"] if as_json else [])]
    with (
        subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE if as_json else None,
            env=os.environ | ENVIRONMENT,
            text=True,
            encoding="utf-8",
        ) as process,
        handling_stops(lambda number, _: process.send_signal(number)),
    ):
        out, _ = process.communicate()
    code = process.returncode
    return (code if code >= 0 else 128 - code), out or ""
