"""An extension of griffe, which reads the sources for the reference: fields of classes.

The comment behind a field is its description, unless it has a docstring, and settings take their
fields by name, although their `__init__` is one of pydantic.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterator
from typing import Any

import griffe

SETTINGS = "hiera_video.settings.base.Checked"  # their base


class FieldsAsDocs(griffe.Extension):
    """Describes the fields of classes."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        if is_field(attr) and attr.docstring is None and (comment := comment_of(attr)):
            attr.docstring = griffe.Docstring(comment, parent=attr, lineno=attr.lineno)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for cls in classes_of(pkg):
            if SETTINGS in [base.path for base in cls.mro()]:
                fields = [f for f in cls.all_members.values() if f.is_attribute and is_field(f)]
                cls.set_member("__init__", init_of(fields))
        for name in ("Checked", "Settings"):  # what these classes have serves the package
            for member in pkg["settings.base"][name].members.values():
                member.public = False


def is_field(attr: griffe.Attribute) -> bool:
    """Whether an attribute is a field of a class: one with a type that is not ClassVar."""
    inside = attr.parent is not None and attr.parent.is_class
    return inside and attr.annotation is not None and "instance-attribute" in attr.labels


def comment_of(attr: griffe.Attribute) -> str:
    source = "\n".join(line.strip() for line in attr.lines) + "\n"
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return " ".join(t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT)


def classes_of(module: griffe.Module) -> Iterator[griffe.Class]:
    yield from module.classes.values()
    for inner in module.modules.values():
        if not inner.is_alias:
            yield from classes_of(inner)


def init_of(fields: list[griffe.Attribute]) -> griffe.Function:
    by_name = griffe.ParameterKind.keyword_only
    parameters = [
        griffe.Parameter(f.name, annotation=f.annotation, kind=by_name, default=f.value)
        for f in fields
    ]
    first = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    return griffe.Function("__init__", parameters=griffe.Parameters(first, *parameters))
