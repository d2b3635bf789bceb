"""The entry of a command in the command table, its parser, and options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dakd.names import written_path


def no_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that has none."""


class Command(NamedTuple):
    """A command.

    summary: its line in `dakd --help`.
    run: takes the parsed arguments; returns the exit status, None for 0.
    options: adds the command's arguments to a parser.
    settings: dotted keys of the sections and settings that the command reads; its help lists them.
    check: calls parser.error for arguments that do not go together.
    resumes: whether the command keeps its finished work when it is repeated after Ctrl-C.
    is_group: whether the command has subcommands.
    """

    name: str
    summary: str
    run: Callable[[argparse.Namespace], int | None]
    options: Callable[[argparse.ArgumentParser], None] = no_options
    settings: tuple[str, ...] = ()
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None] | None = None
    resumes: bool = True
    is_group: bool = False


class HelpfulParser(argparse.ArgumentParser):
    """A parser whose help ends with the settings that the command reads."""

    settings: tuple[str, ...] = ()

    def format_help(self) -> str:
        text = super().format_help()
        if not self.settings:
            return text
        from dakd.config.explain import help_table

        heading = "settings (in the experiment's YAML, or as section.key=value): key = default (type), meaning"
        return f"{text}\n{heading}\n\n{help_table(self.settings)}\n"


def positive(text: str) -> int:
    """The type of an argument that is a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {number}, expected at least 1")
    return number


def local_path(text: str) -> Path:
    """The type of an argument that is a file or folder to write, or a run."""
    try:
        return written_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}") from None


OVERRIDES = "settings that override the YAML; of several for one key the last holds"


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """`--config FILE [section.key=value ...]`."""
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="an experiment's YAML, or the name of one that comes with dakd"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES)
