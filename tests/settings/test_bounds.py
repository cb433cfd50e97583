"""Every bound of every setting holds, in every command, and names its key."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from hiera_video.cli.main import COMMANDS
from hiera_video.errors import ConfigError
from hiera_video.settings.base import Ascending, leaves, shown_key
from hiera_video.settings.load import load_for_print


def outside(annotation: Any, metadata: tuple[Any, ...]) -> Iterator[str]:
    """Values beside the allowed ones, as they are written on a command line."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from outside(arguments[0], (*metadata, *arguments[1:]))
    elif origin in (Union, types.UnionType):
        if str not in arguments:
            for argument in arguments:
                if argument is not type(None) and get_origin(argument) is not tuple:
                    yield from outside(argument, metadata)
    elif origin is Literal:
        yield "none_of_these"
    elif origin is tuple and arguments[-1] is not Ellipsis:
        yield "[1]"
        if Ascending in metadata:
            yield "[0.75, 0.5]"
        for wrong in outside(arguments[0], ()):
            yield f"[{', '.join([wrong] * len(arguments))}]"
    elif annotation is bool:
        yield "perhaps"
    elif annotation in (int, float):
        yield "many"
        for bound in metadata:
            match bound:
                case Ge(ge):
                    yield f"{ge - 1}"
                case Gt(gt):
                    yield f"{gt}"
                case Le(le):
                    yield f"{le + 1}"
                case Lt(lt):
                    yield f"{lt}"
    elif origin in (list, tuple):
        if any(isinstance(item, MinLen) for item in metadata):
            yield "[]"
        for wrong in outside(arguments[0], ()):
            yield f"[{wrong}]"


def cases() -> Iterator[tuple[str, str, str]]:
    for command, cls in COMMANDS.items():
        field: FieldInfo
        for key, field, _ in leaves(cls):
            for value in outside(field.annotation, tuple(field.metadata)):
                yield command, key, value


CASES = list(cases())


def test_there_are_bounds_of_all_kinds() -> None:
    assert len(CASES) > 400
    keys = {key for _, key, _ in CASES}
    assert {"optim.lr", "augment.crop_area", "views.num_crops", "batch_sizes"} <= keys


@pytest.mark.parametrize("command", COMMANDS)
def test_a_value_outside_is_refused_by_its_key(command: str) -> None:
    """`load_for_print` checks all that is set; the commands go through the same."""
    for name, key, value in CASES:
        if name == command:
            with pytest.raises(ConfigError) as error:
                load_for_print(COMMANDS[command], overrides=[f"{key}={value}"])
            assert f"{shown_key(COMMANDS[command], key)} is " in str(error.value)
            assert "; it must be " in str(error.value)


def test_each_setting_is_stated_once() -> None:
    """A field that a class inherits is stated again only where its range or default differs."""
    from hiera_video.settings.base import Settings

    def subclasses(cls: type) -> Iterator[type]:
        for child in cls.__subclasses__():
            yield child
            yield from subclasses(child)

    for cls in set(subclasses(Settings)):
        for parent in cls.__mro__[1:]:
            inherited = getattr(parent, "model_fields", {})
            for name in cls.__annotations__.keys() & inherited.keys():
                own, old = cls.model_fields[name], inherited[name]
                assert repr(own) != repr(old), f"{cls.__name__}.{name} repeats {parent.__name__}"
