"""The stages of Hiera as a pyramid, and torchvision's detectors on it."""

from typing import Any

import pytest
import torch
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet

from hiera_video import Hiera
from hiera_video.errors import ModelError
from hiera_video.models.pyramid import FeaturePyramid, Pyramid

SMALL: dict[str, Any] = {
    "input_size": (1, 64, 64),
    "embed_dim": 16,
    "stages": (1, 1, 1, 1),
    "num_classes": 0,
    "patch_kernel": (1, 7, 7),
    "patch_stride": (1, 4, 4),
    "patch_padding": (0, 3, 3),
    "sep_pos_embed": False,
}
ABSOLUTE = {**SMALL, "global_pos_size": (3, 3)}
WINDOWS = {**ABSOLUTE, "window_units": (1, 2, 2)}
VIDEO = {
    **SMALL,
    "input_size": (8, 64, 64),
    "patch_kernel": (3, 7, 7),
    "patch_stride": (2, 4, 4),
    "patch_padding": (1, 3, 3),
    "sep_pos_embed": True,
}


def model(arguments: dict[str, Any], seed: int = 0) -> Hiera:
    torch.manual_seed(seed)
    hiera = Hiera(**arguments).eval()
    with torch.no_grad():
        for name, parameter in hiera.named_parameters():
            if "pos_embed" in name:
                parameter.normal_()
    return hiera


