"""load_settings(): where values come from, and how a mistake is reported."""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hiera_video.errors import ConfigError, UserError
from hiera_video.files import shipped_folder
from hiera_video.settings.advice import SYNONYMS
from hiera_video.settings.base import defaults, leaves
from hiera_video.settings.commands import COMMANDS
from hiera_video.settings.evaluation import (
    EvaluateSettings,
    PredictSettings,
)
from hiera_video.settings.load import (
    Update,
    differences,
    find_config,
    load_for_print,
    load_settings,
    to_yaml,
)
from hiera_video.settings.tools import BenchmarkSettings, DemoSettings, FlopsSettings
from hiera_video.settings.training import (
    DetectTrainSettings,
    FinetuneSettings,
    Optim,
    PretrainSettings,
    Train,
)
from hiera_video.settings.video import Views
from hiera_video.training.run_folder import FIXED, check_same_run, facts_of


def write(tmp_path: Path, text: str, name: str = "recipe.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def finetune(*overrides: Update, files: list[str] | None = None) -> FinetuneSettings:
    return load_settings(FinetuneSettings, files or [], ["data.train=t", *overrides])


def mistake(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        finetune(*overrides)
    return str(error.value)


# Where values come from.


def test_without_anything_it_is_the_defaults():
    assert finetune() == FinetuneSettings(data={"train": "t"})


def test_overrides_win_over_files_and_later_files_over_earlier(tmp_path):
    first = write(tmp_path, "optim: {lr: 1e-3, weight_decay: 0.1}\nrun_dir: first", "1.yaml")
    second = write(tmp_path, "optim: {lr: 2e-3}\ntrain: {epochs: 17}", "2.yaml")
    config = finetune("train.epochs=18", "train.epochs=19", files=[first, second])
    assert config.optim.lr == 2e-3  # of the second file
    assert config.optim.weight_decay == 0.1  # of the first, which the second leaves
    assert config.run_dir == "first"
    assert config.train.epochs == 19  # the last override
    assert config.optim.clip_grad == Optim().clip_grad


def test_files_win_over_the_callers_defaults(tmp_path):
    trained = {"views": {"num_clips": 1, "num_crops": 1}, "clips": {"sampling_rate": 2}}
    file = write(tmp_path, "views: {num_clips: 2}")
    overrides = ["checkpoint=c", "data.val=v", "clips.spacing=strided"]
    config = load_settings(EvaluateSettings, [trained, file], overrides)
    assert (config.views.num_clips, config.views.num_crops) == (2, 1)
    assert (config.clips.sampling_rate, config.clips.spacing) == (2, "strided")


def test_an_empty_file_changes_nothing(tmp_path):
    assert finetune(files=[write(tmp_path, "# nothing\n")]) == finetune()


@pytest.mark.parametrize("name", ["kinetics400/hiera_base", "configs/kinetics400/hiera_base.yaml"])
def test_shipped_recipes_are_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == shipped_folder("configs") / "kinetics400" / "hiera_base.yaml"


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
        ("train.epochs=30", 30.0),
        ("optim.clip_grad=null", None),
        ("augment.crop_area=[0.5,1]", (0.5, 1.0)),
        ("optim.betas=[0.9, 0.95]", (0.9, 0.95)),
        ("model.name=007", "007"),
        ("model.image_size=160", 160),
        ("model.image_size=[128, 160]", (128, 160)),
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


def test_arguments_of_the_architecture():
    config = finetune("model.overrides={mask_unit: [2, 8, 8], sep_pos_embed: false}")
    assert config.model.overrides.arguments() == {"mask_unit": (2, 8, 8), "sep_pos_embed": False}
    printed = config.model_dump(mode="json")
    assert printed["model"]["overrides"] == {"mask_unit": [2, 8, 8], "sep_pos_embed": False}


def test_nothing_is_interpolated(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "leaked")
    text = "${oc.env:SECRET}"
    assert finetune(f"run_dir={text}").run_dir == text
    assert finetune(files=[write(tmp_path, f"run_dir: '{text}'")]).run_dir == text
    assert finetune("run_dir=$SECRET").run_dir == "$SECRET"


def test_files_take_numbers_as_people_write_them(tmp_path):
    config = finetune(files=[write(tmp_path, "optim: {lr: 1e-3, clip_grad: null}")])
    assert config.optim.lr == 0.001  # plain YAML 1.1 reads 1e-3 as text
    assert config.optim.clip_grad is None


def test_lists_of_inputs():
    config = load_settings(PredictSettings, overrides=["inputs=[a.mp4,'b c.mp4']", "checkpoint=c"])
    assert config.inputs == ["a.mp4", "b c.mp4"]


TEXTS = (
    "20261127_1322", "007", "on", "no", "12:30:00", "2026-11-27", "1e3", "0x1f", "1_000", ".inf",
    "~name", "my clips #2", "a: b", "[old] clips", "{a}", "- a", "*a", "&a", "!x", "%x", "@x", "`x",
    "? x", "| x", "> x", "a=b", "null ", "=", "<<", "true", "Null", "#2",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_text(tmp_path, text):
    """Of YAML 1.1 most would be numbers, dates, booleans, comments or mistakes."""
    config = finetune(f"run_dir={text}", f"data.root={text}", f"model.init={text}")
    assert (config.run_dir, config.data.root, config.model.init) == (text, text, text)
    file = write(tmp_path, to_yaml(config))
    assert load_settings(FinetuneSettings, [file]) == config
    quoted = write(tmp_path, f"run_dir: '{text}'\ndata: {{root: '{text}', train: t}}\n")
    config = load_settings(FinetuneSettings, [quoted])
    assert (config.run_dir, config.data.root) == (text, text)
    overrides = ["checkpoint=c", f"inputs=[b, '{text}']"]
    assert load_settings(PredictSettings, overrides=overrides).inputs == ["b", text]


@pytest.mark.parametrize("text", ["20261127_1322", "007", "on", "12:30:00", "2026-11-27", "1e3"])
def test_text_in_yaml_needs_no_quotes(tmp_path, text):
    file = write(tmp_path, f"run_dir: {text}\ndata: {{train: t, split: {text}, class_names: null}}")
    config = load_settings(FinetuneSettings, [file], [f"data.val_split={text}"])
    assert (config.run_dir, config.data.split, config.data.val_split) == (text, text, text)
    assert config.data.class_names is None
    overrides = [f"models=[{text}, b]", "batch_sizes=[1]"]
    assert load_settings(BenchmarkSettings, overrides=overrides).models == (text, "b")
    assert load_settings(FlopsSettings, overrides=[f"model={text}"]).model == text


def test_home_folders_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write(tmp_path, "run_dir: ~/runs\ndata: {train: ~/t.csv, root: ~}\n")
    for config in (
        load_settings(FinetuneSettings, [file]),
        load_settings(FinetuneSettings, [f"~/{Path(file).name}"], ["run_dir=~/runs"]),
    ):
        assert (config.run_dir, config.data.train) == (f"{tmp_path}/runs", f"{tmp_path}/t.csv")
    config = load_settings(PredictSettings, [], ["checkpoint=~/c", {"inputs": ["~/a.mp4", "~$b"]}])
    assert (config.checkpoint, config.inputs) == (f"{tmp_path}/c", [f"{tmp_path}/a.mp4", "~$b"])
    config = PredictSettings(checkpoint=Path("~/c"), inputs=[Path("a.mp4")])  # in Python
    assert (config.checkpoint, config.inputs) == (f"{tmp_path}/c", ["a.mp4"])


def test_configurations_are_frozen():
    config = finetune()
    with pytest.raises(ValidationError, match="frozen"):
        config.run_dir = "elsewhere"
    with pytest.raises(ValidationError, match="frozen"):
        config.optim.lr = 1.0


@settings(max_examples=15, deadline=None)
@given(
    lr=st.floats(1e-9, 10),
    path=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), min_size=1),
    area=st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
    clip_grad=st.none() | st.floats(0.1, 10),
)
def test_what_is_written_reads_back(tmp_path_factory, lr, path, area, clip_grad):
    optim = Optim(lr=lr, clip_grad=clip_grad)
    augment = {"crop_area": area}
    config = FinetuneSettings(data={"train": "t"}, run_dir=path, optim=optim, augment=augment)
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_settings(FinetuneSettings, [str(file)]) == config


# Mistakes.


@pytest.mark.parametrize(
    ("text", "groups"),
    [("train.epochs: 1", "train: {epochs: ...}"), ("a.b.c: 1", "a: {b: {c: ...}}")],
)
def test_a_key_with_dots_in_a_file(tmp_path, text, groups):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_settings(FinetuneSettings, [str(file)])
    assert str(error.value).endswith(f"one key with dots; in YAML, groups are nested: {groups}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "optim.lrr is unknown; did you mean 'optim.lr'?"),
        ("optm.lr=1", "optm.lr is unknown; did you mean 'optim.lr'?"),
        (
            "clips.samplingrate=2",
            "clips.samplingrate is unknown; did you mean 'clips.sampling_rate'?",
        ),
        ("train.zzz=4", "train.zzz is unknown; known here are epochs, "),
        ("optim.lr=fast", "optim.lr is 'fast'; it must be a number above 0"),
        ("optim.lr=nan", "optim.lr is nan; it must be a number above 0"),
        ("optim.lr=[1,2]", "optim.lr is [1, 2]; it must be a number"),
        ("augment.crop_area=[0.5,a]", "augment.crop_area is [0.5, 'a']; it must be [low, high]"),
        ("augment.crop_area=[0.5", "augment.crop_area=[0.5: not valid YAML"),
        ("train.num_repeats=2.5", "train.num_repeats is 2.5; it must be a whole number"),
        ("train.compile=maybe", "train.compile is 'maybe'; it must be true or false"),
        ("train.global_batch_size=null", "train.global_batch_size is not set; it must be a whole"),
        ("augment.crop_area=[0.5]", "augment.crop_area is [0.5]; it must be [low, high]"),
        ("augment.crop_area=0.5", "augment.crop_area is 0.5; it must be [low, high]"),
        ("optim=sgd", "optim is 'sgd'; it must be a group with optimizer, lr"),
        ("optim.optimizer=adam", "optim.optimizer is 'adam'; it must be adamw or sgd"),
        ("clips.sampling=segment", "clips.sampling is 'segment'; it must be clip or segments"),
        (
            "data.backend=opencv",
            "data.backend is 'opencv'; it must be pyav, decord, torchcodec or torchcodec-cuda",
        ),
        ("model.overrides.widths=3", "model.overrides.widths is unknown"),
        (
            "model.overrides.mask_unit=[2,8]",
            "model.overrides.mask_unit is [2, 8]; it must be a list",
        ),
        (
            "model.image_size=[1,2,3]",
            "model.image_size is [1, 2, 3]; it must be a whole number of p",
        ),
        ("train.num_repeats=" + "9" * 5000, "train.num_repeats is 999"),
        (
            "train.num_repeats=2147483648",
            "train.num_repeats is 2147483648; it must be a whole number of at least 1 and of at "
            "most 2,147,483,647",
        ),
        ("train.seed=" + "9" * 4000, "train.seed is 999"),
        ("model.image_size=" + "9" * 4000, "model.image_size is 999"),
        ("model.overrides.embed_dim" + 3000 * ".a" + "=1", "model.overrides.embed_dim is {'a': {"),
        ("optim.lr", "'optim.lr' is not of the form key.path=value"),
        ("", "'' is not of the form key.path=value"),
        ("--lr=1", "--lr is unknown"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_wrong_override_is_one_line(override, message):
    assert mistake(override).startswith(message)
    assert "\n" not in mistake(override)


@pytest.mark.parametrize(
    ("cls", "key", "advice"),
    [
        # The last part of a key, and what others call a setting.
        (FinetuneSettings, "lr", "did you mean 'optim.lr'?"),
        (FinetuneSettings, "train.lr", "did you mean 'optim.lr'?"),
        (FinetuneSettings, "optim.learning_rate", "did you mean 'optim.lr'?"),
        (FinetuneSettings, "learning-rate", "did you mean 'optim.lr'?"),
        (FinetuneSettings, "epochs", "did you mean 'train.epochs'?"),
        (FinetuneSettings, "num_epochs", "did you mean 'train.epochs'?"),
        (
            FinetuneSettings,
            "batch_size",
            "did you mean 'train.global_batch_size' or 'views.batch_size'?",
        ),
        (PredictSettings, "batch_size", "did you mean 'views.batch_size'?"),
        (PretrainSettings, "batch_size", "did you mean 'train.global_batch_size'?"),
        (FinetuneSettings, "model.checkpoint", "did you mean 'model.init'?"),
        (EvaluateSettings, "weights", "did you mean 'checkpoint'?"),
        (FinetuneSettings, "output_dir", "did you mean 'run_dir'?"),
        (EvaluateSettings, "out_dir", "did you mean 'output_dir'?"),
        (FinetuneSettings, "model.embed_dim", "did you mean 'model.overrides.embed_dim'?"),
        # Settings of other commands, and what no setting decides.
        (FinetuneSettings, "model.num_classes", "the number of classes comes from the data"),
        (PretrainSettings, "augment.mixup", "it is a setting of finetune"),
        (EvaluateSettings, "data.train", "it is a setting of finetune, pretrain, detect train"),
        (FinetuneSettings, "masking.mask_ratio", "it is a setting of pretrain, visualize mae, "),
        # Nothing is similar.
        (FinetuneSettings, "model.overrides.widths", "known here are in_chans, "),
        (FinetuneSettings, "hello.a", "known here are data, model, "),
    ],
)
def test_an_unknown_key_names_the_right_one(cls, key, advice):
    nested = functools.reduce(lambda value, name: {name: value}, key.split(".")[::-1], "1")
    for override in (f"{key}=1", nested):
        with pytest.raises(ConfigError) as error:
            load_settings(cls, overrides=[override])
        assert str(error.value).startswith(f"{key} is unknown; {advice}")


def test_the_table_of_synonyms_names_settings_that_there_are():
    names = {key.rpartition(".")[2] for cls in COMMANDS.values() for key, _, _ in leaves(cls)}
    assert {name for meant in SYNONYMS.values() for name in meant} <= names


def test_a_short_run_says_what_to_write_beside_its_epochs():
    """The command that the message gives is right."""
    fix = re.search(r"write (train\.warmup_epochs=\S+) beside", mistake("train.epochs=3"))[1]
    assert finetune("train.epochs=3", fix).train.warmup_epochs == pytest.approx(0.3)


@pytest.mark.parametrize(
    "override",
    [
        "optim.lr=fast",
        "optim.lr=nan",
        "optim=3",
        "optim.betas=[0.9]",
        "optim.betas={a: 1}",
        "train.compile=maybe",
        "augment.crop_area=[0.5",
        "augment.crop_area={a",
        "model.overrides={widths: 3}",
        "model.overrides.stages=[]",
        "model.image_size={}",
        {"run_dir": [1, 2]},
        "clips=null",
        {"run_dir": "\ud800"},
        {"data": {"train": "a\0b"}},
    ],
)
def test_a_message_has_no_name_of_the_code_and_no_sentence_of_a_library(override):
    classes = "|".join({cls.__name__ for cls in COMMANDS.values()} | {"Optim", "RunSettings"})
    phrases = "pydantic|[Vv]alidation|Input should|valid (string|number|dict)|unicode string|Error"
    assert not re.search(rf"\b({classes})\b|{phrases}|errors\.", mistake(override))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lrr: 1}", "optim.lrr is unknown; did you mean 'optim.lr'?"),
        ("optimizer: {lr: 1}", "optimizer.lr is unknown; did you mean 'optim.lr'?"),
        ("optim: {optimizer: adam}", "optim.optimizer is 'adam'; it must be adamw or sgd"),
        ("optim: {lr: fast}", "optim.lr is 'fast'"),
        ("augment: {crop_area: [0.5]}", "augment.crop_area is [0.5]"),
        ("train: {epochs: 30}\noptim: 3", "optim is 3; it must be a group with optimizer, lr"),
        ("optim:", "optim is not set; it must be a group with optimizer, lr"),
        ("- a\n- b", "holds a list, not keys with values"),
        ("only words", "holds the text 'only words', not keys with values"),
        ("optim: [lr", "not valid YAML: "),
        ("optim:\n\tlr: 1", "not valid YAML: a tab; write blanks in its place (line 2, column 1)"),
        ("optim: lr: 1", "not valid YAML: a second ':'; write each key in a line of its own"),
        ("optim: lr=1", "optim is 'lr=1'; it must be a group with optimizer, lr, warmup_lr"),
        ("optim: {lr = 1}", "'optim.lr = 1' is one key; in YAML, write lr: 1"),
        (
            "optim: {lr: 1}\nmodel: {}\noptim: {lr: 2}",
            "not valid YAML: duplicate key optim, which is also in line 1; join them (line 3, ",
        ),
        ("optim: {lr: !!python/object/apply:os.getcwd []}", "not valid YAML: "),
        ("optim: &a {lr: 1}\nmodel: *a", "not valid YAML: an alias; write the value itself"),
        ("optim: " + "[" * 3000, "groups or lists are nested too deeply"),
        ('run_dir: "a\\0b"', "run_dir is 'a\\x00b'; it must be a path"),
        ('run_dir: "\\ud800"', "run_dir is '\\ud800'; it must be a path"),
        ("#" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_wrong_file_is_named_with_its_mistake(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        finetune(files=[file])
    assert str(error.value).startswith(f"{file}: {message}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom\xff\xfe")
    with pytest.raises(ConfigError, match=r"clip\.mp4:1: not UTF-8 text"):
        finetune(files=[str(tmp_path / "clip.mp4")])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("kinetics400/hiera_bse", "did you mean 'kinetics400/hiera_base'?"),
        ("configs/ssv2/hiera_large_16x244.yaml", "'ssv2/hiera_large_16x224'?"),
        ("/zzz", "shipped are"),
        ("demo", "; shipped are demo/ava, demo/finetune, demo/instances"),
    ],
)
def test_a_file_that_is_not_there(name, hint):
    with pytest.raises(ConfigError) as error:
        finetune(files=[name])
    assert str(error.value).startswith(f"{name}: there is no such configuration file")
    assert hint in str(error.value)


def test_a_folder_or_a_pipe_is_not_a_file(tmp_path):
    with pytest.raises(ConfigError, match="there is no such configuration file"):
        finetune(files=[str(tmp_path)])
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml: a folder, a pipe or a device; expected"):
        finetune(files=[str(tmp_path / "a.yaml")])


def test_names_of_files_that_are_not_utf8(tmp_path):
    path = os.fsdecode(b"\xff.mp4")
    config = finetune(f"data.val={path}")
    assert config.data.val == path
    assert finetune(files=[write(tmp_path, to_yaml(config))]).data.val == path
    with pytest.raises(ConfigError, match=r"run_dir is .*must be a path in UTF-8"):
        finetune({"run_dir": path})


# Values that are of the right type and still wrong.


def test_training_needs_data():
    with pytest.raises(ConfigError, match=r"^data\.train is not set; .*list file or a folder"):
        load_settings(FinetuneSettings)


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("model.drop_path=1", "a number of at least 0 and below 1"),
        ("model.head_dropout=-0.1", "a number of at least 0 and below 1"),
        (
            "augment.crop_area=[0.5, 0.1]",
            "[low, high] with low <= high, each a number above 0 and of at most 1",
        ),
        (
            "augment.crop_area=[0, 1]",
            "[low, high] with low <= high, each a number above 0 and of at most 1",
        ),
        (
            "augment.crop_area=[0.5, 1.5]",
            "[low, high] with low <= high, each a number above 0 and of at most",
        ),
        ("augment.crop_aspect=[2, 1]", "[low, high] with low <= high, each a number above 0"),
        ("augment.rand_augment_magnitude=11", "a number of at least 0 and of at most 10, or null"),
        ("augment.erasing_prob=1.5", "a number of at least 0 and of at most 1"),
        ("train.global_batch_size=0", "a whole number of at least 1"),
        ("train.num_repeats=-1", "a whole number of at least 1"),
        ("train.warmup_epochs=100", "less than train.epochs=100"),
        ("optim.lr=0", "a number above 0"),
        ("optim.betas=[0.9, 1]", "a list of 2, each a number of at least 0 and below 1"),
        ("optim.layer_decay=1.1", "a number above 0 and of at most 1"),
        ("optim.layer_decay=0", "a number above 0 and of at most 1"),
        ("optim.pos_embed_lr_scale=0", "a number above 0, or null"),
        ("clips.sampling_rate=0", "a whole number of at least 1"),
        ("clips.target_fps=0", "a number of at least 0.001 and of at most 10000, or null"),
        ("views.num_crops=2", "1 or 3"),
        ("views.num_clips=0", "a whole number of at least 1"),
        ("views.batch_size=0", "a whole number of at least 1"),
        ("views.short_side=0", "a whole number of at least 1 and of at most 16384, or null"),
        ("optim.clip_grad=0", "a number above 0, or null"),
        ("train.ema_decay=1", "a number of at least 0 and below 1, or null"),
        ("augment.mixup=-1", "a number of at least 0"),
        ("train.seed=-1", "a whole number of at least 0"),
        ("train.evaluate_every=0", "a number above 0, or null"),
        ("data.num_workers=-1", "a whole number of at least 0, or null"),
        ("data.deadline_sec=0", "a number above 0"),
    ],
)
def test_a_value_out_of_range_names_key_value_and_range(override, allowed):
    key, _, value = override.partition("=")
    assert mistake(override).startswith(f"{key} is {value}; it must be {allowed}")


