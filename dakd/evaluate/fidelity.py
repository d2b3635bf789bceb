"""FID, IS, KID, precision and recall of the synthetic images against real training images, through torch-fidelity.

Protocol (the paper names none): grey repeated to three channels, uint8, InceptionV3's own resize to 299 and its pool3
features; as many real windows of the generated size as synthetic images, by default the smaller set's number; IS over
10 splits and over 1; KID over 100 subsets of at most 1000; precision and recall with 3 neighbours on the same features.
The numbers are torch-fidelity's. The intervals are ours: features are computed once, then images are drawn again from
both sets (windows of one image together), see `recentred_interval`.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dakd.config import FidelityConfig
from dakd.data.shards import ShardSet
from dakd.data.size_batches import batches_of_one_size
from dakd.evaluate.extractors import Extractor
from dakd.evaluate.students import stack_images
from dakd.evaluate.windows import RandomWindow, choose_windows, cut_windows, groups_of
from dakd.metrics.bootstrap import CONFIDENCE, draw_weights, recentred_interval
from dakd.metrics.confusion import sum_over_ranks
from dakd.metrics.distances import frechet_distance, kernel_distance, polynomial_kernel, precision_recall
from dakd.runtime.distributed import broadcast, device, is_main, rank, world_size
from dakd.runtime.files import replacing
from dakd.runtime.runlog import progress
from dakd.runtime.seeding import Stream, numpy_rng

MIN_IMAGES = 20
BATCH_SIZE = 16  # images per pass through the extractor
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
IS_SPLITS = 10
NEIGHBOURS = 3
_QUIET = {"verbose": False}


@dataclass(frozen=True)
class Features:
    """pooled: (N, d) float32.  logits: (N, 1008) float32 or None.  groups: (N,) the image of each window."""

    pooled: Tensor
    logits: Tensor | None
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.pooled)

    @property
    def num_images(self) -> int:
        """Of which the windows are: a few large images give many windows, and still no interval."""
        return len(np.unique(self.groups))


def compare_fidelity(
    cfg: FidelityConfig, seed: int, real: ShardSet, synthetic: ShardSet, extractor: Extractor | None, cache: Path
) -> dict:
    """All numbers of two sets (JSON-serialisable), or {"absent": reason}; every rank takes part and gets them.

    cache: the folder where features are kept, in files named after all that they depend on: an evaluation that is
    repeated for another student computes none of them again.
    """
    if extractor is None:
        return {"absent": "evaluate.fidelity.extractor is none; set it to inception (or small)"}
    num_images = cfg.num_images or min(len(real), len(synthetic))
    if num_images < MIN_IMAGES:
        return {"absent": f"{num_images} images of each set; expected at least {MIN_IMAGES}"}
    size = synthetic.size(0)  # generated images have one size
    sets = [
        _cached_features(one, choose_windows(one, size, num_images, seed), size, seed, extractor, cache, name)
        for name, one in (("real", real), ("synthetic", synthetic))
    ]
    numbers = None
    if is_main():
        facts = {
            "extractor": extractor.name,
            "extractor_sha256": extractor.identity,
            "is_standard": extractor.is_standard,
            "note": " ".join(part for part in (extractor.note, _note_on_size(sets[0])) if part),
            "num_images": num_images,
            "images_in_set": {"real": len(real), "synthetic": len(synthetic)},
            "size": list(size),
            "resamples": cfg.bootstrap,
            "confidence": CONFIDENCE,
        }
        numbers = facts | score_features(*sets, extractor, seed, cfg.bootstrap)
    return broadcast(numbers)


def score_features(real: Features, synthetic: Features, extractor: Extractor, seed: int, num_resamples: int) -> dict:
    """metrics: by key, with title, value, low, high, bias (of the resamples), and facts of that metric.

    halves: two Frechet distances at half of N from one half of the real images: that of the other half, which chance
    alone makes, and that of as many synthetic images.
    """
    name = "" if extractor.is_standard else f" ({extractor.name})"
    keys = {one: f"{one}_{extractor.suffix}" for one in ("fd", "kd", "precision", "recall")}
    if extractor.is_standard:
        keys = {"fd": "fid", "kd": "kid", "precision": "precision", "recall": "recall"}
    values, extras = library_values(real, synthetic)
    drawn = _resample(real, synthetic, seed, num_resamples)
    titles = {
        "fd": "FID" if extractor.is_standard else f"Frechet distance{name}",
        "kd": "KID" if extractor.is_standard else f"kernel distance{name}",
        "precision": f"precision{name}",
        "recall": f"recall{name}",
    }
    limits = {"fd": (0, math.inf), "kd": (-math.inf, math.inf), "precision": (0, 1), "recall": (0, 1)}
    num_images = min(one.num_images for one in (real, synthetic))
    metrics = {
        keys[one]: _entry(titles[one], values[one], drawn[one], limits[one], num_images) | extras.get(one, {})
        for one in titles
    }
    if extractor.is_standard:
        for splits, key in ((IS_SPLITS, "inception_score"), (1, "inception_score_1_split")):
            title = f"IS, {splits} split{'s' if splits > 1 else ''}"
            value, own = inception_score(synthetic, splits), drawn[f"is{splits}"]
            metrics[key] = _entry(title, value, own, (1, math.inf), synthetic.num_images)
            metrics[key]["real"] = inception_score(real, splits)
    return {"metrics": metrics, "halves": _compare_halves(real, synthetic, seed)}


def library_values(real: Features, synthetic: Features) -> tuple[dict[str, float], dict[str, dict]]:
    """torch-fidelity's own numbers by name (fd, kd, precision, recall), and facts about how they were made."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    statistics = [fid_features_to_statistics(one.pooled) for one in (synthetic, real)]
    size = min(KID_SUBSET_SIZE, len(real), len(synthetic))
    # Subsets as large as the sets are all the same.
    subsets = 1 if size == len(real) == len(synthetic) else KID_SUBSETS
    kernel = kid_features_to_metric(synthetic.pooled, real.pooled, kid_subsets=subsets, kid_subset_size=size, **_QUIET)
    manifold = prc_features_to_metric(synthetic.pooled, real.pooled, prc_neighborhood=NEIGHBOURS, **_QUIET)
    values = {
        "fd": fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID],
        "kd": kernel[KEY_METRIC_KID_MEAN],
        "precision": manifold[KEY_METRIC_PRECISION],
        "recall": manifold[KEY_METRIC_RECALL],
    }
    return values, {"kd": {"subsets": subsets, "subset_size": size, "std": kernel[KEY_METRIC_KID_STD]}}


