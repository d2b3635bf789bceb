"""A refined set of pairs: pixels that a student of real images finds too hard are ignored, hard pairs come more often.

After FreeMask (Yang et al., NeurIPS 2023), with the loss of a student that was trained on real images alone:

- A pixel whose loss is larger than `pixel_gate` times the mean loss of its class over all pairs is ignored. Such a
  record has a hard label beside its soft one: the likeliest class, or what the pairs stored, and 255 at ignored pixels.
- A pair's hardness is the mean loss of its pixels, before any is ignored. With `repeats` N, the pair of rank r of n is
  written ceil(N r / n) times: the easiest at least once, the hardest N times. A copy after the first has the key
  KEY-copy2, KEY-copy3 ...

The set is written aside and takes its place when it is whole; manifest.json, written last, says that all is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dakd.config import Config, RefineConfig
from dakd.data.good_records import without_damaged
from dakd.data.index import load_index
from dakd.data.ordered_records import OnBadRecord
from dakd.data.prepared import open_shards
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet, write_shards
from dakd.metrics.tables import format_table
from dakd.names import written_path
from dakd.refine.losses import Hardness, PairLosses, gated, measure_set
from dakd.runtime.distributed import device_of
from dakd.runtime.kept_config import CONFIG
from dakd.runtime.runlog import progress, save_config, say
from dakd.runtime.sealed import is_as_listed, read_json, remove_manifest, write_json, write_manifest
from dakd.runtime.tensor_files import weights_hash
from dakd.weights import real_student

TABLE = "refine.json"


def refine_pairs(
    student: str | Path,
    pairs: str | Path,
    out_dir: str | Path,
    cfg: RefineConfig,
    *,
    device: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the refined set of a folder of pairs to another folder, with refine.json; return that folder.

    student: a weights file of a student of real images.  device: None takes a GPU where there is one.
    overwrite: replace the set that is there. Raises ValueError where there is one already, where the pairs lack soft
    labels, where the student knows other classes, and where nothing is asked for.
    """
    if not cfg.is_set:
        raise ValueError(
            f"pixel_gate is {cfg.pixel_gate} and repeats {cfg.repeats}, which leaves the pairs as they are; set one of "
            "them"
        )
    out_dir = _write(Path(student), ShardSet(pairs), written_path(out_dir), cfg, None, device, overwrite)
    write_manifest(out_dir, [out_dir / TABLE])
    return out_dir


def refine(config: Config) -> Path | None:
    """The step: RUN/refine from the run's pairs and its student of the set real; None where the settings ask for none.

    A set of these settings, pairs and student that is there is kept; another one is replaced. Damaged pairs stop it or
    are left out, as `data.on_bad_record` has it. Raises ValueError where there is no such student or there are no pairs
    yet.
    """
    cfg, out_dir = config.refine, config.run_path / "refine"
    if not cfg.is_set:
        say("refine: neither refine.pixel_gate nor refine.repeats is set; students take the pairs as they are")
        return None
    student, pairs = real_student(config, "refine"), open_shards(config.unrefined_pairs, config.data)
    if _made_with(out_dir) == _facts(student, pairs, cfg) and is_as_listed(out_dir):
        lacking = without_damaged(read_json(out_dir / TABLE)["num_pairs"], len(pairs))
        say(f"refine: the pairs in {out_dir} are of these settings; nothing to do{lacking}")
        return out_dir
    _write(student, pairs, out_dir, cfg, config.data.on_bad_record, None, overwrite=True)
    save_config(config, out_dir)
    write_manifest(out_dir, [out_dir / TABLE, out_dir / CONFIG])
    return out_dir


def refuse_other_refinement(config: Config) -> None:
    """ValueError where RUN/refine was made with other settings, or from other pairs or another student than are there.

    Pairs behind a URL, and a student or pairs that are gone, are not compared.
    """
    found = _made_with(config.run_path / "refine")
    if not config.refine.is_set or found is None:
        return
    wanted = config.refine.model_dump(mode="json")
    index = Path(config.unrefined_pairs) / "index.json"
    if "://" not in str(config.unrefined_pairs) and index.is_file():
        wanted["pairs"] = load_index(index).fingerprint
    if config.real_student.is_file():
        wanted["student"] = weights_hash(config.real_student)
    if differing := [name for name, value in wanted.items() if found.get(name) != value]:
        raise ValueError(
            f"{config.run_path / 'refine'} was made with another {', '.join(differing)}; set it back, or run dakd "
            "refine to replace the set"
        )


