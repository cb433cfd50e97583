"""Decoding processes: what they tell, and what becomes of videos that kill or hang them."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from hiera_video.extraction import workers
from hiera_video.extraction.windows import Crops, DenseWindows
from hiera_video.extraction.workers import DecodeWorkers, Job, Plan, Read, Unreadable, Window
from hiera_video.settings.video import Windowing
from hiera_video.video.clips import ClipSampler
from tests.extraction.bad_readers import open_or_die
from tests.video.striped_video import make_striped_video, read_number

PLAN = Plan(
    DenseWindows(ClipSampler(num_frames=4, sampling_rate=2), Windowing(clip_stride=3)),
    Crops((64, 96), 1, 96),
    4,
    open_or_die,
    deadline_sec=1.0,
)
PLAN = Plan(PLAN.windows, Crops((64, 64), 1, 64), 4, open_or_die, deadline_sec=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(4):
        make_striped_video(folder / f"good{i}.mp4", 20 + 5 * i, (64, 64))
    return folder


def gather(paths, num_workers=2):
    """Windows and the end of each video, by its index."""
    windows = {i: [] for i in range(len(paths))}
    ends = {}
    with DecodeWorkers(PLAN, num_workers) as pool:
        for event in pool.events(Job(i, str(path)) for i, path in enumerate(paths)):
            if isinstance(event, Window):
                assert event.index not in ends
                assert event.n == len(windows[event.index])
                windows[event.index].append(event.views.copy())
            elif event is not None:
                assert event.index not in ends
                ends[event.index] = event
    assert len(ends) == len(paths)
    return windows, ends


@pytest.mark.parametrize("num_workers", [1, 3])
def test_windows_of_several_videos(folder, num_workers):
    windows, ends = gather([folder / f"good{i}.mp4" for i in range(4)], num_workers)
    for i in range(4):
        end = ends[i]
        assert isinstance(end, Read)
        assert len(windows[i]) == len(end.start_sec) == end.facts["num_windows"]
        numbers = [[read_number(frame) for frame in views[0]] for views in windows[i]]
        starts = [n[0] for n in numbers]
        assert starts == list(range(0, 3 * len(starts), 3))
        assert end.facts["video_frames"] == 20 + 5 * i
    assert np.concatenate([w for ws in windows.values() for w in ws]).dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "cause", "told"),
    [
        ("exit.mp4", "crashed", "died with exit code 7"),
        ("abort.mp4", "crashed", "died by SIGABRT"),
        ("hang.mp4", "hung", "no sign of life"),
        ("surprise.mp4", "error", "KeyError: 'surprise'"),
        ("nowhere.mp4", "missing", "no such file"),
    ],
)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_bad_video_costs_itself_alone(folder, monkeypatch, name, cause, told, num_workers):
    monkeypatch.setattr(workers, "GRACE_SEC", 1.0)
    good = [folder / f"good{i}.mp4" for i in range(4)]
    windows, ends = gather([good[0], good[1], folder / name, good[2], good[3]], num_workers)
    bad = ends.pop(2)
    assert isinstance(bad, Unreadable)
    assert bad.cause == cause
    assert told in bad.message
    assert str(folder / name) in bad.message
    assert all(isinstance(end, Read) for end in ends.values())
    assert [len(windows[i]) for i in (0, 1, 3, 4)] == [5, 7, 9, 10]


def test_a_process_killed_in_the_middle_of_a_video(folder):
    make_striped_video(folder / "long.mp4", 200, (64, 64))
    ends, killed = {}, False
    with DecodeWorkers(PLAN, 1) as pool:
        for event in pool.events(
            [Job(0, str(folder / "long.mp4")), Job(1, str(folder / "good0.mp4"))]
        ):
            if isinstance(event, Window) and not killed:
                os.kill(pool._workers[0].process.pid, signal.SIGKILL)
                killed = True
            elif isinstance(event, Read | Unreadable):
                ends[event.index] = event
    assert ends[0].cause == "crashed"
    assert "SIGKILL" in ends[0].message
    assert isinstance(ends[1], Read)


def test_a_missing_library_is_not_a_bad_video(folder):
    with pytest.raises(ImportError, match="pip install something"):
        gather([folder / "no_library.mp4"])


def test_processes_end_when_nobody_listens(folder):
    pool = DecodeWorkers(PLAN, 2)
    with pool:
        events = pool.events(Job(i, str(folder / "good3.mp4")) for i in range(8))
        next(events)
        started = [worker.process for worker in pool._workers]
        assert started
    assert all(not process.is_alive() for process in started)


def test_processes_that_cannot_start(folder):
    """Otherwise every video of a list would be recorded as one that crashes."""

    class Unreadable(Crops):
        def __reduce__(self):
            return os._exit, (3,)  # as it is unpickled

    plan = Plan(PLAN.windows, Unreadable((64, 64), 1, 64), 4, open_or_die, 1.0)
    with pytest.raises(RuntimeError, match="cannot start"), DecodeWorkers(plan, 1) as pool:
        list(pool.events([Job(0, str(folder / "good0.mp4"))]))
