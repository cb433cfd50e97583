"""Crops, flips, erasing, evaluation resize and normalisation of clips."""

import math
import tracemalloc
from collections import Counter
from fractions import Fraction

import av
import av.filter
import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.data import randaugment, transforms
from hiera_video.data.randaugment import RandAugment
from hiera_video.data.transforms import (
    Crops,
    DetectionTransform,
    FinetuneTransform,
    PretrainTransform,
    centre_crop,
    check_frames,
    erase_random_box,
    random_crop_box,
    resize_short_side,
    resized_crop,
)
from hiera_video.settings.training import Augment, Crop, DetectionAugment
from hiera_video.video.sampling import covering_short_side, crop_offsets

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
WHOLE = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0)}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pretrain(size, **arguments):
    return PretrainTransform(size, Crop(**arguments))


def finetune(size, **arguments):
    augment = Augment(**({"rand_augment_magnitude": None} | arguments))
    return FinetuneTransform(size, augment, mean=MEAN, std=STD)


sides = st.integers(1, 400)


@given(
    height=sides,
    width=sides,
    area=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(sorted).map(tuple),
    aspect=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted).map(tuple),
    seed=st.integers(0, 2**32),
)
def test_crop_lies_in_the_frame(height, width, area, aspect, seed):
    box = random_crop_box(height, width, area, aspect, np.random.default_rng(seed))
    top, left, box_height, box_width = box
    assert all(type(v) is int for v in box)
    assert box_height >= 1
    assert box_width >= 1
    assert 0 <= top <= height - box_height
    assert 0 <= left <= width - box_width


def test_crop_area_and_aspect_follow_their_ranges():
    rng = np.random.default_rng(0)
    boxes = [random_crop_box(2000, 2000, (0.1, 0.5), (3 / 4, 4 / 3), rng) for _ in range(4000)]
    top, left, h, w = np.array(boxes, float).T
    share, log_aspect = h * w / 2000**2, np.log(w / h) / math.log(4 / 3)
    assert share.min() >= 0.099
    assert share.max() <= 0.501
    assert share.mean() == pytest.approx(0.3, abs=0.01)  # uniform
    assert share.std() == pytest.approx(0.4 / math.sqrt(12), abs=0.005)
    assert np.abs(log_aspect).max() <= 1.005
    assert log_aspect.mean() == pytest.approx(0, abs=0.04)  # log-uniform
    assert log_aspect.std() == pytest.approx(1 / math.sqrt(3), abs=0.02)
    assert (top / (2000 - h)).mean() == pytest.approx(0.5, abs=0.03)
    assert (left / (2000 - w)).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 1000, (0, 433, 100, 133)),  # too wide: the widest allowed crop, central
        (1000, 100, (433, 0, 133, 100)),
    ],
)
def test_crop_that_never_fits_is_central(height, width, expected):
    rng = np.random.default_rng(0)
    crop = random_crop_box(height, width, (1.0, 1.0), (3 / 4, 4 / 3), rng)
    assert crop == expected


def test_crop_that_never_fits_but_need_not_be_cut_is_the_frame(monkeypatch):
    monkeypatch.setattr(transforms, "CROP_TRIES", 0)
    rng = np.random.default_rng(0)
    assert random_crop_box(91, 83, (0.1, 1.0), (3 / 4, 4 / 3), rng) == (0, 0, 91, 83)


def test_crop_is_every_frames_and_resized_as_slowfast_does():
    frames = noise(3, 61, 97, 3)
    ours = resized_crop(frames, (7, 11, 41, 53), 32, 48)
    cropped = torch.from_numpy(frames[:, 7:48, 11:64]).permute(0, 3, 1, 2).float()
    theirs = F.interpolate(cropped, size=(32, 48), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1)
    assert ours.flags.c_contiguous


@pytest.mark.parametrize("make", [pretrain, finetune])
@pytest.mark.parametrize("size", [32, (24, 40)])
@pytest.mark.parametrize("shape", [(4, 61, 97, 3), (1, 33, 20, 3), (2, 1, 1, 3)])
def test_clip_has_the_size_asked_for(make, size, shape):
    transform, frames = make(size), noise(*shape)
    before = frames.copy()
    for seed in range(8):
        clip = transform(frames, np.random.default_rng(seed))
        assert clip.shape == (shape[0], *((32, 32) if size == 32 else size), 3)
        assert clip.dtype == np.uint8
        assert clip.flags.c_contiguous
        assert clip.flags.writeable
    np.testing.assert_array_equal(frames, before)


