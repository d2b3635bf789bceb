"""The training images whose labels are used: a stratified choice of n, or a list in a file.

A choice looks once at the classes that each mask holds, as a person who picks scenes by eye would, and at nothing else
of them. It ends as a list of keys; whatever it leaves out is packed without a label, and its mask is not opened again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from dakd.config import PrepareConfig
from dakd.data.readers import BadFile, Dataset, SampleFiles, open_dataset
from dakd.data.readers.base import UNLABELLED, stem
from dakd.data.sample import IGNORE_INDEX
from dakd.runtime.runlog import progress
from dakd.runtime.seeding import Stream, numpy_rng

LIST_FILE = "labelled.txt"  # in RUN/prepare
_NAMED = 5  # keys in a message

T = TypeVar("T")


def open_chosen(cfg: PrepareConfig, seed: int, subset_seed: int) -> Dataset:
    """The dataset with the labels that the settings leave to its training images; the others are in "unlabelled".

    seed: of simulated scenes.  subset_seed: of the choice.
    Raises ValueError for more labels than there are, and for a list that names other images.
    """
    if cfg.num_labelled is None:
        return open_with_as_many(cfg, seed)
    chosen = choose_labelled(_presence(_open_limited(cfg, seed)), cfg.num_labelled, subset_seed)
    dataset = _open_limited(cfg, seed)  # by the chosen masks alone is decided what masks mean
    dataset.keep_labels(chosen)
    return dataset


def open_with_as_many(cfg: PrepareConfig, seed: int) -> Dataset:
    """As `open_chosen`, but with any `num_labelled` images, for which no mask is opened; for `dakd check`."""
    if cfg.num_labelled is not None:
        dataset = _open_limited(cfg, seed)
        keys = [entry.key for entry in dataset.entries("train")]
        _refuse_too_few(cfg.num_labelled, len(keys))
        dataset.keep_labels(pick(keys, cfg.num_labelled))
        return dataset
    dataset = _open(cfg, seed)
    if cfg.labelled is not None:
        dataset.keep_labels(_listed(Path(cfg.labelled), dataset))
    return dataset


def _open_limited(cfg: PrepareConfig, seed: int) -> Dataset:
    """With the training images that `max_samples` takes, whatever number of them has a label."""
    dataset = _open(cfg, seed)
    dataset.keep_images(pick([entry.key for entry in dataset.entries("train")], cfg.max_samples))
    return dataset


def pick(entries: Sequence[T], count: int | None) -> list[T]:
    """`count` entries evenly spread over all of them, or all."""
    if count is None or count >= len(entries):
        return list(entries)
    return [entries[i * len(entries) // count] for i in range(count)]


def entries_to_pack(dataset: Dataset, name: str, max_samples: int | None) -> list[SampleFiles]:
    """Those of a set; training images with and without labels are at most `max_samples` together."""
    if name == UNLABELLED and max_samples is not None:
        max_samples = max(0, max_samples - len(dataset.entries("train")))
    return pick(dataset.entries(name), max_samples)


def _open(cfg: PrepareConfig, seed: int) -> Dataset:
    dataset = open_dataset(cfg, seed)
    if cfg.on_missing_mask == "image_only":
        dataset.set_aside_unmasked()
    return dataset


def choose_labelled(presence: Mapping[str, frozenset[int]], count: int, seed: int) -> list[str]:
    """`count` keys in which each combination of classes has its share, to within a few; fewer are among more.

    presence: by key, the classes that its label holds. The choice depends on the seed and on `presence` only.
    Raises ValueError for more keys than there are.
    """
    _refuse_too_few(count, len(presence))
    return _stratified_order(presence, seed)[:count]


def _refuse_too_few(count: int, found: int) -> None:
    if count > found:
        raise ValueError(
            f"prepare.num_labelled is {count}, and {found} training images have labels that can be read; set it to at "
            "most that number, or to null for all"
        )


def _stratified_order(presence: Mapping[str, frozenset[int]], seed: int) -> list[str]:
    """All keys in an order of which every beginning holds the combinations of classes in their shares."""
    strata: dict[tuple[int, ...], list[str]] = {}
    for key in sorted(presence):
        strata.setdefault(tuple(sorted(presence[key])), []).append(key)
    places: list[tuple[float, float, str]] = []
    for number, (_, keys) in enumerate(sorted(strata.items())):
        rng = numpy_rng(seed, number, stream=Stream.LABELLED)
        shuffled, ties = rng.permutation(keys).tolist(), rng.random(len(keys))
        # The j-th of m keys stands in the middle of the j-th m-th part of the order.
        places += [((j + 0.5) / len(keys), tie, key) for j, (key, tie) in enumerate(zip(shuffled, ties))]
    return [key for _, _, key in sorted(places)]


def _presence(dataset: Dataset) -> dict[str, frozenset[int]]:
    """The classes that the label of each training image holds; without images whose files cannot be read."""
    entries, found = dataset.entries("train"), {}
    for entry in progress(entries, len(entries), "classes of train"):
        try:
            label = dataset.read(entry).label
        except BadFile:  # packed, it would be reported; here it cannot be chosen
            continue
        if label is not None:
            found[entry.key] = frozenset(np.unique(label[label != IGNORE_INDEX]).tolist())
    return found


def _listed(path: Path, dataset: Dataset) -> set[str]:
    """The keys that a file lists.  ValueError for a file that cannot be read, is empty or names other images."""
    by_name = _names(dataset)
    found = {line: by_name.get(line) for line in listed_names(path)}
    unknown = [line for line, key in found.items() if key is None]
    if unknown or not found:
        named = ", ".join(unknown[:_NAMED]) + (f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else "")
        raise ValueError(
            f"prepare.labelled is {path}, which names {named or 'no image'}; expected keys or file names of training "
            f"images with a label, one a line, such as {min(by_name, default='a.png')}"
        )
    return {key for key in found.values() if key is not None}


def listed_names(path: Path) -> list[str]:
    """The lines of a list, sorted, each once, without comments; ValueError for a file that cannot be read."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prepare.labelled is {path}, which cannot be read ({error}); expected a text file with one "
                         "key or file name of a training image a line") from None  # fmt: skip
    return sorted({line for line in lines if line and not line.startswith("#")})


def _names(dataset: Dataset) -> dict[str, str]:
    """The keys of the labelled training images by all names that a list may have for them."""
    names: dict[str, str] = {}
    for entry in dataset.entries("train"):
        names |= {stem(entry.image_path): entry.key, entry.image_path.name: entry.key, entry.key: entry.key}
    return names


def write_list(folder: Path, dataset: Dataset) -> None:
    """Write the keys of the labelled training images, where others were set aside."""
    if UNLABELLED in dataset.sets:
        keys = [entry.key for entry in dataset.entries("train")]
        (folder / LIST_FILE).write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
