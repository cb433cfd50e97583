"""A run that is stopped, however roughly, ends after all as if it had never been stopped."""

import os
import random
import signal
import time
from collections import Counter

import pytest
import yaml

from hiera_video.training import checkpoint

# What may be random in training, all of it.
RANDOM = (
    "train.ema_decay=0.9",
    "train.num_repeats=2",
    "train.epochs=10",  # effective: as many steps
    "augment.mixup=0.8",
    "augment.cutmix=1.0",
    "augment.flip=true",
    "augment.rand_augment_magnitude=7",
    "augment.erasing_prob=0.5",
    "model.drop_path=0.3",
    "model.head_dropout=0.3",
)
NUM_STEPS = 15
LONG = ("train.epochs=5", "train.checkpoint_every=1")  # a checkpoint each third step


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
    overrides = (*LONG, *overrides, "data.num_workers=1")
    commands.train(tmp_path / "whole", *overrides, "data.num_workers=0")  # workers change nothing
    lines = lines_of(tmp_path / "whole" / "metrics.jsonl")
    assert len(lines) == NUM_STEPS

    rng = random.Random(seed)
    broken = tmp_path / "broken"
    for moment in sorted(rng.sample(range(1, NUM_STEPS - 2), 3)):
        process = commands.fork(*commands.finetune(broken, *overrides))
        kill_at(process.pid, broken / "metrics.jsonl", moment, signal.SIGKILL)
        assert commands.exit_code(process) == -signal.SIGKILL
        assert not (broken / "weights").exists()
    commands.train(broken, *overrides)

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
    whole_save = checkpoint.save

    def dying_save(state, *, checkpoint_id, **options):
        whole_save(state, checkpoint_id=checkpoint_id, **options)
        if int(state["step"]) == 6:
            part = next(checkpoint_id.glob("*.distcp"))
            part.write_bytes(part.read_bytes()[:1000])
            (checkpoint_id / ".metadata").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", dying_save)
        process = commands.fork(*commands.finetune(broken, *overrides))
    assert commands.exit_code(process) == -signal.SIGKILL
    names = {path.name for path in (broken / "checkpoints").iterdir()}
    assert names == {"step_00000003", "step_00000006.tmp"}

    commands.train(broken, *overrides)
    assert weights_of(broken) == weights_of(tmp_path / "whole")
    names = {path.name for path in (broken / "checkpoints").iterdir()}
    assert names == {"step_00000009", "step_00000012"}


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_sigterm_saves_and_exits_143(commands, tmp_path, weights_of, lines_of, send):
    """Also where the workers that decode get the signal too, as torchrun and Slurm send it."""
    overrides = (*LONG, "train.checkpoint_every=100", "data.num_workers=2")
    commands.train(tmp_path / "whole", *overrides, "data.num_workers=0")
    broken = tmp_path / "broken"
    process = commands.start(*commands.finetune(broken, *overrides), start_new_session=True)
    kill_at(process.pid, broken / "metrics.jsonl", 5, signal.SIGTERM, send)
    result = commands.finish(process)
    assert result.code == 143, result.err
    result.told("stopped by SIGTERM; saved step")
    (saved,) = (broken / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step_")) == len(lines_of(broken / "metrics.jsonl"))

    commands.train(broken, *overrides)
    assert weights_of(broken) == weights_of(tmp_path / "whole")
    assert_each_step_once(lines_of(broken / "metrics.jsonl"), NUM_STEPS)


def test_ctrl_c_ends_with_130(commands, tmp_path):
    overrides = (*LONG, "data.num_workers=1")
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
    commands.train(tmp_path)
    assert (weights_of(tmp_path), lines_of(tmp_path / "metrics.jsonl")) == before
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names


def test_a_run_of_another_configuration_is_refused(commands, tmp_path, lines_of):
    commands.train(tmp_path)
    config = (tmp_path / "config.yaml").read_bytes()
    changes = ("optim.lr=0.5", "train.epochs=4")
    for options in ((), ("--dry-run",)):
        result = commands.run(*commands.finetune(tmp_path, *changes, *options))
        assert result.code == 2
        result.told("optim.lr: 0.01 -> 0.5", "train.epochs: 3.0 -> 4.0", "overwrite_config=true")
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


def test_a_start_that_failed_leaves_no_run_behind(commands, tmp_path):
    result = commands.run(*commands.finetune(tmp_path, "model.image_size=72"))
    assert result.code == 1
    commands.train(tmp_path, "train.epochs=1")
