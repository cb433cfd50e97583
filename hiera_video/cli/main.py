"""The `hiera-video` command: sub-commands and exit codes.

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
from typing import Any

import hiera_video
from hiera_video.cli.help import describe, operand_of, summary
from hiera_video.errors import ConfigError, UserError, WeightsNotFoundError
from hiera_video.models.card import Kind
from hiera_video.models.sources import load_card
from hiera_video.settings.base import Settings, section_of
from hiera_video.settings.evaluation import (
    CheckAvaSettings,
    DetectEvaluateSettings,
    DetectPredictSettings,
    DetectScoreSettings,
    EvaluateSettings,
    ExtractSettings,
    PredictSettings,
    VisualizeSettings,
)
from hiera_video.settings.load import (
    load_flops_settings,
    load_for_print,
    load_settings,
    merged,
    to_yaml,
)
from hiera_video.settings.tools import (
    BenchmarkSettings,
    ConvertSettings,
    DemoAvaSettings,
    DemoSettings,
    ExportSettings,
    FlopsSettings,
)
from hiera_video.settings.training import DetectTrainSettings, FinetuneSettings, PretrainSettings

COMMANDS: dict[str, type[Settings]] = {
    "finetune": FinetuneSettings,
    "evaluate": EvaluateSettings,
    "predict": PredictSettings,
    "pretrain": PretrainSettings,
    "visualize mae": VisualizeSettings,
    "detect train": DetectTrainSettings,
    "detect evaluate": DetectEvaluateSettings,
    "detect predict": DetectPredictSettings,
    "detect score": DetectScoreSettings,
    "data check-ava": CheckAvaSettings,
    "extract": ExtractSettings,
    "export": ExportSettings,
    "convert": ConvertSettings,
    "flops": FlopsSettings,
    "benchmark": BenchmarkSettings,
    "demo": DemoSettings,
    "demo ava": DemoAvaSettings,
}
CHECKPOINT_KINDS: dict[str, Kind] = {  # commands that take some settings from a checkpoint's card
    "evaluate": "classifier",
    "predict": "classifier",
    "detect evaluate": "detector",
    "detect predict": "detector",
    "visualize mae": "autoencoder",
}
MODULES = {"demo ava": "demo"}  # of commands; others are in one of their own
OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")


def parser() -> argparse.ArgumentParser:
    """The command line of all commands."""
    top = argparse.ArgumentParser(
        prog="hiera-video", description="Hiera for video: train, evaluate, predict."
    )
    version = f"hiera-video {hiera_video.__version__}"
    top.add_argument("--version", action="version", version=version)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, cls in COMMANDS.items():
        operand = operand_of(cls)
        operands = ""
        if operand:
            operands = f"{operand[1].name} ... " if operand[1].is_list else f"{operand[1].name} "
        sub = commands.add_parser(
            name,
            usage=f"hiera-video {name} [options] {operands}[key.path=value ...]",
            help=summary(cls),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        sub.add_argument("-h", "--help", action=_Help, settings=cls)
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
        sub.add_argument(
            "--dry-run", action="store_true", help="check everything up to the first batch"
        )
        sub.add_argument("--json", action="store_true", help="results as JSON, for machines")
        sub.add_argument(
            "--traceback", action="store_true", help="show where in the code an error was raised"
        )
        for option, is_switch in options_of(cls).items():
            switch: dict[str, Any] = {"action": "store_const", "const": "true"} if is_switch else {}
            sub.add_argument(option, dest=option, help=argparse.SUPPRESS, **switch)
    return top


class _Help(argparse.Action):
    """Prints the usage, the options and the settings of a command."""

    def __init__(self, option_strings: list[str], dest: str, settings: type[Settings]) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show this text")
        self.settings = settings

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        print(parser.format_help())
        print(describe(self.settings))
        if any("." not in key for key in options_of(self.settings)):
            print("\nSettings without a dot are options too: --key-name VALUE is key_name=VALUE.")
        parser.exit()


def options_of(cls: type[Settings]) -> dict[str, bool]:
    """The settings of a command that may be given as options, and whether each is a switch."""
    return {
        f"--{name.replace('_', '-')}": field.annotation is bool
        for name, field in cls.model_fields.items()
        if section_of(field) is None and name != "inputs"
    }


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and what else stands on the command line: files and settings."""
    top, words = parser(), list(arguments)
    if " ".join(words[:2]) in COMMANDS:
        words[:2] = [" ".join(words[:2])]
    elif words and words[0] not in COMMANDS:
        family = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
        if family and words[1:2] in (["-h"], ["--help"]):
            width = max(map(len, COMMANDS))
            for name in family:
                print(f"hiera-video {name:{width}}  {summary(COMMANDS[name])}")
            raise SystemExit(0)
        if family:
            second = " or ".join(name.split()[1] for name in family)
            given = f", not {words[1]!r}" if words[1:] else ""
            top.error(f"{words[0]} needs a second word, {second}{given}")
    # Operands may stand between options, which argparse allows only for what it does not know.
    args, operands = top.parse_known_args(words)
    unknown = [operand for operand in operands if operand.startswith("--")]
    if unknown:
        key = unknown[0].lstrip("-").partition("=")[0]
        top.error(f"unknown option {unknown[0]}; settings are given as {key}=VALUE")
    return args, operands


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Errors that the user can correct are printed as one line on stderr."""
    args, operands = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if args.print_config:
            print(to_yaml(load_for_print(*configuration(args, operands))), end="")
            return 0
        settings = read_settings(args, operands)
        name = MODULES.get(args.command, args.command.replace(" ", "_").replace("-", "_"))
        command = importlib.import_module(f"hiera_video.commands.{name}")
        return command.run(settings, dry_run=args.dry_run, as_json=args.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        return _report(args, error, error.exit_code)
    except OSError as error:
        if error.filename is None:  # not about a file of the user's
            raise
        return _report(args, error, 1)
    finally:
        # Decoding processes ignore SIGTERM, and an exception may keep their loader alive: without
        # this, the end of the program would wait for them without end.
        for worker in multiprocessing.active_children():
            worker.kill()


def _report(args: argparse.Namespace, error: Exception, exit_code: int) -> int:
    if args.traceback:
        traceback.print_exception(error)
    print(f"hiera-video {args.command}: {error}", file=sys.stderr)
    return exit_code


def read_settings(args: argparse.Namespace, operands: Sequence[str]) -> Any:
    """The settings that the command line asks for."""
    cls, files, overrides, base = configuration(args, operands)
    if cls is FlopsSettings:
        return load_flops_settings(files, overrides)
    return load_settings(cls, files, overrides, base)


def configuration(
    args: argparse.Namespace, operands: Sequence[str]
) -> tuple[type[Settings], list[str], list[str | dict[str, Any]], dict[str, Any]]:
    """The class of settings, and where their values come from: files, the command line, and the
    card of a checkpoint."""
    cls, files = COMMANDS[args.command], args.config
    overrides: list[str | dict[str, Any]] = [o for o in operands if OVERRIDE.match(o)]
    for option in options_of(cls):
        if (value := getattr(args, option)) is not None:
            overrides.append(f"{option[2:].replace('-', '_')}={value}")
    if words := [operand for operand in operands if not OVERRIDE.match(operand)]:
        operand = operand_of(cls)
        if operand is None:
            raise ConfigError(f"{words[0]!r} is not of the form key.path=value")
        name, kind = operand
        if not kind.is_list and words[1:]:
            raise ConfigError(f"{words[1]!r} is a second {kind.name}: only one is allowed")
        overrides.append({name: words if kind.is_list else words[0]})
    base: dict[str, Any] = {}
    if "checkpoint" in cls.model_fields:
        values, _ = merged(cls, files, overrides)
        if isinstance(checkpoint := values.get("checkpoint"), str):
            base = card_settings(cls, checkpoint, CHECKPOINT_KINDS.get(args.command))
    return cls, files, overrides, base


def card_settings(cls: type[Settings], checkpoint: str, kind: Kind | None) -> dict[str, Any]:
    """How the weights were trained, for the groups of settings that the command has too."""
    groups = [key for key in ("clips", "views", "masking") if key in cls.model_fields]
    if not groups:
        return {}
    try:
        card = load_card(checkpoint, kind)
    except WeightsNotFoundError:
        return {}  # the command raises it again, once the other settings have been checked
    return {key: group.model_dump() for key in groups if (group := getattr(card, key)) is not None}
