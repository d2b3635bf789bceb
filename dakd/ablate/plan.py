"""From a table to jobs: each cell is a chain of pipeline steps, and cells share the steps that are the same for them.

    prepare -> stage1 -> teacher -> generate -> student -> scores
                                            `-> pairs
    prepare -> student (real) -> pseudo -> student -> scores

The student of the set real comes before generate, or between generate and refine, where these read it. With a start,
the students of a row start from the one of another row and dataset.

A job is one step in a run folder of its own, named after a hash of all that its result depends on: the settings of the
step and the jobs that it builds on. The results of those jobs are linked into its folder, so that the step finds an
ordinary run. Settings that change only speed and logs are not hashed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dakd.ablate.spec import RowSpec, TableSpec, check_overrides, experiment, foreign_test, nearest_row
from dakd.config import Config, StudentLossConfig, TrainingSet
from dakd.data.prepared import prepare_settings

_REAL = "train_saross/real"  # within a run folder
_REAL_DATA = "DAKD_REAL_DATA"  # the variable by which the configs that come with dakd name real images
# Settings that came later, left out at their defaults: jobs that were done before keep their names.
_SINCE = ("schedule", "budget", "init_from", "validation", "pseudo", "recalibrate")
# Settings of the student's loss that only synthetic samples have.
_LOSS_OF_PAIRS = ("kd", "temperature", "kd_form", "hard_labels", "dice_samples")


@dataclass(frozen=True)
class Job:
    """A step of the pipeline in a run folder of its own.

    kind: the step's name in the figures above, or cost.  steps: commands of the pipeline with their options, one after
    the other, or cost with its number of passes.  links: the jobs that files of the run folder come from, by the path
    within both folders.  start: the job of the student whose weights this one starts from.
    """

    kind: str
    digest: str
    config: Config
    steps: tuple[tuple[str, ...], ...]
    links: dict[str, Job] = field(default_factory=dict)
    start: Job | None = None

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.digest[:12]}"

    @property
    def needs(self) -> tuple[Job, ...]:
        """The jobs that this one builds on directly."""
        return (*self.links.values(), *([] if self.start is None else [self.start]))

    def chain(self) -> Iterator[Job]:
        """The jobs that this one builds on, in an order in which they can be done, and itself."""
        for job in self.needs:
            yield from job.chain()
        yield self


@dataclass(frozen=True)
class Cell:
    """One row on one dataset with one seed, once or repeated.

    jobs: those whose results it shows, by the measures' source.  repeat: from 0.
    """

    row: RowSpec
    dataset: str
    seed: int
    jobs: dict[str, Job]
    repeat: int = 0


@dataclass(frozen=True)
class TablePlan:
    """All cells of a table, and their jobs in an order in which they can be done."""

    table: TableSpec
    cells: tuple[Cell, ...]
    jobs: tuple[Job, ...]


def make_plan(table: TableSpec, folder: Path, small: bool = False, overrides: list[str] | None = None) -> TablePlan:
    """The plan of a table whose file lies in `folder`; ValueError for settings that no experiment has."""
    overrides = overrides or []
    check_overrides(overrides)
    cells = []
    for dataset in table.datasets:
        other = foreign_test(table, dataset, folder, small, overrides)
        rows = [row for row in table.rows if row.is_on(dataset)]
        for row, seed, repeat in itertools.product(rows, table.seeds, range(table.repeats)):
            config = experiment(table, row, dataset, seed, folder, small, overrides, repeat)
            start = None
            if row.start_from is not None:
                _refuse_other_start(row, config)
                first, earlier = nearest_row(table, row.start_from), table.datasets[dataset].earlier
                of_first = experiment(table, first, earlier, seed, folder, small, overrides, repeat)
                start = _student(of_first, first.training_set, None)
            cells.append(Cell(row, dataset, seed, _jobs_of(config, row, start, table, other), repeat))
    ordered: dict[str, Job] = {}
    # Repeat by repeat and seed by seed: a table that is stopped early has whole comparisons.
    for cell in sorted(cells, key=lambda cell: (cell.repeat, table.seeds.index(cell.seed))):
        for last in cell.jobs.values():
            for job in last.chain():
                ordered.setdefault(job.name, job)
    return TablePlan(table, tuple(cells), tuple(ordered.values()))


def _refuse_other_start(row: RowSpec, config: Config) -> None:
    cfg = config.train_saross
    for key, found in (("init_from", cfg.init_from), ("student.pretrained", cfg.student.pretrained)):
        if found is not None:
            raise ValueError(
                f"row {row.name!r} starts from {row.start_from!r}, and train_saross.{key} is {found}; expected one of "
                f"them: set train_saross.{key} to null"
            )


def _jobs_of(config: Config, row: RowSpec, start: Job | None, table: TableSpec, other: Config | None) -> dict[str, Job]:
    """start: the student that those of the run start from.  other: whose test split is taken."""
    jobs = {}
    if "cost" in table.sources:
        jobs["cost"] = _cost(config, table.runs)
    if "student" in table.sources:
        jobs["student"] = _scores(config, _student(config, row.training_set, start), _prepare(other or config))
    if "pairs" in table.sources and table.shows_pairs(row):
        jobs["pairs"] = _pairs(config, _generate(config, start))
    return jobs


def _prepare(config: Config) -> Job:
    settings = prepare_settings(config)
    return _job("prepare", {"prepare": settings | {"root": _portable(settings["root"])}}, config, [("prepare",)], {})


def _portable(root: str | None) -> str | None:
    """A dataset's folder as configs name it: what lies in the folder of real images is the same on another host."""
    base = os.environ.get(_REAL_DATA)
    if not base or root is None or not Path(root).is_relative_to(base):
        return root
    return f"${{{_REAL_DATA}}}/{Path(root).relative_to(base).as_posix()}"


