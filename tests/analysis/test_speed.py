"""Speed and memory: what is reported, not how fast this machine is."""

import multiprocessing
import statistics
import sys
import time
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.analysis import speed as benchmark
from hiera_video.analysis.accuracy_plot import plot_accuracy_and_speed
from hiera_video.analysis.claims import compare_claims
from hiera_video.analysis.complexity import count_model
from hiera_video.analysis.peers import Dense, Subject, dense, ours, peers
from hiera_video.analysis.speed import Setting, measure
from hiera_video.models.inference import InferenceModel
from hiera_video.models.pretrained import create_autoencoder, create_model

pytestmark = pytest.mark.usefixtures("unchecked_shapes")  # faster; FLOPs are counted too
CPU = Setting("inference", "fp32", "eager", 4, "cpu")


class Sleeper(nn.Module):
    """A linear layer that takes its time."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds = seconds
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        if x.device.type != "meta":
            time.sleep(self.seconds)
        return self.linear(x.flatten(1))


class Hungry(Sleeper):
    """Takes at most `most` clips."""

    def __init__(self, most, error):
        super().__init__()
        self.most, self.error = most, error

    def forward(self, x):
        if len(x) > self.most and not x.is_meta:
            raise self.error
        return super().forward(x)


class Tall(Sleeper):
    """Takes 200 MiB for a moment."""

    def forward(self, x):
        torch.ones(50, 2**20)
        return super().forward(x)


def subject(name, build, **options):
    return Subject(name, "here", build, (2, 3), **options)


def measured(subjects, setting=CPU, rounds=2):
    rows, failed = measure(subjects, setting, rounds=rounds, peak_tflops=0.5)
    assert all(failure["setting"] == str(setting) for failure in failed)
    return {row["model"]: row for row in rows}, {f["model"]: f["cause"] for f in failed}


@pytest.fixture
def quick(monkeypatch):
    """Rounds of one call, and no process to measure memory in."""
    monkeypatch.setattr(benchmark, "MIN_ROUND_SEC", 0.0001)
    monkeypatch.setattr(benchmark, "peak_in_child", lambda *_: 0.25)


def test_clips_per_second_and_utilisation(quick, monkeypatch):
    seconds = iter((0.5, 1.0, 0.4, 2.0, 9.0, 0.5))
    monkeypatch.setattr(benchmark, "seconds_a_call", lambda *_: next(seconds))
    monkeypatch.setattr(benchmark, "flops_of_clip", lambda *_: 10**10)
    results, _ = measured([subject("a", Sleeper), subject("b", Sleeper)], rounds=3)
    assert [row["clips_per_sec"] for row in results.values()] == [8, 4]
    assert [row["model_flops_utilisation"] for row in results.values()] == [0.16, 0.08]
    assert [row["ours_is"] for row in results.values()] == [1, 2]


def test_a_failure_in_a_later_round_affects_no_other_subject(quick):
    class Tires(Sleeper):
        calls = 0

        def forward(self, x):
            type(self).calls += x.device.type != "meta"
            if self.calls > 2:
                raise ValueError("tired")
            return super().forward(x)

    results, failed = measured([subject("a", Tires), subject("b", Sleeper)], rounds=3)
    assert list(results) == ["b"]
    assert failed == {"a": "ValueError: tired"}


def test_models_take_turns(quick):
    order = []

    class Recorder(Sleeper):
        def forward(self, x):
            if x.device.type != "meta":
                order.append(self.seconds)
            return super().forward(x)

    results, failed = measured(
        [subject("a", partial(Recorder, 0.01)), subject("b", partial(Recorder, 0.02))], rounds=3
    )
    assert order == [0.01, 0.02] * 4  # the first round warms up
    assert not failed
    assert len(results["a"]["seconds"]) == 3
    assert results["a"]["clips_per_sec"] == pytest.approx(400, rel=0.5)
    assert results["a"]["clips_per_sec"] > results["b"]["clips_per_sec"]
    assert results["a"]["flops"] == 4 * 2 * 6 * 5
    assert results["a"]["peak_gib"] == 0.25


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_reported(quick, caplog, error):
    subjects = [subject("small", partial(Hungry, 1, error)), subject("large", Sleeper)]
    results, failed = measured(subjects)
    sizes = {name: row["batch_size"] for name, row in results.items()}
    assert sizes == {"small": 1, "large": 4}
    assert results["small"]["flops"] == 2 * 6 * 5
    start = "small, inference, fp32, eager: out of memory, batch reduced to"
    assert caplog.messages == [f"{start} 2", f"{start} 1"]
    assert not failed


def test_what_cannot_be_measured_is_named_and_the_others_are_measured(quick):
    subjects = [
        subject("none", partial(Hungry, 0, MemoryError())),
        subject("broken", partial(Hungry, 0, ValueError("no such thing"))),
        subject("good", Sleeper),
    ]
    results, failed = measured(subjects)
    assert list(results) == ["good"]
    assert "one clip does not fit" in failed["none"]
    assert failed["broken"] == "ValueError: no such thing"


@cache
def flops_of_tiny():
    with torch.device("meta"):
        return count_model(create_model("hiera_tiny_224"))[""].flops


@pytest.mark.parametrize("work", ["inference", "finetuning", "pretraining"])
def test_ours_in_each_kind_of_work(quick, monkeypatch, work):
    monkeypatch.setattr(benchmark, "AUTOCAST", {"fp32": torch.bfloat16})
    small = ours("hiera_tiny_224")
    results, failed = measured([small], Setting(work, "fp32", "eager", 1, "cpu"), rounds=1)
    assert not failed
    forward = flops_of_tiny()
    if work == "pretraining":  # fewer tokens, and the decoder
        assert 0 < results[small.name]["flops"] != 3 * forward
    else:
        assert results[small.name]["flops"] == forward * (3 if work == "finetuning" else 1)


def test_inference_of_ours_is_that_of_the_commands(quick, monkeypatch):
    """From bytes, in a model of the type."""
    made = []

    class Spy(InferenceModel):
        def __post_init__(self):
            super().__post_init__()
            made.append(self)

    monkeypatch.setattr(benchmark, "InferenceModel", Spy)
    small = ours("hiera_tiny_224")
    small = replace(small, build=partial(small.build, image_size=64), clip=(3, 1, 64, 64))
    call = benchmark.prepare(small, Setting("inference", "bf16", "eager", 2, "cpu"))
    assert call().shape == (2, 1000)
    (model,) = made
    assert (model.precision, model.compile, model.batch_size) == ("bf16", False, 2)
    assert model.model.patch_embed.proj.weight.dtype == torch.bfloat16
    benchmark.prepare(small, Setting("finetuning", "bf16", "eager", 2, "cpu"))
    assert len(made) == 1


def test_a_subject_without_pretraining_is_left_out(quick):
    results, failed = measured(
        [subject("a", Sleeper)], Setting("pretraining", "fp32", "eager", 1, "cpu")
    )
    assert not results
    assert not failed


def test_peak_memory_is_that_of_one_call():
    if not benchmark.CLEAR_REFS.exists():
        pytest.skip("only Linux has it")
    assert 0.18 < benchmark.peak_in_child(subject("a", Tall), CPU) < 0.2 + 0.05


@pytest.fixture
def forked(monkeypatch):
    """Forks the process that measures memory, which saves it the imports."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(benchmark.multiprocessing, "get_context", lambda _: context)


