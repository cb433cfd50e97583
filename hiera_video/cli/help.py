"""Help texts: of the program, and of a command, made from the fields of its settings."""

import inspect
import shutil
import textwrap

from pydantic.fields import FieldInfo

import hiera_video
from hiera_video.files import json_text
from hiera_video.settings.base import Settings, allowed_values, leaves, section_of, shown_key
from hiera_video.settings.commands import COMMANDS
from hiera_video.settings.training import RunSettings

PUBLISHED = "hiera_base_16x224.mae_k400_ft_k400"
EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 wrong usage or settings (a path that does not exist among "
    "them), 3 done, but some inputs failed (they are listed)"
)
HELP: dict[str, tuple[str, str, str]] = {  # page of the documentation, and two examples
    "finetune": (
        "datasets/README.md",
        "data.train=videos/train data.val=videos/val run_dir=runs/mine",
        "--config kinetics400/hiera_base data.train=train.csv data.val=val.csv optim.lr=4e-4",
    ),
    "evaluate": (
        "docs/evaluation.md",
        "checkpoint=runs/mine data.val=val.csv",
        f"checkpoint={PUBLISHED} data.val=val.csv views.num_crops=1 --output-dir results",
    ),
    "predict": (
        "docs/evaluation.md",
        f"video.mp4 checkpoint={PUBLISHED}",
        "videos/ checkpoint=runs/mine top_k=1 --json",
    ),
    "pretrain": (
        "docs/pretraining.md",
        "data.train=videos/ model.decoder_heads=8 run_dir=runs/mae",
        "--config pretrain/kinetics400_hiera_base data.train=train.csv --dry-run",
    ),
    "visualize mae": (
        "docs/pretraining.md",
        "video.mp4 checkpoint=runs/mae",
        "video.mp4 checkpoint=hiera_base_16x224.mae_k400 decoder_heads=16 masking.kind=tube",
    ),
    "visualize attention": (
        "docs/attention.md",
        f"video.mp4 checkpoint={PUBLISHED}",
        "video.mp4 checkpoint=runs/mine class_name=archery stage=stage2 --json",
    ),
    "detect train": (
        "docs/detection.md",
        "--config ava/hiera_base data.train=train.csv data.val=val.csv data.root=videos "
        "data.label_map=actions.txt",
        "data.train=train.csv data.root=videos data.label_map=actions.txt train.epochs=20",
    ),
    "detect evaluate": (
        "docs/detection.md",
        "checkpoint=runs/detect data.val=val.csv data.root=videos",
        "checkpoint=runs/detect data.val=val.csv data.root=videos data.val_proposals=people.csv",
    ),
    "detect predict": (
        "docs/detection.md",
        "video.mp4 checkpoint=runs/detect",
        "video.mp4 checkpoint=runs/detect boxes=people.csv min_score=0.5",
    ),
    "detect score": (
        "docs/detection.md",
        "ground_truth=val.csv detections=detections.csv label_map=actions.txt",
        "ground_truth=val.csv detections=detections.csv label_map=actions.txt protocol=slowfast",
    ),
    "instances train": (
        "docs/instances.md",
        "--config coco/hiera_base data.train=instances_train2017.json data.root=train2017 "
        "data.val=instances_val2017.json data.val_root=val2017",
        "data.train=train.json data.val=val.json model.name=hiera_tiny_224 "
        "model.init=mae_in1k_ft_in1k model.image_size=512",
    ),
    "instances evaluate": (
        "docs/instances.md",
        "checkpoint=runs/instances data.val=instances_val2017.json data.root=val2017",
        "checkpoint=runs/instances data.val=val.json --output-dir results",
    ),
    "instances predict": (
        "docs/instances.md",
        "picture.jpg checkpoint=runs/instances",
        "*.jpg checkpoint=runs/instances min_score=0.7 --output-dir found",
    ),
    "instances score": (
        "docs/instances.md",
        "ground_truth=instances_val2017.json detections=detections.json",
        "ground_truth=instances_val2017.json detections=detections.json kinds=bbox --json",
    ),
    "data build-lists": (
        "datasets/kinetics/README.md",
        "videos/train annotations=train.csv output=train_list.csv",
        "inat2018 annotations=inat2018/train2018.json output=inat2018/train.csv",
    ),
    "data check-ava": (
        "datasets/ava/README.md",
        "ground_truth=train.csv label_map=actions.txt",
        "ground_truth=train.csv videos=videos start_sec=900 expected_fps=30",
    ),
    "extract": (
        "docs/extraction.md",
        f"videos/ checkpoint={PUBLISHED}",
        "list.csv checkpoint=runs/mine layer=stage4 pooling=spatial windows.clip_stride=8",
    ),
    "report": (
        "docs/report.md",
        "runs/mine",
        "runs/mine runs/other output_dir=compared num_videos=48",
    ),
    "export": (
        "docs/export.md",
        "checkpoint=runs/mine",
        f"checkpoint={PUBLISHED} format=pt2 --output-dir hiera_base",
    ),
    "convert": (
        "docs/export.md",
        "checkpoint=mae_hiera_base_16x224.pth output=hiera_base",
        "checkpoint=runs/mine layout=official output=mine.pth",
    ),
    "flops": (
        "docs/complexity.md",
        "hiera_base_16x224 image_size=160",
        "--config pretrain/kinetics400_hiera_base --modules",
    ),
    "benchmark": (
        "docs/benchmarks.md",
        "hiera_tiny_16x224 'work=[inference]' 'batch_sizes=[1,8]'",
        "hiera_base_16x224 --peers --output-dir speed",
    ),
    "doctor": ("docs/README.md", "", "--json"),
    "demo": ("README.md", "", "--output-dir try seed=1"),
    "demo ava": ("docs/detection.md", "", "--output-dir try_ava --json"),
    "demo instances": ("docs/instances.md", "", "--output-dir try_instances seed=1"),
}

