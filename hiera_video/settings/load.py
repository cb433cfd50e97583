"""From YAML files and `key.path=value` to settings.

Every scalar stays text until the field that it is for is known: 1e-3 is a number for `optim.lr`,
and 007 a name for `run_dir`. Nothing in a value is interpolated or executed.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from hiera_video.errors import ConfigError
from hiera_video.files import shipped_folder
from hiera_video.settings.base import (
    Operand,
    RuleError,
    Settings,
    allowed_values,
    defaults,
    section_of,
    shown,
)
from hiera_video.settings.tools import FlopsSettings
from hiera_video.settings.training import DetectTrainSettings, FinetuneSettings, PretrainSettings

S = TypeVar("S", bound=Settings)

RECIPES: dict[str, tuple[type[Settings], str]] = {  # by task
    "classification": (FinetuneSettings, "finetune"),
    "pretraining": (PretrainSettings, "pretrain"),
    "detection": (DetectTrainSettings, "detect train"),
}


def load_settings(
    cls: type[S],
    files: Sequence[str] = (),
    overrides: Sequence[str | dict[str, Any]] = (),
    base: dict[str, Any] | None = None,
) -> S:
    """The defaults of `cls`, then `base`, the files in order, and `key.path=value` overrides.

    A file that does not exist is looked up among the shipped recipes (`kinetics400/hiera_base`).

    Raises:
        ConfigError: names the key or file, what is wrong and what is allowed.
    """
    values, sources = merged(cls, files, overrides, base)
    return validated(cls, values, sources)


def merged(
    cls: type[Settings],
    files: Sequence[str] = (),
    overrides: Sequence[str | dict[str, Any]] = (),
    base: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values as nested plain data, not checked, and the file that each key is from."""
    values, sources = defaults(cls), dict[str, str]()
    _merge(values, base or {})
    for name in files:
        update = _renamed(cls, read_yaml(find_config(name)))
        _merge(values, update)
        sources |= dict.fromkeys(_keys(update), name)
    for override in overrides:
        update = override if isinstance(override, dict) else parse_override(override)
        _merge(values, update)
        for key in _keys(update):
            sources.pop(key, None)
    return values, sources


def validated(cls: type[S], values: dict[str, Any], sources: dict[str, str]) -> S:
    """Settings from nested plain data, or the first mistake as a ConfigError."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(cls, error, values, sources)) from None


def load_flops_settings(
    files: Sequence[str], overrides: Sequence[str | dict[str, Any]]
) -> FlopsSettings:
    """As `load_settings`, but `files` may be a recipe of training.

    Raises:
        ConfigError: as `load_settings`, and for files that are recipes of several commands or none.
    """
    task = merged(FlopsSettings, overrides=overrides)[0]["task"]
    try:
        return load_settings(FlopsSettings, files, overrides)
    except ConfigError as error:
        if not files:
            raise
        errors = {str(error): "flops"}
    recipes: dict[str, Any] = {}
    for name, (cls, command) in RECIPES.items():
        if task in (None, name):
            try:
                recipes[name] = load_for_print(cls, files)
            except ConfigError as error:
                errors[str(error)] = command
    if not recipes:
        if len(errors) == 1:  # whatever it is read as
            raise ConfigError(next(iter(errors)))
        reasons = "; ".join(f"{command}: {error}" for error, command in errors.items())
        raise ConfigError(f"not a configuration of any of these. {reasons}")
    if len(recipes) > 1:
        commands = " or ".join(RECIPES[name][1] for name in recipes)
        tasks = " or ".join(f"task={name}" for name in recipes)
        raise ConfigError(f"{', '.join(files)}: it may be a recipe of {commands}; add {tasks}")
    ((name, recipe),) = recipes.items()
    base = {"task": name, "model": recipe["model"]["name"]}
    for part in (recipe["model"], recipe.get("views", {}), recipe):
        base |= {key: part[key] for key in part.keys() & FlopsSettings.model_fields - base.keys()}
    return load_settings(FlopsSettings, overrides=overrides, base=base)


def load_for_print(
    cls: type[Settings],
    files: Sequence[str] = (),
    overrides: Sequence[str | dict[str, Any]] = (),
    base: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole configuration as plain data; required settings that are not set are None.

    Raises:
        ConfigError: as `load_settings`, but not for settings that are only missing.
    """
    values, sources = merged(cls, files, overrides, base)
    try:
        return to_dict(cls.model_validate(values))
    except ValidationError as error:
        if not all(_is_unset(cls, mistake) for mistake in error.errors()):
            raise ConfigError(explain(cls, error, values, sources)) from None
    return _typed(cls, values)


