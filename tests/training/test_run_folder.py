import json
import math

import pytest
import torch

from hiera_video.data.batches import Failure
from hiera_video.errors import UserError
from hiera_video.runtime.distributed import Process
from hiera_video.runtime.logging import setup_logging
from hiera_video.settings.load import load_settings
from hiera_video.settings.training import PretrainingData, PretrainSettings
from hiera_video.training.loop import StepReport
from hiera_video.training.run_folder import RunReport, check_failures, console_line, start_run
from hiera_video.training.times import Lap, Times

LAP = Lap(0.4)
MAIN = Process(0, 1, 1, torch.device("cpu"))


def done(step=1, num_clips=8, num_failed=0, skipped=False, **changes):
    values = dict(loss=0.5, lr=1e-3, grad_norm=2.0, data_sec=0.1, step_sec=0.4, stop=False)
    values |= {"names": ["a.mp4"], "failures": [], "num_targets": num_clips, "num_dropped": 0}
    values |= changes
    return StepReport(
        step=step, num_clips=num_clips, num_failed=num_failed, skipped=skipped, **values
    )


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_what_lies_beyond_the_checkpoint_is_dropped(tmp_path):
    report = RunReport(tmp_path, MAIN)
    for step in (1, 2, 3):
        report.step(done(step), LAP)
    report.metrics(3, "val", {"top1": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "kind": "tr')  # where SIGKILL came
    resumed = RunReport(tmp_path, MAIN, start_step=2)
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2]
    resumed.step(done(3), LAP)
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3]


@pytest.mark.parametrize(
    "torn",
    [
        '{"step": 2, "name": "ä'.encode()[:-1],  # cut inside of a letter
        b"{}\n",
        b"[]\n",
        b"null\n",
        b'{"step": "2"}\n',
        b'{"step": null}\n',
        bytes(4096),  # what a loss of power may leave
        b"[" * 100_000 + b"\n",
        b'{"step": ' + 5000 * b"9" + b"}\n",
    ],
)
@pytest.mark.parametrize("name", ["metrics.jsonl", "failures.jsonl"])
def test_damaged_lines_are_dropped(tmp_path, caplog, name, torn):
    line = json.dumps({"step": 1, "kind": "val", "name": "\u2028"}, ensure_ascii=False).encode()
    (tmp_path / name).write_bytes(line + b"\n" + torn)
    report = RunReport(tmp_path, MAIN, start_step=2)
    assert not report.has(2, "val")
    assert report.has(1, "val") == (name == "metrics.jsonl")
    assert (tmp_path / name).read_bytes() == line + b"\n"
    assert [m for m in caplog.messages if name in m] == [
        f"{tmp_path / name}: dropped the damaged lines 2"
    ]


def test_a_last_line_that_is_whole_but_for_its_end_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "kind": "train"}')
    RunReport(tmp_path, MAIN, start_step=1).step(done(2), LAP)
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"starts": null}', '{"starts": 3}'])
def test_a_damaged_run_json_is_written_again(tmp_path, caplog, content):
    (tmp_path / "run.json").write_text(content)
    settings = load_settings(PretrainSettings, [], ["data.train=x", "model.decoder_heads=8"])
    start_run(tmp_path, MAIN, settings, {"fingerprint": "a"}, resumes=True)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["data"] == {"fingerprint": "a"}
    assert len(run["starts"]) == 1
    assert "run.json is damaged: it is written again" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize(
    ("taken", "skipped", "is_useless"), [(2, 1, False), (1, 1, True), (0, 1, True), (0, 0, True)]
)
def test_a_run_needs_more_steps_taken_than_skipped(tmp_path, taken, skipped, is_useless):
    """Counted over the starts of a run; a step without any target counts as neither."""
    nan = {"loss": math.nan, "grad_norm": math.nan, "skipped": True}
    kinds = [{}] * taken + [nan] * skipped + [nan | {"num_clips": 0}] * 3
    for step, kind in enumerate(kinds, 1):
        report = RunReport(tmp_path, MAIN, start_step=step - 1)
        report.step(done(step, **kind), LAP)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("not_finite", 0) for line in lines) == skipped
    if is_useless:
        message = rf"{skipped} of {taken + skipped} .*lower optim\.lr" if skipped else "no step was"
        with pytest.raises(UserError, match=message):
            report.check_steps()
    else:
        report.check_steps()


def test_tensorboard_holds_the_same(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = RunReport(tmp_path, MAIN)
    report.step(done(1, loss=0.25), LAP)
    report.metrics(1, "val", {"top1": 0.75})
    report.metrics(2, "val", {"top1": 0.5})
    RunReport(tmp_path, MAIN, start_step=1).metrics(3, "val", {"top1": 0.25})
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("val/top1")] == [(1, 0.75), (3, 0.25)]


