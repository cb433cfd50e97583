"""Files of weights: what each is by its content, and which of its states is taken."""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from hiera_video import create_autoencoder, create_model, load_model
from hiera_video.errors import ModelError, WeightsError
from hiera_video.models.checkpoint import read_checkpoint
from hiera_video.models.loading import load_weights
from hiera_video.models.pretrained import create_detector
from tests.models.tiny_models import IMAGE, State, hiera, logits, official, saved


def taken(path: Path, seed: int = 0, **options: Any) -> list[str]:
    """What was chosen in a file that holds the tiny model of that seed, whole."""
    model = hiera(IMAGE, seed=7)
    report = load_weights(model, read_checkpoint(path, **options))
    assert torch.equal(logits(model), logits(hiera(IMAGE, seed)))
    assert report.loaded_frac == 1.0
    assert all(entry in str(report) for entry in report.taken)
    return report.taken


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


@pytest.fixture(scope="module")
def plain() -> State:
    return official(hiera(IMAGE))


@pytest.fixture(scope="module")
def other() -> State:
    """Of seed 1: an average of the weights, or a teacher."""
    return official(hiera(IMAGE, seed=1))


# Prefixes.


@pytest.mark.parametrize(
    ("prefix", "left"),
    [
        ("model.", "model."),
        ("module.", "module."),
        ("net.", "net."),
        ("backbone.", "backbone."),
        ("encoder.", "encoder."),
        ("module.model.backbone.", "module.model.backbone."),
        ("_fsdp_wrapped_module.", ""),
        ("_forward_module._orig_mod.", ""),
        ("module._orig_mod.", "module."),
        ("model._fsdp_wrapped_module.module.", "model.module."),
    ],
)
def test_a_prefix_that_all_keys_share(prefix: str, left: str, plain: State, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"state_dict": under(prefix, plain), "epoch": 3})
    wrappers = sorted({part for part in prefix.split(".") if part.startswith("_")})
    expected = [f"keys without {left!r}"] if left else []
    expected += [f"keys without {', '.join(wrappers)}"] if wrappers else []
    assert taken(path) == expected


def test_wrappers_of_single_blocks(plain: State, tmp_path: Path) -> None:
    """As FSDP and activation checkpointing leave them."""
    names = {"blocks.0.": "blocks.0._fsdp_wrapped_module.", "blocks.1.": "blocks.1._fpw_module."}
    names["blocks.2."] = "blocks.2._checkpoint_wrapped_module."
    wrapped = {}
    for key, value in plain.items():
        wrapped[names.get(key[:9], key[:9]) + key[9:]] = value
    found = taken(saved(tmp_path / "x.pth", wrapped))
    assert found == ["keys without _checkpoint_wrapped_module, _fpw_module, _fsdp_wrapped_module"]


def test_a_part_of_a_larger_model(plain: State, tmp_path: Path) -> None:
    """No tensor is left out unless the user says so."""
    state = {**under("model.", plain), "criterion.weight": torch.ones(5)}
    path = saved(tmp_path / "x.ckpt", {"state_dict": state})
    message = (
        r"x\.ckpt holds other tensors beside .* state_dict\.model: criterion\.weight\. weights"
    )
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(path)
    for key in ("state_dict.model", "model"):
        found = read_checkpoint(path, weights_key=key)
        assert found.dropped == ["criterion.weight"]
        assert found.taken == ["keys without 'model.'"]


def test_state_dicts_of_own_models(tmp_path: Path) -> None:
    tiny: dict[str, Any] = {"num_frames": 4, "image_size": 64}
    mae = create_autoencoder("hiera_tiny_16x224", decoder_heads=2, decoder_dim=16, **tiny)
    path = saved(tmp_path / "mae.pth", {"model": mae.state_dict()})
    again, _ = load_model(path, kind="autoencoder", decoder_heads=2, decoder_dim=16)
    for key, value in mae.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    detector = create_detector("hiera_tiny_16x224", num_classes=3, **tiny)
    path = saved(tmp_path / "detector.pth", under("module.", detector.state_dict()))
    found = read_checkpoint(path)
    assert found.state["roi_head.projection.bias"].shape == (3,)
    assert found.state.keys() == {k.removeprefix("encoder.") for k in detector.state_dict()}


