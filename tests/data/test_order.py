import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hiera_video.data.order import TrainingOrder, balanced_weights, steps_per_epoch
from hiera_video.runtime.distributed import Process


def order(rank=0, world_size=1, start_step=0, **changes):
    settings = dict(num_videos=23, global_batch_size=8, accumulation_steps=2, end_step=6, seed=3)
    settings |= changes
    num_videos = settings.pop("num_videos")
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    return list(TrainingOrder(num_videos, start_step=start_step, process=process, **settings))


def test_each_epoch_visits_every_video_once():
    batches = order(accumulation_steps=1)
    assert steps_per_epoch(23, 8) == 3
    for epoch in (0, 1):
        keys = list(itertools.chain(*batches[3 * epoch : 3 * epoch + 3]))
        assert {e for e, _, _ in keys} == {epoch}
        assert sorted(i for _, i, _ in keys) == list(range(23))
    assert batches[0] != [(0, *key[1:]) for key in batches[3]]  # epochs differ in order


@given(
    num_videos=st.integers(1, 60),
    parts=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    micro=st.integers(1, 3),
)
def test_processes_share_a_step_whatever_their_number(num_videos, parts, accumulation, micro):
    """The videos of a step do not depend on how many processes and parts take them."""
    batch = parts * accumulation * micro
    settings = dict(num_videos=num_videos, global_batch_size=batch, end_step=4)
    alone = order(accumulation_steps=1, **settings)
    shares = [
        order(rank, parts, accumulation_steps=accumulation, **settings) for rank in range(parts)
    ]
    assert {len(share) for share in shares} == {4 * accumulation}
    for step in range(4):
        cut = slice(step * accumulation, (step + 1) * accumulation)
        together = [key for share in shares for part in share[cut] for key in part]
        assert sorted(together) == sorted(alone[step])


def test_resuming_continues_the_order():
    whole = order()
    for start in range(6):
        assert order(start_step=start) == whole[2 * start :]


def test_seed_decides_the_order():
    assert order() == order()
    assert order() != order(seed=4)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"global_batch_size=8.*nearest that does is 9"):
        order(world_size=3, accumulation_steps=1)


def test_balanced_weights_make_classes_equally_likely():
    labels = [(0,)] * 90 + [(1,)] * 9 + [(0, 2)]
    weights = balanced_weights(labels, 3)
    assert weights[0] == pytest.approx(1 / 91)
    assert weights[90] == pytest.approx(1 / 9)
    assert weights[99] == 1.0  # as its rarest class
    drawn = order(
        num_videos=100, global_batch_size=100, accumulation_steps=1, end_step=100, weights=weights
    )
    rare = np.mean([labels[i] == (1,) for batch in drawn for _, i, _ in batch])
    for epoch in range(3):  # a video drawn again has another number, and so other randomness
        assert len(set(drawn[epoch])) == 100
    assert rare == pytest.approx(weights[90:99].sum() / weights.sum(), abs=0.02)
