"""The steps in pipeline order: `dakd STEP --config FILE [section.key=value ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dakd.cli.command import OVERRIDES, Command, add_config_options, local_path, positive
from dakd.runtime.console import show
from dakd.runtime.kept_config import open_config
from dakd.runtime.place import number
from dakd.runtime.side_by_side import run_side_by_side
from dakd.runtime.stopping import listen_for_stop

_GENERAL = ("name", "run_dir", "seed")
_TRAINING_SETS = ("real", "real+synthetic", "synthetic", "real+pseudo", "real+synthetic+pseudo")


def _prepare(args: argparse.Namespace) -> None:
    from dakd.data.prepare import prepare
    from dakd.runtime.distributed import barrier, init_if_many, is_main
    from dakd.runtime.runlog import save_config

    config = open_config(args.config, args.overrides)
    init_if_many()  # one process packs, however many were launched
    if is_main():
        prepare(config, config.run_path)
        save_config(config, config.run_path / "prepare", is_finished=True)
    barrier()


def _balance(args: argparse.Namespace) -> None:
    from dakd.data.balance import balance
    from dakd.data.prepared import refuse_other_preparation
    from dakd.runtime.distributed import barrier, init_if_many

    config = open_config(args.config, args.overrides)
    init_if_many()  # one process writes, however many were launched
    refuse_other_preparation(config)
    balance(config)
    barrier()


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser)
    parser.add_argument("--dry-run", action="store_true",
                        help="print settings, parameters, FLOPs and a memory estimate; train nothing")  # fmt: skip


def _train_jointnet_options(parser: argparse.ArgumentParser) -> None:
    _add_training_options(parser)
    parser.add_argument("--stage", choices=("1", "2", "3", "all"), default="all", help="which stage (default: all)")


def _train_jointnet(args: argparse.Namespace) -> None:
    config = open_config(args.config, args.overrides)
    if args.dry_run:
        from dakd.train.dry_run import describe_jointnet

        show(describe_jointnet(config))
        return
    with listen_for_stop(config.run_path):
        from dakd.train.jointnet import train_jointnet

        train_jointnet(config, (1, 2, 3) if args.stage == "all" else (int(args.stage),))


def _generate_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser)
    parser.add_argument("--deterministic", action="store_true", help="the same bytes in every run on one device type")
    instead = parser.add_argument_group("instead of generating").add_mutually_exclusive_group()
    instead.add_argument("--status", action="store_true", help="print which shards are finished, claimed and missing")
    instead.add_argument("--verify", action="store_true", help="read every shard; list the faults, with exit status 1")
    instead.add_argument("--repair", action="store_true", help="move bad shards to quarantine/ and make them again")
    instead.add_argument("--preview", type=positive, metavar="N", help="draw N pairs; write no shards")
    instead.add_argument("--audit", action="store_true", help="search the generated images for training images")


def _generate(args: argparse.Namespace) -> None:
    from dakd.generate.generate import generate, preview, repair, verify
    from dakd.generate.status import status
    from dakd.runtime.distributed import init_if_many

    config = open_config(args.config, args.overrides + ["generate.deterministic=true"] * args.deterministic)
    if args.status:
        show(status(config))
        return
    if args.verify or args.repair or args.preview is not None or args.audit:
        init_if_many()  # rank 0 works or speaks for all; plain workers need not meet
    if args.verify:
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


def _refine_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "dakd refine --config FILE [section.key=value ...]\n"
        "       dakd refine --student FILE --pairs DIR --out DIR [--pixel-gate K] [--repeats N] [--overwrite] "
        "[--device NAME]"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE", help="an experiment's YAML, or the name of one of dakd's")
    source.add_argument("--student", metavar="FILE", help="weights of a student of real images, without an experiment")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=f"with --config: {OVERRIDES}")
    of_student = parser.add_argument_group("with --student")
    of_student.add_argument("--pairs", metavar="DIR", help="folder of the pairs, shards with an index")
    of_student.add_argument("--out", type=local_path, metavar="DIR", help="folder for the refined pairs")
    of_student.add_argument("--pixel-gate", type=float, metavar="K",
                            help="ignore pixels whose loss is above K times the mean of their class (FreeMask: 1.25)")
    of_student.add_argument("--repeats", type=positive, metavar="N",
                            help="write the hardest pair N times, the others less often by their rank (default: 1)")
    of_student.add_argument("--overwrite", action="store_true", help="replace a set that is already in --out")
    of_student.add_argument("--device", metavar="NAME",
                            help="cpu or cuda (default: a GPU if there is one)")  # fmt: skip


def _check_refine(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    own = {"--pairs": args.pairs, "--out": args.out, "--pixel-gate": args.pixel_gate, "--repeats": args.repeats,
           "--overwrite": args.overwrite, "--device": args.device}  # fmt: skip
    given = [name for name, value in own.items() if value]
    if args.config is not None and given:
        parser.error(f"{', '.join(given)} go with --student; an experiment has refine.pixel_gate and refine.repeats")
    if args.student is not None and (not args.pairs or not args.out or args.overrides):
        parser.error("--student needs --pairs DIR and --out DIR, and takes no settings")


def _refine(args: argparse.Namespace) -> None:
    from dakd.config import RefineConfig, validated
    from dakd.refine.refine import refine, refine_pairs
    from dakd.runtime.distributed import barrier, init_if_many, is_main

    config = None if args.config is None else open_config(args.config, args.overrides)
    init_if_many()  # one process writes, however many were launched
    if not is_main():
        pass
    elif config is not None:
        refine(config)
    else:
        given = {"pixel_gate": args.pixel_gate, "repeats": args.repeats or 1}
        cfg = validated(RefineConfig, given, "settings of the refined pairs")
        refine_pairs(args.student, args.pairs, args.out, cfg, device=args.device, overwrite=args.overwrite)
    barrier()


def _pseudo_label_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "dakd pseudo_label --config FILE [section.key=value ...]\n"
        "       dakd pseudo_label --student FILE --images DIR --out DIR [--min-confidence P] [--codec NAME]"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE",
                        help="an experiment's YAML, or the name of one that comes with dakd; its student of real "
                        "images labels its images without labels")
    source.add_argument("--student", metavar="FILE", help="a student's weights file; no experiment is needed")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=f"with --config: {OVERRIDES}")
    of_student = parser.add_argument_group("with --student")
    of_student.add_argument("--images", metavar="DIR",
                            help="folder or URL of a set of shards; labels that it has are not used")
    of_student.add_argument("--out", type=local_path, metavar="DIR", help="folder for the pairs")
    of_student.add_argument("--min-confidence", type=_share, metavar="P",
                            help="least probability of the likeliest class with which a pixel counts (default: 0)")
    of_student.add_argument("--codec", choices=("fp16", "logprob8"), help="format of soft labels (default: fp16)")
    of_student.add_argument("--temperature", type=float, metavar="T",
                            help="that logprob8 codes are written for (default: 2, as that of the student's loss)")
    of_student.add_argument("--max-samples", type=positive, metavar="N", help="only the first N images")
    of_student.add_argument("--batch-size", type=positive, metavar="N", help="images per pass (default: 1)")
    of_student.add_argument("--device", metavar="NAME",
                            help="cpu or cuda (default: a GPU if there is one)")  # fmt: skip


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number from 0 to 1")
    return value


_OF_STUDENT = ("images", "out", "min_confidence", "codec", "temperature", "max_samples", "batch_size", "device")


def _check_pseudo_label(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.student is not None and not (args.images and args.out):
        parser.error("--student needs --images DIR and --out DIR")
    if args.student is not None and args.overrides:
        parser.error(f"{args.overrides[0]}: settings go with --config; --student has options of its own")
    given = [name for name in _OF_STUDENT if getattr(args, name) is not None]
    if args.config is not None and given:
        parser.error(f"--{given[0].replace('_', '-')} goes with --student; an experiment has the section pseudo_label")


def _pseudo_label(args: argparse.Namespace) -> None:
    from dakd.pseudo_label.step import label_to_folder, pseudo_label
    from dakd.runtime.distributed import barrier, init_if_many, is_main
    from dakd.runtime.runlog import save_config

    config = None if args.config is None else open_config(args.config, args.overrides)
    init_if_many()  # one process labels, however many were launched
    if is_main() and config is not None:
        folder = pseudo_label(config)
        save_config(config, folder, is_finished=True)
    elif is_main():
        settings = {name: getattr(args, name) for name in ("min_confidence", "codec", "max_samples", "batch_size")}
        settings = {name: value for name, value in settings.items() if value is not None}
        label_to_folder(args.student, args.images, args.out, args.temperature, args.device, **settings)
    barrier()


def _train_saross_options(parser: argparse.ArgumentParser) -> None:
    _add_training_options(parser)
    parser.add_argument("--training-set", choices=_TRAINING_SETS, default=None,
                        help="train only this set's student (default: all of train_saross.training_sets)")  # fmt: skip


def _train_saross(args: argparse.Namespace) -> None:
    config = open_config(args.config, args.overrides)
    if args.dry_run:
        from dakd.train.dry_run import describe_saross

        show(describe_saross(config))
        return
    training_sets = (args.training_set,) if args.training_set else config.train_saross.training_sets
    at_once = 1 if args.training_set else config.train_saross.side_by_side(number("WORLD_SIZE", 1))
    with listen_for_stop(config.run_path):
        from dakd.generate.teacher import refuse_settings_of_another_set
        from dakd.pseudo_label.step import refuse_settings_of_another_set as refuse_other_pseudo_labels
        from dakd.refine.refine import refuse_other_refinement
        from dakd.train.saross import list_trainings, train_saross

        if config.train_saross.reads_generated_pairs(training_sets):
            refuse_settings_of_another_set(config, may_grow=False)
        if any("synthetic" in name for name in training_sets):
            refuse_other_refinement(config)
        if config.train_saross.reads_pseudo_labels(training_sets):
            refuse_other_pseudo_labels(config)
        if at_once == 1:
            train_saross(config, training_sets)
        else:
            list_trainings(config, training_sets)  # data that one of them lacks is reported before any is trained
            own = [sys.executable, "-m", "dakd", "train_saross", "--config", args.config, *args.overrides]
            run_side_by_side({f"student {name}": [*own, "--training-set", name] for name in training_sets}, at_once)


def _evaluate(args: argparse.Namespace) -> None:
    from dakd.evaluate.evaluate import evaluate

    config = open_config(args.config, args.overrides)
    evaluate(config, config.run_path)


def _predict_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "dakd predict --config FILE [section.key=value ...]\n"
        "       dakd predict --student FILE --out DIR [--tile PIXELS] [--device NAME] IMAGE [IMAGE ...]"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--config",
        metavar="FILE",
        help="an experiment's YAML, or the name of one that comes with dakd; its student is used",
    )
    source.add_argument("--student", metavar="FILE", help="a student's weights file; no experiment is needed")
    parser.add_argument("arguments", nargs="*", metavar="IMAGE | section.key=value",
                        help="with --student: images and folders of images; with --config: settings")  # fmt: skip
    of_student = parser.add_argument_group("with --student")
    of_student.add_argument("--out", type=local_path, metavar="DIR",
                            help="folder for the class maps, overlays and probabilities")  # fmt: skip
    of_student.add_argument("--tile", type=_tile, default="auto", metavar="PIXELS",
                            help="side of the overlapping tiles, a multiple of 32; 0 predicts each image whole "
                            "(default: tiles of 1024 for images of more than 1.5 million pixels)")  # fmt: skip
    of_student.add_argument("--device", metavar="NAME", help="cpu or cuda (default: a GPU if there is one)")


def _check_predict(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.student is not None and not (args.arguments and args.out):
        parser.error("--student needs at least one image or folder, and --out DIR for the predictions")
    if args.config is not None and (args.out or args.device or args.tile != "auto"):
        parser.error("--out, --tile and --device go with --student; an experiment writes to RUN/predict")


def _tile(text: str) -> int | str | None:
    if text == "auto":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a multiple of 32, 0 or auto")
    if tile := int(text):
        from dakd.predict.tiles import checked_tile

        try:
            checked_tile(tile)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}") from None
    return tile or None


def _predict(args: argparse.Namespace) -> None:
    if args.student is None:
        from dakd.predict.predict import predict

        config = open_config(args.config, args.arguments)
        predict(config, config.run_path)
        return
    from dakd.predict.student import Student
    from dakd.runtime.distributed import init_if_many
    from dakd.runtime.runlog import say

    init_if_many()
    names = Student.load(args.student, args.device).predict_files(args.arguments, args.out, tile=args.tile)
    say(f"predict: {len(names)} images in {args.out}")


def _report(args: argparse.Namespace) -> None:
    from dakd.data.prepared import refuse_other_preparation
    from dakd.report.report import write_report

    config = open_config(args.config, args.overrides)
    refuse_other_preparation(config)
    show(f"report: {write_report(config.run_path)}")


def _pipeline_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser)
    parser.add_argument("--processes", type=positive, default=None, metavar="N",
                        help="ranks of each training (default: one per GPU, or 1)")  # fmt: skip
    parser.epilog = "Reads all settings: `dakd config explain` lists them."


def _pipeline(args: argparse.Namespace) -> None:
    from dakd.pipeline import run_pipeline

    steps = [command.name for command in STEP_COMMANDS if command.name != "pipeline"]
    run_pipeline(open_config(args.config, args.overrides), Path(args.config), args.overrides, steps, args.processes)


STEP_COMMANDS = (
    Command("prepare", "pack a dataset into shards with an index", _prepare, add_config_options,
            (*_GENERAL, "prepare")),
    Command("balance", "print the balancing factor b, computed and configured", _balance, add_config_options,
            (*_GENERAL, "balance")),
    Command("train_jointnet", "train the teacher: SAR-JointNet in its three stages, or its rivals JointNet and DDPM",
            _train_jointnet, _train_jointnet_options, (*_GENERAL, "balance", "data", "train_jointnet")),
    Command("generate", "write shards of synthetic pairs", _generate, _generate_options,
            (*_GENERAL, "train_jointnet.generator", "generate", "train_saross.loss.temperature")),
    Command("refine", "ignore hard pixels of the pairs and repeat hard pairs, by a student of real images", _refine,
            _refine_options, (*_GENERAL, "refine", "train_saross.synthetic"), _check_refine),
    Command("pseudo_label", "label images without labels by the student of real images, for self-training",
            _pseudo_label, _pseudo_label_options, (*_GENERAL, "pseudo_label", "train_saross.loss.temperature"),
            _check_pseudo_label),
    Command("train_saross", "train students on real and synthetic pairs: SAROSS-Net, or a rival by its name",
            _train_saross, _train_saross_options, (*_GENERAL, "data", "refine", "train_saross")),
    Command("evaluate", "score the students on the test split, or on any folder", _evaluate, add_config_options,
            (*_GENERAL, "train_saross.training_sets", "evaluate")),
    Command("predict", "write class maps, overlays and probabilities for images", _predict, _predict_options,
            (*_GENERAL, "train_saross.training_sets", "evaluate.weights", "evaluate.scales", "predict"),
            _check_predict, resumes=False),
    Command("report", "write one self-contained HTML page about the run", _report, add_config_options, _GENERAL),
    Command("pipeline", "run all steps, from prepare to report", _pipeline, _pipeline_options, _GENERAL),
)  # fmt: skip
