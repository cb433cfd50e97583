"""Whatever a run refuses, its dry run refuses: with exit code 2, by the key, leaving nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from hiera_video.models import download, pretrained
from hiera_video.models.variants import PUBLISHED

FINETUNE = {
    "augment.rand_augment_magnitude=11": "augment.rand_augment_magnitude is 11",
    "views.short_side=20": "views.short_side is 20; it must be at least 32",
    "train.freeze_stages=9": "train.freeze_stages is 9; it must be from 0 to 4",
    "train.accumulation_steps=3": "x accumulation_steps=3; the nearest that does is 3 (train.",
    "model.image_size=33": "input_size is (4, 33, 33)",
    "model.overrides.q_pool=4": "q_pool is 4",
    "model.name=hiera_bse_16x224": "model.name is 'hiera_bse_16x224'",
    "device=tpu": "device is 'tpu'",
}
PRETRAIN = {
    "masking.mask_ratio=0.97": "keeps nothing of 8 units",
    "model.decoder_heads=3": "model.decoder_heads is 3; it must be a divisor",
    "model.overrides.mask_unit=[1,3,3]": "mask_unit is (1, 3, 3)",
    "optim.layer_decay=0.5": "optim.layer_decay is 0.5; it must be 1.0 in pretraining",
}


@pytest.mark.parametrize("override", FINETUNE)
def test_finetune(commands, tmp_path, override):
    for flags in (["--dry-run"], []):
        result = commands.run(*commands.finetune(tmp_path / "run", override, *flags))
        assert result.code == 2
        result.reports(FINETUNE[override])
        if flags:
            assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", PRETRAIN)
def test_pretrain(commands, tmp_path, override):
    for flags in (["--dry-run"], []):
        result = commands.run(*commands.pretrain(tmp_path / "run", override, *flags))
        assert result.code == 2
        result.reports(PRETRAIN[override])
        if flags:
            assert not (tmp_path / "run").exists()


def memory_of(result):
    return json.loads(result.out)["memory"]


def test_memory_and_steps(commands, tmp_path):
    arguments = commands.finetune(tmp_path / "run", "--dry-run", "train.num_repeats=2")
    result = commands.run(*arguments)
    assert result.code == 0, result.err
    assert " M parameters, 9 steps" not in result.out  # of twice as many clips, five
    assert " M parameters, 5 steps" in result.out
    assert "memory of a process, estimated: weights 0.00 + gradients 0.00 + " in result.out
    assert "(8 clips in a forward pass) = 0." in result.out
    assert not result.err
    printed = json.loads(commands.run(*arguments, "--json").out)
    memory, parameters = printed["memory"], printed["parameters"]
    assert (printed["steps"], memory["weights"]) == (5, 4 * parameters)
    assert memory["gradients"] == 4 * parameters
    assert memory["optimizer"] == 8 * parameters
    assert memory["total"] == 16 * parameters + memory["activations"]
    assert "measured" not in printed
    half = memory_of(commands.run(*arguments, "--json", "train.accumulation_steps=2"))
    assert half["activations"] == pytest.approx(memory["activations"] / 2, rel=0.1)
    less = memory_of(commands.run(*arguments, "--json", "model.grad_checkpointing=true"))
    assert less["activations"] < 0.8 * memory["activations"]


def test_a_batch_that_does_not_fit(commands, monkeypatch, tmp_path):
    monkeypatch.setattr("hiera_video.training.memory.memory_of", lambda device: 2**20)
    result = commands.run(*commands.finetune(tmp_path / "run", "--dry-run"))
    assert result.code == 0
    result.reports(
        "a step needs about", "does not fit on cpu", "train.accumulation_steps=4 (1 clip"
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_measured_steps(commands, tmp_path, workers):
    options = ("--dry-run", "--measure", f"data.num_workers={workers}")
    arguments = commands.finetune(tmp_path / "run", *options, "train.ema_decay=0.9")
    result = commands.run(*arguments)
    assert result.code == 0, result.err
    assert "7 steps measured: " in result.out  # of 9, behind two that warm up
    assert "for 9 steps without validation and checkpoints" in result.out
    assert not (tmp_path / "run").exists()
    measured = json.loads(commands.run(*arguments, "--json").out)["measured"]
    assert (measured["steps"], measured["steps_left"]) == (7, 9)
    assert measured["hours"] == pytest.approx(9 * measured["sec_per_step"] / 3600)
    assert 0 < measured["data_share"] <= 1
    assert not (tmp_path / "run").exists()


def test_measured_steps_of_a_compiled_model(commands, monkeypatch, tmp_path):
    """Its memory is estimated with the model that is not compiled: compilers need real tensors."""
    calls = []

    def compile(model, **how):
        def compiled(clips):
            assert not isinstance(clips, FakeTensor)
            calls.append(clips.shape)
            return model._call_impl(clips)

        model._compiled_call_impl = compiled

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    monkeypatch.setattr("hiera_video.runtime.distributed.check_compiler", lambda *_: None)
    options = ("--dry-run", "--measure", "train.compile=true", "--json")
    result = commands.run(*commands.finetune(tmp_path / "run", *options))
    assert result.code == 0, result.err
    assert json.loads(result.out)["measured"]["steps"] == 7
    assert calls


def test_measured_steps_of_pretraining_and_of_two_processes(commands, tmp_path):
    arguments = commands.pretrain(tmp_path / "run", "--dry-run", "--measure", "--json")
    assert json.loads(commands.run(*arguments).out)["measured"]["steps"] == 7
    first, second = commands.together(*arguments)
    assert json.loads(first.out)["measured"]["steps"] == 7
    assert (first.code, second.code, second.out) == (0, 0, "")
    assert not (tmp_path / "run").exists()


def test_measured_steps_name_what_cannot_be_read(commands, list_of, tmp_path):
    videos = [(commands.toy / f"train_{i}.mp4", "right" if i % 2 else "left") for i in range(8)]
    videos.append((commands.toy / "text.mp4", "left"))
    data = f"data.train={list_of(tmp_path / 'train.csv', videos)}"
    options = (data, "data.max_failed_frac=0.5", "--dry-run", "--measure")
    result = commands.run(*commands.finetune(tmp_path / "run", *options))
    assert result.code == 3
    result.reports("cannot be read: ", "text.mp4")  # once, although three passes are made


def test_the_first_batch_is_read(commands, list_of, tmp_path):
    videos = [(commands.toy / "text.mp4", "left"), (commands.toy / "train_1.mp4", "right")]
    data = f"data.train={list_of(tmp_path / 'train.csv', videos)}"
    result = commands.run(*commands.finetune(tmp_path / "run", data, "--dry-run"))
    assert result.code == 3
    result.reports("cannot be read: ", "text.mp4")
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_list_is_stated_as_it_is(commands, tmp_path):
    """10 training videos, and the learning rate of the recipe is 0.01."""
    overrides = ("train.global_batch_size=64", "train.num_repeats=2", "--dry-run")
    result = commands.run(*commands.finetune(tmp_path / "run", *overrides))
    assert result.code == 0
    steps = "2 steps of 10 videos x 2 clips = 20 clips: 1 process x 1 part x 10 videos"
    assert steps in result.out  # 3 epochs of 2 clips are 1.5 passes of one step
    wrong = "train.global_batch_size=64 is larger than the training list of 10 videos"
    right = "write train.global_batch_size=10 and optim.lr=1.6e-03"  # 0.01 x 10 / 64
    result.reports(wrong, "optim.lr=0.01 is for batches of 64", right)
    result = commands.run(*commands.finetune(tmp_path / "run", "--dry-run"))
    assert "is larger than" not in result.err


@pytest.mark.parametrize("number", [20, 21])
def test_classes_are_counted_where_they_are_few(commands, tmp_path, number):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["left", "right", *map(str, range(2, number))]))
    overrides = (f"data.class_names={names}", "--dry-run")
    result = commands.run(*commands.finetune(tmp_path / "run", *overrides))
    assert result.code == 0, result.err
    assert f"10 training videos of {number} classes" in result.out
    assert ("of each class: 'left' 5, 'right' 5, '2' 0" in result.out) == (number == 20)


def test_what_stands_in_a_default_folder_is_a_warning(commands, trained, tmp_path, monkeypatch):
    """In a folder that was chosen it is refused, as by the run itself."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs/finetune")
    (tmp_path / "runs/finetune/eval").mkdir()
    for result in ("runs/finetune/eval/report.json", "detections/val_0_detections.csv", "demo/x"):
        Path(result).parent.mkdir(exist_ok=True)
        Path(result).touch()
    shutil.copytree("demo", "exported")
    before = sorted(tmp_path.rglob("*"))
    weights, val = "checkpoint=runs/finetune", f"data.val={commands.toy / 'val.csv'}"
    train = [a for a in commands.finetune("x", "optim.lr=0.5") if not str(a).startswith("run_dir=")]
    for arguments, key, folder, reason in (
        (train, "run_dir", "runs/finetune", "holds a run with another configuration"),
        (["evaluate", weights, val], "output_dir", "runs/finetune/eval", "would be replaced"),
        (["export", weights, "format=pt2"], "output_dir", "exported", "which exists"),
        (["demo"], "output_dir", "demo", "holds other files"),
    ):
        result = commands.run(*arguments, "--dry-run")
        assert result.code == 0, result.err
        result.reports("the run itself would end here", folder, reason)
        for options in ([], [f"{key}=./{folder}", "--dry-run"]):
            result = commands.run(*arguments, *options)
            assert result.code in (1, 2)
            result.reports(folder, reason)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["evaluate", "visualize mae", "detect predict", "convert"])