def _stage1(config: Config) -> Job:
    prepare, cfg = _prepare(config), config.train_jointnet
    # Stage 1 trains the image branch only: with these settings hashed, rows that differ in them would train it again.
    later = ("stage2", "stage3", "label_loss_weight", "label_loss", "init_from", "generator")
    settings = {"teacher": _dump(cfg, *later), "seed": config.seed} | _reading(config)
    return _job("stage1", settings, config, [("train_jointnet", "--stage", "1")], {"prepare": prepare})


def _teacher(config: Config) -> Job:
    prepare = _prepare(config)
    settings = {"teacher": _dump(config.train_jointnet), "b": config.balance.b, "seed": config.seed} | _reading(config)
    if config.train_jointnet.generator == "ddpm":
        settings.pop("b")
        return _job("teacher", settings, config, [("train_jointnet",)], {"prepare": prepare})
    links = {"prepare": prepare, "train_jointnet/stage1": _stage1(config)}
    steps = [("train_jointnet", "--stage", stage) for stage in ("2", "3")]
    return _job("teacher", settings, config, steps, links)


def _generate(config: Config, start: Job | None) -> Job:
    # They change no pair, threads at most its rounding.
    unhashed = ("audit", "claim_patience_s", "capture", "threads")
    settings = {"generate": _dump(config.generate, *unhashed), "seed": config.generate_seed}
    if config.generate.codec != "fp16":
        # Codes are scaled for one temperature. fp16 logits serve any, so rows with other temperatures share them.
        settings["temperature"] = config.soft_label_temperature
    teacher = _teacher(config)
    links = {"prepare": teacher.links["prepare"], "train_jointnet": teacher}
    if config.generate.gate.asks_own_student:
        links[_REAL] = _student(config, "real", start)
    return _job("generate", settings, config, [("generate",)], links)


def _refine(config: Config, start: Job | None) -> Job:
    settings = {"refine": _dump(config.refine), "synthetic": config.train_saross.synthetic}
    links = {_REAL: _student(config, "real", start)}
    if config.train_saross.synthetic is None:
        links["generate"] = _generate(config, start)
    return _job("refine", settings, config, [("refine",)], links)


def _pseudo(config: Config, start: Job | None) -> Job:
    student = _student(config, "real", start)
    settings = {"pseudo_label": _dump(config.pseudo_label, "batch_size")}  # that changes only the rounding
    if config.pseudo_label.codec != "fp16":
        settings["temperature"] = config.soft_label_temperature
    links = {"prepare": student.links["prepare"], "train_saross": student}
    return _job("pseudo", settings, config, [("pseudo_label",)], links)


