"""The results of a table: values, differences and times of its lines, from the jobs that are done."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dakd.ablate.measures import TableMeasure, measure_of
from dakd.ablate.plan import Cell, Job, TablePlan
from dakd.ablate.run import SECONDS, JobStore
from dakd.ablate.spec import RowSpec
from dakd.evaluate.earlier import is_of_earlier_training
from dakd.evaluate.inputs import own_tables
from dakd.metrics.bootstrap import Difference, over_seeds, paired_bootstrap
from dakd.runtime.sealed import read_json, refuse_unlisted


@dataclass(frozen=True)
class SeedValues:
    """One measure of one line: a value for each seed that is done, and the paper's number.

    interval: of the value, where there is only one and its job has written an interval.
    """

    measure: TableMeasure
    values: tuple[float, ...]
    paper: float | None
    interval: tuple[float, float] | None = None

    @property
    def mean(self) -> float | None:
        return over_seeds(self.values).mean if self.values else None

    @property
    def sd(self) -> float | None:
        return over_seeds(self.values).sd if self.values else None


@dataclass(frozen=True)
class Line:
    """One row on one dataset.

    done, expected: seeds, each as often as it is repeated.  difference: its mIoU minus the reference row's.
    seconds: of all its jobs.
    """

    row: RowSpec
    dataset: str
    entries: dict[str, SeedValues]
    done: tuple[int, ...]
    expected: tuple[int, ...]
    difference: Difference | None
    seconds: float


def collect(plan: TablePlan, store: JobStore) -> list[Line]:
    """The lines of a table, in its order, with the results of the jobs that are done."""
    table = plan.table
    pairs = [(row, dataset) for row in table.rows for dataset in table.datasets]
    if table.group_by == "data":
        pairs = [(row, dataset) for dataset in table.datasets for row in table.rows]
    lines = []
    for row, dataset in ((row, dataset) for row, dataset in pairs if row.is_on(dataset)):
        cells = cells_of(plan, row.name, dataset)
        results = [read_results(cell, store) for cell in cells]
        entries = {}
        for name in table.measures:
            measure = measure_of(name)
            values = [measure.read(result.get(measure.source, {})) for result in results]
            known = tuple(value for value in values if value is not None)
            intervals = [measure.read_interval(result.get(measure.source, {})) for result in results]
            interval = next((one for one in intervals if one is not None), None) if len(known) == 1 else None
            entries[name] = SeedValues(measure, known, table.paper_number(row, dataset, name), interval)
        are_done = {(cell.seed, cell.repeat) for cell, result in zip(cells, results) if set(result) >= set(cell.jobs)}
        wanted = [(seed, repeat) for seed in table.seeds for repeat in range(table.repeats)]
        done = tuple(seed for seed, repeat in wanted if (seed, repeat) in are_done)
        reference = [] if table.reference is None else cells_of(plan, table.reference, dataset)
        difference = None if row.name == table.reference else _difference(cells, reference, store)
        expected = tuple(seed for seed, _ in wanted)
        lines.append(Line(row, dataset, entries, done, expected, difference, _seconds(cells, store)))
    return lines


def cells_of(plan: TablePlan, row: str, dataset: str) -> list[Cell]:
    return [cell for cell in plan.cells if cell.row.name == row and cell.dataset == dataset]


def counts_of(plan: TablePlan, store: JobStore, row: str, dataset: str) -> dict[int, np.ndarray]:
    """By seed the counts (R, N, K, K) of the repeats that are done, on the same images in the same order."""
    cells = cells_of(plan, row, dataset)
    return {seed: np.stack([one for one, _ in pairs]) for seed, pairs in _pairs_by_seed(cells, cells, store).items()}


def paired_counts(
    plan: TablePlan, store: JobStore, rows: tuple[str, str], dataset: str
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By seed the counts (R, N, K, K) of two rows, of the repeats that are done in both."""
    both = _pairs_by_seed(*(cells_of(plan, row, dataset) for row in rows), store)
    return {seed: tuple(np.stack(one) for one in zip(*pairs)) for seed, pairs in both.items()}


