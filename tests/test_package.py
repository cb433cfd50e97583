"""The wheel and the source distribution, installed and used outside of the repository."""

from __future__ import annotations

import json
import os
import posixpath
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import hiera_video

ROOT = Path(__file__).parents[1]
Run = Callable[..., str]
LINK = re.compile(r"\]\(([^)]+)\)")


def call(*command: str | Path, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("distributions")
    call(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module")
def pip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    """The command for pip: of an environment of its own, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("pip")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python", "-m", "pip"


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def run(
    request: pytest.FixtureRequest,
    distributions: dict[str, Path],
    pip: tuple[str | Path, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """Runs a script of a new environment that has the package, and sees our dependencies."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / "venv")
    scripts = folder / "venv" / "bin"
    python = scripts / "python"
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site.strip(), "dependencies.pth").write_text("\n".join(sorted(paths)))
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    pip = (*pip, "--python", python)
    call(*pip, "install", *options, distributions[request.param], cwd=folder)
    return lambda name, *arguments: call(scripts / name, *arguments, cwd=folder)


def test_all_files_are_in_both(distributions: dict[str, Path]) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for folder in ("hiera_video", "configs", "datasets", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with tarfile.open(distributions["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert expected <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "docs/design.md", "tests/conftest.py"} <= names
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    expected.add("README.md")
    inside = {p if p.startswith("hiera_video/") else f"hiera_video/{p}" for p in expected}
    assert inside == {name for name in names if ".dist-info/" not in name}
    assert "hiera_video/py.typed" in names


def test_links_lead_somewhere_in_the_wheel(distributions: dict[str, Path]) -> None:
    """Those of the package page to the web alone, those of other pages also to files beside."""
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        names = wheel.namelist()
        pages = {name: wheel.read(name).decode() for name in names if name.endswith(".md")}
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith("METADATA"))
    headers, _, shown = metadata.partition("\n\n")
    assert "Description-Content-Type: text/markdown" in headers
    assert "(docs/complexity.md)" in shown
    assert all(target.startswith("https://") for target in LINK.findall(shown))
    for page, text in pages.items():
        for target in LINK.findall(text):
            path = posixpath.normpath(f"{posixpath.dirname(page)}/{target.partition('#')[0]}")
            is_source = path.startswith(("hiera_video/tests/", "hiera_video/tools/"))
            is_there = any(name == path or name.startswith(f"{path}/") for name in names)
            is_elsewhere = is_source or path == "hiera_video/LICENSE" or "://" in target
            assert is_there or is_elsewhere or target.startswith("#"), f"{page}: {target}"


def test_the_commands(run: Run, tmp_path: Path) -> None:
    assert run("hiera-video", "--version").split() == ["hiera-video", hiera_video.__version__]
    printed = run("hiera-video", "finetune", "--config", "kinetics400/hiera_base", "--print-config")
    assert "hiera_base_16x224" in printed


def test_models_and_class_names(run: Run) -> None:
    program = """
import json
import hiera_video
from hiera_video.data.boxes.table import read_label_map
from hiera_video.data.videos.records import read_class_names

names = ("kinetics400", "kinetics600", "kinetics700", "ssv2", "places365")
model = hiera_video.create_model("hiera_tiny_16x224", num_frames=4, num_classes=3)
print(json.dumps({
    "file": hiera_video.__file__,
    "classes": [len(read_class_names(f"datasets/{name}/class_names.txt")) for name in names],
    "actions": len(read_label_map("datasets/ava/class_names.txt").names),
    "models": hiera_video.list_models("hiera_tiny*"),
    "parameters": sum(p.numel() for p in model.head.parameters()),
}))
"""
    found = json.loads(run("python", "-c", program))
    assert not Path(found["file"]).is_relative_to(ROOT)
    assert found["classes"] == [400, 600, 700, 174, 365]
    assert found["actions"] == 60
    assert found["models"] == hiera_video.list_models("hiera_tiny*")
    assert found["parameters"] == 3 * 768 + 3


def test_lists_of_kinetics_are_built(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a_000001_000011.mp4").write_bytes(b"x")
    annotations = tmp_path / "val.csv"
    annotations.write_text("label,youtube_id,time_start,time_end,split\nsurf,a,1,11,val\n")
    files = (f"annotations={annotations}", f"output={tmp_path / 'list.csv'}")
    run("hiera-video", "data", "build-lists", tmp_path, *files)
    assert (tmp_path / "list.csv").read_text() == "path,label\na_000001_000011.mp4,surf\n"
