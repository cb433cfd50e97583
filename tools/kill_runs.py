"""Kills runs at random moments, and compares what they leave with what undisturbed runs leave.

    python tools/kill_runs.py [--command finetune extract ...] [--kills 30] [--seed 0]
        [--keep FOLDER]

Each command runs on small generated videos, some of which cannot be read: once undisturbed, then in
another folder, where it is killed and given again until it ends. If kills are left then, they go to
a run in a third folder, and so on. A fifth of the kills come while the command starts, the others
at any time after the first step or video of that start; half of those wait for a moment at which a
file is being written. They are

* SIGKILL to the main process, or to all processes of the run;
* SIGKILL to the fork server, which the run must survive;
* SIGTERM to the main process, or SIGHUP to all processes.

A run must end with the exit code of the undisturbed one and, bit for bit, with its files, except
for logs, times, durations and earlier checkpoints. It may leave nothing else, neither unfinished
files nor processes.

Then decoding processes are killed in runs of their own. The video that such a process reads is a
recorded failure, so that these runs are not compared: each must end by itself, without more lost
videos than kills.

Prints a Markdown table: kills by kind, by what the run did at that moment, and by the steps or
videos that were done by then; the starts it took; killed decoding processes and lost videos; what
differs; seconds. Exits with 1 if anything differs or fails. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from hiera_video import create_model, load_features, save_model
from hiera_video.demo import actions, motions
from hiera_video.files import json_text

NAME = "hiera_tiny_16x224"
SMALL = {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 1, 1]}
NUM_FRAMES, SIDE_PX = 4, 32
OUT = "out"  # the output of a run, in its own working folder: no file names that folder

START_SHARE = 0.2  # of the kills
WRITING_SHARE = 0.5  # of the later kills
WORK_SHARE = 0.5  # of the time that an undisturbed run works: the latest kill after it began
DECODING_SHARE = 0.2  # killed decoding processes for each other kill
LIMIT_SEC = 100  # to begin the work, and to end; shorter than a decoding process may hang
LEFT_SEC = 30  # in which the other processes end after the main one

DEADLY = {  # signal, whether it goes to all processes, exit codes of a process that it ends
    "KILL main": (signal.SIGKILL, False, {-9}),
    "KILL all": (signal.SIGKILL, True, {-9}),
    "TERM main": (signal.SIGTERM, False, {-15, 143}),
    "HUP all": (signal.SIGHUP, True, {-1, 143}),
}
FORK_SERVER = "KILL fork server"
VARYING = {  # keys in JSON files
    *("starts", "seconds", "step_sec", "data_sec", "checkpoint_sec", "val_sec"),
}
NOT_COMPARED = {"train.log", "tb", ".lock"}  # names

COLUMNS = (
    "command",
    "kills",
    "by kind",
    "by phase",
    "by steps or videos done",
    "starts",
    "runs compared",
    "decoding processes killed / videos lost",
    "differences",
    "seconds",
)


class Problem(Exception):
    """A run that does not go on, does not end, or does not end as it must."""


@dataclass(frozen=True)
class Command:
    """A command whose output is OUT."""

    name: str
    settings: tuple[str, ...]

    def done(self, out: Path) -> list[str]:
        """What is done: "train" for each step, "val" for each evaluation, "video" for each one."""
        if self.name == "extract":
            files = [*(out / "features").rglob("*.npz"), *(out / "failed").rglob("*.json")]
            return ["video" for file in files if not file.name.startswith(".")]
        metrics = out / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        return [json.loads(line)["kind"] for line in lines if line.endswith("\n")]


@dataclass(frozen=True)
class Whole:
    """An undisturbed run."""

    start_sec: float  # until its first step or video is done
    work_sec: float  # from there to its end
    code: int
    done: list[str]
    results: dict[str, Any]  # by name of the file


@dataclass(frozen=True)
class Kill:
    kind: str
    phase: str
    num_done: int  # steps or videos


@dataclass
class Record:
    """What happened to the runs of a command."""

    kills: list[Kill] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)  # of processes, one for each start
    num_compared: int = 0  # runs
    num_decoding: int = 0  # killed processes
    num_lost: int = 0  # videos with them
    problems: list[str] = field(default_factory=list)


class Run:
    """One start of a command, whose messages go to `log`."""

    def __init__(self, command: Command, out: Path, log: Path, process: subprocess.Popen) -> None:
        self.command, self.out, self.log, self.process = command, out, log, process
        self.started, self._before = time.monotonic(), command.done(out)

    @property
    def works(self) -> bool:
        """Whether this start has done a step or a video."""
        if self.command.name == "extract":
            return self.command.done(self.out) != self._before
        return "  loss " in self.log.read_text(errors="replace")  # its first step is logged

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ends_before_work(self) -> bool:
        """Waits until it works; whether it ended instead."""
        while not self.works:
            if self.ends_within(0.005):
                return True
            if time.monotonic() > self.started + LIMIT_SEC:
                raise Problem(f"it does not begin its work in {LIMIT_SEC} s")
        return False

    @property
    def writes(self) -> bool:
        """Whether it is writing a file that does not have its name yet."""
        names = [name for _, *lists in os.walk(self.out) for name in (*lists[0], *lists[1])]
        return any(fnmatch(name, f".*.{self.process.pid}-*.part") for name in names)

    def ends_before_writing(self, seconds: float) -> bool:
        """Waits until it writes, but not for long; whether it ended instead."""
        deadline = time.monotonic() + seconds
        while not self.writes and time.monotonic() < deadline:
            if self.process.poll() is not None:
                return True
        return False

    def end(self, expected: set[int]) -> int:
        """Waits for its exit code."""
        if not self.ends_within(LIMIT_SEC):
            raise Problem(f"it does not end in {LIMIT_SEC} s")
        code, seconds = self.process.returncode, time.monotonic() - self.started
        print(f"{self.log}: exit code {code} after {seconds:.1f} s", file=sys.stderr, flush=True)
        if code not in expected:
            print(self.log.read_text(errors="replace"), file=sys.stderr)
            raise Problem(f"exit code {code}, not {' or '.join(map(str, sorted(expected)))}")
        return code

    def now(self, kind: str, whole: Whole) -> Kill:
        """A kill at this moment."""
        done = self.command.done(self.out)
        num_done = len(done) - done.count("val")
        if not self.works:
            phase = "start"
        elif self.writes:
            phase = "writing"
        elif num_done == len(whole.done) - whole.done.count("val"):
            phase = "end"
        else:
            is_next = whole.done[len(done) : len(done) + 1] == ["val"]
            phase = "evaluation" if is_next else "work"
        return Kill(kind, phase, num_done)


@contextlib.contextmanager
def started(command: Command, folder: Path, record: Record) -> Iterator[Run]:
    """Gives the command in a working folder, in a new group of processes."""
    arguments = [sys.executable, "-m", "hiera_video", *command.name.split(), *command.settings]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"start_{len(record.groups)}.log"
    with log.open("w") as file:
        print("$", shlex.join(arguments), file=file, flush=True)
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup ignores it
        )
    record.groups.append(process.pid)
    try:
        yield Run(command, folder / OUT, log, process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def undisturbed(command: Command, folder: Path, record: Record) -> Whole:
    with started(command, folder, record) as run:
        run.ends_before_work()
        began = time.monotonic()
        code = run.end({3})  # done, but some videos failed
        ended = time.monotonic()
    times = began - run.started, ended - began
    return Whole(*times, code, command.done(run.out), results(run.out))


def killed_until_it_ends(
    command: Command,
    folder: Path,
    whole: Whole,
    record: Record,
    *,
    num_kills: int,
    rng: random.Random,
) -> None:
    """Starts a run again and again; fewer than `num_kills` kills end it if it ends before."""
    ended = False
    while not ended:
        with started(command, folder, record) as run:
            expected = {whole.code}
            while len(record.kills) < num_kills and not ends_before(run, whole, rng):
                kind = rng.choice([*DEADLY, FORK_SERVER])
                servers, _ = helpers(run.process.pid)
                if kind == FORK_SERVER and not servers:
                    continue
                kill = run.now(kind, whole)
                record.kills.append(kill)
                print(f"{run.log}: {kill}", file=sys.stderr, flush=True)
                if kind == FORK_SERVER:
                    os.kill(servers[0], signal.SIGKILL)
                    continue
                number, is_for_all, codes = DEADLY[kind]
                (os.killpg if is_for_all else os.kill)(run.process.pid, number)
                expected |= codes
                break
            ended = run.end(expected) == whole.code
    record.num_compared += 1
    record.problems += differences(results(folder / OUT), whole.results)


def ends_before(run: Run, whole: Whole, rng: random.Random) -> bool:
    """Waits for a random moment; whether the run ended before it."""
    if not run.works and rng.random() < START_SHARE:
        return run.ends_within(rng.uniform(0, whole.start_sec))
    work_sec = WORK_SHARE * whole.work_sec
    if run.ends_before_work() or run.ends_within(rng.uniform(0, work_sec)):
        return True
    return rng.random() < WRITING_SHARE and run.ends_before_writing(work_sec)


def survives(
    command: Command,
    folder: Path,
    whole: Whole,
    record: Record,
    *,
    num_kills: int,
    rng: random.Random,
) -> None:
    """Kills decoding processes, at most as many as are left of `num_kills`, of one run."""
    with started(command, folder, record) as run:
        while record.num_decoding < num_kills and not ends_before(run, whole, rng):
            _, decoding = helpers(run.process.pid)
            if decoding:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(rng.choice(decoding), signal.SIGKILL)
                    record.num_decoding += 1
        run.end({whole.code})
    failures = (run.out / "failures.jsonl").read_text().splitlines()
    record.num_lost += sum(json.loads(line)["cause"] == "crashed" for line in failures)


def helpers(group: int) -> tuple[list[int], list[int]]:
    """The fork server, if there is one, and the decoding processes of a run."""
    servers, decoding = [], []
    for process, (parent, command) in living(group).items():
        if "multiprocessing.forkserver" in command:
            (servers if parent == group else decoding).append(process)
    return servers, decoding


def living(group: int) -> dict[int, tuple[int, str]]:
    """The processes of a group that have not ended: the parent and the command line of each."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, of, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if int(of) == group and state not in "ZX":
            found[int(folder.name)] = int(parent), command
    return found


