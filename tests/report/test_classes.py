"""Sections about a classifier against counts by hand and formulas."""

from __future__ import annotations

import math
import shlex

import numpy as np
import pytest

from hiera_video.evaluation.accuracy import VideoScores, summarize
from hiera_video.report.blocks import Gallery, Notice, Plot, Table
from hiera_video.report.classes import MAX_CLASSES, evaluation_sections
from hiera_video.report.media import MediaFolder
from hiera_video.report.runs import Evaluation, read_run
from hiera_video.report.scores import Scores
from tests.report.synthetic import one_hot, write_clip, write_evaluation, write_lines

CATS, DOGS, COWS = 0, 1, 2
CLASSES = ["cats", "dogs", "cows"]
# Of 3 cats one is taken for a dog, of 3 dogs two for cats; there is no cow, but one is predicted.
LABELS = [CATS, CATS, CATS, DOGS, DOGS, DOGS, DOGS]
PREDICTED = [CATS, CATS, DOGS, DOGS, CATS, CATS, COWS]


def evaluation(folder, **changes):
    number = len(changes.get("labels", LABELS))
    content = {
        "names": [f"{n}.mp4" for n in range(number)],
        "labels": [[c] for c in LABELS],
        "scores": one_hot(PREDICTED, 3),
        "class_names": CLASSES,
    }
    return write_evaluation(folder, **content | changes)


def sections(folder, tmp_path, num_videos=10):
    media = MediaFolder(tmp_path / "report")
    found = evaluation_sections(read_run(folder), media, num_videos)
    return {section.title: section for section in found}


def block(section, kind, part=""):
    return next(b for b in section.blocks if isinstance(b, kind) and part in b.caption)


def scores_of(folder):
    return Scores.read(Evaluation(folder, read_run(folder).evaluations[0].report))


def test_loss_is_that_of_the_averaged_views(tmp_path):
    scores = [[[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]], [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]]
    folder = evaluation(tmp_path, labels=[[CATS], [COWS]], scores=scores)
    found = scores_of(folder)
    assert found.loss[0] == pytest.approx(-math.log(0.625))
    assert math.isfinite(found.loss[1])
    assert found.loss[1] > 25  # nats, for a class of probability 0
    assert found.of_label.tolist() == [[0.5, 0.75], [0.0, 0.0]]


def test_loss_of_several_labels_is_the_sum_over_classes(tmp_path):
    scores = [[[0.5, 0.25, 0.125]]]
    folder = evaluation(tmp_path, labels=[[CATS, COWS]], scores=scores, multi_label=True)
    found = scores_of(folder)
    assert found.loss[0] == pytest.approx(-math.log(0.5) - math.log(0.75) - math.log(0.125))
    assert found.of_label.tolist() == [[(0.5 + 0.125) / 2]]
    assert found.label(0) == "cats, cows"


def test_the_table_of_classes_counts_by_hand(tmp_path):
    table = block(
        sections(evaluation(tmp_path), tmp_path)[f"Accuracy: {tmp_path.name}"], Table, "Cl"
    )
    names = [column.name for column in table.columns]
    assert names == ["class", "videos", "recall", "predicted", "precision", "most often taken for"]
    assert table.rows == [
        ["cats", 3, 2 / 3, 4, 2 / 4, "dogs (1)"],
        ["dogs", 4, 1 / 4, 2, 1 / 2, "cats (2)"],
        ["cows", 0, None, 1, 0.0, ""],
    ]


def test_average_precision_of_each_class(tmp_path):
    # Cats rank first and third of three: (1 + 2/3) / 2. There is no cow.
    scores = [[[0.9, 0.1, 0.2]], [[0.5, 0.8, 0.1]], [[0.4, 0.3, 0.3]]]
    labels = [[CATS], [DOGS], [CATS, DOGS]]
    folder = evaluation(tmp_path, labels=labels, scores=scores, multi_label=True)
    found = sections(folder, tmp_path)
    rows = block(found[f"Accuracy: {tmp_path.name}"], Table, "Classes").rows
    assert rows == [["cats", 2, pytest.approx(5 / 6)], ["dogs", 2, 1.0], ["cows", 0, None]]
    assert not any("Confusions" in title for title in found)
    orders = [name for name, _ in block(found[f"Videos: {tmp_path.name}"], Gallery).orders]
    assert orders == ["Highest loss", "Lowest loss"]


