"""What a table can show: each measure's name, column head, unit, and where a job has written it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

# Which job of a cell a measure is read from: the student's scores, those of the generated pairs, the nets' cost.
Source = Literal["student", "pairs", "cost"]


@dataclass(frozen=True)
class Measure:
    """path: of the number in the job's result, a dot between keys.  scale: to the unit shown.

    better: which way; None where neither end is better.
    """

    title: str
    source: Source
    path: str
    scale: float = 1.0
    digits: int = 2
    better: Literal["up", "down"] | None = "up"

    def read(self, result: dict) -> float | None:
        """The number in the unit shown; None where the job did not write it."""
        node = result
        for key in self.path.split("."):
            if not isinstance(node, dict) or node.get(key) is None:
                return None
            node = node[key]
        return self.scale * float(node) if isinstance(node, int | float) else None


def _scores() -> dict[str, Measure]:
    names = {"miou": "mIoU", "f1": "F1", "accuracy": "A", "recall": "R", "precision": "P"}
    table = {name: Measure(title, "student", name, 100) for name, title in names.items()}
    table |= {
        f"oil_{name}": Measure(f"{title} of oil alone", "student", f"oil_convention.{name}", 100)
        for name, title in names.items()
        if name != "miou"
    }
    for short, name in (("sea", "sea"), ("oil", "oil"), ("look", "look-alike"), ("ship", "ship"), ("land", "land")):
        table[f"iou_{short}"] = Measure(short, "student", f"per_class.{name}.iou", 100)
    return table


def _costs() -> dict[str, Measure]:
    units = {"params": ("M", 1e-6), "macs": ("GMAC", 1e-9), "seconds": ("ms", 1e3), "memory": ("MB", 1e-6)}
    titles = {"params": "parameters", "macs": "multiply-adds", "seconds": "time", "memory": "memory"}
    table = {}
    for key, (unit, scale) in units.items():
        table[key] = Measure(f"{titles[key]}, {unit}", "cost", key, scale, better="down")
        table[f"more_{key}"] = Measure(f"+ {titles[key]}, {unit}", "cost", f"more.{key}", scale, better="down")
    return table


MEASURES: dict[str, Measure] = _scores() | _costs()


def measure_of(name: str) -> Measure:
    """The measure of that name; ValueError with the nearest where there is none."""
    if name not in MEASURES:
        near = difflib.get_close_matches(name, MEASURES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(MEASURES)}"
        raise ValueError(f"measure {name!r} is unknown; {hint}")
    return MEASURES[name]
