"""`launch/ablate.py` and `dakd ablate`: one line that makes a table, or resumes one."""

from __future__ import annotations

import argparse
from collections.abc import Container, Sequence
from functools import partial

from dakd.ablate.figures import draw_figures
from dakd.ablate.kept_results import keep_results, take_results
from dakd.ablate.measures import measure_of
from dakd.ablate.plan import TablePlan, make_plan
from dakd.ablate.run import JobStore, Unfinished, work
from dakd.ablate.spec import TableSpec, build_table, load_table, nearest_row, table_file, without_absent
from dakd.ablate.table import refuse_other_tables, table_folder, write_table
from dakd.pipeline import Stopped
from dakd.runtime.console import show
from dakd.runtime.place import refuse_launcher
from dakd.runtime.slurm import array_task
from dakd.runtime.stopping import INTERRUPTED, Preempted
from dakd.shipped import find_file, not_found


def make_table(args: argparse.Namespace) -> int:
    """Make a table, or resume one; the exit status: 0, or 1 where a job failed.

    args: of `dakd ablate`.  Raises Preempted after a stop request, and Stopped after Ctrl-C.
    """
    try:
        return _run(args)
    except Stopped as stopped:
        if stopped.exit_status == INTERRUPTED:  # nobody is to start the command again by itself
            raise
        raise Preempted(str(stopped)) from stopped


def _run(args: argparse.Namespace) -> int:
    file = table_file(args.config)
    table = narrowed(load_table(file), args.row, args.data, args.seeds, args.reference, args.measure)
    table = with_bases(table, args.base)
    if args.repeats is not None:
        table = build_table(table.model_dump() | {"repeats": args.repeats}, f"the table with --repeats {args.repeats}")
    if args.runs is not None:
        table = build_table(table.model_dump() | {"runs": args.runs}, f"the table with --runs {args.runs}")
    if args.small and table.small_measures is not None:
        table = table.model_copy(update={"measures": table.small_measures})
    table, absent = without_absent(table)
    if args.reference in absent:
        raise ValueError(f"--reference {args.reference}: {absent[args.reference]}")
    plan = make_plan(table, file.parent, args.small, args.overrides)
    store, folder = JobStore(args.store), args.out or table_folder(file)
    refuse_other_tables(folder, file)
    unfinished = Unfinished()
    if args.results is not None:
        take_results(plan, store, args.results)
    if not args.status:
        refuse_launcher("ablate")
        show(f"ablate: {len(plan.cells)} cells, {len(plan.jobs)} jobs, {_num_done(plan, store)} of them done")
        place, count = array_task()
        first, after_each = place * len(plan.jobs) // count, partial(_keep, plan, store, args)
        unfinished = work(plan, store, args.processes, first, after_each)
    _keep(plan, store, args)
    path = write_table(plan, store, folder, unfinished.failed, absent, file)
    show(path.read_text())
    if args.figures:
        for picture in draw_figures(plan, store, folder / "figures"):
            show(f"ablate: {picture}")
    show(f"ablate: {_num_done(plan, store)} of {len(plan.jobs)} jobs are done; {path}, .csv, .tex")
    return 1 if unfinished.failed else 0