def test_segments_have_one_or_two_test_clips():
    message = mistake("clips.sampling=segments")  # with the default 5 clips
    assert message.startswith("views.num_clips is 5")
    assert "1 or 2" in message
    assert "clips.sampling=segments" in message
    finetune("clips.sampling=segments", "views.num_clips=2")


def test_a_probe_freezes_the_backbone_by_itself():
    message = mistake("train.train_only=head", "train.freeze_stages=1", "model.init=w.pth")
    assert message.startswith("train.freeze_stages is 1")
    assert "train_only=head" in message


def test_a_probe_needs_weights():
    message = mistake("train.train_only=head")
    assert message.startswith("model.init is not set")
    assert "train.train_only=head" in message
    assert "model.init" in mistake("train.train_only=head", "augment={mixup: 0, cutmix: 0}")
    finetune("train.train_only=head", "model.init=w.pth")


@pytest.mark.parametrize(
    ("cls", "overrides", "key"),
    [
        (EvaluateSettings, ["data.val=v"], "checkpoint"),
        (EvaluateSettings, ["checkpoint=c"], "data.val"),
        (
            EvaluateSettings,
            ["checkpoint=c", "data.val=v", "data.num_workers=-1"],
            "data.num_workers",
        ),
        (DemoSettings, ["seed=-1"], "seed"),
        (PredictSettings, ["checkpoint=c"], "FILE"),
        (PredictSettings, ["inputs=[a.mp4]"], "checkpoint"),
        (PredictSettings, ["inputs=[a.mp4]", "checkpoint=c", "top_k=0"], "top_k"),
    ],
)
def test_other_commands_name_what_they_miss(cls, overrides, key):
    with pytest.raises(ConfigError, match=f"^{key} is "):
        load_settings(cls, overrides=overrides)