def test_clip_is_a_function_of_the_generator():
    transform, frames = finetune(32, rand_augment_magnitude=7), noise(3, 50, 60, 3)
    cv2.setRNGSeed(1)
    first = [transform(frames, np.random.default_rng(seed)) for seed in range(20)]
    np.random.seed(5)  # noqa: NPY002  global states play no part
    torch.manual_seed(5)
    cv2.setRNGSeed(7)
    again = [transform(frames, np.random.default_rng(seed)) for seed in range(20)]
    np.testing.assert_array_equal(first, again)
    assert len({clip.tobytes() for clip in first}) == 20


def test_read_only_and_strided_frames_are_welcome():
    frames = noise(3, 50, 120, 3)
    frames.flags.writeable = False
    view, transform = frames[:, :, ::2], finetune(32, rand_augment_magnitude=7)
    for seed in range(10):
        expected = transform(view.copy(), np.random.default_rng(seed))
        np.testing.assert_array_equal(transform(view, np.random.default_rng(seed)), expected)


def test_identical_frames_stay_identical(monkeypatch):
    monkeypatch.setattr(randaugment, "NUM_LAYERS", 4)
    frames = np.repeat(noise(1, 50, 60, 3), 4, axis=0)
    transform = finetune(32, erasing_prob=0.0, rand_augment_magnitude=7)
    for seed in range(30):
        clip = transform(frames, np.random.default_rng(seed))
        assert (clip == clip[:1]).all()


@pytest.mark.parametrize("width", [32, 33])
def test_flip_mirrors_half_of_the_clips(width):
    frames = noise(3, width, width, 3)
    transform, rng = PretrainTransform(width, Crop(**WHOLE)), np.random.default_rng(0)
    flipped = 0
    for _ in range(200):
        clip = transform(frames, rng)
        assert (clip == frames).all() or (clip == frames[:, :, ::-1]).all()
        flipped += bool((clip != frames).any())
    assert 70 < flipped < 130


@pytest.mark.parametrize("make", [pretrain, finetune])
def test_flip_false_never_mirrors(make):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None], (2, 64, 64, 3))
    transform = make(32, flip=False, **({"erasing_prob": 0.0} if make is finetune else {}))
    for seed in range(100):
        clip = transform(ramp, np.random.default_rng(seed)).astype(int)
        assert clip[0, 0, -1, 0] >= clip[0, 0, 0, 0]


def test_steps_come_in_order():
    """RandAugment sees the crop; erasing comes last."""
    calls = []

    class Blackout(RandAugment):
        def __call__(self, frames, rng):
            calls.append(frames.shape)
            return np.zeros_like(frames)

    transform = finetune(32, erasing_prob=1.0)
    transform.rand_augment = Blackout(MEAN)
    clip = transform(noise(2, 50, 60, 3), np.random.default_rng(0))
    assert calls == [(2, 32, 32, 3)]
    assert clip.any()  # zeros but for the box


