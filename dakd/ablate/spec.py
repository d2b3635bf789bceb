"""A table's YAML: the experiments that it compares, their data and seeds, the measures shown, and the paper's numbers.

A row is a set of dotted settings over the experiment that all rows share. All other settings are in that experiment's
own configuration, so that all rows have the same budget unless a row changes it.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dakd.ablate.measures import Source, measure_of
from dakd.config import (
    Config,
    Positive,
    Section,
    TrainingSet,
    Written,
    expected,
    read_yaml,
    validated,
    yaml_problem,
)
from dakd.runtime.kept_config import open_config
from dakd.shipped import find_file, not_found

SEEDS_OF_A_REPEAT = 1000  # repeat r of seed s has the random numbers of seed s + 1000 r

Number = float | int
# By measure; or by dataset and measure, where a table has several datasets.
PaperNumbers = Annotated[
    dict[str, Annotated[Number | dict[str, Number], expected("a number, or numbers by measure")]],
    Field(default_factory=dict),
]
Settings = Annotated[dict[str, Any], Field(default_factory=dict)]  # by dotted key


class DataSpec(Section):
    """The data that rows are trained on, given by the configuration of an experiment on them.

    test_on: the dataset of the table whose test split is taken, for cross-domain rows.  earlier: the dataset of the
    table whose students the rows with `start_from` start from.  labels: labelled images, its place on the curve.
    """

    base: str  # relative to the table's file
    set: Settings
    small: Settings
    test_on: str | None = None
    earlier: str | None = None
    labels: Positive | None = None


class RowSpec(Section):
    """One line of the table.

    head: the content of the columns after its name.  set: dotted settings.  small: over these, with --small.
    training_set: the student's.  start_from: the row whose student of the dataset `DataSpec.earlier`, with the same
    seed and repeat, this row's students start from, in place of random weights.  paper: the paper's numbers.
    needs: an environment variable that the settings use, such as the folder of weights that have to be downloaded by
    hand; without it the row is listed as absent.  data: the datasets that it is made on; empty for all.
    """

    name: str
    head: Annotated[dict[str, str], Field(default_factory=dict)]
    set: Settings
    small: Settings
    training_set: TrainingSet = "real"
    start_from: str | None = None
    needs: str | None = None
    data: tuple[str, ...] = ()
    paper: PaperNumbers

    def is_on(self, dataset: str) -> bool:
        return not self.data or dataset in self.data


class Contrast(Section):
    """A comparison that is named before the runs: over all seeds and their repeats, with Holm's p over all of them.

    of: a row.  to: the row that it is compared with, or several, of which the one with the best mean counts.
    data: the datasets that it is made on; empty for all.
    """

    of: str
    to: Annotated[tuple[str, ...], Field(min_length=1)]
    data: tuple[str, ...] = ()

    @field_validator("to", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def title(self) -> str:
        better = f"the better of {' and '.join(self.to)}" if len(self.to) > 1 else self.to[0]
        return f"{self.of} minus {better}"


class TableSpec(Section):
    """A whole table.

    reference: the row that differences are taken to, image by image.  set, small: settings of all rows.
    repeats: trainings of each seed, whose random numbers differ in all but the choice of labelled images.
    contrasts: comparisons over seeds and repeats.  num_compared: what Holm's p is over; None: the contrasts of the
    table on all their datasets. A chosen part of a table keeps the number of the whole.
    curve: the row whose curve over `DataSpec.labels` says how many labels the others save.  panels: of the curve's
    figure, rows by title; none shows all in one.
    note: text below the table.  group_by: whether the lines of a row or of a dataset stand together.
    """

    title: str
    base: str | None = None
    data: Annotated[dict[str, DataSpec], Field(default_factory=dict)]
    seeds: tuple[int, ...] = (0,)
    repeats: Positive = 1
    runs: Positive = 300  # passes that a cost is the mean of (paper, 7.3)
    measures: Annotated[tuple[str, ...], Field(min_length=1)]
    small_measures: tuple[str, ...] | None = None  # in their place with --small
    reference: str | None = None
    contrasts: tuple[Contrast, ...] = ()
    num_compared: Positive | None = None
    curve: str | None = None
    panels: Annotated[dict[str, tuple[str, ...]], Field(default_factory=dict)]
    set: Settings
    small: Settings
    rows: tuple[RowSpec, ...] = Field(min_length=1)
    group_by: Literal["row", "data"] = "data"
    note: str = ""

    @model_validator(mode="after")
    def _fits(self) -> TableSpec:
        if bool(self.base) == bool(self.data):
            found = "both" if self.base else "neither"
            raise ValueError(f"found {found}; expected either base (one configuration) or data (several by name)")
        names = [row.name for row in self.rows]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two rows are called {', '.join(sorted(twice))}; give each a name of its own")
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"reference {self.reference!r} is not a row; choose one of {', '.join(names)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds are {list(self.seeds)}; expected different whole numbers of at least 0")
        if self.repeats > 1 and max(self.seeds) >= SEEDS_OF_A_REPEAT:
            raise ValueError(
                f"seeds are {list(self.seeds)} with {self.repeats} repeats; expected seeds below {SEEDS_OF_A_REPEAT}, "
                "from which those of the repeats are counted"
            )
        for measures in (self.measures, self.small_measures or ()):
            if twice := {name for name in measures if measures.count(name) > 1}:
                raise ValueError(f"measures name {', '.join(sorted(twice))} twice; name each once")
            for name in measures:
                measure_of(name)
        for name, one in self.data.items():
            if one.test_on is not None and one.test_on not in self.data:
                names = ", ".join(self.data)
                raise ValueError(f"data {name!r} is tested on {one.test_on!r}; expected one of the datasets {names}")
        self._check_rows_data()
        self._check_starts(names)
        self._check_contrasts(names)
        heads = {tuple(row.head) for row in self.rows}
        if len(heads) > 1:
            raise ValueError(f"rows have different heads, {' and '.join(map(str, sorted(heads)))}; give all the same")
        for row in self.rows:
            self._check_paper(row)
        return self

    def _check_rows_data(self) -> None:
        for row in self.rows:
            if unknown := [name for name in row.data if name not in self.data]:
                shown = ", ".join(self.data) or "(none: the table has a base)"
                raise ValueError(f"row {row.name!r} is on {', '.join(unknown)}; expected datasets of {shown}")
            lacking = [name for name in self.data if not row.is_on(name)]
            if lacking and row.name in (self.reference, self.curve):
                raise ValueError(
                    f"row {row.name!r} is not on {', '.join(lacking)}; the reference and the curve's row need all "
                    "datasets: leave its data out, or choose datasets that it is on by --data"
                )

    def _check_starts(self, names: list[str]) -> None:
        for name, one in self.data.items():
            if one.earlier is not None and one.earlier not in self.data:
                shown = ", ".join(self.data)
                raise ValueError(f"data {name!r} has the earlier {one.earlier!r}; expected one of the datasets {shown}")
        for row in self.rows:
            if row.start_from is None:
                continue
            where = f"row {row.name!r} starts from {row.start_from!r}"
            if row.start_from not in names:
                raise ValueError(f"{where}, which is no row; choose one of {', '.join(names)}")
            start = self.rows[names.index(row.start_from)]
            if start.start_from is not None:
                raise ValueError(
                    f"{where}, which starts from {start.start_from!r}; name a row that starts from random weights"
                )
            if not self.data:
                raise ValueError(f"{where}, and the table has a base; give datasets by data")
            for dataset in filter(row.is_on, self.data):
                earlier = self.data[dataset].earlier
                if earlier is None or not start.is_on(earlier):
                    found = "no earlier" if earlier is None else f"the earlier {earlier!r}, on which that row is not"
                    raise ValueError(
                        f"{where}, and data {dataset!r} has {found}; name a dataset of that row as its earlier, or "
                        "list the datasets of this row by data"
                    )

    def _check_contrasts(self, names: list[str]) -> None:
        used = [(f"contrast {one.title!r}", name) for one in self.contrasts for name in (one.of, *one.to)]
        used += [("curve", self.curve)] if self.curve is not None else []
        used += [(f"panel {title!r}", name) for title, rows in self.panels.items() for name in rows]
        for where, name in used:
            if name not in names:
                raise ValueError(f"{where} names {name!r}, which is no row; choose one of {', '.join(names)}")
        for one in self.contrasts:
            if unknown := [name for name in one.data if name not in self.data]:
                shown = ", ".join(self.data) or "(none: the table has a base)"
                raise ValueError(f"contrast {one.title!r} is on {', '.join(unknown)}; expected datasets of {shown}")
            for row in (self.rows[names.index(name)] for name in (one.of, *one.to)):
                if lacking := [name for name in one.data or self.data if not row.is_on(name)]:
                    raise ValueError(
                        f"contrast {one.title!r} is on {', '.join(lacking)}, and row {row.name!r} is not; give by "
                        "data the datasets that all its rows are on"
                    )
        places = [spec.labels for spec in self.data.values()]
        if self.curve is not None and (None in places or len(set(places)) < max(2, len(places))):
            raise ValueError(f"the curve {self.curve!r} is over {places} labels; give two datasets or more their own")
        if (self.curve is not None or self.contrasts) and "student" not in self.sources:
            shown = ", ".join(self.measures)
            raise ValueError(f"contrasts and curves are of mIoU, and the measures are {shown}; name one of students")

    def _check_paper(self, row: RowSpec) -> None:
        for key, value in row.paper.items():
            measures = [key] if not isinstance(value, dict) else list(value)
            if isinstance(value, dict) and key not in self.data:
                names = ", ".join(self.data) or "(none: the table has a base)"
                raise ValueError(f"row {row.name!r} has the paper's numbers of {key!r}; expected a dataset of {names}")
            if unknown := [name for name in measures if name not in self.measures]:
                shown = ", ".join(self.measures)
                raise ValueError(f"row {row.name!r} has the paper's {', '.join(unknown)}; expected measures of {shown}")

    @property
    def datasets(self) -> dict[str, DataSpec]:
        """By name; the name of a table's only dataset is empty."""
        return self.data or {"": DataSpec(base=self.base or "")}

    @property
    def comparisons(self) -> int:
        """What Holm's p is over."""
        return self.num_compared or sum(len(one.data or self.datasets) for one in self.contrasts)

    @property
    def sources(self) -> set[Source]:
        """The jobs that the measures are read from."""
        return {measure_of(name).source for name in self.measures}

    def shows_pairs(self, row: RowSpec) -> bool:
        """Whether the row has measures of generated pairs: its students see them, or the table has no students."""
        return "synthetic" in row.training_set or "student" not in self.sources

    def paper_number(self, row: RowSpec, dataset: str, measure: str) -> Number | None:
        of_data = row.paper.get(dataset, {}) if dataset else row.paper
        value = of_data.get(measure) if isinstance(of_data, dict) else None
        return None if isinstance(value, dict) else value


