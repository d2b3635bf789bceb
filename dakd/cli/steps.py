"""The steps in pipeline order: `dakd STEP --config FILE [section.key=value ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from dakd.cli.command import Command, add_config_options, positive
from dakd.config import Config, load_config
from dakd.runtime.lifetime import listening

_GENERAL = ("name", "run_dir", "seed")


def _of_config(run: Callable[[Config, argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    return lambda args: run(load_config(args.config, args.overrides), args)


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
    from dakd.data.balance import balance

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
        from dakd.evaluate.memorisation import audit

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


def _predict(args: argparse.Namespace) -> None:
    if args.student is None:
        from dakd.predict.predict import predict

        config = load_config(args.config, args.arguments)
        predict(config, config.run_path)
        return
    from dakd.predict.student import Student
    from dakd.runtime.distributed import init_if_many
    from dakd.runtime.runlog import say

    init_if_many()
    names = Student.load(args.student, args.device).predict_files(args.arguments, args.out, tile=args.tile)
    say(f"predict: {len(names)} images in {args.out}")


def _report(config: Config, _: argparse.Namespace) -> None:
    from dakd.evaluate.report import write_report

    print(f"report: {write_report(config.run_path)}")


def _pipeline(config: Config, args: argparse.Namespace) -> None:
    from dakd.pipeline import run_pipeline

    run_pipeline(config, Path(args.config), args.overrides, args.processes)


# --- options ----------------------------------------------------------------------------------------------------------


def _dry_run(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser)
    parser.add_argument("--dry-run", action="store_true",
                        help="print the settings, parameters, FLOPs and memory, and leave")  # fmt: skip


def _jointnet_options(parser: argparse.ArgumentParser) -> None:
    _dry_run(parser)
    parser.add_argument("--stage", choices=("1", "2", "3", "all"), default="all", help="which stage (default: all)")


def _saross_options(parser: argparse.ArgumentParser) -> None:
    _dry_run(parser)
    parser.add_argument("--training-set", choices=("real", "real+synthetic", "synthetic"), default=None,
                        help="one student (default: all of train_saross.training_sets)")  # fmt: skip


def _generate_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser)
    parser.add_argument("--deterministic", action="store_true", help="bitwise equal shards on one device type")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--status", action="store_true", help="print which shards are there and missing, and leave")
    instead.add_argument("--verify", action="store_true", help="read all shards; status 1 and a list of the faults")
    instead.add_argument("--repair", action="store_true", help="put bad shards into quarantine/ and make them again")
    instead.add_argument("--preview", type=positive, metavar="N", help="draw N pairs without writing shards")
    instead.add_argument("--audit", action="store_true", help="look for training images among the generated ones")


def _predict_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "dakd predict --config FILE [section.key=value ...]\n"
        "       dakd predict --student FILE --out DIR IMAGE [IMAGE ...]"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE", help="the experiment whose student predicts, or the name of one")
    source.add_argument("--student", metavar="FILE", help="a student's weights file, which needs no experiment")
    parser.add_argument("arguments", nargs="*", metavar="IMAGE | section.key=value",
                        help="with --student images and folders of images, with --config settings")  # fmt: skip
    of_student = parser.add_argument_group("with --student")
    of_student.add_argument("--out", metavar="DIR", help="folder of the class maps, overlays and probabilities")
    of_student.add_argument("--tile", type=_tile, default="auto", metavar="PIXELS",
                            help="side of the overlapping tiles, a multiple of 32; 0 takes images whole; by default "
                            "images of more than 1.5 million pixels are taken in tiles of 1024")  # fmt: skip
    of_student.add_argument("--device", metavar="NAME", help="cpu or cuda (default: a GPU where there is one)")


def _check_predict(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.student is not None and not (args.arguments and args.out):
        parser.error("--student needs at least one image or folder, and --out DIR for the predictions")
    if args.config is not None and (args.out or args.device or args.tile != "auto"):
        parser.error("--out, --tile and --device go with --student; an experiment writes to RUN/predict")


def _tile(text: str) -> int | str | None:
    if text == "auto":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a multiple of 32, 0 or auto")
    return int(text) or None


def _pipeline_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser)
    parser.add_argument("--processes", type=int, default=None, help="ranks of each training (default: GPUs, or 1)")
    parser.epilog = "Reads all settings: `dakd config explain` lists them."


STEP_COMMANDS = (
    Command("prepare", "pack a dataset into shards with an index", _of_config(_prepare), add_config_options,
            (*_GENERAL, "prepare")),
    Command("balance", "print the balancing factor b, computed and configured", _of_config(_balance),
            add_config_options, (*_GENERAL, "balance")),
    Command("train_jointnet", "train the teacher, SAR-JointNet, through its three stages",
            _of_config(_train_jointnet), _jointnet_options, (*_GENERAL, "balance", "data", "train_jointnet")),
    Command("generate", "write shards of synthetic pairs", _of_config(_generate), _generate_options,
            (*_GENERAL, "train_jointnet.generator", "generate", "train_saross.loss.temperature")),
    Command("train_saross", "train the student, SAROSS-Net, on real and synthetic pairs", _of_config(_train_saross),
            _saross_options, (*_GENERAL, "data", "train_saross")),
    Command("evaluate", "score the students on the test split, or on any folder", _of_config(_evaluate),
            add_config_options, (*_GENERAL, "train_saross.training_sets", "evaluate")),
    Command("predict", "class maps, overlays and probabilities for images", _predict, _predict_options,
            (*_GENERAL, "train_saross.training_sets", "evaluate.weights", "evaluate.scales", "predict"),
            _check_predict, resumes=False),
    Command("report", "one self-contained HTML page of the run", _of_config(_report), add_config_options, _GENERAL),
    Command("pipeline", "all of the above, one after the other", _of_config(_pipeline), _pipeline_options, _GENERAL),
)  # fmt: skip
