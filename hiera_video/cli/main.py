"""The `hiera-video` command: sub-commands and exit codes, no logic.

    hiera-video COMMAND [FILE...] [--config FILE] [key.path=value ...] [--key VALUE ...]

A command is one word or two (`visualize mae`). Settings whose key has no dot may be given as
options too: `--run-dir runs/a` is `run_dir=runs/a`.

Exit codes: 0 done, 1 failure, 2 usage or configuration, 3 done but some inputs failed (listed),
130 interrupted, 143 stopped by SIGTERM after saving.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import hiera_video
from hiera_video.config import (
    BenchmarkConfig,
    CheckAvaConfig,
    ConfigError,
    ConvertConfig,
    DemoAvaConfig,
    DemoConfig,
    DetectEvaluateConfig,
    DetectPredictConfig,
    DetectScoreConfig,
    DetectTrainConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    FinetuneConfig,
    FlopsConfig,
    PredictConfig,
    PretrainConfig,
    VisualizeConfig,
    describe_keys,
    load_config,
    load_flops_config,
    to_yaml,
    trained_with,
)

COMMANDS: dict[str, tuple[type, str]] = {
    "pretrain": (PretrainConfig, "train a masked autoencoder on videos or images without labels"),
    "finetune": (FinetuneConfig, "train a classifier on videos or images"),
    "evaluate": (EvaluateConfig, "multi-view accuracy of a trained classifier"),
    "predict": (PredictConfig, "the most likely classes of videos or images"),
    "detect train": (DetectTrainConfig, "train an action detector on key frames with boxes"),
    "detect evaluate": (DetectEvaluateConfig, "frame mAP of a trained action detector"),
    "detect score": (DetectScoreConfig, "frame mAP of action detections, from csv files alone"),
    "data check-ava": (CheckAvaConfig, "mistakes in AVA annotations, proposals and videos"),
    "detect predict": (DetectPredictConfig, "what the people in videos do, with an overlay"),
    "extract": (ExtractConfig, "features of many videos, one file a video"),
    "export": (ExportConfig, "a model as torch.export and ONNX files for other programs"),
    "convert": (ConvertConfig, "weights in the layout of another project"),
    "visualize mae": (VisualizeConfig, "what a masked autoencoder sees and predicts, as pictures"),
    "flops": (FlopsConfig, "parameters, FLOPs and activations of a model; the paper's table"),
    "benchmark": (BenchmarkConfig, "speed and memory of models, beside those of other libraries"),
    "demo": (DemoConfig, "generate a small data set, fine-tune, evaluate and predict on it"),
    "demo ava": (DemoAvaConfig, "the same for action detection"),
}
MODULES = {"demo ava": "demo"}  # of commands; others are in one of their own
TAKES_MODELS = {"flops": "[MODEL] ", "benchmark": "[MODEL ...] "}
TAKES_FILES = {"predict", "detect predict", "extract", "visualize mae"}
OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")


def parser() -> argparse.ArgumentParser:
    """The command line of all commands."""
    top = argparse.ArgumentParser(
        prog="hiera-video", description="Hiera for video: train, evaluate, predict."
    )
    version = f"hiera-video {hiera_video.__version__}"
    top.add_argument("--version", action="version", version=version)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (cls, summary) in COMMANDS.items():
        files = "FILE ... " if name in TAKES_FILES else TAKES_MODELS.get(name, "")
        usage = f"hiera-video {name} [options] {files}[key.path=value ...]"
        sub = commands.add_parser(
            name,
            usage=usage,
            help=summary,
            description=cls.__doc__,
            epilog="\n".join(["settings, with their defaults:", *describe_keys(cls)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.add_argument(
            "--config",
            action="append",
            default=[],
            metavar="FILE",
            help="a YAML file, or a shipped recipe such as kinetics400/hiera_base; may be repeated",
        )
        sub.add_argument(
            "--print-config", action="store_true", help="print the whole configuration"
        )
        sub.add_argument("--dry-run", action="store_true", help="check everything, do nothing")
        sub.add_argument("--json", action="store_true", help="results as JSON, for machines")
        for option, is_switch in options_of(cls).items():
            switch: dict[str, Any] = {"action": "store_const", "const": "true"} if is_switch else {}
            sub.add_argument(option, dest=option, help=argparse.SUPPRESS, **switch)
    return top


def options_of(cls: type) -> dict[str, bool]:
    """The settings of a command that may be given as options, and whether each is a switch."""
    settings = vars(cls())
    return {
        f"--{name.replace('_', '-')}": isinstance(value, bool)
        for name, value in settings.items()
        if not is_dataclass(value) and name != "inputs"
    }


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and what else stands on the command line: files and settings."""
    top, words = parser(), list(arguments)
    if " ".join(words[:2]) in COMMANDS:
        words[:2] = [" ".join(words[:2])]
    elif words and words[0] not in COMMANDS:
        second = [name.split()[1] for name in COMMANDS if name.startswith(f"{words[0]} ")]
        if second and words[1:2] in (["-h"], ["--help"]):
            width = max(map(len, COMMANDS))
            for name, (_, summary) in COMMANDS.items():
                if name.startswith(f"{words[0]} "):
                    print(f"hiera-video {name:{width}}  {summary}")
            raise SystemExit(0)
        if second:
            given = f", not {words[1]!r}" if words[1:] else ""
            top.error(f"{words[0]} needs a second word, {' or '.join(second)}{given}")
    # Operands may stand between options, which argparse allows only for what it does not know.
    args, operands = top.parse_known_args(words)
    unknown = [operand for operand in operands if operand.startswith("--")]
    if unknown:
        key = unknown[0].lstrip("-").partition("=")[0]
        top.error(f"unknown option {unknown[0]}; settings are given as {key}=VALUE")
    return args, operands


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; mistakes of the user end as one line on stderr."""
    args, operands = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        config = read_config(args, operands)
        if args.print_config:
            print(to_yaml(config), end="")
            return 0
        config.check()
        own = args.command.replace(" ", "_").replace("-", "_")
        module = MODULES.get(args.command, own)
        command = importlib.import_module(f"hiera_video.commands.{module}")
        return command.run(config, dry_run=args.dry_run, as_json=args.json)
    except ConfigError as error:
        print(f"hiera-video {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        names_a_file = isinstance(error, OSError) and error.filename is not None
        if not names_a_file and not _is_ours(error):
            raise
        print(f"hiera-video {args.command}: {error}", file=sys.stderr)
        return 1
    finally:
        # Decoding processes ignore SIGTERM, and an exception may keep their loader alive: without
        # this, the end of the program would wait for them without end.
        for worker in multiprocessing.active_children():
            worker.kill()


def read_config(args: argparse.Namespace, operands: Sequence[str]) -> Any:
    """The configuration that the command line asks for."""
    cls = COMMANDS[args.command][0]
    files = [operand for operand in operands if not OVERRIDE.match(operand)]
    overrides = [operand for operand in operands if OVERRIDE.match(operand)]
    given = {option: getattr(args, option) for option in options_of(cls)}
    overrides += [
        f"{option[2:].replace('-', '_')}={value}"
        for option, value in given.items()
        if value is not None
    ]
    if args.command == "flops":
        if files[1:]:
            raise ConfigError(f"{files[1]!r} is a second MODEL: it counts one, or --table all")
        return load_flops_config(args.config, [*(f"model={name}" for name in files), *overrides])
    if files and args.command not in TAKES_FILES | TAKES_MODELS.keys():
        raise ConfigError(f"{files[0]!r} is not of the form key.path=value")
    config: Any = load_config(cls, args.config, overrides)
    if getattr(config, "checkpoint", None) is not None:
        keys = [key for key in ("clips", "views", "masking") if hasattr(config, key)]
        defaults = trained_with(config.checkpoint, keys)
        config = load_config(cls, args.config, overrides, defaults)
    if not files:
        return config
    key = "models" if args.command in TAKES_MODELS else "inputs"
    return replace(config, **{key: [*getattr(config, key), *files]})


def _is_ours(error: Exception) -> bool:
    """Whether this project raised the error: its message says all, a trace would bury it."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])
