"""What a page of a report consists of: sections of tables, plots, cards with videos, and notices.

Builders of sections know the results, `page.py` knows HTML, and these classes are all that they
share. Texts are plain: nothing in them is markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Media:
    """A small picture and a small video, by their paths in the folder of the report."""

    picture: str | None = None
    video: str | None = None
    note: str = ""  # why they are missing


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers are sorted as such, and None comes last."""

    name: str
    kind: Literal["text", "number", "percent"] = "text"
    digits: int = 1


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by each column and filtered by text."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]  # str, float or None


@dataclass(frozen=True)
class Plot:
    """A plot, as Plotly's `data` and `layout`."""

    caption: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    height_px: int = 320
    seeks: str | None = None  # path of the video in which a click shows the moment x, in seconds


@dataclass(frozen=True)
class Bar:
    """A share of a card, such as the probability of a class."""

    label: str
    share: float  # 0..1
    is_right: bool = False


@dataclass(frozen=True)
class Card:
    """One video or picture with what is known about it."""

    title: str
    media: Media
    facts: Sequence[tuple[str, str]] = ()
    bars: Sequence[Bar] = ()
    marks: Sequence[float] = ()  # small shares in a row, such as one for each view
    marks_label: str = ""


@dataclass(frozen=True)
class Gallery:
    """Cards in one of several orders, each a name and the numbers of the cards that it shows."""

    caption: str
    cards: Sequence[Card]
    orders: Sequence[tuple[str, Sequence[int]]] = ()
    is_wide: bool = False  # pictures that hold text, or several panels


@dataclass(frozen=True)
class FeatureMap:
    """Points in a plane with names, pictures for some, and the nearest neighbours of each."""

    caption: str
    points: Sequence[tuple[float, float]]
    names: Sequence[str]
    groups: Sequence[str]  # "" for all: there are none
    media: Sequence[Media | None]
    neighbours: Sequence[Sequence[tuple[int, float]]]  # number of the point, cosine similarity
    axes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Notice:
    """A sentence about what is missing or limited, and a command that would add it."""

    text: str
    command: str | None = None


Block = Table | Plot | Gallery | FeatureMap | Notice


@dataclass(frozen=True)
class Section:
    """A heading with blocks below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    intro: str = ""
