"""The page in Chromium: it opens from the disk, reacts, and is accessible."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hiera_video.commands.report import run as report
from hiera_video.errors import printable
from hiera_video.report.blocks import (
    Card,
    Column,
    FeatureMap,
    Gallery,
    Media,
    Plot,
    Section,
    Table,
)
from hiera_video.report.page import write_page
from hiera_video.settings.tools import ReportSettings
from tests.report.synthetic import MARKUP, one_hot, steps, write_clip, write_evaluation, write_lines
from tests.report.test_detection import evaluation as write_detection
from tests.report.test_features import extraction

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytest.importorskip("plotly")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

DESKTOP, PHONE = (1280, 900), (390, 844)
CLASSES = ["cats", "dogs", MARKUP[0], MARKUP[1]]
PAGES = ["classification", "detection", "extraction", "compared"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def classification(folder: Path) -> list[Path]:
    """A run with an evaluation of 12 videos, of which two are there, one with markup."""
    labels = [n % 4 for n in range(12)]
    scores = np.repeat(one_hot([0 if n % 3 else c for n, c in enumerate(labels)], 4), 2, axis=1)
    scores[:, 0] = scores[:, 0] * 0.8 + 0.05
    names = [f"{n}.mp4" for n in range(10)] + ["<b>10.mp4", MARKUP[1].replace("/", "")]
    write_evaluation(
        folder / "eval",
        names=names,
        labels=[[c] for c in labels],
        scores=scores,
        class_names=CLASSES,
        failed=[{"name": MARKUP[0], "cause": "truncated", "message": MARKUP[1]}],
    )
    for name in (names[0], names[1], names[10]):
        write_clip(folder / "eval" / name, num_frames=30)
    (folder / "config.yaml").write_text("data: {train: train.csv}\noptim: {lr: 1e-3}\n")
    validated = {"step": 8, "kind": "val", "top1": 0.5, "loss": 1.0}
    write_lines(folder / "metrics.jsonl", [*steps(20), validated])
    return [folder]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of pages, by kind."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {"classification": classification(folder / "<i>run")}
    (folder / "detection").mkdir()
    write_detection(folder / "detection", 900.0)
    runs["detection"] = [folder / "detection"]
    rng = np.random.default_rng(0)
    names = [f"{group}/{n}.mp4" for group in "ab" for n in range(6)]
    (folder / "videos").mkdir()
    features = {name: rng.normal(size=(2, 5)).astype(np.float32) for name in names}
    runs["extraction"] = [extraction(folder / "videos" / "features", features)]
    for name in names[:11]:
        write_clip(folder / "videos" / name)
    (folder / "other").mkdir()
    (folder / "other" / "config.yaml").write_text("optim: {lr: 1e-4}\n")
    write_lines(folder / "other" / "metrics.jsonl", steps(9))
    runs["compared"] = [folder / "other", *runs["classification"]]
    for kind, given in runs.items():
        output = folder / "pages" / kind
        assert report(ReportSettings(runs=given, output_dir=str(output), num_videos=12)) == 0
    return {kind: (folder / "pages" / kind / "index.html").as_uri() for kind in runs}


@contextlib.contextmanager
def opened(browser, address, size=DESKTOP, scheme="light"):
    """The page; fails if it reports an error, asks a question or looks beyond the disk."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme
    )
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(("file:", "data:")) else problems.append(request.url)
        ),
    )
    page.goto(address)
    yield page
    assert page.evaluate("window.hacked") is None
    # A video that is no longer needed ends its own request.
    assert not [p for p in problems if not (p.startswith("failed:") and p.endswith(".mp4"))]
    context.close()


