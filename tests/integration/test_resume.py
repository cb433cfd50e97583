"""A run that is stopped, however roughly, ends after all as if it had never been stopped."""

import json
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections import Counter

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hiera_video import files
from hiera_video.commands import finetune
from hiera_video.errors import UserError
from hiera_video.files import locked
from hiera_video.models.saving import save_model
from hiera_video.runtime import distributed
from hiera_video.training import checkpoint, run, writer
from hiera_video.training.run_folder import RunReport

# What may be random in training, all of it.
RANDOM = (
    "train.ema_decay=0.9",
    "train.num_repeats=2",
    "train.epochs=20",  # effective: as many steps
    "augment.mixup=0.8",
    "augment.cutmix=1.0",
    "augment.flip=true",
    "augment.rand_augment_magnitude=7",
    "augment.erasing_prob=0.5",
    "model.drop_path=0.3",
    "model.head_dropout=0.3",
)
NUM_STEPS = 30
LONG = ("train.epochs=10", "train.checkpoint_every=1")  # a checkpoint each third step


def kill_at(pid, metrics, num_steps, signal_number, send=os.kill):
    """Sends a signal once so many lines of metrics.jsonl are there."""
    deadline = time.monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < num_steps:
        assert time.monotonic() < deadline, f"never reached step {num_steps}"
        time.sleep(0.002)
    send(pid, signal_number)


def assert_each_step_once(lines, end_step):
    counts = Counter(line["step"] for line in lines if line["kind"] == "train")
    assert counts == Counter(range(1, end_step + 1))


