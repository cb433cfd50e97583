"""The section about the evaluation of an instance segmenter."""

from __future__ import annotations

from typing import Any

from hiera_video.report.blocks import Block, Column, Notice, Section, Table
from hiera_video.report.media import MediaFolder
from hiera_video.report.runs import Evaluation, Run, evaluation_command

KINDS = {"bbox": "boxes", "segm": "masks"}
NAMES = {
    "ap": "AP",
    "ap_50": "AP at IoU 0.5",
    "ap_75": "AP at IoU 0.75",
    "ap_small": "AP, small",
    "ap_medium": "AP, medium",
    "ap_large": "AP, large",
    "ar_100": "recall of 100",
}


def instance_sections(run: Run, folder: MediaFolder, num_videos: int) -> list[Section]:
    """The figures of each evaluation of an instance segmenter."""
    sections = [figures(evaluation) for evaluation in run.evaluations]
    if not run.evaluations:
        command = evaluation_command(run, "instances evaluate", "data.val=JSON")
        text = "The run was not evaluated. Figures appear after:"
        sections.append(Section("AP", [Notice(text, command)]))
    return sections


def figures(evaluation: Evaluation) -> Section:
    """The figures of report.json, of all classes and of each."""
    report = evaluation.report
    kinds = {kind: report["kinds"][kind] for kind in KINDS if kind in report.get("kinds", {})}
    columns = [Column("of"), *(Column(name, "percent", 2) for name in NAMES.values())]
    rows: list[list[Any]] = [
        [KINDS[kind], *(found.get(key) for key in NAMES)] for kind, found in kinds.items()
    ]
    blocks: list[Block] = [Table("Figures of report.json", columns, rows)]
    columns = [Column("class"), Column("objects", "number")]
    columns += [Column(f"AP of {KINDS[kind]}", "percent") for kind in kinds]
    of_classes = [
        [found["name"], found["objects"], *(found.get(kind) for kind in kinds)]
        for found in report.get("classes", [])
    ]
    blocks.append(Table("Classes", columns, of_classes))
    intro = (
        f"{evaluation.folder}: {report.get('decoded')} of {report.get('expected')} pictures of "
        f"{report.get('data')}."
    )
    return Section(f"AP: {evaluation.folder.name}", blocks, intro)
