"""Which mask units stay visible: how many, in which shapes, and what is refused."""

from __future__ import annotations

import math
import re
from typing import get_args

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.models.hiera import Size3
from hiera_video.models.masking import (
    BLOCK_SIDE,
    MaskingKind,
    UnitMasking,
    hidden_units,
    kept_units,
)

KINDS = get_args(MaskingKind)
unhurried = settings(deadline=None)  # other work may share the processor
kinds, seeds = st.sampled_from(KINDS), st.integers(0, 2**32 - 1)
grids = st.tuples(st.integers(1, 8), st.integers(1, 7), st.integers(1, 7))
ratios = st.floats(0.01, 0.99)


def num_drawn(units: Size3, kind: str) -> int:
    """Units of a time step (tube), time steps (frame) or units."""
    t, h, w = units
    return {"tube": h * w, "frame": t}.get(kind, t * h * w)


def draw(masking: UnitMasking, seed: int) -> np.ndarray:
    """True = visible, on the grid of units."""
    visible = masking(np.random.default_rng(seed))
    assert visible.dtype == bool
    return visible.reshape(masking.units)


@st.composite
def maskings(draw: st.DrawFn, kinds: st.SearchStrategy[str] = kinds) -> UnitMasking:
    kind = draw(kinds)
    units = draw(grids.filter(lambda units: num_drawn(units, kind) > 1))
    n = num_drawn(units, kind)
    return UnitMasking(units, draw(ratios.filter(lambda r: 0 < int(n * (1 - r)) < n)), kind)


# How many.


@unhurried
@given(maskings(), seeds)
def test_the_number_of_visible_units_is_rounded_down(masking: UnitMasking, seed: int) -> None:
    n = num_drawn(masking.units, masking.kind)
    expected = int(n * (1 - masking.mask_ratio)) * math.prod(masking.units) // n
    assert draw(masking, seed).sum() == masking.num_visible == expected


@pytest.mark.parametrize(
    ("units", "ratio", "kind", "expected"),
    [
        ((8, 7, 7), 0.9, "random", 39),  # the official code: 39 of 392 and 19 of 49
        ((1, 7, 7), 0.6, "random", 19),
        ((8, 7, 7), 0.9, "block", 39),
        ((8, 7, 7), 0.9, "tube", 8 * 4),
        ((8, 7, 7), 0.5, "frame", 4 * 49),
    ],
)
def test_known_numbers(units: Size3, ratio: float, kind: MaskingKind, expected: int) -> None:
    masking = UnitMasking(units, ratio, kind)
    assert masking.num_visible == expected == draw(masking, 0).sum()
    assert masking.num_units == math.prod(units)


# Which.


@unhurried
@given(maskings(st.just("tube")), seeds)
def test_a_tube_is_the_same_at_all_times(masking: UnitMasking, seed: int) -> None:
    visible = draw(masking, seed)
    assert (visible == visible[0]).all()


@unhurried
@given(maskings(st.just("frame")), seeds)
def test_a_time_step_is_hidden_as_a_whole(masking: UnitMasking, seed: int) -> None:
    steps = draw(masking, seed).reshape(masking.units[0], -1)
    assert (steps == steps[:, :1]).all()


def box_sides(units: Size3) -> list[tuple[int, int]]:
    """The shortest and the longest side of a box along each axis."""
    return [tuple(max(1, round(share * n)) for share in BLOCK_SIDE) for n in units]


@unhurried
@given(maskings(st.just("block")), seeds)
def test_blocks_are_boxes_save_for_a_cut_last_one(masking: UnitMasking, seed: int) -> None:
    hidden = ~draw(masking, seed)
    sides = box_sides(masking.units)
    boxes = hidden  # what the smallest boxes fill that fit into the hidden units, round the torus
    for axis, (side, _) in enumerate(sides):
        boxes = np.all([np.roll(boxes, -i, axis) for i in range(side)], axis=0)
    for axis, (side, _) in enumerate(sides):
        boxes = np.any([np.roll(boxes, i, axis) for i in range(side)], axis=0)
    assert (hidden & ~boxes).sum() < math.prod(side for _, side in sides)


