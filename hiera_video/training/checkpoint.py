"""Checkpoints: everything that resuming needs, written whole or not at all.

`step_00001200/state.safetensors` holds the model, the state of the optimizer and the average of the
weights; its metadata holds the step and facts about the run. `weights/` beside it is the model
alone, to evaluate or to start from. Reading a checkpoint executes nothing.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.errors import UserError, WeightsError
from hiera_video.files import json_text, parse_json, remove_unfinished, replacing
from hiera_video.models.checkpoint import check_weights_folder, differences
from hiera_video.models.saving import write_tensors
from hiera_video.models.tensors import read_content, read_metadata

logger = logging.getLogger(__name__)

NAMES = "step_" + 8 * "[0-9]"
STATE = "state.safetensors"
METADATA = "hiera_video"  # the entry of the file's metadata that holds step and facts, as JSON
ENTRIES = {  # of an optimizer's state, for each parameter
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}


def state_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names in it: those of the run, not copies."""
    tensors = _prefixed("model", model) | (_prefixed("average", average) if average else {})
    names, state = _trained(model, optimizer), optimizer.state_dict()["state"]
    for index, entries in state.items():
        tensors |= {f"optimizer.{names[index]}.{key}": value for key, value in entries.items()}
    return tensors


def write_checkpoint(
    folder: Path,
    step: int,
    state: Mapping[str, Tensor],
    *,
    facts: Mapping[str, Any],
    write_weights: Callable[[Path], None],
) -> Path:
    """Writes `folder/step_N`. Processes hold the same state, and the main one alone calls this.

    Args:
        state: as of `state_of`.
        facts: what else the run needs to know when it resumes, as JSON.
        write_weights: writes a weights folder at that path.
    """
    tensors = {key: value.cpu().contiguous() for key, value in state.items()}
    metadata = {METADATA: json_text({"step": step, "facts": facts})}
    final = folder / f"step_{step:08d}"
    with replacing(final) as part:
        part.mkdir(parents=True)
        write_tensors(part / STATE, tensors, metadata)
        write_weights(part / "weights")
    return final


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
) -> tuple[int, dict[str, Any]]:
    """Restores model, optimizer and average in place; returns the steps done, and the facts.

    Only the state of the optimizer is restored; its hyperparameters keep their configured values.
    A parameter without a state in the checkpoint, which never had a gradient, has none afterwards.

    Raises:
        UserError: a checkpoint of another model or optimizer, or without an average that is wanted.
    """
    stored = read_content(path / STATE)
    needed = _prefixed("model", model)
    if average is not None:
        needed |= _prefixed("average", average)
        if not any(key.startswith("average.") for key in stored):
            raise UserError(
                f"{path} does not go with this configuration: it has no average of the weights; "
                "set train.ema_decay=null, or start a new run in another run_dir"
            )
    with_state = {key.rpartition(".")[0] for key in stored}
    states = {}  # keys of the entries, by the index of the parameter
    for index, name in enumerate(_trained(model, optimizer)):
        if f"optimizer.{name}" in with_state:
            parameter = model.get_parameter(name)
            states[index] = {e: f"optimizer.{name}.{e}" for e in ENTRIES[type(optimizer)]}
            for entry, key in states[index].items():
                needed[key] = parameter.new_empty(()) if entry == "step" else parameter
    # An average and states of parameters that are not trained any longer are left out.
    found = {k: v for k, v in stored.items() if k in needed or k.startswith("model.")}
    if differs := differences(found, needed):
        raise UserError(f"{path} does not go with this configuration: {differs[0]}")

    for part, module in (("model", model), ("average", average)):
        if module is not None:
            module.load_state_dict({key: found[f"{part}.{key}"] for key in module.state_dict()})
    own = optimizer.state_dict()
    own["state"] = {i: {e: found[key] for e, key in keys.items()} for i, keys in states.items()}
    optimizer.load_state_dict(own)
    return read_facts(path)


def read_facts(path: Path) -> tuple[int, dict[str, Any]]:
    """The steps done at a checkpoint, and the facts that the run has kept in it.

    Raises:
        WeightsError: the checkpoint is damaged, or of version 0.1.
    """
    file = path / STATE
    if not file.exists() and (path / ".metadata").exists():
        raise WeightsError(
            f"{path} was written by version 0.1, whose checkpoints are not read because that would "
            f"run code: start a new run from its weights with model.init={path / 'weights'}"
        )
    metadata = read_metadata(file)
    try:
        content = parse_json(metadata[METADATA])
        return int(content["step"]), dict(content["facts"])
    except (ValueError, LookupError, TypeError):
        raise WeightsError(f"{file} is damaged: its header names no step and facts") from None


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step whose files are whole, or None if there are none.

    Damaged ones are passed over, with a warning.

    Raises:
        UserError: all checkpoints are damaged.
    """
    damages: list[str] = []
    for path in sorted(folder.glob(NAMES), reverse=True):
        try:
            read_facts(path)
            check_weights_folder(path / "weights")
        except WeightsError as error:
            damages.append(str(error))
            continue
        for damage in damages:
            logger.warning("%s; going back to %s", damage, path.name)
        return path
    if damages:
        raise UserError(
            f"{folder} holds no checkpoint from which the run can resume: {'; '.join(damages)}; "
            "choose another run_dir"
        )
    return None


def prune_checkpoints(latest: Path, keep: int) -> None:
    """Deletes all checkpoints but the `keep` newest up to `latest`, which was just written.

    Those beyond it are damaged: the run has gone back to an earlier one. What killed runs left
    half-written goes too.
    """
    saved = sorted(latest.parent.glob(NAMES))
    kept = [path for path in saved if path <= latest][-keep:]
    for path in saved:
        if path not in kept:
            shutil.rmtree(path)
    remove_unfinished(latest.parent, deep=False)


def _prefixed(part: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{part}.{key}": value for key, value in module.state_dict().items()}


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in the order in which its state counts them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group["params"]]
