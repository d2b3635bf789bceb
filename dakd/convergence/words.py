"""The results of a study in words: the table, the lines about it, and the section for the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dakd.convergence.choice import MIN_JUDGED, Bound, Tolerances
from dakd.convergence.record import setting_of
from dakd.convergence.settings import FAMILIES, Setting, fine_of, reference_of

HEADER = ("setting", "steps", "calls", "RMS", "RMS to fine", "labels alike, %", "mIoU, %", "KL", "beyond chance", "")


def heading(made_with: Mapping[str, Any], fine: Mapping[str, float]) -> list[str]:
    """What was compared, and how far the reference itself is from converged.  fine: of the record."""
    height, width = made_with["size"]
    steps = made_with["reference_steps"]
    return [
        f"{made_with['num']} pairs of {height}x{width} pixels, seed {made_with['seed']}; reference: "
        f"{reference_of(steps)}. From the same start noise, its distance to a fine solution ({fine_of(steps)}): RMS "
        f"{fine['rms']:.4f} of images in [-1, 1], {100 * fine['agreement']:.2f} % of the labels alike.",
    ]


def table_rows(rows: Sequence[Mapping[str, Any]], num_judged: int, fine_rms: float) -> list[list[str | int]]:
    """A row of `HEADER` for each setting, by solver and spacing; rows: judged.  fine_rms: of the reference."""
    ordered = sorted(rows, key=lambda row: (FAMILIES.index((row["solver"], row["spacing"])), row["calls"]))
    return [
        [
            setting_of(row).family,
            row["sampling_steps"],
            row["calls"],
            f"{row['rms']:.4f}",
            f"{row['fine']['rms']:.4f}" + ("*" if row["fine"]["rms"] < fine_rms else " "),
            f"{100 * row['agreement']:.2f}",
            f"{100 * row['miou']:.1f}",
            f"{row['kl']:.4f}",
            f"{len(row['beyond'])} of {num_judged}",
            "within" if row["within"] else "",
        ]
        for row in ordered
    ]


def notes(tolerances: Tolerances, bounds: Mapping[str, Bound], has_real: bool) -> list[str]:
    """What the columns and the tolerance mean, and which physics distances are not judged."""
    judged = [bound for bound in bounds.values() if bound.largest is not None]
    chance = (
        "to the real images within the upper end of the reference's own interval"
        if has_real
        else "to the reference no larger than that of two halves of the reference's pairs"
    )
    lines = [
        f"within: at least {100 * tolerances.agreement:g} % of the labels and RMS at most {tolerances.rms:g} to the "
        f"reference, and all of {len(judged)} physics distances {chance}.",
        "* nearer to the fine solution than the reference is.",
    ]
    left_out = [bound.title for bound in bounds.values() if bound.largest is None]
    if left_out:
        lines.append(f"Not judged, as fewer than {MIN_JUDGED} pairs have it or there is no interval: "
                     f"{', '.join(left_out)}.")  # fmt: skip
    return lines


def verdict(row: Mapping[str, Any], tolerances: Tolerances, reference_steps: int) -> list[str]:
    """The lines about the cheapest setting, or, where none is within tolerance, about the nearest."""
    setting = setting_of(row)
    if row["within"]:
        return [
            f"Cheapest within tolerance: {setting}; {setting.num_calls} calls of the net for each pair instead of "
            f"{reference_steps}:",
            setting.overrides,
        ]
    lacks = [f"{100 * row['agreement']:.2f} % of the labels alike"] * (row["agreement"] < tolerances.agreement)
    lacks += [f"RMS {row['rms']:.4f}"] * (row["rms"] > tolerances.rms)
    lacks += [f"beyond chance in {', '.join(row['beyond'])}"] * bool(row["beyond"])
    return [
        f"No setting is within tolerance; the one of the smallest RMS is {setting}: {'; '.join(lacks)}. Try more "
        "--calls, or other tolerances."
    ]


def yaml_text(row: Mapping[str, Any], made_with: Mapping[str, Any], num_judged: int) -> str:
    """The section `generate` for an experiment, with the measured numbers as a comment."""
    setting, steps = setting_of(row), made_with["reference_steps"]
    comment = [
        f"# dakd sample --convergence: {setting.num_calls} calls of the net for each pair instead of {steps}.",
        f"# To {reference_of(steps)}, over {made_with['num']} pairs: RMS {row['rms']:.4f} of images in [-1, 1],",
        f"# {100 * row['agreement']:.2f} % of the labels alike; {num_judged} physics distances within chance.",
    ]
    return "\n".join([*comment, "generate:", *(f"  {name}: {value}" for name, value in _items(setting)), ""])


def _items(setting: Setting) -> Sequence[tuple[str, Any]]:
    return list(setting._asdict().items())
