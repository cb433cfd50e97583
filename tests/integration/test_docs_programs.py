"""Every code block of README and documentation runs, or says why it does not.

A page is read from top to bottom, in a folder with the files that it names: its shell commands run
in this process, its Python programs in one namespace. Variants and published weights have their
shapes, but are narrow; training is short. A block that is not run has a comment in front of it:

    <!-- not run: REASON -->
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import hiera_video
from hiera_video import create_autoencoder, create_model, save_model
from hiera_video.cli.main import COMMANDS, parse
from hiera_video.demo import shapes
from hiera_video.demo.actions import DemoAvaData, generate
from hiera_video.files import shipped_folder
from hiera_video.models.layouts import from_official
from hiera_video.models.pretrained import create_detector
from hiera_video.models.variants import VARIANTS
from hiera_video.settings.base import leaves
from tests.integration.conftest import run
from tests.integration.test_readme import BLOCKS, PAGES, rows
from tests.video.striped_video import make_striped_video

SHALLOW = {"stages": (1, 1, 1, 1)}
SMALL = {"embed_dim": 8, "num_heads": 1, **SHALLOW}  # and clips of 64 x 64
DECODER = {"decoder_dim": 64, "decoder_depth": 1}
SHORT = {  # settings of commands, as far as they have them
    "device": "cpu",
    **{f"model.{key}": value for key, value in DECODER.items()},
    "train.epochs": 1,
    "train.warmup_epochs": 0,
    "train.global_batch_size": 2,
    "train.accumulation_steps": 1,
    "train.num_repeats": 1,
    "data.num_workers": 1,
    "boxes": "people.csv",  # instead of those of a detector that would be downloaded
}
MORE = {  # for commands that take long, and are tested elsewhere
    ("README.md", "export"): "--dry-run",
    ("README.md", "benchmark"): "--dry-run",
    ("docs/benchmarks.md", "benchmark"): "--dry-run",
    ("docs/export.md", "export"): "format=onnx",
    ("datasets/coco/README.md", "instances train"): "model.image_size=64",
}
RUN = {page: [b for b in found if b.reason is None] for page, found in BLOCKS.items()}

# ---- the folder in which a page is read


@pytest.fixture(scope="module")
def small_variants() -> Iterator[None]:
    """All small, but hiera_tiny only shallow: the programs state the sizes of its features."""
    with pytest.MonkeyPatch.context() as patch:
        for name, variant in VARIANTS.items():
            small = {**SMALL, "input_size": (variant["input_size"][0], 64, 64)}
            changes = SHALLOW if name.startswith("hiera_tiny") else small
            patch.setitem(VARIANTS, name, {**variant, **changes})
        yield


@pytest.fixture(scope="module")
def world(small_variants: None, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the pages name."""
    folder = tmp_path_factory.mktemp("world")
    make_videos(folder, toy)
    make_lists(folder)
    make_weights(folder)
    detection = DemoAvaData(folder / "ava")
    generate(detection, seed=0, train_videos=2, val_videos=2)
    for path in (detection.train, detection.val, detection.label_map, detection.videos):
        path.rename(folder / path.name)
    detection.val_proposals.rename(folder / "detected_people.csv")
    annotations = folder / "annotations"
    (annotations / "person_box_67091280_iou90").mkdir(parents=True)
    for source, name in (
        (folder / "val.csv", "ava_val_v2.2.csv"),
        (folder / "actions.pbtxt", "ava_action_list_v2.2.pbtxt"),
        (detection.val_excluded, "ava_val_excluded_timestamps_v2.2.csv"),
        (
            folder / "detected_people.csv",
            "person_box_67091280_iou90/ava_detection_val_boxes_and_labels.csv",
        ),
    ):
        shutil.copy(source, annotations / name)
    boxes = [f"{name},0.2,0.5,0.1,0.9,0.9,,0.95" for name in ("a", "b", "my")]
    (folder / "people.csv").write_text("\n".join(boxes))
    return folder