def draw_all(page):
    """Scrolls to each plot, which is drawn then."""
    for canvas in page.locator(".canvas").all():
        canvas.scroll_into_view_if_needed()
        canvas.locator("svg.main-svg").first.wait_for()


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_a_page_opens_from_the_disk_and_is_accessible(browser, pages, kind, size, scheme):
    with opened(browser, pages[kind], size, scheme) as page:
        draw_all(page)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= size[0], "the page is wider than the screen"
        found = axe.Axe().run(page).response["violations"]
        severe = [v for v in found if v["impact"] in ("serious", "critical")]
        assert not severe, [(v["id"], v["nodes"][0]["html"]) for v in severe]


def column(page, caption, number):
    """The cells of a column of the table with this caption, that are shown."""
    cells = table(page, caption).locator(f"tbody tr:visible td:nth-child({number})")
    return cells.all_inner_texts()


def table(page, caption):
    return page.locator("figure.table").filter(has_text=caption)


def test_a_table_is_sorted_by_the_keyboard_and_filtered(browser, pages):
    with opened(browser, pages["classification"]) as page:
        classes = table(page, "most often taken for")
        recall = classes.get_by_role("button", name="recall")
        recall.focus()
        page.keyboard.press("Enter")
        values = [float(text.split()[0]) for text in column(page, "most often taken for", 3)]
        assert values == sorted(values, reverse=True)
        assert values[0] > values[-1]
        assert classes.locator("th").nth(2).get_attribute("aria-sort") == "descending"
        page.keyboard.press("Enter")
        assert column(page, "most often taken for", 3)[0] == f"{values[-1]:.1f} %"
        classes.get_by_role("button", name="class", exact=True).click()
        assert column(page, "most often taken for", 1)[-2:] == ["cats", "dogs"]


def test_a_filter_hides_rows_and_counts_them(browser, tmp_path):
    rows = [[f"class {n}", float(n)] for n in range(30)]
    content = Table("Classes", [Column("class"), Column("n", "number")], rows)
    index = write_page(tmp_path, "title", [Section("s", [content])])
    with opened(browser, index.as_uri()) as page:
        assert page.locator("output").inner_text() == "30 of 30"
        page.get_by_label("Filter").fill("CLASS 2")
        assert len(column(page, "Classes", 1)) == 11  # 2 and 20 to 29
        assert page.locator("output").inner_text() == "11 of 30"
        page.get_by_role("button", name="n", exact=True).click()
        assert column(page, "Classes", 1)[0] == "class 29"
        page.get_by_label("Filter").fill("")
        assert len(column(page, "Classes", 1)) == 30


def test_the_order_of_a_gallery_changes(browser, pages):
    with opened(browser, pages["classification"]) as page:
        gallery = page.locator(".gallery").filter(has_text="Order")
        titles = gallery.locator(".card h4")
        before = titles.all_inner_texts()
        gallery.get_by_label("Order").select_option(label="Highest probability of the label")
        after = titles.all_inner_texts()
        assert before != after
        assert sorted(before) == sorted(after)
        gallery.get_by_label("Order").select_option(index=0)
        assert titles.all_inner_texts() == before


def test_a_gallery_shows_the_cards_of_its_first_order(browser, tmp_path):
    cards = [Card(name, Media(note="moved")) for name in "abc"]
    gallery = Gallery("Videos", cards, [("first", [2, 0]), ("second", [1]), ("none", [])])
    index = write_page(tmp_path, "title", [Section("s", [gallery])])
    with opened(browser, index.as_uri()) as page:
        titles = page.locator(".card h4")
        assert titles.all_inner_texts() == ["c", "a"]
        page.get_by_label("Order").select_option(label="second")
        assert titles.all_inner_texts() == ["b"]
        page.get_by_label("Order").select_option(label="none")
        assert titles.count() == 0


@pytest.mark.parametrize("kind", ["classification", "detection", "extraction"])
def test_a_clip_plays(browser, pages, kind):
    with opened(browser, pages[kind]) as page:
        draw_all(page)
        video = page.locator("video").first
        video.scroll_into_view_if_needed()
        video.evaluate("video => video.play()")
        page.wait_for_function("document.querySelector('video').currentTime > 0.2")


