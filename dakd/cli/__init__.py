"""The command line: `dakd COMMAND`, `python -m dakd COMMAND` and `launch/COMMAND.py` are the same thing."""

from dakd.cli.main import COMMANDS, STEPS, build_parser, main, run_step

__all__ = ["COMMANDS", "STEPS", "build_parser", "main", "run_step"]
