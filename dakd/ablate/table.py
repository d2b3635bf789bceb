"""The files of a table: our results next to the paper's numbers, as Markdown, CSV and LaTeX.

Missing results are listed with their reasons; the lines below the table give seeds, budget, commit, device and time.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dakd.ablate.contrasts import HEADER as CONTRAST_HEADER
from dakd.ablate.contrasts import contrast_results, contrast_rows, open_contrasts
from dakd.ablate.curve import HEADER as SAVING_HEADER
from dakd.ablate.curve import saving_rows, savings
from dakd.ablate.measures import TableMeasure, measure_of
from dakd.ablate.plan import TablePlan
from dakd.ablate.results import Line, SeedValues, collect, earlier_jobs, read_results
from dakd.ablate.run import JobStore
from dakd.config import Config, TrainSarossConfig
from dakd.evaluate.pairs import fewest_images
from dakd.metrics.bootstrap import few_images_notes, unequal_classes_notes
from dakd.names import file_part, hashed, same_file
from dakd.runtime.files import write_text
from dakd.runtime.runlog import format_duration, say
from dakd.runtime.sealed import read_json, write_json

MISSING = "missing"
TABLES = Path("runs/ablate")
_SOURCE = "source.json"
_OF_EARLIER = (
    "Scores of an earlier training of their student; remove these folders, and their zips where --results has some, "
    "and they are made again"
)
_TABLES = ("table.md", "table.csv", "table.tex", "seeds.csv")


def table_folder(file: str | Path) -> Path:
    """The folder in runs/ablate of a table's YAML: its stem, with digits of a hash where another file has that one."""
    file = Path(file).resolve()
    name = file_part(file.stem)
    if same_file(name) == "store" or _source_of(TABLES / name) not in (None, file):
        name = hashed(file.stem, str(file))
        say(f"ablate: this table goes to {TABLES / name}, for {TABLES / file.stem} is taken")
    return TABLES / name


def refuse_other_tables(folder: Path, file: Path) -> None:
    """ValueError where a folder holds the table of another YAML, or tables that dakd did not write.  file: the YAML."""
    source = _source_of(folder)
    if source not in (None, file.resolve()):
        raise ValueError(f"{folder} has the table of {source}, not of {file}; give another folder by --out")
    if not (folder / _SOURCE).exists() and (others := [name for name in _TABLES if (folder / name).exists()]):
        raise ValueError(
            f"{folder} has {', '.join(others)} and no {_SOURCE}, so dakd did not write them; give another folder by "
            "--out, or move them away"
        )


def _source_of(folder: Path) -> Path | None:
    """The YAML of the table that lies in a folder; None where there is none, or where the YAML is gone."""
    found = read_json(folder / _SOURCE, f"remove {folder}; the table is made again from the store")
    source = None if found is None else Path(found["table"])
    return source if source is not None and source.is_file() else None


def write_table(
    plan: TablePlan,
    store: JobStore,
    folder: str | Path,
    failed: dict[str, str] | None = None,
    absent: dict[str, str] | None = None,
    file: Path | None = None,
) -> Path:
    """Write table.md, table.csv, table.tex and seeds.csv into a folder; the path of table.md.

    failed: the errors of failed jobs, by name.  absent: why rows are not in the plan, by name.  file: of the table, for
    `table_folder`. Where it had a table of other rows, seeds, measures or settings there, one line says so.
    """
    folder = Path(folder)
    lines = collect(plan, store)
    if file is not None:
        source = {"table": str(file.resolve()), "selection": _selection(plan)}
        if (read_json(folder / _SOURCE) or {}).get("selection", source["selection"]) != source["selection"]:
            what = "other rows, seeds, measures or settings"
            say(f"ablate: {folder} had a table of {what}; it is replaced (--out DIR keeps both)")
        write_json(folder / _SOURCE, source)
    write_text(folder / "table.csv", _csv(plan, lines))
    write_text(folder / "seeds.csv", _seeds_csv(plan, store))
    earlier = earlier_jobs(plan, store)
    write_text(folder / "table.tex", "".join(f"% {_OF_EARLIER}: {one}\n" for one in earlier) + _latex(plan, lines))
    if earlier:
        say(f"ablate: {_OF_EARLIER}: {', '.join(earlier)}")
    write_text(folder / "table.md", markdown(plan, lines, store, failed or {}, absent or {}, earlier))
    return folder / "table.md"