def inception_score(features: Features, splits: int) -> float:
    """torch-fidelity's mean over the splits."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    return isc_features_to_metric(features.logits, splits)[KEY_METRIC_ISC_MEAN]


# --- features ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def extract_features(
    shard_set: ShardSet,
    windows: Sequence[RandomWindow],
    size: tuple[int, int],
    seed: int,
    extractor: Extractor,
    label: str,
    batch_size: int = BATCH_SIZE,
) -> Features:
    """Features of the windows; the ranks share the work, and each gets all of them."""
    arrays = [torch.zeros(len(windows), width, device=device()) for width in extractor.widths]
    samples = cut_windows(shard_set, windows, size, seed, rank(), world_size(), f"features {label}")
    for batch in batches_of_one_size(samples, batch_size):
        indices = [index for index, _ in batch]
        images = stack_images((sample for _, sample in batch), device())
        for array, one in zip(arrays, extractor.features(images)):
            array[indices] = one.to(torch.float32)
    # A window's features are 0 on every rank but its own, so that the sum is exact.
    pooled, *logits = [sum_over_ranks(array).cpu() for array in arrays]
    return Features(pooled, logits[0] if logits else None, groups_of(windows))


def _cached_features(
    shard_set: ShardSet,
    windows: Sequence[RandomWindow],
    size: tuple[int, int],
    seed: int,
    extractor: Extractor,
    cache: Path,
    label: str,
) -> Features:
    # The windows follow from the seed, the set, their number and size (see windows.py).
    facts = [shard_set.fingerprint, extractor.identity, list(size), seed, len(windows)]
    text = json.dumps(facts)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = cache / f"{label}-{len(windows)}-{digest[:16]}.npz"
    kept = _read_features(path, windows, text) if is_main() else None
    if broadcast(kept is not None):
        # Only rank 0 computes the numbers; the others need no features.
        return kept or Features(torch.empty(len(windows), 0), None, groups_of(windows))
    made = extract_features(shard_set, windows, size, seed, extractor, label)
    if is_main():
        arrays = {"pooled": made.pooled} | ({} if made.logits is None else {"logits": made.logits})
        with replacing(path) as aside, open(aside, "wb") as stream:
            np.savez(stream, facts=text, **{name: array.numpy() for name, array in arrays.items()})
    return made


def _read_features(path: Path, windows: Sequence[RandomWindow], facts: str) -> Features | None:
    """The features in a file; None where there is no file, a damaged one, or one of other facts under this name."""
    try:
        with np.load(path) as file:
            if str(file["facts"]) != facts:
                return None
            arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "facts"}
        return Features(arrays["pooled"], arrays.get("logits"), groups_of(windows))
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile):
        return None


# --- intervals --------------------------------------------------------------------------------------------------------


def _resample(real: Features, synthetic: Features, seed: int, num_resamples: int) -> dict[str, list[float]]:
    """The numbers of each resample of both sets, by name.

    A resample is a weight per image, so that features, kernels and distances are computed once and serve all of them.
    """
    where = device()
    x, y = (one.pooled.to(where, torch.float64) for one in (synthetic, real))
    # Taken off both sets for the Frechet distance: it stays the same, and keeps digits that a common mean would cost.
    centre = y.mean(dim=0)
    kernels = [polynomial_kernel(*pair) for pair in ((x, x), (y, y), (x, y))]
    distances = [torch.cdist(*pair) for pair in ((x, x), (y, y), (x, y))]
    weights = [
        _group_weights(one.groups, num_resamples, numpy_rng(seed, number, 0, stream=Stream.RESAMPLE))
        for number, one in enumerate((synthetic, real))
    ]
    drawn: dict[str, list[float]] = {name: [] for name in ("fd", "kd", "precision", "recall", "is10", "is1")}
    for index in progress(range(num_resamples), num_resamples, "bootstrap of the fidelity"):
        wx, wy = (torch.as_tensor(one[index], dtype=torch.float64, device=where) for one in weights)
        drawn["fd"].append(frechet_distance(x - centre, y - centre, wx, wy))
        drawn["kd"].append(kernel_distance(*kernels, wx, wy))
        precision, recall = precision_recall(*distances, wx, wy, NEIGHBOURS)
        drawn["precision"].append(precision)
        drawn["recall"].append(recall)
        if synthetic.logits is not None:
            again = Features(synthetic.pooled, _repeated(synthetic.logits, weights[0][index]), synthetic.groups)
            for splits in (IS_SPLITS, 1):
                drawn[f"is{splits}"].append(inception_score(again, splits))
    return drawn


def _group_weights(groups: np.ndarray, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(num_resamples, N): images are drawn, and all windows of an image with it."""
    return draw_weights(num_resamples, int(groups.max()) + 1, rng)[:, groups]


