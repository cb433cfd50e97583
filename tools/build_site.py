"""Builds the site of the documentation, for which `pip install -e '.[docs]'` is needed.

    python tools/build_site.py                    # into build/site; any warning is an error
    python tools/build_site.py && mkdocs serve    # shows the pages of build/pages

The pages are written for readers of the repository: links lead to recipes, folders and programs.
`stage` therefore copies what can be reached from `README.md` and `docs/` into a folder of Markdown
with the same layout, in which other files and folders have become pages, and adds the reference,
whose contents are the tables of public names in docs/api.md. What the generator gets is plain
Markdown in the layout of the repository, so that another one can take its place.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
TAG = re.compile(r"""\b(?:src|srcset)="(?!https?:)([^"\s]+)\"""")  # of <img> and <source>
CODE = re.compile(r"(^ *```.*?^ *```$|`[^`\n]+`)", flags=re.DOTALL | re.MULTILINE)
LANGUAGES = {".sh": "sh", ".sbatch": "sh", ".yaml": "yaml", ".py": "python", ".json": "json"}
SHOWN = {".gif", ".html", ".jpg", ".mp4", ".png", ".svg", ".webp"}  # by browsers, as they are
HIDDEN = "---\nsearch:\n  exclude: true\n---\n"  # recipes and class names would hide the pages
FIRST = "---\nsearch:\n  boost: 2\n---\n"  # whoever searches for a name looks for its description
PUBLIC = re.compile(r"^\| `(hiera_video[\w.]*)` \| (`.*`) \|$", flags=re.MULTILINE)


def public_names(page: str) -> dict[str, list[str]]:
    """The full names of all that is public by group, from the tables of docs/api.md."""
    groups = {}
    for group, text in re.findall(r"^### (.+?)\n(.*?)(?=^##)", page, flags=re.DOTALL | re.M):
        if tables := PUBLIC.findall(text):
            names = [(module, re.findall(r"`(\w+)`", cell)) for module, cell in tables]
            groups[group] = [f"{module}.{name}" for module, found in names for name in found]
    return groups


def stage(pages: Path, root: Path = ROOT) -> None:
    """Writes the Markdown of the site.

    Args:
        pages: the folder to write to, which is replaced.
        root: the repository.

    Raises:
        FileNotFoundError: a page has a link to nothing.
    """
    shutil.rmtree(pages, ignore_errors=True)
    waiting = [root / "README.md", root / "CHANGELOG.md", root / "CONTRIBUTING.md"]
    waiting += sorted((root / "docs").rglob("*.md"))
    done = set()
    while waiting:
        source = waiting.pop()
        if source in done:
            continue
        done.add(source)
        target = pages / page_of(source.relative_to(root).as_posix(), source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix in SHOWN:
            shutil.copy(source, target)
            continue
        text, linked = with_links_to_pages(as_markdown(source, root), source)
        target.write_text(with_deep_items(text), encoding="utf-8")
        waiting += linked
    groups = public_names((root / "docs/api.md").read_text(encoding="utf-8"))
    api = pages / "docs/api.md"
    api.write_text(with_links_to_names(api.read_text(encoding="utf-8")), encoding="utf-8")
    (pages / "docs/reference").mkdir()
    for group, names in groups.items():
        entries = "\n\n".join(f"::: {name}" for name in names)
        path = pages / f"docs/reference/{group.lower().replace(' ', '-')}.md"
        path.write_text(f"{FIRST}# {group}\n\n{entries}\n", encoding="utf-8")


def page_of(name: str, source: Path) -> str:
    """The name of the page of a file or folder."""
    if source.is_dir():
        return posixpath.join(name, "README.md")
    return name if source.suffix in {".md", *SHOWN} else f"{name}.md"


def with_links_to_pages(text: str, source: Path) -> tuple[str, list[Path]]:
    """A page whose links lead to the pages of their targets, and these targets."""
    folder = source if source.is_dir() else source.parent
    linked = []

    def follow(path: str) -> Path:
        target = Path(os.path.normpath(folder / path))
        if not target.exists():
            raise FileNotFoundError(f"{source}: a link to {path}, which does not exist")
        readme = target / "README.md"
        linked.append(readme if readme.is_file() else target)
        return target

    def replaced(match: re.Match[str]) -> str:
        return page_of(match["path"], follow(match["path"])) + (match["anchor"] or "")

    parts = CODE.split(text)
    parts[::2] = [LINK.sub(replaced, part) for part in parts[::2]]
    for path in TAG.findall("".join(parts[::2])):
        follow(path)
    return "".join(parts), linked


def with_deep_items(text: str) -> str:
    """A page whose list items are indented by 4, as Python-Markdown needs it, not by 2 or 3."""
    lines, missing, width = [], 0, 0
    for line in text.splitlines():
        if item := re.match(r"(\*|\d+\.) +", line):
            width = len(item[0])
            missing = 4 - width
        elif line[:1].strip():
            width = missing = 0
        elif width and line.startswith(" " * width):
            line = " " * missing + line
        lines.append(line)
    return "\n".join(lines) + "\n"


def with_links_to_names(page: str) -> str:
    """The tables of public names, with links to the reference."""

    def linked(match: re.Match[str]) -> str:
        module, names = match.groups()
        names = re.sub(r"`(\w+)`", rf"[`\1`][{module}.\1]", names)
        return f"| `{module}` | {names} |"

    return PUBLIC.sub(linked, page)


def as_markdown(source: Path, root: Path) -> str:
    name = source.relative_to(root).as_posix()
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file())
        names = [path.relative_to(source).as_posix() for path in files]
        return f"{HIDDEN}# {name}/\n\n" + "\n".join(f"* [{n}]({n})" for n in names) + "\n"
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".md":
        return text
    if source.suffix == ".ipynb":
        cells = "\n\n".join(map(cell_as_markdown, json.loads(text)["cells"]))
        return cells.replace("-->\n\n```", "-->\n```") + "\n"
    if source.suffix == ".py":
        return program_as_markdown(name, text)
    return f"{HIDDEN}# {name}\n\n{fenced(text, LANGUAGES.get(source.suffix, 'text'))}\n"


def program_as_markdown(name: str, text: str) -> str:
    """The docstring of a program, whose first line is the title, and its code below."""
    tree = ast.parse(text)
    title, _, rest = (ast.get_docstring(tree) or name).partition("\n")
    code = "".join(text.splitlines(keepends=True)[tree.body[0].end_lineno :])
    return f"# {title.rstrip('.')}\n{rest}\n\n`{name}`:\n\n{fenced(code, 'python')}\n"


def cell_as_markdown(cell: dict[str, Any]) -> str:
    """The text of a cell of a notebook; `!command` and `%pip` become commands of a shell."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return text
    is_command = text.startswith(("!", "%"))
    return fenced(text[1:], "sh") if is_command else fenced(text, "python")


def fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def build(pages: Path, site: Path) -> None:
    """Makes the site.

    Args:
        pages: what `stage` has written.
        site: the folder for the site, which is replaced.

    Raises:
        mkdocs.exceptions.Abort: there were warnings, which mkdocs has logged.
    """
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    file = str(ROOT / "mkdocs.yml")
    config = load_config(file, docs_dir=str(pages), site_dir=str(site), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    config.plugins.on_shutdown()


def main() -> None:
    argparse.ArgumentParser(description="Builds the site of the documentation.").parse_args()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    pages = ROOT / "build/pages"
    stage(pages)
    build(pages, ROOT / "build/site")


if __name__ == "__main__":
    main()