def read_results(cell: Cell, store: JobStore) -> dict[str, dict]:
    """The results that the done jobs of a cell have written, by the measures' source."""
    results = {}
    for source, job in cell.jobs.items():
        if store.is_done(job):
            path = result_file(source, cell, store)
            results[source] = read_json(path, _remedy(store, job))
            if results[source] is None:
                raise ValueError(f"{path} does not exist, though its job is done; {_remedy(store, job)}")
    return results


def earlier_jobs(plan: TablePlan, store: JobStore) -> list[str]:
    """The folders of done jobs whose scores are of an earlier training of their student."""
    found = {}
    for cell in plan.cells:
        scores = read_results(cell, store).get("student")
        folder = store.folder_of(cell.jobs["student"]) if scores is not None else None
        if folder is not None and folder not in found:
            found[folder] = is_of_earlier_training(scores, folder)
    return [str(folder) for folder, is_earlier in found.items() if is_earlier]


def result_file(source: str, cell: Cell, store: JobStore) -> Path:
    """The file that a cell's measures of this source are read from."""
    job = cell.jobs[source]
    folder = store.folder_of(job)
    if source == "student":
        return own_tables(folder, job.config.evaluate.split) / f"{cell.row.training_set}.json"
    return folder / ("cost.json" if source == "cost" else "evaluate/generation.json")


def _difference(cells: Sequence[Cell], reference: Sequence[Cell], store: JobStore) -> Difference | None:
    """The difference of mIoU, image by image and seed by seed; None where the two have no seed or other images."""
    both = [pair for pairs in _pairs_by_seed(cells, reference, store).values() for pair in pairs]
    if not both:
        return None
    ours, theirs = (np.stack([pair[place] for pair in both]) for place in (0, 1))
    return paired_bootstrap(ours, theirs)


def _pairs_by_seed(
    cells: Sequence[Cell], reference: Sequence[Cell], store: JobStore
) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    """By seed the counts (N, K, K) of cells and of their references with the same seed and repeat, on equal images.

    Seeds and repeats of which one of the two is not done are left out.
    """
    others = {(cell.seed, cell.repeat): cell for cell in reference}
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for cell in cells:
        other = others.get((cell.seed, cell.repeat))
        counted = [None if one is None else _image_counts(one, store) for one in (cell, other)]
        if None not in counted and _have_same_images(*counted):
            found.setdefault(cell.seed, []).append((counted[0][0], counted[1][0]))
    return found


def _have_same_images(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether two cells have the same test images with the same labels, in the same order."""
    (counts, keys), (other_counts, other_keys) = one, other
    return np.array_equal(keys, other_keys) and np.array_equal(counts.sum(axis=2), other_counts.sum(axis=2))


def _image_counts(cell: Cell, store: JobStore) -> tuple[np.ndarray, np.ndarray] | None:
    """(N, K, K) counts of the test images and their (N,) keys; None before the job is done."""
    job = cell.jobs.get("student")
    path = result_file("student", cell, store).with_suffix(".images.npz") if job is not None else None
    if path is None or not store.is_done(job):
        return None
    if not path.is_file():
        raise ValueError(f"{path} does not exist, though its job is done; {_remedy(store, job)}")
    try:
        refuse_unlisted(path)
        with np.load(path) as arrays:
            return arrays["counts"], arrays["keys"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); {_remedy(store, job)}") from None


def _remedy(store: JobStore, job: Job) -> str:
    return f"remove {store.folder_of(job)}, and its zip where --results has one, and the job is done again"


def _seconds(cells: Sequence[Cell], store: JobStore) -> float:
    """The time of all jobs of a line, including those that other lines share."""
    spent: dict[str, float] = {}
    for last in (job for cell in cells for job in cell.jobs.values()):
        spent |= seconds_of_chain(last, store)
    return sum(spent.values())


def seconds_of_chain(last: Job, store: JobStore) -> dict[str, float]:
    """By name the seconds of a job and those that it builds on, as far as they are known."""
    records = {job.name: store.record(job) for job in last.chain()}
    elsewhere = read_json(store.folder_of(last) / SECONDS) or {}
    return elsewhere | {name: record["seconds"] for name, record in records.items() if record is not None}
