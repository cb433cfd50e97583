"""Folders and repositories; the Hub itself is not asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hiera_video.models.hiera import Hiera

ARGUMENTS: dict[str, Any] = {
    "input_size": (4, 32, 32),
    "embed_dim": 8,
    "stages": (1, 1, 1, 1),
    "num_classes": 2,
}


def same(a: Hiera, b: Hiera) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_folder(tmp_path: Path) -> None:
    model = Hiera(**ARGUMENTS)
    model.save_pretrained(tmp_path / "x", class_names=["walk", "run"])
    again = Hiera.from_pretrained(tmp_path / "x")
    assert same(again, model)
    assert not again.training
    assert again.meta["class_names"] == ["walk", "run"]
    again.save_pretrained(tmp_path / "y", sampling_rate=4)
    meta = Hiera.from_pretrained(tmp_path / "y").meta
    assert meta == again.meta | {"sampling_rate": 4}
    assert again.meta.keys() >= {"mean", "std"}
    again.reset_classifier(3)
    again.save_pretrained(tmp_path / "z")
    assert Hiera.from_pretrained(tmp_path / "z").meta["class_names"] == []
    with pytest.raises(ValueError, match=r"revision is 'v1', but .*x is no repository"):
        Hiera.from_pretrained(tmp_path / "x", revision="v1")


def test_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    calls: list[Any] = []
    monkeypatch.setattr(hub, "create_repo", lambda name, exist_ok: calls.append(name))
    monkeypatch.setattr(hub, "upload_folder", lambda **given: calls.append(given))
    model = Hiera(**ARGUMENTS)
    model.save_pretrained("mine", repository="me/mine")
    files = ["config.json", "model.safetensors"]
    upload = {"repo_id": "me/mine", "folder_path": Path("mine"), "allow_patterns": files}
    assert calls == ["me/mine", upload]

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision, allow_patterns) == ("me/mine", "v1", files)
        return str(tmp_path / "mine")

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert same(Hiera.from_pretrained("me/mine", revision="v1"), model)


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = "me/nothing is no local folder, and cannot be fetched .* HF_HUB_OFFLINE"
    with pytest.raises(ConnectionError, match=rf"{message}"):
        Hiera.from_pretrained("me/nothing")
    with pytest.raises(ConnectionError, match=r"x is written, but cannot be uploaded to me/x"):
        Hiera(**ARGUMENTS).save_pretrained(tmp_path / "x", repository="me/x")


def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'hiera-video\[hub\]'"):
        Hiera.from_pretrained("me/mine")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        Hiera.from_pretrained("nowhere")


def test_errors_of_the_connection_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class TransportError(Exception):  # of the library that sends requests
        pass

    def fail(*_: Any, **__: Any) -> None:
        raise TransportError("no route to host")

    monkeypatch.setattr(hub, "create_repo", fail)
    monkeypatch.setattr(hub, "snapshot_download", fail)
    model = Hiera(**ARGUMENTS)
    with pytest.raises(ConnectionError, match=r"cannot be uploaded to me/mine.*no route to host"):
        model.save_pretrained(tmp_path / "mine", repository="me/mine")
    assert (tmp_path / "mine" / "model.safetensors").exists()
    with pytest.raises(ConnectionError, match=r"me/mine is no local folder.*no route to host"):
        Hiera.from_pretrained("me/mine")
