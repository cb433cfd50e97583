"""The programs in docs/examples/ run and print the results that they are written for."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"


@pytest.fixture
def printed(tmp_path, monkeypatch, capfd):
    """Runs a program as `python docs/examples/NAME.py` does, in an empty folder: its lines."""

    def run_program(name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of commands that the program starts
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        monkeypatch.syspath_prepend(EXAMPLES)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        monkeypatch.delitem(sys.modules, "videos")
        return capfd.readouterr().out.splitlines()

    return run_program


def test_own_data_set(printed, tmp_path):
    labels, shapes = printed("own_data_set.py")
    assert labels == "3 moments, labels ['falling', 'sliding', 'falling']"
    loss = re.fullmatch(r"clips \[3, 4, 64, 64, 3\], logits \[3, 2\], loss (\S+)", shapes)
    assert float(loss[1]) == pytest.approx(0.69, abs=0.2)  # ln 2 before any step
    assert (tmp_path / "moments.csv").read_text().splitlines()[2] == "long.mp4,3,sliding"


def test_own_training_loop(printed, tmp_path):
    *steps, result = printed("own_training_loop.py")
    losses = [float(line.rpartition(" ")[2]) for line in steps]
    assert len(losses) == 4
    assert losses[-1] < 0.4 < losses[0]
    right, number = map(int, re.fullmatch(r"accuracy: (\d) of (\d) videos", result).groups())
    assert number == 8
    assert right >= 7
    card = json.loads((tmp_path / "trained/config.json").read_text())
    assert card["class_names"] == ["falling", "sliding"]


def test_nearest_neighbours(printed):
    lines = printed("nearest_neighbours.py")
    assert lines[-1] == "for 24 of 24 videos, the nearest is the same scene"
    name, _, others = lines[-4].partition(": ")
    assert name == "copies/falling/0.mp4.npz"
    assert others.startswith("originals/falling/0.mp4.npz 0.9")


def test_backbone(printed):
    timeline, losses, maps, found = printed("backbone.py")
    assert timeline == "timeline [2, 8, 5], 14 learning rates up to 1e-04"
    assert losses.endswith(": loss_classifier, loss_box_reg, loss_objectness, loss_rpn_box_reg")
    assert maps.endswith("strides [4, 8, 16, 32]")
    assert found == "found: boxes, labels, scores, masks, masks of [1, 120, 160] pixels"


def test_all_programs_are_short_and_have_a_test():
    programs = {path.stem: path for path in EXAMPLES.glob("*.py")}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(programs) - {"videos"} <= tested
    for path in programs.values():
        assert len(path.read_text().splitlines()) <= 80, path


@pytest.mark.parametrize("path", [*EXAMPLES.glob("*.ipynb")], ids=lambda path: path.stem)
def test_notebooks_have_no_outputs(path):
    """Their cells are run by test_docs_programs.py."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
        else:
            assert set(cell) == {"cell_type", "id", "metadata", "source"}