def _write(
    student: Path,
    pairs: ShardSet,
    out_dir: Path,
    cfg: RefineConfig,
    on_bad_record: OnBadRecord | None,
    device: str | None,
    overwrite: bool,
) -> Path:
    """Write the shards, then their table; the manifest is the caller's."""
    _refuse_pairs(pairs, out_dir, overwrite)
    losses = PairLosses(student, pairs.classes, device_of(device))
    (places, hardness), facts = measure_set(pairs, losses, on_bad_record), _facts(student, pairs, cfg)
    ignored = np.zeros(256, np.int64)
    remove_manifest(out_dir)  # of a set that will be replaced
    samples = _refined(map(pairs.read, places), losses, hardness, cfg, ignored)
    codec = pairs.index.codec or ("fp16" if pairs.index.soft_range is None else "logprob8")
    provenance = {"refined": facts, "pairs": pairs.index.provenance}
    shard_size = int(pairs.counts.max())
    write_shards(
        out_dir, samples, pairs.classes, shard_size=shard_size, codec=codec, provenance=provenance, overwrite=overwrite
    )
    table = _table(pairs.classes, hardness, cfg, ignored)
    write_json(out_dir / TABLE, {"refined": facts} | table)
    say(_as_text(table, cfg))
    say(f"refine: {table['num_written']} records of {table['num_pairs']} pairs in {out_dir}")
    return out_dir


def _refined(
    pairs: Iterable[Sample], student: PairLosses, hardness: Hardness, cfg: RefineConfig, ignored: np.ndarray
) -> Iterator[Sample]:
    """The records of the refined set; adds the ignored pixels of each class to `ignored` (256,), once for each pair."""
    ranks = hardness.ranks
    for sample, rank in zip(progress(pairs, len(ranks), "refine: pairs"), ranks):
        if cfg.pixel_gate is not None:
            label, losses = student.of(sample)
            sample = replace(sample, label=gated(label, losses, hardness.class_losses, cfg.pixel_gate))
            ignored += np.bincount(label[sample.label != label], minlength=256)
        for copy in range(1, cfg.copies(int(rank), len(ranks)) + 1):
            yield sample if copy == 1 else replace(sample, key=f"{sample.key}-copy{copy}")


def _facts(student: Path, pairs: ShardSet, cfg: RefineConfig) -> dict:
    """All that a refined set depends on."""
    return {"pairs": pairs.fingerprint, "student": weights_hash(student), **cfg.model_dump(mode="json")}


def _made_with(folder: Path) -> dict | None:
    """The facts of the refined set in a folder; None where there is none."""
    if not (folder / "index.json").is_file():
        return None
    return load_index(folder / "index.json").provenance.get("refined")


def _refuse_pairs(pairs: ShardSet, out_dir: Path, overwrite: bool) -> None:
    if pairs.index.num_soft != len(pairs):
        found = pairs.index.num_soft
        raise ValueError(f"{pairs.folder}: {found} of {len(pairs)} samples have soft labels; expected all")
    if out_dir.exists() and Path(pairs.folder).exists() and out_dir.samefile(pairs.folder):
        raise ValueError(f"{out_dir} is the folder of the pairs themselves; give another one for the refined set")
    if not overwrite and (out_dir / "index.json").exists():  # before the student looks at all pairs
        raise ValueError(f"{out_dir} holds a set of pairs already; give another folder, or --overwrite")


def _table(classes: ClassTable, hardness: Hardness, cfg: RefineConfig, ignored: np.ndarray) -> dict:
    num_pairs = len(hardness.pair_losses)
    copies = Counter(cfg.copies(int(rank), num_pairs) for rank in hardness.ranks)
    return {
        "num_pairs": num_pairs,
        "num_written": sum(count * pairs_of for count, pairs_of in copies.items()),
        "classes": {
            name: {
                "pixels": int(hardness.class_pixels[number]),
                "mean_loss": float(hardness.class_losses[number]),
                "ignored_pixels": int(ignored[number]),
            }
            for number, name in enumerate(classes.names)
        },
        "pairs_by_copies": {str(count): copies[count] for count in sorted(copies)},
    }


def _as_text(table: dict, cfg: RefineConfig) -> str:
    rows = [
        [name, one["pixels"], one["mean_loss"], one["ignored_pixels"],
         100 * one["ignored_pixels"] / one["pixels"] if one["pixels"] else None]
        for name, one in table["classes"].items()
    ]  # fmt: skip
    limit = "no pixel is ignored" if cfg.pixel_gate is None else f"ignored: above {cfg.pixel_gate:g} x mean loss"
    times = ", ".join(f"{count} {copies} x" for copies, count in table["pairs_by_copies"].items())
    text = format_table(["class", "pixels", "mean loss, nats", "ignored", "ignored, %"], rows)
    return f"{text}\n{limit}; pairs written: {times}"
