"""load_config(): where values come from, and what a mistake is told."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.config import (
    ConfigError,
    DemoConfig,
    EvaluateConfig,
    FinetuneConfig,
    PredictConfig,
    check_same_config,
    configs_folder,
    differences,
    find_config,
    load_config,
    to_dict,
    to_yaml,
)


def write(tmp_path: Path, text: str, name: str = "recipe.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def finetune(*overrides: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, overrides=overrides)


def check_message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        finetune("data.train=t", *overrides).check()
    return str(error.value)


# Where values come from.


def test_without_anything_it_is_the_defaults():
    assert finetune() == FinetuneConfig()


def test_overrides_win_over_files_and_later_files_over_earlier(tmp_path):
    first = write(tmp_path, "optim: {lr: 1e-3, weight_decay: 0.1}\nrun_dir: first", "1.yaml")
    second = write(tmp_path, "optim: {lr: 2e-3}\ntrain: {epochs: 7}", "2.yaml")
    config = load_config(FinetuneConfig, [first, second], ["train.epochs=8", "train.epochs=9"])
    assert config.optim.lr == 2e-3  # of the second file
    assert config.optim.weight_decay == 0.1  # of the first, which the second leaves
    assert config.run_dir == "first"
    assert config.train.epochs == 9  # the last override
    assert config.optim.clip_grad == FinetuneConfig().optim.clip_grad


def test_files_win_over_the_callers_defaults(tmp_path):
    trained = {"views": {"num_clips": 1, "num_crops": 1}, "clips": {"sampling_rate": 2}}
    file = write(tmp_path, "views: {num_clips: 2}")
    config = load_config(EvaluateConfig, [file], ["clips.spacing=strided"], trained)
    assert (config.views.num_clips, config.views.num_crops) == (2, 1)
    assert (config.clips.sampling_rate, config.clips.spacing) == (2, "strided")


def test_an_empty_file_changes_nothing(tmp_path):
    assert load_config(FinetuneConfig, [write(tmp_path, "# nothing\n")]) == FinetuneConfig()


@pytest.mark.parametrize("name", ["kinetics400/hiera_base", "configs/kinetics400/hiera_base.yaml"])
def test_shipped_recipes_are_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == configs_folder() / "kinetics400" / "hiera_base.yaml"


def test_a_file_of_ones_own_goes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/ssv2").mkdir(parents=True)
    own = tmp_path / "configs/ssv2/hiera_large_16x224.yaml"
    own.write_text("run_dir: own")
    assert find_config("configs/ssv2/hiera_large_16x224.yaml").resolve() == own


# Values.


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.init=a=b.pth", "a=b.pth"),  # only the first "=" separates
        ("model.init=https://x.org/w.pth?a=1&b=2", "https://x.org/w.pth?a=1&b=2"),
        ("model.init=/videos/größe 5/w.pth", "/videos/größe 5/w.pth"),
        ("model.init=null", None),
        ("model.init=5", "5"),  # text stays text
        ("train.epochs=1e2", 100.0),
        ("train.epochs=3", 3.0),
        ("optim.clip_grad=null", None),
        ("augment.crop_area=[0.5,1]", (0.5, 1.0)),
        ("optim.betas=[0.9, 0.95]", (0.9, 0.95)),
        ("model.overrides.mask_unit=[2,8,8]", {"mask_unit": [2, 8, 8]}),
        (
            "model.overrides={mask_unit: [2, 8, 8], q_pool: 2}",
            {"mask_unit": [2, 8, 8], "q_pool": 2},
        ),
        ("augment.flip=false", False),
        ("clips.target_fps=29.97", 29.97),
    ],
)
def test_a_value_on_the_command_line(override, expected):
    config = finetune(override)
    for name in override.partition("=")[0].split(".")[:2]:
        config = getattr(config, name)
    assert config == expected
    assert type(config) is type(expected)


def test_files_take_numbers_as_people_write_them(tmp_path):
    config = load_config(FinetuneConfig, [write(tmp_path, "optim: {lr: 1e-3, clip_grad: null}")])
    assert config.optim.lr == 0.001  # plain YAML 1.1 reads 1e-3 as text
    assert config.optim.clip_grad is None


def test_lists_of_inputs():
    config = load_config(PredictConfig, overrides=["inputs=[a.mp4,'b c.mp4']"])
    assert config.inputs == ["a.mp4", "b c.mp4"]


def test_configurations_are_frozen():
    config = finetune()
    with pytest.raises(FrozenInstanceError):
        config.run_dir = "elsewhere"
    with pytest.raises(FrozenInstanceError):
        config.optim.lr = 1.0


@settings(max_examples=15, deadline=None)
@given(
    lr=st.floats(1e-9, 10),
    path=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), min_size=1),
    area=st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
    clip_grad=st.none() | st.floats(0.1, 10),
)
def test_what_is_written_reads_back(tmp_path_factory, lr, path, area, clip_grad):
    written = FinetuneConfig(run_dir=path.replace("$", ""))
    values = to_dict(written)
    values["optim"].update(lr=lr, clip_grad=clip_grad)
    values["augment"]["crop_area"] = list(area)
    config = load_config(FinetuneConfig, defaults=values)
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(FinetuneConfig, [str(file)]) == config


# Mistakes.


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.lrr=1", ["'lrr'", "OptimConfig", "'lr'"]),
        ("optm.lr=1", ["'optm'", "'optim'"]),
        ("clips.samplingrate=2", ["'samplingrate'", "'sampling_rate'"]),
        ("train.num_repeat=4", ["'num_repeat'", "'num_repeats'"]),
        ("optim.lr=fast", ["optim.lr=fast", "Float"]),
        ("optim.lr=[1,2]", ["optim.lr", "Float"]),
        ("augment.crop_area=[0.5,a]", ["augment.crop_area", "Float"]),
        ("model.overrides={mask_unit:[2,8,8]}", ["model.overrides", "not valid YAML"]),
        ("train.num_repeats=2.5", ["2.5", "Integer"]),
        ("train.compile=maybe", ["'maybe'", "bool"]),
        ("train.global_batch_size=null", ["train.global_batch_size", "int"]),
        ("augment.crop_area=[0.5]", ["augment.crop_area", "length 1", "length 2"]),
        ("augment.crop_area=0.5", ["augment.crop_area", "float"]),
        ("optim=sgd", ["optim=sgd", "OptimConfig"]),
        ("optim.optimizer=adam", ["'adam'", "adamw", "sgd"]),
        ("clips.sampling=segment", ["'segment'", "clip", "segments"]),
        ("data.backend=opencv", ["'opencv'", "pyav", "decord", "torchcodec"]),
        ("data.train=${nothing}", ["nothing"]),
        ("optim.lr", ["'optim.lr'", "key.path=value"]),
        ("", ["''", "key.path=value"]),
        ("--lr=1", ["--lr"]),
    ],
)
def test_a_wrong_override_is_told_in_one_line(override, parts):
    with pytest.raises(ConfigError) as error:
        finetune(override)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim: {lrr: 1}", ["'lrr'", "'lr'"]),
        ("optimizer: {lr: 1}", ["'optimizer'"]),
        ("optim: {optimizer: adam}", ["'adam'", "adamw", "sgd"]),
        ("optim: {lr: fast}", ["optim.lr", "'fast'"]),
        ("augment: {crop_area: [0.5]}", ["augment.crop_area", "length 1"]),
        ("train: {epochs: 3}\noptim: 3", [": optim: "]),
        ("optim:", ["optim"]),  # a section without keys
        ("- a\n- b", ["a list"]),
        ("only words", ["only words"]),
        ("optim: [lr", ["not valid YAML", "line 1"]),
        ("optim:\n\tlr: 1", ["not valid YAML", "line 2"]),
        ("optim: {lr: 1}\noptim: {lr: 2}", ["duplicate key optim", "line 2"]),
    ],
)
def test_a_wrong_file_is_named_with_its_mistake(tmp_path, text, parts):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(FinetuneConfig, [file])
    message = str(error.value)
    assert "\n" not in message
    for part in [file, *parts]:
        assert part in message


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom\xff\xfe")
    with pytest.raises(ConfigError, match=r"clip\.mp4: not valid YAML"):
        load_config(FinetuneConfig, [str(tmp_path / "clip.mp4")])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("kinetics400/hiera_bse", "did you mean kinetics400/hiera_base?"),
        ("configs/ssv2/hiera_large_16x244.yaml", "ssv2/hiera_large_16x224?"),
        ("/zzz", "shipped are"),
    ],
)
def test_a_file_that_is_not_there(name, hint):
    with pytest.raises(ConfigError) as error:
        load_config(FinetuneConfig, [name])
    assert str(error.value).startswith(f"{name}: there is no such configuration file")
    assert hint in str(error.value)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(ConfigError, match="there is no such configuration file"):
        load_config(FinetuneConfig, [str(tmp_path)])


# check(): values that are of the right type and still wrong.


def test_training_needs_data():
    with pytest.raises(ConfigError, match=r"^data\.train is not set: .*list file or a folder"):
        finetune().check()


@pytest.mark.parametrize(
    ("override", "key", "parts"),
    [
        ("model.drop_path=1", "model.drop_path", ["1.0", "less than 1"]),
        ("model.head_dropout=-0.1", "model.head_dropout", ["-0.1", "from 0"]),
        ("augment.crop_area=[0.5,0.1]", "augment.crop_area", ["[0.5, 0.1]", "<= 1"]),
        ("augment.crop_area=[0,1]", "augment.crop_area", ["[0.0, 1.0]", "0 < low"]),
        ("augment.crop_area=[0.5,1.5]", "augment.crop_area", ["1.5", "<= 1"]),
        ("augment.crop_aspect=[2,1]", "augment.crop_aspect", ["[2.0, 1.0]", "low <= high"]),
        ("train.global_batch_size=0", "train.global_batch_size", ["0", "above 0"]),
        ("train.num_repeats=-1", "train.num_repeats", ["-1", "above 0"]),
        ("train.warmup_epochs=100", "train.warmup_epochs", ["100", "train.epochs=100"]),
        ("optim.lr=0", "optim.lr", ["0", "above 0"]),
        ("optim.layer_decay=1.1", "optim.layer_decay", ["1.1", "up to 1"]),
        ("optim.layer_decay=0", "optim.layer_decay", ["0", "above 0"]),
        ("clips.sampling_rate=0", "clips.sampling_rate", ["0", "above 0"]),
        ("views.num_crops=2", "views.num_crops", ["2", "1 or 3"]),
        ("views.num_clips=0", "views.num_clips", ["0", "above 0"]),
        ("views.batch_size=0", "views.batch_size", ["0", "above 0"]),
        ("views.short_side=0", "views.short_side", ["0", "above 0"]),
        ("clips.target_fps=0", "clips.target_fps", ["0", "above 0"]),
        ("optim.clip_grad=0", "optim.clip_grad", ["0", "above 0"]),
        ("train.ema_decay=1", "train.ema_decay", ["1", "less than 1"]),
        ("augment.mixup=-1", "augment.mixup", ["-1", "0 (none)"]),
        ("train.seed=-1", "train.seed", ["-1", "0 or more"]),
        ("train.evaluate_every=0", "train.evaluate_every", ["0", "above 0"]),
        ("data.num_workers=-1", "data.num_workers", ["-1", "0 or more"]),
        ("data.deadline_sec=0", "data.deadline_sec", ["0", "above 0"]),
    ],
)
def test_a_value_out_of_range_names_key_value_and_range(override, key, parts):
    message = check_message(override)
    assert message.startswith(f"{key} is ")
    for part in parts:
        assert part in message


def test_segments_have_one_or_two_test_clips():
    message = check_message("clips.sampling=segments")  # with the default 5 clips
    assert message.startswith("views.num_clips is 5")
    assert "1 or 2" in message
    assert "clips.sampling=segments" in message
    finetune("data.train=t", "clips.sampling=segments", "views.num_clips=2").check()


def test_a_probe_freezes_the_backbone_by_itself():
    message = check_message("train.train_only=head", "train.freeze_stages=1", "model.init=w.pth")
    assert message.startswith("train.freeze_stages is 1")
    assert "train.train_only=head" in message


def test_a_probe_needs_weights():
    message = check_message("train.train_only=head")
    assert message.startswith("model.init is not set")
    assert "train.train_only=head" in message
    assert "model.init" in check_message("train.train_only=head", "augment={mixup: 0, cutmix: 0}")
    finetune("data.train=t", "train.train_only=head", "model.init=w.pth").check()


@pytest.mark.parametrize(
    ("cls", "overrides", "key"),
    [
        (EvaluateConfig, ["data.val=v"], "checkpoint"),
        (EvaluateConfig, ["checkpoint=c"], "data.val"),
        (EvaluateConfig, ["checkpoint=c", "data.val=v", "data.num_workers=-1"], "data.num_workers"),
        (DemoConfig, ["seed=-1"], "seed"),
        (PredictConfig, ["checkpoint=c"], "FILE"),
        (PredictConfig, ["inputs=[a.mp4]"], "checkpoint"),
        (PredictConfig, ["inputs=[a.mp4]", "checkpoint=c", "top_k=0"], "top_k"),
    ],
)
def test_other_commands_name_what_they_miss(cls, overrides, key):
    with pytest.raises(ConfigError, match=f"^{key} is "):
        load_config(cls, overrides=overrides).check()


# Resuming with another configuration.


def test_differences_are_listed_by_key():
    changed = to_dict(finetune("optim.lr=1", "augment.crop_area=[0.5,1]"))
    assert differences(to_dict(finetune()), changed) == [
        "augment.crop_area: [0.08, 1.0] -> [0.5, 1.0]",
        "optim.lr: 0.0008 -> 1.0",
    ]


def test_a_run_is_not_resumed_with_another_configuration(tmp_path):
    saved = tmp_path / "config.yaml"
    check_same_config(saved, finetune())  # no run yet
    saved.write_text(to_yaml(finetune()))
    check_same_config(saved, finetune("device=cpu", "data.num_workers=3"))  # results stay the same
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.0008 -> 1\.0.*overwrite_config=true"):
        check_same_config(saved, finetune("optim.lr=1"))
    check_same_config(saved, finetune("optim.lr=1", "overwrite_config=true"))
