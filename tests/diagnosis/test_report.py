"""The report as text: width, alignment, verdict and the line to install."""

from pathlib import Path

import pytest

from hiera_video.diagnosis import report
from hiera_video.diagnosis.findings import Finding
from hiera_video.diagnosis.report import Diagnosis, lines

LONG = "word " * 60
FINE = Finding("numpy", "2.4.6", data={"version": "2.4.6"})
OPTIONAL = Finding("onnx", "1.18", data={"version": "1.18", "extra": "onnx"})


def diagnosis(*findings, libraries=(FINE, OPTIONAL), extras=()):
    sections = {"libraries": list(libraries), "machine": list(findings)}
    return Diagnosis(sections, list(extras), 1.0)


@pytest.mark.parametrize("columns", [60, 100, 300])
def test_lines_are_aligned_and_at_most_100_columns_wide(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    findings = Finding("memory", LONG), Finding("a cache", LONG, "failed", LONG)
    shown = list(lines(diagnosis(*findings, extras=report.GIVES)))
    assert max(map(len, shown)) <= min(columns, 100)
    entries = [line for line in shown if line.startswith("  ") and "pip install" not in line]
    column = {len(line) - len(line[11:].lstrip()) for line in entries if "word" in line}
    assert column <= {11, 14}  # 2 and the longest name and 2; advice goes on 3 further in


def test_what_failed_is_marked_has_advice_and_decides_the_verdict():
    failed = Finding("decord", "does not import", "failed", "install it again")
    shown = list(lines(diagnosis(failed, Finding("shm", "64 MiB", "warning", "more"))))
    place = shown.index("  decord  FAILS: does not import")
    assert shown[place + 1] == "          -> install it again"
    assert "  shm     note: 64 MiB" in shown
    assert shown[-1] == "Does not work: decord."
    assert diagnosis(failed, failed).record()["failed"] == ["decord"]


def test_missing_extras_are_fine_and_have_one_line_to_install_them():
    found = diagnosis(Finding("torchcodec", "not installed", "missing"), extras=["hub", "onnx"])
    shown = "\n".join(lines(found))
    assert "  pip install 'hiera-video[hub,onnx]'" in shown
    assert "weights from and to the Hugging Face Hub" in shown
    assert shown.endswith("This installation works.")
    assert found.record()["works"] is True
    assert found.record()["extras"].keys() == {"hub", "onnx"}


def test_libraries_that_work_are_a_paragraph_and_others_have_a_line(monkeypatch):
    broken = Finding("opencv-python-headless", "does not import", "failed", "again")
    old = Finding("torch", "2.0; >=2.11 is needed", "warning", "pip install")
    shown = list(lines(diagnosis(libraries=[FINE, OPTIONAL, broken, old])))
    assert f"  {'needed':22}  numpy 2.4.6" in shown
    assert f"  {'extras':22}  onnx 1.18" in shown
    assert "  opencv-python-headless  FAILS: does not import" in shown
    assert f"  {'torch':22}  note: 2.0; >=2.11 is needed" in shown


def test_a_package_that_is_not_installed_is_a_note(monkeypatch):
    def libraries():
        raise report.libraries.__globals__["metadata"].PackageNotFoundError("hiera-video")

    monkeypatch.setattr(report, "libraries", libraries)
    found, extras, (note,) = report._stated()
    assert (found, extras, note.status) == ([], [], "warning")
    assert "pip install" in note.advice


def test_where_processes_cannot_start_libraries_are_tried_in_this_one(monkeypatch):
    def check_all(found):
        raise RuntimeError("decoding processes cannot start")

    monkeypatch.setattr("hiera_video.diagnosis.decoders.check_all", check_all)
    found = [lib for lib in report.libraries() if lib.name in ("numpy", "einops")]
    imports, (decoders,) = report._checked(found)
    assert [finding.status for finding in imports] == ["ok", "ok"]
    assert decoders.status == "failed"
    assert "decoding processes cannot start" in decoders.text


def test_the_clip_is_in_the_folder_of_the_package():
    assert (Path(report.__file__).parent / "clip.mp4").is_file()
