"""`benchmark` end to end: tables, files, decoding, and errors in one line."""

import json
from dataclasses import replace
from functools import cache, partial

import pytest
from PIL import Image

from hiera_video.analysis import peers
from hiera_video.analysis import speed as measuring
from hiera_video.analysis.peers import Subject
from hiera_video.cli import main as cli
from hiera_video.commands import benchmark as command
from tests.video.striped_video import make_striped_video

pytestmark = pytest.mark.usefixtures("unchecked_shapes")  # faster; FLOPs are counted too
SMALL = ("hiera_tiny_224", "rounds=1", "device=cpu", "precisions=[fp32]")


SIDE = 64
peak_tflops = cache(command.peak_tflops)  # measured once, not for each test


def small(name):
    """A variant for smaller clips."""
    subject = peers.ours(name)
    build = partial(subject.build, image_size=SIDE)
    return replace(subject, build=build, clip=(*subject.clip[:2], SIDE, SIDE))


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command, with rounds of one call and no processes to measure memory in."""
    monkeypatch.setattr(measuring, "MIN_ROUND_SEC", 0.0001)
    monkeypatch.setattr(measuring, "peak_in_child", lambda *_: None)
    monkeypatch.setattr(command, "peak_tflops", peak_tflops)
    monkeypatch.setattr(command, "ours", small)
    autoencoder = partial(peers.create_autoencoder, image_size=SIDE)
    monkeypatch.setattr(peers, "create_autoencoder", autoencoder)

    def call(*arguments):
        code = cli.main(["benchmark", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_tables_files_and_json(run, tmp_path):
    code, out, _ = run(*SMALL, "--output-dir", tmp_path / "b", "batch_sizes=[1, 2]")
    assert code == 0
    report = json.loads((tmp_path / "b" / "results.json").read_text())
    settings = [(row["work"], row["batch_size"]) for row in report["results"]]
    works = ("inference", "finetuning", "pretraining")
    assert settings == [(work, size) for work in works for size in (1, 2)]
    assert all(row["clips_per_sec"] > 0 and row["ours_is"] == 1 for row in report["results"])
    assert all(0 < row["model_flops_utilisation"] < 1.5 for row in report["results"])
    tables = (tmp_path / "b" / "results.md").read_text()
    assert tables.count("| hiera_tiny_224 |") == 6 == out.count("| hiera_tiny_224 |")
    assert "inference, fp32, eager" in tables
    assert "first call s" in tables
    assert "claims" not in tables  # which peers have
    assert (tmp_path / "b" / "accuracy_speed.png").stat().st_size > 1000

    code, _, err = run(*SMALL, "--output-dir", tmp_path / "b")
    assert code == 1
    assert "overwrite=true" in err
    again = ("work=[inference]", "--output-dir", tmp_path / "b", "--overwrite", "--json")
    code, out, _ = run(*SMALL, *again)
    assert code == 0
    assert json.loads(out)["results"]


def test_decoding_is_measured_on_the_users_videos(run, tmp_path):
    video = make_striped_video(tmp_path / "a b.mp4", 6, (32, 48))
    code, out, _ = run(
        *SMALL, "work=[inference]", f"videos={video}", "data.num_workers=0", "--json"
    )
    assert code == 0
    (row,) = json.loads(out)["decoding"]
    assert row["clips"] == 16
    assert row["clips_per_sec"] > 0
    (tmp_path / "bad.mp4").write_text("no video")
    code, _, err = run(*SMALL, "work=[inference]", f"videos={tmp_path / 'bad.mp4'}", "--json")
    assert code == 1
    assert "bad.mp4" in err
    assert "not a video" in err


def test_lists_of_splits_and_folders_of_frames(run, tmp_path):
    """The two splits differ: the file of one is missing."""
    make_striped_video(tmp_path / "a.mp4", 3, (32, 48))
    (tmp_path / "lists").mkdir()
    table = tmp_path / "lists" / "all.csv"
    table.write_text("path,split\na.mp4,train\nb.mp4,val\na.mp4,val\n")
    line = (*SMALL, "work=[inference]", "data.num_workers=0", f"videos={table}", "--json")
    line = (*line, f"data.root={tmp_path}")
    code, _, err = run(*line)
    assert code == 1
    assert "choose one with split=NAME (data.split=NAME" in err
    code, out, _ = run(*line, "data.split=train")
    assert code == 0
    assert json.loads(out)["decoding"][0]["clips_per_sec"] > 0
    code, _, err = run(*line, "data.split=val", "--dry-run")
    assert code == 3
    assert "videos: 1 of 2 files" in err
    frames = tmp_path / "frames" / "v1"
    frames.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (48, 32)).save(frames / f"{number}.png")
    line = (*SMALL, "work=[inference]", "data.num_workers=0", f"videos={frames.parent}", "--json")
    code, out, _ = run(*line, "data.frames_fps=25")
    assert code == 0
    assert json.loads(out)["decoding"][0]["clips_per_sec"] > 0


def test_a_peer_that_fails_is_named_and_the_code_is_3(run, monkeypatch):
    broken = Subject("broken", "other", _refuse, (3, 8, 8))
    monkeypatch.setattr(
        command, "peers", lambda names: ([broken], {"absent": "No module named absent"})
    )
    code, out, err = run(*SMALL, "work=[inference]", "--peers")
    assert code == 3
    assert "| hiera_tiny_224" in out
    assert "broken, inference, fp32, eager: RuntimeError: nothing to build" in err
    assert "pip install absent" in err
    monkeypatch.setattr(command, "ours", lambda name: broken)
    code, out, _ = run(*SMALL, "work=[inference]")
    assert code == 1
    assert "nothing was measured" in out


def test_peers_close_with_the_claims_of_the_article(run, monkeypatch, tmp_path):
    tiny = small("hiera_tiny_224")
    monkeypatch.setattr(peers, "ours", lambda name: tiny)
    monkeypatch.setattr(command, "ours", lambda name: tiny)
    monkeypatch.setattr(command, "peers", lambda names: ([peers.dense(names[0])], {}))
    line = (*SMALL, "work=[inference, pretraining]", "--peers", "--output-dir", tmp_path)
    code, out, _ = run(*line)
    assert code == 0
    closing = out[out.index("the article's claims beside this run on") :]
    assert "| inference, hiera_tiny_224 " in closing
    assert "2758 /s" in closing
    assert "| pretraining, hiera_tiny_224, sparse over dense " in closing
    assert closing.strip() in (tmp_path / "results.md").read_text()
    claims = json.loads((tmp_path / "results.json").read_text())["claims"]
    assert [row["precision"] for row in claims] == ["fp32", "fp32"]


def _refuse():
    raise RuntimeError("nothing to build")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hiera_tiny_225"], "did you mean 'hiera_tiny_224'"),
        (["hiera_tiny_224", "hiera_tiny_16x224"], "all must be of video, or all of images"),
        (["precisions=[fp16]", "device=cpu"], "fp32 and bf16"),
        (["precisions=[fp8]"], "precisions"),
        (["work=[training]"], "inference, finetuning or pretraining"),
        (["batch_sizes=[0]"], "batch_sizes"),
        (["batch_size=4"], "batch_sizes"),
        (["rounds=0"], "rounds"),
        (["work=[finetuning]", "videos=a.mp4"], "videos"),
        (["precisions=[fp16]", "videos=a.mp4"], "videos"),
        (["--only", "official"], "only"),
        (["device=gpu"], "device"),
        (["hiera_tiny_224", "--peers", "only=resnet_50"], "resnet50"),
    ],
)
def test_mistakes_end_with_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2
    assert message in err
    assert not out


def test_dry_run_lists_what_would_be_measured(run, tmp_path):
    line = ("hiera_tiny_224", "--dry-run", "work=[inference]", "batch_sizes=[1,8]")
    code, out, _ = run(*line, "--output-dir", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert code == 0
    listed = json.loads(out)
    assert listed["models"] == ["hiera_tiny_224"]
    assert [setting["batch_size"] for setting in listed["settings"]] == [1, 8, 1, 8]
    code, out, _ = run("hiera_tiny_224", "--dry-run", "--peers", "--only", "resn")
    assert json.loads(out)["models"] == ["hiera_tiny_224", "resnet50"]
    code, out, _ = run("hiera_tiny_16x224", "--dry-run", "--peers", "--only", "mvit_v2_l")
    assert json.loads(out)["models"][1:] == ["mvit_v2_l_16x4", "mvit_v2_l_40x3"]
