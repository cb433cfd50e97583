"""Published accuracy against measured speed, as in figure 1 of Hiera's paper."""

from pathlib import Path
from typing import Any

from hiera_video.errors import counted
from hiera_video.files import replacing

# Labels of the same model in several libraries would overlap: accuracy and speed are similar.
LINES_BELOW = {"hiera": 1, "timm": 2}


def plot_accuracy_and_speed(report: dict[str, Any], path: Path) -> bool:
    """Draws a picture with a panel for each precision; returns False if there is nothing to draw.

    Only inference of models with an accuracy is drawn. The speed of a model is the highest over
    executions and batch sizes, as in the paper. Models of one library share a colour; those of this
    package are joined by a line.

    Args:
        report: the report of `hiera-video benchmark`.
    """
    import matplotlib.figure
    import matplotlib.ticker

    best: dict[str, dict[str, dict[str, Any]]] = {}
    for row in report["results"]:
        if row["work"] == "inference" and row["top1"] is not None:
            models = best.setdefault(row["precision"], {})
            fastest = models.setdefault(row["model"], row)
            if row["clips_per_sec"] > fastest["clips_per_sec"]:
                models[row["model"]] = row
    if not best:
        return False
    figure = matplotlib.figure.Figure(figsize=(7 * len(best), 5), layout="constrained")
    axes = figure.subplots(1, len(best), squeeze=False, sharey=True)
    libraries = list(dict.fromkeys(row["library"] for row in report["results"]))
    for axis, (precision, models) in zip(axes[0], best.items(), strict=True):
        for library in libraries:
            rows = [row for row in models.values() if row["library"] == library]
            rows.sort(key=lambda row: row["clips_per_sec"])
            axis.plot(
                [row["clips_per_sec"] for row in rows],
                [row["top1"] for row in rows],
                "o-" if library == "hiera_video" else "o",
                label=library,
                color=f"C{libraries.index(library)}",
            )
            lines = LINES_BELOW.get(library, 0)
            for row in rows:
                axis.annotate(
                    row["model"],
                    (row["clips_per_sec"], row["top1"]),
                    xytext=(-4, -11 * lines) if lines else (4, 4),
                    ha="right" if lines else "left",
                    textcoords="offset points",
                    fontsize=7,
                )
        axis.set(xscale="log", xlabel="clips per second", title=precision)
        axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.margins(x=0.25, y=0.1)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("published top-1 accuracy, %")
    axes[0, 0].legend()
    machine = f"{report['device']}, {counted(report['threads'], 'thread')}"
    figure.suptitle(f"Inference on {machine}, as measured")
    with replacing(path) as part:
        figure.savefig(part, dpi=150, format="png")
    return True
