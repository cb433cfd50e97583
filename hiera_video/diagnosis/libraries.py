"""The dependencies and extras that the package states: which are there, and whether they import.

Names and versions come from the metadata of the installed package, which pyproject.toml states.
"""

import importlib
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hiera_video.diagnosis.findings import Finding, described, silence

PACKAGE = "hiera-video"
GIVES = {  # each extra; the table in README.md says the same
    "torchcodec": "one more decoder: data.backend=torchcodec, on a GPU torchcodec-cuda",
    "tensorboard": "metrics in TensorBoard",
    "onnx": "ONNX files in export",
    "hub": "weights from and to the Hugging Face Hub",
    "instances": "boxes and masks of objects in pictures, as in COCO",
    "plot": "the plot of benchmark",
    "report": "the page of report",
    "ray": "extract --engine ray",
    "pytorchvideo": "pytorchvideo's data sets with our clips",
}
FFMPEG = ("libavcodec", "libavformat", "libavutil", "libswscale")  # whose versions PyAV knows
DEVELOPMENT = ("dev", "docs")  # their programs are in the repository alone


@dataclass(frozen=True)
class Library:
    """A distribution that the package needs, or an extra of it.

    Args:
        extra: None for one that is always needed.
        version: that is installed, or None.
    """

    requirement: Requirement
    extra: str | None
    version: str | None

    @property
    def name(self) -> str:
        return self.requirement.name

    @property
    def to_install(self) -> str:
        """For pip: name and versions."""
        return f"'{self.requirement.name}{self.requirement.specifier}'"


def libraries() -> list[Library]:
    """What the package states for this system, extras last.

    Raises:
        importlib.metadata.PackageNotFoundError: the package itself is not installed.
    """
    stated = metadata.metadata(PACKAGE)
    extras = [e for e in stated.get_all("Provides-Extra") or [] if e not in DEVELOPMENT]
    requirements = [Requirement(line) for line in stated.get_all("Requires-Dist") or []]
    found: dict[str, Library] = {}
    for extra in (None, *extras):
        for requirement in requirements:
            name, marker = requirement.name, requirement.marker
            if name not in found and (marker is None or marker.evaluate({"extra": extra or ""})):
                found[name] = Library(requirement, extra, _version(name))
    return list(found.values())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def missing_extras(found: list[Library]) -> list[str]:
    """Extras of which a library is not installed."""
    return list(dict.fromkeys(lib.extra for lib in found if lib.extra and lib.version is None))


def check_library(library: Library) -> Finding:
    """Whether it is there, of a version that is allowed, and imports; in a process of its own."""
    name, version = library.name, library.version
    install = f"pip install {library.to_install}"
    if version is None:
        if library.extra:
            return Finding(name, "not installed", "missing", data={"extra": library.extra})
        return Finding(name, "not installed, and needed", "failed", install)
    data: dict[str, Any] = {"version": version}
    if library.extra:
        data["extra"] = library.extra
    text = version
    for module in modules_of(name):
        try:
            with silence():
                imported = importlib.import_module(module)
        except Exception as error:
            text = f"{version} does not import: {described(error)}"
            return Finding(name, text, "failed", f"{install} --force-reinstall", data)
        if name == "av":
            numbers = {k: ".".join(map(str, v)) for k, v in imported.library_versions.items()}
            data["libraries"] = numbers
            text += f" ({', '.join(f'{k} {numbers[k]}' for k in FFMPEG if k in numbers)})"
    if not library.requirement.specifier.contains(version, prereleases=True):
        text += f"; {library.requirement.specifier} is needed"
        return Finding(name, text, "warning", f"{install} --upgrade", data)
    return Finding(name, text, data=data)


def modules_of(name: str) -> list[str]:
    """The modules of a distribution to import: that of its name, or all that are not private."""
    own = canonicalize_name(name)
    modules = sorted(m for m, owners in _owners().items() if own in owners and m.isidentifier())
    named = [m for m in modules if canonicalize_name(m) == own]
    return named or [m for m in modules if not m.startswith("_") and m not in ("test", "tests")]


@cache
def _owners() -> dict[str, set[str]]:
    """The distributions of each module; takes 0.3 s."""
    found = metadata.packages_distributions()
    return {module: set(map(canonicalize_name, names)) for module, names in found.items()}
