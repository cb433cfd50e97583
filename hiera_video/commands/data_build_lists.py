"""`hiera-video data build-lists FOLDER ...`: a list of the files of a data set that are there."""

import os
from typing import Any

from hiera_video.data.videos.official import find_official
from hiera_video.errors import ConfigError, OutputExistsError, UserError, counted, listing
from hiera_video.files import user_path, write_csv, write_text
from hiera_video.runtime.results import exit_code, print_result
from hiera_video.settings.evaluation import BuildListsSettings


def run(config: BuildListsSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Writes the list, its class names, and what is missing; returns 3 if something is."""
    folders, output = [user_path(name) for name in config.inputs], user_path(config.output)
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"FOLDER is {folder}: expected a folder of videos or pictures")
    report, names = (output.with_suffix(f".{kind}.txt") for kind in ("missing", "class_names"))
    for path in (output, report, names):
        if path.exists():
            raise OutputExistsError(f"{path} exists: remove it, or choose another output")
    annotations = user_path(config.annotations)
    found = find_official(annotations, folders, config.split)
    total = len(found.listed) + len(found.missing) + len(found.empty)
    if not found.listed:
        raise UserError(
            f"none of the {total} {found.unit}s of {annotations} is in {listing(config.inputs)}"
        )
    left_out = [f"{row.name} missing" for row in found.missing]
    left_out += [f"{row.name} empty: {path}" for path, row in found.empty]
    classes = {label for _, row in found.listed for label in row.labels}
    rows = [*found.missing, *(row for _, row in found.empty)]
    absent = sorted({str(label) for row in rows for label in row.labels if label not in classes})
    if not dry_run:
        label = "class_name" if found.class_names else "label"  # not ids, even if numbers
        table: list[tuple[Any, ...]] = [("path", label) if classes else ("path",)]
        table += [(os.path.relpath(p, output.parent), *row.labels) for p, row in found.listed]
        write_csv(output, table)
        if found.class_names:
            write_text(names, "".join(f"{name}\n" for name in found.class_names))
        if left_out:
            write_text(report, "".join(f"{line}\n" for line in left_out))
    kept = f"{len(found.listed)} of {total} {found.unit}s"
    lines = [f"{output}: {kept}, {len(left_out)} missing or empty"]
    if classes:
        none = f"; no {found.unit} is left of {', '.join(absent)}" if absent else ""
        lines.append(f"classes: {len(classes)}{none}")
    if found.class_names:
        lines.append(f"{names}: the names of {counted(len(found.class_names), 'class')}")
    if left_out:
        lines.append(f"{report}: what is missing")
    record = {
        "output": str(output),
        "class_names": str(names) if found.class_names else None,
        "videos": total,
        "listed": len(found.listed),
        "missing": [row.name for row in found.missing],
        "empty": [path for path, _ in found.empty],
        "classes": len(classes),
        "classes_without_videos": absent,
    }
    print_result(record, lines, as_json=as_json)
    return exit_code(done=len(found.listed), failed=len(left_out))
