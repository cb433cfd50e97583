"""Eight orientations: display matrices of videos, EXIF of pictures, alike in every backend."""

import itertools
import struct

import numpy as np
import pytest
from PIL import Image

from hiera_video.video.open import open_video
from hiera_video.video.orientation import orientation_of
from tests.video.striped_video import make_striped_video

ONE = 1 << 16  # 16.16 fixed point
MATRICES = [(a, 0, 0, d) for a, d in itertools.product((ONE, -ONE), repeat=2)]
MATRICES += [(0, b, c, 0) for b, c in itertools.product((ONE, -ONE), repeat=2)]
NUM_FRAMES = 6


def shown_by(matrix, frame):
    """A frame whose pixels are put, one by one, where the matrix says."""
    a, b, c, d = (value // ONE for value in matrix)
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
    column, row = a * x + c * y, b * x + d * y
    column, row = column - column.min(), row - row.min()
    shown = np.zeros((row.max() + 1, column.max() + 1, 3), np.uint8)
    shown[row, column] = frame
    return shown


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_striped_video(tmp_path_factory.mktemp("plain") / "a.mp4", NUM_FRAMES, (48, 80))


@pytest.fixture
def with_matrix(plain, tmp_path):
    """Writes the video with another matrix in its track header (ISO/IEC 14496-12, 8.3.2)."""

    def write(a, b, c, d):
        content = bytearray(plain.read_bytes())
        place = content.index(b"tkhd") + 44
        assert content[place - 4 : place] == bytes(4)  # volume and what is reserved
        w = 1 << 30 if any((a, b, c, d)) else 0
        struct.pack_into(">9i", content, place, a, b, 0, c, d, 0, 0, 0, w)
        path = tmp_path / "turned.mp4"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("matrix", MATRICES)
def test_frames_are_shown_by_the_matrix(plain, with_matrix, matrix, backend):
    stored = open_video(plain).frames(range(NUM_FRAMES))
    with open_video(with_matrix(*matrix), backend) as video:
        frames = video.frames(range(NUM_FRAMES))
        assert (video.height, video.width) == frames.shape[1:3]
        expected = [shown_by(matrix, frame) for frame in stored]
        assert np.array_equal(frames, expected)
        assert np.array_equal(list(video), expected)
        assert all(frame.flags.c_contiguous for frame in video)


def test_a_matrix_of_zeros_is_none(plain, with_matrix, backend):
    with open_video(plain) as video, open_video(with_matrix(0, 0, 0, 0), backend) as zeros:
        assert np.array_equal(zeros.frames(range(NUM_FRAMES)), video.frames(range(NUM_FRAMES)))


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(("degrees", "scale"), [(30, 1.0), (-40, 0.3), (2, 5.0)])
def test_other_matrices_are_the_nearest_of_the_eight(matrix, degrees, scale):
    a, b, c, d = matrix
    turn = np.deg2rad(degrees)
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    (a2, c2), (b2, d2) = (rotation @ [[a, c], [b, d]]).round().astype(int).tolist()
    near = np.array([a2, b2, 0, c2, d2, 0, 0, 0, 1 << 30], np.int32)
    exact = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32)
    assert orientation_of(near.tobytes()) == orientation_of(exact.tobytes())


# Where the first row and the first column of stored pixels are shown (EXIF 2.32, 4.6.5).
EXIF = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def shown_by_exif(value, frame):
    row, column = EXIF[value]
    if row in ("left", "right"):
        frame = np.stack([frame[:, k] for k in range(frame.shape[1])])
        row, column = column, row
    frame = frame[::-1] if row == "bottom" else frame
    return frame[:, ::-1] if column == "right" else frame


@pytest.mark.parametrize(
    "kind", ["RGB.jpg", "RGB.png", "RGB.tif", "RGB.webp", "I;16.png", "I;16.tif"]
)
@pytest.mark.parametrize("value", EXIF)
def test_pictures_are_shown_by_exif_in_files_and_in_folders(value, kind, tmp_path):
    mode, suffix = kind.split(".")
    stored = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(stored)
    if mode == "I;16":
        picture = Image.fromarray(stored[..., 0].astype(np.uint16) * 257)
        stored = stored[..., :1].repeat(3, axis=2)
    exif = picture.getexif()
    exif[0x0112] = value
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a1.{suffix}"
    if suffix == "jpg":
        picture.save(path)
        stored = np.asarray(Image.open(path))
    picture.save(path, exif=exif, **options)
    expected = shown_by_exif(value, stored)
    for source, rate in ((path, None), (tmp_path, 25)):
        with open_video(source, frames_fps=rate) as video:
            assert np.array_equal(video.frames([0])[0], expected)
