"""The memorisation audit: are there training images among the generated ones?

A teacher of a thousand images may have learnt some by heart. For each synthetic image the nearest window of the
training images is looked up, by each of three measures (neighbours.py), over mirrored copies. How near is too near is
told by held-out images, which no teacher has seen: of these, by definition, one percent lie nearer to the training
images than the first percentile of their distances. A greater share of the synthetic ones speaks of copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dakd.config import AuditConfig, Config, GateConfig
from dakd.data.prepared import open_prepared
from dakd.data.records import hard_label
from dakd.data.shards import ShardSet
from dakd.generate.audit_report import write_audit
from dakd.generate.measures import equivalent_looks
from dakd.generate.neighbours import (
    GRAINS,
    MEASURES,
    Extractor,
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
from dakd.runtime import distributed
from dakd.runtime.files import file_hash
from dakd.runtime.runlog import progress, say

_LEAST_SPREAD = 1e-6  # of a feature


def audit(config: Config) -> Path:
    """Compare the run's generated pairs with its training images; the folder with table, numbers and picture.

    One rank does it.  Raises ValueError where either is absent.
    """
    folder = config.run_path / "generate" / "audit"
    if not distributed.is_main():
        return folder
    distributed.limit_threads(config.generate.threads)
    synthetic, train = ShardSet(config.run_path / "generate"), open_prepared(config, "train")
    has_held_out = (config.run_path / "prepare" / "test" / "index.json").is_file()
    held_out = open_prepared(config, "test") if has_held_out else None
    text = audit_sets(synthetic, train, held_out, config.generate.audit, config.generate.gate, folder)
    say(f"{text}\n\naudit: {folder}")
    return folder


def audit_sets(
    synthetic: ShardSet, train: ShardSet, held_out: ShardSet | None, cfg: AuditConfig, gate: GateConfig, folder: Path
) -> str:
    """Write audit.json, audit.txt and nearest.png into `folder`; the text.

    held_out: images of the same origin that no training has seen; without them the training images are held against
    one another.  gate: how ENL is measured.
    """
    if len(train) < 2:
        raise ValueError(f"{train.folder} has {len(train)} image; the audit wants at least 2, to compare them")
    size = synthetic.size(0)
    kept = evenly(range(len(synthetic)), cfg.max_samples)
    queries = {
        "synthetic": (synthetic, [Window(image, 0, 0) for image in kept]),
        "held out": (held_out, evenly(windows_of(held_out, size), cfg.num_yardsticks) if held_out else []),
        "training, each without its own image": (train, evenly(windows_of(train, size), cfg.num_yardsticks)),
    }
    queries = {name: query for name, query in queries.items() if query[1]}
    found = find_neighbours(train, list(queries.values()), size, cfg)
    by_name = dict(zip(queries, found))
    yardstick = list(queries)[1]
    limits = {one: float(np.percentile(by_name[yardstick].distances[one], cfg.percentile)) for one in MEASURES}
    facts = {
        "extractor": "student encoder" if cfg.student else grey_gradient_pyramid.__name__,
        "student": file_hash(cfg.student) if cfg.student else None,
        "window": list(size),
        "block": list(cell_size(size, cfg.cells)),
        "grain": list(cell_size(size, GRAINS * cfg.cells)),
        "yardstick": yardstick,
        "percentile": cfg.percentile,
        "enl": {"synthetic": _looks(synthetic, kept, gate), "training": _looks(train, range(len(train)), gate)},
    }
    return write_audit(folder, facts, synthetic, train, kept, by_name, limits, cfg.num_pictures)


def find_neighbours(
    train: ShardSet, queries: list[tuple[ShardSet, list[Window]]], size: tuple[int, int], cfg: AuditConfig
) -> list[Neighbours]:
    """The nearest training windows of several sets' windows (h, w); those of `train` itself skip their own image."""
    extract: Extractor = grey_gradient_pyramid
    if cfg.student is not None:
        extract = student_encoder(cfg.student, distributed.device())
    described = [
        describe(progress(read_windows(shards, some, size), len(some), "audit: queries"), extract, cfg.cells)
        for shards, some in queries
    ]
    features, blocks = (torch.cat([getattr(one, name) for one in described], dim=1) for name in ("features", "blocks"))
    grain = torch.cat([one.grain for one in described])
    owners = torch.tensor([window.image if shards is train else -1 for shards, some in queries for window in some])

    by_blocks, places = _nearest_blocks(train, size, cfg.cells, blocks, owners)
    found = {
        "features": _nearest_features(train, size, extract, features, owners),
        "blocks": by_blocks,
        "grain": _found(*compare_grain(train, size, cfg.cells, grain, places)),
    }
    everything = Neighbours(*({one: values[field] for one, values in found.items()} for field in range(3)))
    stops = np.cumsum([len(some) for _, some in queries]).tolist()
    return [_part(everything, slice(first, stop)) for first, stop in zip([0, *stops], stops)]


# Distances, windows and flips of all queries.
_Found = tuple[np.ndarray, list[Window], np.ndarray]


def _nearest_features(
    train: ShardSet, size: tuple[int, int], extract: Extractor, queries: Tensor, owners: Tensor
) -> _Found:
    windows = windows_of(train, size)
    shown = progress(read_windows(train, windows, size), len(windows), "audit: training")
    references = torch.cat([extract(batch) for batch in batches(shown)])
    mean, spread = references.mean(dim=0), references.std(dim=0)
    scale = torch.where(spread > _LEAST_SPREAD, 1 / spread, 0.0)  # what is the same everywhere tells nothing
    of_images = torch.tensor([window.image for window in windows])
    distances, places, flips = nearest_features(
        (queries - mean) * scale, owners, (references - mean) * scale, of_images
    )
    return distances.double().numpy(), [windows[place] for place in places], flips.numpy()


def _nearest_blocks(
    train: ShardSet, size: tuple[int, int], cells: int, queries: Tensor, owners: Tensor
) -> tuple[_Found, Tensor]:
    """The nearest windows, and the place of the best one for each flip, (flips, N, 3)."""
    everywhere: list[Tensor] = []

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        images = progress(range(len(train)), len(train), "audit: blocks")
        for some, vectors in sliding_windows(train, size, cells, images):
            everywhere.append(some)
            yield vectors, some[:, 0]

    found = most_similar(queries, owners, chunks())
    correlation, flips = found.score.max(dim=0)
    places = torch.cat(everywhere)[found.reference]
    return _found(correlation, places[flips, torch.arange(len(flips))], flips), places


def _found(correlation: Tensor, places: Tensor, flips: Tensor) -> _Found:
    return 1 - correlation.double().numpy(), [Window(*place) for place in places.tolist()], flips.numpy()


def _part(whole: Neighbours, part: slice) -> Neighbours:
    return Neighbours(*({one: values[part] for one, values in field.items()}
                        for field in (whole.distances, whole.windows, whole.flips)))  # fmt: skip


def _looks(shards: ShardSet, images: range | list[int], gate: GateConfig) -> dict[str, float] | None:
    """Quantiles of the images' ENL as the gate measures it; None where it cannot be measured."""
    if gate.enl_class not in shards.classes.names:
        return None
    found = []
    for image in images:
        sample = shards.read(image)
        label = hard_label(sample)
        if label.size:
            region = label == shards.classes.id_of(gate.enl_class)
            found.append(equivalent_looks(sample.sar, region, gate.enl_window, gate.enl_min_windows))
    values = [value for value in found if value is not None]
    return {f"{q}": float(np.percentile(values, q)) for q in (1, 5, 50, 95, 99)} if values else None