def _typed(cls: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    """As `to_dict` of settings, field by field, so that some may be None."""
    found: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        value = values.get(name)
        if (section := section_of(field)) and not section.is_compact:
            found[name] = _typed(section, value or {})
        elif value is None:
            found[name] = None
        else:
            annotation: Any = field.annotation
            for item in field.metadata:
                annotation = Annotated[annotation, item]
            adapter: TypeAdapter[Any] = TypeAdapter(annotation)
            found[name] = adapter.dump_python(adapter.validate_python(value), mode="json")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file with every scalar as text or None; {} for an empty one."""
    try:
        loaded = yaml.load(path.read_bytes(), _TextLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: holds {_kind(loaded)}, not keys with values")
    return loaded


def parse_override(override: str) -> dict[str, Any]:
    """`key.path=value` as nested plain data; lists, mappings and quoted texts are YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not of the form key.path=value")
    value: Any = None if text == "null" else text
    if text[:1] in ("[", "{", "'", '"'):
        try:
            value = yaml.load(text, _TextLoader)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{override}: not valid YAML: {reason}") from None
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


class _TextLoader(yaml.SafeLoader):
    """Reads scalars as text, except null; a key that stands twice is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key_node, _), key in zip(node.value, keys, strict=True):
            if not isinstance(key, str) or keys.count(key) > 1:
                what = f"duplicate key {key}" if isinstance(key, str) else "a key that is not text"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
        return super().construct_mapping(node, deep)


def _merge(values: dict[str, Any], update: dict[str, Any]) -> None:
    """Replaces values, group by group."""
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _renamed(cls: type[Settings], update: dict[str, Any]) -> dict[str, Any]:
    """With today's names for keys that had others in an earlier version."""
    found = {}
    for key, value in update.items():
        field = cls.model_fields.get(key)
        section = section_of(field) if field else None
        if section and isinstance(value, dict):
            value = _renamed(section, value)
        found[cls.renamed.get(key, key)] = value
    return found


def _keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of nested plain data."""
    found = []
    for key, value in values.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, dict):
            found += _keys(value, f"{prefix}{key}.")
    return found


def explain(
    cls: type[Settings], error: ValidationError, values: dict[str, Any], sources: dict[str, str]
) -> str:
    """The first mistake as a sentence: key, value, what is allowed; and the file it is in."""
    errors = error.errors()
    first = next((e for e in errors if not _is_unset(cls, e)), errors[0])
    names = [str(part) for part in first["loc"]]
    rule = first.get("ctx", {}).get("error")
    if isinstance(rule, RuleError):
        key = ".".join([*names, rule.key])
        sentence = f"{_operand(cls, key)} is {shown(rule.value)}: needed is {rule.allowed}"
    elif first["type"] == "extra_forbidden":
        key = ".".join(names)
        section, _ = _field(cls, names)
        sentence = f"{key} is unknown{_nearest(names[-1], section)}"
    else:
        section, path = _field(cls, names)
        field = section.model_fields[path[-1]]
        group = section_of(field)
        allowed = allowed_values(field.annotation, field.metadata)
        if group is not None:
            allowed = f"a group with {', '.join(group.model_fields)}"
        value: Any = values
        for name in path:
            value = value.get(name) if isinstance(value, dict) else value
        key = ".".join(path)
        sentence = f"{_operand(cls, key)} is {shown(value)}: needed is {allowed}"
    source = sources.get(key)
    return sentence if source is None else f"{source}: {sentence}"


def _field(cls: type[Settings], names: Sequence[str]) -> tuple[type[Settings], list[str]]:
    """The innermost group that the names of an error lead to, and those that are fields."""
    section, path = cls, list[str]()
    for name in names:
        if name not in section.model_fields:
            break
        path.append(name)
        inner = section_of(section.model_fields[name])
        if inner is None or len(path) == len(names):
            break
        section = inner
    return section, path


def _is_unset(cls: type[Settings], error: Any) -> bool:
    """Whether a mistake is only that a required setting is not set."""
    rule = error.get("ctx", {}).get("error")
    if isinstance(rule, RuleError):
        return rule.value is None
    names = [str(part) for part in error["loc"]]
    section, path = _field(cls, names)
    if path != names or not section.model_fields[path[-1]].is_required():
        return False
    return error["type"] == "missing" or error["input"] is None


def _operand(cls: type[Settings], key: str) -> str:
    """How the user names a setting: FILE and the like stand on the command line without a key."""
    field = cls.model_fields.get(key)
    operands = [m.name for m in field.metadata if isinstance(m, Operand)] if field else []
    return operands[0] if operands else key


def _nearest(name: str, section: type[Settings]) -> str:
    near = difflib.get_close_matches(name, section.model_fields, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known here are {', '.join(section.model_fields)}"


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the text {value!r}"


def to_dict(settings: Settings) -> dict[str, Any]:
    """The configuration as plain data; tuples become lists, as in YAML."""
    return settings.model_dump(mode="json")


def to_yaml(values: Settings | dict[str, Any]) -> str:
    """The whole configuration, defaults included, as YAML."""
    plain = to_dict(values) if isinstance(values, Settings) else values
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for each leaf that differs between two configurations."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return found


def configs_folder() -> Path:
    """The folder of the recipes: inside the installed package, or beside it in a checkout."""
    return shipped_folder("configs")


def find_config(name: str) -> Path:
    """A path as given, or a shipped recipe by its name, with or without `.yaml` and `configs/`."""
    shipped = configs_folder()
    relative = name.removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    for path in (Path(name), shipped / relative):
        if path.is_file():
            return path
    known = sorted(str(p.relative_to(shipped).with_suffix("")) for p in shipped.rglob("*.yaml"))
    near = difflib.get_close_matches(name.removesuffix(".yaml"), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "shipped are " + ", ".join(known)
    raise ConfigError(f"{name}: there is no such configuration file; {hint}")
