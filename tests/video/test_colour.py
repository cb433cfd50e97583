"""Colour matrices that FFmpeg's scaler lacks are replaced by the nearest, and what cannot be
converted to RGB is an error with the right cause."""

import logging

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import VideoReformatter

from hiera_video.video import colour
from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError, warn_once
from tests.video.striped_video import decode_linearly, make_striped_video

UNSPECIFIED, BT709, BT601, SMPTE240M, BT2020 = 2, 1, 5, 7, 9
# (matrix, primaries) -> the matrix of the file that has the same colours, numbers of H.273.
NEAREST = {
    (8, 1): BT709,  # YCgCo
    (16, 1): BT709,
    (17, 1): BT709,
    (10, 9): BT2020,  # with constant luminance
    (11, 1): BT709,  # SMPTE 2085
    (14, 9): BT2020,  # ICtCp
    (15, 9): BT2020,  # IPT
    (12, 1): BT709,  # from the primaries
    (13, 9): BT2020,
    (12, 6): SMPTE240M,
    (12, 4): BT601,
    (12, 2): UNSPECIFIED,
}
# Primaries -> x and y of red, green, blue and white, table 2 of H.273.
D65, C = (0.3127, 0.3290), (0.310, 0.316)
PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65),
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), C),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), C),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    10: ((1.0, 1e-9), (0.0, 1.0), (0.0, 1e-9), (1 / 3, 1 / 3)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), D65),
}
KNOWN = {BT709: (0.2126, 0.0722), BT601: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


def to_ycbcr(red: float, blue: float) -> np.ndarray:
    """float [3, 3] from R'G'B' to Y'CbCr, with the weights of red and blue in the luma."""
    luma = np.array([red, 1 - red - blue, blue])
    chroma = [(unit - luma) / (2 * (1 - unit @ luma)) for unit in np.eye(3)[[2, 0]]]
    return np.stack([luma, *chroma])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_striped_video(tmp_path_factory.mktemp("colour") / "a.mkv", 4, (32, 48))


@pytest.fixture(autouse=True)
def fresh_warnings():
    warn_once.cache_clear()


def flagged(source, path, matrix: int, primaries: int = 2):
    """The same H.264 stream, which states another colour matrix and other primaries."""
    numbers = f"matrix_coefficients={matrix}:colour_primaries={primaries}"
    with av.open(source) as original, av.open(path, "w") as copy:
        stream = original.streams.video[0]
        target = copy.add_stream_from_template(stream)
        change = BitStreamFilterContext(f"h264_metadata={numbers}", stream, target)
        for packet in original.demux(stream):
            for changed in change.filter(packet if packet.size else None):
                changed.stream = target
                copy.mux(changed)
    return path


@pytest.mark.parametrize(("stated", "nearest"), NEAREST.items())
def test_the_nearest_matrix_is_taken(source, tmp_path, backend, caplog, stated, nearest):
    path = flagged(source, tmp_path / "a.mkv", *stated)
    with av.open(path) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_primaries) == stated
    expected = decode_linearly(flagged(source, tmp_path / "b.mkv", nearest, stated[1]))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with open_video(path, backend) as reader:
                np.testing.assert_array_equal(reader.frames([0, 1, 2, 3]), expected)
    messages = [r.getMessage() for r in caplog.records if "colour matrix" in r.getMessage()]
    assert len(messages) == 1
    assert messages[0].startswith(f"{path}: ")
    assert f"number {stated[0]} of H.273" in messages[0]


@pytest.mark.parametrize("primaries", PRIMARIES)
def test_a_matrix_of_primaries_is_near_the_one_that_is_computed(primaries):
    """Colours are coded with the luma that makes white of the primaries, and decoded as stated."""
    *columns, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in PRIMARIES[primaries])
    red, _, blue = np.linalg.solve(np.stack(columns, axis=1), white)
    rgb = np.random.default_rng(0).random((3, 1000))

    def error(matrix):
        decoded = np.linalg.solve(to_ycbcr(*KNOWN[matrix]), to_ycbcr(red, blue) @ rgb)
        return np.abs(decoded - rgb).mean()

    frame = av.VideoFrame(16, 16, "yuv420p")
    frame.colorspace, frame.color_primaries = 12, primaries
    colour.take_known_matrix("a.mp4", frame)
    assert error(frame.colorspace) == min(map(error, KNOWN))


@pytest.mark.parametrize("matrix", [3, *range(8, 20), 200])
def test_every_number_is_converted(matrix, caplog):
    """Reserved ones as if the file stated none; RGB and grey have no matrix and no warning."""
    for pix_fmt, count in (("yuv420p", matrix != BT2020), ("gray", 0), ("gbrp", 0)):
        warn_once.cache_clear()
        caplog.clear()
        frame = av.VideoFrame(16, 16, pix_fmt)
        frame.colorspace, frame.color_primaries, frame.color_trc = matrix, 3, 3  # reserved
        with caplog.at_level(logging.WARNING):
            colour.take_known_matrix("a.mp4", frame)
        VideoReformatter().reformat(frame, 16, 16, "rgb24", threads=1)
        assert len(caplog.records) == count
        if matrix == 3 or matrix > 17:
            assert frame.colorspace == UNSPECIFIED


@pytest.mark.parametrize("matrix", [0, 1, 2, 4, 5, 6, 7, 9])
def test_known_matrices_are_left_alone(matrix, caplog):
    frame = av.VideoFrame(16, 16, "yuv420p")
    frame.colorspace = matrix
    with caplog.at_level(logging.WARNING):
        colour.take_known_matrix("a.mp4", frame)
    assert frame.colorspace == matrix
    assert not caplog.records


def test_what_cannot_be_converted_is_asked_for_once(source, tmp_path, backend, monkeypatch, caplog):
    """The file is not cut off, and another backend that needs the same conversion is no way out."""
    calls = []

    class Refusing:
        def reformat(self, frame, *_, **__):
            calls.append(frame)
            raise av.error.OSError(95, "Operation not supported")

    monkeypatch.setattr("hiera_video.video.backends.pyav.VideoReformatter", Refusing)
    with (
        caplog.at_level(logging.WARNING),
        open_video(source, backend) as reader,
        pytest.raises(VideoError, match=r"yuv420p.* do not convert to RGB") as caught,
    ):
        reader.frames([2])
    assert caught.value.cause == "backend"
    assert len(calls) == 1
    assert not caplog.records