def table_file(name: str | Path) -> Path:
    """The file of a table: at the path, or one that comes with dakd, such as `ce_b`; ValueError where there is none."""
    found = find_file(name, "ablate")
    if found is None:
        raise ValueError(not_found(name, "table", "ablate"))
    return found


def load_table(path: str | Path) -> TableSpec:
    """The validated table of a YAML file, or of one by name; ValueError naming what was found and expected."""
    path = table_file(path)
    file = read_yaml(path)
    try:
        _refuse_half_characters(file.tree, set())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {yaml_problem(error)}") from None
    return build_table(file.tree, str(path), file.written)


def _refuse_half_characters(tree: Any, seen: set[int]) -> None:
    """ValueError for a text with a lone surrogate: YAML's escapes can write one, but no file or message can hold it."""
    if isinstance(tree, str) and any("\ud800" <= letter <= "\udfff" for letter in tree):
        raise ValueError(f"{tree[:80]!a} has half a character; write the whole one")
    if isinstance(tree, dict | list) and id(tree) not in seen:
        seen.add(id(tree))  # YAML's aliases may repeat a part, or nest it within itself
        for part in [*tree, *tree.values()] if isinstance(tree, dict) else tree:
            _refuse_half_characters(part, seen)


def build_table(tree: Any, source: str, written: Written = lambda _: None) -> TableSpec:
    """Validate a plain mapping; ValueError that lists the errors of all keys.  written: see `dakd.config.validated`."""
    return validated(TableSpec, tree, f"{source} is not a valid table", written)


