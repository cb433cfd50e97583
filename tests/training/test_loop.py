"""The training step on a linear model, whose right answer is known."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hiera_video.data.batches import ClipBatch, DetectionBatch, Failure
from hiera_video.runtime.distributed import Process
from hiera_video.settings.training import Loop
from hiera_video.training import loop
from hiera_video.training.loop import train_steps
from hiera_video.training.optim import MovingAverage, start_momentum
from hiera_video.training.run_folder import RunReport
from hiera_video.training.times import Lap

PROCESS = Process(0, 1, 1, torch.device("cpu"))
FAILURE = Failure("bad.mp4", "/bad.mp4", "empty", "/bad.mp4: is empty")


def batch(*values, failures=()):
    """A batch of clips of one pixel; the name of a clip is its value."""
    clips = torch.tensor(values or (0.0,)).reshape(-1, 1, 1, 1, 1)
    return ClipBatch(clips, [(0,)] * max(len(values), 1), [str(v) for v in values], list(failures))


def sum_of_products(model, batch, rng):
    """The gradient of its mean over clips is the mean of the clips."""
    return model(batch.clips.flatten(1)).sum()


def sgd(model, **settings):
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    return torch.optim.SGD(groups, lr=1.0, fused=True, **settings)


def steps(
    batches,
    /,
    *,
    model=None,
    accumulation_steps=1,
    precision="fp32",
    seed=0,
    loss=sum_of_products,
    **changes,
):
    model = nn.Linear(1, 1, bias=False) if model is None else model
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = sgd(model)
    settings = dict(
        start_step=0,
        end_step=len(batches) // accumulation_steps,
        batches=iter(batches),
        lr_at=lambda step: 0.1,
        clip_grad=None,
        process=replace(PROCESS, precision=precision),
        loop=Loop(accumulation_steps=accumulation_steps, seed=seed),
    )
    settings |= changes
    yield from (
        (done, model.weight.item())
        for done in train_steps(
            model,
            loss,
            optimizer,
            **settings,
        )
    )


def test_a_step_takes_the_mean_over_clips():
    ((done, weight),) = steps([batch(1.0, 2.0, 6.0)])
    assert weight == pytest.approx(1 - 0.1 * 3)
    assert done.loss == pytest.approx(3.0)  # before the step, of weight 1
    assert done.grad_norm == pytest.approx(3.0)
    assert (done.step, done.num_clips, done.num_failed, done.skipped) == (1, 3, 0, False)
    assert done.names == ["1.0", "2.0", "6.0"]


@pytest.mark.parametrize(
    "parts",
    [
        [batch(1.0, 2.0, 6.0), batch()],
        [batch(1.0), batch(2.0, 6.0)],
        [batch(), batch(1.0, 2.0, 6.0, failures=[FAILURE])],
    ],
)
def test_parts_of_any_size_add_up(parts):
    """Accumulation weighs clips, not parts; a part without videos adds nothing."""
    ((done, weight),) = steps(parts, accumulation_steps=2)
    assert weight == pytest.approx(1 - 0.1 * 3)
    assert done.loss == pytest.approx(3.0)
    assert done.num_clips == 3
    assert done.num_failed == sum(len(part.failures) for part in parts)


def test_the_gradient_is_clipped():
    ((done, weight),) = steps([batch(30.0)], clip_grad=2.0)
    assert done.grad_norm == pytest.approx(30.0)
    assert weight == pytest.approx(1 - 0.1 * 2, abs=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped(value):
    done = list(steps([batch(1.0), batch(value, 5.0), batch(1.0)]))
    assert [report.skipped for report, _ in done] == [False, True, False]
    weights = [weight for _, weight in done]
    assert weights == pytest.approx([0.9, 0.9, 0.8])
    assert done[1][0].names == [str(value), "5.0"]


def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped_too():
    def loss(model, batch, rng):
        return (model.weight - 1.0).abs().sqrt().sum()  # 0 with an infinite slope

    ((done, weight),) = steps([batch(1.0)], loss=loss)
    assert done.loss == 0.0
    assert done.skipped
    assert weight == 1.0


def test_a_step_without_videos_is_skipped():
    ((done, weight),) = steps([batch(failures=[FAILURE])])
    assert done.skipped
    assert (done.num_clips, done.num_failed, done.failures) == (0, 1, [FAILURE])
    assert math.isnan(done.loss)
    assert weight == 1.0


def test_a_skipped_step_leaves_the_optimizer_and_the_average():
    model = nn.Linear(1, 1, bias=False)
    average = MovingAverage(model, 0.0)
    done = list(steps([batch(1.0), batch(math.nan)], model=model, average=average))
    assert average.module.weight.item() == pytest.approx(done[0][1])
    assert int(average.n_averaged) == 1


def test_the_rate_follows_the_step():
    rates = [0.5, 0.25, 0.125]
    done = list(steps([batch(1.0)] * 2, lr_at=rates.__getitem__, start_step=1, end_step=3))
    assert [(report.step, report.lr) for report, _ in done] == [(2, 0.25), (3, 0.125)]


def test_randomness_depends_on_seed_step_and_rank_only():
    def draws(**changes):
        seen = []

        def loss(model, batch, rng):
            seen.append((rng.random(), torch.rand(()).item()))
            return model(batch.clips.flatten(1)).sum()

        list(steps([batch(1.0)] * 4, loss=loss, **changes))
        return seen

    whole = draws(end_step=4)
    assert len(set(whole)) == 4
    torch.rand(7)
    assert draws(start_step=2, end_step=4) == whole[2:]
    assert draws(seed=1)[0] != whole[0]
    assert draws(process=Process(1, 2, 2, torch.device("cpu")))[0] != whole[0]


def test_the_file_names_of_a_skipped_step_are_logged(tmp_path, capsys):
    from hiera_video.runtime.logging import setup_logging

    setup_logging()
    ((done, _),) = steps([batch(math.nan, 2.0)])
    RunReport(tmp_path, PROCESS).step(done, Lap(1.0))
    assert "step 1 skipped: loss nan, gradient norm nan; its videos: nan, 2.0" in (
        capsys.readouterr().err
    )
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["step"] == 1
    assert line["loss"] is line["grad_norm"] is None  # NaN is no JSON


def test_a_step_says_whether_the_run_is_to_stop():
    assert next(steps([batch(1.0)] * 2, stop_requested=lambda: True))[0].stop
    assert not next(steps([batch(1.0)] * 2))[0].stop


def test_the_other_processes_learn_of_each_step():
    watch = SimpleNamespace(step=0)
    process = Process(0, 1, 1, torch.device("cpu"), watch)
    assert [watch.step for _ in steps([batch(1.0)] * 2, process=process)] == [1, 2]


def test_bf16_is_the_forward_pass_only():
    seen = []

    def loss(model, batch, rng):
        out = model(batch.clips.flatten(1))
        seen.append(out.dtype)
        return out.float().sum()

    ((_, weight),) = steps([batch(1.0)], precision="bf16", loss=loss)
    assert seen == [torch.bfloat16]
    assert weight == np.float32(0.9)


# ---- detection: the mean runs over boxes


def boxed(*values, clips=1, num_dropped=0):
    """A batch of so many clips, whose boxes state their values."""
    boxes = torch.tensor(values, dtype=torch.float32).reshape(-1, 1).repeat(1, 4)
    pixels = torch.zeros(max(clips, 1), 1, 1, 1, 1)
    places = torch.zeros(len(values), dtype=torch.int64)
    names = [f"clip {i}" for i in range(clips)]
    return DetectionBatch(pixels, boxes, places, [(1,)] * len(values), names, [], num_dropped)


def sum_over_boxes(model, batch, rng):
    return model(batch.boxes[:, :1]).sum()


@pytest.mark.parametrize(
    "parts",
    [
        [boxed(1.0, 2.0, 6.0, clips=2), boxed(clips=0)],
        [boxed(1.0, clips=3), boxed(2.0, 6.0)],
        [boxed(clips=4, num_dropped=5), boxed(1.0, 2.0, 6.0, num_dropped=2)],
    ],
)
def test_the_mean_runs_over_boxes_however_they_are_spread(parts):
    ((done, weight),) = steps(parts, accumulation_steps=2, loss=sum_over_boxes)
    assert weight == pytest.approx(1 - 0.1 * 3)
    assert done.loss == pytest.approx(3.0)
    assert done.num_targets == 3
    assert done.num_clips == sum(len(part) for part in parts)
    assert done.num_dropped == sum(part.num_dropped for part in parts)
    assert not done.skipped


def test_a_step_without_any_box_is_skipped(tmp_path, caplog):
    batches = [boxed(2.0), boxed(clips=3, num_dropped=4), boxed(2.0)]
    done = list(steps(batches, loss=sum_over_boxes))
    assert [report.skipped for report, _ in done] == [False, True, False]
    assert [weight for _, weight in done] == pytest.approx([0.8, 0.8, 0.6])
    skipped = done[1][0]
    assert (skipped.num_clips, skipped.num_targets, skipped.num_dropped) == (3, 0, 4)
    assert math.isnan(skipped.loss)
    with caplog.at_level("WARNING", "hiera_video"):
        RunReport(tmp_path, PROCESS).step(skipped, Lap(1.0))
    assert "step 2 skipped: no box in any of its clips: clip 0, clip 1, clip 2" in caplog.text
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (line["loss"], line["num_clips"], line["num_dropped"]) == (None, 3, 4)


def two_processes(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    model = nn.Linear(1, 1, bias=False)
    wrapped = nn.parallel.DistributedDataParallel(model)
    # Three boxes in all, then none, then one on one of the processes.
    batches = [
        [boxed(1.0), boxed(2.0, 6.0, clips=2)],
        [boxed(clips=1, num_dropped=1), boxed(clips=0)],
        [boxed(clips=0), boxed(5.0)],
    ]
    mine = [batch[rank] for batch in batches]
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = sgd(model)
    reports = train_steps(
        wrapped,
        sum_over_boxes,
        optimizer,
        iter(mine),
        start_step=0,
        end_step=3,
        loop=Loop(),
        lr_at=lambda step: 0.1,
        clip_grad=None,
        process=Process(rank, 2, 2, torch.device("cpu")),
    )
    reported = [
        (done.loss, done.num_targets, done.num_clips, done.num_dropped, model.weight.item())
        for done in reports
    ]
    (folder / f"{rank}.json").write_text(json.dumps(reported))
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_mean_over_boxes(tmp_path):
    # Not by fork: autograd refuses to run after one if it had threads before.
    torch.multiprocessing.start_processes(
        two_processes, (tmp_path,), nprocs=2, start_method="spawn"
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert str(first) == str(second)  # NaN is not equal to itself
    (loss, *counts, weight), (no_loss, *none, kept), (last_loss, *one, last) = first
    assert loss == pytest.approx(3.0)
    assert counts == [3, 3, 0]
    assert weight == pytest.approx(0.7)
    assert math.isnan(no_loss)
    assert none == [0, 1, 1]
    assert kept == weight
    assert last_loss == pytest.approx(5 * 0.7)
    assert one == [1, 1, 0]
    assert last == pytest.approx(0.7 - 0.5)


def test_the_moving_average_starts_with_the_weights_after_the_first_step():
    model = nn.Linear(1, 1, bias=False)
    average = MovingAverage(model, 0.75)
    batches = [batch(1.0), batch(2.0), batch(4.0)]
    first, *others = (weight for _, weight in steps(batches, model=model, average=average))
    expected = first
    for weight in others:
        expected = 0.75 * expected + 0.25 * weight
    assert average.module.weight.item() == pytest.approx(expected)


# ---- skipped on the device


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_first_step_that_is_skipped_leaves_no_trace(kind):
    """The same weights and states to the bit as without it, although the kernel wrote nothing."""

    def trained(batches):
        model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.fill_(1.0)
        groups = [{"params": [model.weight], "lr_scale": 1.0}]
        if kind == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True)
        else:
            optimizer = torch.optim.AdamW(groups, fused=True)
        average = MovingAverage(model, 0.75)
        for _ in train_steps(
            model,
            sum_of_products,
            optimizer,
            iter(batches),
            start_step=0,
            end_step=len(batches),
            lr_at=lambda step: 0.1,
            clip_grad=None,
            process=PROCESS,
            average=average,
            loop=Loop(),
        ):
            pass
        states = [value for state in optimizer.state.values() for value in state.values()]
        return [model.weight, *average.state_dict().values(), *states]

    nan = batch(math.nan)
    values = [batch(1.0), batch(3.0), batch(2.0)]
    expected = trained(values)
    assert len(expected) == (6 if kind == "adamw" else 4)
    for skipped in ([nan, *values], [nan, nan, values[0], nan, *values[1:], nan]):
        assert all(map(torch.equal, trained(skipped), expected))


def test_sgd_starts_with_the_gradient_as_momentum():
    """As torch's own first step, to the bit."""
    gradients = torch.randn(5, 1000)
    results = []
    for is_started in (False, True):
        weight = nn.Parameter(torch.ones(1000))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, nesterov=True, fused=True)
        if is_started:
            start_momentum(optimizer)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        results.append([weight, optimizer.state[weight]["momentum_buffer"]])
    assert all(map(torch.equal, *results))