def test_confusions_are_those_counted_by_hand(tmp_path):
    section = sections(evaluation(tmp_path), tmp_path)[f"Confusions: {tmp_path.name}"]
    plot = block(section, Plot)
    assert "Colours end at the largest confusion." in plot.caption
    (heat,) = plot.data
    assert heat["z"] == [[0.6667, 0.3333, 0.0], [0.5, 0.25, 0.25], [0.0, 0.0, 0.0]]
    assert heat["zmax"] == 0.5  # the largest beside the diagonal
    assert heat["text"][1] == [
        "dogs taken for cats: 2 videos",
        "dogs taken for dogs: 1 video",
        "dogs taken for cows: 1 video",
    ]
    rows = block(section, Table).rows
    assert rows[0] == ["dogs", "cats", 2, 0.5]
    assert sorted(rows[1:]) == [["cats", "dogs", 1, 1 / 3], ["dogs", "cows", 1, 0.25]]


def test_of_many_classes_the_most_confused_are_drawn(tmp_path):
    number = 3000
    labels = [[7], [7], [2999], [11]]
    folder = evaluation(
        tmp_path,
        labels=labels,
        scores=one_hot([2998, 2998, 2999, 12], number),
        class_names=[f"c{c}" for c in range(number)],
    )
    plot = block(sections(folder, tmp_path)[f"Confusions: {tmp_path.name}"], Plot)
    names = plot.layout["xaxis"]["ticktext"]
    assert names[:4] == ["c7", "c2998", "c11", "c12"]
    assert len(names) == MAX_CLASSES
    assert plot.data[0]["z"][0][1] == 1.0
    assert f"the {MAX_CLASSES} most confused of 3000 classes" in plot.caption


def test_without_mistakes_no_pair_is_confused(tmp_path):
    folder = evaluation(tmp_path, scores=one_hot(LABELS, 3))
    found = sections(folder, tmp_path)
    assert block_texts(found[f"Confusions: {tmp_path.name}"]) == [
        "No video was taken for another class."
    ]
    plot = block(found[f"Confusions: {tmp_path.name}"], Plot)
    assert "largest confusion" not in plot.caption
    assert plot.data[0]["zmax"] == 1
    orders = dict(block(found[f"Videos: {tmp_path.name}"], Gallery).orders)
    assert orders["Taken for another class, most frequent pairs first"] == []


def block_texts(section):
    return [b.text for b in section.blocks if isinstance(b, Notice)]


def test_orders_of_videos(tmp_path):
    # The probability of the label, and the prediction, of five videos of two views.
    views = {
        "unsure.mp4": (CATS, [[0.6, 0.4, 0.0], [0.6, 0.4, 0.0]]),
        "sure.mp4": (CATS, [[0.95, 0.05, 0.0], [0.97, 0.03, 0.0]]),
        "wrong.mp4": (CATS, [[0.1, 0.9, 0.0], [0.1, 0.9, 0.0]]),
        "torn.mp4": (CATS, [[1.0, 0.0, 0.0], [0.1, 0.9, 0.0]]),
        "hopeless.mp4": (DOGS, [[0.0, 0.02, 0.98], [0.0, 0.02, 0.98]]),
    }
    folder = evaluation(
        tmp_path,
        names=list(views),
        labels=[[label] for label, _ in views.values()],
        scores=[scores for _, scores in views.values()],
    )
    gallery = block(sections(folder, tmp_path)[f"Videos: {tmp_path.name}"], Gallery)
    orders = {name: [gallery.cards[n].title for n in order] for name, order in gallery.orders}
    hardest = ["hopeless.mp4", "wrong.mp4", "torn.mp4", "unsure.mp4", "sure.mp4"]
    hardest[2:4] = ["torn.mp4", "unsure.mp4"]  # 0.55 and 0.6
    assert orders["Lowest probability of the label"] == hardest
    assert orders["Highest probability of the label"] == hardest[::-1]
    # Three of four cats are recognised, so that the mistake surprises; no dog is.
    surprising = "Most surprising: sure mistakes in classes that are otherwise right"
    assert orders[surprising] == ["wrong.mp4"]
    assert orders["Views that disagree most"][:2] == ["torn.mp4", "sure.mp4"]
    card = next(card for card in gallery.cards if card.title == "torn.mp4")
    assert card.marks == pytest.approx([1.0, 0.1])
    assert [(bar.label, bar.is_right) for bar in card.bars][:2] == [("cats", True), ("dogs", False)]
    assert card.bars[0].share == pytest.approx(0.55)


