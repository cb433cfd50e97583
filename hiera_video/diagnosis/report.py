"""All checks, and their report as text and as JSON.

Modules that need torch, OpenCV or PyAV are imported where they are used: each may be what is wrong.
"""

import re
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hiera_video.diagnosis import system
from hiera_video.diagnosis.findings import Finding, attempt, described, without_names
from hiera_video.diagnosis.libraries import (
    GIVES,
    PACKAGE,
    Library,
    check_library,
    libraries,
    missing_extras,
)

WIDTH = 100
INDENT = 2
REINSTALL = "pip install --force-reinstall torch torchvision"
MARKS = {"failed": "FAILS: ", "warning": "note: ", "missing": "", "ok": ""}
Section = list[Finding]


@dataclass(frozen=True)
class Diagnosis:
    """What was found, by section, and what can be installed."""

    sections: dict[str, Section]
    extras: list[str]  # that are not installed
    self_test_sec: float

    @property
    def failed(self) -> Section:
        return [f for findings in self.sections.values() for f in findings if f.status == "failed"]

    @property
    def install(self) -> str:
        """The line that installs the missing extras."""
        return f"pip install '{PACKAGE}[{','.join(self.extras)}]'" if self.extras else ""

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "works": not self.failed,
            "failed": list(dict.fromkeys(finding.name for finding in self.failed)),
            **{
                name: {finding.name: finding.record() for finding in findings}
                for name, findings in self.sections.items()
            },
            "self_test_sec": round(self.self_test_sec, 2),
            "install": self.install,
            "extras": {extra: GIVES.get(extra, "") for extra in self.extras},
        }


def diagnose() -> Diagnosis:
    """Runs all checks. Nothing is fetched and no file is left behind."""
    sections: dict[str, Section] = {"versions": system.versions()}
    found, extras, stated = _stated()
    imports, decoders = _checked(found)
    sections["versions"] += stated
    sections["libraries"] = imports
    devices, num_gpus = _devices()
    sections["machine"] = [
        attempt("processor", system.processor),
        attempt("memory", system.memory),
        attempt("/dev/shm", partial(system.shared_memory, num_gpus or 0)),
        attempt("temporary files", system.temporary),
        attempt("outputs", system.outputs),
        *([] if num_gpus is None else [attempt("weights cache", system.weights)]),
        attempt("hub cache", system.hub_weights),
    ]
    sections["devices"] = devices
    sections["decoders"] = decoders
    started = time.perf_counter()
    sections["self-test"] = _self_test()
    return Diagnosis(sections, extras, time.perf_counter() - started)


def _stated() -> tuple[list[Library], list[str], Section]:
    """The libraries that the package states, and its missing extras."""
    try:
        found = libraries()
    except Exception as error:
        advice = f"pip install {PACKAGE}, or pip install -e . in a checkout"
        text = f"not known: the metadata of the package cannot be read ({described(error)})"
        return [], [], [Finding("libraries", text, "warning", advice)]
    return found, missing_extras(found), []


def _checked(found: Sequence[Library]) -> tuple[Section, Section]:
    """The libraries and the decoders, tried in processes of their own if these can start."""
    try:
        from hiera_video.diagnosis.decoders import check_all

        return check_all(found)
    except Exception as error:
        advice = "install again what fails above; the processes that decode import much of it"
        processes = Finding("decoders", f"not tried: {described(error)}", "failed", advice)
        imports = [attempt(lib.name, partial(check_library, lib)) for lib in found]
        return imports, [processes]


def _devices() -> tuple[Section, int | None]:
    """Findings about devices, and the number of GPUs, or None if torch does not load."""
    try:
        from hiera_video.diagnosis import devices

        section = [attempt("torch", devices.torch_build)]
        found = devices.found_devices()
    except Exception as error:
        return [Finding("torch", described(error), "failed", REINSTALL)], None
    for device in found:
        section.append(attempt(str(device), partial(devices.device, device)))
        section.append(attempt(f"attention, {device}", partial(devices.attention, device)))
    num_gpus = sum(device.type == "cuda" for device in found)
    section.append(attempt("torch.compile", partial(devices.compiler, num_gpus > 0)))
    return section, num_gpus


def _self_test() -> Section:
    try:
        from hiera_video.diagnosis import self_test
    except Exception as error:
        advice = "install again what fails above"
        return [Finding("self-test", f"not possible: {described(error)}", "failed", advice)]
    batches: list[Any] = []

    def decoding_process() -> Finding:
        finding, batch = self_test.decoding_process()
        batches.append(batch)
        return finding

    return [
        attempt("forward pass", self_test.forward),
        attempt("decoding process", decoding_process),
        attempt("training step", lambda: self_test.training_step(*batches or [None])),
    ]


def lines(diagnosis: Diagnosis) -> Iterator[str]:
    """The report for a person: at most 100 columns, one finding after another."""
    width = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)
    findings = [f for section in diagnosis.sections.values() for f in section]
    in_paragraphs = [f for f in diagnosis.sections["libraries"] if f.status in ("ok", "missing")]
    column = max(len(f.name) for f in findings if f not in in_paragraphs) + 2
    entry = partial(_entry, column=column, width=width)
    for name, findings in diagnosis.sections.items():
        yield f"{name} ({diagnosis.self_test_sec:.1f} s)" if name == "self-test" else name
        if name == "libraries":
            yield from _library_lines(findings, entry)
        else:
            for finding in findings:
                yield from entry(finding)
        yield ""
    if diagnosis.extras:
        yield "not installed, and optional"
        for extra in diagnosis.extras:
            yield from entry(Finding(extra, GIVES.get(extra, "")))
        yield from textwrap.wrap(diagnosis.install, width, initial_indent="  ")
        yield ""
    failed = dict.fromkeys(finding.name for finding in diagnosis.failed)
    verdict = f"Does not work: {', '.join(failed)}." if failed else "This installation works."
    yield from textwrap.wrap(verdict, width)


def _library_lines(findings: Section, entry: Callable[[Finding], Iterator[str]]) -> Iterator[str]:
    """Those that are fine in a paragraph, others with a line each."""
    fine = [f for f in findings if f.status == "ok"]
    for title, is_extra in (("needed", False), ("extras", True)):
        group = [f"{f.name} {f.text}" for f in fine if ("extra" in f.data) is is_extra]
        if group:  # no line ends between a name and its version
            yield from entry(Finding(title, re.sub(r" (?=\d)", "\xa0", ", ".join(group))))
    for finding in findings:
        if finding.status not in ("ok", "missing"):
            yield from entry(finding)


def _entry(finding: Finding, column: int, width: int) -> Iterator[str]:
    """The finding in aligned lines, and what to do in a line below."""
    text = MARKS[finding.status] + finding.text
    advice = [f"-> {finding.advice}"] if finding.advice else []
    head = f"{'':{INDENT}}{finding.name:{column}}"
    below = " " * (INDENT + column)
    for number, paragraph in enumerate([text, *advice]):
        wrapped = textwrap.wrap(
            without_names(paragraph),
            width,
            initial_indent=below if number else head if len(head) == len(below) else f"{head} ",
            subsequent_indent=below if number == 0 else f"{below}   ",
            break_on_hyphens=False,
        )
        yield from (line.replace("\xa0", " ") for line in wrapped)
