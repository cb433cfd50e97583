"""Pictures of any depth, the same from a file and from a folder of numbered frames."""

import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from hiera_video.runtime.logging import setup_logging
from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError

PALETTE = (  # of Pillow
    "Palette images with Transparency expressed in bytes should be converted to RGBA images"
)
RAMP = np.linspace(0, 1, 4 * 96).reshape(4, 96)  # black to white


def write_tiff(path, values, order="<", *, is_compressed=False, white_is_zero=False):
    """A TIFF file of one strip, of the type of `values` [H, W]."""
    height, width = values.shape
    formats = {"u": 1, "i": 2, "f": 3}
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if is_compressed else data
    data += bytes(len(data) % 2)
    tags = [  # all of one number: LONG
        (256, width),
        (257, height),
        (258, 8 * values.dtype.itemsize),
        (259, 8 if is_compressed else 1),
        (262, int(not white_is_zero)),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(data)),
        (339, formats[values.dtype.kind]),
    ]
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(data))
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))


def read_both(path):
    """The picture as a file and as a frame of its folder, which are equal."""
    frames = []
    for source, rate in ((path, None), (path.parent, 25)):
        with open_video(source, frames_fps=rate) as video:
            frames.append(video.frames([0])[0])
    assert np.array_equal(*frames)
    return frames[0]


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">i2", "<u4", "<i4", ">i4", "<f4", ">f4"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_grey_tiff_is_scaled_by_the_range_of_its_type(dtype, is_compressed, tmp_path):
    white = 1 if "f" in dtype else np.iinfo(dtype).max
    values = (np.floor(RAMP * white) if white > 1 else RAMP).astype(dtype[1:])
    write_tiff(tmp_path / "a1.tif", values, dtype[0], is_compressed=is_compressed)
    grey = read_both(tmp_path / "a1.tif")
    expected = np.rint(values.astype(np.float64) / white * 255)
    assert np.array_equal(grey, expected[..., None].repeat(3, axis=2))
    assert len(np.unique(grey)) == 256


@pytest.mark.parametrize("dtype", ["<u1", ">u1", "<u2", "<f4", ">f4"])
def test_white_may_be_zero(dtype, tmp_path):
    white = 1 if "f" in dtype else np.iinfo(dtype).max
    write_tiff(tmp_path / "a1.tif", (RAMP * white).astype(dtype[1:]), dtype[0], white_is_zero=True)
    expected = 255 - 255 * RAMP[..., None].repeat(3, axis=2)
    assert np.abs(read_both(tmp_path / "a1.tif") - expected).max() <= 1


@pytest.mark.parametrize("name", ["a1.png", "a1.webp"])
@pytest.mark.parametrize("damaged", [b"II*\0", bytes(range(60)), b"Exif\0\0MM\0*\0\0\0\x08\0\5"])
def test_damaged_exif_data_turns_nothing(name, damaged, tmp_path, caplog):
    shown = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(shown).save(tmp_path / name, lossless=True, exif=damaged)
    assert np.array_equal(read_both(tmp_path / name), shown)


@pytest.mark.parametrize("name", ["a1.png", "a1.tif", "a1.ppm"])
def test_16_bit_grey_is_a_257th(name, tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    if name == "a1.ppm":
        content = b"P5\n256 256\n65535\n" + values.astype(">u2").tobytes()
        (tmp_path / name).write_bytes(content)
    else:
        Image.fromarray(values).save(tmp_path / name)
    expected = np.rint(values / 257)
    assert np.array_equal(read_both(tmp_path / name), expected[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("name", ["a1.png", "a1.tif"])
def test_16_bit_colours_are_a_257th_up_to_a_level(name, channels, tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / name), values)
    expected = values[..., 2::-1] / 257  # BGR
    assert np.abs(read_both(tmp_path / name) - expected).max() < 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32([[0, 1.5]]), r"values are 0 to 1\.5; allowed are 0 to 1"),
        (np.float32([[-0.1, 1]]), r"values are -0\.1 to 1; allowed"),
        (np.float32([[0, np.nan]]), r"values are nan to nan; allowed"),
        (np.int32([[-1, 2**30]]), r"values are -1 to"),
        (np.int16([[-1, 2**14]]), r"values are -1 to"),
    ],
)
def test_values_without_a_colour_are_an_error_that_names_the_file(values, message, tmp_path):
    values = np.tile(values, (4, 2))
    write_tiff(tmp_path / "a1.tif", values)
    for source, rate in ((tmp_path / "a1.tif", None), (tmp_path, 25)):
        with pytest.raises(VideoError, match=rf"a1\.tif: .*{message}"):
            open_video(source, frames_fps=rate).frames([0])


def test_palettes_and_transparency_are_colours(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(colours)
    for name, stored in (("p", picture.quantize(256)), ("a", picture.convert("RGBA"))):
        (tmp_path / name).mkdir()
        stored.save(tmp_path / name / "a1.png")
        assert np.array_equal(read_both(tmp_path / name / "a1.png"), stored.convert("RGB"))


def test_warnings_of_the_library_are_messages_that_name_the_file(tmp_path, capsys):
    path = tmp_path / "a.png"
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(colours).quantize(9).save(path, transparency=bytes([0, 128]))
    with warnings.catch_warnings():  # which also restores what setup_logging changes
        warnings.simplefilter("always")
        setup_logging()
        open_video(path)
    (message,) = [line for line in capsys.readouterr().err.splitlines() if " W " in line]
    assert message.endswith(f" W {path}: {PALETTE}")


def test_a_jpeg_that_was_cut_off_is_an_error(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    picture.save(tmp_path / "a1.jpg")
    content = (tmp_path / "a1.jpg").read_bytes()
    assert np.abs(read_both(tmp_path / "a1.jpg").astype(int) - picture).mean() < 60
    for end in (-2, -500):
        (tmp_path / "a1.jpg").write_bytes(content[:end])
        for source, rate in ((tmp_path / "a1.jpg", None), (tmp_path, 25)):
            with pytest.raises(VideoError, match=r"a1\.jpg: does not decode"):
                open_video(source, frames_fps=rate).frames([0])


def test_pages_of_16_bits_are_scaled_and_turned(tmp_path):
    values = np.arange(3 * 16 * 24, dtype=np.uint16).reshape(3, 16, 24) * 56
    pages = [Image.fromarray(page) for page in values]
    exif = pages[0].getexif()
    exif[0x0112] = 6
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], exif=exif)
    with open_video(tmp_path / "a.tif") as video:
        frames = video.frames(range(3))
    expected = np.rint(np.rot90(values, -1, axes=(1, 2)) / 257)
    assert np.array_equal(frames[..., 1], expected)
