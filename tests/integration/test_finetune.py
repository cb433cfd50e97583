"""`finetune`: its options do what they say, on tiny videos."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from hiera_video.models.hiera import Hiera
from hiera_video.models.pretrained import create_model, load_model
from hiera_video.models.saving import save_model

HEAD = {"head.projection.weight", "head.projection.bias"}


def state_of(run_dir):
    return load_file(run_dir / "weights" / "model.safetensors")


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def untrained(commands, tmp_path_factory):
    """A weights folder with the values that a run of seed 0 starts from."""
    config = yaml.safe_load((commands.toy / "base.yaml").read_text())["model"]
    torch.manual_seed(0)
    model = create_model(
        config["name"], num_classes=2, num_frames=4, image_size=32, **config["overrides"]
    )
    folder = tmp_path_factory.mktemp("untrained") / "weights"
    save_model(folder, model, class_names=["left", "right"])
    return folder


def test_the_run_folder(commands, tmp_path, lines_of):
    val = commands.toy / "val.csv"
    result = commands.train(tmp_path, f"data.val={val}", "train.evaluate_every=1")
    assert result.out == ""  # results on stdout, logs on stderr
    names = {path.name for path in tmp_path.iterdir()} - {"tb"}
    assert names == {
        "config.yaml",
        "run.json",
        "train.log",
        "metrics.jsonl",
        "checkpoints",
        "weights",
        ".lock",
    }
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 10))
    assert [line["step"] for line in lines if line["kind"] == "val"] == [3, 6, 9]
    assert all(line["decoded"] == 7 for line in lines if line["kind"] == "val")
    log = (tmp_path / "train.log").read_text()
    last = "(the last of each pass: 2 videos)"  # 10 = 4 + 4 + 2
    assert f"9 steps of 4 videos x 1 clip = 4 clips {last}: 1 process x 1 part x 4 videos" in log
    config = json.loads((tmp_path / "weights" / "config.json").read_text())
    assert config["class_names"] == ["left", "right"]
    assert config["clips"]["sampling_rate"] == 2
    model, _ = load_model(tmp_path, kind="classifier")
    assert model.input_size == (4, 32, 32)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["data"]["train"] == str(commands.toy / "train.csv")
    assert (run["data"]["videos"], run["data"]["classes"]) == (10, 2)
    (started,) = run["starts"]
    assert started["processes"] == 1


def test_it_learns_which_way_the_square_moves(commands, tmp_path, lines_of):
    """Clips whose frames alone tell nothing; the network must use time."""
    train = commands.toy / "train.csv"
    commands.train(
        tmp_path,
        f"data.val={train}",
        "train.epochs=60",
        "train.global_batch_size=10",
        "train.checkpoint_every=100",
        "optim.lr=2.0e-3",
        "model.overrides.embed_dim=16",
        "clips.sampling_rate=4",
        "augment.label_smoothing=0",
    )
    assert lines_of(tmp_path / "metrics.jsonl")[-1]["top1"] == 1.0


def test_json_says_where_the_weights_are(commands, tmp_path):
    result = commands.train(tmp_path, "train.epochs=1", "--json")
    counts = {"read": 10, "failed": 0}
    assert json.loads(result.out) == {"steps": 3, "weights": str(tmp_path / "weights"), **counts}


def test_dry_run_does_nothing(commands, tmp_path):
    result = commands.run(*commands.finetune(tmp_path / "run", "--dry-run"))
    assert result.code == 0
    assert "10 training videos of 2 classes" in result.out
    assert "9 steps of 4 videos" in result.out
    assert not (tmp_path / "run").exists()
    wrong = ("--dry-run", "train.accumulation_steps=3")
    assert commands.run(*commands.finetune(tmp_path / "run", *wrong)).code == 2


def test_the_seed_decides_everything(commands, untrained, tmp_path, weights_of):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(123)  # whatever the state of the process
        commands.train(tmp_path / name, f"train.seed={seed}", "train.epochs=1")
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    assert weights_of(tmp_path / "a") != weights_of(tmp_path / "c")
    commands.train(tmp_path / "d", "train.epochs=0.1", "optim.lr=1e-30", "optim.final_lr=0")
    assert not changed(load_file(untrained / "model.safetensors"), state_of(tmp_path / "d"))


@pytest.mark.parametrize(
    ("accumulation", "batch", "steps"), [(2, 4, 3), (4, 8, 2), (4, 12, 1), (16, 16, 1)]
)
def test_a_partial_last_group_still_steps(
    commands, tmp_path, lines_of, untrained, accumulation, batch, steps
):
    """Ten videos; with 16 parts there are more parts in a step than videos in an epoch."""
    overrides = (f"train.accumulation_steps={accumulation}", f"train.global_batch_size={batch}")
    commands.train(tmp_path, *overrides, "train.epochs=1")
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert len(lines) == steps
    assert sum(line["num_clips"] for line in lines) == 10
    assert changed(load_file(untrained / "model.safetensors"), state_of(tmp_path))


def test_a_linear_probe_changes_head_and_norm_only(commands, untrained, tmp_path):
    commands.train(tmp_path, f"model.init={untrained}", "train.train_only=head")
    learnt = changed(load_file(untrained / "model.safetensors"), state_of(tmp_path))
    assert learnt == HEAD | {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("freeze_stages", [0, 1, 3])
def test_frozen_stages_do_not_change(commands, untrained, tmp_path, freeze_stages):
    overrides = (f"model.init={untrained}", f"train.freeze_stages={freeze_stages}")
    commands.train(tmp_path, *overrides, "train.epochs=1")
    before = load_file(untrained / "model.safetensors")
    learnt = changed(before, state_of(tmp_path))
    frozen = tuple(f"blocks.{i}." for i in range(freeze_stages))  # one block a stage
    frozen = (*frozen, "patch_embed.", "pos_embed") if freeze_stages else ("nothing",)
    assert learnt == {name for name in before if not name.startswith(frozen)}


def test_init_from_folders_and_mae_weights(commands, untrained, trained, tmp_path):
    start = ("train.epochs=0.1", "optim.lr=1e-30", "optim.final_lr=0")  # nothing is learnt
    trained_state = state_of(trained)
    for name, init in (("a", trained), ("b", trained / "weights")):
        result = commands.train(tmp_path / name, f"model.init={init}", *start)
        assert "loaded" in result.err
        assert not changed(trained_state, state_of(tmp_path / name))

    mae = {name: value for name, value in trained_state.items() if name not in HEAD}
    mae |= {"mask_token": torch.zeros(1, 1, 8), "decoder_norm.weight": torch.zeros(8)}
    mae["encoder_norm.weight"] = mae.pop("norm.weight")
    mae["encoder_norm.bias"] = mae.pop("norm.bias")
    torch.save({"model_state": mae, "epoch": 3}, tmp_path / "mae.pth")
    result = commands.train(tmp_path / "c", f"model.init={tmp_path / 'mae.pth'}", *start)
    assert changed(trained_state, state_of(tmp_path / "c")) <= HEAD
    for part in ("reinitialised (2): head.projection", "dropped (2): mask_token", "encoder_norm"):
        assert part in (tmp_path / "c" / "train.log").read_text()


def test_init_with_another_class_count_starts_a_fresh_head(commands, trained, list_of, tmp_path):
    rows = [(commands.toy / f"train_{i}.mp4", i % 3) for i in range(6)]
    train = list_of(tmp_path / "train.csv", rows)
    start = ("train.epochs=0.1", "optim.lr=1e-30", "optim.final_lr=0")
    result = commands.train(
        tmp_path / "run", f"data.train={train}", f"model.init={trained}", *start
    )
    assert "reinitialised (2): head.projection.weight, head.projection.bias" in result.err
    state, before = state_of(tmp_path / "run"), state_of(trained)
    assert state["head.projection.weight"].shape[0] == 3
    assert all(torch.equal(state[name], before[name]) for name in before.keys() - HEAD)


def test_init_with_other_classes_of_the_same_count_starts_a_fresh_head(
    commands, trained, list_of, tmp_path
):
    start = (f"model.init={trained}", "train.epochs=0.1", "optim.lr=1e-30", "optim.final_lr=0")
    rows = [(commands.toy / f"train_{i}.mp4", ("up", "down")[i % 2]) for i in range(4)]
    train = list_of(tmp_path / "train.csv", rows, "path,class_name")
    result = commands.train(tmp_path / "run", f"data.train={train}", *start)
    result.reports(str(trained), "has other classes: the classifier starts with random weights")
    assert changed(state_of(trained), state_of(tmp_path / "run")) == HEAD
    config = json.loads((tmp_path / "run" / "weights" / "config.json").read_text())
    assert sorted(config["class_names"]) == ["down", "up"]


def test_validation_videos_without_labels_are_refused_at_the_start(commands, tmp_path):
    (tmp_path / "val.txt").write_text(f"{commands.toy / 'val_0.mp4'}\n")
    for options in ((), ("--dry-run",)):
        result = commands.run(
            *commands.finetune(tmp_path / "run", f"data.val={tmp_path / 'val.txt'}", *options)
        )
        assert result.code == 1
        result.reports("val.txt: no label for 1 video, for example", "val_0.mp4")
    assert not (tmp_path / "run").exists()


def test_several_labels_a_video(commands, list_of, tmp_path, lines_of):
    labels = ["moving;right", "moving", "right;moving", "still"]
    rows = [(commands.toy / f"train_{i}.mp4", labels[i % 4]) for i in range(8)]
    train = list_of(tmp_path / "train.csv", rows, "path,labels")
    run_dir = tmp_path / "run"
    commands.train(run_dir, f"data.train={train}", f"data.val={train}", "data.multi_label=true")
    *steps, val = lines_of(run_dir / "metrics.jsonl")
    assert 0 < val["mean_average_precision"] <= 1
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=0.02)  # BCE, mean over classes
    result = commands.run(
        "evaluate", f"checkpoint={run_dir}", f"data.val={train}", "--json", "device=cpu"
    )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert 0 < report["video"]["mean_average_precision"] <= 1
    assert "top1" not in report["video"]
    saved = np.load(run_dir / "eval" / "scores.npz")
    assert saved["labels"].tolist() == ["0;1", "0", "0;1", "2"] * 2
    assert np.all((saved["scores"] > 0) & (saved["scores"] < 1))
    result = commands.run("predict", f"checkpoint={run_dir}", rows[0][0], "--json", "device=cpu")
    by_class = {c["class"]: c["probability"] for c in json.loads(result.out)["classes"]}
    for name, score in zip(saved["class_names"], saved["scores"][0].mean(axis=0), strict=True):
        assert by_class[name] == pytest.approx(score, abs=1e-5)


def test_several_labels_need_the_option(commands, list_of, tmp_path):
    train = list_of(tmp_path / "train.csv", [(commands.toy / "train_0.mp4", "a;b")])
    result = commands.run(*commands.finetune(tmp_path / "run", f"data.train={train}"))
    assert result.code == 1
    result.reports("train.csv:2", "2 labels", "multi_label")


def test_images(commands, tmp_path, lines_of):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, colour in (("dark", 60), ("light", 200)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.normal(colour, 20, (40, 50, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    run_dir = tmp_path / "run"
    commands.train(
        run_dir,
        "model.name=hiera_tiny_224",
        "model.num_frames=1",
        f"data.train={tmp_path / 'train'}",
        f"data.val={tmp_path / 'val'}",
        "train.epochs=30",
        "train.checkpoint_every=100",
        "optim.lr=2.0e-3",
        "views.num_clips=1",
    )
    assert lines_of(run_dir / "metrics.jsonl")[-1]["top1"] == 1.0
    model, card = load_model(run_dir, kind="classifier")
    assert model.input_size == (1, 32, 32)
    assert card.class_names == ("dark", "light")
    result = commands.run("evaluate", f"checkpoint={run_dir}", f"data.val={tmp_path / 'val'}")
    assert result.code == 0, result.err
    report = json.loads((run_dir / "eval" / "report.json").read_text())
    assert report["video"]["top1"] == 1.0
    result = commands.run("predict", f"checkpoint={run_dir}", tmp_path / "val" / "dark", "--json")
    best = [json.loads(line)["classes"][0]["class"] for line in result.out.splitlines()]
    assert best == ["dark"] * 4


def test_a_video_model_is_refused_two_frames_of_an_image_model(commands, tmp_path):
    result = commands.run(*commands.finetune(tmp_path, "model.name=hiera_tiny_224"))
    assert result.code == 2
    result.reports("num_frames is 4", "image model")


@pytest.mark.parametrize(
    "overrides",
    [
        ("clips.sampling=segments", "views.num_clips=2"),
        ("clips.sampling=segments", "views.num_clips=1"),
        ("clips.target_fps=10",),
        ("clips.spacing=strided", "clips.end_policy=wrap"),
        ("train.precision=bf16",),
        ("optim.optimizer=sgd", "optim.layer_decay=0.7", "optim.pos_embed_lr_scale=0.5"),
        ("data.balanced=true",),
        ("train.class_weights=balanced",),
        ("model.grad_checkpointing=true", "train.num_repeats=2"),
        ("train.ema_decay=0.5",),
        ("model.overrides.mask_unit=[2,8,8]",),
    ],
    ids=lambda overrides: "+".join(o.partition("=")[0] for o in overrides),
)
def test_options_that_train_and_evaluate(commands, tmp_path, lines_of, overrides):
    val = commands.toy / "val.csv"
    commands.train(tmp_path, *overrides, f"data.val={val}", "train.epochs=2")
    *steps, last = lines_of(tmp_path / "metrics.jsonl")
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in steps)
    assert last["decoded"] == 7
    result = commands.run("evaluate", f"checkpoint={tmp_path}", f"data.val={val}", "--json")
    report = json.loads(result.out)
    for override in overrides:  # the clips of training are those of evaluation
        key, _, value = override.partition("=")
        if key.startswith("clips."):
            assert report[key.removeprefix("clips.")] == yaml.safe_load(value)
        if key == "views.num_clips":
            assert report["views"]["num_clips"] == int(value)


def test_bf16_keeps_weights_in_float32(commands, tmp_path):
    commands.train(tmp_path, "train.precision=bf16", "train.epochs=1")
    assert {value.dtype for value in state_of(tmp_path).values()} == {torch.float32}


def test_class_weights_make_up_for_rare_classes(commands, list_of, tmp_path, lines_of):
    """With one class four times as frequent; the first loss is log 2 with and without weights."""
    rows = [(commands.toy / f"train_{i}.mp4", int(i == 1)) for i in range(5)]
    train = list_of(tmp_path / "train.csv", rows)
    overrides = (
        f"data.train={train}",
        "train.global_batch_size=5",
        "train.epochs=1",
        "augment.label_smoothing=0",
        "optim.optimizer=sgd",
        "optim.lr=0.1",
    )
    losses, pulls = [], []
    for weights in ("none", "balanced"):
        run_dir = tmp_path / weights
        commands.train(run_dir, *overrides, f"train.class_weights={weights}")
        (line,) = lines_of(run_dir / "metrics.jsonl")
        losses.append(line["loss"])
        bias = state_of(run_dir)["head.projection.bias"]  # equal for both classes before
        pulls.append(float(bias[0] - bias[1]))
    assert losses == pytest.approx([np.log(2)] * 2, abs=0.01)
    assert pulls[0] > 1e-3
    assert abs(pulls[1]) < 0.01 * pulls[0]  # towards the frequent class, without weights only


def test_non_finite_steps_end_training(commands, tmp_path, lines_of):
    result = commands.run(
        *commands.finetune(
            tmp_path,
            "optim.lr=1.0e+30",
            "optim.clip_grad=null",
            "train.epochs=9",
            "train.max_nonfinite_steps=4",
        )
    )
    assert result.code == 1
    result.reports("4 steps in a row had a non-finite gradient")
    skipped = [line for line in result.err.splitlines() if " skipped: loss" in line]
    assert len(skipped) == 4
    assert all("train_" in line for line in skipped)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (("optim.lr=1.0e+10", "train.epochs=2.4"), ["7 of 8 steps were skipped"]),
        (("optim.lr=1.0e+10", "train.epochs=0.1", "VAL"), ["no scores of the validation videos"]),
        (
            ("optim.lr=3.4e+38", "optim.weight_decay=1", "train.epochs=0.1", "train.ema_decay=0.5"),
            ["weights are not finite after step 1"],
        ),
    ],
    ids=["steps", "scores", "weights"],
)
def test_a_run_that_diverges_is_no_success(commands, tmp_path, lines_of, overrides, parts):
    """Neither at first nor when it is started again."""
    val = f"data.val={commands.toy / 'val.csv'}"
    arguments = commands.finetune(tmp_path, *(val if o == "VAL" else o for o in overrides))
    for _ in range(2):
        result = commands.run(*arguments, "--json")
        assert (result.code, result.out) == (1, "")
        result.reports(*parts, "lower optim.lr or train with train.precision=fp32")
        assert not (tmp_path / "weights").exists()
        assert not (tmp_path / "failures.jsonl").exists()
    assert {line["kind"] for line in lines_of(tmp_path / "metrics.jsonl")} == {"train"}


def test_what_the_shipped_model_is_does_not_leak(trained):
    """The exported weights are a plain model: no wrapper's names."""
    model, _ = load_model(trained, kind="classifier")
    assert isinstance(model, Hiera)
    assert set(state_of(trained)) == set(dict(model.named_parameters()))


def test_validation_is_not_compiled(commands, tmp_path, monkeypatch, unchecked_shapes):
    """Which would take another minute, of a model in evaluation mode."""
    compile_, has_gradients = torch.compile, []

    def backend(graph, inputs):
        has_gradients.append(torch.is_grad_enabled())
        return graph

    def compile(model, **how):
        model._compiled_call_impl = compile_(model._call_impl, backend=backend, **how)

    monkeypatch.setattr("torch.nn.Module.compile", compile)
    monkeypatch.setattr("hiera_video.runtime.distributed.check_compiler", lambda *_: None)
    val = f"data.val={commands.toy / 'val.csv'}"
    arguments = commands.finetune(tmp_path / "run", val, "train.epochs=1", "train.compile=true")
    result = commands.run(*arguments)
    assert result.code == 0, result.err
    assert has_gradients
    assert all(has_gradients)


def test_a_run_without_a_checkpoint_says_that_it_begins_again(commands, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    result = commands.run(*commands.finetune(run, "train.epochs=1"))
    assert result.code == 0
    result.reports(f"{run} has no checkpoint yet: the run begins again")
