"""Every recipe under configs/: it loads, its command is right, its model has the published size."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from hiera_video.cli import main as cli
from hiera_video.files import shipped_folder
from hiera_video.models.pretrained import (
    create_autoencoder,
    create_detector,
    create_model,
    create_segmenter,
)
from hiera_video.models.variants import PUBLISHED
from hiera_video.settings.base import defaults
from hiera_video.settings.evaluation import (
    DetectEvaluateSettings,
    EvaluateSettings,
    ExtractSettings,
    InstancesEvaluateSettings,
)
from hiera_video.settings.load import differences, load_settings, read_yaml
from hiera_video.settings.training import (
    DetectTrainSettings,
    FinetuneSettings,
    InstancesTrainSettings,
    Optim,
    PretrainSettings,
)
from hiera_video.training.schedule import Schedule

CONFIGS = shipped_folder("configs")
RECIPES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml"))
EXTRACT = [name for name in RECIPES if name.startswith("extract/")]
PAPER = [name for name in RECIPES if not name.startswith(("demo/", "extract/"))]
PRETRAIN = [name for name in PAPER if name.startswith("pretrain/")]
DETECT = [name for name in PAPER if name.startswith("ava/")]
COCO = [name for name in PAPER if name.startswith("coco/")]
FINETUNE = [name for name in PAPER if name not in PRETRAIN + DETECT + COCO]
SIZES = {
    "kinetics400": "base base_plus large huge",
    "kinetics600": "base base_plus large huge",
    "kinetics700": "base base_plus large huge",
    "ssv2": "large_16x224 large_32x224",
    "imagenet1k": "tiny small base base_plus large huge",
    "transfer": "base base_plus large huge huge_448",
    "ava": "base base_plus large huge",
    "coco": "base base_plus large",
}
NUM_CLASSES = {
    "kinetics400": 400,
    "kinetics600": 600,
    "kinetics700": 700,
    "ssv2": 174,
    "imagenet1k": 1000,
    "transfer": 8142,  # of iNaturalist 2018, which their commands name
}

# Millions, with 1000 classes for images and 400 for videos, counted from the widths and depths of
# Tab. 2; rounded to millions they are the published ones.
PARAMETERS = {
    "hiera_tiny_224": 27.91,
    "hiera_small_224": 35.01,
    "hiera_base_224": 51.52,
    "hiera_base_plus_224": 69.90,
    "hiera_large_224": 213.74,
    "hiera_huge_224": 672.78,
    "hiera_base_16x224": 51.09,
    "hiera_base_plus_16x224": 69.39,
    "hiera_large_16x224": 213.09,
    "hiera_huge_16x224": 671.63,
}

# Of the masked autoencoders, counted from the same widths and depths, 8 decoder blocks of width 512
# and fusion heads of stages 1 and 2. The official code builds as many for hiera_base_16x224.
AUTOENCODER_PARAMETERS = {
    "hiera_tiny_224": 55_020_896,
    "hiera_small_224": 62_118_752,
    "hiera_base_224": 78_635_648,
    "hiera_base_plus_224": 97_584_064,
    "hiera_large_224": 242_875_808,
    "hiera_huge_224": 710_081_792,
    "hiera_base_16x224": 79_367_104,
    "hiera_base_plus_16x224": 98_320_352,
    "hiera_large_16x224": 243_621_760,
    "hiera_huge_16x224": 710_861_568,
}


def header(name: str) -> str:
    """The comment that a recipe opens with, without its marks."""
    lines = []
    for line in (CONFIGS / name).read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


def header_commands(name: str) -> list[Any]:
    """What the commands of that comment configure, checked."""
    configs = []
    for line in re.sub(r"\\\n", " ", header(name)).splitlines():
        if line.startswith("torchrun "):
            words = shlex.split(line)
            args, operands = cli.parse(words[words.index("hiera_video") + 1 :])
            configs.append(cli.read_settings(args, operands))
    return configs


@functools.cache
def load_recipe(name: str) -> Any:
    """The configuration that the file makes, of the command it is for, checked."""
    config: Any
    if name in EXTRACT:
        config = load_settings(
            ExtractSettings, [str(CONFIGS / name)], ["inputs=[v]", "checkpoint=c"]
        )
    elif "pretrain" in name:
        config = load_settings(PretrainSettings, [str(CONFIGS / name)], ["data.train=t"])
    elif name in DETECT or name == "demo/ava.yaml":
        settings = ["data.train=t", "data.val=v", "data.label_map=l"]
        config = load_settings(DetectTrainSettings, [str(CONFIGS / name)], settings)
    elif name in COCO or name == "demo/instances.yaml":
        config = load_settings(InstancesTrainSettings, [str(CONFIGS / name)], ["data.train=t"])
    else:
        config = load_settings(
            FinetuneSettings, [str(CONFIGS / name)], ["data.train=t", "data.val=v"]
        )
    return config


def equal_to_default(
    values: dict[str, Any], standard: dict[str, Any], prefix: str = ""
) -> list[str]:
    """Keys of a YAML file that repeat the defaults."""
    found = []
    for key, value in values.items():
        default = standard.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            found += equal_to_default(value, default, f"{prefix}{key}.")
        elif value == default:
            found.append(prefix + key)
    return found


def chosen(name: str) -> dict[str, Any]:
    """What a recipe states, with the types of its settings."""

    def same_keys(values: Any, stated: Any) -> Any:
        if not isinstance(stated, dict):
            return values
        return {key: same_keys(values[key], stated[key]) for key in stated}

    whole = load_recipe(name).model_dump()
    return same_keys(whole, read_yaml(CONFIGS / name))


def test_every_recipe_is_there():
    finetune = {f"{data}/hiera_{size}.yaml" for data in SIZES for size in SIZES[data].split()}
    pretrain = {
        f"pretrain/{data}_hiera_{size}.yaml"
        for data in ("kinetics400", "ssv2", "imagenet1k")  # other Kinetics take other lists alone
        for size in SIZES[data].split()
    }
    assert set(RECIPES) >= finetune | pretrain


@pytest.mark.parametrize("name", RECIPES)
def test_loads_and_passes_its_checks(name):
    load_recipe(name)


@pytest.mark.parametrize("name", PAPER)
def test_says_only_what_differs_from_the_defaults(name):
    values = chosen(name)
    values["model"].pop("name")  # a recipe names its model, be it the default
    assert equal_to_default(values, defaults(type(load_recipe(name)))) == []


@pytest.mark.parametrize("name", EXTRACT)
def test_extraction_recipes(name):
    assert equal_to_default(chosen(name), defaults(ExtractSettings)) == []
    command = re.sub(r"\\\n", " ", header(name)).splitlines()
    (line,) = [line for line in command if line.startswith("hiera-video extract ")]
    args, operands = cli.parse(shlex.split(line)[1:])
    config = cli.read_settings(args, operands)
    assert config.output_dir == load_recipe(name).output_dir


@pytest.mark.parametrize("name", PAPER)
def test_opens_with_command_source_and_figure(name):
    text = header(name)
    assert re.search(r"^Source: arXiv 2306\.00989, Tab\. \d+", text, re.M)
    figure = r"\d\d\.\d % top-1, \d|not published"
    if name in DETECT:
        figure = AVA_PUBLISHED.get(name.removeprefix("ava/hiera_").removesuffix(".yaml"))
        figure = (
            r"nothing for this size" if figure is None else re.escape(f"{figure} mAP (AVA v2.2")
        )
    if name in COCO:
        box, mask = COCO_PUBLISHED[name.removeprefix("coco/hiera_").removesuffix(".yaml")]
        figure = rf"{box} box AP, {mask} mask AP \(COCO val2017\)"
        assert "Tab. 15 (settings) and Tab. 10 (figures)" in text
        assert re.search(r"^- NOT PUBLISHED: which model has which drop path", text, re.M)
        assert re.search(r"^- From ViTDet", text, re.M)
    if name.startswith("transfer/"):
        figure = r"nothing that is known here"
        if name.endswith("_448.yaml"):
            figure = (
                r"87\.3 % top-1 on iNaturalist 2018; 83\.8 on 2017, 88\.5 on 2019, 60\.6 on Places"
            )
        assert re.search(r"^- NOT PUBLISHED: learning rate, epochs, batch", text, re.M)
    assert re.search(rf"^Published: ({figure})", text, re.M)
    assert re.search(r"^Obtained: .*(Not yet run by us\.|\d\d\.\d)", text, re.M)
    assert f"configs/{name}" in text


@pytest.mark.parametrize("name", FINETUNE)
def test_its_commands_train_and_evaluate(name, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    recipe, evaluation = header_commands(name)
    assert isinstance(recipe, FinetuneSettings)
    assert isinstance(evaluation, EvaluateSettings)
    assert evaluation.checkpoint == recipe.run_dir
    assert evaluation.data.val == recipe.data.val


@pytest.mark.parametrize("name", PRETRAIN)
def test_its_commands_pretrain_and_hand_over(name, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    recipe, finetuning = header_commands(name)
    assert isinstance(recipe, PretrainSettings)
    assert recipe.run_dir == load_recipe(name).run_dir
    folder, _, file = name.removeprefix("pretrain/").partition("_")
    assert finetuning.run_dir == load_recipe(f"{folder}/{file}").run_dir
    assert finetuning.model.init == recipe.run_dir
    assert finetuning.model.name == recipe.model.name
    assert finetuning.model.num_frames == recipe.model.num_frames
    assert finetuning.clips == recipe.clips
    assert finetuning.data.root == recipe.data.root
    assert finetuning.data.train == recipe.data.train


@pytest.mark.parametrize("name", DETECT)
def test_its_commands_train_and_evaluate_a_detector(name, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    recipe, evaluation = header_commands(name)
    assert isinstance(recipe, DetectTrainSettings)
    assert isinstance(evaluation, DetectEvaluateSettings)
    assert recipe.run_dir == load_recipe(name).run_dir
    assert evaluation.checkpoint == recipe.run_dir
    assert evaluation.data.root == recipe.data.root
    assert evaluation.data.keyframe_range_sec == (902, 1798)
    assert evaluation.data.proposal_score == 0.8
    assert recipe.data.train_excluded is None  # SlowFast's list concerns evaluation alone
    files = [recipe.data.train, recipe.data.label_map]
    files += [evaluation.data.val, evaluation.data.val_excluded, evaluation.data.val_proposals]
    assert all(Path(file).parts[:2] == ("ava", "annotations") for file in files)
    assert recipe.data.label_map.endswith("ava_action_list_v2.2.pbtxt")  # all 80
    assert evaluation.data.label_map.endswith("_for_activitynet_2019.pbtxt")  # 60 of them


@pytest.mark.parametrize("name", COCO)
def test_its_commands_train_and_evaluate_a_segmenter(name, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    recipe, evaluation = header_commands(name)
    assert isinstance(recipe, InstancesTrainSettings)
    assert isinstance(evaluation, InstancesEvaluateSettings)
    assert recipe.run_dir == load_recipe(name).run_dir
    assert evaluation.checkpoint == recipe.run_dir
    assert evaluation.data.val == recipe.data.val == "coco/annotations/instances_val2017.json"
    assert evaluation.data.root == recipe.data.val_root == "coco/val2017"
    assert recipe.data.train == "coco/annotations/instances_train2017.json"
    assert recipe.data.root == "coco/train2017"


def test_run_folders_differ():
    folders = [load_recipe(name).run_dir for name in PAPER]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", FINETUNE + DETECT + COCO)
def test_starts_from_published_weights(name):
    model = load_recipe(name).model
    assert f"{model.name}.{model.init}" in PUBLISHED


@pytest.mark.parametrize("name", FINETUNE)
def test_model_has_the_published_size(name):
    config = load_recipe(name).model
    num_classes = NUM_CLASSES[name.split("/")[0]]
    with torch.device("meta"):
        model = create_model(num_classes=num_classes, **config.arguments(None))
    is_image = config.name.endswith("_224")
    other_classes = num_classes - (1000 if is_image else 400)
    other_frames = (config.num_frames or 16) - 16
    expected = PARAMETERS[config.name] * 1e6 + other_classes * (model.num_features + 1)
    expected += other_frames // 2 * model.stage_dims[0]  # of the temporal position embedding
    side = config.image_size or 224
    expected += ((side // 4) ** 2 - 56**2) * model.stage_dims[0]  # of the spatial one
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(expected, abs=0.006e6)
    assert model.input_size == ((1 if is_image else 16 + other_frames), side, side)


@pytest.mark.parametrize("name", DETECT)
def test_detector_has_the_published_encoder(name):
    config = load_recipe(name).model
    with torch.device("meta"):
        model = create_detector(num_classes=80, **config.arguments(None))
    width = model.encoder.num_features
    classifier = 400 * (width + 1)  # that the encoder's size was counted with
    encoder = sum(p.numel() for p in model.encoder.parameters())
    assert encoder == pytest.approx(PARAMETERS[config.name] * 1e6 - classifier, abs=0.006e6)
    assert sum(p.numel() for p in model.parameters()) == encoder + 80 * (width + 1)
    assert model.encoder.input_size == (16, 224, 224)
    assert model.roi_resolution == 7


@pytest.mark.parametrize("name", COCO)
def test_segmenter_has_the_published_encoder(name):
    config = load_recipe(name).model
    with torch.device("meta"):
        model = create_segmenter(num_classes=80, **config.arguments(None))
    encoder, width = model.encoder, model.encoder.stage_dims[0]
    assert encoder.input_size == (1, 1024, 1024)
    expected = PARAMETERS[config.name] * 1e6 - 1000 * (encoder.num_features + 1)
    expected += (256**2 - 56**2) * width  # of the position embedding
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(expected, abs=0.006e6)
    # ViTDet's heads: convolutions with a LayerNorm have no bias.
    conv, norm, classes = 256 * 256 * 9, 2 * 256, 81  # with the background
    pyramid = 256 * sum(encoder.stage_dims) + 4 * (norm + conv + norm)
    rpn = 2 * (conv + 256) + 257 * 3 * (1 + 4)
    boxes = 4 * (conv + norm) + (256 * 7 * 7 + 1) * 1024 + 1025 * classes * (1 + 4)
    masks = 4 * (conv + norm) + 256 * 256 * 4 + 256 + 257 * classes
    whole = sum(p.numel() for p in model.parameters())
    assert whole == sum(p.numel() for p in encoder.parameters()) + pyramid + rpn + boxes + masks


@pytest.mark.parametrize("name", PRETRAIN)
def test_autoencoder_has_the_published_size(name):
    config = load_recipe(name).model
    assert config.init is None
    with torch.device("meta"):
        model = create_autoencoder(**config.arguments(None))
    other_frames = (config.num_frames or 16) - 16
    expected = AUTOENCODER_PARAMETERS[config.name]
    # of the temporal position embedding, and of the decoder's for 14x14 tokens
    expected += other_frames // 2 * (model.encoder.stage_dims[0] + 14 * 14 * config.decoder_dim)
    assert sum(p.numel() for p in model.parameters()) == expected


# The tables of the paper once more, by column, so that no recipe drifts from them.
KINETICS = {  # Tab. 11b: lr, epochs, drop path, head dropout, layer decay for 3200 epochs
    "base": (8e-4, 150, 0.2, 0.3, 0.8),
    "base_plus": (8e-4, 150, 0.2, 0.3, 0.8),
    "large": (8e-4, 100, 0.2, 0.5, 0.875),
    "huge": (4e-4, 100, 0.3, 0.5, 0.875),
}
PRETRAIN_KINETICS = {  # Tab. 11a: lr and drop path for 3200 epochs
    "base": (8e-4, 0.1),
    "base_plus": (8e-4, 0.2),
    "large": (8e-4, 0.2),
    "huge": (3.2e-4, 0.4),
}
PRETRAIN_IMAGENET = {  # Tab. 14: drop path
    "tiny": 0.0,
    "small": 0.0,
    "base": 0.2,
    "base_plus": 0.2,
    "large": 0.2,
    "huge": 0.3,
}
IMAGENET = {  # Tab. 14: lr, epochs, drop path, layer decay for 1600 epochs
    "tiny": (2e-3, 300, 0.1, 0.65),
    "small": (2e-3, 200, 0.1, 0.65),
    "base": (2e-3, 100, 0.1, 0.7),
    "base_plus": (1e-3, 100, 0.1, 0.7),
    "large": (1e-3, 50, 0.1, 0.85),
    "huge": (1e-3, 50, 0.3, 0.85),
}


AVA_PUBLISHED = {"large": 39.8, "huge": 42.5}  # Tab. 7: mAP on v2.2 after Kinetics-400
AVA_SCALED = {  # drop path and layer decay: Tab. 13 for L and H, of Tab. 11b for the others
    "base": (0.2, 0.8),
    "base_plus": (0.2, 0.8),
    "large": (0.4, 0.875),
    "huge": (0.4, 0.875),
}


COCO_PUBLISHED = {  # Tab. 10: box and mask AP
    "base": (52.2, 46.3),
    "base_plus": (53.5, 47.3),
    "large": ("55.0", 48.6),
}
COCO_TABLE = {  # Tab. 15: lr; drop path, of which it does not say which model has which
    "base": (3.5e-5, 0.2),
    "base_plus": (3.5e-5, 0.2),
    "large": (3e-5, 0.4),
}


def check_ends(optim: Optim, first: float, last: float) -> None:
    """First and last learning rate as parts of the peak, which no table of the paper has.

    SlowFast multiplies all three by the number of machines (BASE_LR_SCALE_NUM_SHARDS).
    """
    ends = optim.warmup_lr / optim.lr, optim.final_lr / optim.lr
    assert ends == pytest.approx((first, last), rel=0.005)


@pytest.mark.parametrize("size", AVA_SCALED)
def test_ava_follows_table_13(size):
    c = load_recipe(f"ava/hiera_{size}.yaml")
    m, o, t = c.model, c.optim, c.train
    assert (m.name, m.init) == (f"hiera_{size}_16x224", "mae_k400_ft_k400")
    assert (m.drop_path, o.layer_decay) == AVA_SCALED[size]
    assert m.head_dropout == 0.5
    assert (o.optimizer, o.lr, o.weight_decay, o.clip_grad) == ("sgd", 3.6, 1e-8, None)
    assert (o.warmup_lr, o.final_lr) == (0.01, 0)  # SlowFast's defaults
    assert (t.epochs, t.warmup_epochs, t.global_batch_size, t.num_repeats) == (30, 5, 128, 1)
    assert (c.clips.sampling_rate, c.clips.target_fps) == (4, 30)
    assert (c.augment.flip, c.augment.zoom) == (True, (8 / 7, 10 / 7))
    assert (c.data.proposal_score, c.data.proposal_iou) == (0.8, 0.9)


@pytest.mark.parametrize("size", COCO_TABLE)
def test_coco_follows_table_15_and_vitdet(size):
    c = load_recipe(f"coco/hiera_{size}.yaml")
    m, o, t, a = c.model, c.optim, c.train, c.augment
    assert (m.name, m.init, m.image_size) == (f"hiera_{size}_224", "mae_in1k", 1024)
    assert (o.lr, m.drop_path) == COCO_TABLE[size]
    assert (o.optimizer, o.weight_decay, o.layer_decay) == ("adamw", 0.1, 1)
    assert (t.epochs, t.global_batch_size, t.num_repeats, a.scale) == (100, 64, 1, (0.1, 2))
    # What the paper leaves out, of ViTDet.
    assert (m.channels, m.hidden, m.num_boxes) == (256, 1024, 512)
    assert (o.betas, o.clip_grad, o.pos_embed_lr_scale, a.flip) == ((0.9, 0.999), None, None, True)
    lr_at = Schedule(118_287, t, o).lr_at
    rates = [lr_at(step) / o.lr for step in (0, 125, 250)]
    assert rates == pytest.approx([0.001, (0.001 + 1) / 2, 1])
    end = Schedule(118_287, t, o).end_step
    for milestone, before, after in ((163_889, 1, 0.1), (177_546, 0.1, 0.01)):
        step = round(milestone * end / 184_375)
        found = lr_at(step - 1) / o.lr, lr_at(step) / o.lr
        assert found == pytest.approx((before, after))


@pytest.mark.parametrize("size", KINETICS)
@pytest.mark.parametrize("folder", ["kinetics400", "kinetics600", "kinetics700"])
def test_kinetics_follows_table_11(folder, size):
    c = load_recipe(f"{folder}/hiera_{size}.yaml")
    m, o, t, a, v = c.model, c.optim, c.train, c.augment, c.views
    assert m.name == f"hiera_{size}_16x224"
    assert (o.lr, t.epochs, m.drop_path, m.head_dropout, o.layer_decay) == KINETICS[size]
    assert (o.optimizer, o.betas, o.weight_decay, o.clip_grad) == ("adamw", (0.9, 0.999), 0.05, 5)
    check_ends(o, first=1e-8 / 3e-4, last=1e-5 / 3e-4)  # k400_VIT_L_16x4_FT
    assert (t.warmup_epochs, t.num_repeats, t.global_batch_size) == (10, 2, 256)
    assert (a.rand_augment_magnitude, a.rand_augment_std) == (7, 0.5)
    assert (a.mixup, a.cutmix, a.label_smoothing, a.erasing_prob) == (0.8, 1, 0.1, 0.25)
    assert (a.flip, a.crop_area) == (True, (0.08, 1))
    assert (c.clips.sampling, c.clips.sampling_rate, c.clips.target_fps) == ("clip", 4, 30)
    assert (v.num_clips, v.num_crops, v.clip_rule, v.short_side) == (5, 3, "offset", None)


@pytest.mark.parametrize(
    ("frames", "lr", "batch", "mixup", "cutmix", "smoothing", "drop_path"),
    [(16, 0.16, 256, 0.8, 1.0, 0.1, 0.1), (32, 0.08, 128, 0, 0, 0, 0.2)],
)
def test_ssv2_follows_table_12(frames, lr, batch, mixup, cutmix, smoothing, drop_path):
    c = load_recipe(f"ssv2/hiera_large_{frames}x224.yaml")
    m, o, t, a, v = c.model, c.optim, c.train, c.augment, c.views
    assert (m.num_frames or 16, m.drop_path, m.head_dropout) == (frames, drop_path, 0.5)
    assert (o.optimizer, o.lr, o.weight_decay, o.layer_decay) == ("sgd", lr, 1e-4, 0.875)
    check_ends(o, first=1e-6 / 0.00125, last=1e-6 / 0.00125)  # SSv2/MVITv2_L_40x3
    assert (t.epochs, t.warmup_epochs, t.global_batch_size, t.num_repeats) == (40, 3, batch, 1)
    assert (a.rand_augment_magnitude, a.rand_augment_std, a.flip) == (7, 0.5, False)
    assert (a.mixup, a.cutmix, a.label_smoothing) == (mixup, cutmix, smoothing)
    assert (c.clips.sampling, v.num_clips, v.num_crops) == ("segments", 1, 3)


@pytest.mark.parametrize("size", IMAGENET)
def test_imagenet_follows_table_14(size):
    c = load_recipe(f"imagenet1k/hiera_{size}.yaml")
    m, o, t, a, v = c.model, c.optim, c.train, c.augment, c.views
    assert m.name == f"hiera_{size}_224"
    assert (o.lr, t.epochs, m.drop_path, o.layer_decay) == IMAGENET[size]
    assert (o.optimizer, o.betas, o.weight_decay) == ("adamw", (0.9, 0.999), 0.05)
    check_ends(o, first=0, last=0)
    assert (t.warmup_epochs, t.global_batch_size, t.num_repeats) == (5, 1024, 1)
    assert (a.rand_augment_magnitude, a.rand_augment_std) == (9, 0.5)
    assert (a.mixup, a.cutmix, a.label_smoothing) == (0.8, 1, 0.1)
    assert (v.num_clips, v.num_crops) == (1, 1)


@pytest.mark.parametrize("size", SIZES["transfer"].split())
def test_transfer_follows_imagenet_but_for_the_epochs(size):
    """Tab. 14 of the same weights on ImageNet, 360 epochs of DeiT-B on iNaturalist; A.2 at 448."""
    c = load_recipe(f"transfer/hiera_{size}.yaml")
    is_448 = size.endswith("_448")
    neighbour = load_recipe(f"imagenet1k/hiera_{size.removesuffix('_448')}.yaml")
    assert c.model.image_size == (448 if is_448 else None)
    assert c.optim.pos_embed_lr_scale == (0.5 if is_448 else None)
    assert c.train.epochs == 360
    changed = {key.split(":")[0] for key in differences(neighbour, c)}
    at_448 = {"model.image_size", "optim.pos_embed_lr_scale"} if is_448 else set()
    assert changed == {"train.epochs", "run_dir"} | at_448


def check_pretraining(c: PretrainSettings, mask_ratio: float, decoder_heads: int) -> None:
    """What all tables of pretraining share."""
    m, o = c.model, c.optim
    assert (m.decoder_heads, m.decoder_depth, m.decoder_dim) == (decoder_heads, 8, 512)
    assert (m.target, c.masking.kind) == ("pixels", "random")
    assert c.masking.mask_ratio in (None, mask_ratio)  # null: 0.9 for video, 0.6 for images
    assert (o.optimizer, o.betas, o.weight_decay) == ("adamw", (0.9, 0.95), 0.05)


@pytest.mark.parametrize("size", PRETRAIN_KINETICS)
def test_kinetics_pretraining_follows_table_11(size):
    c = load_recipe(f"pretrain/kinetics400_hiera_{size}.yaml")
    m, o, t, a = c.model, c.optim, c.train, c.augment
    check_pretraining(c, mask_ratio=0.9, decoder_heads=8)
    assert m.name == f"hiera_{size}_16x224"
    assert (o.lr, m.drop_path) == PRETRAIN_KINETICS[size]
    assert o.clip_grad == 0.02
    check_ends(o, first=0.01, last=0.01)  # k400_VIT_L_16x4_MAE_PT: 1e-6 of 1e-4
    assert (t.epochs, t.warmup_epochs, t.num_repeats, t.global_batch_size) == (3200, 120, 4, 512)
    assert (a.flip, a.crop_area) == (True, (0.5, 1))
    assert (c.clips.sampling, c.clips.sampling_rate, c.clips.target_fps) == ("clip", 4, 30)


@pytest.mark.parametrize("frames", [16, 32])
def test_ssv2_pretraining_follows_table_12(frames):
    c = load_recipe(f"pretrain/ssv2_hiera_large_{frames}x224.yaml")
    m, o, t, a = c.model, c.optim, c.train, c.augment
    check_pretraining(c, mask_ratio=0.9, decoder_heads=8)
    assert (m.name, m.num_frames or 16) == ("hiera_large_16x224", frames)
    assert (o.lr, m.drop_path, o.clip_grad) == (8e-4, 0.2, 0.02)
    check_ends(o, first=0.01, last=0.01)
    assert (t.epochs, t.warmup_epochs, t.num_repeats, t.global_batch_size) == (1600, 30, 1, 1024)
    assert (a.flip, a.crop_area) == (False, (0.5, 1))
    assert c.clips.sampling == "segments"


@pytest.mark.parametrize("size", PRETRAIN_IMAGENET)
def test_imagenet_pretraining_follows_table_14(size):
    c = load_recipe(f"pretrain/imagenet1k_hiera_{size}.yaml")
    m, o, t, a = c.model, c.optim, c.train, c.augment
    check_pretraining(c, mask_ratio=0.6, decoder_heads=16)
    assert m.name == f"hiera_{size}_224"
    assert (o.lr, m.drop_path, o.clip_grad) == (8e-4, PRETRAIN_IMAGENET[size], None)
    check_ends(o, first=0, last=0)
    assert (t.epochs, t.warmup_epochs, t.num_repeats, t.global_batch_size) == (1600, 40, 1, 4096)
    assert (a.flip, a.crop_area) == (True, (0.2, 1))
