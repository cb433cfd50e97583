import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from hiera_video.data.batches import (
    BoxedClip,
    ClipSample,
    Failure,
    ViewSample,
    collate_boxed_clips,
    collate_clips,
)

SHAPE = (2, 4, 4, 3)


def sample(name, value, num_repeats=2, labels=(0,)):
    return ClipSample(name, labels, np.full((num_repeats, *SHAPE), value, np.uint8))


def failure(name):
    return Failure(name, f"/{name}", "empty", f"/{name}: is empty")


def test_repeats_stay_together_and_keep_name_and_labels():
    batch = collate_clips([sample("a", 1, labels=(3,)), sample("b", 2, labels=(0, 4))], SHAPE)
    assert batch.clips.shape == (4, *SHAPE)
    assert batch.clips.dtype == torch.uint8
    assert batch.clips[:, 0, 0, 0, 0].tolist() == [1, 1, 2, 2]
    assert batch.labels == [(3,), (3,), (0, 4), (0, 4)]
    assert batch.names == ["a", "a", "b", "b"]
    assert len(batch) == 4
    assert batch.failures == []


def test_failures_travel_beside_the_clips():
    batch = collate_clips([failure("x"), sample("a", 1), failure("y")], SHAPE)
    assert len(batch) == 2
    assert [f.name for f in batch.failures] == ["x", "y"]


@pytest.mark.parametrize("samples", [[], [failure("x"), failure("y")]])
def test_a_batch_without_videos_has_one_black_clip_and_no_length(samples):
    batch = collate_clips(samples, SHAPE)
    assert len(batch) == 0
    assert batch.clips.shape == (1, *SHAPE)
    assert not batch.clips.any()
    assert batch.names == []
    assert batch.failures == samples


def views(num_clips=2, offsets=((0, 0), (0, 3), (0, 6))):
    frames = torch.arange(5 * 4 * 10 * 3, dtype=torch.float32).reshape(5, 4, 10, 3)
    positions = np.array([[0, 1, 2], [2, 3, 4]])[:num_clips]
    return ViewSample(7, frames, positions, list(offsets), "pyav")


def test_views_go_clip_by_clip_and_in_each_crop_by_crop():
    sample = views()
    assert sample.num_views == 6
    for i in range(6):
        clip, left = divmod(i, 3)[0], 3 * (i % 3)
        expected = sample.frames[sample.clip_positions[clip]][:, :4, left : left + 4]
        assert torch.equal(sample.view(sample.frames, i, (4, 4)), expected)


def test_views_are_cut_from_the_frames_that_are_given():
    sample = views()
    assert torch.equal(
        sample.view(sample.frames + 1, 4, (2, 3)), sample.view(sample.frames, 4, (2, 3)) + 1
    )


def test_samples_travel_between_processes():
    assert pickle.loads(pickle.dumps(failure("ä"))) == failure("ä")
    batch = pickle.loads(pickle.dumps(collate_clips([sample("a", 1), failure("x")], SHAPE)))
    assert batch.names == ["a", "a"]


def boxed(value, *actions, num_dropped=0):
    """A clip whose boxes state their clip and their number."""
    boxes = [[value / 10, i / 10, 1, 1] for i in range(len(actions))]
    clip = np.full(SHAPE, value, np.uint8)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return BoxedClip("", clip, boxes, list(actions), num_dropped)


def keyframe(name, *clips):
    return [replace(clip, name=name) for clip in clips]


def test_boxes_of_all_clips_in_one_list():
    samples = [
        keyframe("a", boxed(1, (3,), (), num_dropped=2), boxed(2, num_dropped=1)),
        failure("x"),
        keyframe("b", boxed(3, (1, 2))),
    ]
    batch = collate_boxed_clips(samples, SHAPE)
    assert batch.clips[:, 0, 0, 0, 0].tolist() == [1, 2, 3]
    assert batch.clips.dtype == torch.uint8
    assert batch.clip_of_box.tolist() == [0, 0, 2]
    assert batch.clip_of_box.dtype == torch.int64
    expected = torch.tensor([[0.1, 0.0, 1, 1], [0.1, 0.1, 1, 1], [0.3, 0.0, 1, 1]])
    assert torch.equal(batch.boxes, expected)
    assert batch.actions == [(3,), (), (1, 2)]
    assert batch.names == ["a", "a", "b"]
    assert [f.name for f in batch.failures] == ["x"]
    assert (len(batch), batch.num_targets, batch.num_dropped) == (3, 3, 3)


@pytest.mark.parametrize("samples", [[], [failure("x"), failure("y")]])
def test_a_batch_without_key_frames_has_one_black_clip_and_no_boxes(samples):
    batch = collate_boxed_clips(samples, SHAPE)
    assert (len(batch), batch.num_targets, batch.num_dropped) == (0, 0, 0)
    assert batch.clips.shape == (1, *SHAPE)
    assert not batch.clips.any()
    assert batch.boxes.shape == (0, 4)
    assert batch.boxes.dtype == torch.float32
    assert batch.clip_of_box.shape == (0,)
    assert batch.clip_of_box.dtype == torch.int64
    assert batch.actions == batch.names == []
    assert batch.failures == samples


def test_clips_whose_boxes_were_all_dropped():
    batch = collate_boxed_clips([keyframe("a", boxed(5, num_dropped=4))], SHAPE)
    assert (len(batch), batch.num_targets, batch.num_dropped) == (1, 0, 4)
    assert batch.boxes.shape == (0, 4)
    assert batch.clips[0, 0, 0, 0, 0] == 5
    assert pickle.loads(pickle.dumps(batch)).names == ["a"]
