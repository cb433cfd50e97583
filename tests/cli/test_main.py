"""The command line: what it accepts, what it says, and its exit codes. Nothing is trained here."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hiera_video
from hiera_video.cli import main as cli
from hiera_video.cli.help import EXIT_CODES, summary
from hiera_video.cli.main import COMMANDS, main
from hiera_video.cli.paths import check_paths
from hiera_video.errors import ConfigError, UserError
from hiera_video.files import write_json
from hiera_video.models.card import ModelCard
from hiera_video.models.variants import VARIANTS
from hiera_video.settings.base import Existing, leaves, metadata_of, shown_key
from hiera_video.settings.load import load_for_print, load_settings

ROOT = Path(__file__).parents[2]


def save_card(folder, *, kind):
    """A weights folder without the weights, which a command would load after it has started."""
    architecture = {k: v for k, v in VARIANTS["hiera_tiny_16x224"].items() if k != "num_classes"}
    entries = {
        "classifier": {"num_classes": 2},
        "autoencoder": {"num_classes": None, "autoencoder": {"decoder_heads": 2}},
        "detector": {"num_classes": None, "detector": {"num_classes": 2}},
        "segmenter": {"num_classes": None, "segmenter": {"num_classes": 2}},
    }[kind]
    folder.mkdir()
    card = ModelCard(architecture=architecture, **entries)
    write_json(folder / "config.json", card.to_json())


@pytest.fixture
def seen(monkeypatch):
    """Instead of running, commands record (config, dry_run, as_json)."""
    calls = []

    class Command:
        @staticmethod
        def run(config, *, dry_run, as_json, **more):
            calls.append((config, dry_run, as_json, *more.items()))
            return 0

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Command)
    monkeypatch.setattr(cli, "check_paths", lambda settings, kind: None)
    return calls


def raising(monkeypatch, error):
    def run(config, **_):
        raise error

    monkeypatch.setattr(cli, "check_paths", lambda settings, kind: None)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: type("C", (), {"run": run}))


@pytest.mark.parametrize(
    "arguments",
    [
        ["data.train=x", "optim.lr=0.5", "--dry-run", "--config", "FILE"],
        ["--config", "FILE", "data.train=x", "--dry-run", "optim.lr=0.5"],
        ["optim.lr=0.5", "--dry-run", "--config=FILE", "data.train=x"],
    ],
)
def test_options_and_settings_in_any_order(seen, tmp_path, arguments):
    (tmp_path / "c.yaml").write_text("optim: {lr: 7, weight_decay: 0.25}")
    file = str(tmp_path / "c.yaml")
    assert main(["finetune", *(a.replace("FILE", file) for a in arguments)]) == 0
    ((config, dry_run, as_json),) = seen
    assert (config.optim.lr, config.optim.weight_decay) == (0.5, 0.25)  # the line wins
    assert dry_run
    assert not as_json


def test_later_files_win(seen, tmp_path):
    (tmp_path / "a.yaml").write_text("optim: {lr: 1, weight_decay: 1}")
    (tmp_path / "b.yaml").write_text("optim: {lr: 2}")
    files = [f"--config={tmp_path / name}.yaml" for name in "ab"]
    assert main(["finetune", *files, "data.train=x"]) == 0
    assert (seen[0][0].optim.lr, seen[0][0].optim.weight_decay) == (2, 1)


def test_steps_are_measured_in_dry_runs_of_training(seen, capsys):
    assert main(["finetune", "data.train=x", "--measure", "--dry-run"]) == 0
    assert seen[0][1:] == (True, False, ("measured", True))
    for arguments, reason in (
        (["finetune", "data.train=x", "--measure"], "--measure is for dry runs: add --dry-run"),
        (["evaluate", "checkpoint=x", "--measure", "--dry-run"], "unknown option --measure"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert reason in capsys.readouterr().err
    assert len(seen) == 1


def test_files_of_predict_stand_anywhere(seen):
    assert main(["predict", "a b.mp4", "--json", "checkpoint=run", "ä.mp4", "top_k=2"]) == 0
    ((config, _, as_json),) = seen
    assert config.inputs == ["a b.mp4", "ä.mp4"]
    assert config.top_k == 2
    assert as_json


def test_settings_without_a_dot_are_options_too(seen):
    line = ["visualize", "mae", "--output-dir", "a b", "x.mp4", "--overwrite", "--checkpoint=run"]
    assert main([*line, "y.mp4"]) == 0
    ((config, *_),) = seen
    assert (config.output_dir, config.overwrite, config.checkpoint) == ("a b", True, "run")
    assert config.inputs == ["x.mp4", "y.mp4"]


@pytest.mark.parametrize("words", [[], ["movie.mp4"]])
def test_half_a_command_names_its_second_word(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(["visualize", *words])
    assert left.value.code == 2
    assert "visualize needs a second word, mae or attention" in capsys.readouterr().err


def test_help_of_half_a_command_lists_its_commands(capsys):
    with pytest.raises(SystemExit) as left:
        main(["detect", "--help"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["train", "evaluate", "predict", "score"]


def test_paths_with_spaces_equals_and_other_scripts(seen):
    path = "/data/Ümläut und = mehr/日本.csv"
    assert main(["finetune", f"data.train={path}"]) == 0
    assert seen[0][0].data.train == path


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"demo"}))
def test_print_config_round_trips(command, tmp_path, capsys):
    cls = COMMANDS[command]
    changes = {"finetune": ["optim.lr=3.0e-05", "augment.crop_area=[0.25,0.5]"]}.get(command, [])
    assert main([command, "--print-config", *changes]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "whole.yaml").write_text(printed)
    assert load_for_print(cls, [str(tmp_path / "whole.yaml")]) == load_for_print(cls, [], changes)
    assert main([command, "--print-config", "--config", str(tmp_path / "whole.yaml")]) == 0
    assert capsys.readouterr().out == printed
    assert yaml.safe_load(printed).keys() == cls.model_fields.keys()


def test_print_config_of_a_shipped_recipe(capsys):
    assert main(["finetune", "--config", "kinetics400/hiera_base", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["name"] == "hiera_base_16x224"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["finetune", "optim.lrr=1"], ["optim.lrr", "'optim.lr'"]),
        (["finetune", "lr=1"], ["did you mean 'optim.lr'?"]),
        (["finetune", "data.train"], ["'data.train' is not of the form key.path=value"]),
        (["finetune", "train.num-repeats=2"], ["key.path=value; write train.num_repeats=2"]),
        (["finetune"], ["data.train is not set"]),
        (
            ["finetune", "--config", "kinetics400/hiera_bse"],
            ["did you mean 'kinetics400/hiera_base'"],
        ),
        (["evaluate", "data.val=x"], ["checkpoint is not set"]),
        (["evaluate", "checkpoint=x"], ["data.val is not set"]),
        (["predict", "checkpoint=x"], ["FILE is not set"]),
        (["predict", "a.mp4"], ["checkpoint is not set"]),
        (["finetune", "train/epochs=3"], ["write train.epochs=3"]),
        (["finetune", "train.epochs: 3"], ["write train.epochs=3"]),
        (["finetune", "learning-rate=3"], ["write optim.lr=3"]),
        (["finetune", "train.epochs", "=", "3"], ["write train.epochs=3, without blanks"]),
        (["finetune", "train.epochs", "3"], ["write train.epochs=3, without blanks"]),
        (["finetune", "train.epochs=", "3"], ["write train.epochs=3, without blanks"]),
        (["predict", "top_k", "=", "3"], ["'top_k' is not a FILE; write top_k=3, without"]),
        (["finetune", "mine.yaml"], ["write --config mine.yaml"]),
        (["finetune", "kinetics400/hiera_base"], ["write --config kinetics400/hiera_base"]),
        (["finetune", "config=mine.yaml"], ["given as --config FILE"]),
        (["finetune", "--config", "/"], ["no such configuration file"]),
        (["detect", "score", "a", "b"], ["ground_truth=FILE detections=FILE label_map=FILE"]),
        (["evaluate", "data=val.csv"], ["did you mean 'data.val'?"]),
        (["finetune", "model=hiera_tiny_224"], ["did you mean 'model.name'?"]),
        (["predict", "a.pth"], ["checkpoint=a.pth"]),
        (["predict", "hiera_tiny_224.mae_in1k_ft_in1k"], ["write checkpoint=hiera_tiny_224."]),
        (["convert", "checkpoint=x", "output=a.pth"], ["output is 'a.pth'", "layout=official"]),
        (["flops"], ["MODEL is not set"]),
        (["flops", "a", "b"], ["'b' is a second MODEL"]),
        (["flops", "a", "--table"], ["table is True"]),
        (["flops", "a", "num_clips=0"], ["num_clips is 0"]),
        (["flops", "a", "image_size=[1,2,3]"], ["image_size is [1, 2, 3]"]),
        (["flops", "a", "overrides.input_size=[1,2,3]"], ["overrides.input_size"]),
        (["flops", "a", "task=pretraining", "num_classes=3"], ["num_classes is 3"]),
        (["flops", "a", "masking.mask_ratio=1"], ["masking.mask_ratio is 1"]),
        (["flops", "--config", "ava/hiera_base"], ["finetune or detect train", "task=detection"]),
        (["flops", "--config", "ava/hiera_bse"], ["did you mean 'ava/hiera_base'?"]),
        (["flops", "--config", "extract/views"], ["extract/views", "windows"]),
        (["predict", "a.mp4", "checkpoint=x", "top_k=0"], ["top_k is 0"]),
    ],
)
def test_usage_and_configuration_exit_with_2(capsys, arguments, parts):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"hiera-video {arguments[0]}")
    assert all(part in err for part in parts)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["finetun"], "there is no command 'finetun'; did you mean 'finetune'?"),
        (["visualise", "mae", "x.mp4"], "did you mean 'visualize mae'?"),
        (["help", "predct"], "did you mean 'predict'?"),
        (["detect", "trian"], "'trian'; did you mean 'train'?"),
        (["xyz"], "there is no command 'xyz'; there are finetune, evaluate, "),
        (["--json", "predict"], "'--json' stands before the command"),
        (["optim.lr=1", "finetune"], "'optim.lr=1' stands before the command"),
        (["finetune", "--lr", "0.1"], "unknown option --lr; write optim.lr=0.1"),
        (["finetune", "--epochs=3", "--json"], "unknown option --epochs; write train.epochs=3"),
        (["finetune", "--optim.lr", "data.train=x"], "write optim.lr=VALUE"),
        (["finetune", "--num-classes", "4"], "the number of classes comes from the data"),
        (["predict", "--zzz"], "settings are given as key.path=VALUE: see --help"),
        (["predict", "--data"], "settings are given as key.path=VALUE: see --help"),
        (["evaluate", "--data", "val.csv"], "write data.val=val.csv"),
        (["finetune", "-train.epochs=3"], "unknown option -train.epochs; write train.epochs=3"),
        (
            ["finetune", "-c", "a.yaml"],
            "unknown option -c; a file of settings is given as --config",
        ),
        (["finetune", "--dryrun"], "did you mean '--dry-run'?"),
        (["train"], "did you mean finetune, pretrain or detect train?"),
        (["test"], "did you mean evaluate?"),
        (["finetune", "--config"], "expected one argument"),
    ],
)
def test_a_wrong_command_or_option_exits_with_2(capsys, arguments, part):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


def test_the_option_that_is_suggested_works(seen):
    assert main(["finetune", "data.train=x", "train.warmup_epochs=0.3", "train.epochs=3"]) == 0
    assert seen[0][0].train.epochs == 3


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"]])
def test_the_overview_names_every_command_and_what_exit_codes_mean(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    text = capsys.readouterr().out
    for command, cls in COMMANDS.items():
        assert f"  {command}  " in text
        assert summary(cls).split()[0] in text
    assert " ".join(EXIT_CODES.split()) in " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_two_examples_that_work_a_page_and_exit_codes(command, capsys, seen):
    """The settings of an example are right; its files need not be there to see that."""
    text = help_of(*command.split(), capsys=capsys)
    with pytest.raises(SystemExit):
        main(["help", *command.split()])
    assert capsys.readouterr().out == text
    lines = text[text.index("\nexamples:\n") :].splitlines()[2:4]
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "hiera-video"
        assert " ".join(arguments).startswith(command)
        assert main(arguments) == 0
        assert isinstance(seen.pop()[0], COMMANDS[command])
    page = re.search(r"^documentation: (\S+)$", text, re.MULTILINE)[1]
    assert (ROOT / page).is_file()
    assert " ".join(EXIT_CODES.split()) in " ".join(text.split())


# Paths.


def named_paths():
    """Each command with each of its settings that names what must be there."""
    return [
        (command, key)
        for command, cls in COMMANDS.items()
        for key, field, _ in leaves(cls)
        if any(isinstance(m, Existing) for m in metadata_of(field.annotation, field.metadata))
    ]


def test_what_is_read_is_marked_and_what_is_written_is_not():
    named = named_paths()
    assert len(named) > 40
    keys = {key for _, key in named}
    assert {"data.train", "inputs", "checkpoint", "model.init", "boxes", "videos"} <= keys
    assert not keys & {"run_dir", "output_dir", "output"}


@pytest.mark.parametrize(("command", "key"), named_paths())
def test_a_path_that_does_not_exist_exits_with_2_before_anything_is_loaded(
    command, key, tmp_path, capsys, monkeypatch
):
    def no_module(name):
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(cli.importlib, "import_module", no_module)
    cls = COMMANDS[command]
    for name in ("list.csv", "a.mp4"):
        (tmp_path / name).touch()
    save_card(tmp_path / "run", kind=cli.CHECKPOINT_KINDS.get(command, "classifier"))
    right = {"data.train": "list.csv", "inputs": "a.mp4", "checkpoint": "run"}
    settings = {
        k: str(tmp_path / right.get(k, "list.csv")) for c, k in named_paths() if c == command
    }
    needed = {k for k, field, _ in leaves(cls) if field.is_required()} | {key}
    if command == "pretrain":
        settings["model.decoder_heads"] = "1"
        needed.add("model.decoder_heads")
    if command in ("convert", "data build-lists"):
        settings["output"] = str(tmp_path / "out")
    if command == "benchmark":
        needed.discard("models")
    wrong = str(tmp_path / "list.cvs")
    settings[key] = wrong
    operands = ("inputs", "runs")
    arguments = [v if k in operands else f"{k}={v}" for k, v in settings.items() if k in needed]
    for options in ([], ["--dry-run"]):
        assert main([*command.split(), *arguments, *options]) == 2
        error = capsys.readouterr().err
        assert f"{shown_key(cls, key)} is '{wrong}': there is no such file or folder" in error
        assert error.count("\n") == 1
        if key not in ("checkpoint", "model.init"):
            assert f"did you mean '{tmp_path / 'list.csv'}'?" in error


def test_files_that_do_not_exist_are_counted(tmp_path, capsys):
    (tmp_path / "a.mp4").touch()
    gone = [str(tmp_path / "b c.mp4"), str(tmp_path / "x" / "y.mp4")]
    weights = "checkpoint=hiera_base_16x224.mae_k400_ft_k400"
    assert main(["predict", str(tmp_path / "a.mp4"), *gone, weights]) == 2
    assert f"FILE is {gone[0]!r}: there is no such file or folder" in (e := capsys.readouterr().err)
    assert "(2 of 3 are missing)" in e
    assert main(["predict", gone[1], weights]) == 2
    assert f"nor {tmp_path / 'x'}" in capsys.readouterr().err


def test_weights_that_a_resumed_run_no_longer_needs_may_be_gone(seen, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "check_paths", check_paths)
    (tmp_path / "list.csv").touch()
    line = [f"data.train={tmp_path}/list.csv", f"run_dir={tmp_path}/run", "model.init=gone.pth"]
    assert main(["finetune", *line]) == 2
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert main(["finetune", *line]) == 0


def test_the_tag_of_published_weights_and_files_of_the_package_exist(seen, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "check_paths", check_paths)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").touch()
    line = ["data.train=list.csv", "model.name=hiera_base_16x224", "model.init=mae_k400"]
    assert main(["finetune", *line, "data.class_names=datasets/kinetics400/class_names.txt"]) == 0
    assert main(["finetune", *line, "model.name=hiera_tiny_16x224"]) == 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("finetune videos", "write data.train=videos"),
        ("export run", "write checkpoint=run"),
        (
            "finetune data.train=my videos",
            "quotes around a path with blanks: 'data.train=my videos'",
        ),
        ("predict my videos checkpoint=run", "quotes around a path with blanks: 'my videos'"),
        ("predict run checkpoint=a.mp4", "write checkpoint=run, and a video as FILE"),
        ("predict list.csv checkpoint=run", "takes videos, not lists of them"),
        ("finetune --config run", "run is a folder: write --config run/config.yaml"),
        ("predict https://x/a.mp4 checkpoint=run", "addresses are not opened: download it"),
        ("predict videos/*.mp4 checkpoint=run", "patterns are not expanded here"),
        ("finetune data.train=list.csv data.val=None", "for none, write null"),
        ("finetune data.train=list.csv model.init=none", "for none, write null"),
        ("predict videos checkpoint=b", "checkpoint is 'b': there is no such"),
        ("finetune data.train=nothing", "there is no such file or folder in "),
        ("finetune data.train=list.csv run_dir=s3://bucket/run", "an address; name a folder"),
        ("export checkpoint=run output_dir=model.onnx", "the name of a file; name a folder"),
        ("finetune data.train=list.csv model.name=hiera-base", "'hiera_base_16x224' or"),
        ("finetune data.train=list.csv model.name=HIERA_BASE_224", "did you mean 'hiera_base_224'"),
        ("finetune data.train=list.csv model.name=zzz", "model.name is 'zzz'; the variants are"),
        ("finetune data.train=list.csv model.name=run", "weights as model.init=run"),
        ("finetune data.train=list.csv model.name=a/b", "weights as model.init=hf://a/b"),
        (
            "finetune data.train=list.csv model.name=hiera_base_224.mae",
            "are: mae_in1k, mae_in1k_ft",
        ),
        ("benchmark hiera_base_224.mae_in1k", "for the variant alone, write hiera_base_224"),
        ("benchmark hiera_base_224 hiera_bse_224", "MODEL is 'hiera_bse_224'; the variants are"),
    ],
)
def test_files_in_the_wrong_place_and_other_names(arguments, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("videos/checkpoints", "my videos"):  # a class may be called so
        (tmp_path / folder).mkdir(parents=True)
    for file in ("list.csv", "a.mp4"):
        (tmp_path / file).touch()
    save_card(tmp_path / "run", kind="classifier")
    for file in ("model.safetensors", "config.yaml"):
        (tmp_path / "run" / file).touch()
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "reported"),
    [
        (ConfigError("optim.lr is 0"), 2, "hiera-video finetune: optim.lr is 0\n"),
        (UserError("the disk is full"), 1, "hiera-video finetune: the disk is full\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, reported):
    raising(monkeypatch, error)
    assert main(["finetune", "data.train=x"]) == code
    assert capsys.readouterr().err == reported


def test_errors_that_name_a_file_are_one_line(monkeypatch, capsys):
    raising(monkeypatch, FileNotFoundError(2, "No such file or directory", "/x/y"))
    assert main(["finetune", "data.train=x"]) == 1
    assert capsys.readouterr().err == ("hiera-video finetune: /x/y: No such file or directory\n")


@pytest.mark.parametrize("error", [UserError("the disk is full"), OSError(28, "no space", "/x")])
def test_the_trace_of_an_error_can_be_shown(monkeypatch, capsys, error):
    raising(monkeypatch, error)
    assert main(["finetune", "data.train=x", "--traceback"]) == 1
    assert "in raising" not in capsys.readouterr().out
    raising(monkeypatch, error)
    main(["finetune", "data.train=x", "--traceback"])
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_of_ours_keeps_its_trace(monkeypatch):
    """Whatever line raised it: only errors made for the user are one line."""

    def run(config, **_):
        return load_settings(1, 2, 3, 4, 5)

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: type("C", (), {"run": run}))
    monkeypatch.setattr(cli, "check_paths", lambda settings, kind: None)
    with pytest.raises(TypeError):
        main(["finetune", "data.train=x"])


def test_errors_of_others_keep_their_trace(monkeypatch):
    raising(monkeypatch, ValueError("shapes do not match"))
    with pytest.raises(ValueError, match="shapes do not match"):
        main(["finetune", "data.train=x"])


def test_help_names_commands_and_options(capsys):
    for arguments in (["--help"], *([command, "--help"] for command in COMMANDS)):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
        text = capsys.readouterr().out
        wanted = COMMANDS if arguments == ["--help"] else ["--config", "--dry-run", "--json"]
        assert all(word in text for word in wanted)


def help_of(*command, capsys):
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_setting(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    text = help_of(command, capsys=capsys)
    lines = [line for line in text.splitlines() if not line.startswith("  hiera-video ")]
    assert max(map(len, lines)) <= 79  # but for examples, which are to be copied
    for key, field, default in leaves(COMMANDS[command]):
        words = " ".join(field.description.split()).split()[:4]
        assert " ".join(words) in " ".join(text.split()), key
        if not field.is_required() and isinstance(default, bool):
            assert f"{key}={str(default).lower()}" in text


def test_help_shows_required_settings_first_then_sections_and_choices(capsys):
    text = help_of("finetune", capsys=capsys)
    order = [text.index(f"\n{name}:\n") for name in ("required", "settings", "data", "optim")]
    assert order == sorted(order)
    assert text.index("data.train\n") < text.index("\nsettings:\n")
    assert "[adamw or sgd]" in text
    assert "  optim.lr=0.0008\n" in text
    assert "FILE\n" in help_of("predict", capsys=capsys)


def test_help_is_fast():
    """No heavy library is imported for it; seconds depend on the machine."""
    program = """
