"""The section of maps, on weights and videos that the test writes."""

from __future__ import annotations

import av
import numpy as np
import torch

from hiera_video import create_model, save_model
from hiera_video.analysis.attention import gradient_map
from hiera_video.evaluation.views import Scorer
from hiera_video.models.pretrained import load_model
from hiera_video.report.attention import attention_section
from hiera_video.report.blocks import Gallery, Notice
from hiera_video.report.media import MediaFolder
from hiera_video.report.runs import read_run
from hiera_video.report.scores import EvaluatedVideos, Scores
from hiera_video.settings.evaluation import EvaluateSettings
from hiera_video.video.writer import write_video
from tests.report.synthetic import one_hot, write_clip, write_evaluation

CLASSES = ["cats", "dogs"]


def section(folder, tmp_path, num_videos=4):
    (evaluation,) = read_run(folder).evaluations
    scores = Scores.read(evaluation)
    videos = EvaluatedVideos(evaluation, scores, MediaFolder(tmp_path / "report"))
    return attention_section(evaluation, scores, videos, num_videos)


def evaluation(folder, checkpoint):
    settings = EvaluateSettings.model_validate(
        {
            "checkpoint": str(checkpoint),
            "data": {"val": str(folder / "val.csv")},
            "clips": {"sampling_rate": 1},
            "views": {"num_crops": 1, "short_side": 64},
        }
    )
    return write_evaluation(
        folder,
        names=["a.mp4", "b.mp4", "gone.mp4"],
        labels=[[0], [0], [1]],
        scores=one_hot([1, 0, 0], 2),
        class_names=CLASSES,
        settings=settings.model_dump(mode="json"),
    )


def small_model(folder, class_names):
    torch.manual_seed(0)
    small = {"embed_dim": 8, "stages": [1, 1, 1, 1], "mask_unit": [1, 8, 8]}
    size = {"num_frames": 4, "image_size": 64}
    model = create_model("hiera_tiny_16x224", num_classes=len(class_names), **size, **small)
    save_model(folder, model, class_names=class_names)
    return folder


def test_videos_of_high_loss_have_maps_of_their_predicted_class(tmp_path):
    folder = evaluation(tmp_path / "eval", small_model(tmp_path / "weights", CLASSES))
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for name in ("a.mp4", "b.mp4"):
        write_video(folder / name, frames.repeat(8, axis=1).repeat(8, axis=2), 4)
    found = section(folder, tmp_path)
    (gallery,) = found.blocks
    assert isinstance(gallery, Gallery)
    by_name = {card.title: card for card in gallery.cards}
    assert list(by_name) == ["a.mp4", "gone.mp4", "b.mp4"]  # by loss
    assert by_name["a.mp4"].facts == [("label", "cats"), ("map of", "dogs")]
    assert "gone.mp4" in by_name["gone.mp4"].media.note
    assert "stage" in found.intro

    # The right half of the picture is the map: more colourful where the map is higher.
    with av.open(str(tmp_path / "report" / by_name["a.mp4"].media.video)) as shown:
        drawn = np.stack([frame.to_ndarray(format="rgb24") for frame in shown.decode(video=0)])
    with av.open(str(folder / "a.mp4")) as video:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    side = drawn.shape[1]
    assert drawn.shape == (4, side, 2 * side, 3)
    model, card = load_model(str(tmp_path / "weights"), kind="classifier")
    scorer = Scorer.of(model, card, torch.device("cpu"), 1)
    inputs = scorer.normalize(torch.from_numpy(frames)[None])
    values = gradient_map(model, inputs, torch.tensor([1]))[0].mean(dim=0)  # [h, w]
    colour = np.ptp(drawn[:, :, side:].astype(float), axis=-1).mean(axis=0)  # 0 in grey pixels
    cells = colour.reshape(len(values), side // len(values), len(values), -1).mean(axis=(1, 3))
    assert np.corrcoef(cells.ravel(), values.numpy().ravel())[0, 1] > 0.5


def test_what_is_missing_is_stated(tmp_path):
    folder = evaluation(tmp_path / "eval", tmp_path / "nothing")
    write_clip(folder / "a.mp4", num_frames=4)
    (notice,) = section(folder, tmp_path).blocks
    assert isinstance(notice, Notice)
    assert "nothing" in notice.text
    folder = write_evaluation(
        tmp_path / "old", names=["a.mp4"], labels=[[0]], scores=one_hot([1], 2), class_names=CLASSES
    )
    write_clip(folder / "a.mp4", num_frames=4)
    (notice,) = section(folder, tmp_path).blocks
    assert "evaluate again" in notice.text


def test_weights_of_other_classes_have_no_maps(tmp_path):
    weights = small_model(tmp_path / "weights", ["cats", "cows"])
    folder = evaluation(tmp_path / "eval", weights)
    write_clip(folder / "a.mp4", num_frames=4)
    (notice,) = section(folder, tmp_path).blocks
    assert notice.text.startswith(f"{weights}: other classes")


def test_a_video_that_the_list_no_longer_has_keeps_its_place(tmp_path):
    folder = evaluation(tmp_path / "eval", small_model(tmp_path / "weights", CLASSES))
    write_clip(folder / "b.mp4", num_frames=4)
    listed = folder / "val.csv"
    listed.write_text(listed.read_text().replace("a.mp4", "another.mp4"))
    (gallery,) = section(folder, tmp_path, num_videos=1).blocks
    assert [card.title for card in gallery.cards] == ["a.mp4"]
    assert gallery.cards[0].media.note == f"no longer in {listed}"
