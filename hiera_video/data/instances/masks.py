"""Masks of COCO's json: polygons and run-length encodings, their checks, and bitmaps."""

from array import array
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool

from hiera_video.errors import MissingLibrary, counted
from hiera_video.files import json_text

Segmentation = list[Any] | dict[str, Any]
"""Polygons, `[array of x1 y1 x2 y2 ..., ...]`, or a run-length encoding, `{"size", "counts"}`."""

MAX_PIXELS = 2**31 - 1  # of a picture: run lengths are numbers of 32 bits
MAX_REACH = 10  # sizes of the picture; the library allocates memory for every pixel of an outline
NUM_CHECKED = 20_000  # segmentations that are checked at once


def mask_library() -> ModuleType:
    """`faster_coco_eval.core.mask`.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise MissingLibrary(
            "masks and scores need faster-coco-eval: pip install 'hiera-video[instances]'"
        ) from None
    return mask


def bitmap(segmentation: Segmentation, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """The mask of a picture of that size."""
    library = mask_library()
    return library.decode(library.segmToRle(plain(segmentation), width, height)).astype(bool)


def encode_masks(bitmaps: Bool[np.ndarray, "n H W"]) -> tuple[Segmentation, ...]:
    """Bitmaps as compressed run lengths, for `Detections`."""
    library = mask_library()
    encoded = (library.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in bitmaps)
    return tuple({"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded)


def plain(segmentation: Segmentation) -> Segmentation:
    """The segmentation in lists, as JSON and the library take it."""
    if isinstance(segmentation, list):
        return [polygon.tolist() for polygon in segmentation]
    return segmentation


def with_compact_polygons(item: dict[str, Any]) -> dict[str, Any]:
    """An object of a file with arrays in place of lists of coordinates, a fifth of the memory."""
    polygons = item.get("segmentation")
    if isinstance(polygons, list):
        with suppress(TypeError, OverflowError):  # no numbers, which `mistakes` finds
            item["segmentation"] = [array("d", polygon) for polygon in polygons]
    return item


# ---- checks


def mistakes(segmentations: Sequence[Any], height: np.ndarray, width: np.ndarray) -> dict[int, str]:
    """What is wrong with segmentations, by their places.

    Args:
        segmentations: with None where there is none.
        height, width: of the picture of each, int64 [n].
    """
    sizes = np.column_stack([height, width]).tolist()
    pairs = enumerate(zip(segmentations, sizes, strict=True))
    found = {place: text for place, pair in pairs if (text := _mistake_of_form(*pair))}
    if found:
        return found
    for start in range(0, len(segmentations), NUM_CHECKED):
        part = slice(start, start + NUM_CHECKED)
        is_far = _reach(segmentations[part]) > MAX_REACH * np.maximum(height, width)[part]
        covered = _num_covered(segmentations[part])
        is_wrong = (covered >= 0) & (covered != (height * width)[part])
        text = "a polygon reaches far beyond the picture"
        found |= {start + place: text for place in np.flatnonzero(is_far).tolist()}
        for place in (start + np.flatnonzero(is_wrong)).tolist():
            size = f"{width[place]} x {height[place]}"
            found[place] = f"the run lengths do not add up to the {size} pixels of the image"
    return found


def _mistake_of_form(segmentation: Any, size: list[int]) -> str | None:
    """What is wrong with the form of a segmentation in a picture of `size`, height and width."""
    if segmentation is None:
        return None
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if type(polygon) is not array or len(polygon) % 2:
                return "segmentation: expected polygons [[x1, y1, x2, y2, ...], ...]"
            if len(polygon) < 6:
                return f"a polygon of {counted(len(polygon) // 2, 'point')}; expected 3 or more"
        return None
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return 'segmentation: expected polygons, or run lengths {"size": ..., "counts": ...}'
    if segmentation["size"] != size:
        stated = json_text(segmentation["size"], allow_nan=True)[:60]
        return f"run lengths of size {stated}; expected {size}, height and width of the image"
    counts = segmentation["counts"]
    if isinstance(counts, str) or (
        isinstance(counts, list)
        and all(type(count) is int and 0 <= count <= MAX_PIXELS for count in counts)
    ):
        return None
    return "counts of the segmentation: expected text, or a list of whole numbers"


def _reach(segmentations: Sequence[Any]) -> np.ndarray:
    """The largest coordinate [n] of the polygons of each, without sign; 0 without polygons."""
    polygons = [polygon for s in segmentations if isinstance(s, list) for polygon in s]
    num_values = np.array(
        [sum(map(len, s)) if isinstance(s, list) else 0 for s in segmentations], dtype=np.int64
    )
    result = np.zeros(len(segmentations))
    if polygons:
        values = np.abs(np.frombuffer(b"".join(polygons)))
        starts = np.cumsum(num_values) - num_values
        result[num_values > 0] = np.maximum.reduceat(values, starts[num_values > 0])
    return result


def _num_covered(segmentations: Sequence[Any]) -> np.ndarray:
    """The sum [n] of the run lengths of each; -1 for polygons, 0 for text that is damaged."""
    result = np.full(len(segmentations), -1, dtype=np.int64)
    rows, texts = [], []
    for row, segmentation in enumerate(segmentations):
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            result[row] = sum(segmentation["counts"])
        elif isinstance(segmentation, dict):
            rows.append(row)
            texts.append(segmentation["counts"].encode("utf-8", "surrogatepass"))
    result[rows] = _sums_of_texts(texts)
    return result


def _sums_of_texts(texts: list[bytes]) -> np.ndarray:
    """The sum [n] of the run lengths of each text; 0 for those that are damaged.

    Each character has 5 bits of a number, the lowest first, and one bit that says whether the
    number goes on; the highest bit of its last character is the sign. From the fourth number of a
    text on, a number is the difference to the run length before the last.
    """
    codes = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - ord("0")
    sums = np.zeros(len(texts), dtype=np.int64)
    if not len(codes):
        return sums
    text = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    is_last = codes & 32 == 0
    starts = np.flatnonzero(np.r_[True, is_last[:-1] | (text[1:] != text[:-1])])
    num_codes = np.diff(starts, append=len(codes))
    ends = starts + num_codes - 1
    place = np.minimum(np.arange(len(codes)) - np.repeat(starts, num_codes), 7)
    numbers = np.add.reduceat((codes & 31) << 5 * place, starts)
    numbers -= (codes[ends] & 16 > 0).astype(np.int64) << 5 * np.minimum(num_codes, 7)

    owner = text[starts]
    num_runs = np.bincount(owner, minlength=len(texts))
    run = np.arange(len(owner)) - (np.cumsum(num_runs) - num_runs)[owner]
    chain = 3 * owner + np.where(run == 0, 0, 1 + run % 2)  # a run and those it is the base of
    order = np.argsort(chain, kind="stable")
    is_first = np.diff(chain[order], prepend=-1) > 0
    before = np.cumsum(numbers[order]) - numbers[order]
    runs = before - before[is_first][np.cumsum(is_first) - 1] + numbers[order]
    np.add.at(sums, owner[order], runs)
    sums[owner[order][runs < 0]] = 0
    sums[owner[(num_codes > 7) | ~is_last[ends]]] = 0
    sums[text[(codes < 0) | (codes > 63)]] = 0
    return sums