def test_mistakes_come_by_the_frequency_of_their_pair(tmp_path):
    gallery = block(sections(evaluation(tmp_path), tmp_path)[f"Videos: {tmp_path.name}"], Gallery)
    orders = {name: [gallery.cards[n].title for n in order] for name, order in gallery.orders}
    found = orders["Taken for another class, most frequent pairs first"]
    assert set(found[:2]) == {"4.mp4", "5.mp4"}  # dogs taken for cats
    assert set(found[2:]) == {"2.mp4", "6.mp4"}


def test_an_order_has_at_most_the_given_number_of_videos(tmp_path):
    found = sections(evaluation(tmp_path), tmp_path, num_videos=2)
    gallery = block(found[f"Videos: {tmp_path.name}"], Gallery)
    assert all(len(order) <= 2 for _, order in gallery.orders)


def training_run(tmp_path, scores, labels):
    """A run that was evaluated on its own training list."""
    run = tmp_path / "run"
    folder = evaluation(run / "eval_train", labels=[[c] for c in labels], scores=scores)
    run.joinpath("config.yaml").write_text(f"data: {{train: {folder / 'val.csv'}}}\n")
    write_lines(run / "metrics.jsonl", [{"step": 1, "kind": "train", "loss": 1.0}])
    return run


def test_training_videos_come_by_their_loss(tmp_path):
    scores = np.full((30, 1, 3), 0.05)
    scores[:, 0, CATS] = 0.9
    scores[17, 0] = [0.01, 0.98, 0.01]
    scores[4, 0] = [0.2, 0.7, 0.1]
    run = training_run(tmp_path, scores, [CATS] * 30)
    found = sections(run, tmp_path, num_videos=2)
    assert not any(title.startswith("Videos") for title in found)
    section = found["Labels to check: eval_train"]
    rows = block(section, Table).rows
    assert len(rows) == 3  # a tenth of the list
    assert rows[0][:4] == [1, "17.mp4", "cats", "dogs"]
    assert rows[0][4:] == pytest.approx([0.98, -math.log(0.01)], rel=1e-5)
    assert rows[1][1] == "4.mp4"
    assert [card.title for card in block(section, Gallery).cards] == ["17.mp4", "4.mp4"]


def test_how_to_get_labels_to_check_is_said(tmp_path):
    run = training_run(tmp_path, one_hot([CATS], 3), [CATS])
    (run / "eval_train").rename(run.parent / "elsewhere")
    (run / "weights").mkdir()
    found = sections(run, tmp_path)
    (notice,) = found["Labels to check"].blocks
    assert f"checkpoint={run}" in notice.command
    assert f"output_dir={run / 'eval_train'}" in notice.command
    assert "was not evaluated" in found["Accuracy"].blocks[0].text


def test_the_training_list_is_evaluated_as_it_was_read(tmp_path):
    run = tmp_path / "my run"
    (run / "weights").mkdir(parents=True)
    data = "{train: a b.csv, root: /videos, split: train, frames_fps: 12.5, stills: false}"
    (run / "config.yaml").write_text(f"data: {data}\n")
    (notice,) = sections(run, tmp_path)["Labels to check"].blocks
    assert shlex.split(notice.command) == [
        "hiera-video", "evaluate", f"checkpoint={run}", "data.val=a b.csv", "data.root=/videos",
        "data.split=train", "data.frames_fps=12.5", f"output_dir={run / 'eval_train'}",
    ]  # fmt: skip


