"""Memory that is full: each command names the setting to lower, and to what."""

import pytest
import torch

from hiera_video.evaluation.views import Scorer
from hiera_video.training import run

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.fixture
def full_scorer(monkeypatch):
    def scores(*_):
        raise FULL

    monkeypatch.setattr(Scorer, "probabilities", scores)


def test_training(commands, monkeypatch, tmp_path):
    def steps(*_, **__):
        raise FULL
        yield

    monkeypatch.setattr(run, "train_steps", steps)
    for arguments in (commands.finetune, commands.pretrain):
        for options in ((), ("--dry-run", "--measure")):
            result = commands.run(*arguments(tmp_path / "run", *options))
            assert result.code == 1
            result.reports(
                "out of memory on cpu (",
                "in a forward pass: set train.accumulation_steps=2 (",
                "or model.grad_checkpointing=true",
            )


def test_validation(commands, full_scorer, tmp_path):
    val = f"data.val={commands.toy / 'val.csv'}"
    result = commands.run(*commands.finetune(tmp_path / "run", val, "train.epochs=1"))
    assert result.code == 1
    result.reports("out of memory on cpu (", "with views.batch_size=5", "set views.batch_size=2")


def test_evaluation(commands, full_scorer, trained, tmp_path):
    arguments = ["evaluate", f"checkpoint={trained}", f"data.val={commands.toy / 'val.csv'}"]
    arguments += [f"output_dir={tmp_path / 'out'}", "device=cpu", "data.num_workers=0"]
    result = commands.run(*arguments)
    assert result.code == 1
    result.reports("out of memory", "with views.batch_size=5", "set views.batch_size=2")
    result = commands.run(*arguments, "views.batch_size=1")
    result.reports("out of memory", "take a smaller model")


def test_other_errors_keep_their_trace(commands, monkeypatch, trained, tmp_path):
    def scores(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Scorer, "probabilities", scores)
    data = (f"data.val={commands.toy / 'val.csv'}", f"output_dir={tmp_path}", "device=cpu")
    with pytest.raises(RuntimeError, match="shapes differ"):
        commands.run("evaluate", f"checkpoint={trained}", *data, "data.num_workers=0")
