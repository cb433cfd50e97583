"""A page of Markdown that is on the disk whenever something was added to it."""

from collections.abc import Sequence
from pathlib import Path

from hiera_video.analysis.tables import format_table


class OutOfTime(BaseException):
    """The time of a section is over; not an Exception, which those who measure record and go on."""


class Table:
    def __init__(self, page: "Page", headers: Sequence[str]) -> None:
        self.page, self.headers = page, headers
        self.rows: list[list[str]] = []

    def row(self, *cells: object) -> None:
        self.rows.append([str(cell) for cell in cells])
        self.page.save()

    def __str__(self) -> str:
        return format_table(self.headers, self.rows, "pipe") if self.rows else ""


class Page:
    """Texts and tables of a section.

    Args:
        path: the file.
        title: its heading.
    """

    def __init__(self, path: Path, title: str) -> None:
        self.path = path
        self.parts: list[str | Table] = []
        self.failed = False
        self.text(f"### {title}")

    def text(self, text: str) -> None:
        self.parts.append(text)
        self.save()

    def failure(self, text: str) -> None:
        """What is missing though it should not be; the check then fails."""
        self.failed = True
        self.text(text)

    def table(self, *headers: str) -> Table:
        table = Table(self, headers)
        self.parts.append(table)
        return table

    def save(self) -> None:
        parts = [str(part) for part in self.parts]
        self.path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
