"""What was probably meant by a key that a command does not know."""

from collections.abc import Sequence
from functools import cache

from hiera_video.errors import nearest
from hiera_video.settings.base import Settings, leaves, section_of
from hiera_video.settings.commands import COMMANDS

# What others call a setting, and the last part of its key here; of several, those that the command
# has. Underscores and hyphens do not count.
SYNONYMS: dict[str, Sequence[str]] = {
    "learning_rate": ("lr",),
    "base_lr": ("lr",),
    "max_lr": ("lr",),
    "min_lr": ("final_lr",),
    "wd": ("weight_decay",),
    "llrd": ("layer_decay",),
    "opt": ("optimizer",),
    "grad_clip": ("clip_grad",),
    "max_norm": ("clip_grad",),
    "max_grad_norm": ("clip_grad",),
    "bs": ("global_batch_size", "batch_size", "batch_sizes"),
    "batch": ("global_batch_size", "batch_size", "batch_sizes"),
    "batch_size": ("global_batch_size", "batch_size", "batch_sizes"),
    "train_batch_size": ("global_batch_size",),
    "grad_accum": ("accumulation_steps",),
    "gradient_accumulation_steps": ("accumulation_steps",),
    "epoch": ("epochs",),
    "num_epochs": ("epochs",),
    "max_epochs": ("epochs",),
    "num_train_epochs": ("epochs",),
    "warmup": ("warmup_epochs",),
    "amp": ("precision",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "dtype": ("precision",),
    "mixed_precision": ("precision",),
    "drop_path_rate": ("drop_path",),
    "dropout": ("head_dropout",),
    "smoothing": ("label_smoothing",),
    "reprob": ("erasing_prob",),
    "hflip": ("flip",),
    "pretrained": ("init", "checkpoint"),
    "weights": ("init", "checkpoint"),
    "ckpt": ("checkpoint", "init"),
    "checkpoint": ("init",),
    "resume": ("run_dir",),
    "arch": ("name",),
    "model": ("name", "checkpoint"),
    "model_name": ("name", "model"),
    "gpu": ("device",),
    "gpus": ("device",),
    "cuda": ("device",),
    "workers": ("num_workers",),
    "decoder": ("backend",),
    "data_dir": ("train", "val", "root"),
    "data_path": ("train", "val", "root"),
    "data_root": ("root",),
    "dataset": ("train", "val"),
    "test": ("val",),
    "train_list": ("train",),
    "val_list": ("val",),
    "labels": ("class_names", "label_map"),
    "classes": ("class_names", "label_map"),
    "output": ("output_dir", "run_dir"),
    "out": ("output_dir", "run_dir"),
    "out_dir": ("output_dir", "run_dir"),
    "output_dir": ("run_dir",),
    "save_dir": ("output_dir", "run_dir"),
    "log_dir": ("run_dir",),
    "work_dir": ("run_dir", "output_dir"),
    "force": ("overwrite",),
    "topk": ("top_k",),
    "threshold": ("min_score",),
    "img_size": ("image_size",),
    "input_size": ("image_size",),
    "resolution": ("image_size",),
    "crop_size": ("image_size",),
    "frames": ("num_frames",),
    "clip_len": ("num_frames",),
    "frame_interval": ("sampling_rate",),
    "frame_stride": ("sampling_rate",),
    "stride": ("sampling_rate", "clip_stride"),
    "fps": ("target_fps",),
    "num_views": ("num_clips",),
    "clips": ("num_clips",),
    "crops": ("num_crops",),
    "save_every": ("checkpoint_every",),
    "eval_every": ("evaluate_every",),
    "freeze": ("freeze_stages", "train_only"),
    "ema": ("ema_decay",),
}
NOTES = {  # keys that no setting replaces
    "num_classes": "the number of classes comes from the data",
    "nb_classes": "the number of classes comes from the data",
    "config": "a file of settings is given as --config FILE",
    "config_file": "a file of settings is given as --config FILE",
    "c": "a file of settings is given as --config FILE",
    "cfg": "a file of settings is given as --config FILE",
}
COMMANDS_MEANT = {  # what others call a command
    "train": "finetune, pretrain or detect train",
    "fit": "finetune, pretrain or detect train",
    "val": "evaluate",
    "validate": "evaluate",
    "test": "evaluate",
    "infer": "predict",
    "inference": "predict",
    "classify": "predict",
    "features": "extract",
}


def meant(cls: type[Settings], key: str) -> list[str]:
    """The dotted keys of a command that were probably meant: none, one, or the few that fit; for
    the name of a group, those in it that are required."""
    known = keys_of(cls)
    if any(name.startswith(f"{key}.") for name in known):
        fields = (leaf for leaf in leaves(cls) if leaf[0].startswith(f"{key}."))
        if required := [name for name, field, _ in fields if field.is_required()]:
            return required
    own = _plain(_last(key))
    by_name: dict[str, list[str]] = {}
    for name in known:
        by_name.setdefault(_plain(_last(name)), []).append(name)
    if synonyms := [n for name in _SYNONYMS.get(own, ()) for n in by_name.get(_plain(name), ())]:
        return synonyms
    if same := by_name.get(own):  # in another section
        return same
    if _commands_with(key):
        return []
    alike = by_name.get(nearest(own, by_name), [])
    here = [name for name in alike if name.rpartition(".")[0] == key.rpartition(".")[0]]
    return here or alike  # in other sections


def advice(cls: type[Settings], key: str) -> str:
    """What to write instead of a key, as the end of a message; "" if nothing is similar."""
    if note := NOTES.get(_last(key)):
        return f"; {note}"
    if keys := meant(cls, key):
        return f"; did you mean {' or '.join(map(repr, keys))}?"
    others = _commands_with(key)
    return f"; it is a setting of {', '.join(others)}" if others else ""


def _commands_with(key: str) -> list[str]:
    return [command for command, cls in COMMANDS.items() if key in keys_of(cls)]


@cache
def keys_of(cls: type[Settings], start: str = "") -> list[str]:
    """All dotted keys, with those of groups that help texts list as one setting."""
    keys = []
    for name, field in cls.model_fields.items():
        section = section_of(field)
        keys += keys_of(section, f"{start}{name}.") if section else [f"{start}{name}"]
    return keys


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


_SYNONYMS = {_plain(name): keys for name, keys in SYNONYMS.items()}
