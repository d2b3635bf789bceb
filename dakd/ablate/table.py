"""A table from what is done of its plan: lines of ours beside the paper's, as Markdown, CSV and LaTeX.

What is missing stands as missing, with its reason; the lines beneath say seeds, budget, commit, device and time.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dakd.ablate.measures import Measure, measure_of
from dakd.ablate.plan import Cell, Job, Plan
from dakd.ablate.run import Store
from dakd.ablate.spec import RowSpec
from dakd.metrics.bootstrap import Difference, over_seeds, paired_bootstrap
from dakd.runtime.files import write_text
from dakd.runtime.runlog import format_duration

MISSING = "missing"
_RESULT_FILES = {"cost": "cost.json", "pairs": "evaluate/generation.json"}


@dataclass(frozen=True)
class Entry:
    """One measure of one line: a value for each seed that is done.

    interval: of the only value, where its job has written one.
    """

    measure: Measure
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
    """One row on one data set.  done, wanted: seeds.  difference: of mIoU to the reference row's."""

    row: RowSpec
    dataset: str
    entries: dict[str, Entry]
    done: tuple[int, ...]
    wanted: tuple[int, ...]
    difference: Difference | None
    seconds: float


def collect(plan: Plan, store: Store) -> list[Line]:
    """The lines of a table, in its order, from all jobs that are done."""
    table = plan.table
    pairs = [(row, dataset) for row in table.rows for dataset in table.datasets]
    if table.group_by == "data":
        pairs = [(row, dataset) for dataset in table.datasets for row in table.rows]
    lines = []
    for row, dataset in pairs:
        cells = [cell for cell in plan.cells if cell.row.name == row.name and cell.dataset == dataset]
        results = [read_results(cell, store) for cell in cells]
        entries = {}
        for name in table.measures:
            measure = measure_of(name)
            values = [measure.read(result.get(measure.source, {})) for result in results]
            known = tuple(value for value in values if value is not None)
            beside = [measure.read_interval(result.get(measure.source, {})) for result in results]
            interval = next((one for one in beside if one is not None), None) if len(known) == 1 else None
            entries[name] = Entry(measure, known, table.paper_number(row, dataset, name), interval)
        done = tuple(cell.seed for cell, result in zip(cells, results) if set(result) >= set(cell.jobs))
        reference = [
            cell for cell in plan.cells if cell.row.name == table.reference and cell.dataset == dataset
        ]
        difference = None if row.name == table.reference else _difference(cells, reference, store)
        lines.append(Line(row, dataset, entries, done, table.seeds, difference, _seconds(cells, store)))
    return lines


def read_results(cell: Cell, store: Store) -> dict[str, dict]:
    """What the done jobs of a cell have written, by the measures' source."""
    results = {}
    for source, job in cell.jobs.items():
        if store.is_done(job):
            file = _RESULT_FILES.get(source, f"evaluate/{cell.row.training_set}.json")
            results[source] = json.loads((store.place(job) / file).read_text())
    return results


def _difference(cells: Sequence[Cell], reference: Sequence[Cell], store: Store) -> Difference | None:
    """Of mIoU, image by image and seed by seed, where both have the same images."""
    by_seed = {cell.seed: cell for cell in reference}
    both = []
    for cell in cells:
        other = by_seed.get(cell.seed)
        counted = [None if one is None else _image_counts(one, store) for one in (cell, other)]
        if None not in counted and _are_of_the_same(*counted):
            both.append([counts for counts, _ in counted])
    if not both:
        return None
    ours, theirs = (np.stack([pair[place] for pair in both]) for place in (0, 1))
    return paired_bootstrap(ours, theirs)


