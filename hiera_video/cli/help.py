"""The help text of a command, made from the fields of its settings."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
from typing import Any

from pydantic.fields import FieldInfo

from hiera_video.settings.base import Operand, Settings, allowed_values, leaves


def operand_of(cls: type[Settings]) -> tuple[str, Operand] | None:
    """The setting that the command line takes without its key, as FILE in `predict FILE ...`."""
    for name, field in cls.model_fields.items():
        for item in field.metadata:
            if isinstance(item, Operand):
                return name, item
    return None


def summary(cls: type[Settings]) -> str:
    """What the command does, in one line."""
    return inspect.cleandoc(cls.__doc__ or "").splitlines()[0]


def describe(cls: type[Settings]) -> str:
    """The description of a command and all its settings: required ones first, then by section."""
    width = min(shutil.get_terminal_size().columns, 100)
    operand = operand_of(cls)
    required, sections = [], dict[str, list[str]]()
    for key, field, default in leaves(cls):
        entry = _entry(key, field, default, width)
        if operand and operand[0] == key:
            entry = entry.replace(key, operand[1].name, 1)
        if field.is_required():
            required.append(entry)
        else:
            section = key.rpartition(".")[0]
            sections.setdefault(section.partition(".")[0], []).append(entry)
    lines = [_wrapped(inspect.cleandoc(cls.__doc__ or ""), width)]
    if required:
        lines += ["", "required:", *required]
    for name in sorted(sections, key=bool):
        lines += ["", f"{name or 'settings'}:", *sections[name]]
    return "\n".join(lines)


def _entry(key: str, field: FieldInfo, default: Any, width: int) -> str:
    head = f"  {key}" if field.is_required() else f"  {key}={_as_typed(default)}"
    allowed = allowed_values(field.annotation, field.metadata)
    text = f"{' '.join((field.description or '').split())} [{allowed}]"
    return "\n".join(
        [head, textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    )


def _as_typed(value: Any) -> str:
    """A value as it stands on a command line."""
    return value if isinstance(value, str) else json.dumps(value).replace(" ", "")


def _wrapped(text: str, width: int) -> str:
    paragraphs = text.split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(p.split()), width) for p in paragraphs)