def test_other_processes_write_no_metrics_but_their_failures(tmp_path):
    other = RunReport(tmp_path, Process(1, 2, 2, torch.device("cpu")))
    failure = Failure("ä b.mp4", "/x/ä b.mp4", "empty", "/x/ä b.mp4: is empty")
    other.step(done(4, failures=[failure]), LAP)
    assert not (tmp_path / "metrics.jsonl").exists()
    (line,) = (tmp_path / "failures.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line) == {
        "step": 4,
        "name": "ä b.mp4",
        "path": "/x/ä b.mp4",
        "cause": "empty",
        "message": "/x/ä b.mp4: is empty",
    }


def test_console_line():
    """All time that passes counts, and what took it is named unless it took none."""
    cpu, now = torch.device("cpu"), [100.0]
    times = Times(lambda: now[0])

    def step(number, seconds, **values):
        now[0] += seconds
        return done(number, step_sec=seconds, **values), times.lap()

    first, second = step(9, 0.4), step(10, 0.4)
    line = console_line([first, second], 100, cpu, sec_per_step=0.4)
    assert line.endswith("0.40 s/step (step 75%, data 25%)  20.0 clips/s  eta 0:00:36")
    assert line.startswith("step 10/100  loss 0.5000  lr 1.00e-03  grad 2.00  ")
    with times.spent_on("checkpoint"):
        now[0] += 1.0
    with times.spent_on("val"):
        now[0] += 0.25
    with times.spent_on("val"):
        now[0] += 0.25
    (report, lap), third = step(11, 0.5), step(12, 2.0, data_sec=0.0)
    assert lap == Lap(total_sec=2.0, checkpoint_sec=1.0, val_sec=0.5)
    assert third[1] == Lap(total_sec=2.0)
    line = console_line([(report, lap), third], 100, cpu, sec_per_step=3.0)
    shares = "(step 60%, data 2%, checkpoint 25%, val 12%)"
    assert line.endswith(f"2.00 s/step {shares}  4.0 clips/s  eta 0:04:24")
    line = console_line([third], 100, cpu, sec_per_step=3.0)
    assert "2.00 s/step (step 100%)  4.0 clips/s" in line
    assert console_line([third], 100, cpu, sec_per_step=None).endswith("4.0 clips/s")


def test_metrics_name_what_the_run_waited_for_since_the_line_before(tmp_path):
    report = RunReport(tmp_path, MAIN)
    report.step(done(1), Lap(0.4))
    report.step(done(2), Lap(2.0, checkpoint_sec=1.5))
    report.step(done(3, loss_scale=512.0), Lap(2.0, checkpoint_sec=0.5, val_sec=1.0))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    names = ("step_sec", "data_sec", "checkpoint_sec", "val_sec", "loss_scale")
    assert [{name: line[name] for name in names if name in line} for line in lines] == [
        {"step_sec": 0.4, "data_sec": 0.1},
        {"step_sec": 0.4, "data_sec": 0.1, "checkpoint_sec": 1.5},
        {"step_sec": 0.4, "data_sec": 0.1, "checkpoint_sec": 0.5, "val_sec": 1.0}
        | {"loss_scale": 512.0},
    ]


def test_an_overflow_of_float16_is_no_warning(tmp_path, caplog):
    caplog.set_level("INFO", "hiera_video")
    infinite = {"grad_norm": math.inf, "skipped": True}
    RunReport(tmp_path, MAIN).step(done(5, loss_scale=1024.0, **infinite), LAP)
    assert [(r.levelname, r.message) for r in caplog.records if "skipped" in r.message] == [
        (
            "INFO",
            "step 5 skipped: its gradient is too large for float16 with the loss times 1024; the "
            "factor is lowered",
        )
    ]
    RunReport(tmp_path, MAIN).step(done(6, loss_scale=1.0, **infinite), LAP)
    assert caplog.records[-1].levelname == "WARNING"
    assert '"not_finite": 1' in (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]


def test_the_failure_limit_waits_for_a_hundred_videos():
    data = PretrainingData(train="list.csv", max_failed_frac=0.05)
    check_failures(1, 520, 13, data)  # one bad file of a small list, in any number of epochs
    check_failures(5, 1000, 6, data)
    check_failures(50, 1000, 1000, data)  # at the limit, not above
    check_failures(9, 99, 1000, data)  # too few to say
    for failed, read, records in [(51, 1000, 1000), (6, 100, 1000), (6, 26, 13), (2, 2, 2)]:
        with pytest.raises(UserError, match=r"cannot be read.*raise data\.max_failed_frac"):
            check_failures(failed, read, records, data)


def test_messages_go_to_stderr_and_the_log(tmp_path, capsys):
    import logging

    logger = logging.getLogger("hiera_video.somewhere")
    setup_logging(tmp_path / "train.log")
    logger.info("one")
    setup_logging(tmp_path / "train.log")  # a second start appends, and nothing is said twice
    logger.info("two")
    setup_logging(quiet=True)
    logger.info("not written")
    logger.warning("three")
    err = capsys.readouterr().err
    assert [line.split()[-1] for line in err.splitlines()] == ["one", "two", "three"]
    log = (tmp_path / "train.log").read_text()
    assert [line.split()[-1] for line in log.splitlines()] == ["one", "two"]