def make_videos(folder: Path, toy: Path) -> None:
    names = {
        f"my_videos/{split}/{label}/{i}.mp4": label == "right"
        for split in ("train", "val")
        for label in ("left", "right")
        for i in range(2)
    }
    names |= {
        f"demo/data/videos/{label}/{name}.mp4": label == "right"
        for label in ("left", "right")
        for name in ("train_0", "train_1", "val_0")
    }
    names |= dict.fromkeys(
        ("my_videos/dog.mp4", "some_video.mp4", "my.mp4", "a.mp4", "b.mp4"), False
    )
    names |= dict.fromkeys(
        (f"k400/{split}/{id}_000001_000011.mp4" for split in ("train", "val") for id in "xy"),
        False,
    )
    names |= dict.fromkeys((f"ssv2/20bn-something-something-v2/{i}.mp4" for i in (1, 2)), False)
    for name, is_right in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(toy / f"val_{int(is_right)}.mp4", folder / name)
    make_striped_video(folder / "clip.mp4", num_frames=80)
    make_striped_video(folder / "my_videos/val/left/ntsc.mp4", 40, fps=Fraction(30000, 1001))
    for split in ("train", "val"):
        for label in ("n01440764", "n01443537"):
            image = folder / "imagenet1k" / split / label / "1.JPEG"
            image.parent.mkdir(parents=True)
            cv2.imwrite(str(image), np.zeros((40, 40, 3), np.uint8))
    make_annotated_pictures(folder, image)


def make_annotated_pictures(folder: Path, image: Path) -> None:
    for data, name in (("data", "train_standard"), ("val", "val")):
        (folder / f"places365/{data}_large/a/arch").mkdir(parents=True)
        for i in (1, 2):
            shutil.copy(image, folder / f"places365/{data}_large/a/arch/{i}.jpg")
        (folder / f"places365/places365_{name}.txt").write_text("/a/arch/1.jpg 12\n/a/arch/2.jpg 0")
    for year in ("2017", "2018", "2019"):
        (folder / f"inat{year}").mkdir()
        for split in ("train", "val"):
            for i in (0, 1):
                shutil.copy(image, folder / f"inat{year}/{split}_{i}.jpg")
            content = {
                "images": [{"id": i, "file_name": f"{split}_{i}.jpg"} for i in (0, 1)],
                "annotations": [{"id": i, "image_id": i, "category_id": i} for i in (0, 1)],
                "categories": [{"id": i, "name": f"species {i}"} for i in (0, 1)],
            }
            (folder / f"inat{year}/{split}{year}.json").write_text(json.dumps(content))
    objects = shapes.DemoInstancesData(folder / "my_pictures")
    shapes.generate(objects, seed=0, train_pictures=2, val_pictures=1)
    for path, split in ((objects.train, "train"), (objects.val, "val")):
        path.write_text(path.read_text().replace("disc", "person"))
        shutil.copytree(objects.pictures, folder / f"coco/{split}2017")
        (folder / "coco/annotations").mkdir(exist_ok=True)
        shutil.copy(path, folder / f"coco/annotations/instances_{split}2017.json")
    shutil.copy(objects.example, folder / "picture.jpg")


def make_lists(folder: Path) -> None:
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 9]}
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 20, "width": 30}],
        "annotations": [{"id": 1, "area": 72, "iscrowd": 0, **box}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "instances_val2017.json").write_text(json.dumps(truth))
    (folder / "detections.json").write_text(json.dumps([{"score": 0.5, **box}]))
    names = (shipped_folder("datasets") / "kinetics400/class_names.txt").read_text().splitlines()
    for data in ("kinetics400", "k400"):
        (folder / data / "annotations").mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            videos = sorted((folder / "my_videos" / split).rglob("*.mp4"))
            lines = [f"{path},{name}" for path, name in zip(videos, names[:2] * 3, strict=False)]
            (folder / data / f"{split}.csv").write_text("\n".join(["path,class_name", *lines]))
            rows = [f"{name},{id},1,11,{split}" for name, id in zip(names[:2], "xy", strict=True)]
            header = "label,youtube_id,time_start,time_end,split"
            (folder / data / f"annotations/{split}.csv").write_text("\n".join([header, *rows]))
    (folder / "k400/replacement").mkdir()
    shutil.copy(folder / "my.mp4", folder / "k400/replacement/other_000001_000011.mp4")
    templates = ("Closing [something]", "Opening [something]")
    entries = [{"id": str(i + 1), "template": name} for i, name in enumerate(templates)]
    for split in ("train", "validation"):
        path = folder / f"ssv2/something-something-v2-{split}.json"
        path.write_text(json.dumps(entries))
    labels = {re.sub(r"[\[\]]", "", name): str(i) for i, name in enumerate(templates)}
    (folder / "ssv2/something-something-v2-labels.json").write_text(json.dumps(labels))


