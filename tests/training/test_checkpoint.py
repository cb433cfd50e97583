import json
import os
import shutil
import struct

import pytest
import torch
from safetensors import safe_open
from torch import nn

from hiera_video.errors import UserError
from hiera_video.models.saving import save_model
from hiera_video.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    read_facts,
    state_of,
    write_checkpoint,
)
from hiera_video.training.optim import MovingAverage
from tests.models.tiny_models import VIDEO, hiera


def training(optimizer="adamw", seed=0, width=4):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    model[0].bias.requires_grad_(False)
    groups = [
        {"params": [model[0].weight], "lr_scale": 0.5, "weight_decay": 0.1},
        {"params": list(model[1].parameters()), "lr_scale": 1.0, "weight_decay": 0.0},
    ]
    if optimizer == "adamw":
        built = torch.optim.AdamW(groups, lr=0.01)
    else:
        built = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)
    return model, built, MovingAverage(model, 0.9)


def advance(model, optimizer, average, num_steps, first=0):
    for step in range(first, first + num_steps):
        torch.manual_seed(step)
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model, torch.tensor(0.0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Writes a weights folder."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_model(folder, hiera(VIDEO))
    return lambda path: shutil.copytree(folder, path)


@pytest.fixture
def save(weights):
    """Writes a checkpoint, with weights and without facts."""
    return lambda folder, step, *parts, facts=None: write_checkpoint(
        folder, step, state_of(*parts), facts=facts or {}, write_weights=weights
    )


def values(*modules):
    return [value for module in modules for value in module.state_dict().values()]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_going_on_from_a_checkpoint_is_exact(tmp_path, save, optimizer):
    whole = training(optimizer)
    advance(*whole, 3)
    save(tmp_path, 3, *whole)
    advance(*whole, 4, first=3)  # saving did not change what is trained

    resumed = training(optimizer, seed=9)
    assert load_checkpoint(latest_checkpoint(tmp_path), *resumed) == (3, {})
    assert [group["lr_scale"] for group in resumed[1].param_groups] == [0.5, 1.0]
    advance(*resumed, 4, first=3)
    for ours, theirs in zip(values(*resumed[::2]), values(*whole[::2]), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_half_written_is_read(tmp_path, save):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    parts = training()
    advance(*parts, 1)
    for step in (1, 2, 10):
        save(tmp_path, step, *parts)
    (tmp_path / ".step_00000011.4711.part").mkdir()
    (tmp_path / ".step_00000011.4711.part" / "state.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000010"
    prune_checkpoints(tmp_path / "step_00000010", keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", "step_00000002", "step_00000010"]


def test_the_same_step_is_saved_again(tmp_path, save):
    parts = training()
    advance(*parts, 1)
    for _ in range(2):
        saved = save(tmp_path, 5, *parts)
    assert saved == tmp_path / "step_00000005"
    assert (saved / "weights").is_dir()  # they appear with the rest
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]
    assert load_checkpoint(tmp_path / "step_00000005", *training(seed=3))[0] == 5


def test_the_configured_settings_stay_and_the_state_is_restored(tmp_path, save):
    parts = training()
    advance(*parts, 2)
    save(tmp_path, 2, *parts)
    resumed = training(seed=9)
    for group in resumed[1].param_groups:
        group |= {"weight_decay": 0.7, "betas": (0.5, 0.6), "lr_scale": 0.25}
    load_checkpoint(latest_checkpoint(tmp_path), *resumed)
    for group in resumed[1].param_groups:
        assert (group["weight_decay"], group["betas"], group["lr_scale"]) == (0.7, (0.5, 0.6), 0.25)
    ours, theirs = (p[1].state_dict()["state"].values() for p in (resumed, parts))
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_before_the_first_step_there_is_no_state(tmp_path, save, optimizer):
    """As when all steps so far were skipped."""
    path = save(tmp_path, 1, *training(optimizer))
    parts = training(optimizer, seed=9)
    load_checkpoint(path, *parts)
    assert not parts[1].state


def test_a_parameter_that_never_had_a_gradient(tmp_path, save):
    model, optimizer, average = training()
    model[0].weight.grad = torch.ones(4, 3)
    optimizer.step()
    path = save(tmp_path, 1, model, optimizer, average)
    resumed = training(seed=9)
    load_checkpoint(path, *resumed)
    assert [*resumed[1].state] == [resumed[0][0].weight]
    advance(*resumed, 1)


def test_facts_are_kept(tmp_path, save):
    facts = {"failed": ["ä.mp4"], "n": 3, "nested": {"a": None}}
    path = save(tmp_path, 4, *training(), facts=facts)
    assert read_facts(path) == (4, facts)
    assert load_checkpoint(path, *training()) == (4, facts)


def test_nothing_is_pickled(tmp_path, save):
    path = save(tmp_path, 1, *training())
    files = sorted(f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file())
    assert files == ["state.safetensors", "weights/config.json", "weights/model.safetensors"]


# ---- checkpoints of other runs


def test_an_average_that_was_not_kept_is_reported(tmp_path, save):
    model, optimizer, average = training()
    advance(model, optimizer, average, 1)
    path = save(tmp_path, 1, model, optimizer)
    with pytest.raises(UserError, match="step_00000001 does not go with this config") as error:
        load_checkpoint(path, *training())
    assert "average" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_average_that_is_not_wanted_is_left(tmp_path, save):
    parts = training()
    advance(*parts, 1)
    resumed = training(seed=9)[:2]
    load_checkpoint(save(tmp_path, 1, *parts), *resumed)
    assert torch.equal(resumed[0][1].bias, parts[0][1].bias)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(width=5), r"model\.0\.bias is \[4\], expected \[5\]$"),
        (dict(optimizer="sgd"), r"momentum_buffer is missing, expected \[4, 3\]$"),
    ],
)
def test_the_first_difference_is_named(tmp_path, save, other, message):
    model, optimizer, average = training()
    advance(model, optimizer, average, 1)
    path = save(tmp_path, 1, model, optimizer)
    model, optimizer, _ = training(**other)
    before = model[1].weight.clone()
    with pytest.raises(
        UserError, match=rf"{path} does not go with this configuration: .*{message}"
    ):
        load_checkpoint(path, model, optimizer)
    assert torch.equal(model[1].weight, before)


