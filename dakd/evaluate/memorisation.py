"""The memorisation audit (`dakd generate --audit`): are there training images among the generated ones?

A teacher of a thousand images may have learnt some by heart. For each synthetic image, and each of its mirrored copies,
the audit finds the nearest window of the training images by three measures (see neighbours.py). Held-out images, which
no teacher has seen, give the scale: the limit of a measure is the first percentile of their distances, so one percent
of them lie below it. A larger share of the synthetic images below the limit points to copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dakd.config import AuditConfig, Config
from dakd.data.joined_sets import JoinedSets
from dakd.data.prepared import find_unlabelled, open_prepared
from dakd.data.records import hard_label
from dakd.data.shards import ShardSet
from dakd.evaluate.memorisation_report import write_audit
from dakd.evaluate.neighbours import (
    GRAINS,
    MEASURES,
    FeatureFunction,
    Neighbours,
    Window,
    batches,
    cell_size,
    compare_grain,
    describe,
    evenly,
    grey_gradient_pyramid,
    most_similar,
    nearest_features,
    read_windows,
    sliding_windows,
    student_encoder,
    windows_of,
)
from dakd.metrics.speckle import LOOKS_MIN_WINDOWS, LOOKS_WINDOW, equivalent_looks
from dakd.runtime import distributed
from dakd.runtime.files import file_hash
from dakd.runtime.runlog import progress, say

CELLS = 16  # blocks on a side of the grid whose means are correlated
NUM_YARDSTICKS = 1000  # held-out windows, and training windows, that are looked up for comparison
PERCENTILE = 1.0  # of the held-out images' distances: a smaller distance counts as suspicious
_MIN_SPREAD = 1e-6  # of a feature


def audit(config: Config) -> Path:
    """Compare the run's generated pairs with its training images, on one rank; the folder with the results.

    Those without labels are among them, as stage 1 of the teacher saw them.

    Raises ValueError where either set is absent.
    """
    folder = config.run_path / "generate" / "audit"
    if not distributed.is_main():
        return folder
    distributed.limit_threads(config.generate.threads)
    synthetic, unlabelled = ShardSet(config.run_path / "generate"), find_unlabelled(config)
    train = JoinedSets([open_prepared(config, "train"), *([] if unlabelled is None else [unlabelled])])
    has_held_out = (config.run_path / "prepare" / "test" / "index.json").is_file()
    held_out = open_prepared(config, "test") if has_held_out else None
    text = audit_sets(synthetic, train, held_out, config.generate.audit, config.generate.gate.enl_class, folder)
    say(f"{text}\n\naudit: {folder}")
    return folder


def audit_sets(
    synthetic: ShardSet,
    train: ShardSet | JoinedSets,
    held_out: ShardSet | None,
    cfg: AuditConfig,
    enl_class: str,
    folder: Path,
) -> str:
    """Write audit.json, audit.txt and nearest.png into `folder`; the text.

    held_out: images of the same origin that no training has seen; without them, training images are compared with
    one another.  enl_class: the class whose windows the ENL is measured in.
    """
    if len(train) < 2:
        raise ValueError(
            f"{train.folder} has {len(train)} image; expected at least 2, to compare them with one "
            "another"
        )
    size = synthetic.size(0)
    kept = evenly(range(len(synthetic)), cfg.max_samples)
    queries = {
        "synthetic": (synthetic, [Window(image, 0, 0) for image in kept]),
        "held out": (held_out, evenly(windows_of(held_out, size), NUM_YARDSTICKS) if held_out else []),
        "training, each without its own image": (train, evenly(windows_of(train, size), NUM_YARDSTICKS)),
    }
    queries = {name: query for name, query in queries.items() if query[1]}
    extract = student_encoder(cfg.student, distributed.device()) if cfg.student else grey_gradient_pyramid
    found = dict(zip(queries, find_neighbours(train, list(queries.values()), size, extract)))
    yardstick = list(queries)[1]
    limits = {one: float(np.percentile(found[yardstick][one].distances, PERCENTILE)) for one in MEASURES}
    facts = {
        "extractor": "student encoder" if cfg.student else grey_gradient_pyramid.__name__,
        "student": file_hash(cfg.student) if cfg.student else None,
        "window": list(size),
        "block": list(cell_size(size, CELLS)),
        "grain": list(cell_size(size, GRAINS * CELLS)),
        "yardstick": yardstick,
        "percentile": PERCENTILE,
        "enl": {
            "synthetic": _enl_quantiles(synthetic, kept, enl_class),
            "training": _enl_quantiles(train, range(len(train)), enl_class),
        },
    }
    return write_audit(folder, facts, synthetic, train, kept, found, limits)


def find_neighbours(
    train: ShardSet,
    queries: list[tuple[ShardSet, list[Window]]],
    size: tuple[int, int],
    extract: FeatureFunction = grey_gradient_pyramid,
) -> list[dict[str, Neighbours]]:
    """By measure, the nearest training windows of each set's windows (h, w); those of `train` skip their own image."""
    described = [
        describe(progress(read_windows(shards, some, size), len(some), "audit: queries"), extract, CELLS)
        for shards, some in queries
    ]
    features, blocks = (torch.cat([getattr(one, name) for one in described], dim=1) for name in ("features", "blocks"))
    grain = torch.cat([one.grain for one in described])
    owners = torch.tensor([window.image if shards is train else -1 for shards, some in queries for window in some])

    by_blocks, places = _nearest_blocks(train, size, blocks, owners)
    found = {
        "features": _nearest_features(train, size, extract, features, owners),
        "blocks": by_blocks,
        "grain": _correlated(*compare_grain(train, size, CELLS, grain, places)),
    }
    stops = list(accumulate(len(some) for _, some in queries))
    parts = [slice(first, stop) for first, stop in zip([0, *stops], stops)]
    return [{name: one.part(part) for name, one in found.items()} for part in parts]


