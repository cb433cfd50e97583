"""Pretraining from end to end: what it leaves, resuming, several processes, bad input."""

import json
import os
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from hiera_video import create_autoencoder, create_model
from hiera_video.models.loading import load_weights
from hiera_video.models.pretrained import load_model
from hiera_video.models.saving import save_model
from hiera_video.settings.model import Masking

SHAPE = {"num_frames": 4, "image_size": 32, "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}


@pytest.fixture(scope="module")
def pretrained(commands, tmp_path_factory):
    """A run folder. Do not write into it."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    result = commands.run(*commands.pretrain(folder, "train.epochs=20"))
    assert result.code == 0, result.err
    return folder


def test_the_loss_falls(pretrained, lines_of):
    losses = [line["loss"] for line in lines_of(pretrained / "metrics.jsonl")]
    first, middle, last = (part.mean() for part in np.array_split(losses, 3))
    assert last < middle < first, (first, middle, last)


def test_fine_tuning_takes_the_weights_of_the_end_and_of_any_checkpoint(
    commands, pretrained, tmp_path
):
    steps = sorted((pretrained / "checkpoints").iterdir())
    assert len(steps) == 2
    for name, init in (("end", pretrained), ("step", steps[0])):
        result = commands.run(*commands.finetune(tmp_path / name, f"model.init={init}"))
        assert result.code == 0, result.err
        assert "renamed (1): encoder_norm -> norm" in result.err
        assert "reinitialised (2): head.projection.weight, head.projection.bias" in result.err
        assert re.search(r"dropped \(\d+\): .*decoder", result.err)


def test_pretraining_continues_from_weights(commands, pretrained, tmp_path):
    overrides = (f"model.init={pretrained}", "model.decoder_heads=null")
    result = commands.run(*commands.pretrain(tmp_path, *overrides))
    assert result.code == 0, result.err
    assert "100.0% of the parameters" in result.err


def test_a_folder_of_videos_without_labels(commands, tmp_path):
    """At any depth: folders are no classes here."""
    inside = tmp_path / "videos" / "sub" / "folder"
    inside.mkdir(parents=True)
    for i, folder in enumerate((inside.parents[1], inside.parents[1], inside.parent, inside)):
        shutil.copy(commands.toy / f"train_{i}.mp4", folder)
    result = commands.run(*commands.pretrain(tmp_path / "run", f"data.train={tmp_path / 'videos'}"))
    assert result.code == 0, result.err
    assert "4 training videos" in result.err


def test_a_list_in_which_some_videos_have_labels(commands, tmp_path):
    videos = [commands.toy / f"train_{i}.mp4" for i in range(4)]
    rows = [{"path": str(videos[0]), "label": 3}, *({"path": str(v)} for v in videos[1:])]
    source = tmp_path / "list.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = commands.run(*commands.pretrain(tmp_path / "run", f"data.train={source}"))
    assert result.code == 0, result.err
    assert "4 training videos" in result.err


def test_a_run_resumes_without_its_init(commands, pretrained, tmp_path):
    shutil.copytree(pretrained / "weights", tmp_path / "init")
    overrides = (f"model.init={tmp_path / 'init'}", "model.decoder_heads=null")
    assert commands.run(*commands.pretrain(tmp_path / "run", *overrides)).code == 0
    shutil.rmtree(tmp_path / "init")
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "run" / "kept")
    (tmp_path / "run" / "checkpoints").mkdir()
    first = sorted((tmp_path / "run" / "kept").iterdir())[0]
    first.rename(tmp_path / "run" / "checkpoints" / first.name)
    result = commands.run(*commands.pretrain(tmp_path / "run", *overrides))
    assert result.code == 0, result.err
    assert "resumed from" in result.err
    assert "of a shorter run, is removed" in result.err


def test_an_autoencoder_is_no_classifier(commands, pretrained, tmp_path):
    for command in (
        ("predict", commands.toy / "train_0.mp4"),
        ("evaluate", f"data.val={commands.toy / 'val.csv'}"),
    ):
        result = commands.run(*command, f"checkpoint={pretrained}")
        assert result.code == 1
        result.reports(
            "is a masked autoencoder; expected a classifier", "Fine-tune it: ", "model.init="
        )


@pytest.mark.parametrize("kind", ["tube", "frame", "block"])
def test_other_masks(commands, tmp_path, kind):
    overrides = (f"masking.kind={kind}", "train.epochs=2", "model.target=hog")
    result = commands.run(*commands.pretrain(tmp_path, *overrides))
    assert result.code == 0, result.err
    assert f"({kind} masking)" in result.err
    config = json.loads((tmp_path / "weights" / "config.json").read_text())
    assert config["masking"] == {"kind": kind, "mask_ratio": 0.5}


def test_images(commands, tmp_path):
    cv2 = pytest.importorskip("cv2")
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        cv2.imwrite(str(images / f"{i}.png"), np.full((40, 40, 3), 40 * i, np.uint8))
    overrides = ("model.name=hiera_tiny_224", "model.num_frames=null", "masking.mask_ratio=null")
    arguments = commands.pretrain(tmp_path / "run", f"data.train={images}", *overrides)
    result = commands.run(*arguments, "model.overrides.mask_unit=[1,4,4]")
    assert result.code == 0, result.err
    assert "1 of 4 mask units" in result.err  # the images' 0.6


def test_killed_three_times(commands, tmp_path, weights_of, lines_of):
    overrides = ("train.epochs=20", "model.drop_path=0.3")
    result = commands.run(*commands.pretrain(tmp_path / "whole", *overrides))
    assert result.code == 0, result.err
    lines = lines_of(tmp_path / "whole" / "metrics.jsonl")

    broken = tmp_path / "broken"
    for moment in sorted(random.Random(3).sample(range(1, len(lines) // 2), 3)):
        process = commands.fork(*commands.pretrain(broken, *overrides))
        metrics, deadline = broken / "metrics.jsonl", time.monotonic() + 60
        while not metrics.exists() or metrics.read_text().count("\n") < moment:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert commands.exit_code(process) == -signal.SIGKILL
    last = commands.pretrain(broken, *overrides, "data.num_workers=2")  # which changes nothing
    assert commands.run(*last).code == 0
    assert weights_of(broken) == weights_of(tmp_path / "whole")
    again = lines_of(broken / "metrics.jsonl")
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]


def test_two_processes(commands, tmp_path, lines_of):
    overrides = ("optim.lr=1.0e-3",)  # larger ones magnify the rounding of sums in another order
    assert commands.run(*commands.pretrain(tmp_path / "one", *overrides)).code == 0
    results = commands.together(*commands.pretrain(tmp_path / "two", *overrides))
    assert [result.code for result in results] == [0, 0], results
    one, two = (
        [line["loss"] for line in lines_of(tmp_path / n / "metrics.jsonl")] for n in ("one", "two")
    )
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_step_in_which_nothing_can_be_read(commands, list_of, tmp_path, lines_of):
    toy = commands.toy
    names = [*(f"train_{i}.mp4" for i in range(4)), "text.mp4"]
    train = list_of(tmp_path / "train.csv", [(toy / name, "any") for name in names])
    overrides = (f"data.train={train}", "train.global_batch_size=1", "train.epochs=2")
    result = commands.run(*commands.pretrain(tmp_path / "run", *overrides))
    assert result.code == 3
    (failed,) = lines_of(tmp_path / "run" / "failures.jsonl")
    assert failed["cause"] == "not_a_video"
    counts = [line["num_clips"] for line in lines_of(tmp_path / "run" / "metrics.jsonl")]
    assert sorted(counts) == [0, 2, 2, 2, 2]


def test_a_run_that_diverges_is_no_success(commands, tmp_path):
    result = commands.run(*commands.pretrain(tmp_path, "optim.lr=1.0e+10"))
    assert result.code == 1
    result.reports("8 of 9 steps were skipped", "lower optim.lr or train with train.precision=fp32")
    assert not (tmp_path / "weights").exists()
    results = commands.together(*commands.pretrain(tmp_path / "two", "optim.lr=1.0e+10"))
    for result in results:
        assert result.code == 1
        result.reports("8 of 9 steps were skipped")


@pytest.mark.parametrize(
    ("override", "code", "parts"),
    [
        ("masking.mask_ratio=0.97", 2, ["keeps nothing of 8 units", "up to 0.875"]),
        ("masking.mask_ratio=0", 2, ["masking.mask_ratio is 0", "above 0 and below 1"]),
        ("masking.mask_ratio=1.5", 2, ["masking.mask_ratio is 1.5", "above 0 and below 1"]),
        ("masking.kind=tub", 2, ["masking.kind", "tub"]),
        ("model.decoder_heads=null", 2, ["model.decoder_heads", "8", "16"]),
        ("model.decoder_heads=3", 2, ["model.decoder_heads is 3", "16"]),
        ("model.overrides.mask_unit=[3,4,4]", 2, ["(6, 16, 16)", "mask_unit=(2, 4, 4)"]),
        ("model.overrides.mask_unit=[1,3,4]", 2, ["mask_unit is (1, 3, 4)", "(1, 4, 4)"]),
        ("model.overrides.mask_unit=[4,4,4]", 2, ["input_size is (4, 32, 32)", "(8, 32, 32)"]),
        ("optim.layer_decay=0.9", 2, ["optim.layer_decay is 0.9"]),
        ("model.overrides.drop_path=0.1", 2, ["model.overrides.drop_path is unknown"]),
    ],
)
def test_settings_that_do_not_fit(commands, tmp_path, override, code, parts):
    result = commands.run(*commands.pretrain(tmp_path, override))
    assert result.code == code, result.err
    result.reports(*parts)
    assert not (tmp_path / "checkpoints").exists()


def test_weights_of_another_variant_are_refused(commands, tmp_path):
    torch.manual_seed(0)
    other = create_model("hiera_tiny_16x224", num_classes=2, **{**SHAPE, "embed_dim": 16})
    save_model(tmp_path / "other", other)
    result = commands.run(*commands.pretrain(tmp_path / "run", f"model.init={tmp_path / 'other'}"))
    assert result.code == 1
    result.reports("embed_dim 16, not 8")


def test_weights_of_an_autoencoder_and_back(tmp_path):
    torch.manual_seed(0)
    model = create_autoencoder("hiera_tiny_16x224", decoder_heads=2, decoder_dim=16, **SHAPE)
    save_model(tmp_path / "w", model, masking={"kind": "tube", "mask_ratio": 0.75})
    again, card = load_model(tmp_path / "w", kind="autoencoder")
    assert again.decoder_architecture == model.decoder_architecture
    assert card.masking == Masking(kind="tube", mask_ratio=0.75)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    encoder = create_model(checkpoint=tmp_path / "w")  # as it is used afterwards: one more pooling
    assert (encoder.num_classes, len(encoder.pools)) == (0, 3)
    with pytest.raises(ValueError, match="decoder_heads"):
        load_model(tmp_path / "w", decoder_heads=4, kind="autoencoder")
    save_model(tmp_path / "c", encoder)
    with pytest.raises(ValueError, match="expected a masked autoencoder: a run of `hiera-video pr"):
        load_model(tmp_path / "c", kind="autoencoder")


def test_a_decoder_that_does_not_fit_starts_afresh_and_is_reported(tmp_path):
    torch.manual_seed(0)
    decoder = {"decoder_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
    source = create_autoencoder("hiera_tiny_16x224", **decoder, **SHAPE)
    save_model(tmp_path / "w", source)
    larger = create_autoencoder("hiera_tiny_16x224", **decoder, **{**SHAPE, "num_frames": 8})
    report = load_weights(larger, tmp_path / "w")
    assert report.reinitialised == ["decoder_pos_embed"]
    assert report.dropped == ["decoder_pos_embed"]
    flat = {"num_frames": 2, "image_size": (32, 64)}
    flat = create_autoencoder("hiera_tiny_16x224", **decoder, **{**SHAPE, **flat})
    assert flat.decoder_pos_embed.shape == source.decoder_pos_embed.shape  # on another grid
    assert load_weights(flat, tmp_path / "w").reinitialised == ["decoder_pos_embed"]

    shape = {key: value for key, value in SHAPE.items() if key != "num_frames"}
    decoder_of_images = {**decoder, "decoder_heads": 4}  # it is dropped, whatever its heads
    image = create_autoencoder("hiera_tiny_224", **decoder_of_images, **shape)
    save_model(tmp_path / "image", image)
    report = load_weights(source, tmp_path / "image")
    assert "decoder_pred.weight" in report.reinitialised
    assert any("inflated" in line for line in report.resized)

    deeper = create_autoencoder("hiera_tiny_16x224", **{**decoder, "decoder_depth": 2}, **SHAPE)
    with pytest.raises(
        ValueError, match="was pretrained with decoder_depth=1, the model has decoder_depth=2"
    ):
        load_weights(deeper, tmp_path / "w")


@pytest.mark.parametrize("name", ["hiera_tiny_16x224", "hiera_tiny_224"])
def test_official_files_of_autoencoders_load_whole(tmp_path, name):
    """Official names under `model_state`; image models have 2-D convolutions."""
    torch.manual_seed(0)
    shape = {k: v for k, v in SHAPE.items() if k != "num_frames" or name.endswith("16x224")}
    decoder = {"decoder_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
    shape["mask_unit"] = (1, 4, 4)
    source = create_autoencoder(name, **decoder, **shape)
    official = {}
    for key, value in source.state_dict().items():
        key = re.sub(r"^norm\.", "encoder_norm.", key.removeprefix("encoder."))
        flat = name.endswith("_224") and value.dim() == 5
        official[key] = value.squeeze(2) if flat else value
    torch.save({"model_state": official}, tmp_path / "mae.pth")
    model = create_autoencoder(name, checkpoint=tmp_path / "mae.pth", **decoder, **shape)
    afresh = {"decoder_pos_embed"}  # a file states no size: it is taken for the published 224
    ours, theirs = model.state_dict(), source.state_dict()
    assert {key for key in ours if not torch.equal(ours[key], theirs[key])} == afresh
    with pytest.raises(ValueError, match="decoder_heads is not given"):
        create_autoencoder(name, checkpoint=tmp_path / "mae.pth", **shape)
