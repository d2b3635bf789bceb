"""An experiment, and the facts that several of its checks share."""

from __future__ import annotations

from functools import cached_property

from dakd.config import Config
from dakd.data.index import Index, load_index
from dakd.data.labelled import entries_to_pack, open_with_as_many
from dakd.data.prepare import found_report
from dakd.data.prepared import open_prepared
from dakd.data.readers import Dataset
from dakd.data.readers.base import UNLABELLED
from dakd.data.sample import ClassTable
from dakd.train.dry_run import Cost, num_classes_of


class Experiment:
    """processes: ranks of each training.  costs: of the nets that can be built, by the training's name.

    sizes: (height, width), as `prepare` will write them, of the images that `look_into` read, by set.
    """

    def __init__(self, config: Config, processes: int) -> None:
        self.config, self.processes = config, processes
        self.run, self.num_classes = config.run_path, num_classes_of(config)
        self.costs: dict[str, Cost] = {}
        self.sizes: dict[str, list[tuple[int, int]]] = {}

    @property
    def makes_pairs(self) -> bool:
        """Whether a student learns from the run's own pairs: else the pipeline makes neither these nor a teacher."""
        return self.config.train_saross.reads_generated_pairs()

    @cached_property
    def dataset(self) -> Dataset:
        return open_with_as_many(self.config.prepare, self.config.seed)

    @cached_property
    def report(self) -> dict | None:
        """Of the prepared set that is there."""
        return found_report(self.config)

    @property
    def splits(self) -> tuple[str, ...]:
        return self.dataset.splits if self.report is None else tuple(self.report["splits"])

    def labelled(self, split: str) -> tuple[int, int]:
        """The images of a split that have labels, and all of them."""
        if self.report is not None:
            facts = self.report["splits"][split]
            return facts["num_labelled"], facts["num_samples"]
        entries = self.dataset.entries(split)
        if self.config.prepare.dataset == "simulated":  # with labels in no file
            return len(entries), len(entries)
        return sum(entry.label_path is not None for entry in entries), len(entries)

    @cached_property
    def unlabelled(self) -> Index | None:
        """Of the prepared images without labels, which pseudo_label labels."""
        path = self.run / "prepare" / UNLABELLED / "index.json"
        return load_index(path) if path.is_file() else None

    @property
    def num_unlabelled(self) -> int:
        """Their number; before `prepare` that which the settings leave without labels."""
        if self.report is not None or self.unlabelled is not None:
            return 0 if self.unlabelled is None else self.unlabelled.num_samples
        return len(entries_to_pack(self.dataset, UNLABELLED, self.config.prepare.max_samples))

    @cached_property
    def classes(self) -> ClassTable:
        if self.report is not None:
            return open_prepared(self.config, "train").classes
        return self.dataset.classes
