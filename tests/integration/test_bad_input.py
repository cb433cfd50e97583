"""Bad files and mistakes: skipped, counted and listed, or one clear line. Never a traceback."""

import json
from collections import Counter

import pytest

from hiera_video.commands import finetune
from tests.dying_decoder import open_with_a_defect
from tests.video.striped_video import make_audio, make_striped_video

FASTSTART = {"movflags": "+faststart"}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """Cause by path of six files that cannot be read (one of them is not there)."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n" * 100)
    cut = make_striped_video(folder / "cut.mp4", 30)
    cut.write_bytes(cut.read_bytes()[:-1500])
    no_frames = make_striped_video(folder / "zero seconds.mp4", 5, container_options=FASTSTART)
    data = no_frames.read_bytes()
    no_frames.write_bytes(data[: data.index(b"mdat") + 4])
    return {
        str(folder / "nowhere.mp4"): "missing",
        str(folder / "empty.mp4"): "empty",
        str(folder / "text.mp4"): "not_a_video",
        str(cut): "truncated",
        str(no_frames): "no_frames",
        str(make_audio(folder / "ton spur ö.mp4")): "no_video_stream",
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_skips_counts_and_lists_them(
    commands, list_of, lines_of, bad_files, tmp_path, num_workers
):
    good = [(commands.toy / f"train_{i}.mp4", i % 2) for i in range(6)]
    train = list_of(tmp_path / "train.csv", [*good, *((path, 0) for path in bad_files)])
    run_dir = tmp_path / "run"
    result = commands.run(
        *commands.finetune(
            run_dir,
            *(f"data.train={train}", f"data.num_workers={num_workers}", "train.epochs=2"),
            "data.max_failed_frac=0.5",
            "--json",
        )
    )
    assert result.code == 3
    assert "Traceback" not in result.err
    counts = {"read": 6, "failed": 6}
    assert json.loads(result.out) == {"steps": 6, "weights": str(run_dir / "weights"), **counts}
    assert f"6 of 12 records could not be used, see {run_dir / 'failures.jsonl'}" in result.err
    failed = lines_of(run_dir / "failures.jsonl")
    assert {line["path"]: line["cause"] for line in failed} == bad_files
    assert Counter(line["name"] for line in failed) == Counter(list(bad_files) * 2)  # 2 epochs
    for line in failed:
        assert line["message"].startswith(line["path"] + ": ")
        assert f"skipped {line['message']}" in result.err
    clips = [line["num_clips"] for line in lines_of(run_dir / "metrics.jsonl")]
    assert sum(clips) == 2 * 6
    assert (run_dir / "weights" / "model.safetensors").exists()


def test_broken_time_stamps_are_one_videos_failure(commands, list_of, lines_of, tmp_path):
    pts = [40 * n + (500_000_000 if n >= 10 else 0) for n in range(20)]  # milliseconds
    jump = make_striped_video(tmp_path / "jump.mkv", 20, pts=pts)
    rows = [*((commands.toy / f"train_{i}.mp4", i % 2) for i in range(4)), (jump, 1)]
    train = list_of(tmp_path / "train.csv", rows)
    overrides = (f"data.train={train}", "clips.target_fps=25", "train.epochs=1")
    result = commands.run(*commands.finetune(tmp_path / "run", *overrides))
    assert result.code == 3
    assert "Traceback" not in result.err
    (failed,) = lines_of(tmp_path / "run" / "failures.jsonl")
    assert (failed["path"], failed["cause"]) == (str(jump), "timestamps")
    assert sum(line["num_clips"] for line in lines_of(tmp_path / "run" / "metrics.jsonl")) == 4


def test_evaluation_names_them(commands, trained, list_of, bad_files, tmp_path):
    rows = [(commands.toy / "val_0.mp4", 0), *((path, 1) for path in bad_files)]
    val = list_of(tmp_path / "val.csv", rows)
    result = commands.run(
        "evaluate", f"checkpoint={trained}", f"data.val={val}", f"output_dir={tmp_path}", "--json"
    )
    assert result.code == 3
    report = json.loads(result.out)
    assert {failure["path"]: failure["cause"] for failure in report["failed"]} == bad_files
    assert [failure["path"] for failure in report["failed"]] == list(bad_files)  # as listed
    assert report["video_failed_as_wrong"]["top1"] == pytest.approx(report["video"]["top1"] / 7)


def test_prediction_names_them(commands, trained, bad_files):
    there = [path for path, cause in bad_files.items() if cause != "missing"]
    result = commands.run("predict", f"checkpoint={trained}", "device=cpu", *there)
    assert result.code == 1
    lines = result.out.splitlines()
    assert len(lines) == len(there)
    assert {line.split(": ")[0] for line in lines} == set(there)


def test_one_bad_video_of_a_small_list_is_named_once_and_survived(
    commands, list_of, bad_files, tmp_path
):
    bad = next(iter(bad_files))
    rows = [(commands.toy / f"train_{i}.mp4", i % 2) for i in range(10)]
    train = list_of(tmp_path / "train.csv", [*rows, (bad, 1)])
    overrides = (f"data.train={train}", "train.global_batch_size=11", "train.epochs=20")
    result = commands.run(*commands.finetune(tmp_path / "run", *overrides))
    assert result.code == 3
    assert result.err.count("skipped " + bad) == 1
    lines = (tmp_path / "run" / "failures.jsonl").read_text().splitlines()
    assert len(lines) == 20


def test_too_many_bad_videos_stop_training_each_time(commands, list_of, bad_files, tmp_path):
    """Each counts once, also over the starts of a run."""
    rows = [(commands.toy / f"train_{i}.mp4", i % 2) for i in range(5)]
    train = list_of(tmp_path / "train.csv", [*rows, *((path, 1) for path in bad_files)])
    overrides = (f"data.train={train}", "train.global_batch_size=4", "train.epochs=12")
    every = "train.checkpoint_every=0.3"
    for _ in range(2):
        result = commands.run(*commands.finetune(tmp_path / "run", *overrides, every))
        assert result.code == 1
        result.reports("6 of the first 11 records of 11 cannot", "raise data.max_failed_frac")
    overrides = (*overrides, "data.max_failed_frac=0.6")
    assert commands.run(*commands.finetune(tmp_path / "other", *overrides)).code == 3


def test_a_list_of_which_nothing_can_be_read_is_an_error(commands, list_of, bad_files, tmp_path):
    train = list_of(tmp_path / "train.csv", [(path, i % 2) for i, path in enumerate(bad_files)][:3])
    overrides = (f"data.train={train}", "train.global_batch_size=2", "train.epochs=4")
    result = commands.run(*commands.finetune(tmp_path / "run", *overrides))
    assert result.code == 1
    result.reports("3 of the first 3 records of 3 cannot be read")
    assert not (tmp_path / "run" / "weights").exists()
    # Not even one step, of a longer list.
    result = commands.run(*commands.finetune(tmp_path / "short", *overrides, "train.epochs=1"))
    assert result.code == 1


def test_names_with_spaces_and_other_scripts(commands, list_of, tmp_path):
    folder = tmp_path / "Ordner mit Ümläut, 動画"
    folder.mkdir()
    names = ["a b.mp4", "ç,d.mp4", "日本 語.mp4", "e=f.mp4"]
    for i, name in enumerate(names):
        (folder / name).write_bytes((commands.toy / f"train_{i}.mp4").read_bytes())
    train = list_of(folder / "liste é.csv", [(n, i % 2) for i, n in enumerate(names)])
    commands.train(folder / "run", f"data.train={train}", f"data.val={train}")
    plain = folder / "ohne Kopf.txt"
    plain.write_text("".join(f"{n} {i % 2}\n" for i, n in enumerate(names)), encoding="utf-8")
    result = commands.run(
        "evaluate", f"checkpoint={folder / 'run'}", f"data.val={plain}", "device=cpu"
    )
    assert result.code == 0, result.err
    rows = (folder / "run" / "eval" / "predictions.csv").read_text(encoding="utf-8")
    assert all(name in rows for name in names)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("b.mp4", ["list.txt:2", "has no label"]),
        ("b.mp4 1;0", ["list.txt:2", "2 labels"]),
        ("b.mp4 -1", ["list.txt:2", "class id -1"]),
        ("b.mp4 one", ["list.txt:2", "'one'"]),
    ],
)
def test_a_wrong_line_is_named(commands, tmp_path, line, parts):
    for name in "ab":
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "list.txt").write_text(f"a.mp4 0\n{line}\n")
    result = commands.run(
        *commands.finetune(tmp_path / "run", f"data.train={tmp_path / 'list.txt'}")
    )
    assert result.code == 1
    result.reports(*parts)
    assert not (tmp_path / "run").exists()


def test_a_label_beyond_the_class_names(commands, tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "list.txt").write_text("a.mp4 2\n")
    (tmp_path / "names.txt").write_text("left\nright\n")
    result = commands.run(
        *commands.finetune(
            tmp_path / "run",
            f"data.train={tmp_path / 'list.txt'}",
            f"data.class_names={tmp_path / 'names.txt'}",
        )
    )
    assert result.code == 1
    result.reports("list.txt:1", "class id 2 must be 0 to 1")


@pytest.mark.parametrize(
    ("override", "code", "parts"),
    [
        ("model.image_size=72", 2, ["(4, 72, 72)", "(4, 64, 64)"]),
        ("model.num_frames=5", 2, ["(5, 32, 32)", "(4, 32, 32)"]),
        (
            "model.name=hiera_bas_16x224",
            2,
            ["model.name is 'hiera_bas_16x224'", "hiera_base_16x224"],
        ),
        (
            "model.overrides.embed_dims=8",
            2,
            ["embed_dims is unknown", "'model.overrides.embed_dim'"],
        ),
        (
            "train.global_batch_size=3 train.accumulation_steps=2",
            2,
            ["global_batch_size=3", "is 4"],
        ),
        ("train.epoch=3", 2, ["train.epoch is unknown", "'train.epochs'"]),
        ("trian.epochs=3", 2, ["trian", "train"]),
        ("train.epochs=many", 2, ["epochs", "many"]),
        ("train.epochs=-1", 2, ["train.epochs", "-1"]),
        ("optim.optimizer=adam", 2, ["optimizer", "adam", "adamw"]),
        ("data.train=TOY/nowhere.csv", 2, ["data.train is", "nowhere.csv': there is no such"]),
        ("data.train=TOY/train_0.mp4", 1, ["train_0.mp4: a single video"]),
        ("model.init=TOY/nowhere.pth", 2, ["model.init is", "nowhere.pth': there is no such"]),
        ("model.init=TOY/text.mp4", 1, ["text.mp4 is a text that begins with"]),
        ("model.init=TOY", 2, ["is not a weights folder: it has no config.json"]),
        ("train.freeze_stages=5", 2, ["train.freeze_stages is 5", "from 0 to 4"]),
        ("device=cudo", 2, ["device is 'cudo'", "cuda:N"]),
        ("run_dir=TOY/text.mp4/run", 2, ["text.mp4/run", "text.mp4 is a file; name a folder"]),
    ],
)
def test_a_mistake_is_reported_in_one_line(commands, tmp_path, override, code, parts):
    overrides = override.replace("TOY", str(commands.toy)).split(" ")
    result = commands.run(*commands.finetune(tmp_path / "run", *overrides))
    assert result.code == code, result.err
    result.reports(*parts)


def test_a_checkpoint_of_another_variant(commands, trained, tmp_path):
    overrides = (f"model.init={trained}", "model.overrides.embed_dim=16")
    result = commands.run(*commands.finetune(tmp_path, *overrides))
    assert result.code == 1
    result.reports(str(trained), "embed_dim 8, not 16")
    for command in ("evaluate", "predict"):
        data = {"evaluate": f"data.val={commands.toy / 'val.csv'}"}
        data = data.get(command, commands.toy / "val_0.mp4")
        result = commands.run(command, f"checkpoint={commands.toy}", data)
        assert result.code == 2
        result.reports(f"{commands.toy} is not a weights folder")


def test_a_damaged_config_json_is_named(commands, trained, tmp_path):
    (tmp_path / "config.json").write_text('{"format": "hiera_')
    result = commands.run("predict", f"checkpoint={tmp_path}", "x.mp4")
    assert result.code == 1
    result.reports("config.json", "not JSON")


def test_an_error_in_a_decoding_process_ends_the_command(commands, monkeypatch, tmp_path):
    monkeypatch.setattr(finetune, "opener", lambda *_: open_with_a_defect)
    arguments = commands.finetune(tmp_path, "data.num_workers=2")
    with pytest.raises(ZeroDivisionError, match="a defect of ours") as caught:
        commands.run(*arguments)
    assert "open_with_a_defect" in caught.value.__notes__[0]


def test_an_error_beside_busy_decoding_processes_ends_the_command(commands, tmp_path):
    arguments = commands.finetune(
        tmp_path,
        *("optim.lr=1.0e+30", "optim.clip_grad=null", "train.max_nonfinite_steps=2"),
        *("train.epochs=50", "data.num_workers=2"),
    )
    result = commands.finish(commands.start(*arguments), timeout_sec=60)
    assert result.code == 1
    result.reports("2 steps in a row had a non-finite gradient")


def test_a_device_or_precision_that_is_not_there_is_refused_before_weights_are_loaded(
    commands, trained, toy, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ("predict", next(toy.glob("**/*.mp4")), f"checkpoint={trained}")
    for wrong, reason in {
        ("device=cuda",): "device is 'cuda': torch finds no CUDA device",
        ("device=cpu", "precision=fp16"): "precision is fp16: torch has no fast float16",
    }.items():
        result = commands.run(*arguments, *wrong)
        assert result.code == 2
        result.reports(reason)
        assert "loaded" not in result.err


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("train.precision=fp16", "train.precision is fp16: torch has no fast float16 products"),
        (
            "model.grad_checkpointing_stages=2",
            "model.grad_checkpointing_stages is 2; it must be null without grad_checkpointing=true",
        ),
    ],
)
def test_settings_of_training_that_cannot_be(commands, tmp_path, wrong, reason):
    result = commands.run(*commands.finetune(tmp_path / "run"), wrong)
    assert result.code == 2
    result.reports(reason)
    assert not (tmp_path / "run").exists()


def test_that_a_run_is_compiled_is_logged(commands, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.Module.compile", lambda *_, **__: None)
    monkeypatch.setattr("hiera_video.runtime.distributed.check_compiler", lambda *_: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    arguments = commands.finetune(tmp_path / "run", "train.epochs=1", "train.compile=true")
    result = commands.run(*arguments)
    assert result.code == 0
    result.reports("compiling the model in the first step", f"finds it in {tmp_path / 'cache'}")


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])  # which always fails
def test_compilation_without_a_compiler(commands, monkeypatch, tmp_path, toy, compiler):
    """It is refused before anything is read or written."""
    monkeypatch.setenv("CXX", compiler)
    video, run = next(toy.glob("**/*.mp4")), tmp_path / "run"
    (tmp_path / "unread.pt").write_bytes(b"no weights")
    unread = (f"checkpoint={tmp_path / 'unread.pt'}", "device=cpu")
    for key, arguments in (
        ("train.compile", commands.finetune(run)),
        ("compile", ("predict", video, *unread)),
        ("compile", ("evaluate", "--dry-run", f"data.val={toy}", f"output_dir={run}", *unread)),
        ("compile", ("extract", video, f"output_dir={run}", *unread)),
    ):
        result = commands.run(*arguments, f"{key}=true")
        assert result.code == 2
        result.reports(f"{key} is true: torch.compile needs a C++", f"or write {key}=false")
    assert not run.exists()
    result = commands.run("benchmark", "hiera_tiny_224", "execution=[eager, compiled]")
    assert result.code == 2
    reason = "execution is eager, compiled: torch.compile needs a C++ compiler"
    result.reports(reason, "or write execution=[eager]")
