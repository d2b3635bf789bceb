"""One command of the table: its name, its line in the list, its options and what it does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple


def no_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that has none."""


class Command(NamedTuple):
    """A command.

    run: takes the parsed arguments; returns the exit status, None for 0.  options: adds the command's arguments.
    settings: dotted keys of the configuration whose sections and values the command reads, for its help.
    check: calls parser.error for arguments that do not go together.
    resumes: whether the command, called again after Ctrl-C, keeps the finished work.
    is_group: whether the options are commands of their own, which argparse cannot mix with settings.
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
    """A parser whose help ends with the settings that the command reads, from the models that validate them."""

    settings: tuple[str, ...] = ()

    def format_help(self) -> str:
        text = super().format_help()
        if not self.settings:
            return text
        from dakd.config.explain import help_table

        heading = "settings, in the experiment's YAML or as section.key=value: key = default (type), meaning"
        return f"{text}\n{heading}\n\n{help_table(self.settings)}\n"


def positive(text: str) -> int:
    """An argument that is a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {number}, wanted at least 1")
    return number


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """`--config FILE [section.key=value ...]`."""
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="the experiment's YAML, or the name of one that comes with dakd"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the YAML's")
