"""The help text of a command, made from the fields of its settings."""

import inspect
import shutil
import textwrap

from pydantic.fields import FieldInfo

from hiera_video.files import json_text
from hiera_video.settings.base import Settings, allowed_values, leaves, shown_key


def summary(cls: type[Settings]) -> str:
    """What the command does, in one line."""
    return inspect.cleandoc(cls.__doc__ or "").splitlines()[0]


def card_groups(cls: type[Settings]) -> list[str]:
    """The groups of a command's settings that start from the card of its checkpoint."""
    groups = ("clips", "views", "masking") if "checkpoint" in cls.model_fields else ()
    return [key for key in groups if key in cls.model_fields]


def describe(cls: type[Settings]) -> str:
    """The description of a command and all its settings: required ones first, then by section."""
    width = min(shutil.get_terminal_size().columns, 100)
    required, sections = [], dict[str, list[str]]()
    for key, field, default in leaves(cls):
        if field.is_required():
            required += _entry(shown_key(cls, key), field, width)
        else:
            section = sections.setdefault(key.rpartition(".")[0].partition(".")[0], [])
            typed = default if isinstance(default, str) else json_text(default).replace(" ", "")
            section += _entry(f"{shown_key(cls, key)}={typed}", field, width)
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    if groups := card_groups(cls):
        names = " and ".join(f"`{name}`" for name in groups)
        paragraphs.append(
            f"{names} start from the card of the checkpoint, not from the defaults shown here."
        )
    lines = "\n\n".join(textwrap.fill(" ".join(p.split()), width) for p in paragraphs).splitlines()
    if required:
        lines += ["", "required:", *required]
    for name in sorted(sections, key=bool):
        lines += ["", f"{name or 'settings'}:", *sections[name]]
    lines += ["", "Settings without a dot are options too: --key-name VALUE is key_name=VALUE."]
    return "\n".join(lines)


def _entry(head: str, field: FieldInfo, width: int) -> list[str]:
    allowed = allowed_values(field.annotation, field.metadata)
    text = f"{' '.join((field.description or '').split())} [{allowed}]"
    indent = " " * 6
    wrapped = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
    return [f"  {head}", wrapped]
