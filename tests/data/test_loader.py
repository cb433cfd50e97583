"""Loaders: the same batches for any number of processes, in order, whatever dies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.data.batches import ViewSample
from hiera_video.data.datasets import EvaluationViews, RecordDataset, TrainingClips
from hiera_video.data.loader import (
    Loader,
    evaluation_loader,
    num_workers,
    readable,
    training_loader,
)
from hiera_video.data.order import TrainingOrder
from hiera_video.data.transforms import PretrainTransform
from hiera_video.data.videos.records import VideoRecord
from hiera_video.runtime import workers
from hiera_video.runtime.distributed import Process
from hiera_video.settings.training import Augment
from hiera_video.settings.video import Decoding, Views
from hiera_video.video.clips import ClipSampler
from tests.dying_decoder import open_or_die
from tests.video.striped_video import make_striped_video

SHAPE = (4, 32, 32, 3)
SAMPLER = ClipSampler(num_frames=4, sampling_rate=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        make_striped_video(folder / f"good{i}.mp4", 10 + i, (64, 64))
    return folder


def records_of(folder, *names):
    return [VideoRecord(str(folder / name), (i,), name) for i, name in enumerate(names)]


def training(records, num_workers, **changes):
    """Two clips of each of three videos a step, in two epochs."""
    clips = TrainingClips(
        records,
        SAMPLER,
        PretrainTransform(32, Augment()),
        num_repeats=2,
        seed=1,
        open_video=open_or_die,
    )
    order = TrainingOrder(
        len(records),
        global_batch_size=3,
        accumulation_steps=1,
        start_step=0,
        end_step=4,
        seed=5,
    )
    return training_loader(
        clips,
        order,
        clip_shape=SHAPE,
        decoding=Decoding(num_workers=num_workers, **changes),
    )


def views_of(records):
    return EvaluationViews(
        records,
        SAMPLER,
        crop_size=(32, 32),
        views=Views(num_clips=2, num_crops=3),
        open_video=open_or_die,
    )


@pytest.mark.parametrize("num_workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_processes(folder, num_workers):
    records = records_of(folder, *(f"good{i}.mp4" for i in range(5)))
    here, there = training(records, 0), training(records, num_workers)
    assert len(here) == len(there) == 4
    for batch, expected in zip(there, here, strict=True):
        assert batch.names == expected.names
        assert batch.labels == expected.labels
        assert torch.equal(batch.clips, expected.clips)
        assert batch.failures == []
    assert [b.names for b in there] == [b.names for b in here]  # and again


@pytest.mark.parametrize(
    ("name", "cause", "message"),
    [
        ("exit.mp4", "crashed", "died with exit code 7"),
        ("abort.mp4", "crashed", "died with SIGABRT"),
        ("hang.mp4", "hung", "made no progress"),
        ("nowhere.mp4", "missing", "no such file"),
    ],
)
def test_a_bad_video_costs_its_clips_alone(folder, monkeypatch, name, cause, message):
    monkeypatch.setattr(workers, "GRACE_SEC", 0.5)
    records = records_of(folder, *(f"good{i}.mp4" for i in range(4)), name)
    batches = list(training(records, 2, deadline_sec=0.5))
    good = list(training(records_of(folder, *(f"good{i}.mp4" for i in range(5))), 0))
    num_failed = 0
    for batch, expected in zip(batches, good, strict=True):
        kept = [i for i, n in enumerate(expected.names) if n != "good4.mp4"]
        assert batch.names == [expected.names[i] for i in kept]
        assert torch.equal(batch.clips, expected.clips[kept])
        for failure in batch.failures:
            assert (failure.name, failure.path) == (name, str(folder / name))
            assert failure.cause == cause
            assert message in failure.message
            assert failure.message.startswith(failure.path)
            num_failed += 1
    assert num_failed == 2  # once in each epoch


def test_evaluation_with_a_dying_decoder(folder):
    records = records_of(folder, "good0.mp4", "exit.mp4", "good1.mp4", "abort.mp4", "good2.mp4")
    failures = []
    loader = evaluation_loader(views_of(records), Decoding(num_workers=2))
    samples = list(readable(loader, failures))
    assert [sample.index for sample in samples] == [0, 2, 4]
    assert [(f.name, f.cause) for f in failures] == [
        ("exit.mp4", "crashed"),
        ("abort.mp4", "crashed"),
    ]
    here = views_of(records)
    for sample in samples:
        expected = here[sample.index]
        assert isinstance(sample, ViewSample)
        assert torch.equal(sample.frames, expected.frames)
        assert np.array_equal(sample.clip_positions, expected.clip_positions)
        assert sample.crop_offsets == expected.crop_offsets


def test_an_unforeseen_error_is_raised_with_its_trace(folder):
    records = records_of(folder, "good0.mp4", "surprise.mp4", "good1.mp4")
    with pytest.raises(KeyError, match="surprise") as caught:
        list(evaluation_loader(views_of(records), Decoding(num_workers=2)))
    assert "open_or_die" in caught.value.__notes__[0]


@given(num_records=st.integers(0, 40), world_size=st.integers(1, 7))
@settings(max_examples=30)
def test_evaluation_shares_are_disjoint_and_complete(num_records, world_size):
    class Numbers(RecordDataset):
        records = range(num_records)

        def read(self, record, key):
            return record

        def sample(self, video, record, key):
            raise NotImplementedError

    shares = [
        list(
            evaluation_loader(
                Numbers(), Decoding(num_workers=0), Process(r, world_size, 1, torch.device("cpu"))
            )
        )
        for r in range(world_size)
    ]
    assert sorted(itertools.chain(*shares)) == list(range(num_records))


def test_batches_ahead_are_bounded(folder):
    """A batch that takes long must not let the others fill the memory."""

    class Recorded(list):
        def __iter__(self):
            for i, keys in enumerate(super().__iter__()):
                taken.append(i)
                yield keys

    taken = []
    records = records_of(folder, "good0.mp4") * 30
    order = Recorded([[i] for i in range(30)])
    loader = Loader(views_of(records), order, list, decoding=Decoding(num_workers=2))
    batches = iter(loader)
    next(batches)
    assert len(taken) <= 4 + 3  # two for each process; one was given, one is ready, one waits
    batches.close()


def test_default_workers_share_the_cores():
    assert num_workers(Decoding(), 1) >= num_workers(Decoding(), 2) >= 1


def test_the_fork_server_imports_what_reading_needs(folder):
    """Else each process would import torch, for seconds."""
    preloaded = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "start_fork_server", preloaded.add)
        list(training(records_of(folder, "good0.mp4", "good1.mp4", "good2.mp4"), 1))
    assert preloaded == {"hiera_video.data.loader"}
