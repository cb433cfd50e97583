"""Checkpoints: everything that resuming needs, written whole or not at all.

`step_00001200/` is a torch.distributed.checkpoint of model, optimizer, average and step, which any
number of processes write or read. Its `weights/` is the model alone, to evaluate or to start from.
"""

import shutil
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from hiera_video.errors import UserError
from hiera_video.files import remove_unfinished, replacing
from hiera_video.runtime.distributed import barrier, from_main, is_distributed

_NAMES = "step_" + 8 * "[0-9]"


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
    *,
    write_weights: Callable[[Path], None],
) -> Path:
    """Writes `folder/step_N`; every process calls it.

    Args:
        write_weights: writes a weights folder at that path; called on the main process.
    """
    final = folder / f"step_{step:08d}"
    main = not is_distributed() or torch.distributed.get_rank() == 0
    with replacing(final) if main else nullcontext() as part:
        if part is not None:
            part.mkdir(parents=True)
        with warnings.catch_warnings(action="ignore"):  # torch's, on running without a group
            save(
                _state(step, model, optimizer, average),
                checkpoint_id=from_main(part),
                no_dist=not is_distributed(),
            )
        if part is not None:
            write_weights(part / "weights")
        barrier()
    barrier()
    return final


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
) -> int:
    """Restores model, optimizer and average in place; returns the number of steps done.

    Only the state of the optimizer is restored; its hyperparameters keep their configured values.

    Raises:
        UserError: a checkpoint of another model, or without an average that is wanted.
    """
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    state = _state(0, model, optimizer, average)
    try:
        with warnings.catch_warnings(action="ignore"):
            load(state, checkpoint_id=path, no_dist=not is_distributed())
    except CheckpointException as error:
        reason = str(next(iter(error.failures.values()))[0]).splitlines()[0]
        raise UserError(f"{path} does not go with this configuration: {reason}") from None
    weights, optimizer_state = state["model"], state["optimizer"]
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=optimizer_state)
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)
    if average is not None:
        average.load_state_dict(state["average"])
    return int(state["step"])


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    return max(folder.glob(_NAMES), default=None)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Deletes all but the `keep` newest checkpoints, and what killed runs left half-written."""
    for path in sorted(folder.glob(_NAMES))[:-keep]:
        shutil.rmtree(path)
    remove_unfinished(folder)


def _state(
    step: int, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> dict[str, Any]:
    weights, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {
        "step": torch.tensor(step),
        "model": weights,
        "optimizer": optimizer_state,
    }
    if average is not None:
        state["average"] = average.state_dict()
    return state