def test_the_moving_average_is_that_of_torch():
    ours, theirs = (nn.Linear(50, 40) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    average = MovingAverage(ours, 0.9)
    reference = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(4):
        noise = torch.randn_like(ours.weight)
        for model in (ours, theirs):
            model.weight.data += noise
        average.update(ours, torch.tensor(0.0))
        reference.update_parameters(theirs)
        average.update(ours, torch.tensor(1.0))  # of a skipped step
    assert average.state_dict().keys() == reference.state_dict().keys()
    for name, value in average.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name]), name


# ---- read a step later


def test_the_host_is_a_step_ahead_until_something_is_due(monkeypatch):
    events = []

    def run(**changes):
        events.clear()

        def batches():
            for number in range(1, 7):
                events.append(f"launch {number}")
                yield batch(float(number))

        for done, _ in steps([None] * 6, batches=batches(), **changes):
            events.append(f"report {done.step}")
            yield done

    plain = list(run())
    assert events == [f"{what} {n}" for n in range(1, 7) for what in ("launch", "report")]
    monkeypatch.setattr(loop, "_runs_ahead", lambda device: True)
    ahead = list(run(is_due=lambda step: step == 4))
    assert events == [
        *("launch 1", "launch 2", "report 1", "launch 3", "report 2", "launch 4", "report 3"),
        *("report 4", "launch 5", "launch 6", "report 5", "report 6"),
    ]
    untimed = [replace(done, step_sec=0.0, data_sec=0.0) for done in (*plain, *ahead)]
    assert untimed[:6] == untimed[6:]
    list(run(stop_requested=iter([False, True, False, False, False, False]).__next__))
    assert events[:4] == ["launch 1", "launch 2", "report 1", "report 2"]


