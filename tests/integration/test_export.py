"""`export` end to end: the folder, what it says, and mistakes in one line."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hiera_video.models import programs as export_module
from hiera_video.models.detector import ActionDetector
from hiera_video.models.hiera import Hiera
from hiera_video.models.saving import save_model

ARGUMENTS = {"input_size": (4, 32, 32), "embed_dim": 8, "stages": (1, 1, 1, 1)}


@pytest.fixture
def weights(tmp_path):
    model = Hiera(**ARGUMENTS, num_classes=3)
    save_model(tmp_path / "w", model, class_names=["a", "b", "ü"])
    return tmp_path / "w"


def test_classifier(commands, weights, tmp_path):
    folder = tmp_path / "exported"
    export = ("export", f"checkpoint={weights}", "format=pt2", f"output_dir={folder}")
    result = commands.run(*export)
    assert result.code == 0, result.err
    found = re.match(r"model.pt2: differs by (\S+) at most, in outputs up to (\S+)\n", result.out)
    assert float(found[1]) < 1e-5 * float(found[2])  # other products than torch.export's
    assert sorted(p.name for p in folder.iterdir()) == ["export.json", "model.pt2"]
    reported = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    assert reported["input"]["shape"] == [3, 4, 32, 32]
    assert reported["parts"] == {"model": {"inputs": ["clips"], "output": "logits"}}
    assert (reported["class_names"], reported["mean"]) == (["a", "b", "ü"], [0.45] * 3)
    program = torch.export.load(folder / "model.pt2").module()
    assert program(torch.zeros(5, 3, 4, 32, 32)).shape == (5, 3)

    commands.run(*export).reports("output_dir is", "which exists", "overwrite=true")
    result = commands.run(*export, "--overwrite", "--json")
    assert result.code == 0, result.err
    (line,) = json.loads(result.out)
    assert line["difference"] == pytest.approx(float(found[1]), rel=0.1)
    assert line["path"] == str(folder / "model.pt2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exported", "w"]

    (tmp_path / "mine").mkdir()
    mine = commands.run(*export[:3], f"output_dir={tmp_path / 'mine'}", "--overwrite")
    mine.reports("it is not of an earlier export")
    assert (tmp_path / "mine").exists()


def test_detector_as_onnx(commands, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    detector = ActionDetector(Hiera(**ARGUMENTS, num_classes=0), num_classes=2)
    save_model(tmp_path / "w", detector, label_map={1: "sit", 2: "run"})
    folder = tmp_path / "exported"
    arguments = (f"checkpoint={tmp_path / 'w'}", "format=onnx", f"output_dir={folder}")
    result = commands.run("export", *arguments)
    assert result.code == 0, result.err
    names = [line.partition(":")[0] for line in result.out.splitlines()]
    assert names == ["backbone.onnx", "head.onnx"]
    reported = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    assert reported["label_map"] == {"1": "sit", "2": "run"}
    assert reported["parts"]["head"]["inputs"] == ["maps", "boxes", "clip_of_box"]
    head = onnxruntime.InferenceSession(folder / "head.onnx")
    assert [entry.name for entry in head.get_inputs()] == reported["parts"]["head"]["inputs"]
    clips = np.zeros((1, 3, *ARGUMENTS["input_size"]), np.float32)
    (maps,) = onnxruntime.InferenceSession(folder / "backbone.onnx").run(None, {"clips": clips})
    boxes = {"boxes": np.float32([[0, 0, 1, 1]]), "clip_of_box": np.int64([0])}
    assert head.run(["logits"], {"maps": maps, **boxes})[0].shape == (1, 2)


def test_dry_run_and_mistakes(commands, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = commands.run("export", f"checkpoint={weights}", "format=pt2", "--dry-run")
    assert (result.code, result.out) == (0, "exported/model.pt2\n")
    assert not (tmp_path / "exported").exists()
    assert commands.run("export").code == 2
    result = commands.run("export", "checkpoint=hiera_base_16x224.mae_k400", "format=pt2")
    result.reports("hiera_base_16x224.mae_k400 is a masked autoencoder", "Fine-tune it")
    result = commands.run("export", "checkpoint=hiera_bas_224.mae_in1k_ft_in1k", "format=pt2")
    assert result.code == 2
    result.reports("no such file or folder", "did you mean 'hiera_base_224.mae_in1k_ft_in1k'?")
    file = f"checkpoint={weights / 'model.safetensors'}"
    assert commands.run("export", file, "format=pt2", "--dry-run").out == "exported/model.pt2\n"
    torch.save(load_file(weights / "model.safetensors"), tmp_path / "x.pth")
    result = commands.run("export", "checkpoint=x.pth", "format=pt2")
    result.reports("x.pth is of no variant", "does not state its architecture")

    monkeypatch.setitem(export_module.NEEDED, "onnx", ("onnx", "a_library_that_is_not_there"))
    result = commands.run("export", f"checkpoint={weights}")
    assert result.code == 2
    needed = ("format is both", "a_library_that_is_not_there", "pip install 'hiera-video[onnx]'")
    result.reports(*needed, "format=pt2")


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_outputs_that_are_not_finite(commands, diverged, tmp_path, json_option):
    folder = tmp_path / "exported"
    arguments = (f"checkpoint={diverged}", "format=pt2", f"output_dir={folder}", *json_option)
    result = commands.run("export", *arguments)
    assert (result.code, result.out) == (1, "")
    result.reports("the outputs of model are not finite", "use other weights")
    assert not list(tmp_path.iterdir())


def test_files_that_differ_are_not_left(commands, weights, tmp_path, monkeypatch):
    wrong = SimpleNamespace(module=lambda: lambda clips: torch.ones(len(clips), 3))
    monkeypatch.setattr(torch.export, "load", lambda _: wrong)
    folder = tmp_path / "exported"
    result = commands.run("export", f"checkpoint={weights}", "format=pt2", f"output_dir={folder}")
    assert result.code == 1
    result.reports("model.pt2: the outputs differ from the model's by more than 1e-4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w"]