def test_checks_of_outputs_come_before_the_model_is_loaded(
    commands, command, trained, tmp_path, monkeypatch
):
    """A damaged file of weights would be noticed."""
    run_dir = tmp_path / "run"
    shutil.copytree(trained / "weights", run_dir)
    kinds = {"visualize mae": {"autoencoder": {"decoder_heads": 2}}}
    kinds["detect predict"] = {"detector": {"num_classes": 2}}
    if command in kinds:
        config = json.loads((run_dir / "config.json").read_text())
        del config["class_names"], config["views"]
        config |= {"num_classes": None, **kinds[command]}
        config["architecture"]["q_pool"] = 2 if command == "visualize mae" else 3
        del config["multi_label"], config["clips"]
        (run_dir / "config.json").write_text(json.dumps(config))
    (run_dir / "model.safetensors").write_bytes(b"damaged")
    out, video = tmp_path / "out", commands.toy / "val_0.mp4"
    out.mkdir()
    for name in ("report.json", "val_0_normalised.png", "val_0_detections.csv"):
        (out / name).touch()
    data = {"evaluate": f"data.val={commands.toy / 'val.csv'}", "convert": f"output={out}"}
    where = [] if command == "convert" else [f"output_dir={out}", "device=cpu"]
    arguments = [*command.split(), f"checkpoint={run_dir}", data.get(command, video), *where]
    result = commands.run(*arguments)
    assert result.code == 1
    result.reports(str(out), "choose another")


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """An empty cache, and a failure of whatever is downloaded."""

    def fetch(*arguments, **options):
        raise AssertionError("something is downloaded")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(download, "download", fetch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache" / "checkpoints"


def megabytes(name):
    """Of all numbers of a model, counted by building it without weights."""
    with torch.device("meta"):
        model = pretrained.create_model(name)
    return sum(value.numel() for value in model.state_dict().values()) * 4 / 1e6


@pytest.mark.parametrize("command", ["evaluate", "predict", "finetune", "convert"])
def test_a_dry_run_says_what_it_would_download(commands, list_of, no_network, tmp_path, command):
    tag = "hiera_tiny_224.mae_in1k_ft_in1k"
    video, out = commands.toy / "val_0.mp4", tmp_path / "out"
    val = list_of(tmp_path / "val.csv", [(video, 7)])
    arguments = {
        "evaluate": ["evaluate", f"checkpoint={tag}", f"data.val={val}"],
        "predict": ["predict", f"checkpoint={tag}", video],
        "finetune": ["finetune", f"data.train={commands.toy / 'train.csv'}", f"model.init={tag}",
                     "model.name=hiera_tiny_224", "device=cpu", f"run_dir={out}"],
        "convert": ["convert", f"checkpoint={tag}", f"output={out}"],
    }[command]  # fmt: skip
    result = commands.run(*arguments, "--dry-run")
    assert result.code == 0, result.err
    size = f"about {megabytes('hiera_tiny_224'):.0f} MB"
    file = no_network / "hiera_tiny_224.pth"
    result.reports(f"would download {PUBLISHED[tag].url}", "CC-BY-NC-4.0", f"to {file}", size)
    assert not no_network.exists()
    assert not out.exists()


def test_a_dry_run_stops_where_only_a_download_could_tell_more(commands, no_network):
    line = ["predict", commands.toy / "val_0.mp4", "checkpoint=hf://someone/something"]
    result = commands.run(*line, "--dry-run")
    assert result.code == 0
    result.reports("would download https://huggingface.co/someone/something (size unknown)")
    assert commands.run(*line).code == 1
