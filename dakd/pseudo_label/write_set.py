"""A set of pseudo-labelled images in its folder: written aside and renamed, so that it is whole or absent."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dakd.config import PseudoLabelConfig
from dakd.data.good_records import good_samples, without_damaged
from dakd.data.index import Index, load_index
from dakd.data.ordered_records import OnBadRecord
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet, write_index, write_shard
from dakd.data.soft_labels import get_codec
from dakd.pseudo_label.logits import labelled
from dakd.runtime.files import sync
from dakd.runtime.lock import locked
from dakd.runtime.runlog import progress, say
from dakd.runtime.sealed import write_manifest
from dakd.runtime.tensor_files import weights_hash
from dakd.weights import load_student


def label_images(
    folder: Path,
    student: Path,
    images: ShardSet,
    cfg: PseudoLabelConfig,
    temperature: float,
    device: torch.device,
    on_bad_record: OnBadRecord | None = None,
) -> Index:
    """Write the set of a student's pairs to a folder, or find it there; its index.

    temperature: that codes are written for; fp16 logits serve any.  on_bad_record: see `good_samples`; a set without
    some damaged images stays when these are repaired, and a message says so.
    Raises ValueError where the folder holds anything else, RuntimeError where another process writes the same set, and
    BadRecord for a damaged image.
    """
    wanted = provenance(weights_hash(student), images.fingerprint, cfg, temperature)
    num = min(len(images), cfg.max_samples or len(images))
    if (found := find_set(folder, wanted)) is not None:
        lacking = without_damaged(found.num_samples, num)
        say(f"pseudo_label: {folder} is there already, made with the same settings{lacking}")
        return found
    get_codec(cfg.codec, temperature)  # refused before anything is written
    net, facts = load_student(student, device)
    classes = ClassTable.from_dict(facts["classes"])
    with _aside(folder) as aside:
        if (found := find_set(folder, wanted)) is not None:  # of a process that had the lock before
            return found
        good = good_samples(images, range(num), on_bad_record, "pseudo_label")
        pairs = labelled(net, good, cfg.batch_size, cfg.min_confidence, device)
        pairs = progress(pairs, num, "pseudo_label")
        index = _write(aside, pairs, classes, cfg, temperature, wanted)
        aside.rename(folder)
        sync(folder.parent)
    say(f"pseudo_label: {_described(index, cfg.min_confidence)} in {folder}")
    return index


def provenance(student: str, images: str, cfg: PseudoLabelConfig, temperature: float) -> dict[str, Any]:
    """What decides a set.  student: the sha256 of its weights.  images: their fingerprint."""
    # How many images share a pass changes only the rounding.
    settings = cfg.model_dump(mode="json", exclude={"batch_size"})
    if cfg.codec != "fp16":
        settings["temperature"] = temperature
    return {"pseudo_label": settings, "student": student, "images": images}


def find_set(folder: Path, wanted: dict[str, Any]) -> Index | None:
    """The index of the set in a folder, None where there is none; ValueError where the folder holds another thing."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / "index.json").is_file():
        raise ValueError(
            f"{folder} exists without index.json, so pseudo_label did not make it; remove it, or take another folder"
        )
    index = load_index(folder / "index.json")
    refuse_other_set(folder, index.provenance, wanted)
    return index


def refuse_other_set(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """ValueError naming what differs in the provenance of a set and in the one that is asked for."""
    if "pseudo_label" not in found:
        raise ValueError(f"{folder} holds a set of shards of another step; move it away, or take another folder")
    before, now = found["pseudo_label"], wanted["pseudo_label"]
    changed = [
        f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    for name in ("student", "images"):
        if found.get(name) != wanted[name]:
            changed.append(f"{name}: {str(found.get(name))[:12]} then, {wanted[name][:12]} now")
    if changed:
        raise ValueError(
            f"{folder} was labelled with other settings ({'; '.join(changed)}); remove it to label again, or take "
            "another folder"
        )


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """An empty folder beside another one, locked. Its content is removed at the end, and so is that of a kill."""
    aside = folder.with_name(f"{folder.name}.partial")
    # The lock file stays in place, or moves with the folder: never are there two.
    with locked(aside):
        _empty(aside)
        try:
            yield aside
        finally:
            _empty(aside)


def _empty(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write(
    folder: Path,
    pairs: Iterable[Sample],
    classes: ClassTable,
    cfg: PseudoLabelConfig,
    temperature: float,
    facts: dict[str, Any],
) -> Index:
    pairs = iter(pairs)
    for number in itertools.count():
        first = next(pairs, None)
        if first is None:
            break
        shard = itertools.chain([first], itertools.islice(pairs, cfg.shard_size - 1))
        write_shard(folder, number, shard, classes, cfg.codec, temperature=temperature)
    index = write_index(folder, classes, kind="synthetic", codec=cfg.codec, provenance=facts)
    if not sum(index.class_pixels):
        raise ValueError(
            f"not one pixel of {index.num_samples} images reaches the confidence {cfg.min_confidence:g}; lower "
            "pseudo_label.min_confidence"
        )
    write_manifest(folder, [folder / "index.json"])
    return index


def _described(index: Index, min_confidence: float) -> str:
    shares = ", ".join(
        f"{name} {100 * share:.2f}%" for name, share in zip(index.classes.names, index.class_pixel_shares)
    )
    kept = sum(index.class_pixels)
    sure = f"; {100 * kept / (kept + index.ignored_pixels):.2f}% of the pixels are sure" if min_confidence else ""
    return f"{index.num_samples} images ({shares}{sure})"
