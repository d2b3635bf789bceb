"""The report's sections of the trainings: curves, and the teacher's sample pairs of every step."""

from __future__ import annotations

from pathlib import Path

from dakd.evaluate import html
from dakd.evaluate.svg import COLOURS, Line, line_chart
from dakd.runtime.runlog import read_records

STAGES = {
    "stage1": "Stage 1: SAR-Net on images alone",
    "stage2": "Stage 2: Label-Net beside the frozen SAR-Net",
    "stage3": "Stage 3: both nets together",
}
DDPM = {"ddpm": "DDPM: one net for images and label bits"}
# Recorded with every step, but not a quantity of the training.
_NOT_PLOTTED = ("step", "images_seen", "images_per_s")
_MAX_GRIDS = 120  # of a stage, as small pictures


def teacher(run_dir: Path) -> list[str]:
    parts = []
    is_ddpm = (run_dir / "train_jointnet" / "ddpm").exists()
    for stage, title in (DDPM if is_ddpm else STAGES).items():
        folder = run_dir / "train_jointnet" / stage
        parts += [html.subheading(title), *_curves(folder / "metrics.jsonl", f"train_jointnet ({stage})")]
        parts += _grids(sorted((folder / "samples").glob("*.png")))
    return parts


def students(run_dir: Path) -> list[str]:
    folders = sorted(path for path in (run_dir / "train_saross").glob("*") if path.is_dir())
    if not folders:
        return [html.missing("Curves of the students", "train_saross")]
    parts = []
    for folder in folders:
        parts += [html.subheading(f"Trained on {folder.name}"), *_curves(folder / "metrics.jsonl", "train_saross")]
    return parts


def _grids(grids: list[Path]) -> list[str]:
    """The first, the middle and the last grid of samples; those of all steps, small, behind a line that opens them."""
    chosen = sorted({0, len(grids) // 2, len(grids) - 1}) if grids else []
    shown = [html.figure(grids[place], f"samples, {grids[place].stem}") for place in chosen]
    parts = [html.figures(shown)] if shown else []
    if len(grids) > len(chosen):
        count = min(_MAX_GRIDS, len(grids))
        places = [round(number * (len(grids) - 1) / (count - 1)) for number in range(count)]
        of = "all" if count == len(grids) else f"{count} evenly spaced of"
        tiles = [html.thumbnail(grids[place], grids[place].stem) for place in places]
        parts.append(html.folded_parts(f"Samples of {of} {len(grids)} steps", html.small_multiples(tiles)))
    return parts


def _curves(path: Path, step: str) -> list[str]:
    """Charts of a metrics.jsonl: the losses in one, every other quantity in its own."""
    records = read_records(path)
    names = list(dict.fromkeys(name for record in records for name in record if name not in _NOT_PLOTTED))
    if not names:
        return [html.missing("Curves", step)]
    losses = [name for name in names if name not in ("grad", "lr")]
    groups = [("loss", losses), *((name, [name]) for name in names if name not in losses)]
    drawings = [_training_chart(records, title, members) for title, members in groups if members]
    return [html.charts([one for one in drawings if one])]


def _training_chart(records: list[dict], title: str, names: list[str]) -> str:
    lines = []
    for place, name in enumerate(names):
        known = [record for record in records if isinstance(record.get(name), int | float)]
        values = [record[name] for record in known]
        lines.append(Line(name, [record["step"] for record in known], values, COLOURS[place % len(COLOURS)]))
    positive = [y for line in lines for y in line.y if y > 0]
    if not positive:
        return ""
    # Losses and gradients fall by powers of ten; a linear axis would flatten the end of the curve.
    return line_chart(lines, "step", title, log_y=title != "lr" and max(positive) > 5 * min(positive))