def _student(config: Config, training_set: TrainingSet, start: Job | None) -> Job:
    cfg = config.train_saross
    # Epochs are counted over the largest of some sets, so that all students have the same budget.
    counted = cfg.epoch_sets if any(name != "real" for name in cfg.epoch_sets) else ()
    links = {"prepare": _prepare(config)}
    if "synthetic" in training_set and config.refine.is_set:
        links["refine"] = _refine(config, start)
    elif any("synthetic" in name for name in (training_set, *counted)) and cfg.synthetic is None:
        links["generate"] = _generate(config, start)
    if "pseudo" in training_set and cfg.pseudo is None:
        links["pseudo_label"] = _pseudo(config, start)
    if training_set == "real" and not counted:
        config = _without_pairs(config)
    unused = ["training_sets"]
    unused += ["synthetic", "num_synthetic"] if training_set in ("real", "real+pseudo") else []
    unused += ["synthetic_share"] if training_set == "real" else []
    unused += ["pseudo"] if "pseudo" not in training_set else []
    # Of one kind: neither the order of two nor another number of steps.
    unused += ["schedule", "budget"] if training_set in ("real", "synthetic") else []
    # As far as they have an effect on this set; those without one are left out as defaults are.
    statistics = cfg.statistics_of(training_set)
    unused += [name for name in _SINCE if _is_default(cfg.model_copy(update=statistics), name)]
    settings = {"student": _dump(config.train_saross, *unused), "set": training_set, "seed": config.seed}
    settings["student"] |= {name: value for name, value in statistics.items() if name not in unused}
    settings |= _reading(config)
    if counted:
        settings["epochs_of"] = [list(counted), cfg.num_synthetic, cfg.synthetic_share]
        if cfg.synthetic is not None:
            settings["epochs_of"].append(cfg.synthetic)
        if any("pseudo" in name for name in counted):
            settings["pseudo_epochs_of"] = [config.pseudo_label.max_samples, cfg.pseudo]
    return _job("student", settings, config, [("train_saross", "--training-set", training_set)], links, start)


def _without_pairs(config: Config) -> Config:
    """With the settings that matter only beside synthetic pairs as no row sets them: of a student that sees none."""
    cfg = config.train_saross
    loss = cfg.loss.model_copy(update={name: StudentLossConfig.model_fields[name].default for name in _LOSS_OF_PAIRS})
    # Not the default: the experiments of the tables at small size have no mosaics, and keep their jobs so.
    settings = {"mosaic": False, "loss": loss, "synthetic": None, "pseudo": None}
    settings |= {"num_synthetic": None, "synthetic_share": None}
    return config.model_copy(update={"train_saross": cfg.model_copy(update=settings)})


def _scores(config: Config, student: Job, prepare: Job) -> Job:
    settings = {"evaluate": _dump(config.evaluate, "num_pictures", "batch_size", "fidelity")}  # that is of pairs
    # Another dataset's test split was prepared with that one's settings.
    config = config.model_copy(update={"prepare": prepare.config.prepare})
    return _job("scores", settings, config, [("evaluate",)], {"prepare": prepare, "train_saross": student})


def _pairs(config: Config, generate: Job) -> Job:
    settings = {"evaluate": _dump(config.evaluate, "num_pictures", "batch_size")}
    links = {"prepare": generate.links["prepare"], "generate": generate}
    return _job("pairs", settings, config, [("evaluate",)], links)


def _cost(config: Config, runs: int) -> Job:
    cfg = config.train_saross
    settings = {"student": _dump(cfg.student), "crop": list(cfg.crop), "runs": runs}
    return _job("cost", settings, config, [("cost", str(runs))], {})


def _reading(config: Config) -> dict[str, Any]:
    """The settings of reading: they decide the order of samples."""
    return {"data": _dump(config.data, "cache", "cache_gib")}


def _dump(section: Any, *without: str) -> dict:
    """The section's settings; of the engine's only the precision: the others change speed and logs.

    Defaults count too: a job that was made under another default is not this one.
    """
    settings = section.model_dump(mode="json", exclude=set(without))
    engine = settings.pop("engine", {})
    return settings | ({"precision": engine["precision"]} if engine else {})


def _is_default(section: Any, name: str) -> bool:
    return getattr(section, name) == type(section).model_fields[name].default


def _job(
    kind: str,
    settings: dict,
    config: Config,
    steps: list[tuple[str, ...]],
    links: dict[str, Job],
    start: Job | None = None,
) -> Job:
    # The digest of a linked job stands for everything that its result depends on.
    facts = {"kind": kind, "settings": settings, "links": {path: job.digest for path, job in links.items()}}
    if start is not None:
        facts["start"] = start.digest
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Job(kind, digest, config, tuple(steps), links, start)
