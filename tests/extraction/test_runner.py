"""The pipeline from windows of many videos to stored features, without decoding and model."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hiera_video.data.batches import Failure
from hiera_video.data.transforms import Crops
from hiera_video.errors import OutputError
from hiera_video.extraction import runner
from hiera_video.extraction.reading import Failed, Read, Window
from hiera_video.extraction.runner import Summary, extract

WAIT_SEC = 30  # for what another thread does: far more than it takes


class Assembly:
    """Stands for the real one: keeps what it is given."""

    def __init__(self, num_videos):
        self.videos, self.summary = [None] * num_videos, Summary(1)
        self.features, self.ends, self.sizes = {}, {}, []

    def add(self, keys, features):
        self.sizes.append(len(keys))
        self.features |= {key: row.item() for key, row in zip(keys, features, strict=True)}

    def end(self, index, end):
        self.ends[index] = end


class Extractor:
    """The feature of a clip is its first value."""

    device = torch.device("cpu")
    batch_size = 4

    def warm_up(self):
        pass

    def __call__(self, views):
        return views[:, 0, 0, 0, 0].float()


def read():
    return Read(np.zeros(1), np.ones(1), {}, 0.0, 0.0)


def failed():
    return Failed(Failure("a", "a", "truncated", "is cut off"), 0.0)


def window(n, value):
    return Window(n, np.full((1, 2, 4, 4, 3), value, np.uint8))


@pytest.fixture
def decoded(monkeypatch):
    """Replaces decoding processes; they return what is in this list."""
    results = []

    class Workers:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def results(self, jobs):
            for result in results:
                yield None
                yield result

    monkeypatch.setattr(runner, "Workers", Workers)
    return results


def run(assembly, extractor=None):
    work = SimpleNamespace(crops=Crops((4, 4), 1, 4), deadline_sec=1.0)
    extract(assembly, work, extractor or Extractor())


def test_all_batches_are_full_but_the_last(decoded):
    """Neither the end of a video nor a failure ends a batch."""
    for index, num_windows in enumerate([3, 1, 6, 0, 2, 1]):
        decoded += [(index, window(n, 10 * index + n)) for n in range(num_windows)]
        decoded.append((index, failed() if index in (1, 3) else read()))
    assembly = Assembly(6)
    run(assembly)
    assert assembly.sizes == [4, 4, 4, 1]
    assert assembly.features == {(i, n): 10 * i + n for i, n in assembly.features}
    assert assembly.ends.keys() == set(range(6))
    assert isinstance(assembly.ends[3], Failed)
    assert assembly.summary.clips == 13
    assert assembly.summary.model_sec > 0


def test_failures_do_not_wait_for_a_batch(decoded):
    decoded += [(0, window(0, 7)), *((i, failed()) for i in range(1, 9)), (0, read())]
    assembly = Assembly(9)
    run(assembly)
    assert assembly.sizes == [1]
    assert assembly.ends.keys() == set(range(9))


def test_decoding_begins_before_the_model_is_ready(decoded, monkeypatch):
    class Compiled(Extractor):
        def warm_up(self):
            assert started.wait(WAIT_SEC)

    started = threading.Event()
    monkeypatch.setattr(
        runner.Workers, "__enter__", lambda self: started.set() or self, raising=True
    )
    decoded += [(0, window(0, 5)), (0, read())]
    assembly = Assembly(1)
    run(assembly, Compiled())
    assert assembly.features == {(0, 0): 5}


def test_a_model_is_not_compiled_for_nothing():
    class Compiled(Extractor):
        def warm_up(self):
            raise AssertionError("there are no videos")

    run(Assembly(0), Compiled())


def test_features_are_stored_while_the_model_works(decoded):
    """Storing the first batch ends when the second has been launched."""
    launched = threading.Event()

    class Slow(Assembly):
        def add(self, keys, features):
            if not self.sizes:
                assert launched.wait(WAIT_SEC)
            super().add(keys, features)

    class Counting(Extractor):
        num_calls = 0

        def __call__(self, views):
            self.num_calls += 1
            if self.num_calls == 2:
                launched.set()
            return super().__call__(views)

    decoded += [(0, window(n, n)) for n in range(12)] + [(0, read())]
    assembly = Slow(1)
    run(assembly, Counting())
    assert len(assembly.features) == 12


def test_an_output_that_cannot_be_written_ends_the_run(decoded):
    class Full(Assembly):
        def add(self, keys, features):
            raise OutputError(28, "No space left on device", "features")

    calls = []

    class Counting(Extractor):
        def __call__(self, views):
            calls.append(len(views))
            return super().__call__(views)

    decoded += [(0, window(n % 250, 0)) for n in range(400)]
    with pytest.raises(OutputError, match="No space left"):
        run(Full(1), Counting())
    assert len(calls) <= 4  # of 100