# Several states.


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("model", "model_ema"),
        ("model_ema", "model"),
        ("state_dict", "state_dict_ema"),
        ("model_state", "ema"),
        ("module", "teacher"),
    ],
)
def test_the_plain_one_of_several_states(
    first: str,
    second: str,
    plain: State,
    other: State,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    average = next(name for name in (first, second) if "ema" in name or name == "teacher")
    name = first if average == second else second
    states = {name: plain, average: under("module.", other)}
    path = saved(tmp_path / "x.pth", {key: states[key] for key in (first, second)} | {"epoch": 1})
    caplog.set_level(logging.WARNING)
    (note,) = taken(path)
    ema = f"{average}.module"
    assert note.startswith(f"{name}, of ")
    assert note.endswith(f"(weights_key={ema} takes another)")
    assert f"{path} holds several states; taken is {note}" in caplog.messages
    caplog.clear()
    for key in (average, ema):
        note, prefix = taken(path, seed=1, weights_key=key)
        assert note.startswith(f"{ema}, of ")
        assert prefix == "keys without 'module.'"
    assert not caplog.messages  # it was asked for


def test_states_side_by_side_in_one(plain: State, other: State, tmp_path: Path) -> None:
    """As Lightning modules with an average have them."""
    both = {**under("model.", plain), **under("ema_model.module.", other)}
    path = saved(tmp_path / "x.ckpt", {"state_dict": both})
    assert taken(path)[1] == "keys without 'model.'"
    assert taken(path, seed=1, weights_key="ema_model")[1] == "keys without 'ema_model.module.'"
    path = saved(tmp_path / "bare.pth", {**plain, **under("ema.", other)})
    assert taken(path) == [
        "one without a name, of one without a name, ema (weights_key=ema takes another)"
    ]
    assert taken(path, seed=1, weights_key="ema")[1] == "keys without 'ema.'"


def test_no_state_is_plain(plain: State, other: State, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"student": plain, "teacher": other})
    message = r"x\.pth holds several states, student, teacher: choose one, .* weights_key=student"
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(path)
    assert taken(path, weights_key="student")[0].startswith("student, of")
    assert taken(path, seed=1, weights_key="teacher")[0].startswith("teacher, of")
    with pytest.raises(
        WeightsError, match=r"weights_key is 'ema'; the file holds student, teacher"
    ):
        read_checkpoint(path, weights_key="ema")
    assert taken(saved(path, {"model_ema": plain})) == ["model_ema"]
    with pytest.raises(ModelError, match="give a checkpoint beside it"):
        create_model("hiera_tiny_16x224", weights_key="ema")


# What a file is.


def torchscript() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def torch_file(state: State, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def exported() -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), file)
    return file.getvalue()


def archive(kind: str, content: bytes = b"weights") -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("w.pth", content)
    else:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("w.pth"), io.BytesIO())
    return file.getvalue()


def arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 203\n"
OTHERS = {
    "html": (lambda: b"\n<!DOCTYPE html>\n<title>404", "a web page or XML .* '<!DOCTYPE html>'"),
    "xml": (lambda: b"<?xml version='1.0'?><Error/>", "a web page or XML .*download the file"),
    "lfs": (lambda: POINTER, "a Git LFS pointer.*`git lfs pull`"),
    "json": (
        lambda: b'{"error": "not found"}',
        r"a text that begins with '{\"error\": .*state dict",
    ),
    "empty": (lambda: b"", "an empty file: copy or download it again"),
    "gzip": (lambda: gzip.compress(b"weights"), "compressed by gzip: unpack it"),
    "tar": (lambda: archive("tar"), "a tar archive: unpack it"),
    "zip": (lambda: archive("zip"), "a zip archive: unpack it"),
    "npz": (arrays, "an archive of NumPy arrays: expected a state dict"),
    "torchscript": (torchscript, "a TorchScript archive, .*state dict"),
    "pt2": (exported, "a program of torch.export: give the weights"),
    "cut": (lambda: torch_file({"a": torch.ones(99)})[:-9], "cut off, or damaged at its end: copy"),
    "cut_safetensors": (
        lambda: save({"a": torch.ones(99)})[:-9],
        r"not a file of weights \(.*header",
    ),
    "pickle": (lambda: b"\x80\x04\x95" + bytes(99), "a pickle that torch.save did not write"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_named(name: str, tmp_path: Path) -> None:
    """By their content, whatever the suffix."""
    content, message = OTHERS[name]
    for suffix in ("pth", "safetensors", "bin"):
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(content())
        with pytest.raises(WeightsError, match=f"^{path} is .*{message}"):
            read_checkpoint(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin", "ckpt", ""])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_weights_are_read_whatever_the_suffix(
    kind: str, suffix: str, plain: State, tmp_path: Path
) -> None:
    write = {
        "safetensors": lambda: save(plain),
        "zip": lambda: torch_file(plain),
        "legacy": lambda: torch_file(plain, _use_new_zipfile_serialization=False),
    }[kind]
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(write())
    assert taken(path) == []
