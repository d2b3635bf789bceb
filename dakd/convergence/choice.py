"""Which setting is the cheapest within tolerance: the bounds of each distance, and the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

AGREEMENT, RMS = 0.99, 0.05
MIN_JUDGED = 4  # images of the reference that have a measure: two in each half


class Tolerances(NamedTuple):
    """agreement: least share of the label's pixels with the reference's class.  rms: largest, of images in [-1, 1]."""

    agreement: float
    rms: float

    @classmethod
    def of(cls, agreement: float | None, rms: float | None) -> Tolerances:
        """None takes the default. ValueError for an agreement that is no share and an RMS below 0."""
        agreement, rms = AGREEMENT if agreement is None else agreement, RMS if rms is None else rms
        if not 0 <= agreement <= 1:
            raise ValueError(f"--agreement is {agreement:g}; expected a share from 0 to 1; give 0.99 for 99 %")
        if not rms >= 0:
            raise ValueError(f"--rms is {rms:g}; expected at least 0; grey values lie between -1 and 1")
        return cls(agreement, rms)


class Bound(NamedTuple):
    """largest: distance that chance may make; None where the measure is not judged.  num_images: that it rests on."""

    title: str
    unit: str
    largest: float | None
    num_images: int


def bounds_of(physics: Mapping[str, Any], has_real: bool) -> dict[str, Bound]:
    """The bounds of the physics distances, by measure.

    physics: of `compare_physics`: with real images, these and the reference's pairs; else the reference's pairs come
    first. Without real images a distance to the reference may be what two halves of the reference's pairs are apart;
    with them, a distance to the real images may reach the upper end of the reference's own interval. A measure that
    fewer than four images have is not judged: a single ship would decide it.
    """
    bounds = {}
    for key, one in physics["measures"].items():
        largest = one["high"] if has_real else one["yardstick"]
        num_images = one["num_images"][int(has_real)]
        is_judged = largest is not None and num_images >= MIN_JUDGED
        bounds[key] = Bound(one["title"], one["unit"], largest if is_judged else None, num_images)
    return bounds


def beyond(distances: Mapping[str, float | None], bounds: Mapping[str, Bound]) -> list[str]:
    """The measures whose distance chance does not explain, or that a setting's pairs lack."""
    judged = {key: bound.largest for key, bound in bounds.items() if bound.largest is not None}
    return [key for key, largest in judged.items() if distances[key] is None or distances[key] > largest]


def is_within(row: Mapping[str, Any], tolerances: Tolerances) -> bool:
    """row: with agreement, rms, and beyond as `beyond` gives it."""
    return row["agreement"] >= tolerances.agreement and row["rms"] <= tolerances.rms and not row["beyond"]


def cheapest(rows: Sequence[Mapping[str, Any]], tolerances: Tolerances) -> Mapping[str, Any] | None:
    """The row within tolerance with the fewest calls, of several the one with the smallest RMS; None without any."""
    within = [row for row in rows if is_within(row, tolerances)]
    return min(within, key=lambda row: (row["calls"], row["rms"]), default=None)


def nearest(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row with the smallest RMS."""
    return min(rows, key=lambda row: row["rms"])
