"""`visualize mae`: a picture and a movie, or one line with the reason, for every file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.pretrained import load_model
from hiera_video.models.saving import save_model
from hiera_video.video.open import open_video

MASKING = {"kind": "tube", "mask_ratio": 0.75}
CLIPS = {"sampling_rate": 2}


def save(folder: Path, **options: object) -> Path:
    torch.manual_seed(0)
    small = {"num_classes": 0, "embed_dim": 8, "stages": (1, 1, 1, 1), "q_pool": 2}
    encoder = Hiera(input_size=(4, 64, 64), **small)
    decoder = {"decoder_heads": 2, "decoder_dim": 16, "decoder_depth": 1, **options}
    model = MaskedAutoencoderHiera(encoder, **decoder)
    save_model(folder, model, masking=MASKING, clips=CLIPS)
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("pretrained") / "weights")


def visualize(commands, checkpoint, output_dir, *arguments):
    return commands.run(
        "visualize", "mae", f"checkpoint={checkpoint}", f"output_dir={output_dir}", "device=cpu",
        *arguments,
    )  # fmt: skip


def test_pictures_of_every_file(commands, pretrained, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(commands.toy / "val_1.mp4", tmp_path / "other" / "val_0.mp4")
    Image.new("RGB", (90, 80), "red").save(tmp_path / "picture.png")
    files = [commands.toy / "val_0.mp4", tmp_path / "other" / "val_0.mp4", tmp_path / "picture.png"]
    out = tmp_path / "out"
    bad = tmp_path / "empty.mp4"
    bad.touch()
    result = visualize(commands, pretrained, out, "--json", files[0], bad, *files[1:])
    assert result.code == 3, result.err
    records = [json.loads(line) for line in result.out.splitlines()]
    assert [record["path"] for record in records] == [str(f) for f in (files[0], bad, *files[1:])]
    assert records[1] == {
        "path": str(bad), "cause": "empty", "error": f"{bad}: is empty (0 bytes); fetch it again"
    }  # fmt: skip
    names = ["val_0_normalised", "val_0_2_normalised", "picture_normalised"]
    for name, record in zip(names, [records[0], *records[2:]], strict=True):
        assert record["png"] == str(out / f"{name}.png")
        assert record["mp4"] == str(out / f"{name}.mp4")
        assert record["loss"] > 0
        assert Image.open(record["png"]).height > 4 * 224
        with open_video(record["mp4"]) as video:
            assert len(video) == 2
    assert len(list(out.iterdir())) == 6


def test_a_loss_that_is_not_finite(commands, pretrained, tmp_path):
    model, card = load_model(pretrained)
    with torch.no_grad():
        model.mask_token[...] = torch.nan
    save_model(tmp_path / "diverged", model, card)
    video, out = commands.toy / "val_0.mp4", tmp_path / "out"
    result = visualize(commands, tmp_path / "diverged", out, video, "--json")
    assert result.code == 1
    (record,) = map(json.loads, result.out.splitlines())
    assert (record["path"], record["cause"]) == (str(video), "not_finite")
    assert record["error"].startswith(f"{video}: its reconstruction loss is not finite; use other")
    assert not list(out.iterdir())


def test_settings_come_from_the_checkpoint(commands, pretrained, tmp_path):
    result = visualize(commands, pretrained, tmp_path, commands.toy / "val_0.mp4", "--print-config")
    assert result.code == 0
    assert "kind: tube" in result.out
    assert "mask_ratio: 0.75" in result.out
    assert "sampling_rate: 2" in result.out


def test_masks_follow_the_seed(commands, pretrained, tmp_path):
    pictures = {}
    for name, settings in {
        "a": ["masking.kind=random"],
        "b": ["masking.kind=random"],
        "c": ["masking.kind=random", "seed=1"],
        "d": ["masking.kind=random", "mode=ground_truth_statistics"],
    }.items():
        video = commands.toy / "val_0.mp4"
        result = visualize(commands, pretrained, tmp_path / name, video, *settings)
        assert result.code == 0, result.err
        (png,) = (tmp_path / name).glob("*.png")
        pictures[name] = np.asarray(Image.open(png))
    assert np.array_equal(pictures["a"], pictures["b"])
    assert not np.array_equal(pictures["a"], pictures["c"])
    assert not np.array_equal(pictures["a"], pictures["d"])


def test_nothing_is_replaced_silently(commands, pretrained, tmp_path):
    video = commands.toy / "val_0.mp4"
    assert visualize(commands, pretrained, tmp_path, video, "--dry-run").code == 0
    assert not list(tmp_path.iterdir())
    result = visualize(commands, pretrained, tmp_path, video)
    assert result.code == 0
    first, *written = result.out.splitlines()
    assert first.startswith(f"{video}: reconstruction loss ")
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(written) == sorted(f"  {file}" for file in files)
    result = visualize(commands, pretrained, tmp_path, video, "seed=5")
    assert result.code == 1
    result.reports("val_0_normalised.png", "overwrite=true")
    assert files == {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert visualize(commands, pretrained, tmp_path, video, "seed=5", "overwrite=true").code == 0
    assert files != {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_what_is_refused(commands, pretrained, tmp_path):
    video, out = commands.toy / "val_0.mp4", tmp_path / "out"
    result = visualize(commands, pretrained, out, tmp_path / "nowhere.mp4")
    assert result.code == 2
    result.reports(f"FILE is '{tmp_path / 'nowhere.mp4'}': there is no such file or folder")
    hog = save(tmp_path / "hog", target="hog")
    result = visualize(commands, hog, out, video)
    assert result.code == 1
    result.reports("target='hog'", "can be shown")
    result = visualize(commands, pretrained, out, video, "masking.mask_ratio=0.99")
    assert result.code == 2
    result.reports("masking.mask_ratio is 0.99, which keeps nothing")
    for arguments, message in (
        (("visualize", "mae", f"checkpoint={pretrained}"), "FILE is not set"),
        (("visualize", "mae", video), "a run, checkpoint or weights folder"),
        (("visualize", "mae", video, "mode=raw"), "mode"),
        (
            ("visualize", "mae", video, f"checkpoint={pretrained}", "masking.mask_ratio=1"),
            "below 1",
        ),
    ):
        result = commands.run(*arguments)
        assert result.code == 2
        result.reports(message)
