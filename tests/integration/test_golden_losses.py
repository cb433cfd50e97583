"""Ten steps of each training command against recorded losses: a refactoring changes no number.

`weights`: starts from weights of `golden/first_edition`, so that NumPy draws all that is random:
order of the videos, clips, crops, flips, augmentation, mixing and masking. All augmentation is on,
by the defaults of the settings, which are thus recorded too.

`scratch`: starts from random weights, with stochastic depth and dropout. Here torch draws too, by
its release (torch 2.11 initialises differently) and by MKL: skipped elsewhere.

Tolerances. With the same release of torch on the same kind of machine, other numbers of threads and
instruction sets (torch, oneDNN and MKL held to SSE4 or AVX2, OpenCV and NumPy to SSE) changed the
losses by 3e-7 of their value at most, the gradient norms by 3e-5. On other machines OpenCV may
resize differently: with two other bilinear resizings, in which 2 to 3 % of the pixels are one grey
level off, the losses of `weights` changed by 6e-4 at most, the gradient norms by 5e-3.

Where losses are meant to change, and only there, record them again:

    python -m tests.integration.test_golden_losses [CASE ...]
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = (
    "model.name=hiera_tiny_16x224",
    "model.num_frames=8",
    "model.image_size=32",
    "model.overrides={embed_dim: 4, num_heads: 1, stages: [1, 1], q_pool: 1, "
    "mask_unit_attn: [true, false], mask_unit: [1, 4, 4]}",
)
LOOP = (
    "optim.lr=5e-3",
    "train.epochs=10",
    "train.warmup_epochs=1",
    "train.global_batch_size=4",
    "train.num_repeats=2",
    "train.precision=fp32",
    "clips.sampling_rate=2",
    "data.num_workers=0",
    "device=cpu",
)
FINETUNE = (
    "finetune",
    *MODEL,
    *LOOP,
    "data.train=videos/train.csv",
    "optim.layer_decay=0.8",
)
PRETRAIN = (
    "pretrain",
    *MODEL,
    *LOOP,
    "model.decoder_heads=2",
    "model.decoder_dim=8",
    "model.decoder_depth=1",
    "masking.mask_ratio=0.75",
    "data.train=videos/train.csv",
)
DETECT = (
    "detect",
    "train",
    *MODEL,
    *LOOP,
    "model.roi_resolution=3",
    "data.train=videos/train_boxes.csv",
    "data.label_map=videos/actions.txt",
    "clips.target_fps=12",
    "train.epochs=6.6",  # of three steps
)
CASES = {
    "finetune_weights": (*FINETUNE, "model.init=first_edition/classifier"),
    "finetune_scratch": (*FINETUNE, "model.drop_path=0.3", "model.head_dropout=0.3"),
    "pretrain_weights": (*PRETRAIN, "model.init=first_edition/autoencoder"),
    "pretrain_scratch": (*PRETRAIN, "model.drop_path=0.3", "masking.kind=tube"),
    "detect_weights": (*DETECT, "model.init=first_edition/detector"),
    "detect_scratch": (*DETECT, "model.drop_path=0.3", "model.head_dropout=0.3"),
}
SAME = {"step": 0.0, "lr": 1e-6, "loss": 1e-5, "grad_norm": 1e-4}  # relative tolerances
OTHER = {"step": 0.0, "lr": 1e-6, "loss": 1e-3, "grad_norm": 1e-2}


def golden_file(case: str) -> Path:
    return GOLDEN / "losses" / f"{case}.json"


def platform_facts() -> dict[str, str | bool]:
    """What decides how torch draws and OpenCV resizes."""
    return {
        "release": ".".join(torch.__version__.split(".")[:2]),
        "machine": platform.machine(),
        "mkl": torch.backends.mkl.is_available(),
    }


def steps_of(run_dir: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: line[key] for key in SAME} for line in lines]


@pytest.mark.parametrize("case", CASES)
def test_ten_steps(commands, case, tmp_path, monkeypatch):
    golden = json.loads(golden_file(case).read_text(encoding="utf-8"))
    is_same = platform_facts().items() <= golden.items()
    if case.endswith("scratch") and not is_same:
        pytest.skip(f"recorded with torch {golden['torch']} on {golden['machine']}")
    monkeypatch.chdir(GOLDEN)
    result = commands.run(*CASES[case], f"run_dir={tmp_path}")
    assert result.code == 0, result.err
    steps = steps_of(tmp_path)
    assert len(steps) == len(golden["steps"]) == 10
    for step, expected in zip(steps, golden["steps"], strict=True):
        for key, tolerance in (SAME if is_same else OTHER).items():
            assert step[key] == pytest.approx(expected[key], rel=tolerance), (key, step, expected)


def record(case: str) -> None:
    """Runs the case and writes its golden file."""
    with tempfile.TemporaryDirectory() as run_dir:
        subprocess.run(
            [sys.executable, "-m", "hiera_video", *CASES[case], f"run_dir={run_dir}"],
            cwd=GOLDEN,
            env=os.environ | {"PYTHONPATH": str(GOLDEN.parents[1]), "OMP_NUM_THREADS": "1"},
            check=True,
        )
        steps = steps_of(Path(run_dir))
    recorded = {
        "torch": torch.__version__,
        **platform_facts(),
        "command": ["hiera-video", *CASES[case]],
        "steps": steps,
    }
    golden_file(case).write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        record(name)
