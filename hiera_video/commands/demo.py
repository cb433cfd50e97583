"""`hiera-video demo`: the way from videos to predictions, on generated data, in a few minutes.

The steps are the commands that one would type, run as processes of their own and printed before.
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

from hiera_video.config import DemoConfig
from hiera_video.data import demo

MARKER = "demo.json"  # in a folder that this command made: {"seed": ...}
# More threads do not make so small a model faster, and beside the decoding processes on 2 cores its
# steps took 0.3 to 1.0 s with two, 0.3 to 0.5 s with one.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def run(config: DemoConfig, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Goes on where an earlier start in the same folder stopped; returns the exit code."""
    folder = Path(config.output_dir)
    check_folder(folder, config.seed)
    data = demo.DemoData(folder / "data")
    run_dir = folder / "run"
    report = run_dir / "eval" / "report.json"
    lists = [f"data.{key}={getattr(data, key)}" for key in ("train", "val", "class_names")]
    finetune = ["finetune", "--config=demo/finetune", *lists]
    finetune += [f"run_dir={run_dir}", f"train.seed={config.seed}"]
    evaluate = ["evaluate", f"checkpoint={run_dir}", f"data.val={data.val}"]
    predict = ["predict", str(data.example), f"checkpoint={run_dir}"]
    if dry_run:
        for command in (finetune, evaluate, predict):
            print(as_typed(command))
        return 0

    started = time.monotonic()
    tell(f"Writing videos of {len(demo.CLASSES)} classes, told by motion alone, to {data.folder}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(json.dumps({"seed": config.seed}) + "\n", encoding="utf-8")
    demo.generate(data, seed=config.seed)
    prediction = ""
    for command in (finetune, evaluate, predict):
        if command is evaluate and report.exists():
            tell(f"Evaluated already: {report}")
            continue
        code, prediction = call(command, as_json)
        if code:
            return code

    accuracy = json.loads(report.read_text(encoding="utf-8"))
    paths = {"data": data.folder, "training": run_dir}
    paths |= {"weights": run_dir / "weights", "evaluation": report.parent}
    seconds = round(time.monotonic() - started)
    if as_json:
        result: dict[str, Any] = {"seed": config.seed}
        result |= {key: accuracy[key] for key in ("video", "clip", "views", "expected", "decoded")}
        result |= {"prediction": json.loads(prediction), "seconds": seconds}
        print(json.dumps(result | {"paths": {name: str(path) for name, path in paths.items()}}))
    else:
        right = (
            f"{100 * accuracy['video']['top1']:.1f} % of {accuracy['expected']} videos are right"
        )
        print(f"\nDone in {seconds} s: {right}")
        for name, path in paths.items():
            print(f"  {name:10}  {path}")
    return 0


def check_folder(folder: Path, seed: int) -> None:
    """Raises ValueError for a folder that holds something else, or the demo of another seed."""
    marker = folder / MARKER
    if not marker.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"output_dir={folder} holds other files: choose another folder")
        return
    try:
        earlier = json.loads(marker.read_text(encoding="utf-8"))["seed"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{marker} is damaged: remove {folder} or choose another") from None
    if earlier != seed:
        raise ValueError(
            f"output_dir={folder} holds the demo of seed={earlier}: choose another folder, remove "
            "it, or set that seed"
        )


def as_typed(command: list[str]) -> str:
    settings = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
    return shlex.join([*settings, "hiera-video", *command])


def tell(line: str) -> None:
    print(f"\n{line}", file=sys.stderr, flush=True)


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
