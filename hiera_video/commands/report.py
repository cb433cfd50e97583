"""`hiera-video report RUN...`: a page that shows the results of runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hiera_video.errors import UserError, counted
from hiera_video.files import make_writable_folder
from hiera_video.report import common
from hiera_video.report.blocks import Section
from hiera_video.report.classes import evaluation_sections
from hiera_video.report.detection import detection_sections
from hiera_video.report.features import extraction_sections
from hiera_video.report.instances import instance_sections
from hiera_video.report.masked import reconstruction_sections
from hiera_video.report.media import MediaFolder
from hiera_video.report.page import PARTS, check_libraries, write_page
from hiera_video.report.runs import Kind, Run, read_run, unique_names
from hiera_video.runtime.dry_run import in_the_way
from hiera_video.runtime.results import print_planned, print_result
from hiera_video.settings.tools import ReportSettings

OF_KIND: dict[Kind, Callable[[Run, MediaFolder, int], list[Section]]] = {
    "classification": evaluation_sections,
    "detection": detection_sections,
    "extraction": extraction_sections,
    "instances": instance_sections,
    "pretraining": reconstruction_sections,
}


def run(config: ReportSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Writes the page; returns the exit code."""
    check_libraries()
    runs = [read_run(Path(folder)) for folder in config.runs]
    folder = Path(config.output_dir or runs[0].folder / "report")
    existing = [str(folder / name) for name in PARTS if (folder / name).exists()]
    with in_the_way(config, "output_dir"):
        if existing and not config.overwrite:
            raise UserError(
                f"{', '.join(existing)} would be replaced: choose another output_dir, or set "
                "overwrite=true"
            )
    if dry_run:
        print_planned([folder / PARTS[0]], as_json=as_json)
        return 0
    make_writable_folder(folder)
    media = MediaFolder(folder)
    sections = [common.overview(runs), common.curves(runs)]
    for one, name in zip(runs, unique_names(runs), strict=True):
        for section in OF_KIND[one.kind](one, media, config.num_videos):
            title = section.title if len(runs) == 1 else f"{name}: {section.title}"
            sections.append(replace(section, title=title))
    sections.append(common.failures(runs))
    shown = [section for section in sections if section is not None]
    title = f"Report of {', '.join(unique_names(runs))}"
    index = write_page(folder, title, shown)
    problems = [problem for one in runs for problem in one.problems]
    print_result(
        {"page": str(index), "sections": [s.title for s in shown], "problems": problems},
        [*problems, f"{index}: {counted(len(shown), 'section')}; open it in a browser"],
        as_json=as_json,
    )
    return 0
