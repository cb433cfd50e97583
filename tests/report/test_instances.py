"""Sections about instance segmenters are the figures of report.json."""

from __future__ import annotations

from hiera_video.report.blocks import Table
from hiera_video.report.instances import instance_sections
from hiera_video.report.media import MediaFolder
from hiera_video.report.runs import read_run
from tests.report.synthetic import write_json

BOXES = {"ap": 0.4, "ap_50": 0.6, "ap_75": 0.45, "ap_small": None, "ar_100": 0.5}


def test_figures_are_those_of_the_report(tmp_path):
    classes = [
        {"name": "cat", "objects": 7, "bbox": 0.5, "segm": 0.25},
        {"name": "dog", "objects": 0, "bbox": None, "segm": None},
    ]
    report = {"data": "val.json", "expected": 3, "decoded": 2, "classes": classes}
    report["kinds"] = {"bbox": BOXES, "segm": {"ap": 0.3}}
    write_json(tmp_path / "eval" / "report.json", report)
    (section,) = instance_sections(read_run(tmp_path), MediaFolder(tmp_path / "page"), 5)
    figures, of_classes = (block for block in section.blocks if isinstance(block, Table))
    assert figures.rows == [
        ["boxes", 0.4, 0.6, 0.45, None, None, None, 0.5],
        ["masks", 0.3, *[None] * 6],
    ]
    assert of_classes.rows == [["cat", 7, 0.5, 0.25], ["dog", 0, None, None]]
    assert "2 of 3 pictures of val.json" in section.intro


def test_a_run_without_evaluation_says_how_to_get_one(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {num_boxes: 512}\n")
    (section,) = instance_sections(read_run(tmp_path), MediaFolder(tmp_path / "page"), 5)
    assert f"checkpoint={tmp_path}" in section.blocks[0].command
