"""Who may import whom, and what `import hiera_video` costs."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import hiera_video

PACKAGE = Path(hiera_video.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# A part imports itself and the parts above it in this list, never those below.
PARTS = [
    "errors",
    "files",
    "settings",
    "runtime",
    "models",
    "video",
    "data",
    "evaluation",
    "training",
    "extraction",
    "analysis",
    "demo",
    "diagnosis",
    "report",
    "commands",
    "cli",
    "__main__",
]
OPTIONAL = {
    "decord",
    "faster_coco_eval",
    "torchcodec",
    "pytorchvideo",
    "pyarrow",
    "ray",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "huggingface_hub",
    "jinja2",
    "markupsafe",
    "plotly",
    "tensorboard",
    "timm",
    "transformers",
}


@cache
def imported(path: Path, *, typing: bool = True, at_the_top: bool = False) -> frozenset[str]:
    """Names of modules, for `from a import b` both a and a.b.

    Args:
        typing: include imports for annotations only.
        at_the_top: leave out imports inside functions, and those for annotations.
    """
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
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only and (at_the_top or not typing):
            continue
        if id(node) in inside and at_the_top:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            assert node.module
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


@functools.cache
def arrows(typing: bool) -> dict[str, set[str]]:
    """For each module the modules of the package that it imports, inside functions too."""
    return {
        module: imported(path, typing=typing) & MODULES.keys() for module, path in MODULES.items()
    }


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module: str) -> None:
    part = module.split(".")[1]
    if part == "__init__":
        return  # the public names, each imported when it is first used
    allowed = PARTS[: PARTS.index(part) + 1]
    for name in arrows(typing=True)[module]:
        assert name.split(".")[1] in allowed, f"{module} imports {name}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    imports = arrows(typing=False)
    for start in imports:
        reached: set[str] = set()
        waiting = [start]
        while waiting:
            for name in imports[waiting.pop()] - reached:
                reached.add(name)
                waiting.append(name)
        assert start not in reached, f"{start} imports itself through {sorted(reached)}"


def test_sampling_is_arithmetic_only() -> None:
    names = imported(MODULES["hiera_video.video.sampling"])
    assert not {n.split(".")[0] for n in names} & {"torch", "av", "cv2", "os", "pathlib", "io"}
    ours = {name for name in names if name in MODULES}
    assert ours == {"hiera_video.settings.video"}  # the names of the rules


def test_commands_do_not_import_one_another() -> None:
    for module, path in MODULES.items():
        if module.startswith("hiera_video.commands."):
            assert not [n for n in imported(path) if n.startswith("hiera_video.commands")], module


def test_only_one_module_reads_yaml() -> None:
    users = [m for m, p in MODULES.items() if "yaml" in {n.split(".")[0] for n in imported(p)}]
    assert users == ["hiera_video.settings.load"]


@pytest.mark.parametrize("part", ["settings", "cli", "errors", "files"])
def test_the_ground_floor_needs_no_arrays(part: str) -> None:
    heavy = {"torch", "numpy", "cv2", "av", "torchvision", "safetensors"}
    for module, path in MODULES.items():
        if module.split(".")[1] == part:
            names = {name.split(".")[0] for name in imported(path, at_the_top=True)}
            assert not names & heavy, module


@pytest.mark.parametrize("module", MODULES)
def test_optional_libraries_are_imported_where_they_are_used(module: str) -> None:
    top = imported(MODULES[module], at_the_top=True)
    assert not {name for name in top if name.split(".")[0] in OPTIONAL}
    assert "torch.utils.tensorboard" not in top


def loaded_by(code: str) -> set[str]:
    """Top-level packages in memory after `code` in a fresh interpreter."""
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_is_fast() -> None:
    heavy = {"torch", "torchvision", "numpy", "cv2", "av", "einops", *OPTIONAL}
    assert not loaded_by("import hiera_video; hiera_video.__version__") & heavy


def test_building_a_model_needs_torch_numpy_and_einops() -> None:
    heavy = {"torchvision", "cv2", "av", "safetensors", "fvcore", "PIL", *OPTIONAL}
    code = "import torch; torch.set_default_device('meta')"
    code += "; import hiera_video; hiera_video.create_model('hiera_tiny_16x224')"
    assert not loaded_by(code) & heavy


def test_public_names() -> None:
    assert set(hiera_video.__all__) <= set(dir(hiera_video))
    for name in hiera_video.__all__:
        assert getattr(hiera_video, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hiera_video.nothing  # noqa: B018
