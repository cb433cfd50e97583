"""From YAML files and `key.path=value` to settings.

Every scalar stays text until the field that it is for is known: 1e-3 is a number for `optim.lr`,
and 007 a name for `run_dir`. Nothing in a value is interpolated or executed.
"""

import re
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from hiera_video.errors import ConfigError, did_you_mean
from hiera_video.files import read_text, shipped_folder, user_path
from hiera_video.settings.advice import advice
from hiera_video.settings.base import (
    Settings,
    defaults,
    leaves,
    mistake,
    only_keys,
    section_of,
    shown,
    takes_text,
)
from hiera_video.settings.tools import FlopsSettings
from hiera_video.settings.training import DetectTrainSettings, FinetuneSettings, PretrainSettings

S = TypeVar("S", bound=Settings)
Update = str | dict[str, Any]
"""A file or an override, or nested plain data in its place."""

RECIPES: dict[str, tuple[type[Settings], str]] = {  # by task
    "classification": (FinetuneSettings, "finetune"),
    "pretraining": (PretrainSettings, "pretrain"),
    "detection": (DetectTrainSettings, "detect train"),
}
MAX_FILE_BYTES = 1_000_000
PROBLEMS = {  # of PyYAML, in words
    "found character '\\t' that cannot start any token": "a tab; write blanks in its place",
    "mapping values are not allowed here": "a second ':'; write each key in a line of its own, "
    "those of a group indented below its name",
}
RENAMED = {"seconds": "keyframe_range_sec"}  # old names, which saved runs may have


class UnsetError(ConfigError):
    """Required settings are not set; all that is set is right."""


def load_settings(
    cls: type[S], files: Sequence[Update] = (), overrides: Sequence[Update] = ()
) -> S:
    """The defaults of `cls`, then the files in order, then `key.path=value` overrides.

    A file that does not exist is looked up among the shipped recipes (`kinetics400/hiera_base`).

    Raises:
        ConfigError: names the key or file, what is wrong and what is allowed.
    """
    values, sources = merged(cls, files, overrides)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        mistakes = [_mistake(cls, found, values) for found in error.errors()]
        is_unset, key, sentence = min(mistakes, key=itemgetter(0))  # the first of the others
        source = f"{sources[key]}: " if sources.get(key) else ""
        raise (UnsetError if is_unset else ConfigError)(source + sentence) from None


def merged(
    cls: type[Settings], files: Sequence[Update] = (), overrides: Sequence[Update] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values as nested plain data, not checked, and the file that each key is from, or ""."""
    values, sources = defaults(cls), dict[str, str]()
    updates = [(f, read_yaml(find_config(f))) if isinstance(f, str) else ("", f) for f in files]
    updates += [("", parse_override(o, cls) if isinstance(o, str) else o) for o in overrides]
    for source, update in updates:
        _merge(values, update, sources, source, "")
    return values, sources


def load_flops_settings(files: Sequence[str], overrides: Sequence[Update]) -> FlopsSettings:
    """As `load_settings`, but `files` may be a recipe of training.

    Raises:
        ConfigError: as `load_settings`, and for files that are recipes of several commands or none.
    """
    for file in files:
        read_yaml(find_config(file))  # whatever it is read as
    task = merged(FlopsSettings, overrides=overrides)[0]["task"]
    try:
        return load_settings(FlopsSettings, files, overrides)
    except ConfigError as error:
        if not files:
            raise
        reasons = [f"flops: {error}"]
    recipes: dict[str, Any] = {}
    for name, (cls, command) in RECIPES.items():
        if task in (None, name):
            try:
                recipes[name] = load_for_print(cls, files)
            except ConfigError as error:
                reasons.append(f"{command}: {error}")
    if not recipes:
        raise ConfigError(f"not a configuration of any of these. {'; '.join(reasons)}")
    if len(recipes) > 1:
        commands = " or ".join(RECIPES[name][1] for name in recipes)
        tasks = " or ".join(f"task={name}" for name in recipes)
        raise ConfigError(f"{', '.join(files)}: it may be a recipe of {commands}; add {tasks}")
    ((name, recipe),) = recipes.items()
    base = {"task": name, "model": recipe["model"]["name"]}
    for part in (recipe["model"], recipe.get("views", {}), recipe):
        base |= {key: part[key] for key in part.keys() & FlopsSettings.model_fields - base.keys()}
    return load_settings(FlopsSettings, [base], overrides)


def load_for_print(
    cls: type[Settings], files: Sequence[Update] = (), overrides: Sequence[Update] = ()
) -> dict[str, Any]:
    """The whole configuration as plain data; required settings that are not set are None.

    Raises:
        ConfigError: as `load_settings`, but not for settings that are only missing.
    """
    try:
        return load_settings(cls, files, overrides).model_dump(mode="json")
    except UnsetError:
        return _typed(cls, merged(cls, files, overrides)[0])


def _typed(cls: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    """As `model_dump` of settings, field by field, so that some may be None."""
    found: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        value = values.get(name)
        if (section := section_of(field)) and not section.is_compact:
            found[name] = _typed(section, value or {})
        elif value is None:
            found[name] = None
        else:
            adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
            found[name] = adapter.dump_python(adapter.validate_python(value), mode="json")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file with every scalar as text or None; {} for an empty one."""
    loaded = _parsed(read_text(path, ConfigError, MAX_FILE_BYTES), path)
    if loaded is not None and not isinstance(loaded, dict):
        kind = "a list" if isinstance(loaded, list) else f"the text {shown(loaded)}"
        raise ConfigError(
            f"{path}: holds {kind}, not keys with values, such as optim: {{lr: 1e-3}}"
        )
    return loaded or {}


def parse_override(override: str, cls: type[Settings]) -> dict[str, Any]:
    """`key.path=value` as nested plain data; quoted texts, and lists and mappings for settings of
    `cls` that are not text, are YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not of the form key.path=value")
    value: Any = None if text == "null" else text
    if text[:1] in ("'", '"') or (text[:1] in ("[", "{") and not takes_text(cls, key)):
        value = _parsed(text, override)
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _parsed(text: str, source: object) -> Any:
    try:
        return yaml.load(text, _TextLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {_problem(error)}") from None
    except RecursionError:
        raise ConfigError(f"{source}: groups or lists are nested too deeply") from None


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong, and where; PyYAML's own sentences also name its objects."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        mark = error.problem_mark
        problem = PROBLEMS.get(error.problem, error.problem)
        return f"{problem} (line {mark.line + 1}, column {mark.column + 1})"
    return str(error).partition("\n")[0]


class _TextLoader(yaml.SafeLoader):
    """Reads scalars as text, except null; a key that stands twice is an error, and so is an alias,
    because a few lines of aliases can stand for more values than memory holds."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias; write the value itself", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key, mark = self.construct_object(key_node, deep=True), key_node.start_mark
            what = "" if isinstance(key, str) else "a key that is not text"
            if isinstance(key, str) and key in lines:
                what = f"duplicate key {key}, which is also in line {lines[key]}; join them"
            if what:
                raise yaml.constructor.ConstructorError(None, None, what, mark)
            lines[key] = mark.line + 1
        return super().construct_mapping(node, deep)


def _merge(
    values: dict[str, Any], update: dict[str, Any], sources: dict[str, str], source: str, at: str
) -> None:
    """Replaces values, group by group, and notes their source; `at` begins their dotted keys."""
    for name, value in update.items():
        today = RENAMED.get(name, name)
        key = today if today in values else name
        sources[at + key] = source
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value, sources, source, f"{at}{key}.")
        else:
            values[key] = value


