"""The instance segmenter: outputs, gradients, masks, and where its weights come from."""

import logging

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from hiera_video.errors import ModelError, WeightsError
from hiera_video.models.loading import load_weights
from hiera_video.models.pretrained import (
    create_autoencoder,
    create_detector,
    create_model,
    create_segmenter,
    load_model,
)
from hiera_video.models.saving import save_model
from hiera_video.models.segmenter import MASK_SHIFT, InstanceSegmenter, whole_masks
from hiera_video.models.variants import input_statistics

SMALL = {"image_size": 64, "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
HEADS = {"channels": 8, "hidden": 16, "num_boxes": 16}
NAMES = {1: "disc", 7: "square", 90: "disc"}
PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.")


def segmenter(seed=0, **changes):
    torch.manual_seed(seed)
    arguments = {"name": "hiera_tiny_224", "num_classes": 3, **SMALL, **HEADS, **changes}
    return create_segmenter(**arguments)


def pictures(model, batch=2):
    return torch.randn(batch, 3, *model.encoder.input_size)


def targets(*counts):
    """For each picture so many objects: rectangles."""
    corners = torch.tensor([[4.0, 8, 30, 40], [20, 20, 60, 60], [0, 40, 64, 64]])
    masks = torch.zeros(3, 64, 64, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, corners.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    labels = torch.tensor([1, 3, 2])
    return [{"boxes": corners[:n], "labels": labels[:n], "masks": masks[:n]} for n in counts]


def same(found, expected):
    return all(
        torch.equal(ours[key], theirs[key])
        for ours, theirs in zip(found, expected, strict=True)
        for key in theirs
    )


# ---- weights


def test_saved_and_loaded_whole(tmp_path):
    model = segmenter().eval()
    save_model(tmp_path / "w", model, label_map=NAMES)
    again, card = load_model(tmp_path / "w", kind="segmenter")
    assert (card.kind, card.label_map) == ("segmenter", NAMES)
    assert (card.mean, card.std) == input_statistics(model.encoder.architecture)
    assert again.segmenter_architecture == {"num_classes": 3, "channels": 8, "hidden": 16}
    x = pictures(model)
    with torch.inference_mode():
        found = model(x)
        assert sum(len(picture["boxes"]) for picture in found)
        assert same(again(x), found)
    assert create_segmenter(checkpoint=tmp_path / "w").card.label_map == NAMES
    larger = create_segmenter(checkpoint=tmp_path / "w", image_size=(96, 64))
    assert torch.equal(larger.rpn.head.cls_logits.weight, model.rpn.head.cls_logits.weight)


@pytest.mark.parametrize("id", [0, -3, 2**40])
def test_any_id_of_a_category_is_kept(tmp_path, id):
    save_model(tmp_path / "w", segmenter(num_classes=1), label_map={id: "disc"})
    assert load_model(tmp_path / "w")[1].label_map == {id: "disc"}


def test_the_names_must_be_those_of_all_classes(tmp_path):
    with pytest.raises(WeightsError, match="label_map has 2 entries for 3 classes"):
        save_model(tmp_path / "w", segmenter(), label_map={1: "a", 2: "b"})


@pytest.mark.parametrize("kind", ["classifier", "autoencoder", "detector", "file"])
def test_heads_start_afresh_from_other_weights(tmp_path, kind):
    torch.manual_seed(1)
    if kind == "autoencoder":
        small = {"decoder_heads": 1, "decoder_dim": 16, "decoder_depth": 1}
        source = create_autoencoder("hiera_tiny_224", **SMALL, **small)
    elif kind == "detector":
        source = create_detector("hiera_tiny_224", num_classes=2, **SMALL)
    else:
        source = create_model("hiera_tiny_224", num_classes=7, **SMALL)
    if kind == "file":
        torch.save(source.state_dict(), tmp_path / "w")
    else:
        save_model(tmp_path / "w", source)
    with torch.no_grad():
        fresh = segmenter(5, checkpoint=tmp_path / "w").eval()
    encoder = getattr(source, "encoder", source)
    for name, value in fresh.encoder.named_parameters():
        assert torch.equal(value, encoder.get_parameter(name)), name
    assert_fresh(fresh)
    with torch.inference_mode():
        assert all(picture["is_finite"] for picture in fresh(pictures(fresh)))


def assert_fresh(model):
    """Values as torchvision draws them: nothing that memory held before."""
    for name, value in model.named_parameters():
        if not name.startswith("encoder."):
            assert value.isfinite().all(), name
            assert value.abs().max() < 4, name
            assert value.dim() == 1 or value.std() > 0, name
    assert model.num_classes == 3


def test_heads_of_a_model_in_use_start_afresh_too(tmp_path):
    save_model(tmp_path / "w", create_model("hiera_tiny_224", num_classes=7, **SMALL))
    model = segmenter()
    before = {name: value.clone() for name, value in model.named_parameters()}
    report = load_weights(model, tmp_path / "w")
    for name in report.reinitialised:
        if before[name].std() > 0:
            assert not torch.equal(before[name], model.get_parameter(name)), name
    heads = {name for name in before if not name.startswith("encoder.")}
    assert set(report.reinitialised) == heads


def test_predictors_alone_start_afresh_for_other_classes(tmp_path, caplog):
    model = segmenter()
    save_model(tmp_path / "w", model, label_map=NAMES)
    with caplog.at_level(logging.WARNING, "hiera_video"):
        other = create_segmenter(checkpoint=tmp_path / "w", num_classes=4)
    assert "reinitialised (8): roi_heads.box_predictor.cls_score" in caplog.text
    assert other.num_classes == 4
    assert other.card.label_map == {}
    fresh = {name for name, _ in other.named_parameters() if name.startswith(PREDICTORS)}
    assert len(fresh) == 8
    for name, value in other.named_parameters():
        assert name in fresh or torch.equal(value, model.get_parameter(name)), name


def test_other_widths_start_heads_afresh(tmp_path):
    save_model(tmp_path / "w", segmenter(num_classes=3))
    assert_fresh(create_segmenter(checkpoint=tmp_path / "w", channels=16))


@pytest.mark.parametrize("form", ["folder", "file"])
def test_others_start_from_a_segmenter(tmp_path, caplog, form):
    model = segmenter()
    save_model(tmp_path / "w", model, label_map=NAMES)
    weights = tmp_path / "w" if form == "folder" else tmp_path / "w" / "model.safetensors"
    num_heads = sum(not name.startswith("encoder.") for name in model.state_dict())
    with caplog.at_level(logging.WARNING, "hiera_video"):
        classifier = create_model("hiera_tiny_224", checkpoint=weights, num_classes=2, **SMALL)
        detector = create_detector("hiera_tiny_224", checkpoint=weights, **SMALL)
    assert caplog.text.count(f"dropped ({num_heads}): fpn.") == 2
    for name, value in model.encoder.named_parameters():
        assert torch.equal(value, classifier.get_parameter(name))
        assert torch.equal(value, detector.encoder.get_parameter(name))
    for other in (classifier, detector):
        assert other.card is None or other.card.label_map == {}
    save_model(tmp_path / "c", classifier)


def test_a_plain_file_of_a_segmenter(tmp_path):
    model = segmenter().eval()
    save_model(tmp_path / "w", model)
    again = segmenter(4, checkpoint=tmp_path / "w" / "model.safetensors").eval()
    x = pictures(model)
    with torch.inference_mode():
        assert same(again(x), model(x))


def test_wrong_kinds_are_named(tmp_path):
    save_model(tmp_path / "w", segmenter())
    with pytest.raises(WeightsError, match=r"expected a classifier: .*`hiera-video instances"):
        load_model(tmp_path / "w", kind="classifier")
    with pytest.raises(WeightsError, match="is an instance segmenter; expected an action detector"):
        load_model(tmp_path / "w", kind="detector")
    load_model(tmp_path / "w", kind="backbone")
    save_model(tmp_path / "c", create_model("hiera_tiny_224", num_classes=7, **SMALL))
    with pytest.raises(WeightsError, match=r"expected an instance .*instances train"):
        load_model(tmp_path / "c", kind="segmenter")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "hiera_tiny_16x224"}, "is a video model, and .* hiera_tiny_224, "),
        (
            {"stages": (1, 1, 1), "q_pool": 2, "mask_unit_attn": (True, True, False)},
            "has 3 stages",
        ),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"channels": 0}, "channels 0"),
        ({"image_size": 72}, r"\(1, 72, 72\).*\(1, 64, 64\)"),
    ],
)
def test_refuses_what_cannot_be(changes, text):
    with pytest.raises(ModelError, match=text):
        segmenter(**changes)