# ---- float16: the loss is scaled


def scaler(**settings):
    return torch.amp.GradScaler("cpu", **{"init_scale": 4.0, "growth_interval": 2} | settings)


def test_the_scale_of_the_loss_does_not_show():
    for scaled in (None, scaler()):
        ((done, weight),) = steps([batch(30.0)], clip_grad=2.0, scaler=scaled)
        assert (done.loss, done.grad_norm) == (30.0, 30.0)
        assert weight == pytest.approx(1 - 0.1 * 2, abs=1e-5)
        assert done.loss_scale == (None if scaled is None else 4.0)


def test_an_overflow_lowers_the_scale_and_steps_raise_it():
    largest = torch.finfo(torch.float32).max / 8
    tried = [largest, largest, 1.0, 1.0, 1.0, 1.0]
    done = list(steps([batch(v) for v in tried], scaler=scaler(init_scale=32.0), lr_at=lambda _: 0))
    reports = [report for report, _ in done]
    assert [report.skipped for report in reports] == [True, True, False, False, False, False]
    assert [report.loss_scale for report in reports] == [32.0, 16.0, 8.0, 8.0, 16.0, 16.0]
    assert [report.overflow for report in reports] == [report.skipped for report in reports]
    assert all(report.not_finite for report in reports[:2])
    assert math.isfinite(reports[0].loss)


