"""What the shell is told when the user presses Tab."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hiera_video.cli.completion import candidates
from hiera_video.cli.main import main
from hiera_video.settings.commands import COMMANDS
from hiera_video.settings.load import load_for_print

TAG = "hiera_base_16x224.mae_k400_ft_k400"
OTHER_VIEWS = [f"views.{key}=" for key in ("num_crops", "clip_rule", "short_side", "batch_size")]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fi", ["finetune"]),
        ("detect ", ["train", "evaluate", "predict", "score"]),
        ("help visualize ", ["mae", "attention"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("demo ", ["output_dir=", "seed=", "ava", "instances"]),
        ("detect train optim.l", ["optim.lr=", "optim.layer_decay="]),
        (
            "finetune data.train=x optim.optimizer=",
            ["optim.optimizer=adamw", "optim.optimizer=sgd"],
        ),
        ("finetune augment.flip=t", ["augment.flip=true"]),
        ("finetune optim.clip_grad=", ["optim.clip_grad=null"]),
        ("finetune data.train=", ["data.train=a b.csv", "data.train=videos/"]),
        ("evaluate checkpoint=hiera_base_16x224.mae_k400_", [f"checkpoint={TAG}"]),
        ("predict views.num_", ["views.num_clips=", "views.num_crops="]),
        ("predict vi", ["views.num_clips=", *OTHER_VIEWS, "videos/"]),
        ("predict --js", ["--json"]),
        ("evaluate --out", ["--output-dir"]),
        ("flops hiera_huge_", ["hiera_huge_224", "hiera_huge_16x224"]),
        ("finetune --config ava/hiera_base", ["ava/hiera_base", "ava/hiera_base_plus"]),
        ("finetune --config=ava/hiera_h", ["--config=ava/hiera_huge"]),
        ("nonsense ", []),
    ],
)
def test_words_that_may_stand_next(line, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a b.csv").touch()
    Path("videos").mkdir()
    *before, start = line.split(" ")
    assert list(candidates(before, start)) == words


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_that_is_offered_is_one(command):
    found = [word for word in candidates(command.split(), "") if word.endswith("=")]
    values = load_for_print(COMMANDS[command])
    assert found or not COMMANDS[command].model_fields  # doctor has none
    for key in found:
        at = values
        for part in key.removesuffix("=").split("."):
            at = at[part]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_of_shells(shell, capsys):
    with pytest.raises(SystemExit) as left:
        main(["completion", shell])
    assert left.value.code == 0
    assert "_ARGCOMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"]])
def test_the_shell_must_be_named(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(["completion", *words])
    assert left.value.code == 2
    assert 'eval "$(hiera-video completion bash)"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["completion", "--help"], ["completion", "-h"], ["help", "completion"]]
)
def test_help_has_the_line_of_each_shell(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: hiera-video completion SHELL\n")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert lines.keys() == {"bash", "zsh", "fish"}
    assert all(f"hiera-video completion {shell}" in line for shell, line in lines.items())
    assert not err


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_values_after_the_equals_sign(tmp_path):
    """Bash itself calls the program, which loads nothing heavy for that."""
    program = tmp_path / "hiera-video"
    python = f"PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)}"
    program.write_text(f'#!/bin/sh\n{python} -m hiera_video "$@"\n')
    program.chmod(0o755)
    shell = """
eval "$(hiera-video completion bash)"
COMP_LINE="hiera-video finetune optim.optimizer=" COMP_POINT=37 COMP_TYPE=9
_python_argcomplete hiera-video
printf '%s\\n' "${COMPREPLY[@]}"
"""
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", shell], env=os.environ | path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["adamw", "sgd"]  # bash has the part before "=" itself
