"""Decoders that are broken in several ways: each is a finding."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hiera_video.diagnosis import decoders
from hiera_video.diagnosis.clip import NUM_FRAMES, picture
from hiera_video.diagnosis.decoders import Decoder, check, check_decoder
from hiera_video.diagnosis.libraries import libraries

ROOT = Path(__file__).parents[2]
WORKS = """
import numpy as np
class logging:
    QUIET = 0
    set_level = staticmethod(lambda level: None)
class VideoReader:
    def __init__(self, path, num_threads): pass
    def __len__(self): return 24
    def get_frame_timestamp(self, i): return np.stack([i / 12, (i + 1) / 12], 1)
    def get_batch(self, positions): return np.zeros((len(positions), 64, 96, 3), np.uint8)
"""


def test_each_backend_that_is_installed_decodes_the_clip(backend):
    finding = check_decoder(backend)
    assert finding.status == "ok", finding
    assert finding.data["largest_error"] <= 4


def test_a_backend_that_is_not_installed_is_missing(monkeypatch):
    monkeypatch.setattr(decoders.importlib.util, "find_spec", lambda name: None)
    assert check_decoder("torchcodec").status == "missing"
    assert check_decoder("pyav").status == "failed"


def test_a_backend_for_a_gpu_is_missing_without_one(monkeypatch):
    monkeypatch.setattr(decoders.importlib.util, "find_spec", lambda name: name == "torchcodec")
    monkeypatch.setattr(decoders.torch.cuda, "is_available", lambda: False)
    finding = check_decoder("torchcodec-cuda")
    assert (finding.status, finding.text) == ("missing", "no CUDA device")


@pytest.fixture
def decord(tmp_path, monkeypatch):
    """Replaces decord by a module of this text."""

    def replace(text):
        (tmp_path / "decord.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "decord", raising=False)

    yield replace
    sys.modules.pop("decord", None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise OSError('libavformat.so.58: no such file')", "OSError: libavformat.so.58"),
        ("raise ImportError('undefined symbol: av_x')", "ImportError: undefined symbol: av_x"),
        (WORKS, "frame 0 is decoded differently"),
        (WORKS.replace("return 24", "return 23"), "decord counts 23 frames, not 24"),
    ],
)
def test_a_broken_decoder_fails_with_the_reason(text, reason, decord):
    decord(text)
    finding = check_decoder("decord")
    assert finding.status == "failed"
    assert reason in finding.text
    assert "pyav" in finding.advice


def test_pixels_that_are_wrong_in_pyav_too_are_noticed(monkeypatch):
    """As of a wrong order of colours, in which all decoders agree."""
    shown = [picture(n)[..., ::-1] for n in range(NUM_FRAMES)]
    monkeypatch.setattr(decoders, "picture", lambda number: shown[number])
    finding = check_decoder("pyav")
    assert finding.status == "failed"
    assert "wrong pixels" in finding.text


def test_what_kills_or_stops_a_process_costs_one_check(tmp_path):
    """Native code may do so; every other check is done. In a process of its own."""
    (tmp_path / "decord.py").write_text("import os; os.abort()")
    program = """
from hiera_video.diagnosis.decoders import check_all
if __name__ == "__main__":
    for finding in check_all([])[1]:
        print(finding.status, finding.name, finding.text, sep="|")
"""
    (tmp_path / "program.py").write_text(program)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    pyav, decord, torchcodec, on_gpu = done.stdout.splitlines()
    assert pyav.startswith("ok|pyav")
    assert decord == "failed|decord|the process that tried it died with SIGABRT"
    assert torchcodec.startswith(("ok|", "missing|"))
    assert on_gpu.startswith(("ok|", "missing|"))


def test_a_check_reports_what_it_works_on():
    items = []

    class Report:
        working = staticmethod(items.append)

    (numpy,) = [lib for lib in libraries() if lib.name == "numpy"]
    assert check([numpy], {}, Report()).text == np.__version__
    assert check([Decoder("pyav")], {}, Report()).status == "ok"
    assert items == [0, 0]