def _nearest_features(
    train: ShardSet, size: tuple[int, int], extract: FeatureFunction, queries: Tensor, owners: Tensor
) -> Neighbours:
    windows = windows_of(train, size)
    shown = progress(read_windows(train, windows, size), len(windows), "audit: training")
    references = torch.cat([extract(batch) for batch in batches(shown)])
    mean, spread = references.mean(dim=0), references.std(dim=0)
    scale = torch.where(spread > _MIN_SPREAD, 1 / spread, 0.0)  # a constant feature must not be blown up to noise
    of_images = torch.tensor([window.image for window in windows])
    distances, places, flips = nearest_features(
        (queries - mean) * scale, owners, (references - mean) * scale, of_images
    )
    return Neighbours(distances.double().numpy(), [windows[place] for place in places], flips.numpy())


def _nearest_blocks(
    train: ShardSet, size: tuple[int, int], queries: Tensor, owners: Tensor
) -> tuple[Neighbours, Tensor]:
    """The nearest windows, and the place of the best one for each flip, (flips, N, 3)."""
    everywhere: list[Tensor] = []

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        images = progress(range(len(train)), len(train), "audit: blocks")
        for some, vectors in sliding_windows(train, size, CELLS, images):
            everywhere.append(some)
            yield vectors, some[:, 0]

    found = most_similar(queries, owners, chunks())
    correlation, flips = found.score.max(dim=0)
    places = torch.cat(everywhere)[found.reference]
    return _correlated(correlation, places[flips, torch.arange(len(flips))], flips), places


def _correlated(correlation: Tensor, places: Tensor, flips: Tensor) -> Neighbours:
    return Neighbours(1 - correlation.double().numpy(), [Window(*place) for place in places.tolist()], flips.numpy())


def _enl_quantiles(shards: ShardSet, images: Sequence[int], enl_class: str) -> dict[str, float] | None:
    """Quantiles of the images' ENL as the gate measures it; None where it cannot be measured."""
    if enl_class not in shards.classes.names:
        return None
    found = []
    for image in images:
        sample = shards.read(image)
        label = hard_label(sample)
        if label.size:
            region = label == shards.classes.id_of(enl_class)
            found.append(equivalent_looks(sample.sar, region, LOOKS_WINDOW, LOOKS_MIN_WINDOWS))
    values = [value for value in found if value is not None]
    return {f"{q}": float(np.percentile(values, q)) for q in (1, 5, 50, 95, 99)} if values else None
