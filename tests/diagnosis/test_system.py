"""Folders and limits in bad states: each is a line with what to do."""

import os
import tempfile
from collections import namedtuple

import pytest

from hiera_video.diagnosis import system
from hiera_video.diagnosis.findings import Finding, attempt, without_names

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


def disk(monkeypatch, **sizes):
    usage = Usage(*(sizes.get(name, 0) for name in Usage._fields))
    monkeypatch.setattr(system.shutil, "disk_usage", lambda path: usage)


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(monkeypatch, tmp_path):
    (tmp_path / "hub").write_text("a file")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = system.weights()
    assert found.status == "warning"
    assert "cannot be written (Not a directory)" in found.text
    assert "TORCH_HOME" in found.advice


def test_a_folder_without_permission(monkeypatch, tmp_path):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.chdir(tmp_path)
    found = system.outputs()
    assert found.status == "warning"
    assert found.text == "the current folder: cannot be written (Permission denied)"
    assert "output_dir" in found.advice


def test_a_cache_that_is_not_there_yet_is_fine_and_not_made(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "a" / "b"))
    disk(monkeypatch, free=5 * GIB)
    found = system.weights()
    assert (found.status, found.data) == ("ok", {"free_bytes": 5 * GIB})
    assert not list(tmp_path.iterdir())
    disk(monkeypatch, free=2 * GIB)  # the largest weights do not fit
    assert system.weights().status == "warning"


def test_without_a_home_weights_would_go_to_a_folder_called_tilde(monkeypatch):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without an entry in passwd
    found = system.weights()
    assert found.status == "warning"
    assert "set HOME" in found.advice
    assert found.record()["text"].startswith("~/.cache/torch")


@pytest.mark.parametrize(("num_gpus", "status"), [(0, "ok"), (1, "ok"), (8, "warning")])
def test_little_shared_memory_matters_to_several_gpus_only(num_gpus, status, monkeypatch):
    disk(monkeypatch, total=64 << 20)
    found = system.shared_memory(num_gpus)
    assert found.status == status
    assert found.text.startswith("64 MiB; decoding processes do not need it")
    assert ("--shm-size" in found.advice) is (status == "warning")


def test_no_shared_memory_is_fine(tmp_path):
    assert system.shared_memory(0, tmp_path / "none").status == "ok"


def test_limits_of_a_cgroup_are_stated(monkeypatch):
    monkeypatch.setattr(system.machine, "cpu_quota", lambda: 0.5)
    monkeypatch.setattr(system.machine, "memory", lambda: (64 * GIB, 60 * GIB))
    monkeypatch.setattr(system.machine, "memory_limit", lambda: 2 * GIB)
    processor = system.processor()
    assert processor.data["usable"] == 1
    assert "cgroup quota 0.5" in processor.text
    assert system.memory().text == ("64.0 GiB, 60.0 GiB of it available; the cgroup allows 2.0 GiB")
    monkeypatch.setattr(system.machine, "memory", lambda: None)
    assert system.memory().status == "ok"


def test_names_of_the_user_are_left_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anne")
    monkeypatch.setenv("USER", "anne")
    found = Finding("cache", "/home/anne/.cache", advice="see /home/anne")
    assert found.record() == {"status": "ok", "text": "~/.cache", "advice": "see ~"}
    assert (
        without_names("/data/anne/x, /data/annex and anne") == "/data/USER/x, /data/annex and anne"
    )
    monkeypatch.setenv("HOME", "/")
    assert without_names("/tmp/a") == "/tmp/a"


def test_any_error_of_a_check_is_a_finding():
    def check():
        raise RuntimeError("two\nlines")

    found = attempt("it", check, "do that")
    assert (found.status, found.advice) == ("failed", "do that")
    assert found.text.startswith("RuntimeError: two lines (test_system.py:")
