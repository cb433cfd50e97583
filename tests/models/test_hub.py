"""Repositories; the Hub itself is not asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hiera_video import Hiera, load_model, save_model
from hiera_video.errors import FetchError

ARGUMENTS: dict[str, Any] = {
    "input_size": (4, 32, 32),
    "embed_dim": 8,
    "stages": (1, 1, 1, 1),
    "num_classes": 2,
}


def same(a: Hiera, b: Hiera) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    calls: list[Any] = []
    monkeypatch.setattr(hub, "create_repo", lambda name, exist_ok: calls.append(name))
    monkeypatch.setattr(hub, "upload_folder", lambda **given: calls.append(given))
    model = Hiera(**ARGUMENTS)
    save_model("mine", model, repository="me/mine")
    files = ["config.json", "model.safetensors"]
    upload = {"repo_id": "me/mine", "folder_path": Path("mine"), "allow_patterns": files}
    assert calls == ["me/mine", upload]

    def download(name: str, **how: Any) -> str:
        expected = {"revision": "v1", "allow_patterns": files, "local_files_only": False}
        assert (name, how) == ("me/mine", expected)
        return str(tmp_path / "mine")

    monkeypatch.setattr(hub, "snapshot_download", download)
    again, card = load_model("hf://me/mine@v1", kind="classifier")
    assert same(again, model)
    assert card.num_classes == 2
    with pytest.warns(DeprecationWarning, match="load_model"):
        assert same(Hiera.from_pretrained("me/mine", revision="v1"), model)


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FetchError, match=r"hf://me/nothing cannot be fetched .* HF_HUB_OFFLINE"):
        load_model("hf://me/nothing")
    with pytest.raises(FetchError, match=r"x is written, but cannot be uploaded to me/x"):
        save_model(tmp_path / "x", Hiera(**ARGUMENTS), repository="me/x")


def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'hiera-video\[hub\]'"):
        load_model("hf://me/mine")
    for name in ("nowhere", "runs/nowhere"):  # no repository, whatever it looks like
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            load_model(name)


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
        save_model(tmp_path / "mine", model, repository="me/mine")
    assert (tmp_path / "mine" / "model.safetensors").exists()
    with pytest.raises(ConnectionError, match=r"hf://me/mine cannot be fetched.*no route to host"):
        load_model("hf://me/mine")
