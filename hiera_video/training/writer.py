"""Checkpoints that are written while training goes on."""

import logging
import threading
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiera_video.models.card import ModelCard
from hiera_video.models.loading import Model, card_of
from hiera_video.models.saving import official_names, write_folder
from hiera_video.training.checkpoint import prune_checkpoints, state_of, write_checkpoint
from hiera_video.training.optim import MovingAverage

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Copies the state of a run between two steps, and writes the copy in a thread.

    At most one checkpoint is being written. The copy takes as much memory of the host as the state
    has; if the run is on a GPU it is pinned, for which torch takes the next power of two. The next
    copy takes its place. The main process alone has a writer.

    Args:
        folder: of the checkpoints.
        card: of the weights, which are those of the average if there is one.
        keep: how many checkpoints stay.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        optimizer: torch.optim.Optimizer,
        average: MovingAverage | None,
        card: ModelCard,
        keep: int,
    ) -> None:
        self.folder, self.keep = folder, keep
        self._parts = model, optimizer, average
        card = card_of(model, card)
        self._config = card.to_json()
        prefix = "model." if average is None else "average.module."
        self._official = {
            f"{prefix}{own}": name for own, name in official_names(model, card).items()
        }
        self._copy = dict[str, Tensor]()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def has_failed(self) -> bool:
        """Whether the last checkpoint could not be written, which `wait` raises."""
        return self._error is not None

    def save(self, step: int, facts: Mapping[str, Any]) -> None:
        """Begins to write the checkpoint of a step, when the one before is written.

        Raises:
            OutputError: the one before could not be written.
        """
        self.wait()
        with torch.no_grad():
            self._take_copy(state_of(*self._parts))
        self._thread = threading.Thread(target=self._write, args=(step, deepcopy(facts)))
        self._thread.start()

    def wait(self) -> None:
        """Waits until nothing is being written, and raises the error of what was."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """As `wait`, where the run ends for another error: that of a checkpoint is logged."""
        try:
            self.wait()
        except OSError as error:
            logger.error("%s", error)

    def _take_copy(self, state: Mapping[str, Tensor]) -> None:
        layout = {key: (value.shape, value.dtype) for key, value in state.items()}
        if layout != {key: (value.shape, value.dtype) for key, value in self._copy.items()}:
            self._copy = {}  # freed first
            self._copy = _host_tensors(state)
        is_cuda = any(value.is_cuda for value in state.values())
        for key, value in state.items():
            self._copy[key].copy_(value, non_blocking=is_cuda)
        if is_cuda:
            copied = torch.cuda.Event()
            copied.record()
            copied.synchronize()

    def _write(self, step: int, facts: Mapping[str, Any]) -> None:
        try:
            saved = write_checkpoint(
                self.folder, step, self._copy, facts=facts, write_weights=self._write_weights
            )
            prune_checkpoints(saved, self.keep)
        except BaseException as error:  # raised where the run waits for it
            self._error = error

    def _write_weights(self, path: Path) -> None:
        weights = {name: self._copy[key] for key, name in self._official.items()}
        write_folder(path, weights, self._config)


def _host_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Empty tensors like those of `state` in one piece of memory, pinned if any is on a GPU.

    One piece, so that torch rounds up to a power of two once, and not for each tensor.
    """
    is_cuda = any(value.is_cuda for value in state.values())
    sizes = [-(-value.nbytes // 64) * 64 for value in state.values()]
    memory = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=is_cuda)
    pieces = zip(state.items(), memory.split(sizes), strict=True)
    return {
        key: piece[: value.nbytes].view(value.dtype).view(value.shape)
        for (key, value), piece in pieces
    }
