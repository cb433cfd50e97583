"""NVDEC against PyAV: the same positions, colours within the stated bound."""

from __future__ import annotations

import numpy as np
import pytest

from hiera_video import open_video
from hiera_video.video.backends.torchcodec_cuda import TOLERANCE
from tests.video.striped_video import make_striped_video, read_number

pytestmark = pytest.mark.gpu
torchcodec = pytest.importorskip("torchcodec", exc_type=(ImportError, RuntimeError, OSError))

NUM_FRAMES, SIZE = 60, (144, 192)  # NVDEC has least sizes
UNEVEN_PTS = np.cumsum(np.random.default_rng(0).integers(10, 90, NUM_FRAMES)).tolist()
FILES = {
    "b_frames": ("b.mp4", {"options": {"bf": "3", "g": "20"}}),
    "one_key_frame": ("k.mp4", {"options": {"bf": "2", "g": "250"}}),
    "variable_rate": ("v.mp4", {"pts": UNEVEN_PTS, "options": {"bf": "5", "g": "24"}}),
    "mkv": ("n.mkv", {"options": {"bf": "3", "g": "20"}}),
    "hevc": ("h.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=15"}}),
    "vp9": ("v.webm", {"codec": "libvpx-vp9", "options": {"g": "20", "speed": "8"}}),
    "rotated": ("r.mp4", {"rotation": 90, "options": {"bf": "3", "g": "20"}}),
}


@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_of_pyav_within_the_bound(tmp_path, name):
    file, how = FILES[name]
    path = make_striped_video(tmp_path / file, NUM_FRAMES, SIZE, **how)
    with open_video(path) as exact:
        expected = exact.frames(range(NUM_FRAMES))
        times = exact.frame_times_sec
    rng = np.random.default_rng(0)
    orders = [np.arange(NUM_FRAMES), rng.permutation(NUM_FRAMES), np.array([37, 2, 2, 58])]
    for indices in orders:
        with open_video(path, "torchcodec-cuda") as video:
            frames = video.frames(indices)
            assert video.backend == "torchcodec-cuda"
            assert np.array_equal(video.frame_times_sec, times)
        assert frames.shape == expected[indices].shape
        assert [read_number(frame) for frame in frames] == indices.tolist()
        differences = np.abs(frames.astype(np.int16) - expected[indices]).mean(axis=(1, 2, 3))
        assert differences.max() <= TOLERANCE, differences