def _repeated(array: Tensor, weights: np.ndarray) -> Tensor:
    return array.repeat_interleave(torch.as_tensor(weights), dim=0)


def _compare_halves(real: Features, synthetic: Features, seed: int) -> dict:
    rng = numpy_rng(seed, 0, 1, stream=Stream.RESAMPLE)
    halves = [real.pooled[torch.as_tensor(half)] for half in split_groups(real.groups, rng)]
    count = min(map(len, halves))
    chosen = torch.as_tensor(rng.permutation(len(synthetic))[:count])
    first, second, others = (one[:count].double() for one in (*halves, synthetic.pooled[chosen]))
    ones = torch.ones(count, dtype=torch.float64)
    return {
        "num_images": count,
        "real": frechet_distance(first, second, ones, ones),
        "synthetic": frechet_distance(others, second, ones, ones),
    }


def split_groups(groups: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the windows of one random half of the images, and of the other: no image has windows in both."""
    rank_of_image = rng.permutation(int(groups.max()) + 1)[groups]
    is_first = rank_of_image < (groups.max() + 1) // 2
    return np.flatnonzero(is_first), np.flatnonzero(~is_first)


def _entry(title: str, value: float, drawn: list[float], limits: tuple[float, float], num_images: int) -> dict:
    interval = recentred_interval(value, drawn, *limits, num_images=num_images)
    ends = {"low": None, "high": None, "bias": None} if interval is None else vars(interval)
    return {"title": title, "value": value, **ends}


def _note_on_size(features: Features) -> str:
    count, dim = features.pooled.shape
    if count > dim:
        return ""
    return (
        f"{count} images are fewer than the {dim} features, so the covariances are singular and the Frechet distance "
        f"is far above that of many images: compare numbers of the same N only."
    )
