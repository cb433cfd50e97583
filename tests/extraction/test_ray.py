"""How many copies of the model Ray starts; tests/integration/test_extract.py runs it."""

from __future__ import annotations

import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hiera_video.data.transforms import Crops
from hiera_video.errors import ConfigError
from hiera_video.extraction.ray import Model, extract_with_ray
from hiera_video.extraction.reading import Window
from hiera_video.extraction.runner import Summary


@pytest.fixture
def actors(monkeypatch):
    """Runs an extraction on so many GPUs. Returns which actors of the model it asked for."""

    def run(num_gpus, **how):
        asked = []

        class Data:
            def map_batches(self, actor, **options):
                asked.append(options)
                return self

            def iter_rows(self):
                return iter(())

        ray = SimpleNamespace(
            is_initialized=lambda: True,
            cluster_resources=lambda: {"GPU": num_gpus} if num_gpus else {},
            data=SimpleNamespace(from_items=lambda jobs: Data()),
        )
        monkeypatch.setitem(sys.modules, "ray", ray)
        assembly = SimpleNamespace(videos=["a.mp4"], summary=Summary(1))
        work = SimpleNamespace(crops=Crops((4, 4), 1, 4))
        extract_with_ray(assembly, work, SimpleNamespace(batch_size=4), **how)
        _, model = asked
        return model["concurrency"], model["num_gpus"]

    return run


@pytest.mark.parametrize(
    ("num_gpus", "share", "expected"),
    [(2, 1.0, 2), (3, 0.5, 6), (1, 0.2, 5), (2, 0.6, 2), (4, 0.3, 12)],
)
def test_actors_share_gpus(actors, num_gpus, share, expected):
    """The share of an actor lies on one GPU: of two, three actors of 0.6 would not fit."""
    assert actors(num_gpus, gpus_per_model=share) == (expected, share)


def test_an_actor_takes_the_precision(monkeypatch):
    """In its process, and on its device, which may lack it."""
    taken = []
    monkeypatch.setattr("hiera_video.extraction.ray.set_tf32", taken.append)
    monkeypatch.setattr("hiera_video.extraction.ray.replace", lambda extractor, device: extractor)
    Model(SimpleNamespace(precision="fp32"))
    assert taken == ["fp32"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="precision is tf32: only NVIDIA's GPUs have it"):
        Model(SimpleNamespace(precision="tf32"))


def test_an_actor_warms_up_in_the_thread_of_its_calls(monkeypatch):
    """Once: Ray makes an actor in another thread, and CUDA graphs belong to one."""
    threads = []
    extractor = SimpleNamespace(
        precision="fp32", warm_up=lambda: threads.append(threading.current_thread())
    )
    monkeypatch.setattr("hiera_video.extraction.ray.replace", lambda extractor, device: extractor)
    monkeypatch.setattr(
        "hiera_video.extraction.ray.extract_windows", lambda _, views: torch.zeros(len(views), 2)
    )
    model = Model(extractor)
    window = pickle.dumps(Window(0, np.zeros((1, 1, 4, 4, 3), np.uint8)))
    batch = {"index": np.array([0]), "value": np.array([window], object)}
    with ThreadPoolExecutor(1) as calls:
        for _ in range(2):
            calls.submit(model, batch).result()
        (thread,) = threads
        assert thread is not threading.current_thread()


def test_actors_on_a_cluster_without_gpus(actors):
    assert actors(0) == (1, 0)
