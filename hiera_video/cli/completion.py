"""Completion of commands, settings and their values by the shell, with argcomplete.

`hiera-video completion bash` prints what makes the shell call the program when the user presses
Tab, with the line in environment variables. Static scripts of other libraries know neither
key=value nor commands of two words; the program answers as fast as `--help`.
"""

import argparse
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from argcomplete.completers import FilesCompleter
from argcomplete.finders import CompletionFinder
from argcomplete.shell_integration import shellcode
from pydantic.fields import FieldInfo

from hiera_video.cli.help import options_of, summary, switches_of
from hiera_video.models.variants import PUBLISHED, VARIANTS
from hiera_video.settings.base import Existing, Settings, leaves, metadata_of, operand_of, types_of
from hiera_video.settings.commands import COMMANDS
from hiera_video.settings.load import shipped_recipes

SHELLS = ("bash", "zsh", "fish")
Found = dict[str, str]
"""Words that may stand next, and what each is."""


def script(shell: str) -> str:
    """What the user's shell evaluates."""
    return shellcode(["hiera-video"], shell=shell)


def complete() -> None:
    """Answers the shell, and ends the process."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    _Finder()(parser)


class _Finder(CompletionFinder):
    def collect_completions(
        self, active_parsers: Any, parsed_args: argparse.Namespace, cword_prefix: str
    ) -> list[str]:
        found = candidates(parsed_args.words, cword_prefix)
        self._display_completions.update(found)
        return list(found)


def candidates(words: Sequence[str], start: str) -> Found:
    """What begins with `start` and may follow these words."""
    command = next((c for c in (" ".join(words[:2]), *words[:1]) if c in COMMANDS), None)
    if words[:1] in (["help"], ["completion"]) or command is None:
        return {w: text for w, text in _first_words(words).items() if w.startswith(start)}
    cls, (key, equals, value) = COMMANDS[command], start.partition("=")
    fields = {name: field for name, field, _ in leaves(cls)}
    found = {}
    if words[-1] == "--config" or key == "--config":
        given = value if equals else start
        found = dict.fromkeys(shipped_recipes(), "a recipe") | _files(given)
        found = {f"{key}={r}": text for r, text in found.items()} if equals else found
    elif start.startswith("-"):
        found = switches_of(cls) | {"--config": "a YAML file or a recipe"}
        found["--help"] = "show all settings"
        found |= {o: fields[o[2:].replace("-", "_")].description or "" for o in options_of(cls)}
    elif key in fields and equals:
        values = _values(fields[key], value)
        found = {f"{key}={v}": text for v, text in values.items()}
    else:
        found = {f"{name}=": field.description or "" for name, field in fields.items()}
        found |= _second_word(command, words) | _operands(cls, start)
    return {word: " ".join(text.split()) for word, text in found.items() if word.startswith(start)}


def _first_words(words: Sequence[str]) -> Found:
    """The words of commands that may follow `words`."""
    if words[:1] == ["completion"]:
        return dict.fromkeys(SHELLS, "")
    if words[:1] == ["help"]:
        words = words[1:]
    if not words:
        own = {"help": "show the settings of a command", "completion": "print what makes this work"}
        return {name.split()[0]: summary(cls) for name, cls in COMMANDS.items()} | own
    pairs = (name.split() for name in COMMANDS if " " in name)
    return {p[1]: summary(COMMANDS[" ".join(p)]) for p in pairs if p[:1] == list(words)}


def _second_word(command: str, words: Sequence[str]) -> Found:
    return _first_words(words) if list(words) == [command] else {}


def _operands(cls: type[Settings], start: str) -> Found:
    match operand_of(cls):
        case (_, operand) if operand.name == "FILE":
            return _files(start)
        case (_, operand) if operand.name == "MODEL":
            return dict.fromkeys(VARIANTS, "a variant")
    return {}


def _values(field: FieldInfo, start: str) -> Found:
    """Values that a setting may have; of a path, the files that begin with `start`."""
    types = list(types_of(field.annotation))
    choices = [str(v) for t in types if get_origin(t) is Literal for v in get_args(t)]
    choices += ["true", "false"] * (bool in types) + ["null"] * (type(None) in types)
    found = dict.fromkeys(choices, "")
    marks = [m for m in metadata_of(field.annotation, field.metadata) if isinstance(m, Existing)]
    if marks and marks[-1].or_published:
        found |= dict.fromkeys(PUBLISHED, "published weights")
    return found | (_files(start) if marks else {})


def _files(start: str) -> Found:
    return dict.fromkeys(FilesCompleter()(start), "")