def erased_box(clip):
    """Where a clip of zeros was erased: (top, bottom, left, right), and whether it is one box."""
    hit = (clip > 0).any(axis=(0, 3))
    rows, columns = np.flatnonzero(hit.any(1)), np.flatnonzero(hit.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def test_erasing_is_one_box_of_noise_in_all_frames():
    rng = np.random.default_rng(0)
    shares, aspects, values = [], [], []
    for _ in range(150):
        clip = np.zeros((4, 90, 120, 3), np.uint8)
        erase_random_box(clip, MEAN, STD, rng)
        top, bottom, left, right = erased_box(clip)
        box = clip[:, top:bottom, left:right].copy()
        clip[:, top:bottom, left:right] = 0
        assert not clip.any()
        assert (box > 0).mean() > 0.95  # noise is rarely black
        assert (box[0] != box[1]).mean() > 0.9  # each frame has its own
        shares.append(box.shape[1] * box.shape[2] / (90 * 120))
        aspects.append(box.shape[1] / box.shape[2])
        values.append(box.ravel())
    assert min(shares) > 0.01
    assert max(shares) < 1 / 3 + 0.02
    assert np.mean(shares) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    assert min(aspects) > 0.25
    assert max(aspects) < 4
    values = np.concatenate(values).astype(float)
    assert values.mean() == pytest.approx(255 * 0.45, abs=1)
    assert values.std() == pytest.approx(255 * 0.225, abs=2)  # a little is clipped


@pytest.mark.parametrize(
    ("probability", "low", "high"), [(0.0, 0, 0), (0.25, 25, 78), (1.0, 200, 200)]
)
def test_erasing_probability(probability, low, high):
    transform, rng = finetune(32, erasing_prob=probability), np.random.default_rng(0)
    frames = np.zeros((2, 40, 40, 3), np.uint8)
    assert low <= sum(transform(frames, rng).any() for _ in range(200)) <= high


def test_erasing_gives_up_where_no_box_fits():
    clip = noise(2, 1, 1, 3)
    before = clip.copy()
    erase_random_box(clip, MEAN, STD, np.random.default_rng(0))
    np.testing.assert_array_equal(clip, before)


def mean_of_areas(frames, height, width):
    """The definition: each pixel is the mean of the area that it covers, float64."""

    def overlaps(new, old):
        begin, end = np.arange(new)[:, None] * old / new, np.arange(1, new + 1)[:, None] * old / new
        pixel = np.arange(old)
        return np.clip(np.minimum(end, pixel + 1) - np.maximum(begin, pixel), 0, 1) * new / old

    rows, columns = overlaps(height, frames.shape[1]), overlaps(width, frames.shape[2])
    return np.einsum("yh,thwc,xw->tyxc", rows, frames.astype(float), columns, optimize=True)


def swscale_area(frames, height, width):
    """ffmpeg's `scale` filter on RGB."""
    _, rows, columns, _ = frames.shape
    graph = av.filter.Graph()
    source = graph.add_buffer(width=columns, height=rows, format="rgb24", time_base=Fraction(1, 25))
    flags = "area+accurate_rnd+full_chroma_int+full_chroma_inp"
    scale = graph.add("scale", f"{width}:{height}:flags={flags}")
    to_rgb, sink = graph.add("format", "rgb24"), graph.add("buffersink")
    for before, after in ((source, scale), (scale, to_rgb), (to_rgb, sink)):
        before.link_to(after)
    graph.configure()
    scaled = []
    for number, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame, "rgb24")
        picture.pts, picture.time_base = number, Fraction(1, 25)
        graph.push(picture)
        scaled.append(graph.pull().to_ndarray())
    return np.stack(scaled)


def zone_plate(height, width):
    """Rings that become finer than a pixel: sharp at every scale."""
    y, x = np.mgrid[:height, :width]
    radius = (x - width / 2) ** 2 + (y - height / 2) ** 2
    rings = [127.5 + 127.5 * np.cos(radius / scale) for scale in (1500, 1100, 800)]
    frame = np.stack(rings, axis=-1).round().astype(np.uint8)
    return np.stack([frame, 255 - frame])


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [
        ((90, 120), 32, (32, 43)),
        ((121, 90), 32, (43, 32)),
        ((64, 64), 32, (32, 32)),
        ((256, 340), 224, (224, 298)),
        ((3000, 400), 40, (300, 40)),
        ((700, 900), 10, (10, 13)),
    ],
)
def test_shrinking_averages_areas(shape, side, expected):
    for frames in (noise(1, *shape, 3), noise(2, *shape, 3), zone_plate(*shape)):
        ours = resize_short_side(frames, side)
        assert ours.shape == (len(frames), *expected, 3)
        difference = ours - mean_of_areas(frames, *expected)
        assert np.abs(difference).max() < 1.1
        assert np.abs(difference).mean() < 0.35  # 0.25 by rounding


