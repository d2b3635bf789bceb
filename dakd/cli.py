"""The steps, in pipeline order, and how each is called from a command line.

`dakd STEP --config FILE [section.key=value ...]` and `launch/STEP.py` are the same thing. A step also accepts what
launchers append (`--local_rank`).
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dakd.config import Config, load_config
from dakd.runtime.lifetime import PREEMPTED, Preempted, die_with_parent, listening, request_stop
from dakd.runtime.slurm import adopt_place


def _prepare(config: Config, _: argparse.Namespace) -> None:
    from dakd.data.prepare import prepare
    from dakd.runtime.distributed import barrier, init_if_many, is_main
    from dakd.runtime.runlog import save_config

    init_if_many()  # one process packs, however many were launched
    if is_main():
        prepare(config, config.run_path)
        save_config(config, config.run_path / "prepare")
    barrier()


def _balance(config: Config, _: argparse.Namespace) -> None:
    from dakd.diffusion.balance import balance

    balance(config)


def _train_jointnet(config: Config, args: argparse.Namespace) -> None:
    if args.dry_run:
        from dakd.train.dry_run import describe_jointnet

        print(describe_jointnet(config))
        return
    with listening(config.run_path):
        from dakd.train.jointnet import train_jointnet

        train_jointnet(config, (1, 2, 3) if args.stage == "all" else (int(args.stage),))


def _generate(config: Config, args: argparse.Namespace) -> None:
    from dakd.generate.generate import generate, preview, repair, verify
    from dakd.generate.survey import status

    if args.deterministic:
        config = config.model_copy(update={"generate": config.generate.model_copy(update={"deterministic": True})})
    if args.status:
        print(status(config))
    elif args.verify:
        verify(config)
    elif args.repair:
        repair(config)
    elif args.preview is not None:
        preview(config, args.preview)
    elif args.audit:
        from dakd.generate.audit import audit

        audit(config)
    else:
        generate(config)


def _train_saross(config: Config, args: argparse.Namespace) -> None:
    if args.dry_run:
        from dakd.train.dry_run import describe_saross

        print(describe_saross(config))
        return
    with listening(config.run_path):
        from dakd.train.saross import train_saross

        train_saross(config, (args.training_set,) if args.training_set else None)


def _evaluate(config: Config, _: argparse.Namespace) -> None:
    from dakd.evaluate.evaluate import evaluate

    evaluate(config, config.run_path)


def _predict(config: Config, _: argparse.Namespace) -> None:
    from dakd.predict.predict import predict

    predict(config, config.run_path)


def _report(config: Config, _: argparse.Namespace) -> None:
    from dakd.evaluate.report import write_report

    print(f"report: {write_report(config.run_path)}")


def _pipeline(config: Config, args: argparse.Namespace) -> None:
    from dakd.pipeline import run_pipeline

    run_pipeline(config, Path(args.config), args.overrides, args.processes)


INTERRUPTED = 130  # what shells report of a command that Ctrl-C ended

STEPS: dict[str, tuple[Callable[[Config, argparse.Namespace], None], str]] = {
    "prepare": (_prepare, "pack a dataset into shards with an index"),
    "balance": (_balance, "print the balancing factor b, computed and configured"),
    "train_jointnet": (_train_jointnet, "train the teacher, SAR-JointNet, through its three stages"),
    "generate": (_generate, "write shards of synthetic pairs"),
    "train_saross": (_train_saross, "train the student, SAROSS-Net, on real and synthetic pairs"),
    "evaluate": (_evaluate, "score the students on the test split, or on any folder"),
    "predict": (_predict, "class maps, overlays and probabilities for images"),
    "report": (_report, "one self-contained HTML page of the run"),
    "pipeline": (_pipeline, "all of the above, one after the other"),
}

# Beside the steps: these take arguments of their own.
COMMANDS = {
    "ablate": "make a table of experiments beside the paper's numbers, or go on with one",
    "doctor": "what is installed, and which backend each operation will take",
    "ema": "make an average of the weights of any length, from the snapshots of a training",
    "stop": "ask the training in a run folder to write a checkpoint and leave",
}


def build_parser(step: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"dakd {step}", description=STEPS[step][1])
    parser.add_argument("--config", required=True, help="the experiment's YAML")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the YAML's")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    if step in ("train_jointnet", "train_saross"):
        parser.add_argument(
            "--dry-run", action="store_true", help="print the settings, parameters, FLOPs and memory, and leave"
        )
    if step == "train_jointnet":
        parser.add_argument("--stage", choices=("1", "2", "3", "all"), default="all")
    if step == "generate":
        _add_generate_options(parser)
    if step == "train_saross":
        parser.add_argument("--training-set", choices=("real", "real+synthetic", "synthetic"), default=None)
    if step == "pipeline":
        parser.add_argument("--processes", type=int, default=None, help="ranks of each training (default: GPUs, or 1)")
    return parser


def _add_generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--deterministic", action="store_true", help="bitwise equal shards on one device type")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--status", action="store_true", help="say what is there and what is missing, and leave")
    instead.add_argument("--verify", action="store_true", help="read all shards; status 1 and a list of what is wrong")
    instead.add_argument("--repair", action="store_true", help="put what is wrong into quarantine/ and make it again")
    instead.add_argument("--preview", type=_positive, metavar="N", help="draw N pairs without writing shards")
    instead.add_argument("--audit", action="store_true", help="look for training images among the generated ones")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {number}, wanted at least 1")
    return number


def run_step(step: str, argv: Sequence[str] | None = None) -> int:
    """Parse and run; a mistake of the user's is one clear message and exit status 1 (2 for the command line).

    A training that stopped because it was asked to has exit status 85.
    """
    if argv is None:
        _take_place()
    args = build_parser(step).parse_intermixed_args(argv)
    # Rank 0 tells which backends were taken; the other ranks took the same.
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("dakd").setLevel(logging.INFO if int(os.environ.get("RANK", 0)) == 0 else logging.WARNING)
    if args.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    try:
        config = load_config(args.config, args.overrides)
        STEPS[step][0](config, args)
    except KeyboardInterrupt:
        print(f"dakd {step}: stopped; the same command goes on from what is there", file=sys.stderr, flush=True)
        return INTERRUPTED
    except Preempted as stopped:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"dakd {step}: {stopped}", file=sys.stderr, flush=True)
        return PREEMPTED
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("DAKD_TRACEBACK"):
            raise
        hint = "" if isinstance(error, ValueError) else "\n(DAKD_TRACEBACK=1 shows where it happened)"
        print(f"dakd {step}: {error}{hint}", file=sys.stderr, flush=True)
        return 1
    return 0


def _take_place() -> None:
    """A process that is one of several learns which, and ends with its launcher: before it imports torch."""
    adopt_place()
    if "RANK" in os.environ:
        die_with_parent()


def _stop(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="dakd stop", description=COMMANDS["stop"])
    parser.add_argument("run", type=Path, help="the run folder (runs/NAME)")
    run = parser.parse_args(argv).run
    try:
        request_stop(run)
    except (ValueError, OSError) as error:
        print(f"dakd stop: {error}", file=sys.stderr)
        return 1
    print(f"{run}: the training that runs there writes a checkpoint after the step it is at, and leaves")
    return 0


def _ema(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="dakd ema", description=COMMANDS["ema"])
    parser.add_argument("--config", required=True, help="the experiment's YAML")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the YAML's")
    parser.add_argument("--of", required=True, help="stage1, stage2, stage3, ddpm, or a student's training set")
    parser.add_argument("--length", type=float, required=True, help="relative to the training's length, such as 0.10")
    parser.add_argument("--step", type=int, default=None, help="of the snapshot to end at (default: the newest)")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    args = parser.parse_intermixed_args(argv)
    try:
        from dakd.train.ddpm import ddpm_folder, ddpm_weights_file
        from dakd.train.jointnet import stage_folder, weights_file
        from dakd.train.posthoc import reconstruct
        from dakd.train.saross import STUDENT_FILES, student_folder

        config = load_config(args.config, args.overrides)
        if args.of in ("stage1", "stage2", "stage3"):
            stage = int(args.of[-1])
            folder, weights = stage_folder(config, stage), weights_file(config, stage, "ema")
        elif args.of == "ddpm":
            folder, weights = ddpm_folder(config), ddpm_weights_file(config, "ema")
        else:
            folder = student_folder(config, args.of)
            weights = folder / STUDENT_FILES["ema"]
        error = reconstruct(folder, weights, args.length, args.out, args.step)
    except (ValueError, OSError) as refusal:
        print(f"dakd ema: {refusal}", file=sys.stderr)
        return 1
    print(f"{args.out}: the average of length {args.length:g}; its profile is fitted to {error:.2%}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The console command `dakd`."""
    if argv is None:
        _take_place()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] == "ablate":
        from dakd.ablate.command import main as ablate

        return ablate(argv[1:])
    if argv and argv[0] in ("stop", "ema"):
        return (_stop if argv[0] == "stop" else _ema)(argv[1:])
    if argv and argv[0] == "doctor":
        from dakd.doctor import diagnose

        try:
            print(diagnose())
        except RuntimeError as error:  # an environment variable that asks for what there is not
            print(f"dakd doctor: {error}", file=sys.stderr)
            return 1
        return 0
    if argv and argv[0] in STEPS:
        return run_step(argv[0], argv[1:])
    if argv and not argv[0].startswith("-"):
        nearest = difflib.get_close_matches(argv[0], STEPS, n=1)
        print(f"dakd: no step is called {argv[0]!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else ""))
    described = {name: description for name, (_, description) in STEPS.items()} | COMMANDS
    lines = [f"  {name:<16}{description}" for name, description in described.items()]
    print("usage: dakd STEP --config FILE [section.key=value ...]\n\n" + "\n".join(lines))
    return 0 if argv in ([], ["-h"], ["--help"]) else 2
