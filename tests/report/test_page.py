"""The page as HTML: names are text wherever they stand, its size, what it refers to."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hiera_video.commands.report import run as report
from hiera_video.errors import MissingLibrary, UserError, printable
from hiera_video.report.blocks import (
    Bar,
    Card,
    Column,
    FeatureMap,
    Gallery,
    Media,
    Notice,
    Plot,
    Section,
    Table,
)
from hiera_video.report.page import PLOTLY, anchors, figure, write_page
from hiera_video.settings.tools import ReportSettings
from tests.report.synthetic import MARKUP, one_hot, steps, write_evaluation, write_lines

pytest.importorskip("plotly")
pytest.importorskip("jinja2")


class Parsed(HTMLParser):
    """Elements with their attributes, and the text outside of script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = self.data = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag if tag in ("script", "style") else ""
        if dict(attributes).get("id") == "data":
            self.inside = "data"

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "data":
            self.data += data
        elif not self.inside:
            self.texts.append(data.strip())

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


def parsed(folder: Path) -> Parsed:
    return Parsed((folder / "index.html").read_text("utf-8"))


def blocks_of(name: str) -> list[Section]:
    """Every block, with the name wherever a text can stand."""
    media, trace = Media(note=name), {"type": "scatter", "name": name, "x": [1], "y": [2]}
    card = Card(name, media, [(name, name)], [Bar(name, 0.5, True)], [0.25], name)
    layout = {"xaxis": {"title": {"text": name}, "ticktext": [name], "tickvals": [1]}}
    return [
        Section(
            name,
            [
                Table(name, [Column(name), Column("n", "number")], [[name, 1.0]] * 11),
                Plot(name, [trace | {"text": [[name]]}], layout),
                Gallery(name, [card, card], [(name, [0]), ("b", [1])]),
                FeatureMap(name, [(0.0, 0.0)], [name], [name], [media], [[]], ("x", "y")),
                Notice(name, name),
            ],
            name,
        )
    ]


@pytest.mark.parametrize("name", MARKUP)
def test_a_name_is_text_wherever_it_stands(tmp_path, name):
    for folder, text in (("plain", "name"), ("odd", name)):
        (tmp_path / folder).mkdir()
        write_page(tmp_path / folder, text, blocks_of(text))
    plain, odd = parsed(tmp_path / "plain"), parsed(tmp_path / "odd")
    assert [tag for tag, _ in odd.elements] == [tag for tag, _ in plain.elements]
    assert [list(a) for _, a in odd.elements] == [list(a) for _, a in plain.elements]
    shown = printable(name)
    assert odd.texts.count(shown) >= 12
    assert not re.search(r"[\x00-\x08\x1b\u202e\ud800-\udfff]", "".join(odd.texts))
    assert "<" not in odd.data
    data = json.loads(odd.data)
    assert data["0-3"]["names"] == [shown]
    escaped = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = escaped.replace("$", "&#36;")
    assert data["0-1"]["data"][0]["name"] == escaped
    assert data["0-1"]["data"][0]["text"] == [[escaped]]
    assert data["0-1"]["layout"]["xaxis"]["ticktext"] == [escaped]


def test_names_in_the_files_of_a_run_do_nothing(tmp_path):
    folder = tmp_path / "<b>run" / "<script>hacked=1<"
    classes = [printable(name) for name in MARKUP]
    number = len(classes)
    failure = {"name": MARKUP[0], "cause": "truncated", "message": MARKUP[1]}
    write_evaluation(
        folder / "eval",
        names=MARKUP,
        labels=[[c] for c in range(number)],
        scores=one_hot([(c + 1) % number for c in range(number)], number),
        class_names=classes,
        failed=[failure],
    )
    (folder / "config.yaml").write_text(f"data: {{train: {json.dumps(MARKUP[0])}}}\n")
    write_lines(folder / "metrics.jsonl", steps(3, **{MARKUP[3]: 1.0}))
    settings = ReportSettings(runs=[folder, folder / "eval"], output_dir=str(tmp_path / "page"))
    assert report(settings) == 0
    page = parsed(tmp_path / "page")
    assert page.count("script") == 2  # the data and the program
    assert not {"b", "img"} & {tag for tag, _ in page.elements}
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert printable(MARKUP[1]) in page.texts


def test_what_a_page_refers_to_lies_beside_it(tmp_path):
    write_page(tmp_path, "title", blocks_of("name"))
    for _, attributes in parsed(tmp_path).elements:
        for key in ("src", "href", "poster"):
            target = attributes.get(key)
            assert not target or target.startswith(("#", "data:", "media/")), target
    assert (tmp_path / PLOTLY).stat().st_size > 1e6
    page = (tmp_path / "index.html").read_text("utf-8")
    assert PLOTLY in page
    assert not re.search(r"https?://", page)


def test_a_page_without_plots_has_no_library(tmp_path):
    write_page(tmp_path, "title", [Section("s", [Notice("text")])])
    assert not (tmp_path / PLOTLY).exists()


def test_fragments_are_unique_and_plain():
    found = anchors(['A "b"', "A 'b'", "<script>", "日本"])
    assert len(set(found)) == 4
    assert all(re.fullmatch(r"[a-z0-9-]+", fragment) for fragment in found)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (None, "number", "-"),
        (0.12345, "percent", "12.3 %"),
        (7, "number", "7"),
        (7.0, "number", "7.0"),
    ],
)
def test_numbers_as_text(value, kind, expected):
    assert figure(value, kind, 1) == expected


def test_thousands_of_classes_are_a_page_of_bounded_size(tmp_path):
    number = 4000
    labels = np.random.default_rng(0).integers(0, number, 300)
    write_evaluation(
        tmp_path / "eval",
        names=[f"video_{n}.mp4" for n in range(300)],
        labels=[[c] for c in labels.tolist()],
        scores=one_hot(((labels + 1) % number).tolist(), number),
        class_names=[f"a class of some length, number {c}" for c in range(number)],
    )
    output = tmp_path / "page"
    assert report(ReportSettings(runs=[tmp_path / "eval"], output_dir=str(output))) == 0
    page = (output / "index.html").stat().st_size
    assert page < 700 * number  # bytes
    assert parsed(output).count("tr") > number


def test_a_missing_library_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    settings = ReportSettings(runs=[tmp_path / "missing"], output_dir=str(tmp_path / "page"))
    with pytest.raises(MissingLibrary, match=r"pip install 'hiera-video\[report\]'"):
        report(settings)
    assert not (tmp_path / "page").exists()


def test_an_earlier_report_is_replaced_only_when_asked_for(tmp_path, capsys):
    write_lines(tmp_path / "metrics.jsonl", steps(3))
    assert report(ReportSettings(runs=[tmp_path]), dry_run=True) == 0
    assert not (tmp_path / "report").exists()
    assert report(ReportSettings(runs=[tmp_path])) == 0
    media = tmp_path / "report" / "media"
    for name in ("0007.mp4", "0007.jpg", "of_the_user.mp4"):
        (media / name).write_text("old")
    with pytest.raises(UserError, match="overwrite=true"):
        report(ReportSettings(runs=[tmp_path]))
    assert report(ReportSettings(runs=[tmp_path], overwrite=True), as_json=True) == 0
    assert [path.name for path in media.iterdir()] == ["of_the_user.mp4"]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["page"] == str(tmp_path / "report" / "index.html")
    assert result["sections"] == ["Overview", "Training", "Accuracy"]


def test_several_runs_need_a_folder():
    with pytest.raises(UserError, match="output_dir"):
        ReportSettings(runs=["a", "b"])
