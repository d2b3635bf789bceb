"""BALANCE: the factor b that brings the mask's noisy input to the image's SNR (the paper, Eq. 1-4 and 11-20).

One scalar per dataset: mean power of the training images, DC included, over mean power of the masks, then the root.
With masks in {-1, +1} the mask's power is exactly 1, so b is the RMS of the training images in [-1, 1].
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from dakd.config import Config
from dakd.runtime.distributed import is_main
from dakd.runtime.runlog import say
from dakd.runtime.sealed import read_json, remove_manifest, write_json, write_manifest


def image_power(image: np.ndarray) -> float:
    """Mean square of an (H, W) uint8 image scaled to [-1, 1] by g / 127.5 - 1, in float64.

    By Parseval's theorem it equals the energy of the image's Fourier transform (the paper, Eq. 11-13) over its pixels.
    """
    return float(np.mean((np.asarray(image, np.float64) / 127.5 - 1.0) ** 2))


def balancing_factor(mean_power_x: float, mean_power_y: float = 1.0) -> float:
    """b = sqrt(P(x_0) / P(y_0)), the paper's Eq. 4 and 20.  Both arguments are mean powers, > 0."""
    if not (mean_power_x > 0 and mean_power_y > 0):
        raise ValueError(f"mean powers are {mean_power_x} (image) and {mean_power_y} (mask); expected both above 0")
    return math.sqrt(mean_power_x / mean_power_y)


def resolve_balance(b: float | str, run_dir: str | Path) -> float:
    """The b to train with: the number that the config gives, or with `auto` the one of the prepared training set.

    Raises ValueError where `auto` finds no prepared training set.
    """
    if b != "auto":
        return float(b)
    return computed_balance(run_dir)


def computed_balance(run_dir: str | Path) -> float:
    """The balancing factor in the index of the run's training set."""
    path = Path(run_dir) / "prepare" / "train" / "index.json"
    index = read_json(path, f"remove {path.parents[1]} and run prepare again")
    if index is None:
        raise ValueError(f"b is computed from {path}, which does not exist; run the prepare step first")
    b = index["balancing_factor"]
    if not isinstance(b, int | float) or not 0 < b < math.inf:
        raise ValueError(f"{path} has the balancing_factor {b!r:.80}; expected a number above 0; run prepare again")
    return float(b)


def balance(config: Config) -> float:
    """The balance step: prints the configured and the computed b, writes balance.json and returns the one in use."""
    computed = computed_balance(config.run_path)
    b = resolve_balance(config.balance.b, config.run_path)
    if is_main():
        facts = {"b": b, "configured": config.balance.b, "computed": computed}
        folder = config.run_path / "balance"
        remove_manifest(folder)
        write_json(folder / "balance.json", facts)
        write_manifest(folder, [folder / "balance.json"])
    say(f"balance: b = {b:.4f} ({'computed' if config.balance.b == 'auto' else 'configured'}); computed {computed:.4f}")
    return b
