"""Weights of a classifier or backbone in the layout of another project, read again as a check."""

import io
import logging
from pathlib import Path

import torch

from hiera_video.errors import OutputExistsError
from hiera_video.files import replacing
from hiera_video.models.card import ModelCard
from hiera_video.models.checkpoint import read_checkpoint
from hiera_video.models.hiera import Hiera
from hiera_video.models.layouts import CARRIED, check_writable, config_of, from_official
from hiera_video.models.loading import card_of
from hiera_video.models.saving import save_model, write_folder
from hiera_video.settings.tools import Layout

# Layouts of a single file, and the entry that holds the state.
FILES: dict[Layout, str] = {"official": "model_state", "sam2": "model"}

logger = logging.getLogger(__name__)


def check_absent(output: Path) -> None:
    """Raises OutputExistsError if something has the name of the output."""
    if output.exists():
        raise OutputExistsError(f"{output} exists: choose another name")


def convert(model: Hiera, card: ModelCard, to: Layout, output: Path) -> int:
    """Writes `output` in another layout, reads it again, and compares all tensors.

    A file that torch.load reads for "official" and "sam2"; else a folder with model.safetensors and
    config.json. What was there is left alone.

    Args:
        card: of the model; goes with it as far as the layout has a place for its entries.

    Returns:
        How many tensors came back the same, which is all of them.

    Raises:
        WeightsError: the layout has no such models.
        OutputExistsError: `output` exists.
        RuntimeError: the tensors that were read differ from the model's; nothing is left behind.
    """
    check_writable(to, model.architecture)
    check_absent(output)
    card = card_of(model, card)
    if lost := [key for key in card.entries() if key not in CARRIED.get(to, card.entries())]:
        logger.info("the %s layout has no place for %s", to, ", ".join(lost))
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    if to == "sam2":
        outside = [key for key in state if key.startswith(("norm.", "head."))]
        logger.warning("the sam2 layout has no place for %s", ", ".join(outside))
        state = {key: value for key, value in state.items() if key not in outside}
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as part:
        if to == "hiera_video":
            save_model(part, model, card)
        else:
            renamed = from_official(state, to, model.architecture["stages"])
            if to in FILES:
                content = io.BytesIO()  # torch does not say why it cannot write to a file
                torch.save({FILES[to]: renamed}, content)
                part.write_bytes(content.getbuffer())
            else:
                write_folder(part, renamed, config_of(to, card))
        again = read_checkpoint(part).state
        same = {key for key in state.keys() & again.keys() if torch.equal(again[key], state[key])}
        if wrong := sorted((state.keys() | again.keys()) - same):
            raise RuntimeError(f"{output} does not read as it was written: {', '.join(wrong)}")
    return len(state)
