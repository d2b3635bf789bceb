"""The options of `dakd ablate`, in a module without torch: `dakd ablate --help` starts at once."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of a table's command line."""
    parser.add_argument("--config", required=True, type=Path, help="the table's YAML, or the name of one of dakd's")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of every experiment")
    parser.add_argument(
        "--base", action="append", default=[], metavar="[DATA=]FILE", help="another experiment for the table's data"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the table's")
    parser.add_argument("--runs", type=int, help="passes that a cost is the mean of, in place of the table's")
    parser.add_argument("--row", action="append", default=[], metavar="NAME", help="only these rows")
    parser.add_argument("--data", action="append", default=[], metavar="NAME", help="only these data sets")
    parser.add_argument("--measure", action="append", default=[], metavar="NAME", help="show these, not the table's")
    parser.add_argument("--reference", metavar="NAME", help="show differences to this row, not to the table's")
    parser.add_argument("--small", action="store_true", help="take the table's settings for small nets and images")
    parser.add_argument("--out", type=Path, help="the table's folder (default: runs/ablate/TABLE)")
    parser.add_argument("--store", type=Path, default=Path("runs/ablate/store"), help="jobs, shared by tables")
    parser.add_argument(
        "--processes", type=int, help="ranks of each training (default: GPUs, or 1); 0: all in this process"
    )
    parser.add_argument("--status", action="store_true", help="count the finished jobs, write the table, and exit")
    parser.add_argument("--figures", action="store_true", help="draw the paper's figures from the finished jobs")
