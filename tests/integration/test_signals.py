"""A command that is asked to end does so at once, and leaves nothing half-written behind."""

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

COMMANDS = {
    "extract": ["windows.clip_stride=1", "windows.kind=dense"],
    "evaluate": ["views.num_clips=50", "views.batch_size=1"],
}


@pytest.fixture
def temporary():
    """A folder with a short path, as sockets need."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder


@pytest.mark.parametrize(
    ("name", "number"), [("extract", signal.SIGTERM), ("evaluate", signal.SIGHUP)]
)
def test_a_signal_ends_a_command(
    commands, trained, list_of, tmp_path, monkeypatch, temporary, name, number
):
    """Sent to the whole group of processes, as a terminal and Slurm do."""
    rows = []
    for i in range(200):
        video = tmp_path / "videos" / f"{i}.mp4"
        video.parent.mkdir(exist_ok=True)
        video.symlink_to(commands.toy / "val_0.mp4")
        rows.append((video, "left"))
    videos, out = list_of(tmp_path / "list.csv", rows, "path,class_name"), tmp_path / "out"
    monkeypatch.setenv("TMPDIR", temporary)
    given = [f"data.val={videos}"] if name == "evaluate" else [videos]
    process = commands.start(
        name,
        *given,
        f"checkpoint={trained}",
        f"output_dir={out}",
        "data.num_workers=2",
        "device=cpu",
        *COMMANDS[name],
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (out.exists() and (name == "evaluate" or any(out.glob("features/*")))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, number)
    result = commands.finish(process, timeout_sec=20)
    assert result.code == 143, result.out
    result.reports(f"stopped by {number.name}")
    assert not [*Path(temporary).glob("pymp-*")]
    assert [p.name for p in out.rglob(".*")] == [".lock"] * (name == "extract")
    assert not (out / "report.json").exists()
