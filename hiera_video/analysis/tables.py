"""Tables of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tabulate import tabulate


def format_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], style: Literal["plain", "pipe"]
) -> str:
    """A table of at least one row, the first column aligned to the left, others to the right.

    Args:
        style: "pipe" for Markdown.
    """
    alignment = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt=style, colalign=alignment, disable_numparse=True)
