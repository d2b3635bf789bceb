"""PREPARE: a dataset on disk, or the simulated one, packed into shards with an index, a contact sheet and a report.

The run folder gets prepare/{train,test}/ with shards and index.json, prepare/contact_sheet.png and prepare/report.json;
and prepare/unlabelled/ with the training images whose labels are absent or not used, where there are such.
All of it is written aside and renamed at the end, by one process at a time: prepare/ is whole or absent. Bad files are
gathered over the whole dataset and reported together; they are left out only where the settings say so, and then
report.json lists them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dakd.config import Config, PrepareConfig
from dakd.data.degenerate import notes_on_set, refuse_flat_images, refuse_unknown_labels
from dakd.data.labelled import entries_to_pack, open_chosen, pick, write_list
from dakd.data.pictures import contact_sheet
from dakd.data.prepared import prepare_settings, with_kept_list
from dakd.data.readers import BadDataset, BadFile, Dataset, SampleFiles
from dakd.data.readers.base import NO_LABEL, UNLABELLED
from dakd.data.readers.label_meaning import refuse_contradiction
from dakd.data.sample import Sample
from dakd.data.shards import write_index, write_shard
from dakd.runtime.lock import locked
from dakd.runtime.runlog import progress, say
from dakd.runtime.sealed import files_of, read_json, write_json, write_manifest

_NUM_PICTURES = 16
_MAX_SHEET_SIDE = 256  # pixels; larger images are shown smaller


@dataclass(frozen=True)
class PrepareResult:
    """folder: RUN/prepare.  splits: {name: folder of its shards}.  report: as in report.json.

    is_reused: the folder was there already, made with the same settings.
    """

    folder: Path
    splits: dict[str, Path]
    report: dict
    is_reused: bool


@dataclass
class _Tally:
    """Facts that come up while the files are read."""

    problems: list[BadFile] = field(default_factory=list)
    off_palette: dict[str, int] = field(default_factory=dict)
    num_flat: Counter[str] = field(default_factory=Counter)  # images of one grey, by split


def prepare(cfg: Config, run_dir: str | Path | None = None, rebuild: bool = False) -> PrepareResult:
    """Packs the dataset of `cfg.prepare` into RUN/prepare; a second call with the same settings reuses the result.

    run_dir: default cfg.run_path.  rebuild: replaces what other settings have made; else that is a ValueError.
    Raises BadDataset naming every bad file, with on_bad_file="skip" only when a split is left empty; RuntimeError where
    another process is preparing this run.
    """
    folder = Path(run_dir or cfg.run_path) / "prepare"
    settings = prepare_settings(cfg)
    if not rebuild and (found := _reusable(folder, settings)):
        return found
    with locked(folder.parent):
        _undo_half_exchange(folder)
        if found := _reusable(folder, settings, rebuild):
            return found
        aside = folder.with_name("prepare.partial")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            report = _build(cfg.prepare, settings.get("seed", cfg.seed), settings, aside)
            _exchange(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    for line in describe(report):
        say(f"prepare: {line}")
    return _result(folder, report, is_reused=False)


def found_report(cfg: Config) -> dict | None:
    """The report of the run's prepared set; None where there is none, ValueError where other settings made it."""
    folder = cfg.run_path / "prepare"
    found = _find_report(folder)
    if found is not None:
        _refuse_other_settings(folder, found, prepare_settings(cfg))
    return found


def describe(report: dict) -> list[str]:
    """report.json in a few lines for people."""
    lines = []
    for split, facts in report["splits"].items():
        sizes = ", ".join(f"{number} of {size}" for size, number in facts["sizes"].items())
        use = "they serve stage 1 and pseudo_label" if split == UNLABELLED else "they serve stage 1 only"
        labels = _describe_labels(facts) if facts["num_labelled"] else f"no labels ({use})"
        lines.append(f"{split}: {facts['num_samples']} samples ({sizes})  {labels}  b {facts['balancing_factor']:.4f}")
    return lines + notes(report)


def notes(report: dict) -> list[str]:
    """The remarks of report.json: classes without a pixel, images of one grey; unread, repaired and skipped files."""
    lines = []
    for split, facts in report["splits"].items():
        lines += notes_on_set(split, facts)
    if report["unread"]:
        splits = {name: facts for name, facts in report["splits"].items() if name != UNLABELLED}
        are_missing = any(facts["num_labelled"] < facts["num_samples"] for facts in splits.values())
        hint = f"; dakd reads {report['layout']}" if are_missing else ""
        lines.append(f"not read: {', '.join(report['unread'])}{hint}")
    if report["num_off_palette"]:
        files = ", ".join(f"{name} {count}" for name, count in report["off_palette"].items())
        lines.append(f"{report['num_off_palette']} label pixels took the nearer of two blended class colours ({files})")
    if report["skipped"]:
        lines.append(f"{len(report['skipped'])} bad files were skipped; report.json names them")
    return lines