def make_weights(folder: Path) -> None:
    """Runs, and the files of published weights in the cache of torch.hub."""
    torch.manual_seed(0)
    for name in ("mine", "k400_base"):
        model = create_model("hiera_base_16x224", num_classes=2)
        save_model(folder / "runs" / name / "weights", model, class_names=["left", "right"])
    save_model(folder / "demo/run/weights", create_model("hiera_base_16x224", num_classes=2))
    mae = create_autoencoder("hiera_base_16x224", decoder_heads=8, **DECODER)
    save_model(folder / "runs/mae/weights", mae)
    detector = create_detector("hiera_base_16x224", num_classes=9)
    save_model(folder / "runs/detector/weights", detector)
    cache = folder / "cache/hub/checkpoints"
    cache.mkdir(parents=True)
    for name in ("hiera_base_16x224", "hiera_large_16x224", "hiera_base_224"):
        state = create_model(name).state_dict()
        depth = VARIANTS[name]["stages"]
        torch.save({"model_state": from_official(state, "official", depth)}, cache / f"{name}.pth")
        state = create_autoencoder(name, decoder_heads=8, **DECODER).state_dict()
        state = {key.removeprefix("encoder."): value for key, value in state.items()}
        torch.save({"model_state": state}, cache / f"mae_{name}.pth")


@pytest.fixture
def read(
    world: Path, unchecked_shapes: None, tmp_path: Path, monkeypatch: Any
) -> Callable[[str], Any]:
    """Reads a page in a copy of the world without what its commands write: its variables."""

    def read_page(page: str) -> dict[str, Any]:
        folder = tmp_path / "folder"
        shutil.copytree(world, folder, ignore=shutil.ignore_patterns("cache"))
        monkeypatch.chdir(folder)
        monkeypatch.setenv("TORCH_HOME", str(world / "cache"))
        for block in RUN[page]:
            for written in re.findall(r"\b(?:run_dir|output_dir|output)=(\S+)", block.text):
                shutil.rmtree(written, ignore_errors=True)
                if os.path.isfile(written):
                    os.remove(written)
        if page == "docs/report.md":  # which needs runs, not weights alone
            Path("runs/mine/config.yaml").write_text("data: {train: my_videos/train}\n")
            shutil.copytree("runs/mine", "runs/first")
        if page == "docs/export.md":  # whose programs state the size of clips
            two = {"stages": (1, 1), "q_pool": 1, "mask_unit_attn": (True, False)}
            for name, create in (("mine", create_model), ("detector", create_detector)):
                model = create("hiera_base_16x224", num_classes=4, image_size=224, **two)
                shutil.rmtree(f"runs/{name}")
                save_model(f"runs/{name}", model)
        found: dict[str, Any] = {"__name__": "documentation"}
        for block in RUN[page]:
            if block.language == "python":
                exec(compile("\n" * block.line + block.text, page, "exec"), found)
                continue
            for words in block.commands:
                if words[0] == "export":
                    monkeypatch.setenv(*words[1].split("=", 1))
                else:
                    follow(page, words)
        return found

    return read_page


def follow(page: str, words: list[str]) -> None:
    """Runs a command of the project, without torchrun."""
    program = "hiera-video" if words[0] == "hiera-video" else "hiera_video"
    words = words[words.index(program) + 1 :]
    name = parse(words)[0].command
    known = {key for key, _, _ in leaves(COMMANDS[name])}
    if any(word.startswith("detector=") for word in words):
        known.remove("boxes")
    added = [f"{key}={value}" for key, value in SHORT.items() if key in known]
    if (page, name) in MORE and "format=pt2" not in words:
        added.append(MORE[page, name])
    result = run(*words, *added)
    assert result.code == 0, (words, result.err)


# ---- all blocks


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_run_or_says_why_not(page: str) -> None:
    assert len(re.findall(r"^ *```", PAGES[page], flags=re.MULTILINE)) == 2 * len(BLOCKS[page])
    for block in RUN[page]:
        where = f"{page}:{block.line}"
        assert block.language in ("sh", "python"), f"{where}: say why it is not run"
        for words in block.commands if block.language == "sh" else ():
            is_ours = words[0] in ("hiera-video", "export")
            is_ours |= words[0] == "torchrun" and "hiera_video" in words
            assert is_ours, f"{where}: {words[0]} cannot be run here; say why"


def check_readme(found: dict[str, Any]) -> None:
    assert found["logits"].shape == (1, 10)
    assert [m.shape[1:4] for m in found["maps"]] == [(4, n, n) for n in (40, 20, 10, 5)]
    assert found["frames"].shape == (3, 64, 96, 3)


