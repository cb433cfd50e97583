"""Files of published weights: fetched once, and what to do without a network."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hiera_video import create_model
from hiera_video.models import download
from hiera_video.models.download import fetch_file
from hiera_video.models.variants import PUBLISHED


class Response:
    def __init__(self, content: bytes, promised: int | None = None) -> None:
        self.parts = [content, b""]
        self.headers = {"Content-Length": str(promised or len(content))}

    def read(self, _: int) -> bytes:
        return self.parts.pop(0)

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Response]) -> list[str]:
    urls = []

    def urlopen(url: str, timeout: float) -> Response:
        assert timeout > 0
        urls.append(url)
        return answer(url)

    monkeypatch.setattr(download.urllib.request, "urlopen", urlopen)
    return urls


def test_fetch(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    urls = serve(monkeypatch, lambda _: Response(b"weights"))
    url = PUBLISHED["hiera_base_16x224.mae_k400_ft_k400"]
    for _ in range(2):
        assert fetch_file(url, "CC-BY-NC-4.0") == cache / "hiera_base_16x224.pth"
    assert urls == [url]
    assert caplog.text.count("licence CC-BY-NC-4.0") == 1
    assert [p.read_bytes() for p in cache.iterdir()] == [b"weights"]


def test_fetch_without_a_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_: str) -> Response:
        raise urllib.error.URLError("Name or service not known")

    serve(monkeypatch, offline)
    with pytest.raises(ConnectionError) as error:
        create_model("hiera_base_16x224.mae_k400")
    message = str(error.value)
    assert "https://dl.fbaipublicfiles.com/hiera/mae_hiera_base_16x224.pth" in message
    assert f"fetch mae_hiera_base_16x224.pth by other means and put it into {cache}" in message
    assert "\n" not in message

    serve(monkeypatch, lambda _: Response(b"wei", promised=7))
    with pytest.raises(ConnectionError, match="got 3 of 7 bytes"):
        create_model("hiera_base_16x224", checkpoint="mae_k400")
    assert not any(cache.iterdir())