@unhurried
@given(st.tuples(*[st.integers(4, 12)] * 3), seeds, st.data())
def test_what_fits_into_one_box_lies_in_one_box(
    units: Size3, seed: int, data: st.DataObject
) -> None:
    sides = box_sides(units)
    num_hidden = data.draw(st.integers(1, math.prod(side for side, _ in sides)))
    masking = UnitMasking(units, (num_hidden - 0.5) / math.prod(units), "block")
    hidden = ~draw(masking, seed)
    assert hidden.sum() == num_hidden
    for axis, (_, side) in enumerate(sides):
        places = np.flatnonzero(np.moveaxis(hidden, axis, 0).any(axis=(1, 2)))
        gaps = np.diff(places, append=places[0] + units[axis])  # the last one round the torus
        assert units[axis] - gaps.max() < side
        assert sorted(gaps)[:-1] == [1] * (len(places) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_each_unit_is_visible_equally_often(kind: MaskingKind) -> None:
    masking = UnitMasking((4, 3, 5), 0.7, kind)
    rng = np.random.default_rng(0)
    frequency = np.mean([masking(rng) for _ in range(1000)], axis=0)
    share = masking.num_visible / masking.num_units
    assert np.abs(frequency - share).max() < 5 * math.sqrt(share * (1 - share) / 1000)


@unhurried
@given(maskings(), seeds)
def test_the_generator_decides(masking: UnitMasking, seed: int) -> None:
    np.random.seed(0)  # noqa: NPY002
    first = draw(masking, seed)
    np.random.seed(1)  # noqa: NPY002
    assert np.array_equal(first, draw(masking, seed))


@pytest.mark.parametrize("kind", KINDS)
def test_clips_differ(kind: MaskingKind) -> None:
    masking, rng = UnitMasking((8, 7, 7), 0.8, kind), np.random.default_rng(0)
    assert len({masking(rng).tobytes() for _ in range(4)}) > 1


# What is refused.


@unhurried
@given(kinds, st.one_of(grids, st.just((8, 7, 7)), st.just((16, 14, 14))), st.data())
def test_refused_ratios_name_some_that_work(
    kind: MaskingKind, units: Size3, data: st.DataObject
) -> None:
    n = num_drawn(units, kind)
    ratio = data.draw(st.sampled_from([-0.5, 0.0, 1 - 0.5 / n, 0.9999999, 1.0, 1.5]))
    with pytest.raises(ValueError, match=re.escape(f"masking.mask_ratio is {ratio:g}")) as error:
        UnitMasking(units, ratio, kind)
    assert ("nothing" if ratio > 0 else "everything") in str(error.value)
    if n == 1:
        assert "take another kind" in str(error.value)
        return
    most = float(re.search(r"allowed is more than 0, up to (\S+)$", str(error.value))[1])
    assert UnitMasking(units, most, kind).num_visible == math.prod(units) // n
    with pytest.raises(ValueError, match="nothing"):
        UnitMasking(units, most + 2e-6, kind)
    assert UnitMasking(units, 1e-6, kind).num_visible == (n - 1) * math.prod(units) // n


def test_an_image_has_one_time_step_which_cannot_be_hidden() -> None:
    with pytest.raises(ValueError, match="nothing of 1 time steps: frame masking needs more"):
        UnitMasking((1, 7, 7), 0.6, "frame")


def test_refused_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse first
    with pytest.raises(ValueError, match=r"masking\.kind is 'tubes': allowed are random, tube"):
        UnitMasking((8, 7, 7), 0.9, "tubes")


# Indices.


@st.composite
def batches(draw: st.DrawFn) -> torch.Tensor:
    """visible [B, M], with as many in each clip."""
    num_units = draw(st.integers(1, 30))
    num_kept = draw(st.integers(1, num_units))
    orders = draw(st.lists(st.permutations(range(num_units)), min_size=1, max_size=4))
    return torch.tensor(orders) < num_kept


@unhurried
@given(batches())
def test_kept_and_hidden_units_are_the_whole_in_order(visible: torch.Tensor) -> None:
    kept = kept_units(visible)
    hidden = hidden_units(kept, visible.shape[1])
    assert kept.shape == (len(visible), int(visible[0].sum()))
    assert kept.dtype == hidden.dtype == torch.int64
    for own, others, expected in zip(kept.tolist(), hidden.tolist(), visible, strict=True):
        assert own == expected.nonzero().flatten().tolist()
        assert others == (~expected).nonzero().flatten().tolist()


def test_hidden_units_do_not_need_an_order() -> None:
    assert hidden_units(torch.tensor([[4, 0, 2]]), 6).tolist() == [[1, 3, 5]]


@pytest.mark.parametrize("counts", [[2, 3], [0, 2], [0, 0]])
def test_refused_numbers_of_kept_units(counts: list[int]) -> None:
    visible = torch.arange(5) < torch.tensor(counts)[:, None]
    with pytest.raises(ValueError, match=re.escape(f"keep {counts} units")):
        kept_units(visible)
