"""What a setting is: a typed field with its range, default and description.

Classes of settings are frozen pydantic models. The annotation of a field states what is
allowed, and the string below it what it means and its unit; error messages and `--help` are made
from these.
"""

import functools
import os
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from operator import attrgetter
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    ParamSpec,
    Self,
    Union,
    cast,
    get_args,
    get_origin,
)

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from hiera_video.errors import ConfigError, ModelError, UserError, did_you_mean

P = ParamSpec("P")

MAX_SHOWN = 200  # characters of a value in a message
MAX_WHOLE = 2**31 - 1  # larger numbers overflow somewhere; help texts do not state this bound


class Checked(BaseModel):
    """A model whose wrong arguments raise a `UserError`, with a sentence for each.

    `model_validate` raises pydantic's ValidationError.
    """

    if not TYPE_CHECKING:  # checkers know the fields as arguments

        def __init__(self, /, *unnamed: Any, **values: Any) -> None:
            if unnamed:
                names = ", ".join(type(self).model_fields)
                raise TypeError(f"{type(self).__name__} takes its arguments by name: {names}")
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise self.refusal(error, values) from None

        __init__.__pydantic_base_init__ = True  # which model_validate does not call

    @classmethod
    def refusal(cls, error: ValidationError, values: Mapping[str, Any]) -> UserError:
        """The error about these arguments."""
        return ConfigError(f"{cls.__name__}: {error}")


