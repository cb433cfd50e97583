"""Progress where stderr is no terminal."""

import logging
import sys

import pytest

from hiera_video.runtime import progress
from hiera_video.runtime.progress import Progress


@pytest.fixture
def logged(monkeypatch, caplog):
    """The log, and a clock that a test sets; stderr of tests is no terminal."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.logger, "handlers", [caplog.handler])
    monkeypatch.setattr(progress.logger, "propagate", False)
    monkeypatch.setattr(progress.logger, "level", logging.INFO)
    return caplog, now


def test_a_line_now_and_then(logged, capsys):
    caplog, now = logged
    for number in Progress(range(100), unit="video"):
        now[0] = 1.0 * number
    # Every 30 s, after 31, 61 and 91 videos: one was done when the clock stood at 0.
    assert [r.getMessage() for r in caplog.records] == [
        "videos: 31 of 100, 01:06 left",
        "videos: 61 of 100, 00:38 left",
        "videos: 91 of 100, 00:08 left",
    ]
    assert capsys.readouterr().err == ""


def test_short_work_and_other_processes_say_nothing(logged, capsys):
    caplog, now = logged
    with Progress(total=3, unit="video") as bar:
        bar.update()
    with Progress(total=3, unit="video", enabled=False) as bar:
        now[0] = 100.0
        bar.update()
    assert not caplog.records
    assert capsys.readouterr().err == ""


def test_without_a_total_and_with_a_note(logged):
    caplog, now = logged
    with Progress(unit="video") as bar:
        now[0] = 40.0
        bar.set_postfix_str("2 failed", refresh=False)
        bar.update(7)
    assert [r.getMessage() for r in caplog.records] == ["videos: 7, 2 failed"]


def test_a_bar_on_a_terminal(logged, monkeypatch, capsys):
    caplog, now = logged
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(total=3, unit="video") as bar:
        now[0] = 40.0
        bar.update(3)
    assert "3/3" in capsys.readouterr().err
    assert not caplog.records