def _describe_labels(facts: dict) -> str:
    shares = [f"{name} {100 * share:.2f}%" for name, share in facts["class_pixel_shares"].items()]
    if unknown := facts.get("unknown_share"):
        shares.append(f"(unknown: {100 * unknown:.2f}% of all)")
    return "  ".join(shares)


def resize_sample(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample at (height, width): the image by area averages, the label by nearest neighbour."""
    if sample.sar.shape == tuple(size):
        return sample
    wanted = (size[1], size[0])
    sar = np.array(Image.fromarray(sample.sar).resize(wanted, Image.Resampling.BOX))
    label = sample.label
    if label is not None:
        label = np.array(Image.fromarray(label).resize(wanted, Image.Resampling.NEAREST))
    return replace(sample, sar=sar, label=label)


# --- the folder's place -----------------------------------------------------------------------------------------------


def _exchange(new: Path, folder: Path) -> None:
    """`new` takes the place of `folder`, which is deleted only after that."""
    old = _old(folder)
    # A folder cannot be renamed over one that holds files, so the old one is renamed first.
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        _undo_half_exchange(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _undo_half_exchange(folder: Path) -> None:
    """After an exchange that was cut off: the old folder comes back where there is none, else it goes."""
    old = _old(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


# --- building ---------------------------------------------------------------------------------------------------------


def _build(cfg: PrepareConfig, seed: int, settings: dict, folder: Path) -> dict:
    dataset = open_chosen(cfg, seed, settings.get("subset_seed", seed))
    tally = _Tally(problems=dataset.problems())
    if all(dataset.entries(split) for split in dataset.splits):
        dataset.check()
    meanings = _label_meanings(dataset)
    pictures: list[Sample] = []
    for name in dataset.sets:
        entries = entries_to_pack(dataset, name, cfg.max_samples)
        shown = set(pick(range(len(entries)), math.ceil(_NUM_PICTURES / len(dataset.sets))))
        samples = _read_all(dataset, name, entries, cfg, tally, pictures, shown)
        _write_split(folder / name, samples, dataset, cfg)
    _refuse_bad_files(cfg, tally, folder, dataset.splits)
    report = _write_report(folder, dataset, settings, tally, meanings)
    _sheet(pictures, dataset).save(folder / "contact_sheet.png")
    write_list(folder, dataset)
    write_manifest(folder, files_of(folder))
    return report


def _label_meanings(dataset: Dataset) -> dict[str, dict]:
    """The facts of each split's labels, which are decided here, before any is packed, and said."""
    found = {split: dataset.label_meaning(split) for split in dataset.splits}
    found = {split: meaning for split, meaning in found.items() if meaning is not None}
    for split, meaning in found.items():
        say(f"prepare: {meaning.describe(split)}")
    refuse_contradiction(found)
    return {split: meaning.facts for split, meaning in found.items()}


def _read_all(
    dataset: Dataset,
    split: str,
    entries: list[SampleFiles],
    cfg: PrepareConfig,
    tally: _Tally,
    pictures: list[Sample],
    shown: set[int],
) -> Iterator[Sample]:
    for place, entry in enumerate(progress(entries, len(entries), f"prepare {split}")):
        try:
            sample = dataset.read(entry)
        except BadFile as problem:
            tally.problems.append(problem)
            continue
        if off_palette := sample.meta.get("off_palette"):
            tally.off_palette[f"{split}/{entry.label_path.name}"] = off_palette
        if cfg.resize is not None:
            sample = resize_sample(sample, cfg.resize)
        tally.num_flat[split] += int(sample.sar.min() == sample.sar.max())
        if place in shown:
            pictures.append(sample)
        yield sample


def _write_split(folder: Path, samples: Iterator[Sample], dataset: Dataset, cfg: PrepareConfig) -> None:
    for index in itertools.count():
        first = next(samples, None)
        if first is None:
            return
        rest = itertools.islice(samples, cfg.shard_size - 1)
        write_shard(folder, index, itertools.chain([first], rest), dataset.classes)


def _refuse_bad_files(cfg: PrepareConfig, tally: _Tally, folder: Path, splits: tuple[str, ...]) -> None:
    problems = tally.problems
    if problems and cfg.on_bad_file == "stop":
        of_masks = "; prepare.on_missing_mask: image_only takes training images without a mask as images alone"
        raise BadDataset(
            f"dataset {cfg.dataset!r} at {cfg.root} has {len(problems)} problem(s):",
            problems,
            "fix or remove them, or set prepare.on_bad_file to skip to leave these samples out"
            + of_masks * any(one.reason == NO_LABEL for one in problems),
        )
    empty = [split for split in splits if not any(folder.joinpath(split).glob("shard-*.tar"))]
    if empty or not splits:
        raise BadDataset(
            f"dataset {cfg.dataset!r} at {cfg.root} has no usable sample in {', '.join(empty) or 'any split'}:",
            problems,
            "an empty split cannot be skipped; check prepare.root and the files named above",
        )


# --- report -----------------------------------------------------------------------------------------------------------


def _write_report(folder: Path, dataset: Dataset, settings: dict, tally: _Tally, meanings: dict[str, dict]) -> dict:
    splits = {}
    for split in _packed_sets(dataset, folder):
        provenance = {"settings": settings, "mask_values": meanings.get(split)}
        index = write_index(folder / split, dataset.classes, kind="real", provenance=provenance)
        where, num_flat = f"{split} of the dataset at {settings['root']}", tally.num_flat[split]
        refuse_unknown_labels(index, where)
        if split == "train":
            refuse_flat_images(num_flat, index.num_samples, where)
        shares = dict(zip(dataset.classes.names, index.class_pixel_shares))
        kept = {"num_samples", "num_labelled", "num_bytes", "sizes", "fingerprint", "mean_power", "balancing_factor"}
        unknown = index.ignored_pixels / max(1, index.ignored_pixels + sum(index.class_pixels))
        facts = index.model_dump(mode="json", include=kept)
        splits[split] = facts | {
            "class_pixel_shares": shares,
            "unknown_share": unknown,
            "num_flat": num_flat,
            "mask_values": meanings.get(split),
        }
    report = {
        "settings": settings,
        "settings_sha256": _fingerprint(settings),
        "splits": splits,
        "num_off_palette": sum(tally.off_palette.values()),
        "off_palette": tally.off_palette,
        "layout": dataset.layout,
        "unread": dataset.unread(),
        "skipped": [{"path": str(problem.path), "reason": problem.reason} for problem in tally.problems],
    }
    write_json(folder / "report.json", report)
    return report


def _packed_sets(dataset: Dataset, folder: Path) -> list[str]:
    """The sets of which a sample at least was packed; of the splits all are (see `_refuse_bad_files`)."""
    return [name for name in dataset.sets if any(folder.joinpath(name).glob("shard-*.tar"))]


def _sheet(pictures: list[Sample], dataset: Dataset) -> Image.Image:
    small = []
    for sample in pictures:
        height, width = sample.sar.shape
        factor = min(1.0, _MAX_SHEET_SIDE / max(height, width))
        small.append(resize_sample(sample, (max(1, round(height * factor)), max(1, round(width * factor)))))
    scale = max(1, 128 // max(max(sample.sar.shape) for sample in small))
    return contact_sheet(small, dataset.classes, columns=4, scale=scale)


def _fingerprint(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _reusable(folder: Path, settings: dict, rebuild: bool = False) -> PrepareResult | None:
    """The result that exists, made with the same settings; None where there is none, or where it is to be rebuilt."""
    found = _find_report(folder)
    if found is None or rebuild:
        return None
    _refuse_other_settings(folder, found, settings)
    say(f"prepare: {folder} is there already, made with the same settings")
    return _result(folder, found, is_reused=True)


def _find_report(folder: Path) -> dict | None:
    path = folder / "report.json"
    if (report := read_json(path, f"remove {folder} and run prepare again")) is not None:
        return report
    if folder.exists():
        raise ValueError(
            f"{folder} exists without report.json, so prepare did not make it; remove it or take another run"
        )
    return report


def _refuse_other_settings(folder: Path, report: dict, settings: dict) -> None:
    settings = with_kept_list(settings, report["settings"])
    if report["settings_sha256"] == _fingerprint(settings):
        return
    before = report["settings"]
    changed = [
        f"{name}: {before.get(name)!r} then, {settings.get(name)!r} now"
        for name in sorted(before.keys() | settings.keys())
        if before.get(name) != settings.get(name)
    ]
    raise ValueError(
        f"{folder} was made with other settings ({'; '.join(changed)}); take another run folder, or remove this one"
    )


def _result(folder: Path, report: dict, is_reused: bool) -> PrepareResult:
    return PrepareResult(folder, {split: folder / split for split in report["splits"]}, report, is_reused)
