"""The commands outside the pipeline: starting an experiment, sampling, settings, cards, tables, averages, diagnosis."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from dakd.cli.command import Command, add_config_options, local_path, positive
from dakd.cli.convergence import check_sample, convergence_options, run_convergence
from dakd.cli.scene import run_scene, run_simulation, scene_options, simulation_options
from dakd.runtime.console import show
from dakd.runtime.kept_config import CONFIG, open_config
from dakd.sampling import Solver, Spacing


def _init(args: argparse.Namespace) -> None:
    from dakd.starter import write_starter

    path = write_starter(
        args.name,
        args.dataset,
        args.root,
        classes=args.classes,
        sensor=args.sensor,
        polarity=args.polarity,
        mask_threshold=args.mask_threshold,
        mask_values=args.mask_values,
        on_missing_mask=args.on_missing_mask,
        preset=args.preset,
        out=args.out,
        overwrite=args.overwrite,
    )
    show(f"{path} is written; read it through, then run: dakd pipeline --config {shlex.quote(str(path))}")


def _init_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the experiment; its run folder is runs/NAME")
    parser.add_argument("--dataset", choices=("folder", "osd", "sos", "simulated"), default="folder",
                        help="layout of the data on disk (default: folder, your own images/ and masks/)")
    parser.add_argument("--root", metavar="DIR", help="folder of the data; required, except for simulated")
    parser.add_argument("--classes", metavar="NAME[:RRGGBB],...",
                        help="for folder: class names in the order of their ids, with colours if masks hold colours")
    parser.add_argument("--sensor", choices=("palsar", "sentinel"), help="for sos: the sensor whose images are read")
    parser.add_argument("--polarity", choices=("oil_is_white", "oil_is_black"),
                        help="for sos: the colour of oil in the masks (default: oil_is_white)")
    parser.add_argument("--mask-threshold", type=positive, metavar="GREY",
                        help="for sos: the grey from which a pixel of a mask is white (default: 128)")
    parser.add_argument("--mask-values", choices=("auto", "ids", "colours", "palette", "binary"), default="auto",
                        help="meaning of the masks' values (default: auto; see: dakd config explain prepare)")
    parser.add_argument("--on-missing-mask", choices=("stop", "image_only"), default="stop",
                        help="training images without a mask: an error, or images for self-training and the teacher's "
                        "stage 1 (default: stop)")
    parser.add_argument("--preset", choices=("small", "paper"), default="small",
                        help="small nets for a CPU or a first look, or the paper's nets for GPUs (default: small)")
    parser.add_argument("--out", metavar="FILE", type=local_path, help="the YAML file to write (default: NAME.yaml)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")  # fmt: skip


def _sample(args: argparse.Namespace) -> int:
    from dakd.generate.sample_to_folder import sample_to_folder
    from dakd.runtime.distributed import init_if_many, is_main

    init_if_many()
    if not is_main():  # one process writes, however many were launched
        return 0
    if args.convergence:
        return run_convergence(args)
    sample_to_folder(
        args.teacher,
        args.out,
        args.num or 16,
        size=None if args.size is None else tuple(args.size),
        steps=args.steps,
        seed=args.seed,
        first=args.first,
        device=args.device,
        precision=args.precision,
        pictures=args.png,
        overwrite=args.overwrite,
        solver=args.solver or "ddim",
        spacing=args.spacing,
        eta=args.eta,
        deterministic=args.deterministic,
        micro_batch=args.micro_batch,
    )
    return 0


def _sample_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", required=True, metavar="FILE", help="a teacher's weights file")
    parser.add_argument("--num", type=positive, metavar="N",
                        help="number of pairs (default: 16; with --convergence 32)")
    parser.add_argument("--out", required=True, type=local_path, metavar="DIR",
                        help="folder for the shards and the contact sheet")
    parser.add_argument("--size", type=positive, nargs=2, metavar=("HEIGHT", "WIDTH"),
                        help="size of the images in pixels (default: that of the teacher's training crops)")
    parser.add_argument("--steps", type=positive, metavar="N", help="steps of the sampler (default: 200, the paper's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the starting noise (default: 0)")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="index of the first pair (default: 0)")
    parser.add_argument("--solver", choices=get_args(Solver),
                        help="ddim: the paper's; dpmpp_2m: of second order, for 10 to 25 steps (default: ddim)")
    parser.add_argument("--spacing", choices=get_args(Spacing), default=None,
                        help="of the steps (default: leading, the paper's, for ddim, logsnr for the others)")
    parser.add_argument(
        "--eta", type=float, default=0.0, help="0: deterministic; 1: as much fresh noise as DDPM (default: 0)"
    )
    parser.add_argument("--micro-batch", type=positive, default=16, metavar="N", help="pairs per batch (default: 16)")
    parser.add_argument("--deterministic", action="store_true", help="the same bytes in every run on one device type")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="number format (default: auto, bf16 on a GPU and for wide nets on a CPU with AMX)")
    parser.add_argument("--png", action="store_true", help="also write each image and its class map as PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace a set that is already in DIR")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: a GPU if there is one)")  # fmt: skip
    convergence_options(parser)


def _config_show(args: argparse.Namespace) -> None:
    from dakd.config import dump_config

    show(dump_config(open_config(args.file, args.overrides, only_shown=True)), end="")


def _config_explain(args: argparse.Namespace) -> None:
    from dakd.config.explain import explain

    show(explain(args.key, None if args.config is None else open_config(args.config, only_shown=True)))


def _config_diff(args: argparse.Namespace) -> None:
    from dakd.config.explain import difference, format_difference

    a, b = (open_config(one, only_shown=True) for one in (args.a, args.b))
    show(format_difference(difference(a, b), args.a, args.b))


def _config_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="show | explain | diff")

    def add(name: str, text: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text)
        action.set_defaults(config_action=run)
        return action

    show = add("show", "print all settings of an experiment as YAML", _config_show)
    show.add_argument("file", metavar="FILE", help="an experiment's YAML, or the name of one that comes with dakd")
    show.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the YAML")
    explain = add("explain", "print the meaning, type and default of a setting or a section", _config_explain)
    explain.add_argument("key", nargs="?", default="", metavar="KEY", help="such as train_jointnet.sigma_data")
    explain.add_argument("--config", metavar="FILE", help="also print the value in this experiment")
    diff = add("diff", "print the settings in which two experiments differ", _config_diff)
    diff.add_argument("a", metavar="A", help="an experiment's YAML, or its name")
    diff.add_argument("b", metavar="B", help="the experiment to compare it with")


def _card(args: argparse.Namespace) -> None:
    from dakd.card import write_cards

    for path in write_cards(args.run, licence=args.licence):
        show(f"card: {path}")


def _card_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=local_path, help="the run folder (runs/NAME)")
    parser.add_argument("--licence", metavar="NAME", help="licence of the weights, such as cc-by-4.0 (default: none)")


def _ablate(args: argparse.Namespace) -> int:
    from dakd.ablate.command import make_table

    return make_table(args)


def _ablate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, type=Path, help="the table's YAML, or the name of one of dakd's")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of every experiment")
    parser.add_argument(
        "--base", action="append", default=[], metavar="[DATA=]FILE", help="another experiment for the table's data"
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds to run instead of the table's")
    parser.add_argument("--repeats", type=positive, metavar="N",
                        help="trainings of each seed, instead of the table's number")  # fmt: skip
    parser.add_argument("--runs", type=int, metavar="N", help="timed passes per cost, instead of the table's number")
    parser.add_argument("--row", action="append", default=[], metavar="NAME", help="only this row; repeatable")
    parser.add_argument("--data", action="append", default=[], metavar="NAME", help="only this dataset; repeatable")
    parser.add_argument(
        "--measure", action="append", default=[], metavar="NAME", help="a column instead of the table's; repeatable"
    )
    parser.add_argument("--reference", metavar="NAME", help="row that differences refer to, instead of the table's")
    parser.add_argument("--small", action="store_true", help="small nets and images, by the table's own settings")
    parser.add_argument("--out", type=local_path, help="the table's folder (default: runs/ablate/TABLE)")
    parser.add_argument(
        "--store", type=local_path, default=Path("runs/ablate/store"), help="jobs' folder, shared by tables"
    )
    parser.add_argument("--results", type=local_path, metavar="DIR",
                        help="folder that keeps the scores of finished jobs, small zips from which any store goes on")
    parser.add_argument(
        "--processes", type=int, help="ranks of each training (default: GPUs, or 1); 0: all in this process"
    )
    parser.add_argument("--status", action="store_true", help="count the finished jobs, write the table, and exit")
    parser.add_argument("--figures", action="store_true", help="draw the paper's figures from the finished jobs")


def _ema(args: argparse.Namespace) -> None:
    from dakd.config.student import TrainingSet
    from dakd.train.posthoc import FOLDER, reconstruct
    from dakd.train.saross import student_folder
    from dakd.train.teacher import stage_folder, stage_weights
    from dakd.weights import STUDENT_FILES

    config, stages = open_config(args.config, args.overrides), ("stage1", "stage2", "stage3", "ddpm")
    if args.of not in (*stages, *get_args(TrainingSet)):
        there = [path.parent.name for path in sorted(config.run_path.glob(f"train_*/*/{FOLDER}"))]
        raise ValueError(
            f"--of is {args.of!r}; expected one of {', '.join([*stages, *get_args(TrainingSet)])}; take one with "
            f"snapshots: {', '.join(there) or f'{config.run_path} has none'}"
        )
    if args.of in stages:
        folder, weights = stage_folder(config, args.of), stage_weights(config, args.of, "ema")
    else:
        folder = student_folder(config, args.of)
        weights = folder / STUDENT_FILES["ema"]
    error = reconstruct(folder, weights, args.length, args.out, args.step)
    show(f"{args.out}: average of length {args.length:g}; the error of its fitted profile is {error:.2%}")


def _ema_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser)
    parser.add_argument("--of", required=True, metavar="TRAINING",
                        help="stage1, stage2, stage3, ddpm, or a student's training set")
    parser.add_argument("--length", type=float, required=True, metavar="SHARE",
                        help="length of the average as a share of the training, such as 0.10")
    parser.add_argument("--step", type=int, default=None, metavar="N",
                        help="step of the snapshot at which the average ends (default: the newest)")
    parser.add_argument("--out", type=local_path, required=True, metavar="FILE",
                        help="the safetensors file to write")  # fmt: skip


def _check(args: argparse.Namespace) -> int:
    import torch

    from dakd.check.check import check, format_findings, is_refused
    from dakd.pipeline import fitting_processes

    arguments = list(args.arguments)
    config = open_config(args.config or arguments.pop(0), arguments)
    processes = args.processes or fitting_processes(config, torch.cuda.device_count())
    findings = check(config, processes)
    show(format_findings(findings))
    return int(is_refused(findings))


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dakd check CONFIG [section.key=value ...] [--processes N]"
    parser.add_argument("arguments", nargs="*", metavar="CONFIG | section.key=value",
                        help="an experiment's YAML, or the name of one of dakd's, and settings that override it")
    parser.add_argument("--config", metavar="FILE", help="the experiment, as the steps take it")
    parser.add_argument("--processes", type=positive, default=None, metavar="N",
                        help="ranks of each training (default: one per GPU, or 1)")  # fmt: skip
    parser.epilog = "Prints ok, warn or refused for each finding; exit status 1 where a step would refuse one."


def _check_check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.config is None and not args.arguments:
        parser.error("give an experiment: dakd check CONFIG")


def _stop(args: argparse.Namespace) -> None:
    from dakd.runtime.lock import trainings_in
    from dakd.runtime.stopping import request_stop

    found = trainings_in(args.run)
    if args.run.is_dir() and not found:
        raise ValueError(
            f"found no training in {args.run}; expected one at work; give its run folder, and ask again where one is "
            "only starting"
        )
    for run in _runs_of_trainings(args.run):
        request_stop(run)
    for training in found:
        show(f"{training}: asked to write a checkpoint after the current step and end")


def _runs_of_trainings(run: Path) -> list[Path]:
    """A run, and those that its trainings lie in by a link, as a table's jobs have them: each looks in its own."""
    places = {folder.resolve().parents[1] for folder in run.glob("train_*/*/")} - {run.resolve()}
    return [run, *sorted(place for place in places if (place / CONFIG).is_file())]


