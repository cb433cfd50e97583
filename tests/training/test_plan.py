"""The steps that a dry run takes, and the sentence about them."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from hiera_video.runtime.distributed import Process
from hiera_video.training import plan
from hiera_video.training.plan import MIN_SEC, MIN_STEPS, WARM_UP, Plan, in_words, timed


@pytest.fixture
def clock(monkeypatch):
    """Seconds that steps move on."""
    now = SimpleNamespace(sec=0.0)
    monkeypatch.setattr(plan.time, "perf_counter", lambda: now.sec)
    return now


def steps(clock, number, *, sec, data_sec=0.0, warm_up_sec=30.0):
    for step in range(1, number + 1):
        clock.sec += sec if step > WARM_UP else warm_up_sec
        yield SimpleNamespace(step=step, num_clips=8, data_sec=data_sec, failures=[])


@pytest.mark.parametrize(
    ("sec", "number"), [(10.0, MIN_STEPS), (1.0, round(MIN_SEC)), (0.5, round(2 * MIN_SEC))]
)
def test_enough_steps_and_enough_time(clock, sec, number):
    taken, seconds = timed(steps(clock, 1000, sec=sec))
    assert (len(taken), seconds) == (WARM_UP + number, number * sec)


def test_a_short_run_ends(clock):
    taken, seconds = timed(steps(clock, 4, sec=1.0))
    assert (len(taken), seconds) == (4, 2.0)


def test_the_figures(clock):
    process = Process(0, 1, 1, torch.device("cpu"))
    taken, seconds = timed(steps(clock, 1000, sec=4.0, data_sec=3.0))
    figures = Plan(None, process, 900, 0, None).figures(taken, seconds)
    assert figures == {
        "steps": 5,
        "sec_per_step": 4.0,
        "clips_per_sec": 2.0,
        "steps_left": 900,
        "hours": 1.0,
        "data_share": 0.75,
        "peak_memory": None,
    }
    text = in_words(figures)
    assert text.startswith("5 steps measured: 4 s/step, 2.0 clips/s, 1 hours for 900 steps without")
    assert "75% of the time is waiting for data: data are the limit" in text
    assert ", 1.5 minutes for 900 steps" in in_words(figures | {"hours": 0.025})
    assert in_words(figures | {"data_share": 0.02}).endswith("the device is the limit")
    assert "peak memory 1.50 GiB" in in_words(figures | {"peak_memory": 3 * 2**29})


@pytest.mark.parametrize("number", range(WARM_UP + 1))
def test_no_steps_behind_the_warm_up(clock, number):
    taken, seconds = timed(itertools.islice(steps(clock, 1000, sec=1.0), number))
    assert Plan(None, None, 900, 0, None).figures(taken, seconds) is None
    assert "nothing was measured" in in_words(None)