import sys
from hiera_video.cli.main import COMMANDS, main
for command in COMMANDS:
    try:
        main([*command.split(), "--help"])
    except SystemExit:
        pass
heavy = {"torch", "numpy", "cv2", "av", "torchvision", "safetensors", "pyarrow"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("options", [[], ["--traceback"]])
def test_an_error_shows_escape_codes_as_escapes(monkeypatch, capsys, options):
    raising(monkeypatch, UserError("\x1b[2J\a.mp4:\nno such \udcff"))
    assert main(["finetune", "data.train=x", *options]) == 1
    error = capsys.readouterr().err
    assert r"hiera-video finetune: \x1b[2J\x07.mp4:\nno such \udcff" in error.splitlines()
    assert "\x1b" not in error


def test_an_unknown_option_shows_escape_codes_as_escapes(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--\x1b[2J.mp4"])
    assert r"unknown option --\x1b[2J.mp4" in capsys.readouterr().err


def test_an_interrupt_while_arguments_are_read(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", interrupted)
    assert main(["finetune"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interrupt_while_libraries_are_imported(tmp_path):
    """The first one that is imported is replaced by one that Ctrl-C interrupts."""
    (tmp_path / "pydantic.py").write_text("raise KeyboardInterrupt")
    paths = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "hiera_video", "--help"]
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"interrupted\n")


@pytest.mark.parametrize(
    "arguments",
    [["finetune", "data.train=x", "--print-config"], ["demo", "--dry-run"], ["finetune", "--help"]],
)
def test_a_reader_that_leaves_ends_the_command_quietly(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "hiera_video", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_reported_in_one_line():
    command = [sys.executable, "-m", "hiera_video", "demo", "--dry-run"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    message = "standard output cannot be written (No space left on device): make room"
    assert (done.returncode, done.stderr) == (1, f"{message}, and run the same command again\n")


def test_letters_that_the_encoding_of_the_output_lacks():
    arguments = ["finetune", "data.train=Übung", "--print-config"]
    command = [sys.executable, "-m", "hiera_video", *arguments]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    printed = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    assert rb"train: \xdcbung" in printed.stdout


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert hiera_video.__version__ in capsys.readouterr().out


def test_help_and_configurations_do_not_wait_for_torch():
    program = """
import sys
from hiera_video.cli.main import main
assert main(["finetune", "data.train=x", "--print-config"]) == 0
try:
    main(["--help"])
except SystemExit:
    pass
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_configurations_state_what_they_are_for():
    for cls in COMMANDS.values():
        assert summary(cls).endswith(".")


def test_a_file_whose_name_looks_like_a_setting(seen, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "take=1.mp4").touch()
    assert main(["predict", "checkpoint=x", "take=1.mp4"]) == 2
    assert capsys.readouterr().err == (
        "hiera-video predict: 'take=1.mp4' is read as a setting, and take is not one; for the file "
        "of this name, write ./take=1.mp4\n"
    )
    assert main(["predict", "checkpoint=x", "./take=1.mp4"]) == 0
    assert seen[0][0].inputs == ["./take=1.mp4"]
    assert main(["predict", "checkpoint=x", "a.mp4", "tak=1.mp4"]) == 2
    assert "tak is unknown" in capsys.readouterr().err
