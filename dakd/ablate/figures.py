"""The paper's figures from our own runs, as far as the jobs of a table are done.

    noising.png       the mask and the image over t, with and without the balancing factor (paper, section on b)
    pairs.png         pairs of the table's generators, side by side
    predictions.png   the predictions of the table's students on test images, below the truth
    curve.png         mIoU against the number of labelled images, for tables with a curve
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dakd.ablate.curve import draw_curve
from dakd.ablate.plan import Cell, Job, TablePlan
from dakd.ablate.run import JobStore
from dakd.data.balance import resolve_balance
from dakd.data.pictures import colourise
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.diffusion.schedule import CosineSchedule
from dakd.evaluate.inputs import find_students, open_student
from dakd.evaluate.students import labels_of, predict_classes, stack_images
from dakd.models.student import at_scales
from dakd.runtime.distributed import device
from dakd.runtime.seeding import Stream, numpy_rng

TIMESTEPS = (0, 100, 250, 400, 550, 700, 850)
NUM_PAIRS = 6
NUM_IMAGES = 6
_GAP, _MARGIN = 4, 8
_TILE = 128  # pixels, the least side of a tile


def draw_figures(plan: TablePlan, store: JobStore, folder: Path) -> list[Path]:
    """Draw the figures whose jobs are done; the files."""
    written = []
    for name, draw in (("noising", _noising), ("pairs", _pairs), ("predictions", _predictions)):
        picture = draw(plan, store)
        if picture is not None:
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{name}.png")
            written.append(folder / f"{name}.png")
    if draw_curve(plan, store, folder / "curve.png"):
        written.append(folder / "curve.png")
    return written


def _noising(plan: TablePlan, store: JobStore) -> Image.Image | None:
    """A training pair over t: where the mask stays readable much longer than the image, it gives the answer away."""
    job = next((job for job in plan.jobs if job.kind == "prepare" and store.is_done(job)), None)
    if job is None:
        return None
    train = ShardSet(store.folder_of(job) / "prepare" / "train")
    sample = _most_balanced(train)
    b = resolve_balance("auto", store.folder_of(job))
    return noising_figure(sample, b, job.config.train_jointnet.schedule.num_train_timesteps)


def noising_figure(sample: Sample, b: float, num_timesteps: int = 1000) -> Image.Image:
    """Rows: noisy image, noisy mask as it is, noisy mask times b; columns: t.  sample: labelled, two classes or more.

    The mask's channel is that of the class with the second most pixels; -1 to 1 is shown from black to white.
    """
    labels = labels_of(sample)
    ids, counts = np.unique(labels, return_counts=True)
    shown = ids[np.argsort(counts)[-2]] if len(ids) > 1 else ids[0]
    image, mask = sample.sar / 127.5 - 1.0, np.where(labels == shown, 1.0, -1.0)
    alpha_bar = CosineSchedule(num_timesteps).alpha_bar.numpy()
    streams = (Stream.START_IMAGE, Stream.START_LABEL)
    noise = [numpy_rng(0, stream=stream).standard_normal(image.shape) for stream in streams]
    steps = [t * num_timesteps // 1000 for t in TIMESTEPS]

    def noised(clean: np.ndarray, eps: np.ndarray) -> list[np.ndarray]:
        levels = [np.sqrt(alpha_bar[t]) * clean + np.sqrt(1 - alpha_bar[t]) * eps for t in steps]
        return [np.clip((one + 1) * 127.5, 0, 255).astype(np.uint8) for one in levels]

    rows = {
        "image": noised(image, noise[0]),
        "mask, b = 1": noised(mask, noise[1]),
        f"mask, b = {b:.3f}": noised(b * mask, noise[1]),
    }
    return captioned_rows(rows, [f"t = {t}" for t in steps])


def _pairs(plan: TablePlan, store: JobStore) -> Image.Image | None:
    """The first pairs of each row's set, from the same start noise: image above, label below."""
    rows: dict[str, list[np.ndarray]] = {}
    for cell in _first_cells(plan):
        made = _job_of(cell, "generate")
        if made is None or not store.is_done(made):
            continue
        pairs = ShardSet(store.folder_of(made) / "generate")
        samples = [pairs.read(index) for index in range(min(NUM_PAIRS, len(pairs)))]
        rows.setdefault(_title(cell), _both(samples, pairs.classes))
    unique = {}
    for title, tiles in rows.items():  # rows with the same set show it once
        if not any(np.array_equal(tiles[0], other[0]) for other in unique.values()):
            unique[title] = tiles
    return captioned_rows(unique, [f"pair {number}" for number in range(NUM_PAIRS)]) if unique else None


