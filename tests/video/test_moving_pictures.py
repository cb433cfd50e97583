"""Animated PNG, WebP and GIF and TIFF pages give all their frames, whatever the file is called."""

import logging
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError
from tests.video.drawn_pictures import (
    CLEAR,
    KEEP,
    RESTORE,
    SIZE,
    Part,
    composed,
    png_bytes,
    random_parts,
    webp_bytes,
    write_tiff,
)
from tests.video.striped_video import decode_linearly, make_striped_video

PNG, WEBP = "png", "webp"
WRITERS = {PNG: png_bytes, WEBP: webp_bytes}
DISPOSALS = {PNG: 3, WEBP: 2}
REDUCED_COPY, ORIENTATION = {254: 1}, 274


def pages(count: int, size=SIZE) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    return list(rng.integers(0, 256, (count, *size, 3)).astype(np.uint8))


def assert_seen(frames: np.ndarray, parts: list[Part], indices=None) -> None:
    """Frames equal the composition where it is opaque; colours behind nothing do not matter."""
    expected = composed(parts)
    expected = expected if indices is None else [expected[index] for index in indices]
    assert len(frames) == len(expected)
    for frame, right in zip(frames, expected, strict=True):
        is_opaque = right[..., 3] > 0
        np.testing.assert_array_equal(frame[is_opaque], right[..., :3][is_opaque])


def cause_of(path, **arguments) -> str:
    with pytest.raises(VideoError) as caught, open_video(path, **arguments) as reader:
        reader.frames(range(len(reader)))
    return caught.value.cause


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("seed", range(6))
def test_frames_are_disposed_and_blended(tmp_path, kind, seed):
    parts = random_parts(seed, disposals=DISPOSALS[kind])
    path = tmp_path / "a"
    path.write_bytes(WRITERS[kind](parts))
    with open_video(path) as reader:
        frames = reader.frames(range(12))
        assert_seen(frames, parts)
        for index in (11, 7, 6, 5, 8, 0):
            np.testing.assert_array_equal(reader[index], frames[index])
        np.testing.assert_array_equal(reader.frames([9, 2, 9]), frames[[9, 2, 9]])
        durations_ms = np.diff([*reader.frame_times_sec, reader.end_sec]) * 1000
        assert np.allclose(durations_ms, [part.ms for part in parts], atol=0.02)
        assert reader.damage is None


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("suffix", [".webp", ".png", ".gif", ".mp4", ".jpg", ".apng", ""])
def test_animations_under_any_name(tmp_path, backend, kind, suffix):
    parts = random_parts(1, 4, disposals=2)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(WRITERS[kind](parts))
    with open_video(path, backend) as reader:
        assert_seen(reader.frames(range(4)), parts)
    assert_seen(open_video(path.read_bytes(), backend).frames(range(4)), parts)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".jpg", ".mp4"])
@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.gif", "gif", "rgb8"),
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mpg", "mpeg2video", "yuv420p"),
        ("a.hevc", "libx265", "yuv420p"),
    ],
)
def test_videos_named_as_pictures(tmp_path, name, codec, pix_fmt, suffix):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = make_striped_video(tmp_path / name, 5, codec=codec, pix_fmt=pix_fmt, options=options)
    expected = decode_linearly(path)
    with open_video(path.rename(tmp_path / f"a{suffix}")) as reader:
        np.testing.assert_array_equal(reader.frames(range(5)), expected)


def test_key_frames_of_animated_png_depend_on_what_was_before(tmp_path):
    """libavformat calls both kinds of frames key frames, also where they depend on others."""
    full, small = (np.full((*size, 4), 255, np.uint8) for size in (SIZE, (4, 4)))
    sparse = full.copy()
    sparse[:, ::2] = 0
    first = Part(full * np.array([0, 1, 0, 1], np.uint8), 0, 0, 100, KEEP, False)
    dot = Part(small, 2, 2, 100, KEEP, False)
    for second in (
        Part(sparse, 0, 0, 100, CLEAR, True),  # blended with the first
        Part(full, 0, 0, 100, RESTORE, False),  # after which the first returns
    ):
        parts = [first, second, dot]
        (tmp_path / "a.png").write_bytes(png_bytes(parts))
        with open_video(tmp_path / "a.png") as reader:
            assert_seen(reader.frames(range(3)), parts)
            for index in (2, 1):
                assert_seen(reader.frames([index]), parts, [index])


