"""Person boxes: what the detector returns, and what is said of files that are no detector."""

from __future__ import annotations

import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from hiera_video.models import people
from hiera_video.models.people import detect_people, load_person_detector


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights, of a detector that takes everything for a person."""
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=91)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.zero_()
        model.roi_heads.box_predictor.cls_score.bias[1] = 5.0
        model.roi_heads.box_predictor.bbox_pred.weight.zero_()
    path = tmp_path_factory.mktemp("detector") / "random.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def model(weights):
    torch.set_num_threads(1)
    return load_person_detector(weights).eval()


def frames(height: int, width: int, number: int = 1) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (number, height, width, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _small(monkeypatch, model):
    monkeypatch.setattr(model.transform, "min_size", (96,))


def test_boxes_are_fractions_and_the_surest_come_first(model):
    found = detect_people(model, frames(60, 90, 2), min_score=0.0)
    assert len(found) == 2
    for boxes, scores in found:
        assert boxes.shape == (len(scores), 4)
        assert len(scores)
        assert boxes.dtype == scores.dtype == np.float64
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (np.diff(scores) <= 0).all()


def test_only_people_above_the_threshold(model, monkeypatch):
    def answer(pictures):
        assert pictures[0].shape == (3, 40, 80)
        assert 0 <= pictures[0].min() <= pictures[0].max() <= 1
        return [
            {
                "boxes": torch.tensor([[8.0, 4, 40, 20], [0, 0, 80, 40], [0, 0, 8, 4]]),
                "labels": torch.tensor([1, 2, 1]),
                "scores": torch.tensor([0.9, 0.9, 0.7]),
            }
        ]

    monkeypatch.setattr(model, "forward", answer)
    ((boxes, scores),) = detect_people(model, frames(40, 80), min_score=0.8)
    np.testing.assert_allclose(boxes, [[0.1, 0.1, 0.5, 0.5]])
    np.testing.assert_allclose(scores, [0.9], rtol=1e-6)


def test_no_frames(model):
    assert detect_people(model, [], min_score=0.5) == []


def test_files_that_are_no_detector(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: there is no such file"):
        load_person_detector(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pth is a text that begins with 'hello'"):
        load_person_detector(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds no state dict"):
        load_person_detector(tmp_path / "list.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is not a fasterrcnn_resnet50_fpn_v2"):
        load_person_detector(tmp_path / "other.pth")


def test_weights_that_are_not_finite(weights, tmp_path):
    """Such a detector would find nobody in any frame."""
    state = torch.load(weights)
    state["roi_heads.box_predictor.cls_score.bias"][1] = torch.nan
    torch.save(state, tmp_path / "diverged.pth")
    with pytest.raises(ValueError, match=r"diverged\.pth holds .* not finite: roi_heads"):
        load_person_detector(tmp_path / "diverged.pth")


def test_what_cannot_be_fetched_names_address_file_and_folder(tmp_path, monkeypatch):
    def offline(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(ConnectionError) as caught:
        load_person_detector()
    url = people.PUBLISHED.url
    for part in (url, url.rpartition("/")[2], str(tmp_path / "checkpoints")):
        assert part in str(caught.value)
