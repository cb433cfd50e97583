"""Tables of text, and the results of `hiera-video benchmark` in such tables."""

import statistics
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

from tabulate import tabulate

from hiera_video.errors import counted


def format_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], style: Literal["plain", "pipe"]
) -> str:
    """A table of at least one row, the first column aligned to the left, others to the right.

    Args:
        style: "pipe" for Markdown.
    """
    alignment = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt=style, colalign=alignment, disable_numparse=True)


def format_report(report: dict[str, Any]) -> str:
    """All results, for a file."""
    key = itemgetter("work", "precision", "execution")
    parts = [format_heading(report)]
    parts += [format_rows(list(rows)) for _, rows in groupby(report["results"], key)]
    if report["decoding"]:
        parts.append(format_decoding(report["decoding"]))
    if report["claims"]:
        parts.append(format_claims(report))
    parts += [f"not measured: {f['model']}, {f['setting']}: {f['cause']}" for f in report["failed"]]
    return "\n\n".join(parts) + "\n"


def format_heading(report: dict[str, Any]) -> str:
    """Device, versions and command."""
    environment = report["environment"]
    peaks = ", ".join(
        f"{precision} {peak['tflops']:.3g} TFLOP/s ({peak['source']})"
        for precision, peak in report["peaks"].items()
    )
    return (
        f"{report['device']}, {counted(report['threads'], 'thread')}, "
        f"torch {environment['torch']}, commit {environment['git_commit']}: "
        f"{' '.join(environment['command'][1:])}\n\n"
        f"MFU is relative to the peaks: {peaks}"
    )


def format_rows(rows: list[dict[str, Any]]) -> str:
    """The results of one setting.

    "+-" is half the difference between the slowest and the fastest round.
    """
    if not rows:
        return "nothing was measured"
    first = rows[0]
    headers = ["model", "clip", "batch", "clips/s", "+-", "first call s", "peak GiB"]
    headers += ["GFLOPs", "MFU", "ours is"]
    cells = []
    for row in rows:
        spread = (max(row["seconds"]) - min(row["seconds"])) / 2 / statistics.median(row["seconds"])
        cells.append(
            [
                row["model"],
                "x".join(str(n) for n in row["clip"]),
                str(row["batch_size"]),
                f"{row['clips_per_sec']:.3g}",
                f"{spread:.0%}",
                f"{row['first_call_sec']:.1f}",
                "unknown" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}",
                f"{row['flops'] / row['batch_size'] / 1e9:.0f}",
                f"{row['model_flops_utilisation']:.0%}",
                "" if row["ours_is"] is None else f"{row['ours_is']:.2f}x",
            ]
        )
    title = f"{first['work']}, {first['precision']}, {first['execution']}"
    return f"{title}\n\n{format_table(headers, cells, 'pipe')}"


def format_decoding(rows: list[dict[str, Any]]) -> str:
    """The results of inference with decoding."""
    headers = ["model", "precision", "batch", "decoding processes", "clips", "clips/s"]
    keys = ["model", "precision", "batch_size", "num_workers", "clips"]
    cells = [[*(str(row[key]) for key in keys), f"{row['clips_per_sec']:.3g}"] for row in rows]
    return f"inference from files, eager\n\n{format_table(headers, cells, 'pipe')}"


def format_claims(report: dict[str, Any]) -> str:
    """What the article says beside what was measured."""
    headers = ["claim", "article, A100, fp16", "precision", "execution and batch", "measured"]
    keys = ["claim", "paper", "precision", "how", "measured"]
    cells = [[row[key] for key in keys] for row in report["claims"]]
    title = f"the article's claims beside this run on {report['device']}, at the fastest setting"
    return f"{title}\n\n{format_table(headers, cells, 'pipe')}"