def test_a_loss_that_is_not_finite_is_no_overflow():
    ((done, _),) = steps([batch(math.nan)], scaler=scaler())
    assert done.not_finite
    assert not done.overflow
    ((done, _),) = steps([batch(1e38)], scaler=scaler(init_scale=1.0), loss=steep)
    assert done.not_finite
    assert not done.overflow  # no scale would help


def steep(model, batch, rng):
    return (model.weight * batch.clips.flatten(1) * 10).sum() * 0.1


def test_a_step_without_any_target_leaves_the_scale():
    done = list(steps([batch(), batch(), batch(), batch(1.0)], scaler=scaler()))
    assert [report.loss_scale for report, _ in done] == [4.0] * 4


def test_the_scaler_resumes_to_the_bit():
    values = [1e38, 1.0, 3.0, 2.0, 1.5, 1e38, 0.1, 0.7]
    batches = [batch(v) for v in values]
    whole = list(steps(batches, scaler=scaler(), lr_at=lambda _: 1e-3))
    first = scaler()
    list(steps(batches[:4], scaler=first, lr_at=lambda _: 1e-3))
    state = json.loads(json.dumps(first.state_dict()))
    second = scaler(init_scale=1.0)
    second.load_state_dict(state)
    rest = list(steps(batches[4:], scaler=second, lr_at=lambda _: 1e-3))
    scales = [report.loss_scale for report, _ in whole]
    assert [report.loss_scale for report, _ in rest] == scales[4:]
    assert len(set(scales)) > 2


def test_a_compiled_model_has_few_graphs_and_takes_batches_of_any_size():
    """Each size would be a graph, and torch gives up compiling after eight of them."""
    graphs = []

    def backend(module, inputs):
        graphs.append(tuple(inputs[-1].shape))
        return module

    class Model(nn.Linear):  # torch 2.11 leaves its own modules alone
        def forward(self, x):
            return super().forward(x)

    model = Model(1, 1, bias=False)
    model.compile(dynamic=False, backend=backend)
    sizes = [4, 3, 4, 2, 1, 5, 6, 7, 4, 2, 6]
    plain = [weight for _, weight in steps([batch(*[1.0] * n) for n in sizes])]
    compiled = steps(
        [batch(*[1.0] * n) for n in sizes],
        model=model,
        loop=Loop(accumulation_steps=1, compile=True),
    )
    assert [weight for _, weight in compiled] == pytest.approx(plain)
    assert len(graphs) == 4