def test_refuses_other_encoders():
    classifier = create_model("hiera_tiny_224", **SMALL)
    with pytest.raises(ModelError, match="expected 0"):
        InstanceSegmenter(classifier, num_classes=3)
    video = create_model("hiera_tiny_16x224", **{**SMALL, "num_classes": 0})
    with pytest.raises(ModelError, match="16 frames: expected 4 stages and 1 frame"):
        InstanceSegmenter(video, num_classes=3)


# ---- training


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (1, 2)])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_trained_parameter_has_a_gradient(counts, recompute):
    """Processes of a run must agree on which have one."""
    model = segmenter()
    model.set_grad_checkpointing(recompute)
    loss = model(pictures(model), targets(*counts))
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert name.startswith("encoder.norm."), name


@pytest.mark.parametrize("counts", [(0, 0), (0, 3)])
def test_the_loss_of_weights_that_are_not_finite_is_not(counts):
    """So that the step is left out, as of other models."""
    for name in ("encoder.blocks.1.norm1.bias", "rpn.head.cls_logits.bias"):
        model = segmenter()
        with torch.no_grad():
            model.get_parameter(name)[0] = torch.nan
        assert not model(pictures(model), targets(*counts)).isfinite()


def test_recomputing_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        model = segmenter()
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(2)
        model(pictures(model), targets(1, 2)).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(map(torch.equal, *gradients))