def test_a_killed_process_counts_as_out_of_memory(forked):
    with pytest.raises(MemoryError):
        benchmark.peak_in_child(subject("a", Killed), CPU)


class Killed(Sleeper):
    def forward(self, x):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_of_an_unknown_device_is_measured(monkeypatch, precision):
    monkeypatch.setattr(benchmark, "MIN_ROUND_SEC", 0.0001)
    peak = benchmark.peak_tflops("cpu", precision)
    assert 0 < peak["tflops"] < 1000
    assert "measured" in peak["source"]


def test_the_peak_of_a_known_device_is_that_of_its_data_sheet(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    expected = {"tflops": 989.4, "source": "data sheet of H100 80GB HBM3"}
    assert benchmark.peak_tflops("cuda", "bf16") == expected


def test_other_deaths_of_the_process_are_no_lack_of_memory(forked):
    with pytest.raises(RuntimeError, match="ended with 7"):
        benchmark.peak_in_child(subject("a", Exits), CPU)
    with pytest.raises(ValueError, match="no such thing"):
        benchmark.peak_in_child(subject("a", partial(Hungry, 0, ValueError("no such thing"))), CPU)


class Exits(Sleeper):
    def forward(self, x):
        import os

        os._exit(7)


def test_another_implementation_is_counted_as_ours():
    """The official autoencoder indexes by masks, which the meta device cannot."""
    official = Subject("x", "hiera", _never, (3, 224, 224), None, "hiera_tiny_224", same_flops=True)
    for work in ("inference", "pretraining"):
        assert benchmark.flops_of_clip(official, work) == benchmark.flops_of_clip(
            ours("hiera_tiny_224"), work
        )


def _never():
    raise AssertionError


def test_unknown_variants_name_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'hiera_base_16x224'"):
        ours("hiera_bas_16x224")


@pytest.mark.parametrize("name", ["hiera_base_16x224", "hiera_tiny_224"])
def test_peers_are_of_the_same_data_and_take_their_clips(name):
    found, missing = peers([name])
    names = {s.name: s for s in found}
    image = name == "hiera_tiny_224"
    expected = {"vit_b_16", "swin_v2_b", "convnext_base", "resnet50", "mvitv2_large"}
    if not image:
        expected = {"mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b", "s3d", "r3d_18"}
        expected |= {"mvit_v2_l_16x4", "mvit_v2_l_40x3"}
    assert expected <= set(names)
    assert {s.library for s in found} | {"hiera"} | set(missing) >= {"torchvision"}
    dense = names.pop(f"{name} (dense)")
    assert [dense.does(work) for work in ("inference", "finetuning", "pretraining")] == [0, 0, 1]
    assert all(60 < s.top1 < 90 for s in names.values())
    assert all(s.clip[0] == 3 and len(s.clip) == (3 if image else 4) for s in names.values())
    small = names["resnet50" if image else "r3d_18"]
    assert benchmark.flops_of_clip(small, "inference") / 2e9 == pytest.approx(
        4.09 if image else 40.7, rel=0.01
    )


def test_libraries_that_cannot_be_imported_are_named(monkeypatch):
    for module in ("hiera", "torchvision", "pytorchvideo.models.hub"):
        monkeypatch.setitem(sys.modules, module, None)
    found, missing = peers(["hiera_base_16x224"])
    assert [subject.name for subject in found] == ["hiera_base_16x224 (dense)"]
    assert list(missing) == ["hiera-transformer", "torchvision", "pytorchvideo"]
    assert missing["hiera-transformer"] == "import of hiera halted; None in sys.modules"


@pytest.mark.parametrize(
    ("name", "parameters", "gflops"),
    [
        ("mvit_v2_l_16x4", 217.6e6, 377),  # MaskFeat, arXiv 2112.09133
        ("mvit_v2_l_40x3", 213.4e6, 2828),  # arXiv 2112.01526, with the released configuration
        ("mvitv2_large", 218.0e6, 43.9),  # timm's card of it
    ],
)
def test_mvit_v2_l_has_the_published_size(name, parameters, gflops):
    """FLOPs as published: multiply-adds, and 5 for each number that a LayerNorm takes."""
    variant = "hiera_tiny_224" if name == "mvitv2_large" else "hiera_base_16x224"
    (subject,) = (s for s in peers([variant])[0] if s.name == name)
    with torch.device("meta"):
        model = subject.build_for("inference").eval()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=1e-3)
    normed = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _, inputs, __: normed.append(inputs[0].numel()))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *subject.clip, device="meta"))
    counted = counter.get_total_flops() / 2e9 + 5 * sum(normed) / 1e9
    assert counted == pytest.approx(gflops, rel=3e-3)


