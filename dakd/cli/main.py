"""The table of all commands, their parsers, and the handling of errors, exit statuses and Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import itertools
import logging
import os
import sys
from collections.abc import Sequence

import dakd
from dakd.cli.command import Command, HelpfulParser
from dakd.cli.errors import message_of
from dakd.cli.steps import STEP_COMMANDS
from dakd.cli.tools import TOOL_COMMANDS
from dakd.runtime.console import open_closed_streams, show
from dakd.runtime.place import check_place
from dakd.runtime.slurm import set_rank_from_slurm
from dakd.runtime.stopping import (
    BROKEN_PIPE,
    FAILED,
    INTERRUPTED,
    PREEMPTED,
    WRONG_ARGUMENTS,
    Preempted,
    Stopped,
    end_with_launcher,
    is_rank_0,
    prove_end,
)

COMMANDS: dict[str, Command] = {command.name: command for command in (*STEP_COMMANDS, *TOOL_COMMANDS)}
STEPS = tuple(command.name for command in STEP_COMMANDS)


def main(argv: Sequence[str] | None = None) -> int:
    """The console command `dakd`; returns the exit status.

    0: done.  1: an error, reported in one message.  2: a wrong command line.  85: a training that ended after a stop
    request.  130: Ctrl-C.
    """
    open_closed_streams()
    is_process, argv = argv is None, list(sys.argv[1:] if argv is None else argv)
    # Options of a launcher (--local_rank) come before the command's name.
    before = list(itertools.takewhile(lambda argument: argument.startswith("-"), argv))
    parser = _top_parser()
    general, rest = parser.parse_args(before), argv[len(before) :]
    if not rest:
        parser.print_help()
        return 0
    name = rest[0]
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        show(f"dakd: no command is called {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else ""))
        parser.print_help()
        return WRONG_ARGUMENTS
    return _run(COMMANDS[name], rest[1:], general.local_rank, is_process)


def run_step(name: str, argv: Sequence[str] | None = None) -> int:
    """One command as a script (`launch/STEP.py`).  argv: the arguments after its name; None takes the script's."""
    open_closed_streams()
    return _run(COMMANDS[name], list(sys.argv[1:] if argv is None else argv), None, argv is None)


def build_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command's arguments."""
    command = COMMANDS[name]
    parser = HelpfulParser(
        prog=f"dakd {name}", description=command.summary, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.settings = command.settings
    if not command.is_group:
        parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    command.options(parser)
    return parser


def _top_parser() -> argparse.ArgumentParser:
    lines = {name: f"  {name:<16}{command.summary}\n" for name, command in COMMANDS.items()}
    steps, tools = ("".join(lines[command.name] for command in table) for table in (STEP_COMMANDS, TOOL_COMMANDS))
    parser = argparse.ArgumentParser(
        prog="dakd",
        usage="dakd COMMAND ...\n       dakd COMMAND --help",
        description=f"the steps of the pipeline, in order:\n\n{steps}\nother commands:\n\n{tools}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dakd {dakd.__version__}")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    return parser


def _run(command: Command, argv: list[str], local_rank: int | None, is_process: bool) -> int:
    """is_process: whether the whole process is this command's, and ends with its launcher."""
    parser = build_parser(command.name)
    # Settings may stand before and after options; argparse can mix them only where there are no subcommands.
    args = parser.parse_args(argv) if command.is_group else parser.parse_intermixed_args(argv)
    if command.check is not None:
        command.check(parser, args)
    local_rank = local_rank if local_rank is not None else getattr(args, "local_rank", None)
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
    try:
        if is_process:
            _take_place()
        _set_up_logging()
        status = command.run(args) or 0
        sys.stdout.flush()  # a closed pipe shows here, within the `try`
        if is_process and status == 0:
            prove_end()
        return status
    except KeyboardInterrupt:
        again = "; the same command resumes the work" if command.resumes else ""
        return _fail(command, f"stopped{again}", INTERRUPTED)
    except Preempted as stopped:
        return _fail(command, str(stopped), PREEMPTED) if is_rank_0() else PREEMPTED
    except Stopped as stopped:
        return _fail(command, str(stopped), stopped.exit_status)
    except BrokenPipeError:  # `dakd config show demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:  # whatever it is: a traceback is no message
        if os.environ.get("DAKD_TRACEBACK"):
            raise
        return _fail(command, message_of(error), FAILED)


def _fail(command: Command, message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # a closed terminal
        show(f"dakd {command.name}: {message}", sys.stderr)
    return status


def _set_up_logging() -> None:
    """Only rank 0 reports the chosen backends: all ranks choose the same."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("dakd").setLevel(logging.INFO if is_rank_0() else logging.WARNING)


def _take_place() -> None:
    """Take the rank from the launcher, before torch is imported."""
    set_rank_from_slurm()
    check_place()
    if "RANK" in os.environ:
        end_with_launcher()
