"""`dakd sample`: pairs from a teacher's weights file, written to a folder. It needs no experiment.

Large sets are made by the step `generate`, with many workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dakd.data.pictures import class_map, contact_sheet, save_png
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet, write_shards
from dakd.data.soft_labels import likeliest_class
from dakd.generate.teacher import Teacher
from dakd.names import written_path
from dakd.runtime.runlog import progress, say

MAX_PAIRS_DRAWN = 64


def sample_to_folder(
    weights: str | Path,
    out_dir: str | Path,
    num: int,
    *,
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    seed: int = 0,
    first: int = 0,
    device: str | None = None,
    precision: str = "auto",
    pictures: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Write `num` pairs of a teacher to a folder, as shards with an index and contact_sheet.png; return the folder.

    size, steps, seed, first, settings: see `Teacher.sample`; the pairs are those of `dakd generate`.
    device, precision: see `Teacher`.
    pictures: also write KEY_sar.png and KEY_class.png (the likeliest class, as a palette picture) of each pair.
    Raises ValueError where the folder already holds a set of shards, unless `overwrite` is set, and where it holds
    pictures of those names without a set that they belong to.
    """
    out_dir = written_path(out_dir)
    if not (out_dir / "index.json").exists() and (pictures_there := _pictures_in(out_dir)):
        raise ValueError(
            f"{pictures_there[0]} is there already, and no set of pairs that it belongs to; give another folder, or "
            "move it away"
        )
    teacher = Teacher(weights, device, precision)
    if teacher.precision.reason:
        say(f"sample: precision: {teacher.precision.name} ({teacher.precision.reason})")
    made = teacher.stream(num, size, steps, seed, first=first, **settings)
    write_shards(out_dir, progress(made, num, "sample"), teacher.classes, overwrite=overwrite,
                 provenance={"checkpoint": teacher.checkpoint, "seed": seed})  # fmt: skip
    for stale in _pictures_in(out_dir):
        stale.unlink()  # of the set that was replaced
    shards = ShardSet(out_dir)
    drawn = [shards.read(i) for i in range(min(num, MAX_PAIRS_DRAWN))]
    save_png(contact_sheet(drawn, teacher.classes), out_dir / "contact_sheet.png")
    if pictures:
        for pair in shards:
            _save_pair(pair, teacher.classes, out_dir)
    say(f"sample: {num} pairs in {out_dir}")
    return out_dir


def _pictures_in(folder: Path) -> list[Path]:
    names = ("contact_sheet.png", "synthetic-*_sar.png", "synthetic-*_class.png")
    return [path for name in names for path in folder.glob(name)]


def _save_pair(pair: Sample, classes: ClassTable, out_dir: Path) -> None:
    label = likeliest_class(np.asarray(pair.soft_label))
    save_png(Image.fromarray(pair.sar), out_dir / f"{pair.key}_sar.png")
    save_png(class_map(label, classes), out_dir / f"{pair.key}_class.png")