def test_the_encoder_alone_is_compiled(monkeypatch):
    """Whose inputs have the same sizes in all steps."""
    model = segmenter()
    images = pictures(model)

    def loss():
        torch.manual_seed(2)
        return model(images, targets(1, 3)).item()

    expected, compiled, calls = loss(), [], []

    def compile_(function, **how):
        compiled.append((function.__qualname__, how))
        return lambda *inputs, **more: calls.append(inputs) or function(*inputs, **more)

    monkeypatch.setattr(torch, "compile", compile_)
    model.compile(fullgraph=True)
    assert compiled == [("Hiera.encode", {"fullgraph": True})]
    assert loss() == expected
    ((encoder, called_with),) = calls
    assert encoder is model.encoder
    assert called_with is images


def test_depth_of_parameters_as_in_the_encoder():
    model = segmenter(global_pos_size=(2, 2))
    ids = model.layer_ids()
    assert ids.keys() == dict(model.named_parameters()).keys()
    assert ids["encoder.patch_embed.proj.weight"] == ids["encoder.pos_embed"] == 0
    assert ids["encoder.blocks.2.norm1.weight"] == 3
    assert {ids[name] for name in ids if not name.startswith("encoder.")} == {5}
    assert model.no_weight_decay() == {"encoder.pos_embed", "encoder.pos_embed_win"}


# ---- objects


@torch.inference_mode()
def test_bfloat16_finds_about_the_same_boxes():
    model = segmenter().eval()
    x = pictures(model)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x)
    for ours, theirs in zip(rough, exact, strict=True):
        assert ours["boxes"].dtype == ours["scores"].dtype == ours["masks"].dtype == torch.float32
        assert abs(len(ours["boxes"]) - len(theirs["boxes"])) < 20
        assert (ours["scores"][:5] - theirs["scores"][:5]).abs().max() < 0.02
        distance = torch.cdist(theirs["boxes"][:5], ours["boxes"], p=torch.inf).amin(dim=1)
        assert (distance < 1).sum() >= 4  # pixels; of two near ones, another may be suppressed


