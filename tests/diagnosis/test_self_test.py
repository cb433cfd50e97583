"""The self-test fails where the package's own code does."""

import pytest
import torch

from hiera_video.diagnosis import self_test
from hiera_video.diagnosis.model import tiny_model


def test_the_forward_pass_is_right_here():
    assert self_test.forward().status == "ok"


@pytest.mark.parametrize("scale", [1.01, float("nan")])
def test_another_weight_is_noticed(scale, monkeypatch):
    def changed():
        model = tiny_model()
        with torch.no_grad():
            model.blocks[0].attn.qkv.weight.mul_(scale)
        return model

    monkeypatch.setattr(self_test, "tiny_model", changed)
    assert self_test.forward().status == "failed"


def test_a_step_lowers_the_loss_of_the_batch_that_a_process_decoded():
    finding, batch = self_test.decoding_process()
    assert finding.status == "ok", finding
    assert batch.clips.shape == (2, 4, 32, 32, 3)
    step = self_test.training_step(batch)
    assert step.status == "ok"
    assert step.data["losses"][1] < step.data["losses"][0] - 0.01


def test_a_step_is_tried_without_a_batch_too():
    assert self_test.training_step(None).status == "ok"


def test_a_step_that_lowers_nothing_fails(monkeypatch):
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_: None)
    assert self_test.training_step(None).status == "failed"


def test_a_clip_that_cannot_be_read_fails(monkeypatch, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    monkeypatch.setattr(self_test, "CLIP", tmp_path / "clip.mp4")
    finding, batch = self_test.decoding_process()
    assert (finding.status, batch) == ("failed", None)
    assert "clip.mp4" in finding.text