def test_dense_pretraining_predicts_the_same_and_sees_no_hidden_pixels():
    torch.manual_seed(0)
    small = create_autoencoder("hiera_tiny_224", image_size=64, decoder_heads=2, decoder_depth=1)
    model = Dense(small)
    clips = torch.randn(2, 3, 1, 64, 64)
    kept = torch.tensor([[0, 3], [1, 2]])
    prediction = model(clips, kept)
    assert prediction.shape == model.targets(clips, kept).shape
    prediction.sum().backward()
    assert model.token.grad.abs().sum() > 0
    changed = clips.clone()
    changed[0, :, :, :28, 36:] += 1  # of unit 1, what no patch of another unit reaches
    assert torch.equal(model(changed, kept)[0], prediction[0])
    changed[0, :, :, :28, :28] += 1
    assert not torch.equal(model(changed, kept)[0], prediction[0])
    assert benchmark.flops_of_clip(dense("hiera_tiny_224"), "pretraining") > (
        benchmark.flops_of_clip(ours("hiera_tiny_224"), "pretraining")
    )


def test_the_time_of_the_first_call_is_reported(quick):
    class Compiles(Sleeper):
        calls = 0

        def forward(self, x):
            type(self).calls += not x.is_meta
            if self.calls == 1:
                time.sleep(0.2)
            return super().forward(x)

    results, _ = measured([subject("a", Compiles)])
    assert results["a"]["first_call_sec"] > 0.2 > statistics.median(results["a"]["seconds"])