def experiment(
    table: TableSpec,
    row: RowSpec,
    dataset: str,
    seed: int,
    folder: Path,
    small: bool,
    overrides: list[str],
    repeat: int = 0,
) -> Config:
    """The configuration of one cell.

    folder: of the table's file.  overrides: `section.key=value`, over all settings of the table.  repeat: from 0; those
    of a seed share its choice of labelled images.
    Raises ValueError for settings that no experiment has, or that would leave the table without scores.
    """
    spec = table.datasets[dataset]
    lines = _settings(table, spec, row, small)
    # Both: a base with a generate.seed of its own would give every seed the same noise.
    own_seed = seed + SEEDS_OF_A_REPEAT * repeat
    settings = [*lines, *overrides, f"seed={own_seed}", f"generate.seed={own_seed}"]
    config = open_config(folder / spec.base, settings, only_shown=True)
    if config.evaluate.folder is not None or config.evaluate.student is not None:
        raise ValueError(
            "evaluate.folder and evaluate.student leave a table without scores: it shows each student on its test "
            "split; to evaluate another folder, run dakd evaluate --config STORE/scores-.../experiment.yaml"
        )
    return _with_choice_of_labels(_with_one_set_of_scenes(config), seed)


def check_overrides(overrides: list[str]) -> None:
    """ValueError for settings that the table sets itself."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in ("seed", "generate.seed"):
            raise ValueError(f"{override}: a table has seeds of its own; choose them with --seeds")
        if key == "run_dir":
            raise ValueError(f"{override}: jobs have folders of their own; choose where they lie with --store")


def foreign_test(table: TableSpec, dataset: str, folder: Path, small: bool, overrides: list[str]) -> Config | None:
    """The configuration whose test split the cells of a dataset are scored on; None where it is their own."""
    test_on = table.datasets[dataset].test_on
    if test_on is None:
        return None
    spec = table.datasets[test_on]
    settings = [*_settings(table, spec, None, small), *overrides]
    config = _with_one_set_of_scenes(open_config(folder / spec.base, settings, only_shown=True))
    return _with_choice_of_labels(config, config.seed)  # for cells of all seeds: the choice leaves the test split whole


def _with_one_set_of_scenes(config: Config) -> Config:
    """All seeds of a table have the same data: simulated scenes are drawn with seed 0 unless the table sets another."""
    if config.prepare.simulation.seed is not None:
        return config
    simulation = config.prepare.simulation.model_copy(update={"seed": 0})
    return config.model_copy(update={"prepare": config.prepare.model_copy(update={"simulation": simulation})})


def _with_choice_of_labels(config: Config, seed: int) -> Config:
    if config.prepare.num_labelled is None or config.prepare.subset_seed is not None:
        return config
    return config.model_copy(update={"prepare": config.prepare.model_copy(update={"subset_seed": seed})})


def _settings(table: TableSpec, spec: DataSpec, row: RowSpec | None, small: bool) -> list[tuple[str, Any]]:
    """Overrides: the table's, the dataset's and the row's settings; with --small, then those for small experiments."""
    parts = [table, spec, *([row] if row is not None else [])]
    layers = [part.set for part in parts] + [part.small for part in parts if small]
    # Not merged by key here: a later layer may replace a whole section of which an earlier one sets a key.
    return [(key, value) for layer in layers for key, value in layer.items()]


def without_absent(table: TableSpec) -> tuple[TableSpec, dict[str, str]]:
    """The table without the rows whose needs are not met, and the remedy for each of these.

    Raises ValueError where no row is left.
    """
    absent = {
        row.name: f"set {row.needs} to run it" for row in table.rows if row.needs and not os.environ.get(row.needs)
    }
    for row in table.rows:  # one that starts from an absent row has no student to start from
        if row.start_from in absent:
            absent[row.name] = absent[row.start_from]
    rows = tuple(row for row in table.rows if row.name not in absent)
    if not rows:
        raise ValueError("; ".join(f"row {name!r}: {why}" for name, why in absent.items()))
    reference = None if table.reference in absent else table.reference
    return table.model_copy(update={"rows": rows, "reference": reference}), absent


def nearest_row(table: TableSpec, name: str) -> RowSpec:
    """The row of that name; ValueError with near names where there is none."""
    for row in table.rows:
        if row.name == name:
            return row
    near = difflib.get_close_matches(name, [row.name for row in table.rows], n=3, cutoff=0.3)
    raise ValueError(f"the table has no row {name!r}; " + (f"choose {' or '.join(near)}" if near else "see --status"))

