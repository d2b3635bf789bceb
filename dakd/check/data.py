"""The data of an experiment: the prepared set, or some files of each split of the dataset."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

from dakd.check.experiment import Experiment
from dakd.check.findings import Found, Level, as_level
from dakd.data.degenerate import notes_on_set, refuse_flat_images, refuse_unknown_labels
from dakd.data.readers import BadFile, Dataset
from dakd.data.readers.label_meaning import refuse_contradiction
from dakd.data.sample import IGNORE_INDEX

_NUM_FILES = 24  # of a split, evenly spread, that are read


def data(experiment: Experiment) -> Found:
    if experiment.report is not None:
        for split, facts in experiment.report["splits"].items():
            yield "ok", f"{split}: {facts['num_samples']} samples are prepared"
            yield from (("warn", line) for line in notes_on_set(split, facts))
            sizes = [tuple(int(side) for side in size.split("x")) for size in facts["sizes"]]
            yield from _crops(experiment, split, sizes)
    else:
        yield from problems(experiment.dataset, experiment.config.prepare.on_bad_file == "skip")
        for split in experiment.dataset.sets:
            yield from look_into(experiment, experiment.dataset, split)
        meanings = {split: experiment.dataset.label_meaning(split) for split in experiment.dataset.splits}
        meanings = {split: meaning for split, meaning in meanings.items() if meaning is not None}
        yield from (("ok", meaning.describe(split)) for split, meaning in meanings.items())
        refuse_contradiction(meanings)
    splits = experiment.splits
    if "train" not in splits:
        yield "refused", f"there is no train split (found {', '.join(splits) or 'none'}); expected train/"
    if experiment.config.evaluate.folder is None and experiment.config.evaluate.split not in splits:
        yield "refused", f"evaluate.split is {experiment.config.evaluate.split}, which the dataset lacks; give it one"


def look_into(experiment: Experiment, dataset: Dataset, split: str) -> Found:
    entries = dataset.entries(split)
    count = min(len(entries), _NUM_FILES)
    some = [entries[i * len(entries) // count] for i in range(count)]
    sizes, bad, num_flat, labels = [], [], 0, SimpleNamespace(num_labelled=0, class_pixels=[0], ignored_pixels=0)
    for entry in some:
        try:
            sample = dataset.read(entry)
        except BadFile as problem:
            bad.append(problem)
        else:
            sizes.append(experiment.config.prepare.resize or sample.sar.shape)
            num_flat += int(sample.sar.min() == sample.sar.max())
            if sample.label is not None:
                unknown = int((sample.label == IGNORE_INDEX).sum())
                labels.num_labelled += 1
                labels.ignored_pixels += unknown
                labels.class_pixels[0] += sample.label.size - unknown
    if dataset is experiment.dataset:
        experiment.sizes[split] = sizes
    level: Level = "warn" if experiment.config.prepare.on_bad_file == "skip" else "refused"
    yield from ((level, str(problem)) for problem in bad)
    if entries:
        labelled = sum(entry.label_path is not None for entry in entries)
        masks = "" if experiment.config.prepare.dataset == "simulated" else f", {labelled} with labels"
        yield "ok", f"{split}: {len(entries)} images{masks}; {count} of them were read"
    where, of_all = f"{split} ({count} files were read)", "refused" if len(sizes) == len(entries) else "warn"
    if split == "train":
        yield from _crops(experiment, split, sizes)
        yield from as_level(of_all, partial(refuse_flat_images, num_flat, len(sizes), where))
    yield from as_level(of_all, partial(refuse_unknown_labels, labels, where))


def _crops(experiment: Experiment, split: str, sizes: list[tuple[int, int]]) -> Found:
    """Smaller images are padded with unknown pixels, which is seldom meant."""
    steps = ["train_jointnet"] * experiment.makes_pairs + ["train_saross"]
    for step in steps if split == "train" and sizes else ():
        crop = getattr(experiment.config, step).crop
        small = [size for size in sizes if size[0] < crop[0] or size[1] < crop[1]]
        if small:
            found, wanted = "x".join(map(str, small[0])), "x".join(map(str, crop))
            yield "warn", f"{step}.crop {wanted} is larger than images of {found}, which are padded"


def problems(dataset: Dataset, may_skip: bool) -> Found:
    level: Level = "warn" if may_skip else "refused"
    yield from ((level, str(problem)) for problem in dataset.problems())
    yield from (("warn", f"not read: {name}") for name in dataset.unread())
    if all(dataset.entries(split) for split in dataset.splits):
        dataset.check()