def test_what_stands_before_the_frames_of_an_animated_png(tmp_path):
    """The number of frames may come late, and the picture for other programs is no frame."""
    parts = random_parts(0, 4)
    default = np.full((*SIZE, 4), 200, np.uint8)
    (tmp_path / "a.png").write_bytes(png_bytes(parts, before=b"x" * 5000, default=default))
    with open_video(tmp_path / "a.png") as reader:
        assert_seen(reader.frames(range(4)), parts)


@pytest.mark.parametrize(("kind", "usual_ms"), [(PNG, 1000 / 15), (WEBP, 100)])
def test_frames_without_a_time(tmp_path, kind, usual_ms):
    parts = [replace(part, ms=ms) for part, ms in zip(random_parts(0, 3), (0, 40, 0), strict=True)]
    (tmp_path / "a").write_bytes(WRITERS[kind](parts))
    with open_video(tmp_path / "a") as reader:
        expected = np.cumsum([0, usual_ms, 40]) / 1000
        assert np.allclose(reader.frame_times_sec, expected, atol=2e-5)
        assert reader.end_sec == pytest.approx(expected[-1] + usual_ms / 1000, abs=2e-5)


def test_orientation_of_an_animation(tmp_path):
    parts = random_parts(0, 3)
    (tmp_path / "a.webp").write_bytes(webp_bytes(parts))
    (tmp_path / "b.webp").write_bytes(webp_bytes(parts, orientation=6))
    plain, turned = (open_video(tmp_path / name).frames(range(3)) for name in ("a.webp", "b.webp"))
    np.testing.assert_array_equal(turned, np.rot90(plain, -1, axes=(1, 2)))


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.mp4"])
def test_pages_of_a_tiff(tmp_path, backend, name):
    expected = pages(5)
    path = write_tiff(tmp_path / name, expected, [{}] * 5)
    with open_video(path, backend) as reader:
        np.testing.assert_array_equal(reader.frames(range(5)), expected)
        np.testing.assert_array_equal(
            reader.frames([4, 1, 4]), [expected[4], expected[1], expected[4]]
        )
        np.testing.assert_allclose(reader.frame_times_sec, np.arange(5) / 25)
        assert reader.end_sec == pytest.approx(0.2)
    with open_video(path, backend, frames_fps=10) as reader:
        np.testing.assert_allclose(reader.frame_times_sec, np.arange(5) / 10)


def test_pages_that_are_no_frames(tmp_path):
    """Reduced copies, before or behind the picture. Each page has an orientation of its own."""
    one, two, three = pages(3)
    small = one[::2, ::2]
    for first, second in ((small, one), (one, small)):
        tags = [REDUCED_COPY if page is small else {} for page in (first, second)]
        with open_video(write_tiff(tmp_path / "a.tif", [first, second], tags)) as reader:
            np.testing.assert_array_equal(reader.frames(range(len(reader))), [one])
    tags = [{ORIENTATION: 1}, {ORIENTATION: 3}, {ORIENTATION: 2}]
    with open_video(write_tiff(tmp_path / "a.tif", [one, two, three], tags)) as reader:
        expected = [one, two[::-1, ::-1], three[:, ::-1]]
        np.testing.assert_array_equal(reader.frames(range(3)), expected)


def test_images_of_imagej_without_pages_are_refused(tmp_path):
    path = write_tiff(tmp_path / "a.tif", pages(1), [{270: "ImageJ=1.53k\nimages=6\nslices=6\n"}])
    with pytest.raises(
        VideoError, match=r"ImageJ stack of 6 images, of which .* state 1"
    ) as caught:
        open_video(path)
    assert caught.value.cause == "backend"
    tags = [{270: "ImageJ=1.53k\nimages=2\n"}, {}]
    with open_video(write_tiff(tmp_path / "a.tif", pages(2), tags)) as reader:
        assert len(reader) == 2


@pytest.mark.parametrize("tags", [[{}, {}], [{ORIENTATION: 6}, {}]])
def test_pages_of_different_sizes_are_refused(tmp_path, tags):
    second = pages(1)[0] if ORIENTATION in tags[0] else pages(1, (10, 15))[0]
    path = write_tiff(tmp_path / "a.tif", [pages(1)[0], second], tags)
    with pytest.raises(
        VideoError, match=r"different sizes.*page 1 .*save each as a file"
    ) as caught:
        open_video(path)
    assert caught.value.cause == "not_a_video"