def _both(samples: Sequence[Sample], classes: ClassTable) -> list[np.ndarray]:
    tiles = []
    for sample in samples:
        grey = np.repeat(sample.sar[..., None], 3, axis=-1)
        tiles.append(np.concatenate([grey, colourise(labels_of(sample), classes)], axis=0))
    return tiles


def _predictions(plan: TablePlan, store: JobStore) -> Image.Image | None:
    """Evenly spaced test images, the truth, and the predictions of each row's student."""
    rows: dict[str, list[np.ndarray]] = {}
    for cell in _first_cells(plan):
        job = cell.jobs.get("student")
        if job is None or not store.is_done(job):
            continue
        folder = store.folder_of(job)
        if not (folder / "prepare" / "test").is_dir():  # scores that were kept without images and weights
            continue
        held_out = ShardSet(folder / "prepare" / "test")
        chosen = np.unique(np.linspace(0, len(held_out) - 1, min(NUM_IMAGES, len(held_out))).round().astype(int))
        samples = [held_out.read(int(index)) for index in chosen]
        prefix = f"{cell.dataset}: " if cell.dataset else ""
        rows.setdefault(f"{prefix}image", [np.repeat(one.sar[..., None], 3, axis=-1) for one in samples])
        rows.setdefault(f"{prefix}truth", [colourise(labels_of(one), held_out.classes) for one in samples])
        cfg = job.config.evaluate
        student = open_student(find_students(folder, cfg.weights)[cell.row.training_set], held_out.classes)
        model = at_scales(student, cfg.scales)
        rows[_title(cell)] = [_predict(model, one, held_out.classes) for one in samples]
    return captioned_rows(rows, []) if rows else None


def _predict(model: torch.nn.Module, sample: Sample, classes: ClassTable) -> np.ndarray:
    ids = predict_classes(model, stack_images([sample], device()))[0]
    return colourise(ids.to(torch.uint8).cpu().numpy(), classes)


def _first_cells(plan: TablePlan) -> list[Cell]:
    return [cell for cell in plan.cells if cell.seed == plan.table.seeds[0] and cell.repeat == 0]


def _job_of(cell: Cell, kind: str) -> Job | None:
    return next((job for last in cell.jobs.values() for job in last.chain() if job.kind == kind), None)


def _title(cell: Cell) -> str:
    return f"{cell.dataset}: {cell.row.name}" if cell.dataset else cell.row.name


def _most_balanced(shard_set: ShardSet, among: int = 64) -> Sample:
    """Of the first samples, the one whose second most frequent class has the most pixels."""
    def second(sample: Sample) -> int:
        counts = np.sort(np.bincount(labels_of(sample).ravel(), minlength=2))
        return int(counts[-2])

    return max((shard_set.read(index) for index in range(min(among, len(shard_set)))), key=second)


def captioned_rows(rows: dict[str, list[np.ndarray]], heads: Sequence[str]) -> Image.Image:
    """Tiles (H, W) or (H, W, 3) uint8 in rows with a caption to the left; heads: over the columns, or none.

    Small tiles are magnified by a whole number, and all are brought to one width.
    """
    if not rows:
        raise ValueError("a figure has no rows; expected at least one")
    font = ImageFont.load_default(15)
    first = next(iter(rows.values()))[0]
    scale = max(1, -(-_TILE // first.shape[1]))
    width, top = first.shape[1] * scale, (24 if heads else 0) + _MARGIN
    left = max(int(font.getlength(caption)) for caption in rows) + 2 * _MARGIN
    columns = max(len(tiles) for tiles in rows.values())
    # the height that each row's first tile has at that width
    heights = [tiles[0].shape[0] * width // tiles[0].shape[1] for tiles in rows.values()]
    size = (left + columns * (width + _GAP) + _MARGIN, top + sum(height + _GAP for height in heights) + _MARGIN)
    canvas = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for column, head in enumerate(heads):
        draw.text((left + column * (width + _GAP), _MARGIN), head, fill=(40, 40, 40), font=font)
    for (caption, tiles), height in zip(rows.items(), heights):
        draw.text((_MARGIN, top + height // 2 - 8), caption, fill=(40, 40, 40), font=font)
        for column, tile in enumerate(tiles):
            picture = Image.fromarray(tile).convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(picture, (left + column * (width + _GAP), top))
        top += height + _GAP
    return canvas