def _are_of_the_same(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether two cells have the same test images with the same labels, in the same order."""
    (counts, keys), (other_counts, other_keys) = one, other
    return np.array_equal(keys, other_keys) and np.array_equal(counts.sum(axis=2), other_counts.sum(axis=2))


def _image_counts(cell: Cell, store: Store) -> tuple[np.ndarray, np.ndarray] | None:
    """(N, K, K) counts of the test images and their (N,) keys, or None where they are not there."""
    job = cell.jobs.get("student")
    path = store.place(job) / "evaluate" / f"{cell.row.training_set}.images.npz" if job is not None else None
    if path is None or not store.is_done(job) or not path.is_file():
        return None
    with np.load(path) as arrays:
        return arrays["counts"], arrays["keys"]


def _seconds(cells: Sequence[Cell], store: Store) -> float:
    """What a line has cost: all its jobs, those too that other lines share."""
    jobs: dict[str, Job] = {job.name: job for cell in cells for last in cell.jobs.values() for job in last.chain()}
    records = [store.record(job) for job in jobs.values()]
    return sum(record["seconds"] for record in records if record is not None)


# --- texts ------------------------------------------------------------------------------------------------------------


def write_table(
    plan: Plan,
    store: Store,
    folder: str | Path,
    failed: dict[str, str] | None = None,
    absent: dict[str, str] | None = None,
) -> Path:
    """Write table.md, table.csv, table.tex and seeds.csv into a folder; the path of table.md.

    failed: why, by the name of the jobs that failed.  absent: why, by the rows that are not in the plan.
    """
    folder = Path(folder)
    lines = collect(plan, store)
    write_text(folder / "table.csv", _csv(plan, lines))
    write_text(folder / "seeds.csv", _seeds_csv(plan, store))
    write_text(folder / "table.tex", _latex(plan, lines))
    write_text(folder / "table.md", markdown(plan, lines, store, failed or {}, absent or {}))
    return folder / "table.md"


def markdown(
    plan: Plan, lines: Sequence[Line], store: Store, failed: dict[str, str], absent: dict[str, str]
) -> str:
    header, rows = grid(plan, lines)
    parts = [f"# {plan.table.title}", _markdown_table(header, rows)]
    if plan.table.reference is not None:
        parts.append(
            f"Difference: mIoU minus that of \"{plan.table.reference}\" with the same seed, over the same images; in "
            "brackets the 95 % interval of a paired bootstrap over the images, means over the seeds."
        )
    if plan.table.note:
        parts.append(plan.table.note.strip())
    parts.append("\n".join(f"- {line}" for line in facts(plan, lines, store)))
    missing = [
        f"- {_title(line)}: seed {', '.join(str(seed) for seed in line.wanted if seed not in line.done)}"
        for line in lines
        if line.done != line.wanted
    ]
    if missing:
        parts.append("Missing (the same command goes on):\n\n" + "\n".join(missing))
    if absent:
        parts.append("Absent:\n\n" + "\n".join(f"- {name}: {why}" for name, why in absent.items()))
    if failed:
        parts.append("Failed:\n\n" + "\n".join(f"- {name}: {why}" for name, why in failed.items()))
    return "\n\n".join(parts) + "\n"


def grid(plan: Plan, lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, as text: ours as mean and standard deviation over the seeds, the paper's number beside it."""
    table = plan.table
    shown_paper = {name for name in table.measures if any(line.entries[name].paper is not None for line in lines)}
    header = [*(["data"] if table.data else []), "method", *table.rows[0].head]
    for name in table.measures:
        header += [measure_of(name).title, *(["paper"] if name in shown_paper else [])]
    header += ["difference"] if table.reference is not None else []
    header += ["time"]
    rows = []
    for line in lines:
        row = [*([line.dataset] if table.data else []), line.row.name, *line.row.head.values()]
        for name, entry in line.entries.items():
            row.append(_value(entry, line))
            row += [_plain(entry.paper, entry.measure)] if name in shown_paper else []
        row += [_difference_text(line, table.reference)] if table.reference is not None else []
        rows.append([*row, format_duration(line.seconds) if line.seconds else "-"])
    return header, rows


def facts(plan: Plan, lines: Sequence[Line], store: Store) -> list[str]:
    """Seeds, budget, commits, devices: what a reader needs to judge the numbers."""
    records = [record for record in (store.record(job) for job in plan.jobs) if record is not None]
    configs = {job.config.name: job.config for job in plan.jobs}
    said = [f"seeds {', '.join(str(seed) for seed in plan.table.seeds)}; ± is the standard deviation over them"]
    for config in configs.values():
        said.append(f"{config.name}: {budget(config, plan.table.sources)}")
    if "cost" in plan.table.sources:
        sizes = sorted({"x".join(map(str, config.train_saross.crop)) for config in configs.values()})
        said.append(f"costs: of one image of {', '.join(sizes)}; time: the mean of {plan.table.runs} passes")
    for name, title in (("commit", "commit"), ("device", "measured on")):
        found = sorted({record[name] for record in records})
        said.append(f"{title} {', '.join(found) if found else 'nothing yet'}")
    said += _image_counts_of_pairs(plan, store)
    said.append(f"{len(records)} of {len(plan.jobs)} jobs are done; they took {_total(records)}")
    said.append("last column: time of all steps that a line needs, those too that lines share")
    return said


def _image_counts_of_pairs(plan: Plan, store: Store) -> list[str]:
    """How many images the distances between sets are of; their intervals stand in brackets."""
    told = []
    for cell in plan.cells:
        result = read_results(cell, store).get("pairs")
        if result is None:
            continue
        counts = result["physics"]["num_images"]
        line = f"distances: {counts['synthetic']} generated and {counts['real']} training images"
        if "absent" not in result["fidelity"]:
            line += f"; of a net's features: {result['fidelity']['num_images']} of each"
        told.append(line + "; 95 % bootstrap intervals over the images: in brackets, or by seed in seeds.csv")
    return list(dict.fromkeys(told))


def budget(config, sources: set[str]) -> str:
    """The size and the budget of an experiment, in one line."""
    teacher, pairs, student = config.train_jointnet, config.generate, config.train_saross
    steps = "+".join(str(stage.steps) for stage in (teacher.stage1, teacher.stage2, teacher.stage3))
    said = [f"images {teacher.crop[0]}x{teacher.crop[1]}"]
    said.append(f"teacher {steps} steps of {teacher.global_batch}")
    said.append(f"{pairs.num_samples} pairs, {pairs.sampling_steps} sampling steps")
    if "student" in sources:
        length = f"{student.steps} steps" if student.steps else f"{student.epochs} epochs"
        said.append(f"student {length} of {student.global_batch}")
    return ", ".join(said)


def _total(records: Sequence[dict]) -> str:
    return format_duration(sum(record["seconds"] for record in records))


def _title(line: Line) -> str:
    return f"{line.dataset}, {line.row.name}" if line.dataset else line.row.name


def _value(entry: Entry, line: Line) -> str:
    if entry.mean is None:
        return "absent" if line.done else MISSING
    text = _plain(entry.mean, entry.measure)
    if entry.sd is not None:
        text += f" ± {entry.sd:.{entry.measure.digits}f}"
    if entry.interval is not None:
        text += f" [{', '.join(_plain(end, entry.measure) for end in entry.interval)}]"
    return text if len(entry.values) == len(line.wanted) else f"{text} (n={len(entry.values)})"


def _plain(value: float | None, measure: Measure) -> str:
    return "-" if value is None else f"{value:.{measure.digits}f}"


def _difference_text(line: Line, reference: str | None) -> str:
    if line.row.name == reference or line.difference is None:
        return "-"
    numbers = (line.difference.value, line.difference.low, line.difference.high)
    if None in numbers:
        return "-"
    value, low, high = (100 * number for number in numbers)
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[place]) for row in escaped) for place in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in escaped]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _csv(plan: Plan, lines: Sequence[Line]) -> str:
    """One line a measure: mean, sd, number of seeds, the paper's."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    heads = list(plan.table.rows[0].head)
    writer.writerow(["data", "method", *heads, "measure", "unit", "mean", "sd", "seeds", "seeds_wanted", "paper"])
    for line in lines:
        for name, entry in line.entries.items():
            numbers = [entry.mean, entry.sd, len(entry.values), len(line.wanted), entry.paper]
            writer.writerow([line.dataset, line.row.name, *line.row.head.values(), name, entry.measure.title, *numbers])
    return stream.getvalue()


def _seeds_csv(plan: Plan, store: Store) -> str:
    """Every number as it came: one line a cell and measure."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["data", "method", "seed", "measure", "value", "low", "high", "job", "commit"])
    for cell in plan.cells:
        results = read_results(cell, store)
        for name in plan.table.measures:
            measure = measure_of(name)
            value = measure.read(results.get(measure.source, {}))
            if value is not None:
                job = cell.jobs[measure.source]
                commit = store.record(job)["commit"]
                interval = measure.read_interval(results.get(measure.source, {})) or (None, None)
                told = [cell.dataset, cell.row.name, cell.seed, name, value, *interval, job.name, commit]
                writer.writerow(told)
    return stream.getvalue()


_TEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "±": r"$\pm$", "\\": r"\textbackslash{}", "$": r"\$",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$"}  # fmt: skip


def _latex(plan: Plan, lines: Sequence[Line]) -> str:
    """A booktabs tabular; the best value of each column in bold where one way is better."""
    header, rows = grid(plan, lines)
    words = 1 + len(plan.table.rows[0].head) + bool(plan.table.data)
    body = [[_tex(cell) for cell in row] for row in rows]
    for place, best in _best_cells(plan, lines, header):
        body[best][place] = rf"\textbf{{{body[best][place]}}}"
    alignment = "l" * words + "r" * (len(header) - words)
    head = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", " & ".join(map(_tex, header)) + r" \\", r"\midrule"]
    return "\n".join([*head, *(" & ".join(row) + r" \\" for row in body), r"\bottomrule", r"\end{tabular}"]) + "\n"


def _best_cells(plan: Plan, lines: Sequence[Line], header: Sequence[str]) -> list[tuple[int, int]]:
    """(column, line) of the best of ours in each data set."""
    best, place = [], 1 + len(plan.table.rows[0].head) + bool(plan.table.data)
    for name in plan.table.measures:
        measure = measure_of(name)
        for dataset in plan.table.datasets:
            means = {
                number: line.entries[name].mean
                for number, line in enumerate(lines)
                if line.dataset == dataset and line.entries[name].mean is not None
            }
            if measure.better is not None and len(means) > 1:
                pick = max if measure.better == "up" else min
                best.append((place, pick(means, key=lambda number: means[number])))
        place += 2 if place + 1 < len(header) and header[place + 1] == "paper" else 1
    return best


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