def _stop_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=local_path, help="the run folder (runs/NAME)")


def _doctor(_: argparse.Namespace) -> None:
    from dakd.doctor import diagnose

    show(diagnose())


def _verify(args: argparse.Namespace) -> int:
    from dakd.verify import accept, format_found, verify_run

    if args.accept:
        accept(args.path)
        show(f"{args.path}: its checksum now fits its content")
        return 0
    found = verify_run(args.path)
    show(format_found(args.path, found))
    return int(any(one.state in ("damaged", "missing") for one in found))


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN", type=local_path,
                        help="the run folder (runs/NAME), or with --accept a file")  # fmt: skip
    parser.add_argument("--accept", action="store_true",
                        help="give a file that you edited, or removed, a checksum that fits")  # fmt: skip


TOOL_COMMANDS = (
    Command("scene", "find slicks in radar scenes of any size: polygons, class rasters, a quick-look", run_scene,
            scene_options),
    Command("simulate-scene", "write a simulated scene with a place on Earth, and the polygons that are in it",
            run_simulation, simulation_options, resumes=False),
    Command("init", "write the YAML of an experiment on your own data", _init, _init_options, resumes=False),
    Command("sample", "sample pairs from a teacher's weights file; no experiment is needed", _sample, _sample_options,
            check=check_sample, resumes=False),
    Command("config", "show, explain and compare settings", lambda args: args.config_action(args), _config_options,
            resumes=False, is_group=True),
    Command("card", "write a model card next to the final weights of a run", _card, _card_options, resumes=False),
    Command("ablate", "run a table of experiments and compare it with the paper, or resume one", _ablate,
            _ablate_options),
    Command("check", "look at a whole experiment before its first costly step: what would a step refuse?", _check,
            _check_options, check=_check_check, resumes=False),
    Command("doctor", "list the installed software and the backend that each operation will use", _doctor,
            resumes=False),
    Command("verify", "check every file of a run against its checksum, and name the command that repairs it", _verify,
            _verify_options, resumes=False),
    Command("ema", "make a moving average of any length from the weight snapshots of a training", _ema,
            _ema_options, resumes=False),
    Command("stop", "ask the training in a run folder to write a checkpoint and end", _stop, _stop_options,
            resumes=False),
)  # fmt: skip
