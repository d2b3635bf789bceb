"""`dakd sample --convergence`: its options, those of `dakd sample` that do not go with it, and the call."""

from __future__ import annotations

import argparse

from dakd.cli.command import positive

# By attribute: the option, and its value where it is not given.
_ALONE = {
    "steps": ("--steps", None),
    "solver": ("--solver", None),
    "spacing": ("--spacing", None),
    "eta": ("--eta", 0.0),
    "first": ("--first", 0),
    "deterministic": ("--deterministic", False),
    "png": ("--png", False),
}
_ONLY_WITH = {
    "calls": "--calls",
    "reference_steps": "--reference-steps",
    "agreement": "--agreement",
    "rms": "--rms",
    "real": "--real",
}


def convergence_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "convergence",
        "how many calls of the net a teacher needs: every solver and spacing samples the same start noise with ever "
        "more calls, and the cheapest setting within tolerance of the paper's sampler is written for the config. A "
        "repeated call measures only what is lacking. Exit status 1 where no setting is within tolerance.",
    )
    group.add_argument("--convergence", action="store_true",
                       help="write convergence.html, convergence.json, contact_sheet.png and generate.yaml to DIR")
    group.add_argument("--calls", type=positive, nargs="+", metavar="N",
                       help="numbers of calls for each pair (default: 4 6 8 10 12 16 20 25 32 50)")
    group.add_argument("--reference-steps", type=positive, metavar="N",
                       help="steps of the reference, leading DDIM (default: 200, the paper's)")
    group.add_argument("--agreement", type=float, metavar="SHARE",
                       help="least share of the label's pixels with the reference's likeliest class (default: 0.99)")
    group.add_argument("--rms", type=float, metavar="X",
                       help="largest RMS to the reference's images, in [-1, 1] (default: 0.05)")
    group.add_argument("--real", metavar="DIR",
                       help="shards of real images, such as runs/NAME/prepare/train, which the physics distances then "
                            "refer to (default: to the reference's pairs)")  # fmt: skip


def check_sample(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """The `check` of `dakd sample`."""
    if args.convergence:
        given = [option for name, (option, default) in _ALONE.items() if getattr(args, name) != default]
        if given:
            parser.error(f"--convergence samples with settings of its own; leave out {', '.join(given)}")
    else:
        given = [option for name, option in _ONLY_WITH.items() if getattr(args, name) is not None]
        if given:
            parser.error(f"{', '.join(given)}: only with --convergence; add it")


def run_convergence(args: argparse.Namespace) -> int:
    from dakd.convergence.study import measure_convergence

    names = ("num", "calls", "reference_steps")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    is_found = measure_convergence(
        args.teacher,
        args.out,
        size=None if args.size is None else tuple(args.size),
        seed=args.seed,
        agreement=args.agreement,
        rms=args.rms,
        real=args.real,
        micro_batch=args.micro_batch,
        device=args.device,
        precision=args.precision,
        overwrite=args.overwrite,
        **given,
    )
    return int(not is_found)
