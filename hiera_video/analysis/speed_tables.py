"""What `hiera-video benchmark` reports, as Markdown tables."""

from __future__ import annotations

import statistics
from itertools import groupby
from operator import itemgetter
from typing import Any


def tell_report(report: dict[str, Any]) -> str:
    """All of a report, for a file."""
    key = itemgetter("work", "precision", "execution")
    parts = [heading(report)]
    parts += [tell(list(rows)) for _, rows in groupby(report["results"], key)]
    if report["decoding"]:
        parts.append(tell_decoding(report["decoding"]))
    parts += [f"not measured: {f['model']}, {f['setting']}: {f['cause']}" for f in report["failed"]]
    return "\n\n".join(parts) + "\n"


def heading(report: dict[str, Any]) -> str:
    """Where, and with what, it was measured."""
    environment = report["environment"]
    peaks = ", ".join(
        f"{precision} {peak['tflops']:.3g} TFLOP/s ({peak['source']})"
        for precision, peak in report["peaks"].items()
    )
    return (
        f"{report['device']}, {report['threads']} threads, torch {environment['torch']}, commit "
        f"{environment['git_commit']}: {' '.join(environment['command'][1:])}\n\n"
        f"Peak, of which MFU is the share: {peaks}"
    )


def tell(rows: list[dict[str, Any]]) -> str:
    """The rows of one setting. "ours is": how much faster the same variant of ours, else the first.

    "+-" is half of the distance between the fastest and the slowest round.
    """
    if not rows:
        return "nothing was measured"
    first = rows[0]
    lines = [["model", "clip", "batch", "clips/s", "+-", "peak GiB", "GFLOPs", "MFU", "ours is"]]
    for row in rows:
        spread = (max(row["seconds"]) - min(row["seconds"])) / 2 / statistics.median(row["seconds"])
        lines.append(
            [
                row["model"],
                "x".join(str(n) for n in row["clip"]),
                str(row["batch_size"]),
                f"{row['clips_per_sec']:.3g}",
                f"{spread:.0%}",
                "unknown" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}",
                f"{row['flops'] / row['batch_size'] / 1e9:.0f}",
                f"{row['model_flops_utilisation']:.0%}",
                "" if row["ours_is"] is None else f"{row['ours_is']:.2f}x",
            ]
        )
    return f"{first['work']}, {first['precision']}, {first['execution']}\n\n{markdown_table(lines)}"


def tell_decoding(rows: list[dict[str, Any]]) -> str:
    """Inference with decoding, as a Markdown table."""
    lines = [["model", "precision", "batch", "decoding processes", "clips", "clips/s"]]
    for row in rows:
        keys = ("model", "precision", "batch_size", "num_workers", "clips")
        lines.append([*(str(row[key]) for key in keys), f"{row['clips_per_sec']:.3g}"])
    return f"inference from files, eager\n\n{markdown_table(lines)}"


def markdown_table(lines: list[list[str]]) -> str:
    """The first line is the heading; columns but the first are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        for row in (lines[0], rule, *lines[1:])
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in padded)