@pytest.mark.parametrize("shape", [(720, 1280), (1080, 1920)])
@pytest.mark.parametrize("side", [224, 256])
def test_shrinking_is_that_of_swscale(shape, side):
    """As in SlowFast's decoder: to 224 for three crops, to 256 in training."""
    frames = zone_plate(*shape)
    ours = resize_short_side(frames, side)
    theirs = swscale_area(frames, *ours.shape[1:3])
    assert np.abs(ours.astype(int) - theirs).mean() < 0.5
    sampled = cv2.resize(frames[0], ours.shape[2:0:-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(sampled.astype(int) - theirs[0]).mean() > 5  # which it was


@pytest.mark.parametrize(("shape", "expected"), [((24, 31), (32, 41)), ((31, 24), (41, 32))])
def test_enlarging_is_bilinear(shape, expected):
    frames = noise(2, *shape, 3)
    ours = resize_short_side(frames, 32)
    assert ours.shape == (2, *expected, 3)
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    theirs = F.interpolate(channels_first, size=expected, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1)


def test_strided_frames_are_averaged_as_others():
    frames = noise(4, 50, 200, 3)[::2, :, ::2]
    np.testing.assert_array_equal(
        resize_short_side(frames, 23), resize_short_side(frames.copy(), 23)
    )


def test_training_shrinks_to_the_short_side_and_crops_bilinearly():
    """As in SlowFast, where the decoder shrinks to 256 before crops of 224 are taken."""
    frames = noise(2, 180, 240, 3)
    for transform in (pretrain(28, **WHOLE, flip=False), finetune(28, **WHOLE, flip=False)):
        assert transform.short_side == 32
        clip = transform(frames, np.random.default_rng(0))
        shrunk = resize_short_side(frames, 32)[:, :, 5:37]  # the largest square
        if isinstance(transform, FinetuneTransform):
            continue  # erased and so on; its crop is that of the other
        np.testing.assert_array_equal(clip, resized_crop(shrunk, (0, 0, 32, 32), 28, 28))
    small = noise(2, 30, 40, 3)
    clip = pretrain(28, **WHOLE, flip=False)(small, np.random.default_rng(0))
    np.testing.assert_array_equal(clip, resized_crop(small, (0, 5, 30, 30), 28, 28))


def test_evaluation_resize_leaves_the_right_size_alone():
    frames = noise(2, 32, 57, 3)
    np.testing.assert_array_equal(resize_short_side(frames, 32), frames)


def test_crops_of_single_frames_and_of_clips_are_those_of_evaluation():
    frames = noise(2, 40, 60, 3)
    clips = Crops((16, 16), 3, 20)(frames)
    assert clips.shape == (3, 2, 16, 16, 3)
    resized = resize_short_side(frames, 20)
    for clip, (top, left) in zip(clips, crop_offsets(20, 30, 16, 3), strict=True):
        np.testing.assert_array_equal(clip, resized[:, top : top + 16, left : left + 16])
    single = Crops((16, 16), 3, 20)(frames[:1])
    np.testing.assert_array_equal(single, clips[:, :1])


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_wrong_frames_are_named(frames):
    with pytest.raises(ValueError, match=r"allowed: uint8 \[T, H, W, 3\]"):
        check_frames(frames)
    for call in (pretrain(8), finetune(8)):
        with pytest.raises((ValueError, TypeError)):  # TypeError: from jaxtyping's checks, if on
            call(frames, np.random.default_rng(0))
    with pytest.raises((ValueError, TypeError)):
        resize_short_side(frames, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"crop_area": (0.0, 1.0)}, "crop_area"),
        ({"crop_area": (0.5, 0.1)}, "crop_area"),
        ({"crop_area": (0.5, 1.5)}, "crop_area"),
        ({"crop_aspect": (2.0, 1.0)}, "crop_aspect"),
        ({"erasing_prob": 1.5}, "erasing_prob"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        finetune(**({"size": 8} | arguments))


@pytest.mark.parametrize("resize", ["crop", "short_side"])
def test_a_large_image_is_averaged_when_it_is_shrunk(resize):
    """Lines of one pixel, 16 to a pixel of the result: grey. Crops of clips are SlowFast's."""

    def shrunk(frames):
        if resize == "crop":
            return resized_crop(frames, (0, 0, 512, 512), 32, 32)
        return resize_short_side(frames, 32)

    image = np.zeros((1, 512, 512, 3), np.uint8)
    image[:, ::2] = 254
    assert set(np.unique(shrunk(image))) == {127}
    pixel = np.zeros((1, 512, 512, 3), np.uint8)
    pixel[:, ::16, ::16] = 255  # which sampling every 16th pixel takes for all or misses
    assert set(np.unique(shrunk(pixel))) <= {0, 1}
    noise = _noise(512)
    assert np.ptp(shrunk(noise).astype(int)) < 80
    clip = shrunk(np.repeat(noise, 2, axis=0))
    assert (np.ptp(clip.astype(int)) > 150) == (resize == "crop")


def test_a_small_image_is_enlarged_smoothly():
    image = _noise(16)
    twice = resized_crop(np.repeat(image, 2, axis=0), (0, 0, 16, 16), 32, 32)
    assert np.array_equal(resized_crop(image, (0, 0, 16, 16), 32, 32)[0], twice[0])


def _noise(size):
    return np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)


# ---- frames that are much longer than wide


@given(
    short=st.integers(3, 60),
    aspect=st.floats(8.1, 60),
    tall=st.booleans(),
    num_crops=st.sampled_from([1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_crops_of_long_frames_are_those_of_the_whole(short, aspect, tall, num_crops):
    """To a pixel, because a whole number of pixels has another scale along the longer side."""
    shape = (short, round(short * aspect))
    sigma = max(2, short / 12)  # smooth in the result
    frames = cv2.GaussianBlur(noise(*shape, 3), None, sigma)[None].repeat(2, axis=0)
    if tall:
        frames = np.ascontiguousarray(frames.transpose(0, 2, 1, 3))
    crops = Crops((24, 20), num_crops, 32)(frames)
    whole = resize_short_side(frames, 32)
    offsets = crop_offsets(*whole.shape[1:3], (24, 20), num_crops)
    for crop, (top, left) in zip(crops, offsets, strict=True):
        near = [  # at most a pixel away
            whole[:, top + dy : top + dy + 24, left + dx : left + dx + 20].astype(int)
            for dy, dx in ((0, 0), *([(-1, 0), (1, 0)] if tall else [(0, -1), (0, 1)]))
        ]
        near = np.stack([view for view in near if view.shape == crop.shape])
        assert (crop >= near.min(axis=0) - 1).all()
        assert (crop <= near.max(axis=0) + 1).all()


@pytest.mark.parametrize("shape", [(8, 30_000), (30_000, 8)])
def test_memory_is_that_of_the_crops(shape):
    frames, boxes = noise(2, *shape, 3), np.array([[0.4, 0, 0.5, 1.0]])
    zoom = DetectionTransform((224, 224), DetectionAugment(zoom=(1.0, 1.2), flip=True))
    tracemalloc.start()
    assert Crops((224, 224), 3)(frames).shape == (3, 2, 224, 224, 3)
    assert centre_crop(frames, boxes, (224, 224))[0].shape == (2, 224, 224, 3)
    assert zoom(frames, boxes, np.random.default_rng(0))[0].shape == (2, 224, 224, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # a whole resized frame has 560 MB


# ---- clips with boxes


def painted(height, width, box_px):
    """Two black frames with a white rectangle, and its box as fractions."""
    x1, y1, x2, y2 = box_px
    frames = np.zeros((2, height, width, 3), np.uint8)
    frames[:, y1:y2, x1:x2] = 255
    return frames, np.array([box_px]) / (width, height, width, height)


def box_of_pixels(clip):
    """Corners in pixels of what is white in a clip; None where nothing is."""
    assert np.array_equal(clip[0], clip[1])
    y, x = (np.flatnonzero((clip[0, ..., 0] > 127).any(axis=axis)) for axis in (1, 0))
    return np.array([x[0], y[0], x[-1] + 1, y[-1] + 1]) if len(x) else None


def in_pixels(boxes, size):
    """Corners, cut off at the picture, of a clip's only box."""
    (box,) = boxes.clip(0, 1) * (size[1], size[0], size[1], size[0])
    return box


def assert_follows(clip, boxes, size, within_px):
    assert clip.shape[1:3] == size
    assert clip.flags.c_contiguous
    found, expected = box_of_pixels(clip), in_pixels(boxes, size)
    if min(expected[2:] - expected[:2]) > within_px:  # what is narrower is too dim at its corners
        np.testing.assert_allclose(found, expected, atol=within_px)


SIZES = [(24, 24), (24, 40), (40, 24)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("picture", [(40, 60), (60, 40), (40, 40)])
def test_boxes_follow_crop_and_flip_exactly(size, picture):
    """The picture is as large as it is zoomed to: no pixel is resampled."""
    zoom = min(picture) / covering_short_side(*picture, size)
    transform = DetectionTransform(size, DetectionAugment(zoom=(zoom, zoom), flip=True))
    ways = Counter()
    for seed in range(80):
        rng = np.random.default_rng(seed)
        x, y = rng.integers(0, picture[1] - 10), rng.integers(0, picture[0] - 6)
        frames, boxes = painted(*picture, (x, y, x + 10, y + 6))
        frames[:, y : y + 6, x : x + 5, 1] = 0  # the left half is of another colour
        before = boxes.copy()
        clip, after = transform(frames, boxes, rng)
        assert np.array_equal(boxes, before)
        assert_follows(clip, after, size, within_px=1e-9)
        if (clip[0, ..., 0] == 255).sum() == 60:  # all of it
            white, red = clip[0, ..., 1].any(0).argmax(), clip[0, ..., 0].any(0).argmax()
            ways["flipped" if white == red else "not"] += 1  # whether white is on the left
    assert min(ways["flipped"], ways["not"]) >= 1


@pytest.mark.parametrize(
    ("size", "box_px", "expected"),
    [
        ((20, 20), (12, 4, 28, 10), (2, 4, 18, 10)),  # columns 10 to 30 of 40
        ((20, 20), (0, 4, 15, 10), (0, 4, 5, 10)),
        ((20, 40), (12, 4, 28, 10), (12, 4, 28, 10)),
        ((10, 40), (12, 4, 28, 10), (12, 0, 28, 5)),  # rows 5 to 15 of 20
    ],
)
def test_boxes_follow_the_centre_crop_exactly(size, box_px, expected):
    frames, boxes = painted(20, 40, box_px)
    clip, after = centre_crop(frames, boxes, size)
    assert_follows(clip, after, size, within_px=1e-9)
    np.testing.assert_allclose(in_pixels(after, size), expected)


def test_a_box_outside_of_the_crop_has_no_area_in_it():
    frames, boxes = painted(20, 40, (2, 4, 9, 10))
    clip, after = centre_crop(frames, boxes, (20, 20))
    assert box_of_pixels(clip) is None
    assert after[0, 2] < 0


@pytest.mark.parametrize("boxes", [np.empty((0, 4)), np.full((3, 4), 0.5)])
def test_any_number_of_boxes(boxes):
    transform = DetectionTransform((16, 16), DetectionAugment(zoom=(1.0, 1.5), flip=True))
    for seed in range(4):
        assert transform(noise(2, 20, 30, 3), boxes, np.random.default_rng(seed))[1].shape == (
            boxes.shape
        )
    assert centre_crop(noise(2, 20, 30, 3), boxes, (16, 16))[1].shape == boxes.shape


def test_zoom_below_one_is_refused():
    for zoom in ((0.9, 1.2), (1.3, 1.2)):
        with pytest.raises(ValueError, match="zoom"):
            DetectionTransform((16, 16), DetectionAugment(zoom=zoom, flip=False))


@pytest.mark.parametrize(("height", "width"), [(20, 400), (400, 20)])
def test_boxes_follow_the_crops_of_long_frames(height, width):
    x1, y1 = (195, 4) if width > height else (4, 195)
    frames, boxes = painted(height, width, (x1, y1, x1 + 12, y1 + 12))
    assert_follows(*centre_crop(frames, boxes, (24, 30)), (24, 30), within_px=1.01)
    transform = DetectionTransform((24, 30), DetectionAugment(zoom=(1.0, 1.5), flip=True))
    met = 0
    for seed in range(60):
        clip, after = transform(frames, boxes, np.random.default_rng(seed))
        if box_of_pixels(clip) is not None:
            assert_follows(clip, after, (24, 30), within_px=1.01)
            met += 1
    assert met >= 3


@given(
    height=st.integers(30, 90),
    width=st.integers(30, 90),
    size=st.tuples(st.integers(12, 48), st.integers(12, 48)),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    zoom=st.floats(1, 2),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_boxes_follow_whatever_the_sizes(height, width, size, corner, zoom, seed):
    """To the pixel: edges of a resized picture lie somewhere in one."""
    x1, y1 = int(corner[0] * (width - 16)), int(corner[1] * (height - 16))
    frames, boxes = painted(height, width, (x1, y1, x1 + 16, y1 + 16))
    transform = DetectionTransform(size, DetectionAugment(zoom=(zoom, zoom), flip=True))
    assert_follows(*transform(frames, boxes, np.random.default_rng(seed)), size, within_px=1.01)
    assert_follows(*centre_crop(frames, boxes, size), size, within_px=1.01)