def test_python_takes_and_checks_the_same_values():
    assert Optim(betas=(0.9, 0.95)).betas == (0.9, 0.95)
    message = "lr is 0; it must be a number above 0. momentum is unknown; known here are opti"
    with pytest.raises(ConfigError, match=f"^Optim: {message}") as error:
        Optim(lr=0, momentum=0.9)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"must be less than train\.epochs=3"):
        Train(epochs=3)
    with pytest.raises(ConfigError, match="did you mean 'weight_decay'"):
        Optim(weightdecay=0.1)
    with pytest.raises(ConfigError, match=r"^Views: num_clips is 'x'; it must be a whole"):
        Views(num_clips="x")
    with pytest.raises(TypeError, match="Views takes its arguments by name: num_clips, "):
        Views(5)


# What is printed.


def test_a_configuration_without_its_required_settings_is_printed():
    printed = load_for_print(EvaluateSettings, overrides=["views.num_clips=2", "precision=bf16"])
    assert printed["checkpoint"] is None
    assert printed["data"]["val"] is None
    assert (printed["views"]["num_clips"], printed["precision"]) == (2, "bf16")
    with pytest.raises(ConfigError, match=r"views\.num_clips is 0"):
        load_for_print(EvaluateSettings, overrides=["views.num_clips=0"])