def test_still_pictures_stay_one_frame(tmp_path):
    picture = pages(1)[0]
    for suffix in (".webp", ".tif", ".png", ".bmp"):
        Image.fromarray(picture).save(tmp_path / f"a{suffix}", lossless=True)
    (tmp_path / "b.png").write_bytes(png_bytes(random_parts(0, 1)))
    (tmp_path / "b.webp").write_bytes(webp_bytes(random_parts(0, 1)))
    for path in sorted(tmp_path.iterdir()):
        misnamed = tmp_path / f"{path.name}.mp4"
        misnamed.write_bytes(path.read_bytes())
        for source in (path, misnamed):
            with open_video(source) as reader:
                assert len(reader) == 1
                if path.stem == "a":
                    np.testing.assert_array_equal(reader[0], picture)
    Image.fromarray(picture).save(tmp_path / "two.jpg")  # with a second picture, as phones make
    with (tmp_path / "two.jpg").open("ab") as file:
        file.write((tmp_path / "two.jpg").read_bytes())
    assert len(open_video(tmp_path / "two.jpg")) == 1


@pytest.mark.parametrize("kind", WRITERS)
def test_sizes_and_time_are_bounded(tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(WRITERS[kind](random_parts(0, 4)))
    assert cause_of(path, max_frame_pixels=599) == "too_large"
    assert cause_of(path, max_read_gib=4 * 20 * 30 * 3 / 2**30 * 0.9) == "too_large"
    assert cause_of(path, deadline_sec=1e-9) == "timeout"
    tiff = write_tiff(tmp_path / "a.tif", pages(2), [{}, {}])
    assert cause_of(tiff, max_frame_pixels=599) == "too_large"
    assert cause_of(tiff, deadline_sec=1e-9) == "timeout"


def test_a_large_webp_is_refused_before_pillow_opens_it(tmp_path, monkeypatch):
    """Pillow allocates two frames when it opens one: 2 GiB of 16,000 x 16,000 pixels."""
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("opened"))
    path = tmp_path / "a.webp"
    path.write_bytes(webp_bytes(random_parts(0, 4), size=(16_000, 16_000)))
    assert cause_of(path) == "too_large"
    path.write_bytes(webp_bytes(random_parts(0, 4)))
    assert cause_of(path, max_read_gib=1e-7) == "too_large"
    stills = {
        b"VP8L": b"\x2f" + struct.pack("<I", 15_999 | 15_999 << 14),
        b"VP8 ": b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_000, 16_000),
    }
    for kind, data in stills.items():
        path.write_bytes(b"RIFF\x1e\0\0\0WEBP" + kind + struct.pack("<I", 18) + data.ljust(18))
        assert cause_of(path) == "too_large"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_animations_that_are_cut_off(tmp_path, caplog):
    parts = random_parts(0)
    path = tmp_path / "a"
    data = png_bytes(parts)
    path.write_bytes(data[: len(data) // 2])
    with caplog.at_level(logging.WARNING), open_video(path) as reader:
        assert "announces 12 frames and holds" in reader.damage
        assert_seen(reader.frames(range(len(reader))), parts[: len(reader)])
        assert 3 < len(reader) < 10
    path.write_bytes(data[:80])  # without a frame
    assert cause_of(path) in ("truncated", "no_frames")  # by version of PyAV
    data = webp_bytes(parts)
    for length in (len(data) - 2, len(data) // 2, 40, 16):
        path.write_bytes(data[:length])
        assert cause_of(path) == "truncated"
    path.write_bytes(data[:4] + struct.pack("<I", 492) + data[8:500])
    assert cause_of(path) == "truncated"
    whole = write_tiff(tmp_path / "a.tif", pages(3), [{}] * 3).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert cause_of(path) == "truncated"


def test_what_ffmpeg_does_not_implement_is_no_damage(tmp_path):
    """16-bit frames that are blended with others."""
    parts = [replace(part, is_blended=True) for part in random_parts(0, 3)]
    (tmp_path / "a.png").write_bytes(png_bytes(parts, depth=16))
    assert cause_of(tmp_path / "a.png") == "backend"


@pytest.mark.parametrize("suffix", [".png", ".webp", ".mp4"])
def test_neither_picture_nor_video(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_text("no\n" * 1000)
    assert cause_of(tmp_path / f"a{suffix}") == "not_a_video"
