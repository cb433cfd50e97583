"""The site of the documentation is complete, and requests nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import hiera_video
from build_site import ROOT, build, public_names, stage

pytest.importorskip("material")
pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings_handlers.python")

REQUESTED = {  # attributes whose addresses a browser fetches when it shows a page
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "img": ("src", "srcset"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    stage(folder)
    return folder


@pytest.fixture(scope="module")
def site(pages: Path) -> Path:
    """The built site. A malformed docstring is a warning of griffe, which ends the build."""
    folder = pages.parent / "site"
    build(pages, folder)
    return folder


class Page(HTMLParser):
    """What a page requests, the ids in it, and how often each tag is in its article."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.requests: list[str] = []
        self.ids: set[str] = set()
        self.tags: Counter[str] = Counter()
        self.in_article = "<article" not in text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.requests += [values[key] for key in REQUESTED.get(tag, ()) if values.get(key)]
        self.requests += re.findall(r"url\(([^)]+)\)", values.get("style", ""))
        self.ids |= {values["id"]} if "id" in values else set()
        self.in_article |= tag == "article"
        self.tags[tag] += self.in_article

    def handle_endtag(self, tag: str) -> None:
        self.in_article &= tag != "article"

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.requests += requests_of(data)


def requests_of(css: str) -> list[str]:
    found = re.findall(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""", css)
    return [address for pair in found for address in pair if address]


def test_no_page_requests_anything_from_outside(site: Path) -> None:
    files = [*site.rglob("*.html")]
    assert len(files) > 90
    requests = {(file, address) for file in files for address in Page(file.read_text()).requests}
    sheets = [*site.rglob("*.css")]
    requests |= {(sheet, address) for sheet in sheets for address in requests_of(sheet.read_text())}
    assert any(address.endswith(".css") for _, address in requests)
    for file, address in requests:
        if address.startswith(("data:", "#")):
            continue
        path = address.partition("?")[0].partition("#")[0]
        is_root = path.startswith("/") and not path.startswith("//")  # in 404.html
        target = site / path.lstrip("/") if is_root else file.parent / path
        assert target.resolve().is_relative_to(site), (file, address)
        assert target.is_file(), (file, address)
    # The theme fetches a library from a CDN for a page that has diagrams.
    assert not any("mermaid" in file.read_text() for file in files)


def test_all_public_names_are_in_the_reference(site: Path) -> None:
    groups = public_names((ROOT / "docs/api.md").read_text(encoding="utf-8"))
    assert list(groups)[:2] == ["Models", "Video reading"]
    listed = [name for names in groups.values() for name in names]
    assert len(listed) == len(set(listed)) > 70
    top = {f"hiera_video.{name}" for name in hiera_video.__all__}
    assert top - set(listed) == {"hiera_video.__version__"}
    for group, names in groups.items():
        page = site / f"docs/reference/{group.lower().replace(' ', '-')}.html"
        assert set(names) <= Page(page.read_text()).ids


def test_public_names_are_described(site: Path) -> None:
    """Fields by their comments, settings by their fields."""
    data = (site / "docs/reference/data.html").read_text()
    assert re.search(r"VideoRecord\.path.*?<p>absolute</p>", data, flags=re.DOTALL)
    settings = (site / "docs/reference/settings-and-errors.html").read_text()
    assert "hiera_video.settings.video.Clips.target_fps" in Page(settings).ids  # of its base
    (start,) = re.findall(r'<span class="nf">Views</span>.*?</pre>', settings, flags=re.DOTALL)
    assert ">num_clips<" in start
    assert "unnamed" not in settings
    assert "check_rules" not in settings


def test_search_finds_the_reference(site: Path) -> None:
    documents = json.loads((site / "search/search_index.json").read_text())["docs"]
    places = {document["location"] for document in documents}
    assert "docs/reference/models.html#hiera_video.create_model" in places
    assert not any(place.startswith("configs/") for place in places)


def test_examples_are_shown_from_their_files(site: Path) -> None:
    for file in (ROOT / "docs/examples").glob("*.py"):
        page = (site / f"docs/examples/{file.name}.html").read_text()
        text = re.sub(r"<[^>]+>", "", page).replace("&quot;", '"')
        assert [line for line in file.read_text().splitlines() if "print(f" in line][-1:] == [
            line for line in text.splitlines() if "print(f" in line
        ][-1:]


def test_the_site_has_the_structure_that_github_shows(pages: Path, site: Path) -> None:
    """GitHub reads CommonMark, the site Python-Markdown, which differ in what is inside lists."""
    markdown_it = pytest.importorskip("markdown_it")
    renderer = markdown_it.MarkdownIt("gfm-like", {"linkify": False})
    tags = ("h1", "h2", "h3", "h4", "li", "ol", "pre", "table", "tr", "ul")
    for page in pages.rglob("*.md"):
        name = page.relative_to(pages).with_suffix(".html").as_posix()
        if "/reference/" in name:
            continue
        shown = Page((site / name.replace("README.html", "index.html")).read_text()).tags
        text = re.sub(r"\A---.*?---\n", "", page.read_text(), flags=re.DOTALL)
        expected = Page(renderer.render(text)).tags
        assert [(t, shown[t]) for t in tags] == [(t, expected[t]) for t in tags], name


def test_what_is_linked_becomes_a_page(tmp_path: Path) -> None:
    root, pages = tmp_path / "root", tmp_path / "pages"
    files = {
        "README.md": '[a](configs), [b](docs/api.md#b), <img src="docs/c.png">\n',
        "CHANGELOG.md": "[to](tools/run.py) `](no)`\n\n```\n[x](y)\n```\n",
        "CONTRIBUTING.md": "* item\n\n  ```sh\n  ls\n  ```\n",
        "configs/a/b.yaml": "# c\nlr: 1\n",
        "docs/api.md": "### Some names\n\n| `hiera_video.a` | `b`, `C` |\n\n## Other\n",
        "docs/c.png": "",
        "docs/unlinked.png": "",
        "tools/run.py": '"""Runs it.\n\n`more`\n"""\n\nimport os\n',
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    stage(pages, root)
    found = {
        path.relative_to(pages).as_posix(): path.read_text()
        for path in pages.rglob("*")
        if path.is_file()
    }
    assert found.pop("docs/c.png") == ""
    hidden = "---\nsearch:\n  exclude: true\n---\n"
    first = "---\nsearch:\n  boost: 2\n---\n"
    assert found == {
        "README.md": '[a](configs/README.md), [b](docs/api.md#b), <img src="docs/c.png">\n',
        "CHANGELOG.md": files["CHANGELOG.md"].replace("run.py", "run.py.md"),
        "CONTRIBUTING.md": "* item\n\n    ```sh\n    ls\n    ```\n",
        "configs/README.md": f"{hidden}# configs/\n\n* [a/b.yaml](a/b.yaml.md)\n",
        "configs/a/b.yaml.md": f"{hidden}# configs/a/b.yaml\n\n```yaml\n# c\nlr: 1\n```\n",
        "docs/api.md": "### Some names\n\n| `hiera_video.a` | [`b`][hiera_video.a.b], "
        "[`C`][hiera_video.a.C] |\n\n## Other\n",
        "docs/reference/some-names.md": f"{first}# Some names\n\n::: hiera_video.a.b\n\n"
        "::: hiera_video.a.C\n",
        "tools/run.py.md": "# Runs it\n\n`more`\n\n`tools/run.py`:\n\n```python\nimport os\n```\n",
    }


def test_links_to_nothing_are_errors(tmp_path: Path, caplog: Any) -> None:
    root = tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        (root / name).write_text("# Title")
    (root / "README.md").write_text("[a](docs/missing.md)")
    pages = tmp_path / "pages"
    with pytest.raises(FileNotFoundError, match=r"README\.md: a link to docs/missing\.md"):
        stage(pages, root)

    from mkdocs.exceptions import Abort

    (pages / "README.md").write_text("# Title\n\n[a](#nothing)\n")
    with pytest.raises(Abort):
        build(pages, tmp_path / "site")
    assert "there is no such anchor on this page" in caplog.text
    assert "'docs/api.md' is included in the 'nav' configuration, which is not found" in caplog.text