@pytest.mark.parametrize(("overrides", "seed"), [((), 1), (RANDOM, 2)], ids=["plain", "random"])
def test_killed_three_times(commands, tmp_path, weights_of, lines_of, overrides, seed):
    overrides = (*LONG, *overrides)
    commands.train(tmp_path / "whole", *overrides)
    lines = lines_of(tmp_path / "whole" / "metrics.jsonl")
    assert len(lines) == NUM_STEPS

    rng = random.Random(seed)
    broken = tmp_path / "broken"
    for moment in sorted(rng.sample(range(1, NUM_STEPS // 2), 3)):
        process = commands.fork(*commands.finetune(broken, *overrides))
        kill_at(process.pid, broken / "metrics.jsonl", moment, signal.SIGKILL)
        assert commands.exit_code(process) == -signal.SIGKILL
        assert not (broken / "weights").exists()
    commands.train(broken, *overrides, "data.num_workers=2")  # which changes nothing

    assert weights_of(broken) == weights_of(tmp_path / "whole")
    again = lines_of(broken / "metrics.jsonl")
    assert_each_step_once(again, len(lines))
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]
    log = (broken / "train.log").read_text()
    assert log.count("resumed from") in (1, 2, 3)  # a kill may come before the first checkpoint


def test_killed_while_a_checkpoint_is_written(commands, tmp_path, weights_of):
    overrides = ("train.ema_decay=0.9", "train.epochs=4", "train.checkpoint_every=1")
    commands.train(tmp_path / "whole", *overrides)
    broken = tmp_path / "broken"
    whole_save = checkpoint.write_tensors

    def dying_save(path, tensors, metadata):
        whole_save(path, tensors, metadata)
        if ".step_00000006." in str(path):
            os.truncate(path, 1000)
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", dying_save)
        process = commands.fork(*commands.finetune(broken, *overrides))
    assert commands.exit_code(process) == -signal.SIGKILL
    names = {path.name for path in (broken / "checkpoints").iterdir()}
    (unfinished,) = names - {"step_00000003"}
    assert unfinished.startswith(".step_00000006.")

    commands.train(broken, *overrides)
    assert weights_of(broken) == weights_of(tmp_path / "whole")
    names = {path.name for path in (broken / "checkpoints").iterdir()}
    assert names == {"step_00000009", "step_00000012"}


@pytest.mark.parametrize("name", ["config.yaml", "weights"])
def test_killed_while_another_output_is_written(commands, tmp_path, weights_of, name):
    commands.train(tmp_path / "whole", "train.epochs=1")
    broken = tmp_path / "broken"

    def dying(path):
        if path.parent == broken and path.name.startswith(f".{name}."):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_flush", dying)
        process = commands.fork(*commands.finetune(broken, "train.epochs=1"))
    assert commands.exit_code(process) == -signal.SIGKILL
    assert len([*broken.glob(".*.part")]) == 1
    commands.train(broken, "train.epochs=1")
    assert weights_of(broken) == weights_of(tmp_path / "whole")
    assert not [*broken.rglob(".*.part")]


@pytest.mark.parametrize(
    ("send", "number"),
    [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGTERM), (os.killpg, signal.SIGHUP)],
)
def test_a_signal_saves_and_exits_143(commands, tmp_path, weights_of, lines_of, send, number):
    """Also where the workers that decode get the signal too, as torchrun and Slurm send it."""
    overrides = ("train.epochs=20", "train.checkpoint_every=100", "data.num_workers=2")
    commands.train(tmp_path / "whole", *overrides, "data.num_workers=0")
    broken = tmp_path / "broken"
    process = commands.start(*commands.finetune(broken, *overrides), start_new_session=True)
    kill_at(process.pid, broken / "metrics.jsonl", 5, number, send)
    result = commands.finish(process)
    assert result.code == 143, result.err
    result.reports(f"stopped by {number.name}; saved step")
    (saved,) = (broken / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step_")) == len(lines_of(broken / "metrics.jsonl"))

    commands.train(broken, *overrides)
    assert weights_of(broken) == weights_of(tmp_path / "whole")
    assert_each_step_once(lines_of(broken / "metrics.jsonl"), 2 * NUM_STEPS)


def test_ctrl_c_ends_with_130(commands, tmp_path):
    overrides = ("train.epochs=500", "data.num_workers=1")  # ends long after the signal
    process = commands.start(*commands.finetune(tmp_path, *overrides), start_new_session=True)
    kill_at(process.pid, tmp_path / "metrics.jsonl", 3, signal.SIGINT, os.killpg)  # as a terminal
    result = commands.finish(process)
    assert result.code == 130
    assert "interrupted" in result.out.splitlines()
    assert "KeyboardInterrupt" not in result.out


def test_a_finished_run_started_again_changes_nothing(commands, tmp_path, weights_of, lines_of):
    commands.train(tmp_path)
    before = weights_of(tmp_path), lines_of(tmp_path / "metrics.jsonl")
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    commands.train(tmp_path).reports("nothing was left to train", "all 9 steps", "train.epochs")
    for options in ((), ("overwrite_config=true",), ("overwrite_config=true", "--dry-run")):
        result = commands.run(*commands.finetune(tmp_path, "train.epochs=1", *options))
        assert result.code == 2
        result.reports(
            "train.epochs is 1, which are 3 steps of 4 videos", f"{tmp_path} has taken 9"
        )
    assert (weights_of(tmp_path), lines_of(tmp_path / "metrics.jsonl")) == before
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names


def test_a_run_of_another_configuration_is_refused(commands, tmp_path, lines_of):
    commands.train(tmp_path)
    config = (tmp_path / "config.yaml").read_bytes()
    changes = ("optim.lr=0.5", "optim.pos_embed_lr_scale=0.5", "train.epochs=4")
    names = ("optim.lr: 0.01 -> 0.5", "train.epochs: 3.0 -> 4.0", "overwrite_config=true")
    for options in ((), ("--dry-run",)):
        result = commands.run(*commands.finetune(tmp_path, *changes, *options))
        assert result.code == 2
        result.reports(*names, "optim.pos_embed_lr_scale: null -> 0.5")
    assert (tmp_path / "config.yaml").read_bytes() == config

    commands.train(tmp_path, *changes, "overwrite_config=true")
    assert lines_of(tmp_path / "metrics.jsonl")[-1]["step"] == 12  # of 9 at first
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["optim"]["lr"] == 0.5
    commands.train(tmp_path, *changes)  # and from then on it is the run's


def test_what_touches_no_result_may_differ(commands, tmp_path):
    commands.train(tmp_path, "train.epochs=1")
    commands.train(
        tmp_path, "train.epochs=1", "device=auto", "data.num_workers=1", "train.log_every=1"
    )


def test_auto_is_the_precision_that_was_meant_before(commands, tmp_path, monkeypatch):
    """The setting says how the precision is chosen; what counts is which one it was."""
    short = "train.epochs=1"
    monkeypatch.setattr(distributed, "arithmetic", lambda precision, *_: "fp32")
    commands.train(tmp_path, short, "train.precision=fp32")
    result = commands.train(tmp_path, short, "train.precision=auto")
    assert "continues in" not in result.err
    monkeypatch.setattr(distributed, "arithmetic", lambda precision, *_: "bf16")
    result = commands.run(*commands.finetune(tmp_path, short, "train.precision=bf16"))
    assert result.code == 2
    result.reports('train.precision: "fp32" -> "bf16"', "overwrite_config=true")


def test_auto_is_another_precision_on_another_device(commands, tmp_path, monkeypatch):
    automatic = ("train.epochs=1", "train.precision=auto")
    monkeypatch.setattr(distributed, "arithmetic", lambda precision, *_: "bf16")
    commands.train(tmp_path, *automatic)
    monkeypatch.setattr(distributed, "arithmetic", lambda precision, *_: "fp32")
    commands.train(tmp_path, *automatic).reports("trained in bf16 so far, and continues in fp32")


def test_float16_resumes_with_its_scaler(commands, tmp_path, monkeypatch, lines_of, weights_of):
    """On a CPU, where it is slow and therefore refused, the arithmetic is the same."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(distributed, "arithmetic", lambda precision, *_: "fp16")
    settings = dict(init_scale=2.0**28, growth_interval=3)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: scaler(device, **settings))
    overrides = (*LONG, "train.precision=auto", "optim.lr=1.0e-5")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    commands.train(whole, *overrides)
    step = RunReport.step

    def dying(self, done, lap):
        step(self, done, lap)
        if done.step == 10:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunReport, "step", dying)
        process = commands.fork(*commands.finetune(broken, *overrides))
    assert commands.exit_code(process) == -signal.SIGKILL
    assert "resumed from" in commands.train(broken, *overrides).err
    scales = [
        [(line["loss_scale"], line.get("not_finite")) for line in lines_of(run / "metrics.jsonl")]
        for run in (whole, broken)
    ]
    assert scales[0] == scales[1]
    assert scales[0][0] == (2.0**28, 1)  # too large
    assert len(set(scales[0])) > 3
    assert weights_of(broken) == weights_of(whole)


def test_a_start_that_failed_leaves_no_run_behind(commands, tmp_path):
    result = commands.run(*commands.finetune(tmp_path, "model.image_size=72"))
    assert result.code == 2
    commands.train(tmp_path, "train.epochs=1")


def test_a_run_of_other_data_is_refused(commands, list_of, tmp_path, lines_of):
    rows = [(commands.toy / f"train_{i}.mp4", ("left", "right")[i % 2]) for i in range(6)]
    run_dir, train = tmp_path / "run", tmp_path / "train.csv"
    list_of(train, rows, "path,class_name")
    commands.train(run_dir, f"data.train={train}", "train.epochs=1")
    metrics = lines_of(run_dir / "metrics.jsonl")
    relabelled = [*rows[:-1], (rows[-1][0], "left")]
    for changed in (rows[:-1], relabelled, rows[::-1]):
        list_of(train, changed, "path,class_name")
        overrides = (f"data.train={train}", "train.epochs=1")
        result = commands.run(*commands.finetune(run_dir, *overrides))
        assert result.code == 1
        result.reports(f"{run_dir} was trained on other data", str(train))
    assert lines_of(run_dir / "metrics.jsonl") == metrics
    list_of(train, rows, "path,class_name")
    commands.train(run_dir, f"data.train={train}", "train.epochs=1")
    starts = json.loads((run_dir / "run.json").read_text())["starts"]
    assert len(starts) == 2


def test_a_finished_run_without_checkpoints_is_refused(commands, tmp_path, weights_of):
    commands.train(tmp_path, "train.epochs=1")
    before = weights_of(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    result = commands.run(*commands.finetune(tmp_path, "train.epochs=1"))
    assert result.code == 1
    result.reports(f"{tmp_path} holds a finished run without checkpoints")
    assert weights_of(tmp_path) == before


def test_a_new_weight_decay_is_taken(commands, tmp_path, weights_of):
    """Weights that decay by up to a tenth a step end smaller than those that do not."""
    commands.train(tmp_path / "a", "train.epochs=1", "optim.weight_decay=0")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    longer = ("train.epochs=2", "overwrite_config=true")
    norms = []
    for name, decay in (("a", 0), ("b", 10)):
        commands.train(tmp_path / name, *longer, f"optim.weight_decay={decay}")
        state = load_file(tmp_path / name / "weights" / "model.safetensors")
        norms.append(state["blocks.3.mlp.fc1.weight"].norm().item())
    assert norms[1] < 0.95 * norms[0]


def test_killed_between_a_checkpoint_and_its_evaluation(commands, tmp_path, lines_of, weights_of):
    val = commands.toy / "val_bad.csv"
    overrides = (f"data.val={val}", "train.evaluate_every=1", "train.checkpoint_every=1")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert commands.run(*commands.finetune(whole, *overrides)).code == 3
    validate, called = finetune.validate, []

    def dying(*args, **kwargs):
        called.append(args)
        if len(called) == 2:
            while not (broken / "checkpoints" / "step_00000006").exists():
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGKILL)
        return validate(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "validate", dying)
        process = commands.fork(*commands.finetune(broken, *overrides))
    assert commands.exit_code(process) == -signal.SIGKILL
    assert len(lines_of(broken / "metrics.jsonl")) == 6 + 1  # and the evaluation after step 3
    assert commands.run(*commands.finetune(broken, *overrides)).code == 3

    def evaluations(run_dir):
        lines = lines_of(run_dir / "metrics.jsonl")
        return [line for line in lines if line["kind"] == "val"]

    assert [line["step"] for line in evaluations(broken)] == [3, 6, 9]
    assert evaluations(broken) == evaluations(whole)
    assert weights_of(broken) == weights_of(whole)
    assert lines_of(broken / "failures.jsonl") == lines_of(whole / "failures.jsonl")
    assert commands.run(*commands.finetune(broken, *overrides)).code == 3  # nothing to make up for
    assert evaluations(broken) == evaluations(whole)


def test_a_failure_is_listed_once_however_often_it_was_met(commands, list_of, tmp_path, lines_of):
    (tmp_path / "bad.mp4").touch()
    rows = [(commands.toy / f"train_{i}.mp4", i % 2) for i in range(7)]
    train = list_of(tmp_path / "train.csv", [*rows, (tmp_path / "bad.mp4", 1)])
    overrides = (f"data.train={train}", "train.epochs=4", "train.checkpoint_every=1")  # 8 steps
    broken = tmp_path / "broken"
    step = RunReport.step

    def dying(self, done, lap):
        step(self, done, lap)
        if done.failures and done.step > 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunReport, "step", dying)
        process = commands.fork(*commands.finetune(broken, *overrides))
    assert commands.exit_code(process) == -signal.SIGKILL
    assert len(lines_of(broken / "failures.jsonl")) == 2
    assert commands.run(*commands.finetune(broken, *overrides)).code == 3
    steps = [line["step"] for line in lines_of(broken / "failures.jsonl")]
    assert [(step - 1) // 2 for step in steps] == [0, 1, 2, 3]  # once an epoch


# ---- two runs in one folder


def test_a_second_run_in_the_folder_is_refused(commands, tmp_path):
    """As when a job is queued again while its predecessor lives."""
    run_dir = tmp_path / "run"
    holder = f"process {os.getpid()} on {socket.gethostname()}, since 2"
    with locked(run_dir, "run_dir"):
        for result in (
            commands.run(*commands.finetune(run_dir)),
            *commands.together(*commands.finetune(run_dir)),
            commands.run(*commands.pretrain(run_dir)),
        ):
            assert result.code == 1
            result.reports(f"{run_dir} is in use by {holder}", "choose another run_dir")
        assert [path.name for path in run_dir.iterdir()] == [".lock"]
        commands.train(run_dir, "--dry-run")
    commands.train(run_dir, "train.epochs=1")


def test_a_run_holds_its_folder_to_the_end(commands, tmp_path, monkeypatch):
    results = []

    def saving(*args, **options):
        results.append(commands.run(*commands.finetune(tmp_path, "train.epochs=1")))
        return save_model(*args, **options)

    monkeypatch.setattr(run, "save_model", saving)
    commands.train(tmp_path, "train.epochs=1")
    assert [result.code for result in results] == [1]


def test_a_run_that_fails_ends_when_its_checkpoint_is_written(commands, tmp_path, monkeypatch):
    """The lock of the folder is held until then."""
    write, step = writer.write_checkpoint, RunReport.step
    fails, seen = threading.Event(), []

    def slow(*args, **options):
        fails.wait()
        time.sleep(0.3)
        seen.append(commands.start(*commands.finetune(tmp_path)))
        assert commands.finish(seen[0]).code == 1  # in use
        return write(*args, **options)

    def failing(self, done, lap):
        step(self, done, lap)
        if done.step == 4:
            fails.set()
            raise UserError("the fourth step fails")

    monkeypatch.setattr(writer, "write_checkpoint", slow)
    monkeypatch.setattr(RunReport, "step", failing)
    result = commands.run(*commands.finetune(tmp_path, "train.checkpoint_every=1"))
    assert result.code == 1
    result.reports("the fourth step fails")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]
    assert len(seen) == 1


# ---- damaged files


SAVES = ("train.epochs=4", "train.checkpoint_every=1", "train.ema_decay=0.9")  # at 3, 6, 9 and 12


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory):
    """A finished run with the checkpoints of steps 9 and 12."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    commands.train(folder, *SAVES)
    return folder


def test_a_run_goes_back_to_a_whole_checkpoint(commands, tmp_path, whole, weights_of, lines_of):
    """As when the machine lost power while step 12 was written."""
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    shutil.rmtree(run_dir / "weights")
    state = run_dir / "checkpoints" / "step_00000012" / "state.safetensors"
    os.truncate(state, 1000)
    result = commands.train(run_dir, *SAVES)
    result.reports(f"{state} is damaged", "going back to step_00000009")
    assert weights_of(run_dir) == weights_of(whole)
    assert_each_step_once(lines_of(run_dir / "metrics.jsonl"), 12)
    saved = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert saved == ["step_00000009", "step_00000012"]


def test_two_processes_go_back_together(commands, tmp_path, whole, lines_of):
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    states = sorted(run_dir.glob("checkpoints/*/state.safetensors"))
    os.truncate(states[-1], 1000)
    results = commands.together(*commands.finetune(run_dir, *SAVES))
    assert [result.code for result in results] == [0, 0], results
    results[0].reports("going back to step_00000009")
    assert "going back" not in results[1].err
    assert_each_step_once(lines_of(run_dir / "metrics.jsonl"), 12)

    for state in states:
        os.truncate(state, 1000)
    results = commands.together(*commands.finetune(run_dir, *SAVES))
    assert [result.code for result in results] == [1, 1], results
    for result in results:
        result.reports("holds no checkpoint from which", *map(str, states))


@pytest.mark.parametrize("size", [0, 20])
def test_torn_records_do_not_keep_a_run_from_resuming(
    commands, tmp_path, whole, weights_of, lines_of, size
):
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step_00000012")
    for name in ("run.json", "config.yaml"):
        os.truncate(run_dir / name, size)
    with open(run_dir / "metrics.jsonl", "ab") as file:
        file.write('{"step": 12, "ä'.encode()[:-1])
    (run_dir / "failures.jsonl").write_bytes(b"{}\n")
    for option in ("--dry-run", "--json"):
        commands.train(run_dir, *SAVES, option)
    assert weights_of(run_dir) == weights_of(whole)
    assert_each_step_once(lines_of(run_dir / "metrics.jsonl"), 12)
    assert json.loads((run_dir / "run.json").read_text())["data"]["videos"] == 10
    assert (run_dir / "config.yaml").read_text().startswith("data:")
    result = commands.run(*commands.finetune(run_dir, *SAVES, "optim.lr=0.5"))
    assert result.code == 2  # what the run is compared with is in its checkpoints
    result.reports("optim.lr: 0.01 -> 0.5")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_weights_of_a_finished_run_are_written_again(
    commands, tmp_path, whole, weights_of, name
):
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    os.truncate(run_dir / "weights" / name, 100)
    commands.train(run_dir, *SAVES).reports(f"weights/{name} is", "the weights are written again")
    assert weights_of(run_dir) == weights_of(whole)
