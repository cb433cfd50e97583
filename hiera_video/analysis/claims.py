"""What Hiera's article says about speed, beside what a run of `hiera-video benchmark` measured.

Article: arXiv 2306.00989. Its rates are of one A100 in fp16, at the best of several batch sizes,
without fused attention (appendix A.3), in images or clips per second: of Hiera in tables 2 and 17,
of MViTv2-L in table 1.
"""

from typing import Any

from hiera_video.analysis.peers import TIMM_MVIT_V2_L

PAPER_RATES = {
    "hiera_tiny_224": 2758.0,
    "hiera_small_224": 2211.0,
    "hiera_base_224": 1556.0,
    "hiera_base_plus_224": 1247.0,
    "hiera_large_224": 531.4,
    "hiera_huge_224": 274.0,
    TIMM_MVIT_V2_L: 219.8,
    "hiera_base_16x224": 133.6,
    "hiera_base_plus_16x224": 84.1,
    "hiera_large_16x224": 40.8,
    "hiera_huge_16x224": 20.9,
    "mvit_v2_l_16x4": 20.5,
}
# Model, slower model, and what the article says about the ratio of their speeds. By its table 1,
# the ratio on video is 2.0; its text says 5.1 and names no clip of MViTv2-L.
PAPER_RATIOS = (
    ("hiera_large_224", TIMM_MVIT_V2_L, "2.4x"),
    ("hiera_large_16x224", "mvit_v2_l_16x4", "5.1x (table 1: 2.0x)"),
    ("hiera_large_16x224", "mvit_v2_l_40x3", "5.1x"),
)


def compare_claims(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of what was measured and the article has a figure for, in each precision.

    Of executions and batch sizes the fastest counts, as in the article. A row has the `claim`, the
    `precision`, what the `paper` says, what was `measured`, and `how`.

    Args:
        results: rows of `hiera_video.analysis.speed.measure`.
    """
    rows = []
    for precision in dict.fromkeys(row["precision"] for row in results):
        of_precision = [row for row in results if row["precision"] == precision]
        inference = _fastest([row for row in of_precision if row["work"] == "inference"])
        pretraining = _fastest([row for row in of_precision if row["work"] == "pretraining"])

        def add(claim: str, paper: str, measured: str, *of: dict[str, Any]) -> None:
            how = " / ".join(f"{row['execution']}, batch {row['batch_size']}" for row in of)
            row = {"claim": claim, "precision": precision, "paper": paper}  # noqa: B023
            rows.append(row | {"measured": measured, "how": how})

        for name, row in inference.items():
            variant = name.removesuffix(" (official)")
            if variant in PAPER_RATES:
                paper, rate = f"{PAPER_RATES[variant]:g} /s", f"{row['clips_per_sec']:.4g} /s"
                add(f"inference, {name}", paper, rate, row)
        for name, slower, paper in PAPER_RATIOS:
            if name in inference and slower in inference:
                of = inference[name], inference[slower]
                add(f"inference, {name} over {slower}", paper, _ratio(*of), *of)
        for name, row in pretraining.items():
            if (dense := pretraining.get(f"{name} (dense)")) is not None:
                ratio = _ratio(row, dense)
                add(f"pretraining, {name}, sparse over dense", "faster", ratio, row, dense)
    return rows


def _fastest(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The fastest row of each model."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        best = found.setdefault(row["model"], row)
        if row["clips_per_sec"] > best["clips_per_sec"]:
            found[row["model"]] = row
    return found


def _ratio(row: dict[str, Any], slower: dict[str, Any]) -> str:
    return f"{row['clips_per_sec'] / slower['clips_per_sec']:.2f}x"