def narrowed(
    table: TableSpec,
    rows: Sequence[str] = (),
    data: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    reference: str | None = None,
    measures: Sequence[str] = (),
) -> TableSpec:
    """The table with only these rows, datasets and seeds; ValueError for names that it does not have.

    reference: a row in place of the table's. The table's is dropped where it is not among the chosen rows, or where no
    measure is one of students.  measures: in place of the table's and of those for small experiments.
    """
    kept = table.model_dump()
    if rows:
        kept["rows"] = [nearest_row(table, name).model_dump() for name in rows]
        kept["reference"] = table.reference if table.reference in rows else None
        kept["curve"] = table.curve if table.curve in rows else None
        for row in kept["rows"]:
            if (start := row["start_from"]) is not None and start not in rows:
                raise ValueError(f"row {row['name']!r} starts from {start!r}; name that one too: --row {start!r}")
    if reference is not None:
        kept["reference"] = nearest_row(table, reference).name
    if unknown := [name for name in data if name not in table.data]:
        raise ValueError(f"the table has no dataset {', '.join(unknown)}; it has {_data_names(table)}")
    for name in data:
        if (other := table.data[name].test_on) is not None and other not in data:
            raise ValueError(f"dataset {name!r} is tested on {other!r}; name that one too: --data {other!r}")
    if data:
        kept["data"] = {name: kept["data"][name] for name in data}
        kept["curve"] = kept["curve"] if len(data) > 1 else None
        on_these = [row | {"data": tuple(name for name in row["data"] if name in data)} for row in kept["rows"]]
        kept["rows"] = [new for new, row in zip(on_these, kept["rows"]) if new["data"] or not row["data"]]
        _keep_earlier(kept)
    if rows or data:
        _drop_unused(kept, table)
    if seeds:
        kept["seeds"] = tuple(seeds)
    if measures:
        kept |= {"measures": tuple(measures), "small_measures": None}
        if reference is None and not any(measure_of(name).source == "student" for name in measures):
            kept["reference"] = None  # differences are between students' scores
        if not any(measure_of(name).source == "student" for name in measures):
            kept |= {"contrasts": (), "curve": None}
    for row in kept["rows"]:
        row["paper"] = _shown_of_paper(row["paper"], kept["data"], kept["measures"])
    return build_table(kept, "the chosen part of the table")


def _keep_earlier(kept: dict) -> None:
    """Drop the earlier datasets that no row needs; ValueError for one that a row needs and the table has not kept."""
    for name, spec in kept["data"].items():
        if (earlier := spec["earlier"]) is None or earlier in kept["data"]:
            continue
        starting = [row for row in kept["rows"] if row["start_from"] is not None]
        if any(not row["data"] or name in row["data"] for row in starting):
            raise ValueError(f"students on {name!r} start from those on {earlier!r}; name it too: --data {earlier!r}")
        kept["data"][name] = spec | {"earlier": None}


def _drop_unused(kept: dict, table: TableSpec) -> None:
    """Leave the rows and datasets that are not kept out of panels and contrasts; Holm's p stays over all contrasts."""
    names = {row["name"] for row in kept["rows"]}
    panels = {title: tuple(name for name in of_panel if name in names) for title, of_panel in table.panels.items()}
    kept["panels"] = {title: of_panel for title, of_panel in panels.items() if of_panel}
    contrasts = []
    for one in kept["contrasts"]:
        on = tuple(name for name in one["data"] if name in kept["data"])
        if {one["of"], *one["to"]} <= names and (on or not one["data"]):
            contrasts.append(one | {"data": on})
    kept |= {"contrasts": contrasts, "num_compared": table.comparisons if contrasts else None}


def _shown_of_paper(numbers: dict, datasets: Container[str], measures: Container[str]) -> dict:
    """The paper's numbers of a row, only those of these datasets and measures."""
    shown = {}
    for name, value in numbers.items():
        if isinstance(value, dict) and name in datasets:
            shown[name] = {measure: number for measure, number in value.items() if measure in measures}
        elif not isinstance(value, dict) and name in measures:
            shown[name] = value
    return shown


def with_bases(table: TableSpec, bases: Sequence[str]) -> TableSpec:
    """The table on other experiments: FILE for all datasets, or DATA=FILE for one."""
    for text in bases:
        name, separator, file = text.rpartition("=")
        found = find_file(file)
        if found is None:
            raise ValueError(f"--base {text}: {not_found(file, 'configuration')}")
        path = found.resolve()
        if separator and name not in table.data:
            raise ValueError(f"--base {text}: the table has no dataset {name!r}; it has {_data_names(table)}")
        if not table.data:
            table = table.model_copy(update={"base": str(path)})
            continue
        changed = {key: one.model_copy(update={"base": str(path)}) for key, one in table.data.items()}
        table = table.model_copy(update={"data": changed if not separator else table.data | {name: changed[name]}})
    return table


def _data_names(table: TableSpec) -> str:
    return ", ".join(table.data) or "a single dataset, without a name"


def _keep(plan: TablePlan, store: JobStore, args: argparse.Namespace) -> None:
    if args.results is not None:
        keep_results(plan, store, args.results)


def _num_done(plan: TablePlan, store: JobStore) -> int:
    """The jobs that are done, and those that no result needs any more."""
    return len(plan.jobs) - len(store.remaining(plan))
