"""`doctor` from end to end: an installation that works, and broken ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch

from tests.integration.conftest import ROOT, environment, run

SECTIONS = ("versions", "libraries", "machine", "devices", "decoders", "self-test")


def start(*arguments: str, path: Path | None = None, cwd: Path, **changes: str):
    """The command in a process of its own, with the modules of a folder before all others."""
    env = environment(**changes)
    env["PYTHONPATH"] = os.pathsep.join([*([str(path)] if path else []), str(ROOT)])
    command = [sys.executable, "-m", "hiera_video", "doctor", *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=180)


def test_an_installation_that_works(tmp_path):
    """As JSON and as text; no network, no file that we write."""
    home = tmp_path / "home"
    home.mkdir()
    forbidden = tmp_path / "modules"
    forbidden.mkdir()
    (forbidden / "sitecustomize.py").write_text(
        "import socket\n"
        "connect = socket.socket.connect\n"
        "def local(self, address):\n"
        "    assert self.family == socket.AF_UNIX, f'connects to {address}'\n"
        "    return connect(self, address)\n"
        "socket.socket.connect = local\n"
    )
    done = start("--json", path=forbidden, cwd=tmp_path, HOME=str(home), USER="anne")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["works"] is True
    assert report["failed"] == []
    assert set(SECTIONS) <= report.keys()
    assert report["libraries"]["torch"]["version"] == metadata.version("torch")
    assert report["libraries"]["av"]["libraries"]["libavcodec"]
    assert report["versions"]["Python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert report["machine"]["processor"]["affinity"] == len(os.sched_getaffinity(0))
    assert report["devices"]["cpu"]["precisions"]["fp32"] == "runs"
    assert report["devices"]["attention"]["kernels"]["fp32"]
    assert report["decoders"]["pyav"]["status"] == "ok"
    losses = report["self-test"]["training step"]["losses"]
    assert losses[1] < losses[0]
    assert report["self_test_sec"] < 60  # some 3 s alone on two cores
    assert report["machine"]["weights cache"]["text"].startswith("~/.cache/torch")
    assert str(home) not in done.stdout
    assert os.uname().nodename not in done.stdout
    assert not (home / ".cache" / "torch").exists()  # onnxruntime leaves a file elsewhere
    assert {path.name for path in tmp_path.iterdir()} == {"home", "modules"}


@pytest.fixture
def quick(monkeypatch):
    """Without the checks that start processes."""
    monkeypatch.setattr("hiera_video.diagnosis.decoders.check_all", lambda found: ([], []))
    monkeypatch.setattr("hiera_video.diagnosis.report._self_test", lambda: [])


def test_text_fits_a_page_and_states_the_sections_in_order(quick):
    done = run("doctor")
    assert done.code == 0
    lines = done.out.splitlines()
    places = [lines.index(name) for name in SECTIONS[:-1]]
    assert places == sorted(places)
    assert max(map(len, lines)) <= 100
    assert lines[-1] == "This installation works."
    assert re.search(rf"torch +{re.escape(torch.__version__)}", done.out)


def test_what_fails_decides_the_exit_code(quick, monkeypatch):
    monkeypatch.setattr("hiera_video.diagnosis.devices.relative_error", lambda logits: 1.0)
    done = run("doctor")
    assert done.code == 1
    assert "  cpu " in done.out
    assert "FAILS: " not in done.out.partition("devices")[0]
    assert done.out.splitlines()[-1] == "Does not work: cpu."


@pytest.mark.parametrize(
    ("module", "error", "failing"),
    [
        ("torch/__init__.py", "OSError: libcudart.so.12", {"torch", "decoders", "self-test"}),
        ("cv2.py", "OSError: libGL.so.1", {"opencv-python-headless", "decoders", "self-test"}),
    ],
)
def test_without_what_everything_needs_all_else_is_reported(module, error, failing, tmp_path):
    path = tmp_path / "modules" / module
    path.parent.mkdir(parents=True)
    kind, _, name = error.partition(": ")
    path.write_text(f"raise {kind}({name!r})\n")
    done = start("--json", path=tmp_path / "modules", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert failing <= set(report["failed"])
    assert error in report["libraries"][min(failing - {"decoders", "self-test"})]["text"]
    assert report["libraries"]["numpy"]["status"] == "ok"
    assert report["machine"]["memory"]["status"] == "ok"


def test_a_dry_run_lists_the_checks_and_runs_none():
    started = time.monotonic()
    done = run("doctor", "--dry-run", "--json")
    assert done.code == 0
    assert json.loads(done.out) == list(SECTIONS)
    assert time.monotonic() - started < 10
