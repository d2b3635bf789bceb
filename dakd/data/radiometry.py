"""What grey values of a training set mean: the backscatter behind them, the pixel spacing, and how they are spread.

A student stores these facts. A scene is brought to the same greys before the student sees it, and is warned of where
its greys are far from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np

from dakd.config import PrepareConfig
from dakd.data.simulate import PIXEL_SPACING_M, WINDOW_DB

QUANTITIES = ("sigma0", "gamma0", "beta0", "amplitude")
_LEVELS = 256


@dataclass(frozen=True)
class Radiometry:
    """The facts of a training set, None where they are not known.

    quantity: what the greys show, one of QUANTITIES.  window_db: the dB that grey 0 and grey 255 stand for; between
    them greys are linear in dB.  pixel_spacing_m: metres between pixels.
    greys: the 1st, 50th and 99th percentile over all pixels.
    image_greys: the same percentiles of each image alone; their medians over the images.
    image_medians: the 1st and 99th percentile, over the images, of an image's median grey.
    """

    quantity: str | None = None
    window_db: tuple[float, float] | None = None
    pixel_spacing_m: float | None = None
    greys: tuple[float, float, float] | None = None
    image_greys: tuple[float, float, float] | None = None
    image_medians: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, found: Any, source: str) -> Radiometry:
        """The facts of `to_dict`; None or an absent one is unknown.

        source: of the facts, for the message.  ValueError for anything else.
        """
        if found is None:
            return cls()
        lengths = {"window_db": 2, "greys": 3, "image_greys": 3, "image_medians": 2}
        if not isinstance(found, Mapping) or not set(found) <= {*lengths, "quantity", "pixel_spacing_m"}:
            raise ValueError(f"the radiometry of {source} is {found!r:.200}; expected facts by name: write it again")
        facts: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
        for name, length in lengths.items():
            if name in facts:
                facts[name] = _numbers(facts[name], length, f"the radiometry's {name} of {source}")
        if "pixel_spacing_m" in facts:
            facts["pixel_spacing_m"] = checked_spacing(facts["pixel_spacing_m"], f"the pixel spacing of {source}")
        if "window_db" in facts:
            facts["window_db"] = checked_window(facts["window_db"], f"the window_db of {source}")
        if facts.get("quantity", "sigma0") not in QUANTITIES:
            expected = f"expected one of {', '.join(QUANTITIES)}: write it again"
            raise ValueError(f"the radiometry's quantity of {source} is {facts['quantity']!r:.80}; {expected}")
        return cls(**facts)


def radiometry_of(cfg: PrepareConfig, images: Iterable[np.ndarray]) -> Radiometry:
    """The radiometry of a prepared set.  images: (H, W) uint8 each, at least one."""
    own, is_simulated = cfg.radiometry, cfg.dataset == "simulated"
    window = own.window_db or (WINDOW_DB if is_simulated else None)
    spacing = own.pixel_spacing_m or (PIXEL_SPACING_M if is_simulated and cfg.resize is None else None)
    quantity = own.quantity or ("sigma0" if is_simulated else None)
    return Radiometry(quantity, window, spacing, **_spread(images))


def _spread(images: Iterable[np.ndarray]) -> dict[str, tuple[float, ...]]:
    total, percentiles = np.zeros(_LEVELS, np.int64), []
    for image in images:
        counts = np.bincount(image.ravel(), minlength=_LEVELS)
        total += counts
        percentiles.append(grey_percentiles(counts, (1, 50, 99)))
    by_image = np.array(percentiles)
    return {
        "greys": tuple(grey_percentiles(total, (1, 50, 99))),
        "image_greys": tuple(float(one) for one in np.median(by_image, axis=0)),
        "image_medians": tuple(float(one) for one in np.percentile(by_image[:, 1], (1, 99))),
    }


def grey_percentiles(counts: np.ndarray, percents: Iterable[float]) -> list[float]:
    """Percentiles of whole numbers from 0 on, each the lowest with at least that share of all at or below it.

    counts: (N,) how often each number occurs, at least one of them.
    """
    shares = np.cumsum(counts) / counts.sum()
    return [float(np.searchsorted(shares, percent / 100 - 1e-12)) for percent in percents]


def checked_window(found: Any, name: str) -> tuple[float, float]:
    """Two finite numbers in dB, the first below the second; ValueError, naming them, for anything else."""
    low, high = _numbers(found, 2, name)
    if not low < high:
        raise ValueError(f"{name} is {low:g} to {high:g} dB; expected the lower one first: change their order")
    return low, high


def checked_spacing(found: Any, name: str) -> float:
    """A positive number of metres; ValueError, naming it, for anything else."""
    if isinstance(found, bool) or not isinstance(found, Real) or not 0 < found < 1e6:
        raise ValueError(f"{name} is {found!r:.80}; expected metres, above 0: give another number")
    return float(found)


def _numbers(found: Any, length: int, name: str) -> tuple[float, ...]:
    numbers = found if isinstance(found, list | tuple) else ()
    numbers = [one for one in numbers if isinstance(one, Real) and not isinstance(one, bool) and np.isfinite(one)]
    if len(numbers) != length or len(found) != length:
        raise ValueError(f"{name} is {found!r:.80}; expected {length} numbers: write it again")
    return tuple(float(one) for one in numbers)
