"""The `hiera-video` command: sub-commands and exit codes.

    hiera-video COMMAND [FILE...] [--config FILE] [key.path=value ...] [--key VALUE ...]

A command is one word or two (`visualize mae`). Settings whose key has no dot may be given as
options too: `--run-dir runs/a` is `run_dir=runs/a`.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 done but some inputs failed (listed),
130 interrupted, 141 the reader of the output has left (`| head`), 143 stopped by SIGTERM or SIGHUP
(training saves before it ends).
"""

import argparse
import contextlib
import importlib
import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import hiera_video
from hiera_video.cli.help import (
    COMPLETION_USAGE,
    card_groups,
    describe,
    options_of,
    overview,
    summary,
    switches_of,
)
from hiera_video.cli.paths import check_paths
from hiera_video.cli.words import OVERRIDE, operands_of
from hiera_video.errors import (
    DISK_IS_FULL,
    OutputError,
    UserError,
    WeightsNotFoundError,
    did_you_mean,
    message_line,
    message_lines,
)
from hiera_video.models.card import Kind, ModelCard
from hiera_video.models.sources import find
from hiera_video.runtime.dry_run import running_dry
from hiera_video.runtime.logging import setup_logging
from hiera_video.runtime.memory import batches_that_fit
from hiera_video.runtime.signals import STOPPED, Stopped, handling_stops, raise_stopped
from hiera_video.settings import tools
from hiera_video.settings.advice import COMMANDS_MEANT, advice, meant
from hiera_video.settings.base import Settings, operand_of
from hiera_video.settings.commands import COMMANDS
from hiera_video.settings.load import (
    Update,
    load_flops_settings,
    load_for_print,
    load_settings,
    merged,
    to_yaml,
)
from hiera_video.settings.training import RunSettings

CHECKPOINT_KINDS: dict[str, Kind] = {  # commands that take some settings from a checkpoint's card
    "evaluate": "classifier",
    "predict": "classifier",
    "detect evaluate": "detector",
    "detect predict": "detector",
    "visualize mae": "autoencoder",
    "visualize attention": "classifier",
    "instances evaluate": "segmenter",
    "instances predict": "segmenter",
}
MODULES = {
    "demo ava": "demo",
    "demo instances": "demo",
}  # of commands; others are in one of their own


def parser() -> argparse.ArgumentParser:
    """The command line of all commands."""
    top = _Parser(prog="hiera-video")
    version = f"hiera-video {hiera_video.__version__}"
    top.add_argument("--version", action="version", version=version)
    commands = top.add_subparsers(dest="command", required=True, parser_class=_CommandParser)
    for name, cls in COMMANDS.items():
        operand = operand_of(cls)
        operands = ""
        if operand:
            operands = f"{operand[1].name} ... " if operand[1].is_list else f"{operand[1].name} "
        sub = commands.add_parser(
            name,
            usage=f"hiera-video {name} [options] {operands}[key.path=value ...]",
            allow_abbrev=False,
        )
        sub.command = name
        sub.add_argument(
            "--config",
            action="append",
            default=[],
            metavar="FILE",
            help="a YAML file, or a shipped recipe such as kinetics400/hiera_base; may be repeated",
        )
        for option, text in switches_of(cls).items():
            sub.add_argument(option, action="store_true", help=text)
        for option, is_switch in options_of(cls).items():
            switch: dict[str, Any] = {"action": "store_const", "const": "true"} if is_switch else {}
            sub.add_argument(option, dest=option, help=argparse.SUPPRESS, **switch)
    return top


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        return overview()

    def print_help(self, file: Any = None) -> None:
        print(
            self.format_help(), end="", file=file
        )  # argparse would hide that it cannot be printed

    def error(self, message: str) -> NoReturn:
        print(message_line(f"{self.prog}: {message}"), file=sys.stderr)
        raise SystemExit(2)