def test_every_setting_is_described():
    fragment = r"(Of (?!several)|As |How well\b|\S+'s\.)"  # `Of the forward pass.`
    for cls in COMMANDS.values():
        for key, field, _ in leaves(cls):
            assert field.description, key
            assert not re.match(fragment, field.description), key
    assert defaults(DetectTrainSettings)["optim"]["lr"] == 1e-4  # of the command, not of the class


# Resuming with another configuration.


def test_differences_are_listed_by_key():
    changed = finetune("optim.lr=1", "augment.crop_area=[0.5,1]")
    assert differences(finetune(), changed) == {
        "augment.crop_area": ([0.08, 1.0], [0.5, 1.0]),
        "optim.lr": (0.0008, 1.0),
    }


def test_a_run_is_not_resumed_with_another_configuration(tmp_path):
    data = {"train": "t.csv", "videos": 8, "fingerprint": "a"}
    saved = json.loads(json.dumps(facts_of(finetune(), data, "fp32")))
    latest = tmp_path / "checkpoints" / "step_00000001"
    check = functools.partial(check_same_run, latest, saved, data=data, precision="fp32")
    check(settings=finetune("device=cpu", "data.max_read_gib=9"))  # results stay the same
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.0008 -> 1\.0.*overwrite_config=true"):
        check(settings=finetune("optim.lr=1"))
    check(settings=finetune("optim.lr=1", "overwrite_config=true"))
    with pytest.raises(ConfigError, match=rf"{tmp_path} holds a run that this command does not"):
        check(settings=load_settings(PretrainSettings, [], ["data.train=t", "model.init=i"]))
    with pytest.raises(UserError, match=r"other data: t\.csv \(8 videos\) has changed since then"):
        check(settings=finetune(), data=data | {"fingerprint": "b"})
    other = {"train": "u.csv", "videos": 9, "fingerprint": "b"}
    with pytest.raises(UserError, match=r"t\.csv \(8 videos\), now u\.csv \(9 videos\); restore"):
        check(settings=finetune("data.train=u.csv", "overwrite_config=true"), data=other)
    for change, text, weights in (
        ("model.image_size=64", "model.image_size: null -> 64", latest),
        ("optim.optimizer=sgd", 'optim.optimizer: "adamw" -> "sgd"', latest),
        ("train.ema_decay=0.9", "train.ema_decay: null -> 0.9", tmp_path),
        ("model.name=hiera_tiny_16x224", 'model.name: "hiera_base_16x224" -> ', None),
    ):
        if weights == tmp_path:
            (tmp_path / "weights").mkdir()
        with pytest.raises(ConfigError) as error:
            check(settings=finetune(change, "overwrite_config=true"))
        assert text in str(error.value)
        assert "overwrite_config" not in str(error.value)
        assert (f"model.init={weights} starts" in str(error.value)) == (weights is not None)


def test_settings_that_decide_what_a_checkpoint_holds_are_settings():
    classes = (FinetuneSettings, PretrainSettings)
    assert FIXED.keys() <= {key for cls in classes for key, _, _ in leaves(cls)}


def test_old_names_in_saved_runs_are_read(tmp_path):
    file = write(tmp_path, "data: {seconds: [902.0, 1798.0]}")
    config = load_settings(DetectTrainSettings, [file], ["data.train=t", "data.label_map=l"])
    assert config.data.keyframe_range_sec == (902.0, 1798.0)
