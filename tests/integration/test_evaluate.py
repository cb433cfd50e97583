"""`evaluate`: what it reports is what the scores on disk say, whatever the files and views."""

import csv
import json

import numpy as np
import pytest
import torch

from hiera_video.evaluation.views import Scorer, average_views
from hiera_video.models import variants
from hiera_video.models.pretrained import build, load_model
from hiera_video.models.sources import published_card


def evaluate(commands, checkpoint, output, *overrides):
    return commands.run(
        "evaluate",
        f"checkpoint={checkpoint}",
        f"output_dir={output}",
        "data.num_workers=0",
        "device=cpu",
        *overrides,
    )


@pytest.fixture(scope="module")
def evaluated(commands, trained, tmp_path_factory):
    """Output folder and result of an evaluation with one unreadable video."""
    folder = tmp_path_factory.mktemp("evaluated")
    result = evaluate(commands, trained, folder, f"data.val={commands.toy / 'val_bad.csv'}")
    return folder, result


def test_views_averaged_again_give_the_reported_accuracy(evaluated):
    folder, _ = evaluated
    report = json.loads((folder / "report.json").read_text())
    saved = np.load(folder / "scores.npz")
    scores, labels = saved["scores"], saved["labels"].astype(int)
    assert scores.shape == (6, 2 * 3, 2)
    assert saved["class_names"].tolist() == ["left", "right"]
    np.testing.assert_allclose(scores.sum(axis=2), 1, rtol=1e-5)
    assert report["video"]["top1"] == np.mean(scores.mean(axis=1).argmax(axis=1) == labels)
    assert report["clip"]["top1"] == np.mean(scores.argmax(axis=2) == labels[:, None])


def test_a_failed_video_is_named_and_counted_as_wrong_in_one_figure(evaluated, commands):
    folder, result = evaluated
    assert result.code == 3
    assert "Traceback" not in result.err
    report = json.loads((folder / "report.json").read_text())
    assert (report["expected"], report["decoded"]) == (7, 6)
    (failure,) = report["failed"]
    assert failure["name"] == "text.mp4"
    assert failure["cause"] == "not_a_video"
    assert failure["message"].startswith(str(commands.toy / "text.mp4"))
    assert report["video_failed_as_wrong"]["top1"] == pytest.approx(report["video"]["top1"] * 6 / 7)
    assert f"failed: {failure['message']}" in result.out.splitlines()
    assert "6 of 7 videos decoded, 1 failed" in result.out


def test_predictions(evaluated, commands):
    folder, _ = evaluated
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(commands.toy / "val_bad.csv", encoding="utf-8", newline="") as file:
        listed = [(row["path"], row["class_name"]) for row in csv.DictReader(file)]
    assert [(row["video"], row["label"]) for row in rows] == listed
    saved = np.load(folder / "scores.npz")
    scores = dict(zip(saved["names"].tolist(), map(average_views, saved["scores"]), strict=True))
    for row in rows:
        if row["video"] == "text.mp4":
            assert row["class1"] == row["probability1"] == ""
            assert "text.mp4: " in row["failure"]
        else:
            best = scores[row["video"]].argmax()
            assert row["class1"] == ["left", "right"][best]
            assert float(row["probability1"]) == pytest.approx(scores[row["video"]][best], abs=1e-6)
            assert row["failure"] == ""


