"""The Python programs of README and documentation run, and do what the text beside them says."""

import importlib
import shutil
from pathlib import Path

import pytest

import hiera_video
from hiera_video import Hiera, create_model, save_model
from hiera_video.models.detector import ActionDetector
from tests.integration.test_readme import PAGES, blocks, rows
from tests.video.striped_video import make_striped_video

SMALL = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
RUN_ELSEWHERE = ["docs/pytorchvideo.md"]  # tests/data/test_pytorchvideo.py: it takes pytorchvideo


def run(page, folder, monkeypatch):
    """Executes the programs of a page one after the other in `folder`; returns their names."""
    monkeypatch.chdir(folder)
    found = {"__name__": "documentation"}
    for program in blocks("python", PAGES[page]):
        exec(compile(program, page, "exec"), found)
    return found


def test_every_page_with_programs_is_here():
    pages = [page for page, text in PAGES.items() if blocks("python", text)]
    text = Path(__file__).read_text(encoding="utf-8")
    assert [page for page in pages if f'run("{page}"' not in text] == RUN_ELSEWHERE


def test_readme(tmp_path, monkeypatch):
    make_striped_video(tmp_path / "clip.mp4", num_frames=12)
    found = run("README.md", tmp_path, monkeypatch)
    assert found["logits"].shape == (1, 10)
    assert [m.shape[1:4] for m in found["maps"]] == [(4, n, n) for n in (40, 20, 10, 5)]
    assert found["frames"].shape == (3, 64, 96, 3)


def test_api(commands, tmp_path, monkeypatch):
    make_striped_video(tmp_path / "clip.mp4", num_frames=80)
    for label in ("left", "right"):
        folder = tmp_path / "my_videos" / "train" / label
        folder.mkdir(parents=True)
        for i in range(3):
            make_striped_video(folder / f"{i}.mp4", num_frames=30)
    found = run("docs/api.md", tmp_path, monkeypatch)
    assert found["card"].class_names == ("sit", "run")
    assert found["scores_of_clip"].sum().item() == pytest.approx(1)
    assert found["tokens"].shape == (1, 8, 7, 7, 768)
    assert found["features"].shape == (1, 768)
    shapes = [tuple(stage.shape[1:4]) for stage in found["stages"]]
    assert shapes == [(8, 56, 56), (8, 28, 28), (8, 14, 14), (8, 7, 7)]
    assert found["step"] == 1
    assert found["classes"] == ["left", "right"]
    assert found["logits"].shape == (3, 2)
    assert found["loss"].isfinite()
    assert found["scores"].shape == (2, 8, 5)
    assert len({group["lr"] for group in found["groups"]}) == 14  # stem, 12 blocks, heads
    predicted = commands.run("predict", "clip.mp4", "checkpoint=trained", "views.num_clips=1")
    assert predicted.code == 0, predicted.err
    assert {line.split()[-1] for line in predicted.out.splitlines()[1:]} == {"left", "right"}


def test_the_training_loop_has_40_lines():
    (loop,) = (p for p in blocks("python", PAGES["docs/api.md"]) if "training_loader" in p)
    assert len(loop.splitlines()) <= 40


def test_pretraining(tmp_path, monkeypatch):
    found = run("docs/pretraining.md", tmp_path, monkeypatch)
    assert found["kept"].shape == (1, 39)
    assert found["prediction"].shape == (1, 353, 4, 768)
    assert found["losses"].shape == (1,)


def test_evaluation(commands, trained, tmp_path, monkeypatch):
    result = commands.run(
        "evaluate",
        f"checkpoint={trained}",
        f"data.val={commands.toy / 'val.csv'}",
        "views.num_clips=5",
        f"output_dir={tmp_path / 'runs/mine/eval'}",
        "device=cpu",
    )
    assert result.code == 0, result.err
    found = run("docs/evaluation.md", tmp_path, monkeypatch)
    assert found["scores"].shape == (7, 2)
    assert found["scores"].sum(axis=1) == pytest.approx(1)


def test_extraction(commands, trained, tmp_path, monkeypatch):
    demo = tmp_path / "demo"
    for label in ("left", "right"):
        (demo / "data" / "videos" / label).mkdir(parents=True)
        for name in ("train_0", "train_1", "val_0"):
            make_striped_video(demo / "data" / "videos" / label / f"{name}.mp4", num_frames=20)
    result = commands.run(
        "extract",
        demo / "data" / "videos",
        f"checkpoint={trained}",
        f"output_dir={demo / 'features'}",
        "device=cpu",
    )
    assert result.code == 0, result.err
    (tmp_path / "features" / "features").mkdir(parents=True)
    shutil.copy(
        demo / "features" / "features" / "left" / "val_0.mp4.npz",
        tmp_path / "features" / "features" / "dog.mp4.npz",
    )
    found = run("docs/extraction.md", tmp_path, monkeypatch)
    assert len(found["video"].features) == len(found["video"].start_sec)
    assert found["is_val"].sum() == 2
    assert found["accuracy"] in (0, 0.5, 1)


def test_export(commands, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    classifier = create_model("hiera_tiny_16x224", num_classes=3, **SMALL)
    save_model(tmp_path / "classifier", classifier)
    encoder = Hiera(input_size=(16, 224, 224), num_classes=0, **SMALL)
    save_model(tmp_path / "detector", ActionDetector(encoder, num_classes=4))
    (tmp_path / "exported").mkdir()
    for name, kind in (("classifier", "onnx"), ("detector", "pt2")):
        folder = tmp_path / f"exported_{name}"
        result = commands.run(
            "export", f"checkpoint={tmp_path / name}", f"format={kind}", f"output_dir={folder}"
        )
        assert result.code == 0, result.err
        for file in folder.glob(f"*.{kind}"):
            file.rename(tmp_path / "exported" / file.name)
    found = run("docs/export.md", tmp_path, monkeypatch)
    assert found["logits"].shape == (1, 3)
    assert found["scores"].shape == (1, 4)
    assert found["model"].num_classes == 2
    assert found["card"].class_names == ("walk", "run")


def test_public_names_are_those_of_the_page():
    page = PAGES["docs/api.md"]
    named = {cells[0].strip("`").partition("(")[0] for cells in rows(page, r"^`\w+(\(.*\))?`$")}
    assert set(hiera_video.__all__) <= named


def test_public_modules_have_the_names_of_the_page():
    table = rows(PAGES["docs/api.md"], r"^`hiera_video\.[\w.]+`$")
    assert table
    for module, names in table:
        loaded = importlib.import_module(module.strip("`"))
        for name in names.split(", "):
            assert hasattr(loaded, name.strip("`")), f"{module} {name}"