def _selection(plan: TablePlan) -> str:
    """A sha256 of what the numbers of a table come from."""
    cells = [[cell.dataset, cell.row.name, cell.seed, cell.repeat, {key: job.name for key, job in cell.jobs.items()}]
             for cell in plan.cells]  # fmt: skip
    chosen = [cells, list(plan.table.measures), plan.table.reference]
    if plan.table.contrasts or plan.table.curve:
        chosen += [[one.title for one in plan.table.contrasts], plan.table.curve]
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def markdown(
    plan: TablePlan,
    lines: Sequence[Line],
    store: JobStore,
    failed: dict[str, str],
    absent: dict[str, str],
    earlier: Sequence[str],
) -> str:
    """The text of table.md.  failed, absent: of `write_table`.  earlier: of `earlier_jobs`."""
    header, rows = grid(plan, lines)
    parts = [f"# {plan.table.title}", _markdown_table(header, rows)]
    if plan.table.reference is not None:
        parts.append(
            f"Difference: mIoU minus that of \"{plan.table.reference}\" with the same seed, over the same images; in "
            "brackets the 95 % interval of a paired bootstrap over the images, means over the seeds: what other "
            "test images would change. It leaves out what other seeds would change."
        )
    parts += _contrast_parts(plan, store) + _saving_parts(plan, store)
    if plan.table.note:
        parts.append(plan.table.note.strip())
    parts.append("\n".join(f"- {line}" for line in facts(plan, lines, store)))
    missing = [f"- {_title(line)}: seed {_missing_seeds(line)}" for line in lines if line.done != line.expected]
    if missing:
        parts.append("Missing (the same command resumes the work):\n\n" + "\n".join(missing))
    if earlier:
        parts.append(f"{_OF_EARLIER}:\n\n" + "\n".join(f"- {folder}" for folder in earlier))
    if absent:
        parts.append("Absent:\n\n" + "\n".join(f"- {name}: {why}" for name, why in absent.items()))
    if failed:
        parts.append("Failed:\n\n" + "\n".join(f"- {name}: {why}" for name, why in failed.items()))
    return "\n\n".join(parts) + "\n"


def _contrast_parts(plan: TablePlan, store: JobStore) -> list[str]:
    if not plan.table.contrasts:
        return []
    results = contrast_results(plan, store)
    rows, undone = contrast_rows(results), open_contrasts(plan, results)
    parts = [f"Contrasts without enough seeds yet: {'; '.join(undone)}."] if undone else []
    if not rows:
        return parts
    explained = (
        "Contrasts, points of mIoU: each seed's difference is a mean over its repeats. The interval by t is over the "
        "seeds, with the images fixed; the other one draws seeds and images. p is that of t; Holm's p holds for "
        f"all {plan.table.comparisons} contrasts of the table at once."
    )
    return [_markdown_table(CONTRAST_HEADER, rows), explained, *parts]


def _saving_parts(plan: TablePlan, store: JobStore) -> list[str]:
    rows = saving_rows(savings(plan, store))
    if not rows:
        return []
    explained = (
        f"Labels for that score: the number with which \"{plan.table.curve}\" reaches it, on its curve over the "
        "logarithm of the labels; the interval draws seeds and images."
    )
    return [_markdown_table(SAVING_HEADER, rows), explained]


def _missing_seeds(line: Line) -> str:
    """Each as often as it has repeats that are not done."""
    return ", ".join(map(str, sorted((Counter(line.expected) - Counter(line.done)).elements())))


