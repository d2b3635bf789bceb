"""The commands beside the steps: own data, samples, settings, averages, cards, tables, and the installed software."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from dakd.cli.command import Command, add_config_options, positive
from dakd.config import load_config


def _init(args: argparse.Namespace) -> None:
    from dakd.starter import write_starter

    path = write_starter(
        args.name,
        args.dataset,
        args.root,
        classes=args.classes,
        sensor=args.sensor,
        preset=args.preset,
        out=args.out,
        overwrite=args.overwrite,
    )
    print(f"{path}: look it through, then run: dakd pipeline --config {shlex.quote(str(path))}")


def _init_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the experiment's name; its run lies in runs/NAME")
    parser.add_argument("--dataset", choices=("folder", "osd", "sos", "simulated"), default="folder",
                        help="how the data lies on disk (default: folder, images/ and masks/ of your own)")
    parser.add_argument("--root", metavar="DIR", help="the folder of the data")
    parser.add_argument("--classes", metavar="NAME[:RRGGBB],...",
                        help="folder: class names in the order of the ids; colours, where masks hold colours")
    parser.add_argument("--sensor", choices=("palsar", "sentinel"), help="sos: whose images")
    parser.add_argument("--preset", choices=("small", "paper"), default="small",
                        help="small nets, for a CPU or a first look, or the paper's, for GPUs (default: small)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the YAML to write (default: NAME.yaml)")
    parser.add_argument("--overwrite", action="store_true", help="replace a YAML that is there")  # fmt: skip


def _sample(args: argparse.Namespace) -> None:
    from dakd.generate.sample import sample_to_folder
    from dakd.runtime.distributed import is_main

    if not is_main():  # one process writes, however many were launched
        return
    settings = {"eta": args.eta, "deterministic": args.deterministic, "micro_batch": args.micro_batch}
    size = None if args.size is None else (args.size[0], args.size[1])
    sample_to_folder(
        args.teacher,
        args.out,
        args.num,
        size=size,
        steps=args.steps,
        seed=args.seed,
        first=args.first,
        device=args.device,
        pictures=args.png,
        overwrite=args.overwrite,
        **settings,
    )


def _sample_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", required=True, metavar="FILE", help="a teacher's weights file")
    parser.add_argument("--num", type=positive, default=16, metavar="N", help="pairs (default: 16)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the shards and the contact sheet")
    parser.add_argument("--size", type=positive, nargs=2, metavar=("HEIGHT", "WIDTH"),
                        help="pixels (default: those of the teacher's training crops)")
    parser.add_argument("--steps", type=positive, metavar="N", help="of the sampler (default: 200, the paper's)")
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise (default: 0)")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="number of the first pair (default: 0)")
    parser.add_argument("--eta", type=float, default=0.0, help="noise of each step, 0 to 1 (default: 0, none)")
    parser.add_argument("--micro-batch", type=positive, default=16, metavar="N", help="pairs at once (default: 16)")
    parser.add_argument("--deterministic", action="store_true", help="bitwise equal pairs on one device type")
    parser.add_argument("--png", action="store_true", help="write each image and its class map as PNG too")
    parser.add_argument("--overwrite", action="store_true", help="replace the set that lies in DIR")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: a GPU where there is one)")  # fmt: skip


def _config_show(args: argparse.Namespace) -> None:
    from dakd.config import dump_config

    print(dump_config(load_config(args.file, args.overrides)), end="")


def _config_explain(args: argparse.Namespace) -> None:
    from dakd.config.explain import explain

    print(explain(args.key, None if args.config is None else load_config(args.config)))


def _config_diff(args: argparse.Namespace) -> None:
    from dakd.config.explain import difference, format_difference

    print(format_difference(difference(load_config(args.a), load_config(args.b)), args.a, args.b))


def _config_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="show | explain | diff")
    show = actions.add_parser("show", help="print the resolved settings of an experiment as YAML")
    show.add_argument("file", metavar="FILE", help="the experiment's YAML, or the name of one that comes with dakd")
    show.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the YAML's")
    show.set_defaults(config_action=_config_show)
    explain = actions.add_parser("explain", help="print the meaning, type and default of a setting or a section")
    explain.add_argument("key", nargs="?", default="", metavar="KEY", help="such as train_jointnet.sigma_data")
    explain.add_argument("--config", metavar="FILE", help="print the value in this experiment too")
    explain.set_defaults(config_action=_config_explain)
    diff = actions.add_parser("diff", help="print the settings in which two experiments differ")
    diff.add_argument("a", metavar="A", help="an experiment")
    diff.add_argument("b", metavar="B", help="another one")
    diff.set_defaults(config_action=_config_diff)


def _card(args: argparse.Namespace) -> None:
    from dakd.card import write_cards

    for path in write_cards(args.run, licence=args.licence):
        print(f"card: {path}")


def _card_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the run folder (runs/NAME)")
    parser.add_argument("--licence", metavar="NAME", help="of the weights, such as cc-by-4.0 (default: not stated)")


def _ablate(args: argparse.Namespace) -> int:
    from dakd.ablate.command import make_table

    return make_table(args)


def _ablate_options(parser: argparse.ArgumentParser) -> None:
    from dakd.ablate.options import add_options

    add_options(parser)


def _ema(args: argparse.Namespace) -> None:
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
    print(f"{args.out}: the average of length {args.length:g}; its profile is fitted to {error:.2%}")


def _ema_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser)
    parser.add_argument("--of", required=True, help="stage1, stage2, stage3, ddpm, or a student's training set")
    parser.add_argument("--length", type=float, required=True, help="relative to the training's length, such as 0.10")
    parser.add_argument("--step", type=int, default=None, help="of the snapshot to end at (default: the newest)")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")


def _stop(args: argparse.Namespace) -> None:
    from dakd.runtime.lifetime import request_stop

    request_stop(args.run)
    print(f"{args.run}: the training that runs there writes a checkpoint after the step it is at, and leaves")


def _stop_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the run folder (runs/NAME)")


def _doctor(_: argparse.Namespace) -> None:
    from dakd.doctor import diagnose

    print(diagnose())


OTHER_COMMANDS = (
    Command("init", "write the YAML of an experiment on your own data", _init, _init_options, resumes=False),
    Command("sample", "pairs of a teacher's weights file, without an experiment", _sample, _sample_options,
            resumes=False),
    Command("config", "show, explain and compare settings", lambda args: args.config_action(args), _config_options,
            resumes=False, is_group=True),
    Command("card", "write a model card beside the final weights of a run", _card, _card_options, resumes=False),
    Command("ablate", "make a table of experiments beside the paper's numbers, or resume one", _ablate,
            _ablate_options),
    Command("doctor", "list the installed software, and which backend each operation will take", _doctor,
            resumes=False),
    Command("ema", "make an average of the weights of any length, from the snapshots of a training", _ema,
            _ema_options, resumes=False),
    Command("stop", "ask the training in a run folder to write a checkpoint and leave", _stop, _stop_options,
            resumes=False),
)  # fmt: skip