@torch.inference_mode()
@pytest.mark.parametrize("arguments", [SMALL, ABSOLUTE, WINDOWS], ids=["plain", "abs", "windows"])
def test_maps_are_the_stages(arguments: dict[str, Any]) -> None:
    encoder = model(arguments)
    images = torch.randn(2, 3, 64, 64)
    maps = Pyramid(encoder)(images)
    assert list(maps) == ["0", "1", "2", "3"]
    for found, stage in zip(maps.values(), encoder.forward_intermediates(images), strict=True):
        assert torch.allclose(found, stage.squeeze(1).permute(0, 3, 1, 2), atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("arguments", [ABSOLUTE, WINDOWS], ids=["abs", "windows"])
def test_other_sizes_are_those_of_a_model_built_for_them(arguments: dict[str, Any]) -> None:
    encoder = model(arguments)
    large = Hiera(**{**arguments, "input_size": (1, 128, 192)}).eval()
    large.load_state_dict(encoder.state_dict())
    images = torch.randn(1, 3, 128, 192)
    maps = Pyramid(encoder)(images)
    for found, stage in zip(maps.values(), large.forward_intermediates(images), strict=True):
        assert torch.allclose(found, stage.squeeze(1).permute(0, 3, 1, 2), atol=1e-6)


@torch.inference_mode()
def test_plain_embeddings_are_resized_in_step_with_the_units() -> None:
    encoder = model(SMALL)
    with torch.no_grad():
        encoder.pos_embed.copy_(torch.randn(8, 8, 16).tile(2, 2, 1).flatten(0, 1)[None])
    pyramid = Pyramid(encoder)
    assert torch.allclose(
        pyramid.pos_embed((24, 32)), pyramid.pos_embed((8, 8)).tile(1, 1, 3, 4), atol=1e-5
    )


@torch.inference_mode()
@pytest.mark.parametrize("arguments", [SMALL, ABSOLUTE, VIDEO], ids=["plain", "abs", "video"])
def test_padding_is_undone(arguments: dict[str, Any]) -> None:
    pyramid = Pyramid(model(arguments))
    assert pyramid.strides == [4, 8, 16, 32]
    assert pyramid.multiple == (32, 32)
    images = torch.randn(1, 3, 70, 41)
    padded = torch.zeros(1, 3, 96, 64)
    padded[..., :70, :41] = images
    whole = pyramid(padded)
    for stride, (key, found) in zip(pyramid.strides, pyramid(images).items(), strict=True):
        rows, columns = -(-70 // stride), -(-41 // stride)
        assert found.shape == (1, pyramid.channels[int(key)], rows, columns)
        assert torch.equal(found, whole[key][..., :rows, :columns])


@torch.inference_mode()
def test_a_pixel_shows_at_its_place() -> None:
    """Within units, a pixel reaches the tokens whose patches see it and those of their units."""
    encoder = model({**SMALL, "mask_unit_attn": (True, True, True, True)})
    for block in encoder.blocks:  # attention would spread it over its unit
        block.attn.proj.weight.zero_()
    pyramid = Pyramid(encoder)
    images = torch.randn(1, 3, 96, 128)
    before = pyramid(images)
    for y, x in ((2, 2), (34, 66), (70, 50), (93, 126)):
        probed = images.clone()
        probed[0, :, y, x] += 10
        after = pyramid(probed)
        for stride, key in zip(pyramid.strides, before, strict=True):
            change = (after[key] - before[key]).abs().sum(1)[0]
            rows, columns = change.nonzero().unbind(1)
            assert change[y // stride, x // stride] > 0
            # A patch of 7 pixels with stride 4 and padding 3 covers pixels 4 i - 3 to 4 i + 3.
            for found, at in ((rows, y), (columns, x)):
                first, last = -((3 - at) // 4), (at + 3) // 4
                allowed = {token * 4 // stride for token in range(max(first, 0), last + 1)}
                assert set(found.tolist()) <= allowed


@torch.inference_mode()
def test_a_frame_of_a_video_model_is_a_moment_of_a_still_clip() -> None:
    encoder = model(VIDEO)
    encoder.pos_embed_temporal.zero_()
    for block in encoder.blocks:
        block.attn.attends = "within units"  # so that moments do not see one another
    image = torch.randn(1, 3, 64, 64)
    stages = encoder.forward_intermediates(image.unsqueeze(2).expand(-1, -1, 8, -1, -1))
    for found, stage in zip(Pyramid(encoder)(image).values(), stages, strict=True):
        # The first moment sees the zeros before the clip.
        assert torch.allclose(found, stage[:, 2].permute(0, 3, 1, 2), atol=1e-5)
    encoder.pos_embed_temporal.normal_()
    mean = encoder.pos_embed_temporal.mean(1)[..., None, None]
    spatial = encoder.pos_embed_spatial.transpose(1, 2).unflatten(2, (16, 16))
    assert torch.allclose(Pyramid(encoder).pos_embed((16, 16)), spatial + mean, atol=1e-6)


@pytest.mark.parametrize("detector", [FasterRCNN, MaskRCNN, RetinaNet])
def test_detectors_of_torchvision_train(detector: Any) -> None:
    backbone = FeaturePyramid(model(ABSOLUTE).train(), out_channels=32)
    if detector is RetinaNet:  # whose anchors have five maps by default
        assert list(backbone(torch.zeros(1, 3, 64, 64))) == ["0", "1", "2", "3", "pool"]
    net = detector(backbone, num_classes=3, min_size=64, max_size=96)
    images = [torch.rand(3, 50, 70), torch.rand(3, 64, 60)]
    masks = torch.zeros(1, 50, 70, dtype=torch.uint8), torch.zeros(1, 64, 60, dtype=torch.uint8)
    for mask in masks:
        mask[:, 10:40, 10:50] = 1
    box = torch.tensor([[10.0, 10.0, 50.0, 40.0]])
    targets = [{"boxes": box, "labels": torch.tensor([1]), "masks": mask} for mask in masks]
    sum(net(images, targets).values()).backward()
    unused = {name for name, p in net.named_parameters() if p.requires_grad and p.grad is None}
    assert not unused
    assert backbone.body.encoder.pos_embed_win.grad.abs().sum() > 0
    net.eval()
    with torch.inference_mode():
        found = net(images)
    assert set(found[0]) >= {"boxes", "labels", "scores"}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 64, 64), torch.float32),  # no batch
        ((1, 4, 64, 64), torch.float32),  # alpha
        ((1, 3, 1, 64, 64), torch.float32),
        ((1, 3, 64, 64), torch.uint8),
    ],
)
def test_other_input_is_refused(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pyramid = Pyramid(Hiera(**SMALL))
    with pytest.raises(
        ModelError, match=r"expected normalised pictures in floating point, \[B, 3,"
    ):
        pyramid(torch.zeros(shape).to(dtype))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_unit": (2, 8, 8)}, r"mask_unit is \(2, 8, 8\) .* needs 1 along time in both"),
        ({"sep_pos_embed": False}, "sep_pos_embed is false"),
    ],
)
def test_models_without_single_frames(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Pyramid(Hiera(**{**VIDEO, **changes}))