def test_the_confusion_matrix_adds_up(evaluated):
    folder, result = evaluated
    with open(folder / "confusion.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["class", "left", "right"]
    assert [row[0] for row in rows] == ["left", "right"]
    counts = np.array([row[1:] for row in rows], int)
    assert counts.sum(axis=1).tolist() == [4, 2]  # the unreadable video is one of "right"
    report = json.loads((folder / "report.json").read_text())
    assert np.trace(counts) / counts.sum() == report["video"]["top1"]
    recall = np.diagonal(counts) / counts.sum(axis=1)
    assert report["video"]["mean_class_accuracy"] == pytest.approx(recall.mean())
    assert f"mean_class_accuracy {100 * recall.mean():.2f} %" in result.out
    assert report["decoded_by"] == {"pyav": 6}


def test_json_is_the_report(commands, trained, tmp_path):
    val = commands.toy / "val.csv"
    result = evaluate(commands, trained, tmp_path, f"data.val={val}", "--json")
    assert result.code == 0
    report = json.loads(result.out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["views"] == {"num_clips": 2, "num_crops": 3}  # as the run was configured
    assert report["sampling_rate"] == 2
    assert report["short_side"] == 32
    assert report["video"] == report["video_failed_as_wrong"]
    assert report["failed"] == []
    for key in ("torch", "git_commit", "command"):
        assert key in report["environment"]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_of_views_change_nothing(evaluated, commands, trained, tmp_path, batch_size):
    val = commands.toy / "val_bad.csv"
    evaluate(commands, trained, tmp_path, f"data.val={val}", f"views.batch_size={batch_size}")
    ours, theirs = (np.load(f / "scores.npz")["scores"] for f in (tmp_path, evaluated[0]))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_all_backends_give_the_same_scores(evaluated, commands, trained, tmp_path, backend):
    val = commands.toy / "val_bad.csv"
    evaluate(commands, trained, tmp_path, f"data.val={val}", f"data.backend={backend}")
    ours, theirs = (np.load(f / "scores.npz")["scores"] for f in (tmp_path, evaluated[0]))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_results_are_not_overwritten_silently(commands, trained, tmp_path):
    arguments = (trained, tmp_path, f"data.val={commands.toy / 'val.csv'}")
    assert evaluate(commands, *arguments).code == 0
    before = (tmp_path / "report.json").read_bytes()
    result = evaluate(commands, *arguments)
    assert result.code == 1
    result.reports(str(tmp_path), "report.json", "scores.npz", "predictions.csv", "overwrite=true")
    assert (tmp_path / "report.json").read_bytes() == before
    arguments = (*arguments, "overwrite=true", "views.num_clips=1")
    assert evaluate(commands, *arguments).code == 0
    assert (tmp_path / "report.json").read_bytes() != before
    assert np.load(tmp_path / "scores.npz")["scores"].shape[1] == 3


def test_every_video_failed(commands, trained, list_of, tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").write_text("text " * 1000)
    val = list_of(tmp_path / "val.csv", [("a.mp4", 0), ("b.mp4", 1)])
    result = evaluate(commands, trained, tmp_path / "out", f"data.val={val}")
    assert result.code == 1
    assert "Traceback" not in result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["expected"], report["decoded"]) == (2, 0)
    assert [failure["cause"] for failure in report["failed"]] == ["empty", "not_a_video"]
    assert np.load(tmp_path / "out" / "scores.npz")["names"].size == 0
    with open(tmp_path / "out" / "predictions.csv", encoding="utf-8", newline="") as file:
        assert all(row["failure"] for row in csv.DictReader(file))


def test_no_score_is_a_number(commands, diverged, tmp_path):
    val = commands.toy / "val_bad.csv"
    result = evaluate(commands, diverged, tmp_path, f"data.val={val}", "--json")
    assert result.code == 1
    assert "Traceback" not in result.err
    report = json.loads(result.out, parse_constant=pytest.fail)  # of NaN
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert (report["expected"], report["decoded"]) == (7, 0)
    assert not report.keys() & {"video", "clip", "video_failed_as_wrong"}
    causes = {failure["name"]: failure["cause"] for failure in report["failed"]}
    names = [f"val_{i}.mp4" if i != 3 else "text.mp4" for i in range(7)]
    assert causes == {n: "not_a_video" if n == "text.mp4" else "not_finite" for n in names}
    first = f"{commands.toy / 'val_0.mp4'}: its scores are not finite in fp32; use other weights"
    assert report["failed"][0]["message"].startswith(first)


def test_one_video_without_finite_scores_is_counted_as_wrong(
    evaluated, commands, trained, tmp_path, monkeypatch
):
    """Every batch holds the views of one video; those of the third are NaN."""
    batches = []

    def scores_of(scorer, clips):
        batches.append(clips)
        scores = scores_of_model(scorer, clips)
        return scores * np.nan if len(batches) == 3 else scores

    scores_of_model = Scorer.probabilities
    monkeypatch.setattr(Scorer, "probabilities", scores_of)
    val = f"data.val={commands.toy / 'val.csv'}"
    result = evaluate(commands, trained, tmp_path, val, "views.batch_size=6")
    assert result.code == 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["expected"], report["decoded"]) == (7, 6)
    (failure,) = report["failed"]
    assert (failure["name"], failure["cause"]) == ("val_2.mp4", "not_finite")
    assert f"failed: {failure['message']}" in result.out.splitlines()
    assert report["video_failed_as_wrong"]["top1"] == pytest.approx(report["video"]["top1"] * 6 / 7)
    assert "val_2.mp4" not in np.load(tmp_path / "scores.npz")["names"]
    with open(tmp_path / "predictions.csv", encoding="utf-8", newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["failure"]]
    assert (row["video"], row["failure"]) == ("val_2.mp4", failure["message"])


def test_a_list_of_other_classes_is_refused(commands, trained, list_of, tmp_path):
    video = commands.toy / "val_0.mp4"
    out_of_range = list_of(tmp_path / "ids.csv", [(video, 0), (commands.toy / "val_1.mp4", 2)])
    result = evaluate(commands, trained, tmp_path / "out", f"data.val={out_of_range}")
    assert result.code == 1
    result.reports(f"{out_of_range}:3", "class id 2 must be 0 to 1")
    other = list_of(tmp_path / "names.csv", [(video, "righ")], "path,class_name")
    result = evaluate(commands, trained, tmp_path / "out", f"data.val={other}")
    assert result.code == 1
    result.reports(f"{other}:2", "unknown class 'righ'", "'right'")
    assert not (tmp_path / "out").exists()


def test_the_weights_folder_alone_is_enough(commands, trained, evaluated, tmp_path):
    val = commands.toy / "val_bad.csv"
    evaluate(commands, trained / "weights", tmp_path, f"data.val={val}")
    ours, theirs = (np.load(f / "scores.npz")["scores"] for f in (tmp_path, evaluated[0]))
    assert np.array_equal(ours, theirs)


def test_dry_run_writes_nothing(commands, trained, tmp_path):
    val = commands.toy / "val.csv"
    result = evaluate(commands, trained, tmp_path / "out", f"data.val={val}", "--dry-run")
    assert result.code == 0
    assert json.loads(result.out)["videos"] == 7
    assert not (tmp_path / "out").exists()


def test_views_larger_than_the_frames_are_refused(commands, trained, tmp_path):
    val = commands.toy / "val.csv"
    result = evaluate(commands, trained, tmp_path, f"data.val={val}", "views.short_side=16")
    assert result.code == 2
    result.reports("views.short_side is 16", "at least 32")


VIDEO_TAG = "hiera_base_16x224.mae_k400_ft_k400"
IMAGE_TAG = "hiera_base_224.mae_in1k_ft_in1k"


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Makes published weights of a tiny model, where torch.hub keeps them."""

    def make(tag):
        name = tag.split(".")[0]
        frames = variants.VARIANTS[name]["input_size"][0]
        small = {"input_size": (min(frames, 4), 32, 32), "embed_dim": 8, "stages": (1, 1, 1, 1)}
        arguments = variants.VARIANTS[name] | small
        monkeypatch.setitem(variants.VARIANTS, name, arguments)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        torch.manual_seed(0)
        model = build(arguments)
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        file = variants.PUBLISHED[tag].file
        torch.save({"model_state": model.state_dict()}, folder / file)
        return model

    return make


def test_a_published_classifier_by_its_tag(commands, published, list_of, tmp_path):
    theirs = published(VIDEO_TAG).state_dict()
    video = commands.toy / "val_0.mp4"
    result = commands.run("predict", f"checkpoint={VIDEO_TAG}", video, "device=cpu", "--json")
    assert result.code == 0, result.err
    best = json.loads(result.out)["classes"][0]
    names = published_card(VIDEO_TAG).class_names
    assert len(names) == len(set(names)) == 400

    val = list_of(tmp_path / "val.csv", [(video, best["class"])], "path,class_name")
    result = evaluate(commands, VIDEO_TAG, tmp_path / "out", f"data.val={val}")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["checkpoint"] == VIDEO_TAG
    assert report["video"]["top1"] == 1.0
    # The recipe's protocol, which nothing on the command line states.
    assert report["views"] == {"num_clips": 5, "num_crops": 3}
    assert (report["sampling_rate"], report["target_fps"]) == (4, 30.0)
    saved = np.load(tmp_path / "out" / "scores.npz")
    assert saved["class_names"].tolist() == list(names)
    scores = average_views(saved["scores"][0])
    assert scores.max() == pytest.approx(best["probability"], abs=1e-6)

    model, card = load_model(VIDEO_TAG, kind="classifier")
    assert (card.mean, card.std) == (variants.KINETICS_MEAN, variants.KINETICS_STD)
    ours = model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_published_image_model_has_one_view(commands, published, list_of, tmp_path):
    published(IMAGE_TAG)
    val = list_of(tmp_path / "val.csv", [(commands.toy / "val_0.mp4", 7)])
    result = evaluate(commands, IMAGE_TAG, tmp_path / "out", f"data.val={val}")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["views"] == {"num_clips": 1, "num_crops": 1}
    assert (report["num_frames"], report["crop_size"], report["short_side"]) == (1, [32, 32], 37)
    result = evaluate(
        commands, IMAGE_TAG, tmp_path / "b", f"data.val={val}", "views.num_crops=3", "--dry-run"
    )
    assert json.loads(result.out)["views"] == {"num_clips": 1, "num_crops": 3}


def test_published_weights_without_a_classifier(commands, tmp_path):
    val = f"data.val={commands.toy / 'val.csv'}"
    result = evaluate(commands, "hiera_base_16x224.mae_k400", tmp_path, val)
    assert result.code == 1
    result.reports("hiera_base_16x224.mae_k400 is a masked autoencoder")