def test_what_is_trained_may_change(tmp_path, save):
    """A parameter that is frozen from now on needs no state, and a new one has none yet."""
    parts = training()
    advance(*parts, 1)
    path = save(tmp_path, 1, *parts)
    model = training(seed=9)[0]
    optimizer = torch.optim.AdamW([model[0].bias, model[1].bias])
    load_checkpoint(path, model, optimizer)
    assert [*optimizer.state] == [model[1].bias]


# ---- damaged checkpoints


def overwrite(path, content):
    path.write_bytes(content)


DAMAGES = {
    "cut": lambda file: os.truncate(file, file.stat().st_size - 2),
    "empty": lambda file: os.truncate(file, 0),
    "missing": lambda file: file.unlink(),
    "zeroed": lambda file: overwrite(file, bytes(file.stat().st_size)),
    "a header of 10**18 bytes": lambda file: overwrite(
        file, struct.pack("<Q", 10**18) + file.read_bytes()[8:]
    ),
}
FILES = ("state.safetensors", "weights/model.safetensors", "weights/config.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, save, caplog, file, damage):
    for step in (1, 2, 3):
        save(tmp_path, step, *training())
    DAMAGES[damage](tmp_path / "step_00000003" / file)
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000002"
    (warning,) = caplog.messages
    assert f"step_00000003/{file}" in warning or f"step_00000003/{file.split('/')[0]}" in warning
    assert warning.endswith("; going back to step_00000002")

    DAMAGES[damage](tmp_path / "step_00000002" / file)
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000001"
    shutil.rmtree(tmp_path / "step_00000001")
    with pytest.raises(UserError, match=f"{tmp_path} holds no checkpoint from which") as error:
        latest_checkpoint(tmp_path)
    assert all(name in str(error.value) for name in ("step_00000002", "step_00000003"))


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"hiera_video": "{"}, {"hiera_video": "[]"}, {"hiera_video": "[" * 100_000}]
    + [{"hiera_video": json.dumps(c)} for c in ({"step": 1}, {"step": None, "facts": {}})],
)
def test_a_header_of_something_else(tmp_path, save, metadata):
    from safetensors.torch import load_file, save_file

    file = save(tmp_path, 1, *training()) / "state.safetensors"
    save_file(load_file(file), file, metadata)
    with pytest.raises(UserError, match=rf"{file} is damaged: its header names no step and facts"):
        latest_checkpoint(tmp_path)


def test_damaged_checkpoints_do_not_displace_whole_ones(tmp_path, save):
    """The run went back from 9 to 6, and then saved 7."""
    for step in (3, 6, 9, 7):
        save(tmp_path, step, *training())
    prune_checkpoints(tmp_path / "step_00000007", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000006", "step_00000007"]


def test_the_state_can_be_read_by_others(tmp_path, save):
    parts = training()
    advance(*parts, 2)
    with safe_open(save(tmp_path, 2, *parts) / "state.safetensors", "np") as file:
        assert file.get_tensor("model.1.bias").tolist() == parts[0][1].bias.tolist()
        assert file.get_tensor("optimizer.1.bias.step") == 2
        assert file.get_tensor("average.n_averaged") == 2
