"""`flops` end to end: what it prints, recipes, the paper's table, and mistakes in one line."""

import functools
import json
from pathlib import Path

import pytest

from hiera_video.cli import main as cli
from hiera_video.commands import flops as command
from hiera_video.files import shipped_folder
from hiera_video.settings.load import load_flops_settings
from tests.analysis.paper_costs import PAPER, encoder_by_hand, parameters_by_hand

pytestmark = pytest.mark.usefixtures("unchecked_shapes")  # of traces

PAGE = (Path(__file__).parents[2] / "docs" / "complexity.md").read_text(encoding="utf-8")
CONFIGS = shipped_folder("configs")
RECIPES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml"))
OTHERS = ("extract/", "coco/", "demo/instances")  # which `flops` does not count


def flops(capsys, *arguments):
    code = cli.main(["flops", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def counted(capsys, *arguments):
    code, out, err = flops(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_page_shows_what_is_printed(capsys):
    code, out, err = flops(capsys, "hiera_base_16x224")
    assert (code, err) == (0, "")
    assert f"```\n{out}```" in PAGE


def test_the_papers_table(capsys, monkeypatch):
    """Counted once: as printed and as in the paper, and to the unit as a formula says."""
    monkeypatch.setattr(command, "table_row", functools.cache(command.table_row))
    code, out, err = flops(capsys, "--table")
    assert (code, err) == (0, "")
    assert f"```\n{out}```" in PAGE
    cells = [line.split() for line in out.splitlines()[1:]]
    assert [(int(flops), int(params)) for _, _, flops, params, _ in cells] == [*PAPER.values()]

    rows = counted(capsys, "--table")
    for row, (size, frames), printed in zip(rows, PAPER, PAPER.values(), strict=True):
        assert row["model"] == f"hiera_{size}_224" if frames == 1 else f"hiera_{size}_16x224"
        assert row["input"] == [frames, 224, 224]
        assert (round(row["paper_flops"] / 1e9), round(row["parameters"] / 1e6)) == printed
        classes = 1000 if frames == 1 else 400
        macs, norms, width, _ = encoder_by_hand(size, frames, 224)
        assert row["macs"] == macs + width * classes
        assert row["operations"]["layer_norm"] == 5 * (norms + width)
        assert row["parameters"] == parameters_by_hand(size, frames, 224, classes)
        assert row["flops"] == 2 * row["macs"]


def test_a_video_costs_its_views(capsys):
    size = ("hiera_tiny_16x224", "num_frames=4", "image_size=64")
    report = counted(capsys, *size)
    assert (report["num_clips"], report["num_crops"]) == (5, 3)  # as on Kinetics
    assert report["video"]["macs"] == 15 * report["view"]["macs"]
    report = counted(capsys, *size, "num_clips=2", "num_crops=1", "num_classes=7")
    assert report["video"]["flops"] == 4 * report["view"]["macs"]
    assert report["stages"]["head"]["parameters"] == 2 * 768 + 769 * 7
    assert "modules" not in report


def test_an_image_has_one_view_and_modules_are_listed(capsys):
    report = counted(capsys, "hiera_tiny_224", "image_size=[64,96]", "--modules")
    assert report["input"] == [3, 1, 64, 96]
    assert report["video"]["macs"] == report["view"]["macs"]
    assert report["modules"]["blocks.0.mlp.fc1"]["macs"] == 16 * 24 * 96 * 384
    assert all(m["parameters"] for m in report["modules"].values())


def test_a_recipe_of_pretraining(capsys, tmp_path):
    recipe = tmp_path / "mae.yaml"
    recipe.write_text(
        "model: {name: hiera_tiny_16x224, num_frames: 8, image_size: 64, decoder_heads: 4,"
        " decoder_dim: 64, decoder_depth: 1}\nmasking: {kind: tube, mask_ratio: 0.75}\n"
    )
    report = counted(capsys, "--config", str(recipe))
    assert (report["task"], report["model"]) == ("pretraining", "hiera_tiny_16x224")
    assert (report["mask_units"], report["kept_units"]) == (16, 4)
    assert report["stages"]["decoder"]["parameters"] < 200_000
    fewer = counted(capsys, "--config", str(recipe), "masking.mask_ratio=0.5")
    assert fewer["kept_units"] == 8  # the line wins
    assert fewer["view"]["macs"] > report["view"]["macs"]


def test_a_recipe_of_detection(capsys, tmp_path):
    recipe = tmp_path / "boxes.yaml"
    recipe.write_text(
        "model: {name: hiera_tiny_16x224, num_frames: 4, image_size: [64, 96]}\n"
        "augment: {zoom: [1.1, 1.2]}\n"
    )
    report = counted(capsys, "--config", str(recipe))
    assert (report["task"], report["input"]) == ("detection", [3, 4, 64, 96])
    assert (report["num_clips"], report["num_crops"]) == (1, 1)
    assert report["stages"]["head"]["operations"]["linear"] == 80 * 768


@pytest.mark.parametrize("name", [n for n in RECIPES if not n.startswith(OTHERS)])
def test_each_recipe_of_training_is_understood(name):
    task = {"pretrain": "pretraining", "ava": "detection"}.get(name.split("/")[0], "classification")
    if name == "demo/ava.yaml":
        task = "detection"
    config = load_flops_settings([name], [f"task={task}"])
    assert config.task == task
    assert (config.num_clips is None) == (task != "classification")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["hiera_bas_16x224"], ["did you mean 'hiera_base_16x224'"]),
        (["hiera_base_16x224.mae_k"], ["weights of hiera_base_16x224 are: mae_k400, mae_k400_ft"]),
        (["hiera_tiny_16x224", "num_frames=15"], ["nearest that works is (16, 224, 224)"]),
        (["hiera_tiny_16x224", "image_size=225"], ["nearest that works is (16, 224, 224)"]),
        (["hiera_tiny_224", "num_frames=4"], ["is an image model"]),
        (
            ["hiera_tiny_16x224", "overrides.q_pol=2"],
            ["overrides.q_pol is unknown", "'overrides.q_pool'"],
        ),
        (
            ["hiera_tiny_16x224", "task=pretraining", "masking.mask_ratio=0.999"],
            ["keeps nothing of 392 units"],
        ),
    ],
)
def test_mistakes_exit_with_2(capsys, arguments, parts):
    code, out, err = flops(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(part in err for part in parts)


def test_a_misspelt_key_of_a_recipe_is_named(capsys, tmp_path):
    (tmp_path / "r.yaml").write_text("model: {nam: hiera_tiny_224}\n")
    code, _, err = flops(capsys, "--config", str(tmp_path / "r.yaml"), "task=classification")
    assert code == 2
    assert "model.nam" in err


def test_dry_run_counts_nothing(capsys):
    code, out, _ = flops(capsys, "hiera_tiny_16x224", "task=pretraining", "--dry-run")
    assert code == 0
    assert json.loads(out)["kept_units"] == 39