def results(out: Path) -> dict[str, Any]:
    """What the files of a run hold, by name, without what varies from run to run."""
    found: dict[str, Any] = {}
    earlier = {path.name for path in sorted(out.glob("checkpoints/step_*"))[:-1]}
    for path in out.rglob("*"):
        name = path.relative_to(out)
        if path.is_dir() or (NOT_COMPARED | earlier).intersection(name.parts):
            continue
        if path.suffix == ".jsonl":
            found[str(name)] = [steady(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[str(name)] = steady(json.loads(path.read_text()))
        elif path.suffix == ".npz":
            loaded = load_features(path)
            arrays = (loaded.features, loaded.start_sec, loaded.end_sec, loaded.center_sec)
            bits = [(array.dtype, array.shape, array.tobytes()) for array in arrays]
            found[str(name)] = bits, steady(loaded.metadata)
        else:
            found[str(name)] = path.read_bytes()
    return found


def steady(content: Any) -> Any:
    """The content of a JSON file without VARYING."""
    if isinstance(content, dict):
        return {key: steady(value) for key, value in content.items() if key not in VARYING}
    return [steady(value) for value in content] if isinstance(content, list) else content


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    found = [f"{name} is missing" for name in theirs.keys() - ours.keys()]
    found += [f"{name} is left" for name in ours.keys() - theirs.keys()]
    both = ours.keys() & theirs.keys()
    return sorted([*found, *(f"{name} differs" for name in both if ours[name] != theirs[name])])


def check(command: Command, folder: Path, *, num_kills: int, rng: random.Random) -> Record:
    """Kills the runs of a command in folders below this one."""
    record = Record()
    num_decoding = max(1, round(DECODING_SHARE * num_kills))
    try:
        whole = undisturbed(command, folder / "whole", record)
        while len(record.kills) < num_kills:
            run = folder / f"killed_{record.num_compared}"
            killed_until_it_ends(command, run, whole, record, num_kills=num_kills, rng=rng)
        for number in itertools.count():
            run = folder / f"decoding_{number}"
            survives(command, run, whole, record, num_kills=num_decoding, rng=rng)
            if record.num_decoding == num_decoding:
                break
        if record.num_lost > record.num_decoding:
            record.problems.append("more lost videos than killed decoding processes")
    except Problem as problem:
        record.problems.append(str(problem))
    deadline = time.monotonic() + LEFT_SEC
    while left := [process for group in record.groups for process in living(group)]:
        if time.monotonic() > deadline:
            record.problems.append(f"processes {left} are left")
            break
        time.sleep(0.1)
    return record


def row(name: str, record: Record, seconds: float) -> str:
    """A row of the table."""
    kills = record.kills
    cells = [
        name,
        len(kills),
        counted(kill.kind for kill in kills),
        counted(kill.phase for kill in kills),
        counted(kill.num_done for kill in kills),
        len(record.groups),
        record.num_compared,
        f"{record.num_decoding} / {record.num_lost}",
        counted(record.problems) or "none",
        round(seconds),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def counted(values: Iterable[Any]) -> str:
    return ", ".join(f"{value} ({number})" for value, number in sorted(Counter(values).items()))


def commands(folder: Path) -> dict[str, Command]:
    """The commands, and what they need: videos, lists and weights."""
    data = motions.DemoData(folder / "motions")
    motions.generate(data, seed=0, train_scenes=1, val_scenes=1)
    (data.folder / "videos" / "empty.mp4").touch()
    (data.folder / "videos" / "text.mp4").write_text("not a video\n" * 100)
    for file in (data.train, data.val):
        with file.open("a") as lines:
            print("videos/empty.mp4 0", "videos/text.mp4 1", sep="\n", file=lines)

    ava = actions.DemoAvaData(folder / "actions")
    actions.generate(ava, seed=0, train_videos=4, val_videos=4)
    for split in motions.SPLITS:
        (ava.videos / f"{split}_001.mp4").write_text("not a video\n" * 100)

    torch.manual_seed(0)
    size = {"num_frames": NUM_FRAMES, "image_size": SIDE_PX}
    save_model(folder / "weights", create_model(NAME, num_classes=8, **size, **SMALL))

    reading = ("clips.sampling_rate=2", "data.num_workers=1", "device=cpu")
    training = (
        *reading,
        f"model.name={NAME}",
        *(f"model.{key}={value}" for key, value in size.items()),
        f"run_dir={OUT}",
        "optim.lr=1e-2",
        "data.max_failed_frac=0.9",
        "train.warmup_epochs=0",
        "train.global_batch_size=4",
        "train.precision=fp32",
    )
    return {
        command.name: command
        for command in (
            Command(
                "finetune",
                (
                    *training,
                    f"data.train={data.train}",
                    f"data.val={data.val}",
                    f"data.class_names={data.class_names}",
                    "views.num_clips=1",
                    "views.num_crops=1",
                    f"model.overrides={json_text(SMALL)}",
                    "model.drop_path=0.3",
                    "model.head_dropout=0.3",
                    "train.ema_decay=0.9",
                    "train.num_repeats=2",
                    "train.epochs=20",
                    "train.evaluate_every=1",
                ),
            ),
            Command(
                "pretrain",
                (
                    *training,
                    f"data.train={data.train}",
                    "masking.mask_ratio=0.5",
                    f"model.overrides={json_text({**SMALL, 'mask_unit': [1, 4, 4]})}",
                    "model.decoder_heads=2",
                    "model.decoder_dim=16",
                    "model.decoder_depth=1",
                    "train.num_repeats=2",
                    "train.epochs=20",
                ),
            ),
            Command(
                "detect train",
                (
                    *training,
                    f"data.train={ava.train}",
                    f"data.val={ava.val}",
                    f"data.root={ava.videos}",
                    f"data.label_map={ava.label_map}",
                    f"model.overrides={json_text(SMALL)}",
                    "train.epochs=10",
                    "train.evaluate_every=1",
                ),
            ),
            Command(
                "extract",
                (
                    *reading,
                    str(data.folder / "videos"),
                    f"output_dir={OUT}",
                    f"checkpoint={folder / 'weights'}",
                    "windows.clip_stride=2",
                    "batch_size=1",  # windows that share a batch may change the last bit
                ),
            ),
        )
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["finetune", "pretrain", "detect train", "extract"]
    parser.add_argument("--command", nargs="+", choices=names, default=names)
    parser.add_argument("--kills", type=int, default=30, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="decides on moments and kinds")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="new folder for all files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        # What killed processes leave there is removed with it.
        os.environ |= {"OMP_NUM_THREADS": "1", "TMPDIR": temporary}
        folder = (args.keep or Path(temporary, "runs")).resolve()
        folder.mkdir(parents=True)
        known, failed = commands(folder / "data"), False
        print(f"| {' | '.join(COLUMNS)} |")
        print("|---" * len(COLUMNS) + "|", flush=True)
        for name in args.command:
            began = time.monotonic()
            rng = random.Random(f"{args.seed} {name}")
            record = check(known[name], folder / name, num_kills=args.kills, rng=rng)
            failed |= bool(record.problems)
            print(row(name, record, time.monotonic() - began), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