def grid(plan: TablePlan, lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, as text: our mean and standard deviation over the seeds, and the paper's number."""
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
            has_none = entry.measure.source == "pairs" and not table.shows_pairs(line.row)
            row.append("-" if has_none else _value(entry, line))
            row += [_plain(entry.paper, entry.measure)] if name in shown_paper else []
        row += [_difference_text(line, table.reference)] if table.reference is not None else []
        rows.append([*row, format_duration(line.seconds) if line.seconds else "-"])
    return header, rows


def facts(plan: TablePlan, lines: Sequence[Line], store: JobStore) -> list[str]:
    """Lines with the facts that a reader needs to judge the numbers: seeds, budget, commits, devices."""
    records = [record for record in (store.record(job) for job in plan.jobs) if record is not None]
    configs = {job.config.name: job.config for job in plan.jobs}
    said = [_about_seeds(plan.table.seeds, plan.table.repeats), *_budgets(plan)]
    if "cost" in plan.table.sources:
        sizes = sorted({"x".join(map(str, config.train_saross.crop)) for config in configs.values()})
        said.append(f"costs: of one image of {', '.join(sizes)}; time: the mean of {plan.table.runs} passes")
    for name, title in (("commit", "commit"), ("device", "measured on")):
        found = sorted({record[name] for record in records})
        said.append(f"{title} {', '.join(found) if found else 'nothing yet'}")
    said += _image_counts_of_pairs(plan, store)
    differences = [line.difference for line in lines if line.difference is not None]
    counts = {one.num_images for one in differences if one.low is not None}
    said += [f"differences: {few}" for count in sorted(counts) for few in few_images_notes(count)]
    for line in lines:
        if line.difference is not None:
            notes = unequal_classes_notes(line.difference.num_classes)
            said += [f"difference of {_title(line)}: {note}" for note in notes]
    said.append(f"{len(records)} of {len(plan.jobs)} jobs are done; they took {_total(records)}")
    said.append("last column: time of all steps that a line needs, including those that lines share")
    return said


def _about_seeds(seeds: Sequence[int], repeats: int) -> str:
    named = ", ".join(str(seed) for seed in seeds)
    if repeats > 1:
        return (
            f"seeds {named}, {repeats} trainings each, of which all random numbers but the choice of labelled images "
            f"differ; ± is the standard deviation (n - 1) over these {len(seeds) * repeats} trainings"
        )
    if len(seeds) == 1:
        return f"seed {named}: one training a row, so that no number here shows what other seeds would change"
    return (
        f"seeds {named}; ± is the standard deviation (n - 1) over these {len(seeds)} trainings, scored on the same "
        "images: other images would change a score too, which it leaves out"
    )


def _image_counts_of_pairs(plan: TablePlan, store: JobStore) -> list[str]:
    """Lines with the numbers of images that the distances between sets come from."""
    found = []
    for cell in plan.cells:
        result = read_results(cell, store).get("pairs")
        if result is None:
            continue
        counts = result["physics"]["num_images"]
        line = f"distances: {counts['synthetic']} generated and {counts['real']} training images"
        if "absent" not in result["fidelity"]:
            line += f"; of a net's features: {result['fidelity']['num_images']} of each"
        measures = [measure_of(name) for name in plan.table.measures]
        has_intervals = any(one.source == "pairs" and one.read_interval(result) for one in measures)
        intervals = "95 % bootstrap intervals over the images: in brackets, or by seed in seeds.csv"
        intervals = "; ".join([intervals, *few_images_notes(fewest_images(result["physics"]))])
        found.append(f"{line}; {intervals if has_intervals else 'too few for intervals'}")
    return list(dict.fromkeys(found))


def _budgets(plan: TablePlan) -> list[str]:
    """A line for each experiment; one for each of its budgets, with the names of the rows, where they differ."""
    rows: dict[tuple[str, str], dict[str, None]] = {}
    for cell in plan.cells:
        config = next(iter(cell.jobs.values())).config
        rows.setdefault((config.name, budget(config, plan.table.sources)), {})[cell.row.name] = None
    names = [name for name, _ in rows]
    return [
        f"{name} ({', '.join(own)}): {text}" if names.count(name) > 1 else f"{name}: {text}"
        for (name, text), own in rows.items()
    ]


def budget(config: Config, sources: set[str]) -> str:
    """The image size and the budget of an experiment, in one line."""
    teacher, pairs, student = config.train_jointnet, config.generate, config.train_saross
    steps = "+".join(str(stage.steps) for stage in (teacher.stage1, teacher.stage2, teacher.stage3))
    said = [f"images {teacher.crop[0]}x{teacher.crop[1]}"]
    said.append(f"teacher {steps} steps of {teacher.global_batch}")
    said.append(f"{pairs.num_samples} pairs, {pairs.sampling_steps} {pairs.steps_spacing} steps of {pairs.solver}")
    if "student" in sources:
        length = f"{student.steps} steps" if student.steps else f"{student.epochs} epochs"
        said.append(f"student {length} of {student.global_batch}")
        said += [f"{name} {value}" for name, value in _mix_of(student).items()]
    return ", ".join(said)


def _mix_of(student: TrainSarossConfig) -> dict[str, str]:
    """The settings of budget and mix that are not the defaults."""
    found = {name: getattr(student, name) for name in ("budget", "schedule", "synthetic_share")}
    defaults = {name: TrainSarossConfig.model_fields[name].default for name in found}
    text = {name: f"{one[0]:g} to {one[1]:g}" if isinstance(one, tuple) else str(one) for name, one in found.items()}
    return {name: text[name] for name in found if found[name] != defaults[name]}


def _total(records: Sequence[dict]) -> str:
    return format_duration(sum(record["seconds"] for record in records))


def _title(line: Line) -> str:
    return f"{line.dataset}, {line.row.name}" if line.dataset else line.row.name


def _value(entry: SeedValues, line: Line) -> str:
    if entry.mean is None:
        return "absent" if line.done else MISSING
    text = _plain(entry.mean, entry.measure)
    if entry.sd is not None:
        text += f" ± {entry.sd:.{entry.measure.digits}f}"
    if entry.interval is not None:
        text += f" [{', '.join(_plain(end, entry.measure) for end in entry.interval)}]"
    return text if len(entry.values) == len(line.expected) else f"{text} (n={len(entry.values)})"


def _plain(value: float | None, measure: TableMeasure) -> str:
    return "-" if value is None else f"{value:.{measure.digits}f}"


def _difference_text(line: Line, reference: str | None) -> str:
    if line.row.name == reference or line.difference is None:
        return "-"
    value, low, high = line.difference.value, line.difference.low, line.difference.high
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{100 * value:+.2f} (no interval: {line.difference.num_images} images)"
    return f"{100 * value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[place]) for row in escaped) for place in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in escaped]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _csv(plan: TablePlan, lines: Sequence[Line]) -> str:
    """One line a measure: mean, sd, number of seeds, the paper's."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    heads = list(plan.table.rows[0].head)
    writer.writerow(["data", "method", *heads, "measure", "unit", "mean", "sd", "seeds", "seeds_wanted", "paper"])
    for line in lines:
        for name, entry in line.entries.items():
            numbers = [entry.mean, entry.sd, len(entry.values), len(line.expected), entry.paper]
            writer.writerow([line.dataset, line.row.name, *line.row.head.values(), name, entry.measure.title, *numbers])
    return stream.getvalue()


def _seeds_csv(plan: TablePlan, store: JobStore) -> str:
    """Every number unrounded: one line a cell and measure."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["data", "method", "seed", "repeat", "measure", "value", "low", "high", "job", "commit"])
    for cell in plan.cells:
        results = read_results(cell, store)
        for name in plan.table.measures:
            measure = measure_of(name)
            value = measure.read(results.get(measure.source, {}))
            if value is not None:
                job = cell.jobs[measure.source]
                commit = store.record(job)["commit"]
                interval = measure.read_interval(results.get(measure.source, {})) or (None, None)
                place = [cell.dataset, cell.row.name, cell.seed, cell.repeat]
                writer.writerow([*place, name, value, *interval, job.name, commit])
    return stream.getvalue()


_TEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "±": r"$\pm$", "\\": r"\textbackslash{}", "$": r"\$",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$"}  # fmt: skip


def _latex(plan: TablePlan, lines: Sequence[Line]) -> str:
    """A booktabs tabular; the best value of each column in bold, where larger or smaller is better."""
    header, rows = grid(plan, lines)
    words = 1 + len(plan.table.rows[0].head) + bool(plan.table.data)
    body = [[_tex(cell) for cell in row] for row in rows]
    for place, best in _best_cells(plan, lines, header):
        body[best][place] = rf"\textbf{{{body[best][place]}}}"
    alignment = "l" * words + "r" * (len(header) - words)
    head = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", " & ".join(map(_tex, header)) + r" \\", r"\midrule"]
    return "\n".join([*head, *(" & ".join(row) + r" \\" for row in body), r"\bottomrule", r"\end{tabular}"]) + "\n"


def _best_cells(plan: TablePlan, lines: Sequence[Line], header: Sequence[str]) -> list[tuple[int, int]]:
    """(column, line) of our best means of each measure in each dataset."""
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
                shown = {number: _plain(mean, measure) for number, mean in means.items()}
                winner = shown[pick(means, key=lambda number: means[number])]
                # Equal digits are a tie: all of them, or none where nothing differs.
                tied = [number for number, text in shown.items() if text == winner]
                best += [(place, number) for number in tied if len(tied) < len(shown)]
        place += 2 if place + 1 < len(header) and header[place + 1] == "paper" else 1
    return best


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
