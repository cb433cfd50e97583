"""Files and folders appear under their names whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hiera_video
from hiera_video.errors import UserError
from hiera_video.files import (
    append_jsonl,
    finite_or_none,
    locked,
    make_writable_folder,
    replacing,
    write_json,
    write_text,
)
from hiera_video.runtime.results import print_result

SOURCES = sorted(Path(hiera_video.__file__).parent.rglob("*.py"))


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    for content in ("first", "second"):
        with replacing(path) as part:
            (part / "inner").mkdir(parents=True)
            (part / "inner" / content).touch()
    assert [p.name for p in (path / "inner").iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_error_leaves_what_was_there(tmp_path: Path, is_folder: bool) -> None:
    path = tmp_path / "a"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as part:
            if is_folder:
                part.mkdir()
                (part / "b").touch()
            else:
                part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_json_is_readable_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Übung", "values": [1, 2]})
    assert "Übung" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_what_json_cannot_state_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_jsonl(path, {"loss": finite_or_none(math.nan), "lr": finite_or_none(0.5)})
    for value in (math.nan, math.inf):
        for write in (append_jsonl, write_json):
            with pytest.raises(ValueError, match="not JSON compliant"):
                write(path, {"loss": value})
        with pytest.raises(ValueError, match="not JSON compliant"):
            print_result({"loss": value}, "", as_json=True)
    assert path.read_text() == '{"loss": null, "lr": 0.5}\n'


def test_no_other_code_makes_json() -> None:
    tools = sorted((Path(__file__).parents[1] / "tools").rglob("*.py"))
    users = [p.name for p in SOURCES + tools if "json.dump" in p.read_text(encoding="utf-8")]
    assert users == ["files.py"]


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(OSError, match="file"):
        make_writable_folder(tmp_path / "file")
    make_writable_folder(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())


HOLD = """
import sys, time
from pathlib import Path
from hiera_video.files import locked
with locked(Path(sys.argv[1]), "run_dir"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_locked_until_its_holder_dies(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        since = rf"since {time.strftime('%Y-%m-%dT%H')}:\d\d:\d\d"
        name = re.escape(socket.gethostname())
        message = rf"a/run is in use by process {holder.pid} on {name}, {since}.*another run_dir$"
        for _ in range(2):  # asking does not change the answer
            with pytest.raises(UserError, match=message), locked(folder, "run_dir"):
                pass
        holder.kill()
    with locked(folder, "run_dir"):
        assert (folder / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    with locked(folder, "run_dir"):
        pass


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path, "run_dir"):
        pass
    assert f"{tmp_path} cannot be locked (No locks available)" in caplog.text


def test_no_other_code_renames_what_it_wrote() -> None:
    renames = re.compile(
        r"os\.replace|os\.rename|\.rename\(|\b(part|temporary|unfinished)\.replace\("
    )
    users = [path.name for path in SOURCES if renames.search(path.read_text(encoding="utf-8"))]
    assert users == ["files.py", "download.py"]  # which moves a part to the path of `replacing`
