"""Downloads from a server on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from hiera_video import create_model
from hiera_video.models.download import BLOCK_BYTES, download, fetch_file

CONTENT = bytes(range(256)) * (3 * BLOCK_BYTES // 256)


class Server(ThreadingHTTPServer):
    """Serves `content` under any name, and records which bytes were asked for."""

    content = CONTENT
    version: str | None = '"1"'
    takes_ranges = True
    cut: int | None = None  # bytes of an answer after which the connection is closed
    delay_sec = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/weights.v1.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        if self.path.endswith("missing"):
            self.send_error(404)
            return
        start = 0
        if asked and server.takes_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            end, size = len(server.content) - 1, len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(server.content) - start))
        if server.version:
            self.send_header("ETag", server.version)
        self.end_headers()
        time.sleep(server.delay_sec)
        with contextlib.suppress(ConnectionError):  # the client has seen what it wanted
            self.wfile.write(server.content[start:][: server.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


def interrupt(server: Server, path: Path, size: int) -> None:
    """A download that ends after `size` bytes."""
    server.cut = size
    with pytest.raises(OSError, match=f"got {size} of {len(server.content)} bytes"):
        download(server.url, path)
    server.cut = None
    server.ranges.clear()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "weights.pth"
    for _ in range(2):
        download(server.url, path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None]
    assert visible(path.parent) == ["weights.pth"]
    assert not parts(path.parent)


@pytest.mark.parametrize("size", [1, BLOCK_BYTES, 2 * BLOCK_BYTES + 7])
def test_a_cut_download_is_resumed(server: Server, tmp_path: Path, size: int) -> None:
    path = tmp_path / "weights.pth"
    interrupt(server, path, size)
    assert not visible(tmp_path)
    download(server.url, path)
    assert server.ranges == [None, f"bytes={size}-"]
    assert path.read_bytes() == CONTENT
    assert not parts(tmp_path)


def test_a_download_that_was_whole_but_not_renamed(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    interrupt(server, path, 1)
    (part,) = parts(tmp_path)
    part.write_bytes(CONTENT)
    download(server.url, path)
    assert server.ranges == [None]
    assert path.read_bytes() == CONTENT


def test_another_version_is_downloaded_whole(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    interrupt(server, path, BLOCK_BYTES)
    server.content, server.version = CONTENT[::-1], '"2"'
    download(server.url, path)
    assert server.ranges == [None]
    assert path.read_bytes() == CONTENT[::-1]
    assert not parts(tmp_path)


def test_without_a_version_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    server.version = None
    interrupt(server, path, BLOCK_BYTES)
    download(server.url, path)
    assert server.ranges == [None]
    assert path.read_bytes() == CONTENT


def test_a_server_that_sends_no_parts_of_files(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    interrupt(server, path, BLOCK_BYTES)
    server.takes_ranges = False
    download(server.url, path)
    assert server.ranges == [None, f"bytes={BLOCK_BYTES}-"]
    assert path.read_bytes() == CONTENT


def test_a_server_that_refuses_or_does_not_answer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="404"):
        download(server.url + "/missing", tmp_path / "weights.pth")
    server.delay_sec = 1.0
    with pytest.raises(TimeoutError):
        download(server.url, tmp_path / "weights.pth", timeout_sec=0.1)
    assert not visible(tmp_path)


def test_progress_is_for_terminals(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    download(server.url, tmp_path / "silent.pth")
    assert capfd.readouterr() == ("", "")
    path = tmp_path / "weights.pth"
    interrupt(server, path, 2 * BLOCK_BYTES)
    capfd.readouterr()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download(server.url, path)
    shown = capfd.readouterr().err.split("\r")
    assert "67%" in shown[1]  # what there was already
    assert "100%" in shown[-1]
    assert "3.15M/3.15M" in shown[-1]


def test_of_several_processes_one_downloads(server: Server, tmp_path: Path) -> None:
    server.delay_sec = 0.5
    path = tmp_path / "weights.pth"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=download, args=(server.url, path)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert server.ranges == [None]
    assert path.read_bytes() == CONTENT


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_a_file_is_fetched_once(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert fetch_file(server.url, "CC-BY-NC-4.0") == cache / "weights.v1.pth"
    assert (cache / "weights.v1.pth").read_bytes() == CONTENT
    assert server.ranges == [None]
    assert caplog.text.count("licence CC-BY-NC-4.0") == 1


def test_fetching_without_a_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(ConnectionError) as error:
        create_model("hiera_base_16x224.mae_k400")
    message = str(error.value)
    assert "https://dl.fbaipublicfiles.com/hiera/mae_hiera_base_16x224.pth" in message
    assert f"fetch mae_hiera_base_16x224.pth by other means and put it into {cache}" in message
    assert "\n" not in message
