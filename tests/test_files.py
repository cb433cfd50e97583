"""Files and folders appear under their names whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hiera_video
from hiera_video import files
from hiera_video.errors import OutputError, UserError
from hiera_video.files import (
    MAX_LINE,
    _remove_left_in,
    append_jsonl,
    finite_or_none,
    load_json,
    locked,
    make_folder,
    make_writable_folder,
    own_or_shipped,
    read_bytes,
    read_text,
    remove_unfinished,
    replacing,
    replacing_all,
    write_csv,
    write_json,
    write_text,
)
from hiera_video.runtime.results import print_result
from tests.conftest import remove_deep

SOURCES = sorted(Path(hiera_video.__file__).parent.rglob("*.py"))


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Reading a pipe would wait until somebody writes, a device may never end."""
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("pipe.txt", "link.txt", "socket", "/dev/zero", ""):
            with pytest.raises(UserError, match=rf"{name}: a folder, a pipe or a device; expected"):
                read_text(tmp_path / name, UserError)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/{name}: ")):
        read_bytes(tmp_path / name, UserError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\r\nb\n\xe4 c", r"x\.txt:3: not UTF-8 text \(byte 5\); save it as UTF-8"),
        (b"a\n" + b"b" * (MAX_LINE + 1), r"x\.txt:2: a line of 1,048,577 characters; allowed"),
        (b"b" * 3_000_000, r"x\.txt: larger than 2,000,000 bytes"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_text_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_text(tmp_path / "x.txt", UserError, 2_000_000)


def test_text_is_read_without_mark_and_with_plain_line_ends(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n" + b"d" * MAX_LINE)
    assert read_text(tmp_path / "x.txt", UserError) == "a\nb\nc\n" + "d" * MAX_LINE
    (tmp_path / "x.json").write_bytes(b'"' + b"d" * MAX_LINE + b'"')
    assert len(read_text(tmp_path / "x.json", UserError)) == MAX_LINE + 2


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "[NaN]", "-Infinity", "[1,\n2,", "1 2"],
    ids=lambda value: repr(value)[:60],
)
def test_json_that_cannot_be_used_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^list\.json.*: not (usable )?JSON \(.*\)") as raised:
        load_json(text, "list.json", UserError)
    assert "\n" not in str(raised.value)


def test_a_tilde_may_begin_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~$names.txt").touch()
    assert own_or_shipped("~$names.txt") == Path("~$names.txt")
    assert own_or_shipped("~/x") == Path.home() / "x"


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


def test_a_folder_that_was_being_replaced_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process leaves it that is killed after it has moved the old folder out of the way."""
    old = tmp_path / "weights"
    old.mkdir()
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: path == old and rename(path, to))
    monkeypatch.setattr(files, "_remove", lambda _: None)
    with replacing(old) as part:
        part.mkdir()
    monkeypatch.undo()
    assert len([*tmp_path.iterdir()]) == 2
    remove_unfinished(tmp_path, deep=False)
    assert not [*tmp_path.iterdir()]


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


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_error_of_writing_names_the_file(tmp_path, files_up_to, is_folder):
    """Not the hidden one, whatever wrote it, and not a file within a folder."""
    path = tmp_path / "a"

    def write() -> None:
        with replacing(path) as part:
            if is_folder:
                part.mkdir()
                write_text(part / "b", "content")
            else:
                part.write_text("content")

    with files_up_to(3), pytest.raises(OutputError) as raised:
        write()
    assert str(raised.value) == (
        f"{path} cannot be written (File too large): make room, and run the same command again"
    )
    assert raised.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match=f"^{tmp_path}/c/a cannot be written .*make it writable"):
        write_text(tmp_path / "c" / "a", "")


def test_an_error_of_reading_is_not_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"), replacing(tmp_path / "a"):
        (tmp_path / "missing").read_text()


def test_a_line_that_cannot_be_appended(tmp_path, files_up_to):
    path = tmp_path / "a.jsonl"
    append_jsonl(path, {"loss": 0.5})
    with files_up_to(15), pytest.raises(OutputError, match=f"^{path} cannot be written"):
        append_jsonl(path, {"loss": 0.25})


def write_and_die(path: Path, parts: int) -> None:
    """Kills itself in the middle of writing, or of replacing a folder."""
    with replacing(path) as part:
        part.mkdir()
        (part / "b").touch()
        if parts == 2:
            os.rename(path, part.with_suffix(".old.part"))
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("parts", [1, 2])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path, parts):
    """What it was about to replace comes back."""
    path = tmp_path / "a.b"
    with replacing(path) as part:
        part.mkdir()
    process = multiprocessing.get_context("fork").Process(target=write_and_die, args=(path, parts))
    process.start()
    process.join()
    found = [p.name for p in tmp_path.glob(".*")]
    assert len(found) == parts, "nothing was left"
    (unfinished,) = (p for p in tmp_path.glob(".*.part") if ".old" not in p.name)
    alive = tmp_path / unfinished.name.replace(f".{process.pid}-", f".{os.getppid()}-")
    elsewhere = tmp_path / re.sub(r"-[0-9a-f]+", "-00000000", unfinished.name)
    mine = tmp_path / ".a.b.part"
    for other in (alive, elsewhere, mine):
        other.touch()
    _remove_left_in.cache_clear()  # as in a new process
    write_text(tmp_path / "c", "")
    left = {alive.name, elsewhere.name, mine.name}
    assert {p.name for p in tmp_path.iterdir()} == left | {"a.b", "c"}
    assert not list(path.iterdir())


def test_temporary_files_of_a_killed_process_are_removed_by_the_next(tmp_path):
    def run(end: str) -> subprocess.CompletedProcess[str]:
        code = f"import os; from hiera_video.files import temporary_folder as f; f(); {end}"
        environment = os.environ | {
            "TMPDIR": str(tmp_path),
            "PYTHONPATH": str(SOURCES[0].parents[1]),
        }
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )

    (tmp_path / "pymp-other").mkdir()  # of another program
    killed = "(f() / 'video').touch(); os.kill(os.getpid(), 9)"
    for _ in range(2):
        assert run(killed).returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 2
    assert len(list(tmp_path.glob("pymp-*/*.mark"))) == 1
    ended = run("f()")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [p.name for p in tmp_path.iterdir()] == ["pymp-other"]


def test_files_that_belong_together_appear_together(tmp_path):
    paths = {name: tmp_path / name for name in ("a", "b")}

    def write(second: str | None) -> None:
        with replacing_all(paths) as parts:
            write_text(parts["a"], "x")
            if second is None:
                raise OutputError(errno.ENOSPC, "No space left on device", "parquet")
            write_text(parts["b"], second)

    for found in ([], ["a", "b"]):
        with pytest.raises(OutputError, match="parquet cannot be written"):
            write(None)
        assert sorted(p.name for p in tmp_path.iterdir()) == found
        write("y")
    assert [path.read_text() for path in paths.values()] == ["x", "y"]


def test_folders_of_any_depth(tmp_path: Path, deep_folder: Path) -> None:
    for name in (".a.npz.7.part", "a.npz"):
        (deep_folder / name).touch()
    remove_unfinished(tmp_path, deep=True)
    assert [path.name for path in deep_folder.iterdir()] == ["a.npz"]


def test_a_folder_below_missing_ones(tmp_path: Path) -> None:
    deep = tmp_path / "/".join("e" * 1100)
    make_folder(deep)
    make_folder(deep)
    assert deep.is_dir()
    remove_deep(deep, 1100)


def test_names_that_are_not_utf8_are_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xc3\x84\x1b.mp4")
    write_json(tmp_path / "a.json", {name: name})
    append_jsonl(tmp_path / "b.jsonl", {name: name})
    for file in ("a.json", "b.jsonl"):
        assert json.loads((tmp_path / file).read_text("utf-8")) == {name: name}
    write_csv(tmp_path / "c.csv", [[name]])
    write_text(tmp_path / "c.txt", name)
    for file in ("c.csv", "c.txt"):
        assert (tmp_path / file).read_text("utf-8").strip() == "\\udcffÄ\x1b.mp4"


def test_printed_json_is_exact_and_printed_lines_are_safe(capsys: pytest.CaptureFixture) -> None:
    record = {"path": os.fsdecode(b"\xff\xc3\x84\x1b\n\x7f.mp4")}
    print_result(record, [record["path"], "ä"], as_json=True)
    assert json.loads(capsys.readouterr().out) == record
    print_result(record, [record["path"], "ä"], as_json=False)
    assert capsys.readouterr().out == "\\udcffÄ\\x1b\\n\\x7f.mp4\nä\n"


def test_one_place_prints_results() -> None:
    prints = re.compile(r"(?<![\w\"'.])print\((?!.*file=sys\.stderr)")
    users = [path.name for path in SOURCES if prints.search(path.read_text(encoding="utf-8"))]
    assert users == ["main.py", "results.py"]


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


def test_containers_of_one_machine_do_not_take_each_other_for_dead(monkeypatch, tmp_path):
    """They may share its name and a folder, and count their processes each for itself."""
    other = subprocess.Popen([sys.executable, "-c", ""])
    other.wait()  # a number that no process here has
    own = files._this_process().split("-")[1]
    monkeypatch.setattr(os, "readlink", lambda _: "pid:[1]")
    foreign = files._this_process().split("-")[1]
    monkeypatch.undo()
    assert foreign != own
    assert not files._is_left_over(tmp_path, f"{other.pid}-{foreign}")
    assert files._is_left_over(tmp_path, f"{other.pid}-{own}")
