"""The `hiera-video` command: sub-commands and exit codes.

    hiera-video COMMAND [FILE...] [--config FILE] [key.path=value ...] [--key VALUE ...]

A command is one word or two (`visualize mae`). Settings whose key has no dot may be given as
options too: `--run-dir runs/a` is `run_dir=runs/a`.

Exit codes: 0 done, 1 failure, 2 usage or configuration, 3 done but some inputs failed (listed),
130 interrupted, 141 the reader of the output has left (`| head`), 143 stopped by SIGTERM or SIGHUP
(training saves before it ends).
"""

import argparse
import contextlib
import importlib
import io
import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import hiera_video
from hiera_video.cli.help import card_groups, describe, summary
from hiera_video.errors import (
    DISK_IS_FULL,
    ConfigError,
    OutputError,
    UserError,
    WeightsNotFoundError,
    message_line,
    message_lines,
)
from hiera_video.models.card import Kind
from hiera_video.models.sources import load_card
from hiera_video.runtime.logging import setup_logging
from hiera_video.runtime.signals import STOPPED, Stopped, handling_stops, raise_stopped
from hiera_video.settings import tools
from hiera_video.settings.base import Settings, operand_of, section_of
from hiera_video.settings.commands import COMMANDS
from hiera_video.settings.load import (
    Update,
    load_flops_settings,
    load_for_print,
    load_settings,
    merged,
    to_yaml,
)

CHECKPOINT_KINDS: dict[str, Kind] = {  # commands that take some settings from a checkpoint's card
    "evaluate": "classifier",
    "predict": "classifier",
    "detect evaluate": "detector",
    "detect predict": "detector",
    "visualize mae": "autoencoder",
}
MODULES = {"demo ava": "demo"}  # of commands; others are in one of their own
SWITCHES = {  # of all commands
    "--print-config": "print the whole configuration",
    "--dry-run": "check everything up to the first batch",
    "--json": "results as JSON, for machines",
    "--traceback": "show where in the code an error was raised",
}
OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")


def parser() -> argparse.ArgumentParser:
    """The command line of all commands."""
    top = _Parser(prog="hiera-video", description="Hiera for video: train, evaluate, predict.")
    version = f"hiera-video {hiera_video.__version__}"
    top.add_argument("--version", action="version", version=version)
    commands = top.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_CommandParser
    )
    for name, cls in COMMANDS.items():
        operand = operand_of(cls)
        operands = ""
        if operand:
            operands = f"{operand[1].name} ... " if operand[1].is_list else f"{operand[1].name} "
        sub = commands.add_parser(
            name,
            usage=f"hiera-video {name} [options] {operands}[key.path=value ...]",
            help=summary(cls),
            allow_abbrev=False,
        )
        sub.settings = cls
        sub.add_argument(
            "--config",
            action="append",
            default=[],
            metavar="FILE",
            help="a YAML file, or a shipped recipe such as kinetics400/hiera_base; may be repeated",
        )
        for option, text in SWITCHES.items():
            sub.add_argument(option, action="store_true", help=text)
        for option, is_switch in options_of(cls).items():
            switch: dict[str, Any] = {"action": "store_const", "const": "true"} if is_switch else {}
            sub.add_argument(option, dest=option, help=argparse.SUPPRESS, **switch)
    return top


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(message_line(message))


class _CommandParser(_Parser):
    """The options of a command, whose help shows its settings too."""

    settings: type[Settings]

    def format_help(self) -> str:
        return f"{super().format_help()}\n{describe(self.settings)}\n"


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
    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter that its encoding lacks is no error
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except OSError as error:
        is_closed = isinstance(error, BrokenPipeError)  # its reader has ended, as `head` does
        if not is_closed and error.errno not in DISK_IS_FULL:
            raise
        # Of standard output: errors of files name these, and have been printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        if is_closed:
            return 141
        print(OutputError(error.errno, error.strerror, "standard output"), file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"stopped by {stopped}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        # Decoding processes ignore SIGTERM, and an exception may keep their loader alive: without
        # this, the end of the program would wait for them without end.
        for worker in multiprocessing.active_children():
            worker.kill()


def run(arguments: Sequence[str]) -> int:
    """Runs a command and prints its error; returns the exit code."""
    args, operands = parse(arguments)
    try:
        if args.print_config:
            print(to_yaml(load_for_print(*configuration(args, operands))), end="")
            return 0
        settings = read_settings(args, operands)
        name = MODULES.get(args.command, args.command.replace(" ", "_").replace("-", "_"))
        command = importlib.import_module(f"hiera_video.commands.{name}")
        setup_logging()
        with handling_stops(raise_stopped):
            return command.run(settings, dry_run=args.dry_run, as_json=args.json)
    except (UserError, OSError) as error:
        if not isinstance(error, UserError) and error.filename is None:
            raise  # it is not about a file of the user's
        if args.traceback:
            print(message_lines("".join(traceback.format_exception(error))), file=sys.stderr)
        print(message_line(f"hiera-video {args.command}: {error}"), file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else 1


def read_settings(args: argparse.Namespace, operands: Sequence[str]) -> Any:
    """The settings that the command line asks for."""
    cls, files, overrides = configuration(args, operands)
    if cls is tools.FlopsSettings:
        return load_flops_settings(args.config, overrides)
    return load_settings(cls, files, overrides)


def configuration(
    args: argparse.Namespace, operands: Sequence[str]
) -> tuple[type[Settings], list[Update], list[Update]]:
    """The class of settings, and where their values come from: the card of a checkpoint and
    files, and the command line."""
    cls = COMMANDS[args.command]
    overrides: list[Update] = [o for o in operands if OVERRIDE.match(o)]
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
    checkpoint = merged(cls, args.config, overrides)[0].get("checkpoint")
    if (groups := card_groups(cls)) and isinstance(checkpoint, str):
        # Weights that are missing are an error of the command, after those of other settings.
        with contextlib.suppress(WeightsNotFoundError):
            card = load_card(checkpoint, CHECKPOINT_KINDS.get(args.command))
            stated = {key: getattr(card, key) for key in groups}
            trained = {key: group.model_dump() for key, group in stated.items() if group}
            return cls, [trained, *args.config], overrides
    return cls, args.config, overrides
