"""Checkpoints written in a thread hold the state of the step at which they were begun."""

import errno
import threading

import pytest
import torch

from hiera_video.errors import OutputError
from hiera_video.files import reported
from hiera_video.models.card import ModelCard
from hiera_video.models.loading import card_of
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.pretrained import load_model
from hiera_video.settings.training import Optim
from hiera_video.training import writer as module
from hiera_video.training.checkpoint import load_checkpoint, read_facts, state_of
from hiera_video.training.optim import MovingAverage, build_optimizer, start_momentum
from hiera_video.training.writer import CheckpointWriter
from tests.models.tiny_models import VIDEO, hiera


def autoencoder():
    encoder = hiera(VIDEO, num_classes=0, q_pool=2)
    return MaskedAutoencoderHiera(encoder, decoder_heads=2, decoder_dim=16, decoder_depth=1)


class Training:
    def __init__(self, build=lambda: hiera(VIDEO), kind="adamw", has_average=True):
        torch.manual_seed(0)
        self.model = build()
        self.optimizer = build_optimizer(self.model, Optim(optimizer=kind, lr=0.1))
        self.average = MovingAverage(self.model, 0.5) if has_average else None
        start_momentum(self.optimizer)
        self.parts = (self.model, self.optimizer, self.average)

    def advance(self):
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, torch.tensor(0.0))

    def state(self):
        return {key: value.clone() for key, value in state_of(*self.parts).items()}

    def writer(self, folder, keep=2):
        return CheckpointWriter(folder, *self.parts, card_of(self.model, None), keep)


@pytest.fixture
def held(monkeypatch):
    """No checkpoint is written before this is set."""
    event, write = threading.Event(), module.write_checkpoint

    def waiting(*args, **options):
        assert event.wait(60)
        return write(*args, **options)

    monkeypatch.setattr(module, "write_checkpoint", waiting)
    yield event
    event.set()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("has_average", [True, False])
@pytest.mark.parametrize("build", [lambda: hiera(VIDEO), autoencoder])
def test_steps_after_a_snapshot_do_not_show(tmp_path, held, kind, has_average, build):
    training = Training(build, kind, has_average)
    training.advance()
    before, facts = training.state(), {"failed": ["a"]}
    writer = training.writer(tmp_path)
    writer.save(1, facts)
    facts["failed"].append("b")
    training.advance()
    assert not list(tmp_path.iterdir())
    held.set()
    writer.wait()
    path = tmp_path / "step_00000001"
    assert read_facts(path) == (1, {"failed": ["a"]})
    resumed = Training(build, kind, has_average)
    load_checkpoint(path, *resumed.parts)
    found = resumed.state()
    assert found.keys() == before.keys()
    assert all(torch.equal(found[key], value) for key, value in before.items())
    weights = load_model(path / "weights")[0].state_dict()
    prefix = "average.module." if has_average else "model."
    assert all(torch.equal(value, before[prefix + key]) for key, value in weights.items())


def test_the_memory_of_a_snapshot_is_used_again(tmp_path):
    training = Training()
    writer = training.writer(tmp_path)
    places = []
    for step in (1, 2, 3):
        training.advance()
        writer.save(step, {})
        places.append({value.data_ptr() for value in writer._copy.values()})
    writer.wait()
    assert places[0] == places[1] == places[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]


def test_a_state_that_grows_has_new_memory(tmp_path):
    """The optimizer has no state before the first step."""
    training = Training()
    writer = training.writer(tmp_path)
    writer.save(0, {})
    training.advance()
    expected = training.state()
    writer.save(1, {})
    writer.wait()
    resumed = Training()
    load_checkpoint(tmp_path / "step_00000001", *resumed.parts)
    found = resumed.state()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_one_checkpoint_is_written_at_a_time(tmp_path, held):
    writer = Training().writer(tmp_path)
    writer.save(1, {})
    second = threading.Thread(target=writer.save, args=(2, {}))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    assert not list(tmp_path.iterdir())
    held.set()
    second.join()
    writer.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


@pytest.fixture
def full_disk(monkeypatch):
    def failing(folder, step, *args, **options):
        with reported(folder):
            raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(module, "write_checkpoint", failing)


@pytest.mark.parametrize("then", ["wait", "save"])
def test_an_error_is_raised_once_where_the_run_waits(tmp_path, full_disk, then):
    writer = Training().writer(tmp_path, keep=1)
    writer.save(1, {})
    writer.wait()
    assert not writer.has_failed
    full_disk()
    writer.save(2, {})
    writer._thread.join()
    assert writer.has_failed
    with pytest.raises(OutputError, match="No space left on device"):
        writer.wait() if then == "wait" else writer.save(3, {})
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]  # is not pruned


def test_where_another_error_ends_the_run_that_of_the_checkpoint_is_logged(
    tmp_path, full_disk, caplog
):
    writer = Training().writer(tmp_path)
    full_disk()
    writer.save(2, {})
    writer.close()
    assert "No space left on device" in caplog.text


def test_the_card_is_that_of_the_run(tmp_path):
    training = Training()
    card = card_of(training.model, None, class_names=[f"c{i}" for i in range(5)])
    assert isinstance(card, ModelCard)
    writer = CheckpointWriter(tmp_path, *training.parts, card, 1)
    writer.save(1, {})
    writer.wait()
    assert load_model(tmp_path / "step_00000001" / "weights")[1] == card
