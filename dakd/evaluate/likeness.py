"""How like the real images the synthetic ones are: fidelity.py and physics.py together, for the step and its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dakd.config import Config
from dakd.data.shards import ShardSet
from dakd.evaluate import html
from dakd.evaluate.extractors import Extractor
from dakd.evaluate.fidelity import compare_fidelity
from dakd.evaluate.physics import compare_physics, measure_set
from dakd.evaluate.svg import COLOURS, Line, line_chart
from dakd.evaluate.windows import window_size
from dakd.metrics.tables import format_table
from dakd.runtime.distributed import broadcast, device, is_main, rank, world_size

Rows = list[Sequence[str | float | int | None]]


def compare_images(
    cfg: Config, run_dir: Path, real: ShardSet, synthetic: ShardSet, extractor: Extractor | None
) -> dict[str, dict]:
    """{"fidelity": ..., "physics": ...} of a run's sets; every rank takes part and gets them."""
    size = window_size(synthetic)
    measured = [
        measure_set(one, size, cfg.seed, rank(), world_size(), device(), f"physics {name}")
        for name, one in (("real", real), ("synthetic", synthetic))
    ]
    physics = broadcast(compare_physics(*measured, real.classes, size, cfg.seed) if is_main() else None)
    cache = run_dir / "evaluate" / "features"
    fidelity = compare_fidelity(cfg.evaluate.fidelity, cfg.seed, real, synthetic, extractor, cache)
    return {"fidelity": fidelity, "physics": physics}


def format_likeness(statistics: dict) -> str:
    """Both tables as text; statistics: what `evaluate/generation.json` holds."""
    parts = [format_table(*physics_rows(statistics["physics"])), physics_note(statistics["physics"])]
    fidelity = statistics["fidelity"]
    if "absent" in fidelity:
        parts.append(f"FID and its relatives: not measured ({fidelity['absent']})")
    else:
        parts += [format_table(*fidelity_rows(fidelity)), *fidelity_notes(fidelity)]
    return "\n\n".join(parts)


def fidelity_section(statistics: dict) -> list[str]:
    """The report's HTML; empty where an older evaluation has measured neither."""
    if "physics" not in statistics:
        return []
    fidelity, physics = statistics["fidelity"], statistics["physics"]
    parts = [html.subheading("Distance to real images: features of a net")]
    if "absent" in fidelity:
        parts.append(html.paragraph(f"FID and its relatives: not measured ({fidelity['absent']}).", "note"))
    else:
        parts.append(html.table(*fidelity_rows(fidelity)))
        parts += [html.paragraph(note, "note") for note in fidelity_notes(fidelity)]
    parts += [
        html.subheading("Distance to real images: what such a net cannot see"),
        html.table(*physics_rows(physics)),
        html.paragraph(physics_note(physics), "note"),
    ]
    drawings = [_spectrum_chart(physics["curves"]["spectrum"]), _lag_chart(physics["curves"]["autocorrelation"])]
    return [*parts, html.charts([one for one in drawings if one])]


def fidelity_rows(fidelity: dict) -> tuple[list[str], Rows]:
    rows: Rows = [
        [one["title"], _short(one["value"]), _range(one["low"], one["high"]), fidelity["num_images"]]
        for one in fidelity["metrics"].values()
    ]
    return ["synthetic against real images", "value", _confidence(fidelity), "N of each"], rows


def fidelity_notes(fidelity: dict) -> list[str]:
    halves = fidelity["halves"]
    name = next(iter(fidelity["metrics"].values()))["title"]
    notes = [
        f"{name} at {halves['num_images']} images: synthetic from real {_short(halves['synthetic'])}, real from other "
        f"real {_short(halves['real'])}.",
        f"Intervals: {fidelity['resamples']} resamples of the images of both sets, moved by their bias; the bias of a "
        f"finite N stays in the value. {fidelity['note']}".strip(),
    ]
    scores = [one for one in fidelity["metrics"].values() if "real" in one]
    if scores:
        told = ", ".join(f"{_short(one['real'])} ({one['title']})" for one in scores)
        notes.append(f"Inception scores of the real images: {told}.")
    return notes


def physics_rows(physics: dict) -> tuple[list[str], Rows]:
    rows: Rows = []
    for one in physics["measures"].values():
        title = f"{one['title']}, {one['unit']}" if one["unit"] else one["title"]
        told = [_short(one[field]) for field in ("real", "synthetic", "distance")]
        rows.append([title, *told, _range(one["low"], one["high"]), _short(one["yardstick"])])
    return ["measure", "real", "synthetic", "distance", _confidence(physics), "real halves"], rows


def physics_note(physics: dict) -> str:
    real, synthetic = physics["num_images"].values()
    height, width = physics["size"]
    return (
        f"{real} real and {synthetic} synthetic images of {height}x{width} pixels; intervals from "
        f"{physics['resamples']} resamples of the images of both; real halves: the same distance between two halves of "
        f"the real set, which chance alone makes."
    )


def _confidence(facts: dict) -> str:
    return f"{100 * facts['confidence']:.0f} % interval"


def _short(value: float | None) -> str | None:
    """Four significant digits."""
    return None if value is None else f"{value:.4g}"


def _range(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _spectrum_chart(curves: dict) -> str:
    known = [values for name in ("real", "synthetic") for values in curves[name]]
    if any(value is None or value <= 0 for value in known):
        return ""
    lines = [_line(name, curves["cycles_per_pixel"], curves[name]) for name in ("real", "synthetic")]
    return line_chart(lines, "cycles a pixel", "power, greys squared", log_y=True)


def _lag_chart(curves: dict) -> str:
    """Lags along the rows, and down the columns."""
    if any(value is None for name in ("real", "synthetic") for value in curves[name]):
        return ""
    half = len(curves["lags"]) // 2
    lags = list(range(1, half + 1))
    lines = [
        Line(f"{name}, {way}", lags, curves[name][part], COLOURS[colour], dashed=name == "synthetic")
        for name, way, part, colour in (
            ("real", "rows", slice(half), 0),
            ("real", "columns", slice(half, None), 5),
            ("synthetic", "rows", slice(half), 1),
            ("synthetic", "columns", slice(half, None), 4),
        )
    ]
    return line_chart(lines, "lag, pixels", "autocorrelation of speckle")


def _line(name: str, x: list[float], y: list[float]) -> Line:
    place = ("real", "synthetic").index(name)
    return Line(name, x, y, COLOURS[place], dashed=bool(place))
