"""The synthetic set next to the real training set: class shares and greys, speckle and edges, features of a net.

`set_statistics.py`, `physics.py` and `fidelity.py` measure; here they are called, and their results made into tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dakd.config import Config
from dakd.data.shards import ShardSet
from dakd.evaluate.extractors import Extractor
from dakd.evaluate.fidelity import compare_fidelity
from dakd.evaluate.physics import compare_physics, measure_set
from dakd.evaluate.set_statistics import CONTRASTS, count_set, set_statistics
from dakd.metrics import SegmentationScores
from dakd.metrics.bootstrap import MIN_IMAGES, few_images_notes
from dakd.metrics.tables import format_table, percent
from dakd.runtime.distributed import broadcast, device, is_main, rank, world_size

Rows = list[Sequence[str | float | int | None]]


def compare_pairs(
    cfg: Config,
    run_dir: Path,
    real: ShardSet,
    synthetic: ShardSet,
    extractor: Extractor | None,
    agreement: SegmentationScores | None,
) -> dict:
    """The content of `evaluate/generation.json`: real, synthetic, agreement, fidelity, physics.

    Every rank takes part and gets it.  agreement: of a student trained on real pairs alone with the teacher's labels on
    the synthetic images: high where labels lie on their images as real labels do.
    """
    sets, size = {"real": real, "synthetic": synthetic}, synthetic.size(0)
    comparison: dict = {}
    for name, one in sets.items():
        counts = count_set(one, rank(), world_size(), device(), label=f"statistics {name}")
        comparison[name] = set_statistics(counts, one.classes)
    comparison["agreement"] = None if agreement is None else agreement.to_dict()
    measured = [
        measure_set(one, size, cfg.seed, rank(), world_size(), device(), f"physics {name}")
        for name, one in sets.items()
    ]
    physics = broadcast(compare_physics(*measured, real.classes, size, cfg.seed) if is_main() else None)
    cache = run_dir / "evaluate" / "features"
    fidelity = compare_fidelity(cfg.evaluate.fidelity, cfg.seed, real, synthetic, extractor, cache)
    return comparison | {"fidelity": fidelity, "physics": physics}


def format_pairs(comparison: dict) -> str:
    """All tables of a comparison as text."""
    parts = [format_table(*statistics_rows(comparison))]
    if comparison["agreement"] is None:
        parts.append("agreement on synthetic images: not known (no student was trained on real pairs alone)")
    else:
        miou = f"mIoU {100 * comparison['agreement']['miou']:.2f} %"
        parts.append(f"agreement on synthetic images: {miou} (the real-only student against the teacher's labels)")
    physics, fidelity = comparison["physics"], comparison["fidelity"]
    parts += [format_table(*physics_rows(physics)), physics_note(physics)]
    if "absent" in fidelity:
        parts.append(f"FID and its relatives: not measured ({fidelity['absent']})")
    else:
        parts += [format_table(*fidelity_rows(fidelity)), *fidelity_notes(fidelity)]
    return "\n\n".join(parts)


def statistics_rows(comparison: dict) -> tuple[list[str], Rows]:
    """Header and rows: images, class shares, mean greys and contrasts of both sets."""
    sets = [comparison["real"], comparison["synthetic"]]
    rows: Rows = [["images", *(one["num_images"] for one in sets)]]
    for name in sets[0]["shares"]:
        rows.append([f"share of {name}, %", *(percent(one["shares"][name]) for one in sets)])
    for name in sets[0]["mean_grey"]:
        rows.append([f"mean grey of {name}", *(one["mean_grey"][name] for one in sets)])
    for title, field in CONTRASTS.items():
        rows.append([title, *(one[field] for one in sets)])
    return ["training set", "real", "synthetic"], rows


def fidelity_rows(fidelity: dict) -> tuple[list[str], Rows]:
    """Header and rows: each number with its interval and the number of images."""
    rows: Rows = [
        [one["title"], _short(one["value"]), _range(one), fidelity["num_images"]]
        for one in fidelity["metrics"].values()
    ]
    return ["synthetic against real images", "value", _interval_head(fidelity), "N of each"], rows


def fidelity_notes(fidelity: dict) -> list[str]:
    halves = fidelity["halves"]
    name = next(iter(fidelity["metrics"].values()))["title"]
    notes = [
        f"{name} at {halves['num_images']} images: {_short(halves['synthetic'])} between synthetic and real images, "
        f"{_short(halves['real'])} between two halves of the real images.",
        f"{_about_intervals(fidelity['metrics'], fidelity['resamples'], fidelity['num_images'])}; the bias of a finite "
        f"N stays in the value. {fidelity['note']}".strip(),
    ]
    of_real = [f"{_short(one['real'])} ({one['title']})" for one in fidelity["metrics"].values() if "real" in one]
    if of_real:
        notes.append(f"Inception scores of the real images: {', '.join(of_real)}.")
    return notes


def physics_rows(physics: dict) -> tuple[list[str], Rows]:
    """Header and rows: each measure of both sets, their distance with its interval, and that of two real halves."""
    rows: Rows = []
    for one in physics["measures"].values():
        title = f"{one['title']}, {one['unit']}" if one["unit"] else one["title"]
        values = [_short(one[field]) for field in ("real", "synthetic", "distance")]
        rows.append([title, *values, _range(one), _short(one["yardstick"])])
    return ["measure", "real", "synthetic", "distance", _interval_head(physics), "real halves"], rows


def physics_note(physics: dict) -> str:
    real, synthetic = physics["num_images"].values()
    height, width = physics["size"]
    return (
        f"{real} real and {synthetic} synthetic images of {height}x{width} pixels. "
        f"{_about_intervals(physics['measures'], physics['resamples'], fewest_images(physics))}. Real halves: the same "
        "distance between two halves of the real set, which chance alone makes."
    )


def fewest_images(physics: dict) -> int:
    """The least number of images that an interval of the measures rests on; that of the smaller set without any."""
    measures = [one for one in physics["measures"].values() if one["low"] is not None]
    counts = [one.get("num_bearing", min(one["num_images"])) for one in measures]  # an older dakd wrote one of the two
    return min(counts, default=min(physics["num_images"].values()))


def _about_intervals(measures: dict[str, dict], resamples: int, num_images: int) -> str:
    if all(one["low"] is None for one in measures.values()):
        return f"No intervals: expected at least {MIN_IMAGES} images of each set that bear on a measure"
    about = f"Intervals: {resamples} resamples of the images of both sets, moved by their bias"
    return "; ".join([about, *few_images_notes(num_images)])


def _interval_head(facts: dict) -> str:
    return f"{100 * facts['confidence']:.0f} % interval"


def _short(value: float | None) -> str | None:
    """Four significant digits."""
    return None if value is None else f"{value:.4g}"


def _range(one: dict) -> str | None:
    return None if one["low"] is None or one["high"] is None else f"{one['low']:.4g} to {one['high']:.4g}"