def check_api(found: dict[str, Any]) -> None:
    assert found["card"].class_names == ("sit", "run")
    assert found["scores_of_clip"].sum().item() == pytest.approx(1)
    assert found["tokens"].shape == (1, 8, 7, 7, 768)
    assert found["features"].shape == (1, 768)
    shapes = [tuple(stage.shape[1:4]) for stage in found["stages"]]
    assert shapes == [(8, 56, 56), (8, 28, 28), (8, 14, 14), (8, 7, 7)]


def check_pretraining(found: dict[str, Any]) -> None:
    assert found["kept"].shape == (1, 39)
    assert found["prediction"].shape == (1, 353, 4, 768)
    assert found["losses"].shape == (1,)


def check_attention(found: dict[str, Any]) -> None:
    views, t, h, w = found["top"].shape
    assert (h, w) == (8, 8)  # clips of 64 pixels
    assert found["first"].shape == (views, t, 2, 2)
    assert found["attended"].flatten(1).sum(dim=1).tolist() == pytest.approx([1] * views)


def check_evaluation(found: dict[str, Any]) -> None:
    assert found["scores"].shape == (5, 2)
    assert found["scores"].sum(axis=1) == pytest.approx(1)


def check_extraction(found: dict[str, Any]) -> None:
    assert len(found["video"].features) == len(found["video"].start_sec)
    assert found["is_val"].sum() == 2
    assert found["accuracy"] in (0, 0.5, 1)


def check_export(found: dict[str, Any]) -> None:
    assert found["logits"].shape == found["scores"].shape == (1, 4)
    assert found["model"].num_classes == 2
    assert found["card"].class_names == ("walk", "run")


def check_images(found: dict[str, Any]) -> None:
    assert found["model"].tokens_shape == (1, 80, 112)


def check_notebook(found: dict[str, Any]) -> None:
    assert found["card"].class_names == ("falling", "sliding")
    assert len(found["videos"]) == 4
    assert found["found"].features.shape == (2, 64)  # windows of 64 / 30 s, in 3 s
    assert found["probability"] <= 0.5
    assert os.path.getsize(found["archive"])


def check_pytorchvideo(found: dict[str, Any]) -> None:
    assert found["loss"].isfinite()
    assert [p.shape for p in found["predictions"].values()] == [(2,)] * 5
    assert found["unread"] == set()


CHECKS = {
    "README.md": check_readme,
    "docs/api.md": check_api,
    "docs/pretraining.md": check_pretraining,
    "docs/attention.md": check_attention,
    "docs/evaluation.md": check_evaluation,
    "docs/extraction.md": check_extraction,
    "docs/export.md": check_export,
    "docs/images.md": check_images,
    "docs/examples/own_classes.ipynb": check_notebook,
    "docs/pytorchvideo.md": check_pytorchvideo,
}
LIBRARIES = {
    "README.md": ("faster_coco_eval", "jinja2", "plotly"),
    "datasets/coco/README.md": ("faster_coco_eval",),
    "docs/export.md": ("onnxruntime", "onnxscript"),
    "docs/instances.md": ("faster_coco_eval",),
    "docs/pytorchvideo.md": ("pytorchvideo",),
    "docs/report.md": ("jinja2", "plotly"),
}


@pytest.mark.parametrize("page", [page for page, found in RUN.items() if found])
def test_blocks_run_and_do_what_the_page_says(page: str, read: Callable[[str], Any]) -> None:
    for library in LIBRARIES.get(page, ()):
        pytest.importorskip(library)
    has_programs = any(block.language == "python" for block in RUN[page])
    assert has_programs == (page in CHECKS)
    found = read(page)
    if has_programs:
        CHECKS[page](found)


# ---- what the pages say beside


def test_public_names_are_those_of_the_page() -> None:
    page = PAGES["docs/api.md"]
    named = {cells[0].strip("`").partition("(")[0] for cells in rows(page, r"^`\w+(\(.*\))?`$")}
    assert set(hiera_video.__all__) <= named


def test_public_modules_have_the_names_of_the_page() -> None:
    table = rows(PAGES["docs/api.md"], r"^`hiera_video[\w.]*`$")
    assert table
    for module, names in table:
        loaded = importlib.import_module(module.strip("`"))
        for name in names.split(", "):
            assert hasattr(loaded, name.strip("`")), f"{module} {name}"
