"""Windows read in decoding processes, and what a video that kills or hangs its process costs."""

from __future__ import annotations

import hashlib
import os

import pytest

from hiera_video.data.transforms import Crops
from hiera_video.data.videos.records import VideoRecord
from hiera_video.extraction.reading import Failed, Read, ReadWindows, Window
from hiera_video.extraction.windows import DenseWindows
from hiera_video.runtime import workers
from hiera_video.runtime.workers import Workers
from hiera_video.settings.video import Windowing
from hiera_video.video.clips import ClipSampler
from tests.dying_decoder import open_or_die
from tests.video.striped_video import make_striped_video, read_number

WORK = ReadWindows(
    DenseWindows(ClipSampler(num_frames=4, sampling_rate=2), Windowing(clip_stride=3)),
    Crops((64, 64), 1, 64),
    open_or_die,
    deadline_sec=1.0,
)


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
    with Workers(WORK, num_workers, limit_sec=WORK.deadline_sec) as pool:
        for result in pool.results([VideoRecord(str(path), (), path.name)] for path in paths):
            if result is None:
                continue
            index, value = result
            assert index not in ends
            if isinstance(value, Window):
                assert value.n == len(windows[index])
                windows[index].append(value.views)
            else:
                ends[index] = value
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
        film = folder / f"good{i}.mp4"
        assert end.facts["size_bytes"] == os.path.getsize(film)
        assert end.facts["modified_ns"] == film.stat().st_mtime_ns
        assert end.facts["sha256"] == hashlib.sha256(film.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "cause", "message"),
    [
        ("exit.mp4", "crashed", "died with exit code 7"),
        ("abort.mp4", "crashed", "died with SIGABRT"),
        ("hang.mp4", "hung", "made no progress"),
        ("surprise.mp4", "error", "KeyError: 'surprise'"),
        ("nowhere.mp4", "missing", "no such file"),
    ],
)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_bad_video_costs_itself_alone(folder, monkeypatch, name, cause, message, num_workers):
    monkeypatch.setattr(workers, "GRACE_SEC", 1.0)
    good = [folder / f"good{i}.mp4" for i in range(4)]
    windows, ends = gather([good[0], good[1], folder / name, good[2], good[3]], num_workers)
    bad = ends.pop(2)
    assert isinstance(bad, Failed)
    assert 0 <= bad.seconds < 60
    assert (bad.failure.name, bad.failure.cause) == (name, cause)
    assert message in bad.failure.message
    assert str(folder / name) in bad.failure.message
    assert all(isinstance(end, Read) for end in ends.values())
    assert [len(windows[i]) for i in (0, 1, 3, 4)] == [5, 7, 9, 10]


def test_a_missing_library_is_not_a_bad_video(folder):
    with pytest.raises(ImportError, match="pip install something"):
        gather([folder / "no_library.mp4"])