def test_videos_that_are_missing_say_so_on_their_cards(browser, pages):
    with opened(browser, pages["classification"]) as page:
        missing = page.locator(".card .missing")
        assert missing.count() == 9
        assert "no such file" in missing.first.inner_text()


def test_a_click_in_a_timeline_shows_the_moment_in_its_own_video(browser, pages):
    with opened(browser, pages["detection"]) as page:
        draw_all(page)
        canvas = page.locator("figure.plot.half .canvas").last
        canvas.scroll_into_view_if_needed()
        area = canvas.locator("g.xy .heatmaplayer image").first.bounding_box()
        # The last third is the third of three key frames, 2.5 s after the clip's start.
        x, y = area["x"] + area["width"] * 5 / 6, area["y"] + 5
        page.mouse.move(x, y)
        canvas.locator(".hoverlayer text").first.wait_for()
        text = canvas.locator(".hoverlayer").text_content()
        assert "2.5 s:" in text
        assert "extra" not in text
        page.mouse.click(x, y)
        shown = "[...document.querySelectorAll('video')].map(v => [v.currentTime, v.readyState])"
        page.wait_for_function(f"{shown}.at(-1)[0] > 2 && {shown}.at(-1)[1] >= 2")
        times = [time for time, _ in page.evaluate(shown)]
        assert times == [0, 2.5]


def test_a_neighbour_is_chosen_in_the_map(browser, pages):
    with opened(browser, pages["extraction"]) as page:
        draw_all(page)
        chosen = page.locator(".chosen select")
        name = page.locator(".near button").first.inner_text().split(" (")[0]
        page.locator(".near button").first.click()
        assert chosen.locator("option:checked").inner_text() == name
        chosen.select_option(label="b/5.mp4")
        assert "no such file" in page.locator(".picture").inner_text()
        chosen.select_option(label="a/3.mp4")
        assert page.locator(".picture video").get_attribute("aria-label") == "a/3.mp4"
        assert page.locator(".near li").count() == 8


def test_colours_follow_the_system_while_the_page_is_open(browser, pages):
    colour = "getComputedStyle(document.querySelector('.canvas text')).fill"
    with opened(browser, pages["compared"]) as page:
        draw_all(page)
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        text = page.evaluate(colour)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        page.wait_for_function(f"{colour} !== {text!r}")


@pytest.mark.parametrize("name", MARKUP)
def test_a_name_with_markup_is_shown_as_it_is_in_plots(browser, tmp_path, name):
    trace = {"type": "scatter", "mode": "markers+text", "name": name, "x": [1], "y": [1]}
    axis = {"tickvals": [1], "ticktext": [name], "title": {"text": name}}
    layout = {"xaxis": axis, "showlegend": True}
    points = FeatureMap(
        "map", [(0, 0), (1, 1)], [name, "b"], [name, "b"], [None] * 2, [[(1, 0.5)]] * 2
    )
    plot = Plot("plot", [trace | {"text": [name]}], layout, 500)
    index = write_page(tmp_path, name, [Section("s", [plot, points])])
    with opened(browser, index.as_uri()) as page:
        draw_all(page)
        texts = page.locator("[data-plot] svg text").all_text_contents()
        shown = " ".join(printable(name).split())
        assert sum(" ".join(text.split()) == shown for text in texts) >= 4, texts
        assert page.locator("svg a, svg tspan[style*='bold']").count() == 0
        assert page.title() == shown


def test_a_page_without_its_library_says_what_to_copy(browser, tmp_path):
    index = write_page(tmp_path, "title", [Section("s", [Plot("p", [], {})])])
    (tmp_path / "plotly.min.js").unlink()
    page = browser.new_page()
    page.goto(index.as_uri())
    page.get_by_text("copy its whole folder").wait_for()
    page.close()
