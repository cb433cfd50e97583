"""Where weights are found, the cards of published weights, and what there is no card for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hiera_video.errors import WeightsError, WeightsNotFoundError
from hiera_video.models.sources import find, load_card, published_card
from hiera_video.models.variants import PUBLISHED, VARIANTS, paper_mask_ratio
from hiera_video.settings.load import load_for_print
from hiera_video.settings.model import Masking
from hiera_video.settings.training import FinetuneSettings, PretrainSettings
from hiera_video.settings.video import Clips, Views

CARDS = Path(__file__).parents[1] / "golden" / "cards"


def weights(folder: Path, name: str = "classifier") -> Path:
    """A weights folder without its tensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((CARDS / f"{name}.json").read_bytes())
    return folder


# Folders.


def test_weights_run_and_checkpoint_folders(tmp_path: Path) -> None:
    step = weights(tmp_path / "run" / "checkpoints" / "step_00000009" / "weights")
    with pytest.raises(
        WeightsNotFoundError, match=r"run that has not ended: take .*/step_00000009"
    ):
        load_card(tmp_path / "run")
    end = weights(tmp_path / "run" / "weights")
    (end / "model.safetensors").touch()
    for source, folder in (
        (end, end),
        (tmp_path / "run", end),
        (end / "model.safetensors", end),
        (step, step),
        (step.parent, step),
    ):
        assert find(source)[0] == folder
        assert load_card(str(source)).class_names == ("left", "right")


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    weights(tmp_path / "w")
    assert load_card("~/w").kind == "classifier"


def test_kind(tmp_path: Path) -> None:
    folder = weights(tmp_path / "w", "autoencoder")
    assert load_card(folder, "autoencoder").masking == Masking(kind="tube", mask_ratio=0.75)
    with pytest.raises(WeightsError, match=rf"^{folder} is a masked autoencoder; expected a class"):
        load_card(folder, "classifier")


def test_what_has_no_card(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    file.touch()
    foreign = weights(tmp_path / "foreign")
    (foreign / "config.json").write_text('{"model_type": "hiera"}')
    for source, what in ((file, "a file"), (foreign, "a folder of another project")):
        with pytest.raises(WeightsError, match=f"is {what}.*`hiera-video convert` writes one"):
            load_card(source)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_card(tmp_path)
    with pytest.raises(WeightsNotFoundError, match="no such file or folder"):
        load_card(tmp_path / "nowhere")
    with pytest.raises(WeightsNotFoundError, match=r"did you mean 'hiera_base_16x224\.mae_k400"):
        load_card("hiera_bse_16x224.mae_k400")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("runs/mien", None, r"; did you mean '.*runs/mine'\?$"),
        ("runz/mine", None, r"; did you mean '.*runs'\?$"),
        ("runs/mine/weihgts", None, r"; did you mean '.*runs/mine/weights'\?$"),
        ("runs/quite-another", None, "folder$"),
        ("no/run", None, "folder, nor .*no$"),
        ("runs\\mine", None, "; write / between folders"),
    ],
)
def test_a_mistyped_folder(name: str, kind: Any, words: str, tmp_path: Path) -> None:
    weights(tmp_path / "runs" / "mine" / "weights")
    message = f"^{re.escape(str(tmp_path / name))}: there is no such file or folder"
    with pytest.raises(WeightsNotFoundError, match=message) as error:
        load_card(tmp_path / name, kind)
    assert re.search(words, str(error.value))
    assert not any(published in str(error.value) for published in PUBLISHED)


def test_a_mistyped_folder_below_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights(tmp_path / "runs" / "mine" / "weights")
    monkeypatch.chdir(tmp_path)
    for name, near in (("rums", "runs"), ("runs/mime", "runs/mine")):
        with pytest.raises(WeightsNotFoundError, match=f"{name}: .*; did you mean '{near}'"):
            load_card(name)
    with pytest.raises(WeightsNotFoundError, match=r"nor me; a repository .* be hf://me/mine$"):
        load_card("me/mine")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("hiera_base_224", "classifier", r"weights are hiera_base_224\.mae_in1k_ft_in1k$"),
        ("hiera_base_224", "autoencoder", r"weights are hiera_base_224\.mae_in1k$"),
        ("hiera_base_224", "backbone", r"hiera_base_224\.mae_in1k, hiera_base_224\.mae_in1k_ft"),
        ("mae_k400", "autoencoder", r"are hiera_base_16x224\.mae_k400, hiera_base_plus_16x224\."),
        ("hiera_tiny_16x224", "classifier", r"; there are hiera_base_16x224\.mae_k400_ft_k400, "),
        ("hiera_base_224", "detector", "expected a run of `hiera-video detect train`$"),
        ("hiera_tiny_224.mae_ink1", None, r"; did you mean 'hiera_tiny_224\.mae_in1k'\?"),
        ("hiera_tiny_16x224.mae_k40", None, r"no such weights of hiera_tiny_16x224 are published"),
        ("hiera_bas_224", "classifier", r"; did you mean 'hiera_base_224\.mae_in1k_ft_in1k'"),
    ],
)
def test_a_name_without_a_tag(name: str, kind: Any, words: str) -> None:
    """The tags that can do what is asked for."""
    with pytest.raises(WeightsNotFoundError, match=f"^{name}: .*{words}"):
        load_card(name, kind)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "holds a list")])