@torch.inference_mode()
@pytest.mark.parametrize(
    "name",
    [
        "encoder.blocks.1.norm1.bias",
        "fpn.layer_blocks.2.1.bias",
        "rpn.head.cls_logits.bias",
        "rpn.head.bbox_pred.bias",
        "roi_heads.box_head.5.bias",
        "roi_heads.box_predictor.cls_score.bias",
        "roi_heads.box_predictor.bbox_pred.bias",
        "roi_heads.mask_predictor.mask_fcn_logits.bias",
    ],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_outputs_that_are_not_finite_are_told(name, value):
    """A single value, wherever it is, and not a picture without objects."""
    model = segmenter().eval()
    x = pictures(model)
    assert all(picture["is_finite"] for picture in model(x))
    parameter = model.get_parameter(name)
    parameter.view(-1)[1 if "mask_fcn" in name else 0] = value
    assert not any(picture["is_finite"] for picture in model(x))


@torch.inference_mode()
def test_only_the_picture_that_is_not_finite_is_told():
    model = segmenter().eval()
    x = pictures(model, 3)
    alone = model(x[[0, 2]])
    x[1, 0, 0, 5, 5] = torch.nan
    found = model(x)
    assert [bool(picture["is_finite"]) for picture in found] == [True, False, True]
    for ours, theirs in zip((found[0], found[2]), alone, strict=True):
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], atol=1e-3, rtol=0)


# ---- masks


def interpolated(mask, box, size):
    """`whole_masks` pixel by pixel."""
    (x1, y1, x2, y2), bins = box, len(mask)
    padded = np.pad(mask, 1)
    result = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = ((i + 0.5 - y1) / (y2 - y1), (j + 0.5 - x1) / (x2 - x1))
            y, x = (min(max(bins * place + 0.5, 0), bins + 0.99) for place in (y, x))
            top, left = int(y), int(x)
            part = padded[top : top + 2, left : left + 2]
            across = part @ [left + 1 - x, x - left]
            result[i, j] = across @ [top + 1 - y, y - top]
    return result


def test_whole_masks_are_interpolated(monkeypatch):
    monkeypatch.setattr("hiera_video.models.segmenter.PASTED_PIXELS", 2 * 30 * 40)  # in parts
    torch.manual_seed(0)
    boxes = torch.tensor(
        [
            [3.2, 4.7, 31.1, 25.9],
            [-6.0, -4.5, 12.0, 50.0],  # leaves the picture
            [7.3, 7.4, 7.9, 8.2],  # smaller than a pixel
            [0.0, 0.0, 40.0, 30.0],
            [50.0, 5.0, 60.0, 9.0],  # outside
        ]
    )
    masks = torch.rand(5, 28, 28)
    parts = list(whole_masks(masks, boxes, (30, 40)))
    assert [len(part) for part in parts] == [2, 2, 1]
    found = torch.cat(parts)
    for ours, mask, box in zip(found, masks.numpy(), boxes.tolist(), strict=True):
        expected = interpolated(mask, box, (30, 40))
        unsure = np.abs(expected - 0.5) < 1e-4
        assert np.array_equal(ours.numpy() | unsure, (expected >= 0.5) | unsure)
    assert not found[4].any()
    assert not sum(map(len, whole_masks(masks[:0], boxes[:0], (30, 40))))


def test_masks_lie_where_those_that_were_learnt_do():
    """What torchvision makes of masks for its loss, put back, gives the masks again."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    discs, boxes = [], []
    for radius, row, column in ((6, 20, 30), (10, 40, 15), (15, 30, 40)):
        disc = (x - column) ** 2 + (y - row) ** 2 <= radius**2
        boxes.append([column - radius, row - radius, column + radius + 1, row + radius + 1])
        discs.append(disc)
    masks, corners = torch.stack(discs), torch.tensor(boxes, dtype=torch.float32)
    for offset in torch.linspace(-0.4, 0.4, 5):
        moved = corners + offset
        learnt = project_masks_on_boxes(masks.to(torch.uint8), moved, torch.arange(3), 28)
        found = torch.cat(list(whole_masks(learnt, moved + MASK_SHIFT, (64, 64))))
        common = (found & masks).sum(dim=(1, 2)) / (found | masks).sum(dim=(1, 2))
        assert common.min() > 0.95