def _mistake(cls: type[Settings], error: Any, values: dict[str, Any]) -> tuple[bool, str, str]:
    """As `mistake`, with advice about the keys of commands and of files."""
    is_unset, key, sentence = mistake(cls, error, values)
    text = error.get("input")
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):  # for a group
        line = re.match(r"(\w+)\s*[=:]\s*(.+)", text) if isinstance(text, str) else None
        hint = f"; in YAML, write {line[1]}: {line[2]} below {key}:" if line else ""
        return is_unset, key, f"{sentence}{hint or advice(cls, key)}"
    if error["type"] == "extra_forbidden":
        last = str(error["loc"][-1])
        whole = ".".join((key, *only_keys(error["input"])))
        if "." in last:  # of a file: in overrides, dots lead into groups
            parts = last.split(".")
            nested = ": {".join(parts) + ": ..." + "}" * (len(parts) - 1)
            sentence = f"{key} is one key with dots; in YAML, groups are nested: {nested}"
        elif "=" in last:  # of a file
            name, _, text = (part.strip() for part in last.partition("="))
            sentence = f"{key!r} is one key; in YAML, write {name}: {text}"
        elif more := advice(cls, whole):
            sentence = f"{whole} is unknown{more}"
    return is_unset, key, sentence


def to_yaml(values: Settings | dict[str, Any]) -> str:
    """The whole configuration, defaults included, as YAML."""
    plain = values.model_dump(mode="json") if isinstance(values, Settings) else values
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def differences(a: Settings, b: Settings) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two configurations of a command: old and new values by
    key."""
    old, new = (
        {key: value for key, _, value in leaves(type(s), s.model_dump(mode="json"))} for s in (a, b)
    )
    return {key: (old[key], new[key]) for key in sorted(old) if old[key] != new[key]}


def find_config(name: str) -> Path:
    """A path as given, or a shipped recipe by its name, with or without `.yaml` and `configs/`."""
    shipped = shipped_folder("configs")
    relative = name.removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    for path in (user_path(name), shipped / relative):
        if path.exists() and not path.is_dir():
            return path
    if (user_path(name) / "config.yaml").is_file():
        raise ConfigError(f"{name} is a folder: write --config {name.rstrip('/')}/config.yaml")
    known = shipped_recipes()
    short = relative.removesuffix(".yaml")
    inside = [recipe for recipe in known if recipe.startswith(f"{short.rstrip('/')}/")]
    hint = f"; shipped are {', '.join(inside or known)}"
    if not inside:
        hint = did_you_mean(short, known) or hint
    raise ConfigError(f"{name}: there is no such configuration file{hint}")


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    folder = shipped_folder("configs")
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
