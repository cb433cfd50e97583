"""The action detector: boxes, strides, sizes, and where its weights come from."""

import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

from hiera_video.models.detector import ActionDetector
from hiera_video.models.pretrained import (
    create_autoencoder,
    create_detector,
    create_model,
    load_model,
)
from hiera_video.models.saving import save_model

SMALL = {"embed_dim": 16, "stages": (1, 1, 1, 1)}


def detector(**changes):
    arguments = {"num_classes": 5, "num_frames": 4, "image_size": 64, **SMALL, **changes}
    return create_detector("hiera_tiny_16x224", **arguments)


def random_clips(model, batch=2):
    return torch.randn(batch, 3, *model.encoder.input_size)


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (100, 1), (1, 0)])
def test_any_number_of_boxes_a_clip(counts):
    model = detector().eval()
    clip_of_box = torch.repeat_interleave(torch.arange(2), torch.tensor(counts))
    boxes = torch.rand(len(clip_of_box), 2).sort(dim=1).values.repeat(1, 2)[:, [0, 0, 1, 1]]
    logits = model(random_clips(model), boxes, clip_of_box)
    assert logits.shape == (sum(counts), 5)
    logits.sum().backward()  # processes of a run must agree on which parameters have gradients
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "stride"),
    [
        ({}, 32),
        ({"q_pool": 2}, 16),
        ({"image_size": (96, 160)}, 32),
        ({"image_size": (64, 128), "q_pool": 2}, 16),
    ],
)
def test_boxes_in_pixels_meet_the_map_at_its_stride(changes, stride):
    """As SlowFast aligns: boxes in pixels and spatial_scale = 1 / stride."""
    model = detector(**changes).eval()
    _, height, width = model.encoder.input_size
    maps = model.feature_map(random_clips(model))
    assert maps.shape[2:] == (height // stride, width // stride)
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0], [0.5, 0.4, 0.55, 0.5]])
    clip = torch.tensor([0, 1, 1])
    pixels = boxes * torch.tensor([width, height, width, height])
    rois = torch.cat([clip[:, None].float(), pixels], dim=1)
    expected = roi_align(maps, rois, 7, spatial_scale=1 / stride, sampling_ratio=0, aligned=True)
    features = model.roi_features(maps, boxes, clip)
    torch.testing.assert_close(features, nn.MaxPool2d(7)(expected)[..., 0, 0])


def test_a_box_sees_its_own_clip_and_place():
    model = detector(image_size=128).eval()
    maps = torch.zeros(2, 128, 4, 4)
    maps[1, :, 2:, 2:] = 1.0
    boxes = torch.tensor([[0.55, 0.55, 1, 1], [0.55, 0.55, 1, 1], [0, 0, 0.3, 0.3]])
    features = model.roi_features(maps, boxes, torch.tensor([0, 1, 1]))
    assert features[:, 0].tolist() == [0, 1, 0]


def test_the_map_is_the_mean_of_normalised_tokens():
    model = detector().eval()
    clips = random_clips(model)
    tokens = model.encoder.norm(model.encoder.forward_features(clips))
    torch.testing.assert_close(model.feature_map(clips), tokens.mean(dim=1).permute(0, 3, 1, 2))


def test_depth_of_parameters_as_in_the_encoder():
    model = detector()
    ids = model.layer_ids()
    assert ids.keys() == dict(model.named_parameters()).keys()
    assert ids["encoder.patch_embed.proj.weight"] == 0
    assert ids["roi_head.projection.bias"] == ids["encoder.norm.weight"] == 5
    assert model.no_weight_decay() == {"encoder.pos_embed_spatial", "encoder.pos_embed_temporal"}


def test_starts_from_a_classifier(tmp_path):
    arguments = {"num_frames": 4, "image_size": 64, **SMALL}
    classifier = create_model("hiera_tiny_16x224", num_classes=7, **arguments)
    save_model(tmp_path / "w", classifier)
    model = create_detector("hiera_tiny_16x224", checkpoint=tmp_path / "w", **arguments)
    assert model.num_classes == 80
    for name, value in model.encoder.named_parameters():
        assert torch.equal(value, classifier.get_parameter(name))
    assert 0.009 < model.roi_head.projection.weight.std() < 0.011
    torch.testing.assert_close(model.roi_head.projection.bias.sigmoid(), torch.full((80,), 1 / 80))
    larger = create_detector(checkpoint=tmp_path / "w", image_size=(96, 64), num_classes=3)
    assert larger.encoder.input_size == (4, 96, 64)


@pytest.mark.parametrize("named", [True, False])
def test_starts_from_a_masked_autoencoder(tmp_path, named):
    arguments = {"num_frames": 4, "image_size": 64, **SMALL}
    autoencoder = create_autoencoder(
        "hiera_tiny_16x224", decoder_heads=1, decoder_dim=16, decoder_depth=1, **arguments
    )
    save_model(tmp_path / "w", autoencoder)
    chosen = {"name": "hiera_tiny_16x224", **arguments} if named else {}
    model = create_detector(checkpoint=tmp_path / "w", **chosen)
    assert model.encoder.architecture["q_pool"] == 3
    for name, value in model.encoder.named_parameters():
        assert torch.equal(value, autoencoder.encoder.get_parameter(name))


def test_saved_and_loaded_whole(tmp_path):
    model = detector(num_classes=3, roi_resolution=4, q_pool=2).eval()
    nn.init.normal_(model.roi_head.projection.weight)
    save_model(tmp_path / "w", model, label_map={"1": "run"})
    again, card = load_model(tmp_path / "w", kind="detector")
    assert card.label_map == {1: "run"}
    assert again.detector_architecture == {"num_classes": 3, "roi_resolution": 4}
    clips, boxes = random_clips(model), torch.tensor([[0.1, 0.1, 0.9, 0.9]])
    owner = torch.tensor([1])
    assert torch.equal(again.eval()(clips, boxes, owner), model(clips, boxes, owner))
    other = create_detector(checkpoint=tmp_path / "w", num_classes=4)  # a fresh head
    assert other.num_classes == 4
    assert other.card.label_map == {}
    assert create_detector(checkpoint=tmp_path / "w").card.label_map == {1: "run"}
    assert torch.equal(other.encoder.norm.weight, model.encoder.norm.weight)
    encoder = create_model(checkpoint=tmp_path / "w", num_classes=2)  # and the other way round
    assert torch.equal(encoder.norm.weight, model.encoder.norm.weight)
    with pytest.raises(ValueError, match="is an action detector"):
        load_model(tmp_path / "w", kind="classifier")
    save_model(tmp_path / "c", encoder)
    with pytest.raises(ValueError, match="detect train"):
        load_model(tmp_path / "c", kind="detector")


def test_refuses_what_cannot_be():
    classifier = create_model("hiera_tiny_224", **SMALL)
    with pytest.raises(ValueError, match="expected 0"):
        ActionDetector(classifier, num_classes=3)
    with pytest.raises(ValueError, match="num_classes is 0"):
        detector(num_classes=0)
