import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hiera_video.errors import UserError
from hiera_video.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)


def training(optimizer="adamw", seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    groups = [
        {"params": [model[0].weight], "lr_scale": 0.5, "weight_decay": 0.1},
        {"params": list(model[1].parameters()), "lr_scale": 1.0, "weight_decay": 0.0},
    ]
    if optimizer == "adamw":
        built = torch.optim.AdamW(groups, lr=0.01)
    else:
        built = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)
    return model, built, AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))


def advance(model, optimizer, average, num_steps, first=0):
    for step in range(first, first + num_steps):
        torch.manual_seed(step)
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(model)


def nothing(path):
    """Writes no weights."""


def values(*modules):
    return [value for module in modules for value in module.state_dict().values()]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_going_on_from_a_checkpoint_is_exact(tmp_path, optimizer):
    whole = training(optimizer)
    advance(*whole, 3)
    save_checkpoint(tmp_path, 3, *whole, write_weights=nothing)
    advance(*whole, 4, first=3)  # saving did not change what is trained

    resumed = training(optimizer, seed=9)
    assert load_checkpoint(latest_checkpoint(tmp_path), *resumed) == 3
    assert [group["lr_scale"] for group in resumed[1].param_groups] == [0.5, 1.0]
    advance(*resumed, 4, first=3)
    for ours, theirs in zip(values(*resumed[::2]), values(*whole[::2]), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_half_written_is_read(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    parts = training()
    advance(*parts, 1)
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, *parts, write_weights=nothing)
    (tmp_path / ".step_00000011.4711.part").mkdir()
    (tmp_path / ".step_00000011.4711.part" / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / "notes.txt").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000010"
    prune_checkpoints(tmp_path, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", "step_00000002", "step_00000010"]


def test_the_same_step_is_saved_again(tmp_path):
    parts = training()
    advance(*parts, 1)
    for _ in range(2):
        saved = save_checkpoint(tmp_path, 5, *parts, write_weights=lambda path: path.mkdir())
    assert saved == tmp_path / "step_00000005"
    assert (saved / "weights").is_dir()  # they appear with the rest
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]
    assert load_checkpoint(tmp_path / "step_00000005", *training(seed=3)) == 5


def test_the_configured_settings_stay_and_the_state_is_restored(tmp_path):
    parts = training()
    advance(*parts, 2)
    save_checkpoint(tmp_path, 2, *parts, write_weights=nothing)
    resumed = training(seed=9)
    for group in resumed[1].param_groups:
        group |= {"weight_decay": 0.7, "betas": (0.5, 0.6), "lr_scale": 0.25}
    load_checkpoint(latest_checkpoint(tmp_path), *resumed)
    for group in resumed[1].param_groups:
        assert (group["weight_decay"], group["betas"], group["lr_scale"]) == (0.7, (0.5, 0.6), 0.25)
    ours, theirs = (p[1].state_dict()["state"].values() for p in (resumed, parts))
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in zip(ours, theirs, strict=True))


def test_an_average_that_was_not_kept_is_reported(tmp_path):
    model, optimizer, average = training()
    advance(model, optimizer, average, 1)
    save_checkpoint(tmp_path, 1, model, optimizer, write_weights=nothing)
    with pytest.raises(UserError, match="step_00000001 does not go with this config") as error:
        load_checkpoint(tmp_path / "step_00000001", *training())
    assert "average" in str(error.value)
    assert "\n" not in str(error.value)
