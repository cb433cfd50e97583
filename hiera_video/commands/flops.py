"""`hiera-video flops`: the cost of a model by stage, view and video, and the paper's table."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hiera_video.analysis.complexity import PRODUCTS, Cost, by_stage, count_model
from hiera_video.analysis.tables import format_table
from hiera_video.errors import configured, counted
from hiera_video.models.loading import Model, encoder_of
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.masking import UnitMasking
from hiera_video.models.pretrained import create_autoencoder, create_detector, create_model
from hiera_video.models.variants import PUBLISHED, is_image, list_models
from hiera_video.runtime.results import print_json, print_lines, print_result
from hiera_video.settings.tools import FlopsSettings

# Variants in tables 4 and 5, 6, and 8 of arXiv 2306.00989, and numbers of frames (None: default).
TABLE: list[tuple[str, int | None]] = [
    ("hiera_base_16x224", None),
    ("hiera_base_plus_16x224", None),
    ("hiera_large_16x224", None),
    ("hiera_huge_16x224", None),
    ("hiera_large_16x224", 32),
]
TABLE += [(name, None) for name in list_models("*_224")]
BUILDERS: dict[str, tuple[Callable[..., Model], set[str]]] = {  # and the settings of each
    "classification": (create_model, {"num_classes"}),
    "pretraining": (
        partial(create_autoencoder, decoder_heads=1),  # their number does not change the cost
        {"decoder_dim", "decoder_depth", "target"},
    ),
    "detection": (create_detector, {"num_classes", "roi_resolution"}),
}
COST_KEYS = ("parameters", "macs", "flops", "paper_flops", "activations", "operations")


def run(config: FlopsSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Counts and prints the cost of a model; returns the exit code."""
    if config.table:
        rows = [] if dry_run else [table_row(name, frames) for name, frames in TABLE]
        if as_json or dry_run:
            print_json(rows)
        else:
            print_lines(format_paper_table(rows).split("\n"))
        return 0
    with configured(), torch.device("meta"):
        name = config.model
        assert name is not None  # the settings require it without `table`
        create, keys = BUILDERS[config.task or "classification"]
        model = create(
            name.split(".")[0] if name in PUBLISHED else name,
            **config.model_dump(include={"num_frames", "image_size", *keys}),
            **config.overrides.arguments(),
        )
        masking = None
        if isinstance(model, MaskedAutoencoderHiera):
            masking = UnitMasking.of(model.encoder, config.masking)
    encoder = encoder_of(model)
    report: dict[str, Any] = {
        "model": config.model,
        "task": config.task or "classification",
        "input": [encoder.in_chans, *encoder.input_size],
        "mask_units": encoder.num_units,
        "kept_units": encoder.num_units if masking is None else masking.num_visible,
    }
    if dry_run:
        print_json(report, indent=2)
        return 0
    costs = count_model(model, num_kept=report["kept_units"])
    many = config.task in (None, "classification") and not is_image(encoder.architecture)
    num_clips = config.num_clips or (5 if many else 1)
    num_crops = config.num_crops or (3 if many else 1)
    report |= {
        "view": describe(costs[""]),
        "num_clips": num_clips,
        "num_crops": num_crops,
        "video": {
            key: getattr(costs[""], key) * num_clips * num_crops
            for key in ("macs", "flops", "paper_flops", "activations")
        },
        "stages": {name: describe(cost) for name, cost in by_stage(model, costs).items()},
    }
    if config.modules:
        report["modules"] = {
            name: describe(cost)
            for name, cost in costs.items()
            if name and (cost.parameters or cost.macs)
        }
    print_result(report, format_report(report), as_json=as_json)
    return 0


def describe(cost: Cost) -> dict[str, Any]:
    """A cost as JSON data."""
    return {key: getattr(cost, key) for key in COST_KEYS}


def table_row(name: str, num_frames: int | None) -> dict[str, Any]:
    """The cost of a variant for the paper's table."""
    with torch.device("meta"):
        model = create_model(name, num_frames=num_frames)
    return {"model": name, "input": list(model.input_size), **describe(count_model(model)[""])}


def format_report(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    channels, frames, height, width = report["input"]
    lines = [
        f"{report['model']}, {report['task']}: {frames} x {height} x {width}, "
        f"{counted(channels, 'channel')}"
    ]
    if report["task"] == "pretraining":
        lines.append(f"{report['kept_units']} of {report['mask_units']} mask units are visible")
    costs = report["stages"] | {"a view": report["view"]} | report.get("modules", {})
    lines += format_costs(costs).split("\n")
    num_clips, num_crops = report["num_clips"], report["num_crops"]
    macs, flops = report["video"]["macs"] / 1e9, report["video"]["flops"] / 1e9
    paper = report["view"]["paper_flops"] / 1e9
    lines += [
        f"{counted(num_clips, 'clip')} x {counted(num_crops, 'crop')}: {macs:.1f} GMACs, "
        f"{flops:.1f} GFLOPs",
        f"as counted in Hiera's paper: {paper:.0f}x{num_crops}x{num_clips} G ({paper:.2f}: GMACs "
        "and 5 per element of LayerNorm)",
    ]
    return lines


def format_costs(costs: dict[str, dict[str, Any]]) -> str:
    """A table with a row for each named cost."""
    headers = ["", "params (M)", "activations (M)", "GFLOPs", "GMACs"]
    headers += [f"{sign} {product}" for sign, product in zip("=++", PRODUCTS, strict=True)]
    rows = []
    for name, cost in costs.items():
        products = [cost["operations"].get(product, 0) for product in PRODUCTS]
        millions = [f"{cost[key] / 1e6:.3f}" for key in ("parameters", "activations")]
        giga = [f"{count / 1e9:.3f}" for count in (cost["flops"], cost["macs"], *products)]
        rows.append([name, *millions, *giga])
    return format_table(headers, rows, "plain")


def format_paper_table(rows: list[dict[str, Any]]) -> str:
    """The columns of the paper's table, counted and rounded as in the paper."""
    cells = [
        [
            row["model"],
            "x".join(str(n) for n in row["input"]),
            f"{row['paper_flops'] / 1e9:.0f}",
            f"{row['parameters'] / 1e6:.0f} M",
        ]
        for row in rows
    ]
    return format_table(["model", "input", "GMACs", "parameters"], cells, "plain")