COMPLETION = "Print what makes bash, zsh or fish complete commands and settings."
COMPLETION_USAGE = f"""\
usage: hiera-video completion SHELL

{COMPLETION} Write the line of your shell into its start-up file:

  bash  ~/.bashrc                   eval "$(hiera-video completion bash)"
  zsh   ~/.zshrc, after compinit    eval "$(hiera-video completion zsh)"
  fish  ~/.config/fish/config.fish  hiera-video completion fish | source"""

SWITCHES = {  # of all commands
    "--print-config": "print the whole configuration",
    "--dry-run": "check everything up to the first batch",
    "--json": "results as JSON, for machines",
    "--traceback": "show where in the code an error was raised",
}

MEASURE = "with --dry-run: take a few steps, and say how long the run takes and what limits it"


def switches_of(cls: type[Settings]) -> dict[str, str]:
    """The switches of a command, and what each does."""
    return SWITCHES | ({"--measure": MEASURE} if issubclass(cls, RunSettings) else {})


def options_of(cls: type[Settings]) -> dict[str, bool]:
    """The settings of a command that may be given as options, and whether each is a switch."""
    return {
        f"--{name.replace('_', '-')}": field.annotation is bool
        for name, field in cls.model_fields.items()
        if section_of(field) is None and name != "inputs"
    }


def overview() -> str:
    """What the program can do: its commands, and where to read on."""
    width = min(shutil.get_terminal_size().columns, 100)
    column = max(map(len, COMMANDS)) + 4
    listed = {name: summary(cls) for name, cls in COMMANDS.items()} | {
        "completion SHELL": COMPLETION,
        "help COMMAND": "Show the settings of a command, as COMMAND --help does.",
    }
    lines = [
        f"hiera-video {hiera_video.__version__}: train, evaluate and use Hiera models for video.",
        "",
        "usage: hiera-video COMMAND [FILE ...] [--config FILE] [key.path=value ...]",
        "",
        "commands:",
        *(
            line
            for name, text in listed.items()
            for line in textwrap.wrap(
                text,
                width,
                initial_indent=f"  {name:{column}}",
                subsequent_indent=" " * (column + 2),
            )
        ),
        "",
        "examples:",
        "  hiera-video demo",
        *(f"  hiera-video {name} {HELP[name][1]}" for name in ("predict", "finetune", "extract")),
        "",
        *textwrap.wrap(EXIT_CODES, width),
        "documentation: README.md and docs/README.md",
    ]
    return "\n".join(lines) + "\n"


def summary(cls: type[Settings]) -> str:
    """What the command does, in one line."""
    return inspect.cleandoc(cls.__doc__ or "").splitlines()[0]


def card_groups(cls: type[Settings]) -> list[str]:
    """The groups of a command's settings that start from the card of its checkpoint."""
    groups = ("clips", "views", "masking") if "checkpoint" in cls.model_fields else ()
    return [key for key in groups if key in cls.model_fields]


def describe(command: str) -> str:
    """The description of a command and all its settings: required ones first, then by section."""
    cls = COMMANDS[command]
    width = min(shutil.get_terminal_size().columns, 100)
    required, sections = [], dict[str, list[str]]()
    for key, field, default in leaves(cls):
        if field.is_required():
            required += _entry(shown_key(cls, key), field, width)
        else:
            section = sections.setdefault(key.rpartition(".")[0].partition(".")[0], [])
            typed = default if isinstance(default, str) else json_text(default).replace(" ", "")
            section += _entry(f"{shown_key(cls, key)}={typed}", field, width)
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    if groups := card_groups(cls):
        names = " and ".join(f"`{name}`" for name in groups)
        paragraphs.append(
            f"{names} start from the card of the checkpoint, not from the defaults shown here."
        )
    lines = "\n\n".join(textwrap.fill(" ".join(p.split()), width) for p in paragraphs).splitlines()
    page, *examples = HELP[command]
    lines += ["", "examples:", *(f"  hiera-video {command} {line}".rstrip() for line in examples)]
    if required:
        lines += ["", "required:", *required]
    for name in sorted(sections, key=bool):
        lines += ["", f"{name or 'settings'}:", *sections[name]]
    lines += ["", "Settings without a dot are options too: --key-name VALUE is key_name=VALUE."]
    lines += ["", *textwrap.wrap(EXIT_CODES, width), f"documentation: {page}"]
    return "\n".join(lines)


def _entry(head: str, field: FieldInfo, width: int) -> list[str]:
    allowed = allowed_values(field.annotation, field.metadata)
    text = f"{' '.join((field.description or '').split())} [{allowed}]"
    indent = " " * 6
    wrapped = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
    return [f"  {head}", wrapped]