class _CommandParser(_Parser):
    """The options of a command, whose help shows its settings too."""

    command: str

    def format_help(self) -> str:
        return f"{argparse.ArgumentParser.format_help(self)}\n{describe(self.command)}\n"


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and what else stands on the command line: files and settings."""
    top, words = parser(), list(arguments)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    words = words or ["--help"]
    if words[0] == "completion":
        _print_completion(top, words[1:])
    if " ".join(words[:2]) in COMMANDS:
        words[:2] = [" ".join(words[:2])]
    elif words[0] not in (*COMMANDS, "-h", "--help", "--version"):
        _refuse_command(top, words)
    # Operands may stand between options, which argparse allows only for what it does not know.
    args, operands = top.parse_known_args(words)
    for place, option in enumerate(operands):
        if option.startswith("-"):
            _refuse_option(top, COMMANDS[args.command], option, operands[place + 1 :])
    if getattr(args, "measure", False) and not args.dry_run:
        top.error("--measure is for dry runs: add --dry-run")
    return args, operands


def _print_completion(top: argparse.ArgumentParser, words: Sequence[str]) -> NoReturn:
    """Ends after printing what makes a shell complete, or how to use that."""
    if not {"-h", "--help"}.isdisjoint(words):
        print(COMPLETION_USAGE)
        raise SystemExit(0)
    from hiera_video.cli.completion import SHELLS, script

    if len(words) != 1 or words[0] not in SHELLS:
        print(COMPLETION_USAGE, file=sys.stderr)
        top.error(f"completion needs the name of one shell: {', '.join(SHELLS)}")
    print(script(words[0]))
    raise SystemExit(0)


def _refuse_command(top: argparse.ArgumentParser, words: Sequence[str]) -> NoReturn:
    """Ends with the commands that may have been meant by these words."""
    first, rest = words[0], words[1:]
    family = [name for name in COMMANDS if name.startswith(f"{first} ")]
    if family and rest[:1] in (["-h"], ["--help"]):
        width = max(map(len, COMMANDS))
        for name in family:
            print(f"hiera-video {name:{width}}  {summary(COMMANDS[name])}")
        raise SystemExit(0)
    if family:
        seconds = [name.split()[1] for name in family]
        given = f", not {rest[0]!r}{did_you_mean(rest[0], seconds)}" if rest else ""
        top.error(f"{first} needs a second word, {' or '.join(seconds)}{given}")
    if first.startswith("-") or OVERRIDE.match(first):
        top.error(f"{first!r} stands before the command: write hiera-video COMMAND {first}")
    near = did_you_mean(" ".join(words[:2]), COMMANDS) or did_you_mean(first, COMMANDS)
    if first in COMMANDS_MEANT:
        near = f"; did you mean {COMMANDS_MEANT[first]}?"
    known = f"; there are {', '.join(COMMANDS)}"
    top.error(f"there is no command {first!r}{near or known}")


def _refuse_option(
    top: argparse.ArgumentParser, cls: type[Settings], option: str, rest: Sequence[str]
) -> NoReturn:
    """Ends with the settings that may have been meant by an option that is none."""
    name, _, value = option.partition("=")
    key = name.lstrip("-").replace("-", "_")
    if not value and rest and not rest[0].startswith("-") and not OVERRIDE.match(rest[0]):
        value = rest[0]
    settings = [f"{key}={value or 'VALUE'}" for key in meant(cls, key)]
    how = f"; write {' or '.join(settings)}" if settings else advice(cls, key)
    how = how or did_you_mean(name, [*switches_of(cls), "--config", *options_of(cls)])
    top.error(f"unknown option {name}{how or '; settings are given as key.path=VALUE: see --help'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Errors that the user can correct are printed as one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter that its encoding lacks is no error
        sys.stdout.reconfigure(errors="backslashreplace")
    if "_ARGCOMPLETE" in os.environ:  # the shell asks
        from hiera_video.cli.completion import complete

        complete()
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
        name = MODULES.get(args.command, args.command.replace(" ", "_").replace("-", "_"))
        with running_dry(args.dry_run), handling_stops(raise_stopped):
            settings = read_settings(args, operands)
            check_paths(settings, CHECKPOINT_KINDS.get(args.command))
            command = importlib.import_module(f"hiera_video.commands.{name}")
            setup_logging()
            how = {"dry_run": args.dry_run, "as_json": args.json}
            if getattr(args, "measure", False):
                how["measured"] = True
            is_run = isinstance(settings, RunSettings)  # which says itself what would fit
            with contextlib.nullcontext() if is_run else batches_that_fit(settings):
                return command.run(settings, **how)
    except (UserError, OSError) as error:
        if not isinstance(error, UserError) and error.filename is None:
            raise  # it is not about a file of the user's
        if args.traceback:
            print(message_lines("".join(traceback.format_exception(error))), file=sys.stderr)
        reason = str(error) if isinstance(error, UserError) else _file_and_reason(error)
        print(message_line(f"hiera-video {args.command}: {reason}"), file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else 1


def _file_and_reason(error: OSError) -> str:
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


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
    operand = operand_of(cls)
    if (words := operands_of(args.command, operands)) and operand is not None:
        name, kind = operand
        overrides.append({name: words if kind.is_list else words[0]})
    checkpoint = merged(cls, args.config, overrides)[0].get("checkpoint")
    if (groups := card_groups(cls)) and isinstance(checkpoint, str):
        # Weights that are missing are an error of the command, after those of other settings.
        with contextlib.suppress(WeightsNotFoundError):
            needed = CHECKPOINT_KINDS.get(args.command)
            _, card = find(checkpoint, needed)
            if isinstance(card, ModelCard):  # files have none
                card.require(needed, checkpoint)
                stated = {key: getattr(card, key) for key in groups}
                trained = {key: group.model_dump() for key, group in stated.items() if group}
                return cls, [trained, *args.config], overrides
    return cls, args.config, overrides
