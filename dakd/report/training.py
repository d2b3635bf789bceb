"""The report's sections of the trainings: curves, and the teacher's sample pairs of every step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from dakd.report.charts import COLOURS, Line, line_chart
from dakd.report.pictures import Picture, embed, thumbnail
from dakd.runtime.runlog import METRICS, read_records

STAGES = {
    "stage1": "Stage 1: SAR-Net on images alone",
    "stage2": "Stage 2: Label-Net with the frozen SAR-Net",
    "stage3": "Stage 3: both nets together",
}
DDPM = {"ddpm": "DDPM: one net for images and label bits"}
# Recorded with every step, but not a quantity of the training.
_NOT_PLOTTED = ("step", "images_seen", "images_per_s")
_OWN_CHART = ("grad", "lr", "validation_miou")
_MAX_GRIDS = 120  # of a stage, as small pictures


@dataclass(frozen=True)
class TrainingCurves:
    """A training: its title, the step that runs it, its charts, and grids of samples where it has them.

    grids: the first, the middle and the last.  all_grids: those of all steps, small; evenly chosen of very many.
    """

    title: str
    step: str
    charts: list[Markup]
    grids: list[Picture]
    all_grids: list[Picture]
    num_grids: int


def teacher_trainings(run_dir: Path) -> list[TrainingCurves]:
    folder = run_dir / "train_jointnet"
    stages = DDPM if (folder / "ddpm").exists() else STAGES
    return [_read(folder / stage, title, f"train_jointnet ({stage})") for stage, title in stages.items()]


def student_trainings(run_dir: Path) -> list[TrainingCurves]:
    folders = sorted(path for path in (run_dir / "train_saross").glob("*") if path.is_dir())
    return [_read(folder, f"Trained on {folder.name}", "train_saross") for folder in folders]


def _read(folder: Path, title: str, step: str) -> TrainingCurves:
    grids = sorted((folder / "samples").glob("*.png"))
    chosen = sorted({0, len(grids) // 2, len(grids) - 1}) if grids else []
    small = []
    if len(grids) > len(chosen):
        count = min(_MAX_GRIDS, len(grids))
        small = [thumbnail(grids[round(number * (len(grids) - 1) / (count - 1))]) for number in range(count)]
    charts = _charts(folder / METRICS)
    return TrainingCurves(title, step, charts, [embed(grids[place]) for place in chosen], small, len(grids))


def _charts(path: Path) -> list[Markup]:
    """Charts of a metrics.jsonl: the losses in one, every other quantity in its own."""
    records = read_records(path)
    names = list(dict.fromkeys(name for record in records for name in record if name not in _NOT_PLOTTED))
    losses = [name for name in names if name not in _OWN_CHART]
    groups = {"loss": losses} | {name: [name] for name in names if name not in losses}
    drawings = (_chart(records, title, members) for title, members in groups.items())
    return [one for one in drawings if one is not None]


def _chart(records: list[dict], title: str, names: list[str]) -> Markup | None:
    """None without a positive value."""
    lines = []
    for place, name in enumerate(names):
        known = [record for record in records if isinstance(record.get(name), int | float)]
        values = [record[name] for record in known]
        lines.append(Line(name, [record["step"] for record in known], values, COLOURS[place % len(COLOURS)]))
    positive = [y for line in lines for y in line.y if y > 0]
    if not positive:
        return None
    # Losses and gradients fall by powers of ten; a linear axis would flatten the end of the curve.
    is_falling = title not in ("lr", "validation_miou")
    return line_chart(lines, "step", title, log_y=is_falling and max(positive) > 5 * min(positive))
