"""What pyproject.toml states, and libraries that are missing, old or broken."""

import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hiera_video.diagnosis.libraries import (
    DEVELOPMENT,
    GIVES,
    Library,
    check_library,
    libraries,
    missing_extras,
    modules_of,
)

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text().partition("## Installation")[2].partition("\n## ")[0]
INSTALLED = Library(Requirement("numpy>=2"), None, np.__version__)


@pytest.fixture
def stated(monkeypatch):
    """The metadata that pyproject.toml of this checkout becomes; an installation may be older."""
    lines = list(PROJECT["dependencies"])
    for extra, needed in PROJECT["optional-dependencies"].items():
        for line in needed:
            requirement, _, marker = line.partition(";")
            condition = f"({marker}) and " if marker else ""
            lines.append(f"{requirement}; {condition}extra == '{extra}'")
    fields = {"Requires-Dist": lines, "Provides-Extra": list(PROJECT["optional-dependencies"])}

    class Metadata:
        get_all = staticmethod(fields.get)

    monkeypatch.setattr("hiera_video.diagnosis.libraries.metadata.metadata", lambda name: Metadata)


def test_all_that_pyproject_states_is_looked_at(stated):
    expected = {Requirement(line).name for line in PROJECT["dependencies"]}
    optional = PROJECT["optional-dependencies"]
    extras = {e: needed for e, needed in optional.items() if e not in DEVELOPMENT}
    found = libraries()
    is_elsewhere = {lib.name for lib in found if lib.extra is None} ^ expected
    assert is_elsewhere <= {"decord"}  # which has wheels for some systems only
    of_extras = {(Requirement(n).name, e) for e, needed in extras.items() for n in needed}
    assert {(lib.name, lib.extra) for lib in found if lib.extra} == of_extras
    assert {lib.name: lib.version for lib in found}["numpy"] == np.__version__


def test_what_each_extra_gives_is_stated_as_in_the_readme():
    table = re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE)
    stated_there = {name: text.replace("`", "") for name, text in table}
    assert stated_there.keys() == PROJECT["optional-dependencies"].keys()
    assert {n: t for n, t in stated_there.items() if n not in DEVELOPMENT} == GIVES


def test_missing_libraries():
    absent = replace(INSTALLED, version=None)
    found = check_library(absent)
    assert (found.status, found.advice) == ("failed", "pip install 'numpy>=2'")
    optional = [replace(absent, extra="onnx"), replace(absent, extra="onnx"), INSTALLED]
    assert check_library(optional[0]).status == "missing"
    assert missing_extras([*optional, replace(INSTALLED, extra="hub")]) == ["onnx"]


def test_a_library_that_is_too_old_is_a_warning():
    found = check_library(replace(INSTALLED, requirement=Requirement("numpy>=99")))
    assert found.status == "warning"
    assert "99" in found.text
    assert found.advice == "pip install 'numpy>=99' --upgrade"


def test_a_library_that_does_not_import_fails_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "tabulate.py").write_text("raise OSError('libx.so: \\x1b no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tabulate", raising=False)
    found = check_library(Library(Requirement("tabulate>=0.9"), None, "0.9"))
    assert found.status == "failed"
    assert r"OSError: libx.so: \x1b no such file (tabulate.py:1)" in found.text
    assert "--force-reinstall" in found.advice


def test_modules_have_other_names_than_their_distributions():
    assert modules_of("opencv-python-headless") == ["cv2"]
    assert modules_of("pillow") == ["PIL"]
    assert modules_of("pyyaml") == ["yaml"]
    assert canonicalize_name(*modules_of("jaxtyping")) == "jaxtyping"
