"""Who may import whom, and what `import hiera_video` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hiera_video

PACKAGE = Path(hiera_video.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# What each part may import of the others; the top, cli and commands, may import all.
ALLOWED = {
    "models": set(),
    "video": set(),
    "evaluation": set(),
    "data": {"video"},
    "extraction": {"video", "data", "models"},
    "training": {"data", "evaluation", "models"},
    "analysis": {"data", "evaluation", "models", "video"},
    "config": set(),
    "__init__": {"extraction", "models", "video"},
    "__main__": {"cli"},
    "cli": {"commands", "config"},
    "commands": {
        "config",
        "data",
        "extraction",
        "training",
        "evaluation",
        "analysis",
        "models",
        "video",
    },
}
OPTIONAL = {
    "decord",
    "torchcodec",
    "pytorchvideo",
    "pyarrow",
    "ray",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "huggingface_hub",
    "tensorboard",
    "timm",
    "transformers",
}


def imported(path: Path, at_the_top: bool = False) -> Iterator[str]:
    """Names of modules, for `from a import b` both a and a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for node in ast.walk(guard)
    }
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if at_the_top and id(node) in inside | typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module: str) -> None:
    part = module.split(".")[1]
    for name in imported(MODULES[module]):
        package, *parts = name.split(".")
        if package != "hiera_video" or not parts or parts[0] not in ALLOWED:
            continue  # a library, or a public name of the package itself
        assert parts[0] == part or parts[0] in ALLOWED[part], f"{module} imports {name}"


def test_every_part_has_its_rule() -> None:
    assert {module.split(".")[1] for module in MODULES} <= ALLOWED.keys()


def test_sampling_is_arithmetic_only() -> None:
    names = {name.split(".")[0] for name in imported(MODULES["hiera_video.video.sampling"])}
    assert not names & {"hiera_video", "torch", "av", "cv2", "os", "pathlib", "io"}


def test_commands_do_not_import_one_another() -> None:
    for module, path in MODULES.items():
        if module.startswith("hiera_video.commands."):
            assert not [n for n in imported(path) if n.startswith("hiera_video.commands")], module


def test_only_config_reads_omegaconf() -> None:
    users = [m for m, p in MODULES.items() if "omegaconf" in {n.split(".")[0] for n in imported(p)}]
    assert users in ([], ["hiera_video.config"])


@pytest.mark.parametrize("module", MODULES)
def test_optional_libraries_are_imported_where_they_are_used(module: str) -> None:
    top = set(imported(MODULES[module], at_the_top=True))
    assert not {name for name in top if name.split(".")[0] in OPTIONAL}
    assert "torch.utils.tensorboard" not in top


def loaded_by(code: str) -> set[str]:
    """Top-level packages in memory after `code` in a fresh interpreter."""
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_is_fast() -> None:
    heavy = {"torch", "torchvision", "numpy", "cv2", "av", "omegaconf", "einops", *OPTIONAL}
    assert not loaded_by("import hiera_video; hiera_video.__version__") & heavy


def test_building_a_model_needs_torch_numpy_and_einops() -> None:
    heavy = {"torchvision", "cv2", "av", "omegaconf", "safetensors", "fvcore", "PIL", *OPTIONAL}
    code = "import torch; torch.set_default_device('meta')"
    code += "; import hiera_video; hiera_video.create_model('hiera_tiny_16x224')"
    assert not loaded_by(code) & heavy


def test_public_names() -> None:
    assert set(hiera_video.__all__) <= set(dir(hiera_video))
    for name in hiera_video.__all__:
        assert getattr(hiera_video, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hiera_video.nothing  # noqa: B018