def test_damaged_cards_are_named(text: str, message: str, tmp_path: Path) -> None:
    folder = weights(tmp_path / "w")
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=rf"w/config\.json {message}"):
        load_card(folder)


def test_a_card_is_read_without_torch() -> None:
    code = "from hiera_video.models.sources import load_card; import sys\n"
    code += "card = load_card('hiera_base_16x224.mae_k400_ft_k400', 'classifier')\n"
    code += "assert 'torch' not in sys.modules; print(card.classes[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "abseiling\n"


# Published weights.


def recipe(name: str) -> dict[str, Any]:
    """The recipe of configs/ that trains what was published."""
    variant, tag = name.split(".")
    size = variant.removeprefix("hiera_").removesuffix("_224").removesuffix("_16x224")
    data = "kinetics400" if "k400" in tag else "imagenet1k"
    if "_ft_" in tag:
        return load_for_print(FinetuneSettings, [f"{data}/hiera_{size}"])
    return load_for_print(PretrainSettings, [f"pretrain/{data}_hiera_{size}"])


@pytest.mark.parametrize("name", [name for name in PUBLISHED if ".mae_" in name])
def test_published_cards_are_those_of_the_recipes(name: str) -> None:
    expected, card = recipe(name), published_card(name)
    assert expected["model"]["name"] == card.name == name.split(".")[0]
    assert card.clips == Clips(**expected["clips"])
    if card.kind == "classifier":
        assert expected["model"]["init"] == name.split(".")[1].partition("_ft_")[0]
        assert card.views == Views(**expected["views"])
        assert card.num_classes == VARIANTS[card.name]["num_classes"]
        return
    assert card.autoencoder == {
        key: expected["model"][key] for key in ("decoder_dim", "decoder_depth", "target")
    }
    assert expected["masking"]["mask_ratio"] is None  # that of the paper
    ratio = paper_mask_ratio(card.architecture)
    assert card.masking == Masking(kind=expected["masking"]["kind"], mask_ratio=ratio)
    assert card.architecture["q_pool"] == 2


def test_published_protocols() -> None:
    """As docs/evaluation.md promises."""
    video = load_card("hiera_base_16x224.mae_k400_ft_k400", "classifier")
    assert video.clips == Clips(sampling_rate=4, target_fps=30)
    assert video.views == Views(num_clips=5, num_crops=3)
    assert len(set(video.class_names)) == 400
    image = load_card("hiera_base_224.mae_in1k_ft_in1k", "classifier")
    assert image.views == Views(num_clips=1, num_crops=1)
    assert image.class_names == ()  # no list of them is shipped
    assert len(image.classes) == 1000


def test_origin_of_published_weights() -> None:
    cards = {name: published_card(name) for name in PUBLISHED}
    for name, card in cards.items():
        assert card.license == ("CC-BY-NC-4.0" if ".mae_" in name else "Apache-2.0")
    timm = cards["hiera_small_abswin_256.sbb2_e200_in12k_ft_in1k"]
    assert (timm.kind, timm.num_classes) == ("classifier", 1000)
    assert timm.views == Views(num_clips=1, num_crops=1, short_side=269)  # crops of 0.95
    assert (
        timm.url
        == f"https://huggingface.co/timm/{timm.name}.sbb2_e200_in12k_ft_in1k/resolve/main/model.safetensors"
    )
    sam2 = cards["sam2_hiera_tiny.fb_r896_2pt1"]
    assert (sam2.kind, sam2.name) == ("backbone", "sam2_hiera_tiny")
    folder = "https://dl.fbaipublicfiles.com/segment_anything_2"
    assert sam2.url == f"{folder}/092824/sam2.1_hiera_tiny.pt"
    assert cards["sam2_hiera_tiny.fb_r896"].url == f"{folder}/072824/sam2_hiera_tiny.pt"
    assert len({PUBLISHED[name].file for name in PUBLISHED}) == len(PUBLISHED)
    base = "https://dl.fbaipublicfiles.com/hiera"
    assert cards["hiera_large_16x224.mae_k400"].url == f"{base}/mae_hiera_large_16x224.pth"
    assert cards["hiera_tiny_224.mae_in1k_ft_in1k"].url == f"{base}/hiera_tiny_224.pth"
    assert json.dumps(cards["hiera_tiny_224.mae_in1k"].to_json())
