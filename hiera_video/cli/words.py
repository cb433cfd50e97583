"""Words of the command line that are neither options nor settings: files of the command, or
mistakes, for which the message says what to write."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hiera_video.errors import ConfigError
from hiera_video.models.variants import PUBLISHED
from hiera_video.settings.advice import keys_of, meant
from hiera_video.settings.base import Existing, Settings, leaves, metadata_of, operand_of
from hiera_video.settings.commands import COMMANDS
from hiera_video.settings.load import shipped_recipes

OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
TAKES_LISTS = "extract"  # as FILE; the other commands have a setting for lists
LISTS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson")
WEIGHTS = (".safetensors", ".pth", ".pt", ".pyth", ".ckpt")


def operands_of(command: str, words: Sequence[str]) -> list[str]:
    """The words that are no settings, such as the files of `predict`.

    Raises:
        ConfigError: a word that the command does not take there.
    """
    cls = COMMANDS[command]
    operand = operand_of(cls)
    found: list[str] = []
    for place, word in enumerate(words):
        if OVERRIDE.match(word):
            name = re.split(r"[.=]", word)[0]
            if operand and name not in cls.model_fields and os.path.exists(word):
                raise ConfigError(
                    f"{word!r} is read as a setting, and {name} is not one; for the file of this "
                    f"name, write ./{word}"
                )
            continue
        hint = _blanks(cls, words, place)
        if operand is None:
            what = f"{word!r} is not of the form key.path=value"
            raise ConfigError(what + (hint or _misspelt(cls, word) or _as_setting(cls, word)))
        hint = hint or ("=" in word and _misspelt(cls, word)) or ""
        if hint and not os.path.exists(word):
            raise ConfigError(f"{word!r} is not a {operand[1].name}{hint}")
        if found and not operand[1].is_list:
            raise ConfigError(f"{word!r} is a second {operand[1].name}: only one is allowed")
        if _is_weights(word) and "checkpoint" in cls.model_fields:
            raise ConfigError(
                f"FILE is {word!r}, which are weights: write checkpoint={word}, and a video as FILE"
            )
        found.append(word)
    takes_videos = operand and operand[1].name == "FILE" and command != TAKES_LISTS
    if takes_videos and len(found) == 1 and _is_list(found[0]):  # of several, it cannot be read
        raise ConfigError(
            f"FILE is {found[0]!r}, and {command} takes videos, not lists of them: name the "
            "videos; extract takes a list as FILE, and evaluate as data.val=LIST"
        )
    return found


def _blanks(cls: type[Settings], words: Sequence[str], place: int) -> str:
    """What to write if a blank has cut this word off, or one that follows; "" if none has."""
    before, word, after = words[:place], words[place], words[place + 1 :]
    if before and os.path.exists(before[-1].partition("=")[2] + " " + word):
        return f"; write quotes around a path with blanks: '{before[-1]} {word}'"
    if after and os.path.exists(f"{word} {after[0]}") and not os.path.exists(word):
        return f"; write quotes around a path with blanks: '{word} {after[0]}'"
    setting = ""
    if before and before[-1].endswith("=") and OVERRIDE.match(before[-1]):
        setting = before[-1] + word
    elif word in keys_of(cls):
        value = " ".join(after[:2]).removeprefix("=").split()
        setting = f"{word}={value[0] if value else 'VALUE'}"
    return f"; write {setting}, without blanks" if setting else ""


def _misspelt(cls: type[Settings], word: str) -> str:
    """The setting that was meant by a word with other signs, such as `train/epochs: 3`."""
    match = re.match(r"\s*([\w./:-]+?)\s*(?:=|:(?!.*=))\s*(.+)$", word)
    if match is None:
        return ""
    key = match[1].translate(str.maketrans("-/:", "_.."))
    keys = [key] if key in keys_of(cls) else meant(cls, key)
    return f"; write {' or '.join(f'{key}={match[2]}' for key in keys)}" if keys else ""


def _as_setting(cls: type[Settings], word: str) -> str:
    """By which option or setting a file is named, of a command that takes none without."""
    recipe = word.removeprefix("configs/").removesuffix(".yaml")
    if word.endswith((".yaml", ".yml")) or recipe in shipped_recipes():
        return f"; write --config {word}"
    keys = [
        key
        for key, field, _ in leaves(cls)
        if field.is_required()
        and any(isinstance(m, Existing) for m in metadata_of(field.annotation, field.metadata))
    ]
    if len(keys) == 1 and os.path.exists(word):
        return f"; write {keys[0]}={word}"
    return f"; files are named as {' '.join(f'{key}=FILE' for key in keys)}" if keys else ""


def _is_list(name: str) -> bool:
    """Whether a file is a list of videos, by its name and its beginning."""
    if not name.lower().endswith(LISTS) or not os.path.isfile(name):
        return False
    with open(name, "rb") as file:
        return b"\0" not in file.read(4096)  # as videos have, whatever they are called


def _is_weights(name: str) -> bool:
    """Whether a name is that of published weights, of a run folder, or of what else has weights."""
    marks = ("model.safetensors", "weights/model.safetensors", "checkpoints/step_*")
    return (
        name in PUBLISHED
        or name.lower().endswith(WEIGHTS)
        or any(True for mark in marks for _ in Path(name).glob(mark))
    )
