"""The commands and programs of the README do what it says."""

import re
import shlex
from pathlib import Path

import pytest

from hiera_video.cli.main import parse, read_settings
from tests.video.striped_video import make_striped_video

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTRACTION = (ROOT / "docs" / "extraction.md").read_text(encoding="utf-8")
EXPORT = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
COMPLEXITY = (ROOT / "docs" / "complexity.md").read_text(encoding="utf-8")
PRETRAINING = (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def commands():
    pages = (README, PRETRAINING, EXTRACTION, EXPORT, COMPLEXITY)
    found = "".join(block for page in pages for block in blocks("sh", page))
    lines = found.replace("\\\n", " ").splitlines()
    return [line for line in lines if "hiera-video " in line or "-m hiera_video" in line]


def links():
    """(page, target) of all links inside the repository."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    return [
        (page.relative_to(ROOT).as_posix(), link)
        for page in pages
        for link in re.findall(r"\]\(([^)h][^)]*)\)", page.read_text(encoding="utf-8"))
    ]


def anchors(page):
    """Of the headings of a page, as its readers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_first_screen_has_the_two_commands():
    screen = "\n".join(README.splitlines()[:25])
    assert "pip install -e . && hiera-video demo\n" in screen
    assert "pip install -e '.[dev]' && pytest\n" in screen


def test_ci_calls_the_test_command():
    line = re.search(r"^pip install .*pytest$", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
    assert line
    assert line[0].replace("--quiet ", "") == "pip install -e '.[dev]' && pytest"


@pytest.mark.parametrize("command", commands())
def test_settings_of_each_command_are_right(command):
    words = shlex.split(command.split("&&")[-1])
    start = words.index("hiera_video") if "hiera_video" in words else words.index("hiera-video")
    args, operands = parse(words[start + 1 :])
    assert read_settings(args, operands)


def test_programs_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_striped_video(tmp_path / "clip.mp4", num_frames=12)
    found = {}
    for program in blocks("python"):
        exec(compile(program, "README.md", "exec"), found)
    assert found["logits"].shape == (1, 10)
    assert [m.shape[1:4] for m in found["maps"]] == [(4, n, n) for n in (40, 20, 10, 5)]
    assert found["frames"].shape == (3, 64, 96, 3)


def test_the_program_on_pretraining_runs():
    found = {}
    for program in blocks("python", PRETRAINING):
        exec(compile(program, "docs/pretraining.md", "exec"), found)
    assert found["kept"].shape == (1, 39)
    assert found["prediction"].shape == (1, 353, 4, 768)
    assert found["losses"].shape == (1,)


@pytest.mark.parametrize(("page", "link"), links())
def test_links_lead_somewhere(page, link):
    name, _, anchor = link.partition("#")
    target = (ROOT / page).parent / name if name else ROOT / page
    assert target.exists()
    if anchor:
        assert anchor in anchors(target)
