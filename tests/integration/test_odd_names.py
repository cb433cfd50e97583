"""Names that no file can have, that are not UTF-8, or that would control the terminal."""

import csv
import json
import os
import re

import pytest

CONTROL = re.compile(r"[^\n -~]")  # whatever is not plain ASCII on lines
ODD = (os.fsdecode(b"\xff.mp4"), "\x1b[31mred\a\n.mp4", "\u202e4pm.mp4")
IMPOSSIBLE = ("a\0b.mp4", "\ud800.mp4")  # of which the first ends a string of the system


@pytest.fixture(scope="module")
def odd(commands, tmp_path_factory):
    """A folder with good videos under odd names, and list.json that names impossible ones too."""
    folder = tmp_path_factory.mktemp("odd")
    names = (*ODD, "plain.mp4")
    for i, name in enumerate(names):
        (folder / name).write_bytes((commands.toy / f"train_{i}.mp4").read_bytes())
    classes = ("left", "ri\x1b[1mght")
    entries = [{"path": n, "label": classes[i % 2]} for i, n in enumerate((*names, *IMPOSSIBLE))]
    (folder / "list.json").write_text(json.dumps(entries))
    return folder


def paths(folder, names):
    return {os.path.join(folder, name) for name in names}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_and_evaluation(commands, odd, lines_of, tmp_path, num_workers):
    run_dir = tmp_path / "run\x1b[32m"
    source = odd / "list.json"
    workers = f"data.num_workers={num_workers}"
    result = commands.run(
        *commands.finetune(run_dir, f"data.train={source}", f"data.val={source}", workers)
    )
    assert result.code == 3, result.err
    for shown in (result.err, (run_dir / "train.log").read_text("utf-8")):
        assert not CONTROL.search(shown)
        assert r"a\x00b.mp4: no file can have this name" in shown
        assert r"\ud800.mp4: no file can have this name" in shown
    failed = {line["path"] for line in lines_of(run_dir / "failures.jsonl")}
    assert failed == paths(odd, IMPOSSIBLE)

    result = commands.run("evaluate", f"checkpoint={run_dir}", f"data.val={source}", workers)
    assert result.code == 3
    assert not CONTROL.search(result.out)
    assert r"a\x00b.mp4: no file can have this name" in result.out
    report = json.loads((run_dir / "eval" / "report.json").read_text("utf-8"))
    assert {failure["path"] for failure in report["failed"]} == paths(odd, IMPOSSIBLE)
    with open(run_dir / "eval" / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == [
        r"\udcff.mp4",
        *ODD[1:],
        "plain.mp4",
        "a\0b.mp4",
        r"\ud800.mp4",
    ]


def test_prediction(commands, trained, odd, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    bad = (tmp_path / "text.mp4").rename(tmp_path / os.fsdecode(b"\xfe\x1b[0m.mp4"))
    arguments = ("predict", f"checkpoint={trained}", "device=cpu", *sorted(paths(odd, ODD)), bad)
    result = commands.run(*arguments)
    assert result.code == 3, result.err
    assert not CONTROL.search(result.out)
    assert f"{odd}/\\udcff.mp4\n" in result.out
    assert f"{odd}/\\x1b[31mred\\x07\\n.mp4\n" in result.out
    result = commands.run(*arguments, "--json")
    assert not CONTROL.search(result.out)
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert {line["path"] for line in lines} == {*paths(odd, ODD), str(bad)}


def test_extraction(commands, trained, odd, lines_of, tmp_path):
    arguments = ("extract", odd / "list.json", f"checkpoint={trained}", f"output_dir={tmp_path}")
    result = commands.run(*arguments, "device=cpu", "data.num_workers=1")
    assert result.code == 3, result.err
    assert not CONTROL.search(result.out + result.err)
    rows = lines_of(tmp_path / "index.jsonl")
    done = {row["path"]: row for row in rows if row["status"] == "done"}
    assert done.keys() == paths(odd, (*ODD, "plain.mp4"))
    assert all((tmp_path / row["output"]).is_file() for row in done.values())
    assert {row["path"] for row in lines_of(tmp_path / "failures.jsonl")} == paths(odd, IMPOSSIBLE)
    result = commands.run(*arguments, "device=cpu", "data.num_workers=1")
    assert "0 of 6 videos are to be read" in result.err


def test_messages_of_decoding_processes(commands, trained, odd):
    pytest.importorskip("decord")
    arguments = ("predict", f"checkpoint={trained}", "device=cpu", *sorted(paths(odd, ODD)))
    process = commands.start(*arguments, "data.backend=decord", "data.num_workers=1")
    result = commands.finish(process)
    assert result.code == 0, result.out
    assert not CONTROL.search(result.out)
    assert rf"W {odd}/\udcff.mp4: decord cannot serve this file" in result.out
