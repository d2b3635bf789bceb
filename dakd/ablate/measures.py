"""The measures that a table can show: name, column head, unit, and their place in a job's result."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any, Literal

# The job of a cell that a measure is read from: the student's scores, those of the generated pairs, the nets' cost.
Source = Literal["student", "pairs", "cost"]


@dataclass(frozen=True)
class TableMeasure:
    """A measure.

    path: keys to the number in the job's result, joined by dots.  scale: factor to the unit shown.
    better: None where neither larger nor smaller is better.
    """

    title: str
    source: Source
    path: str
    scale: float = 1.0
    digits: int = 2
    better: Literal["up", "down"] | None = "up"

    def read(self, result: dict) -> float | None:
        """The number in the unit shown; None where the job did not write it."""
        return self._scaled(_node(result, self.path))

    def read_interval(self, result: dict) -> tuple[float, float] | None:
        """The interval of the number, in the unit shown; None where there is none."""
        parent = _node(result, self.path.rpartition(".")[0])
        if not isinstance(parent, dict):
            return None
        low, high = (self._scaled(parent.get(end)) for end in ("low", "high"))
        return None if low is None or high is None else (low, high)

    def _scaled(self, value: Any) -> float | None:
        return self.scale * float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _node(result: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(result, dict):
            return None
        result = result.get(key)
    return result


def _scores() -> dict[str, TableMeasure]:
    names = {"miou": "mIoU", "f1": "F1", "accuracy": "A", "recall": "R", "precision": "P"}
    table = {name: TableMeasure(title, "student", name, 100) for name, title in names.items()}
    table |= {
        f"oil_{name}": TableMeasure(f"{title} of oil alone", "student", f"oil_convention.{name}", 100)
        for name, title in names.items()
        if name != "miou"
    }
    for short, name in (("sea", "sea"), ("oil", "oil"), ("look", "look-alike"), ("ship", "ship"), ("land", "land")):
        table[f"iou_{short}"] = TableMeasure(short, "student", f"per_class.{name}.iou", 100)
    for name in ("ship", "oil"):
        title = f"{name}s found" if name == "ship" else "slicks found"
        table[f"found_{name}"] = TableMeasure(f"{title}, %", "student", f"objects.per_class.{name}.recall", 100)
    table["boundary_miou"] = TableMeasure("boundary mIoU", "student", "boundary_iou.mean", 100)
    table["inner_boundary_miou"] = TableMeasure("inner boundary mIoU", "student", "inner_boundary_iou.mean", 100)
    table["ece"] = TableMeasure("ECE, %", "student", "calibration.ece", 100, better="down")
    for key, title in {"steps": "steps", "real": "real views", "synthetic": "synthetic views"}.items():
        name = title.replace(" ", "_")
        table[name] = TableMeasure(title, "student", f"views.{key}", digits=0, better=None)
    return table


def _pairs() -> dict[str, TableMeasure]:
    """Of the generated set against the real one: by a net's features, and by physical measures that it cannot see."""
    of_net = {
        "fid": ("FID", "fid", 2, "down"),
        "is": ("IS", "inception_score", 3, "up"),
        "kid": ("KID", "kid", 4, "down"),
        "fd_small": ("Frechet distance (small net)", "fd_small", 3, "down"),
        "kd_small": ("kernel distance (small net)", "kd_small", 4, "down"),
        "pair_precision": ("precision of images", "precision", 3, "up"),
        "pair_recall": ("recall of images", "recall", 3, "up"),
        "pair_precision_small": ("precision (small net)", "precision_small", 3, "up"),
        "pair_recall_small": ("recall (small net)", "recall_small", 3, "up"),
    }
    table = {
        name: TableMeasure(title, "pairs", f"fidelity.metrics.{key}.value", digits=digits, better=better)
        for name, (title, key, digits, better) in of_net.items()
    }
    physics = {
        "looks": "ENL, dB",
        "autocorrelation": "speckle autocorrelation",
        "spectrum": "spectrum, dB",
        "greys": "grey histogram",
        "contrast": "contrast, greys",
        "edges": "edges on labels",
        "shares": "class shares, %",
    }
    for name, title in physics.items():
        digits = 3 if name in ("autocorrelation", "edges") else 2
        path = f"physics.measures.{name}.distance"
        table[name] = TableMeasure(f"distance: {title}", "pairs", path, digits=digits, better="down")
    return table


def _costs() -> dict[str, TableMeasure]:
    units = {"params": ("M", 1e-6), "macs": ("GMAC", 1e-9), "seconds": ("ms", 1e3), "memory": ("MB", 1e-6)}
    titles = {"params": "parameters", "macs": "multiply-adds", "seconds": "time", "memory": "memory"}
    table = {}
    for key, (unit, scale) in units.items():
        table[key] = TableMeasure(f"{titles[key]}, {unit}", "cost", key, scale, better="down")
        table[f"more_{key}"] = TableMeasure(f"+ {titles[key]}, {unit}", "cost", f"more.{key}", scale, better="down")
    return table


MEASURES: dict[str, TableMeasure] = _scores() | _pairs() | _costs()


def measure_of(name: str) -> TableMeasure:
    """The measure of that name; ValueError with the nearest where there is none."""
    if name not in MEASURES:
        near = difflib.get_close_matches(name, MEASURES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(MEASURES)}"
        raise ValueError(f"measure {name!r} is unknown; {hint}")
    return MEASURES[name]