def test_figures_of_the_page_are_those_of_the_report(tmp_path):
    views = np.random.default_rng(0).dirichlet(np.ones(8), (40, 3)).astype(np.float32)
    labels = [(n % 8,) for n in range(40)]
    report = summarize(
        [VideoScores(n, v) for n, v in enumerate(views)], expected=labels, multi_label=False
    )
    names = [f"class {c}" for c in range(8)]
    folder = evaluation(tmp_path, labels=labels, scores=views, class_names=names, **report)
    section = sections(folder, tmp_path)[f"Accuracy: {tmp_path.name}"]
    rows = {row[0]: row[1:] for row in block(section, Table, "report.json").rows}
    assert rows["views averaged"] == list(report["video"].values())
    assert rows["single views"] == list(report["clip"].values())
    classes = block(section, Table, "Classes").rows
    right = sum(row[1] * row[2] for row in classes)
    assert right / 40 == pytest.approx(report["video"]["top1"])
    assert np.mean([row[2] for row in classes]) == pytest.approx(
        report["video"]["mean_class_accuracy"]
    )


def notes(folder, tmp_path):
    gallery = block(sections(folder, tmp_path)[f"Videos: {folder.name}"], Gallery)
    return {card.media.note for card in gallery.cards}


def test_a_card_says_why_it_has_no_picture(tmp_path, caplog):
    folder = tmp_path / "eval"
    present = [write_clip(folder / f"{n}.mp4") for n in range(7)]
    evaluation(folder)
    assert notes(folder, tmp_path) == {""}
    present[3].unlink()
    found = notes(folder, tmp_path)
    assert found == {"", f"{present[3]}: no such file; check its path"}
    listed = folder / "val.csv"
    text = listed.read_text()
    listed.write_text(text.replace("4.mp4", "another.mp4"))
    assert f"no longer in {listed}" in notes(folder, tmp_path)
    assert not caplog.messages
    listed.unlink()
    (note,) = notes(folder, tmp_path)
    assert note.startswith(str(listed))
    (warning,) = caplog.messages
    assert note in warning
    assert "relative paths start from the current folder" in warning


@pytest.mark.parametrize("settings", [{}, {"data": {}}, {"data": {"val": "a", "split": 1.5}}])
def test_results_of_another_version_say_so(tmp_path, settings):
    folder = evaluation(tmp_path, settings=settings)
    (note,) = notes(folder, tmp_path)
    assert note == f"{folder / 'report.json'}: of another version: evaluate again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [[0], [9]]}, "a label that is no class"),
        ({"labels": [[0]]}, "different numbers of videos"),
        ({"labels": [[0], [0, 1]]}, "2 labels in place of one"),
        ({"class_names": ["cats"]}, "for 1 class"),
    ],
)
def test_scores_that_do_not_fit_together_are_named(tmp_path, changes, message):
    content = {"labels": [[0], [0]], "class_names": CLASSES} | changes
    np.savez(
        tmp_path / "scores.npz",
        names=["a", "b"],
        labels=[";".join(map(str, ids)) for ids in content["labels"]],
        scores=np.zeros((2, 1, 3)),
        class_names=content["class_names"],
    )
    (tmp_path / "report.json").write_text('{"video": {"top1": 0.5}}')
    (section,) = sections(tmp_path, tmp_path).values()
    (text,) = block_texts(section)
    assert text.startswith(f"{tmp_path / 'scores.npz'}: damaged")
    assert message in text


def test_damaged_and_missing_scores_are_named(tmp_path):
    folder = evaluation(tmp_path)
    path = folder / "scores.npz"
    path.write_bytes(path.read_bytes()[:-40])
    (section,) = sections(folder, tmp_path).values()
    assert "damaged" in block_texts(section)[0]
    path.unlink()
    (section,) = sections(folder, tmp_path).values()
    assert block_texts(section) == [f"{path}: there is no such file; evaluate again"]


def test_an_evaluation_in_which_every_video_failed(tmp_path):
    folder = write_evaluation(
        tmp_path, names=[], labels=[], scores=np.empty((0, 0, 0)), class_names=CLASSES
    )
    (folder / "report.json").write_text('{"expected": 2, "decoded": 0, "failed": []}')
    (section,) = sections(folder, tmp_path).values()
    assert section.intro.startswith(f"{folder}: 0 of 2 videos")
