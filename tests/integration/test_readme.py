"""README and documentation: their commands, settings, files and links exist."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from build_site import as_markdown
from hiera_video import list_models
from hiera_video.cli.main import COMMANDS, configuration, parse, read_settings
from hiera_video.settings.base import leaves
from hiera_video.settings.load import load_for_print
from tests.analysis.paper_costs import PAPER

ROOT = Path(__file__).parents[2]
FOLDERS = ("datasets/**/*.md", "tests/**/*.md")
PAGES = {
    path.relative_to(ROOT).as_posix(): as_markdown(path, ROOT)
    for pattern in ("README.md", "docs/**/*.md", "docs/**/*.ipynb", *FOLDERS)
    for path in sorted(ROOT.glob(pattern))
}
README = PAGES["README.md"]
FILES = (".py", ".csv", ".json", ".pt2", ".onnx", ".data", ".safetensors")  # not settings


BLOCK = re.compile(
    r"^(?: *<!-- not run: (?P<reason>[^>]+) -->\n)?"
    r"(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    flags=re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    text: str
    reason: str | None  # why it is not run

    @property
    def commands(self):
        """The words of each line of a shell block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(page):
    """The blocks of a text, also those indented below a list item."""
    return [
        Block(
            page.count("\n", 0, match.start()) + 1,
            match["language"],
            re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
            match["reason"],
        )
        for match in BLOCK.finditer(page)
    ]


BLOCKS = {page: blocks_of(text) for page, text in PAGES.items()}


def commands():
    """(page, words) of all commands of this project in the shell blocks."""
    return [
        (page, words)
        for page, blocks in BLOCKS.items()
        for block in blocks
        for words in (block.commands if block.language == "sh" else ())
        if "hiera-video" in words or "hiera_video" in words
    ]


def code_spans(page):
    """The inline code of a page."""
    text = re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


def links():
    """(page, target) of all links inside the repository."""
    return [
        (page, link)
        for page, text in PAGES.items()
        for link in re.findall(r"\]\(([^)h][^)]*)\)", text)
    ]


def anchors(page):
    """The anchors of the headings of a page, as its readers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(page, first_cell):
    """The cells of the table rows of a page whose first cell matches."""
    found = [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in page.splitlines()
        if line.startswith("| ")
    ]
    return [cells for cells in found if re.search(first_cell, cells[0])]


def test_the_readme_opens_with_status_and_demo():
    start = README.splitlines()[:35]
    assert any(line.startswith("**Status.** No recipe of the paper has been run") for line in start)
    assert start.count("pip install -e . && hiera-video demo") == 1


def test_the_test_command_follows_the_tasks_and_is_what_ci_calls():
    shell = [block for block in BLOCKS["README.md"] if block.language == "sh"]
    lines = [line for block in shell for line in block.text.splitlines()]
    assert lines[0] == "pip install -e . && hiera-video demo"
    assert lines[-1] == "pip install -e '.[dev]' && pytest"
    called = re.search(
        r"^ *pip install .*pytest$", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE
    )
    assert called
    assert called[0].strip().replace("--quiet ", "") == lines[-1]


def test_the_model_table_names_all_models_and_weights():
    table = {cells[0].strip("`"): cells for cells in rows(README, r"^`(sam2_)?hiera_\w+`$")}
    assert list(table)[:12] == [
        f"hiera_{size}_{clip}"
        for clip in ("16x224", "224")
        for size in ("tiny", "small", "base", "base_plus", "large", "huge")
    ]
    assert set(table) == set(list_models())
    tags = {
        f"{name}.{tag}" for name, row in table.items() for tag in re.findall(r"`(\w+)`", row[4])
    }
    assert tags == set(list_models(pretrained=True))


def test_the_model_table_has_the_gmacs_of_the_paper():
    """FLOPs are twice as many, in everything that the package prints."""
    (header,) = rows(README, r"^model$")
    costs = {cells[0]: int(cells[2]) for cells in rows(README, r"^`hiera_\w+224`$")}
    assert header[2] == "GMACs"
    for (size, frames), (gmacs, _) in PAPER.items():
        if frames != 32:
            assert costs[f"`hiera_{size}_{'16x' if frames == 16 else ''}224`"] == gmacs


def test_the_model_table_has_the_published_accuracies():
    published = {}  # "kinetics400/hiera_base": "84.0"
    for cells in rows(PAGES["docs/reproducing.md"], r"^\[(kinetics|ssv2|imagenet1k)"):
        recipe = re.match(r"\[([\w/]+)\]", cells[0])[1]
        published[recipe] = next(iter(re.findall(r"\d\d\.\d\b", " ".join(cells[3:5]))), None)
    folders = {"K400": "kinetics400", "K600": "kinetics600", "K700": "kinetics700"}
    folders |= {"SSv2": "ssv2", "IN-1k": "imagenet1k"}
    for cells in rows(README, r"^`hiera_\w+224`$"):
        name = cells[0].strip("`")
        for data, accuracy in re.findall(r"(\S+) (\d\d\.\d)", cells[3]):
            recipe = name if data == "SSv2" else re.sub(r"_(16x)?224$", "", name)
            assert published[f"{folders[data]}/{recipe}"] == accuracy


@pytest.mark.parametrize(("page", "words"), commands())
def test_settings_of_each_command_are_right(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    start = words.index("hiera_video") if "hiera_video" in words else words.index("hiera-video")
    args, operands = parse(words[start + 1 :])
    if args.print_config:  # which needs no data
        assert load_for_print(*configuration(args, operands))
    else:
        assert read_settings(args, operands)


@pytest.mark.parametrize("page", PAGES)
def test_settings_in_the_text_exist(page):
    known = {key for cls in COMMANDS.values() for key, _, _ in leaves(cls)}
    sections = {key.split(".")[0] for key in known if "." in key}
    for span in code_spans(PAGES[page]):
        key = span.partition("=")[0]
        is_key = re.fullmatch(r"[a-z]+(\.[a-z_]+)+", key) and key.split(".")[0] in sections
        if (
            is_key
            and key != "model.card"
            and not key.endswith(FILES)
            and not key.startswith("model.overrides.")
        ):
            assert key in known


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_project_in_the_text_exist(page):
    """Names such as `models/hiera.py`, from the repository, the package or the tests."""
    for span in code_spans(PAGES[page]):
        if re.fullmatch(r"[\w./]+\.(py|yaml|sbatch)", span) and "/" in span:
            folders = (ROOT, ROOT / "hiera_video", ROOT / "tests")
            assert any((folder / span).is_file() for folder in folders), span


@pytest.mark.parametrize(("page", "link"), links())
def test_links_lead_somewhere(page, link):
    name, _, anchor = link.partition("#")
    target = (ROOT / page).parent / name if name else ROOT / page
    assert target.exists()
    if anchor:
        assert anchor in anchors(target)
