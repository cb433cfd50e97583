"""A report as a folder with one page, which opens from the disk without a network."""

from __future__ import annotations

import html
import importlib.util
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hiera_video.errors import MissingLibrary, printable
from hiera_video.files import json_text, replacing, write_text
from hiera_video.report.blocks import Block, FeatureMap, Gallery, Plot, Section

PLOTLY = "plotly.min.js"
PARTS = ("index.html", PLOTLY, "media")
ASSETS = Path(__file__).parent / "assets"


def check_libraries() -> None:
    """Raises MissingLibrary if plotly or jinja2 is not installed."""
    for library in ("plotly", "jinja2"):
        if importlib.util.find_spec(library) is None:
            sentence = f"a report needs {library}: pip install 'hiera-video[report]'"
            raise MissingLibrary(sentence)


def write_page(folder: Path, title: str, sections: Sequence[Section]) -> Path:
    """Writes `index.html` and the library of its plots to `folder`; returns the page."""
    import jinja2
    import markupsafe
    import plotly

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"shown": printable, "figure": figure}
    environment.tests["kind"] = lambda block, kind: type(block).__name__ == kind
    data = {
        f"{i}-{j}": payload
        for i, section in enumerate(sections)
        for j, block in enumerate(section.blocks)
        if (payload := plotted(block)) is not None
    }
    page = environment.get_template("page.html").render(
        title=title,
        sections=sections,
        anchors=anchors([section.title for section in sections]),
        has_plots=bool(data),
        # No text in it may end the element of the page that holds it.
        data=markupsafe.Markup(json_text(data, ensure_ascii=True).replace("<", "\\u003c")),
        style=markupsafe.Markup((ASSETS / "page.css").read_text("utf-8")),
        script=markupsafe.Markup((ASSETS / "page.js").read_text("utf-8")),
    )
    if data:
        source = Path(plotly.__file__).parent / "package_data" / PLOTLY
        with replacing(folder / PLOTLY) as part:
            shutil.copyfile(source, part)
    index = folder / "index.html"
    write_text(index, page)
    return index


def plotted(block: Block) -> Any:
    """What the script of the page needs of a block, as JSON data; None if it needs nothing.

    Plotly takes some tags in texts for markup, and what is between two `$` for a formula, so that
    names are escaped here.
    """
    if isinstance(block, Plot):
        return {
            "data": escaped(block.data),
            "layout": escaped(block.layout),
            "seeks": block.seeks,
        }
    if isinstance(block, Gallery):
        return {"orders": [list(order) for _, order in block.orders]}
    if isinstance(block, FeatureMap):
        return {
            "points": [list(point) for point in block.points],
            "names": [printable(name) for name in block.names],
            "groups": [printable(group) for group in block.groups],
            "media": [
                m and {"picture": m.picture, "video": m.video, "note": printable(m.note)}
                for m in block.media
            ],
            "neighbours": [[list(n) for n in near] for near in block.neighbours],
            "axes": list(block.axes),
        }
    return None


def escaped(content: Any) -> Any:
    """The same JSON data with all texts that are values escaped for HTML, and `$` for formulas."""
    if isinstance(content, str):
        return html.escape(printable(content), quote=False).replace("$", "&#36;")
    if isinstance(content, Mapping):
        return {key: escaped(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [escaped(value) for value in content]
    return content


def anchors(titles: Sequence[str]) -> list[str]:
    """A fragment for each title, unique on the page."""
    words = (re.sub(r"[^a-z0-9]+", "-", title.lower())[:40] for title in titles)
    return [f"section-{i}-{word}" for i, word in enumerate(words)]


def figure(value: float | None, kind: str, digits: int) -> str:
    """A number of a table as text."""
    if value is None:
        return "-"
    if kind == "percent":
        return f"{100 * value:.{digits}f} %"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"