def speed_row(model, speed, work="inference", **options):
    row = {"model": model, "clips_per_sec": speed, "work": work, "precision": "bf16"}
    return row | {"execution": "eager", "batch_size": 1} | options


def test_claims_of_the_article_beside_the_fastest_settings():
    rows = [
        speed_row("hiera_large_16x224", 100.0),
        speed_row("hiera_large_16x224", 240.0, batch_size=8, execution="compiled"),
        speed_row("hiera_large_16x224", 200.0, batch_size=32, execution="compiled"),
        speed_row("hiera_large_16x224 (official)", 50.0),
        speed_row("mvit_v2_l_16x4", 30.0),
        speed_row("hiera_large_16x224", 20.0, precision="fp32"),
        speed_row("hiera_large_16x224", 60.0, "pretraining"),
        speed_row("hiera_large_16x224 (dense)", 20.0, "pretraining"),
        speed_row("hiera_large_16x224", 9.0, "finetuning"),
        speed_row("r3d_18", 9.0),
    ]
    claims = compare_claims(rows)
    assert [(c["claim"], c["precision"], c["paper"], c["measured"]) for c in claims] == [
        ("inference, hiera_large_16x224", "bf16", "40.8 /s", "240 /s"),
        ("inference, hiera_large_16x224 (official)", "bf16", "40.8 /s", "50 /s"),
        ("inference, mvit_v2_l_16x4", "bf16", "20.5 /s", "30 /s"),
        (
            "inference, hiera_large_16x224 over mvit_v2_l_16x4",
            "bf16",
            "5.1x (table 1: 2.0x)",
            "8.00x",
        ),
        (
            "pretraining, hiera_large_16x224, sparse over dense",
            "bf16",
            "faster",
            "3.00x",
        ),
        ("inference, hiera_large_16x224", "fp32", "40.8 /s", "20 /s"),
    ]
    assert claims[0]["how"] == "compiled, batch 8"
    assert claims[3]["how"] == "compiled, batch 8 / eager, batch 1"
    assert compare_claims([speed_row("r3d_18", 9.0)]) == []


def row(model, library, speed, precision="fp32", top1=80.0, work="inference"):
    return {
        "model": model,
        "library": library,
        "clips_per_sec": speed,
        "precision": precision,
        "top1": top1,
        "work": work,
    }


def test_the_plot_has_a_panel_a_precision_and_the_best_speed(tmp_path, monkeypatch):
    drawn = []
    plt = benchmark_plot = pytest.importorskip("matplotlib.axes")
    plot = plt.Axes.plot
    monkeypatch.setattr(
        benchmark_plot.Axes,
        "plot",
        lambda axis, x, y, *a, **k: drawn.append((axis, x, y)) or plot(axis, x, y, *a, **k),
    )
    rows = [
        row("a", "hiera_video", 1.0),
        row("a", "hiera_video", 3.0),
        row("a", "hiera_video", 2.0),
        row("b", "other", 4.0, top1=70.0),
        row("c", "other", 5.0, top1=None),
        row("a", "hiera_video", 9.0, precision="bf16"),
        row("a", "hiera_video", 0.1, work="finetuning"),
    ]
    report = {"results": rows, "device": "cpu", "threads": 2}
    assert plot_accuracy_and_speed(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert [(x, y) for _, x, y in drawn] == [
        ([3.0], [80.0]),
        ([4.0], [70.0]),
        ([9.0], [80.0]),
        ([], []),
    ]
    assert len({axis for axis, *_ in drawn}) == 2


def test_nothing_to_plot(tmp_path):
    report = {"results": [row("a", "x", 1.0, top1=None)], "device": "cpu", "threads": 2}
    assert not plot_accuracy_and_speed(report, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