class Settings(Checked):
    """A group of settings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    is_compact: ClassVar[bool] = False  # listed as one setting in help texts

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        self.check_rules()
        return self

    @classmethod
    def refusal(cls, error: ValidationError, values: Mapping[str, Any]) -> UserError:
        return ConfigError(f"{cls.__name__}: {mistakes(cls, error, values)}")

    def check_rules(self) -> None:
        """Rules between settings, each a call of `require`; subclasses with rules call this too."""

    def require(self, condition: bool, key: str, allowed: str) -> None:
        """Raises an error about the setting `key` unless `condition` holds."""
        if not condition:
            raise RuleError(key, attrgetter(key)(self), allowed)


class RuleError(ValueError):
    """A value that is not allowed beside the others."""

    def __init__(self, key: str, value: Any, allowed: str) -> None:
        super().__init__(f"{key} is {shown(value)}; it must be {allowed}")
        self.key, self.value, self.allowed = key, value, allowed


@dataclass(frozen=True)
class Allowed:
    """Words for what a field allows, where its type does not say enough."""

    words: str


@dataclass(frozen=True)
class Existing:
    """A path that must be there when a command starts.

    Args:
        or_published: it may also name published weights, or a repository.
    """

    or_published: bool = False


@dataclass(frozen=True)
class Operand:
    """A field that the command line takes without its name, as FILE in `predict FILE ...`."""

    name: str
    is_list: bool = True


def _possible_path(value: Any) -> str:
    """Any name that a file can have: of bytes that are not UTF-8 too, which `str` would refuse.

    `~` becomes the home folder, as the shell replaces it only where it begins a word. In Python, a
    `pathlib.Path` becomes text.
    """
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("not a path")
    os.fsencode(value)
    return os.path.expanduser(value)


def _utf8(path: str) -> str:
    path.encode("utf-8")
    return path


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first number is larger than the second")
    return pair


NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Count = Annotated[int, Ge(1), Le(MAX_WHOLE)]
Natural = Annotated[int, Ge(0), Le(MAX_WHOLE)]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Probability = Annotated[float, Ge(0), Le(1)]
Rate = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Gt(0), Le(1)]
PossiblePath = Annotated[str, PlainValidator(_possible_path)]
Path = Annotated[PossiblePath, Existing(), Allowed("a path")]
# Of what is written, because some libraries write no other.
Output = Annotated[PossiblePath, AfterValidator(_utf8), Allowed("a path in UTF-8")]
Weights = Annotated[Path, Existing(or_published=True), Allowed("weights")]
Ascending = AfterValidator(_ascending)
Length = Annotated[int, Ge(1), Le(16_384)]  # along an axis of a clip: frames, pixels or tokens
Size2 = tuple[Length, Length]
Size3 = tuple[Length, Length, Length]
ImageSize = Annotated[
    Length | Size2, Allowed("a whole number of pixels, or [height, width] of two such numbers")
]
Device = Annotated[
    str,
    Allowed("auto, cpu, cuda, cuda:N or mps"),
    Field(description="auto (cuda, else mps, else cpu), or a torch device."),
]


def allowed_values(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """In words, the values that a type with its constraints allows."""
    if given := [item.words for item in metadata if isinstance(item, Allowed)]:
        return given[-1] + (", or null" if type(None) in get_args(annotation) else "")
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return allowed_values(arguments[0], [*metadata, *arguments[1:]])
    if origin in (Union, types.UnionType):
        others = [a for a in arguments if a is not type(None)]
        words = " or ".join(allowed_values(a, metadata) for a in others)
        return f"{words}, or null" if len(others) < len(arguments) else words
    if origin is Literal:
        *first, last = map(str, arguments)
        return f"{', '.join(first)} or {last}" if first else last
    if origin is tuple:
        if len(arguments) == 2 and Ascending in metadata:
            return f"[low, high] with low <= high, each {allowed_values(arguments[0])}"
        if arguments[-1] is Ellipsis:
            at_least = "at least one, " if any(isinstance(m, MinLen) for m in metadata) else ""
            most = next(
                (f"at most {m.max_length}, " for m in metadata if isinstance(m, MaxLen)), ""
            )
            return f"a list, {at_least}{most}each entry {allowed_values(arguments[0])}"
        return f"a list of {len(arguments)}, each {allowed_values(arguments[0])}"
    if annotation is bool:
        return "true or false"
    names = {int: "a whole number", float: "a number", str: "text"}
    return names.get(annotation, "a group of settings") + _bounds(metadata)


def _bounds(metadata: Sequence[Any]) -> str:
    words = {Ge: "of at least", Gt: "above", Le: "of at most", Lt: "below"}
    stated = [(words[type(m)], astuple(m)[0]) for m in metadata if type(m) in words]
    return " and".join(f" {word} {bound:.15g}" for word, bound in stated if bound < MAX_WHOLE)


def shown(value: Any) -> str:
    """A value in a message, as people write it: numbers that are still text without quotes.

    Of long ones the beginning.
    """
    if value is None:
        return "not set"
    if isinstance(value, list | tuple):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, str):
        try:
            float(value)
            text = value
        except ValueError:
            text = repr(value)
    elif isinstance(value, dict):
        text = reprlib.repr(value)  # of any depth
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"


def section_of(field: FieldInfo) -> type[Settings] | None:
    """The class of a field that is a group of settings."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def takes_text(cls: type[Settings], key: str) -> bool:
    """Whether a dotted key is that of a setting whose values are any text, or null."""
    group, _, rest = key.partition(".")
    field = cls.model_fields.get(group)
    if field is None or rest:
        section = section_of(field) if field else None
        return section is not None and takes_text(section, rest)
    return _is_text(field.annotation)


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_text(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return all(a is type(None) or _is_text(a) for a in get_args(annotation))
    return annotation is str


def defaults(cls: type[Settings]) -> dict[str, Any]:
    """All defaults as nested plain data; required settings are absent."""
    found: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        if not field.is_required():
            value = field.default
            found[name] = value.model_dump() if isinstance(value, Settings) else value
        elif section := section_of(field):
            found[name] = defaults(section)
    return found


def leaves(
    cls: type[Settings], values: dict[str, Any] | None = None
) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Every setting with its dotted key, its field and its value: its default, or None without one.

    Args:
        values: nested plain data, in place of the defaults.
    """
    values = defaults(cls) if values is None else values
    for name, field in cls.model_fields.items():
        section = section_of(field)
        if section and not section.is_compact:
            for key, inner, value in leaves(section, values[name]):
                yield f"{name}.{key}", inner, value
        else:
            yield name, field, values.get(name)


def existing_paths(settings: Settings) -> Iterator[tuple[str, list[str], Existing]]:
    """The settings that name what must be there: dotted key, paths, and what they may be else."""
    for key, field, value in leaves(type(settings), settings.model_dump()):
        marks = [
            m for m in metadata_of(field.annotation, field.metadata) if isinstance(m, Existing)
        ]
        if marks and value is not None:
            yield key, [value] if isinstance(value, str) else list(value), marks[-1]


def metadata_of(annotation: Any, metadata: Sequence[Any] = ()) -> Iterator[Any]:
    """What `Annotated` adds to a type or to the types inside it, from the inside outwards."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from metadata_of(arguments[0], arguments[1:])
    else:
        for inner in () if origin is Literal else arguments:
            yield from metadata_of(inner)
    yield from metadata


def types_of(annotation: Any) -> Iterator[Any]:
    """The types that a value may have: the members of a union, without what `Annotated` adds."""
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        arguments = get_args(annotation)
        for inner in arguments[:1] if get_origin(annotation) is Annotated else arguments:
            yield from types_of(inner)
    else:
        yield annotation


def operand_of(cls: type[Settings]) -> tuple[str, Operand] | None:
    """The setting that the command line takes without its key, as FILE in `predict FILE ...`."""
    items = ((name, item) for name, field in cls.model_fields.items() for item in field.metadata)
    return next(((name, item) for name, item in items if isinstance(item, Operand)), None)


def shown_key(cls: type[Settings], key: str) -> str:
    """How the user names a setting: FILE and the like stand on the command line without a key."""
    name, operand = operand_of(cls) or (None, None)
    return operand.name if operand and name == key else key


def mistakes(cls: type[Settings], error: ValidationError, values: Mapping[str, Any]) -> str:
    """A sentence for each mistake in `values`."""
    return ". ".join(dict.fromkeys(mistake(cls, e, values)[2] for e in error.errors()))


def checked(cls: type[Settings], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as the fields of `cls` have them: lists may stand for tuples.

    Raises:
        ModelError: a value that a field does not allow.
    """
    try:
        found = cls.model_validate(arguments)
    except ValidationError as error:
        raise ModelError(mistakes(cls, error, arguments)) from None
    return {key: getattr(found, key) for key in arguments}


def takes(cls: type[Settings]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorates an `__init__` of keyword arguments, which become `checked` ones. None stands for
    the default."""

    def decorate(init: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(init)
        def with_checks(*args: P.args, **arguments: P.kwargs) -> None:
            given = {key: v for key, v in checked(cls, arguments).items() if v is not None}
            cast("Callable[..., None]", init)(*args, **given)

        return with_checks

    return decorate


def mistake(cls: type[Settings], error: Any, values: Mapping[str, Any]) -> tuple[bool, str, str]:
    """An error of pydantic's: whether a required setting is only not set, its key, and a sentence
    with key, value and what is allowed."""
    names = [str(part) for part in error["loc"]]
    value: Any = values
    group, path = cls, list[str]()  # the innermost group that `names` lead to
    for name in names:
        if name not in group.model_fields:
            break
        path.append(name)
        value = value.get(name) if isinstance(value, Mapping) else value
        inner = section_of(group.model_fields[name])
        if inner is None or len(path) == len(names):
            break
        group = inner
    if error["type"] == "extra_forbidden":
        key = ".".join(names)
        known = did_you_mean(names[-1], group.model_fields)
        known = known or f"; known here are {', '.join(group.model_fields)}"
        return False, key, f"{'.'.join((key, *only_keys(error['input'])))} is unknown{known}"
    rule = error.get("ctx", {}).get("error")
    if isinstance(rule, RuleError):
        key, value, allowed = ".".join([*names, rule.key]), rule.value, rule.allowed
        is_required = True
    else:
        key, field = ".".join(path), group.model_fields[path[-1]]
        allowed = allowed_values(field.annotation, field.metadata)
        if section := section_of(field):
            allowed = f"a group with {', '.join(section.model_fields)}"
        if error["type"] == "less_than_equal" and error["ctx"]["le"] >= MAX_WHOLE:
            allowed += f" and of at most {error['ctx']['le']:,}"
        is_required = field.is_required()
    sentence = f"{shown_key(cls, key)} is {shown(value)}; it must be {allowed}"
    return value is None and is_required, key, sentence


def only_keys(value: Any) -> Iterator[str]:
    """The keys that lead into groups of one entry."""
    while isinstance(value, dict) and len(value) == 1:
        ((key, value),) = value.items()
        yield str(key)
