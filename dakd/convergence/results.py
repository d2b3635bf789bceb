"""What a study ends with: the table, the section for the config, a page with charts, and a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dakd.convergence import words
from dakd.convergence.choice import Bound, Tolerances, beyond, bounds_of, cheapest, is_within, nearest
from dakd.convergence.page import write_page
from dakd.convergence.record import GENERATE, Record, setting_of
from dakd.convergence.settings import Setting
from dakd.convergence.sheet import draw_sheet
from dakd.convergence.sweep import Start
from dakd.generate.teacher import Teacher
from dakd.metrics.tables import format_table
from dakd.runtime.files import write_text
from dakd.runtime.runlog import say


def write_results(
    record: Record, settings: Sequence[Setting], teacher: Teacher, start: Start, tolerances: Tolerances
) -> bool:
    """Judge the measured settings, write the files and print the table; whether a setting is within tolerance.

    Without one there is no generate.yaml: that of an earlier call is removed.
    """
    has_real = record.content["real"] is not None
    bounds = bounds_of(record.content["real" if has_real else "halves"], has_real)
    num_judged = sum(bound.largest is not None for bound in bounds.values())
    rows = [_judged(record.row(setting), bounds, tolerances, has_real) for setting in settings]
    chosen = cheapest(rows, tolerances)
    shown = chosen or nearest(rows)
    _record(record, rows, bounds, tolerances, chosen)
    _write_section(record, chosen, num_judged)
    draw_sheet(record, teacher, start, setting_of(shown))
    lines = {
        "heading": words.heading(record.made_with, record.content["fine"]),
        "notes": words.notes(tolerances, bounds, has_real),
        "verdict": words.verdict(shown, tolerances, record.made_with["reference_steps"]),
    }
    table = words.table_rows(rows, num_judged, record.content["fine"]["rms"])
    page = write_page(record.path.parent, rows, shown, table, bounds, tolerances, lines, has_real)
    for part in (*lines["heading"], format_table(words.HEADER, table), *lines["notes"], *lines["verdict"]):
        say(part)
    say(f"convergence: results in {page}" + (f"; the section for your experiment in {GENERATE}" if chosen else ""))
    return chosen is not None


def _judged(
    row: Mapping[str, Any], bounds: Mapping[str, Bound], tolerances: Tolerances, has_real: bool
) -> dict[str, Any]:
    row = {**row, "beyond": beyond(row["real" if has_real else "physics"], bounds)}
    return row | {"within": is_within(row, tolerances)}


def _record(
    record: Record,
    rows: Sequence[Mapping[str, Any]],
    bounds: Mapping[str, Bound],
    tolerances: Tolerances,
    chosen: Mapping[str, Any] | None,
) -> None:
    names = (*Setting._fields, "calls", "beyond", "within")
    record.write(
        tolerances=tolerances._asdict(),
        bounds={key: bound._asdict() for key, bound in bounds.items()},
        judged=[{name: row[name] for name in names} for row in rows],
        chosen=chosen and setting_of(chosen)._asdict(),
    )


def _write_section(record: Record, chosen: Mapping[str, Any] | None, num_judged: int) -> None:
    path = record.path.with_name(GENERATE)
    if chosen is None:
        path.unlink(missing_ok=True)
    else:
        write_text(path, words.yaml_text(chosen, record.made_with, num_judged))
