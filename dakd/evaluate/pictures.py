"""Pictures for the report: held-out images with their truth and each student's prediction, and labels laid on images.

They go to `evaluate/pictures/` with an index.json that names the files, so that the report needs no model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from dakd.data.pictures import colourise, overlay
from dakd.data.shards import ShardSet
from dakd.evaluate.inputs import LabelledFolder
from dakd.evaluate.students import StudentEvaluation, labels_of, predict_classes, stack_images
from dakd.runtime.files import replacing
from dakd.runtime.sealed import write_json

MAX_SIDE = 480  # pixels; larger pictures are shrunk, for the report carries them all
NUM_EXTREMES = 3  # best and worst images
NUM_OVERLAYS = 8  # pairs shown with the label on the image


class ShownImage(NamedTuple):
    """A held-out image to show: its group (held-out, best or worst) and its index in the set."""

    group: str
    index: int


def write_pictures(
    folder: Path,
    held_out: ShardSet | LabelledFolder,
    results: dict[str, StudentEvaluation],
    open_student: Callable[[str], torch.nn.Module],
    pair_sets: dict[str, ShardSet],
    num_pictures: int,
    device: str | torch.device,
) -> None:
    """Write the pictures and their index.json; those of an earlier evaluation go.

    results: by student; best and worst are the last one's.  open_student: loads the model of that name, one at a time.
    pair_sets: by name, sets of which pairs are shown with the label on the image.  num_pictures: 0 writes none.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    mious = {name: result.image_mious() for name, result in results.items()}
    shown, overlays = [], {}
    if results:
        last = list(results)[-1]
        shown = choose_images(results[last].per_image, mious[last], num_pictures)
    images = draw_predictions(folder, held_out, shown, mious, open_student, device)
    if num_pictures:
        overlays = {name: draw_overlays(folder, name, one) for name, one in pair_sets.items()}
    write_json(folder / "index.json", {"images": images, "overlays": overlays, "classes": held_out.classes.to_dict()})


def choose_images(per_image: np.ndarray, mious: np.ndarray, num_pictures: int) -> list[ShownImage]:
    """Held-out images at even distances, then the best and the worst by mIoU.

    per_image: (N, K, K) counts.  mious: (N,), NaN where an image has no counted pixel.
    An image with a single true class is best without merit, so best and worst come from the others where there are any.
    """
    num_images = len(mious)
    if not num_pictures or not num_images:
        return []
    scored = np.flatnonzero(~np.isnan(mious))
    mixed = [index for index in scored if (per_image[index].sum(axis=1) > 0).sum() > 1]
    ranked = sorted(mixed or scored, key=lambda index: (mious[index], index))
    count = min(NUM_EXTREMES, len(ranked) // 2)
    groups = {
        "held-out": _evenly(num_images, num_pictures),
        "best": reversed(ranked[len(ranked) - count :]),
        "worst": ranked[:count],
    }
    return [ShownImage(group, int(index)) for group, indices in groups.items() for index in indices]


def draw_predictions(
    folder: Path,
    held_out: ShardSet | LabelledFolder,
    shown: list[ShownImage],
    mious: dict[str, np.ndarray],
    open_student: Callable[[str], torch.nn.Module],
    device: str | torch.device,
) -> list[dict]:
    """Write image, truth and each student's prediction of the chosen images; returns one record per image.

    mious: (N,) by student.
    """
    records = [_draw_truth(folder, held_out, number, one) for number, one in enumerate(shown)]
    for student, values in mious.items() if shown else ():
        model = open_student(student)
        for number, one in enumerate(shown):
            sample = held_out.read(one.index)
            prediction = predict_classes(model, stack_images([sample], device))[0].to(torch.uint8).cpu().numpy()
            records[number]["files"][student] = _save(
                folder / f"{number:03d}_{student}.png",
                colourise(prediction, held_out.classes),
                Image.Resampling.NEAREST,
            )
            value = values[one.index]
            records[number]["miou"][student] = None if np.isnan(value) else float(value)
    return records


def draw_overlays(folder: Path, name: str, shard_set: ShardSet) -> list[dict]:
    """Write pairs at even distances of a set: the image, and the same with its label on it; one record per pair."""
    records = []
    for number, index in enumerate(_evenly(len(shard_set), NUM_OVERLAYS)):
        sample = shard_set.read(int(index))
        laid = overlay(sample.sar, labels_of(sample), shard_set.classes)
        stem = f"{name}_{number:03d}"
        files = {
            "image": _save(folder / f"{stem}_image.png", sample.sar, Image.Resampling.BOX),
            "label on image": _save(folder / f"{stem}_overlay.png", laid, Image.Resampling.BOX),
        }
        records.append({"key": sample.key, "files": files})
    return records


def _evenly(num_images: int, num_chosen: int) -> np.ndarray:
    """Indices at even distances, the first and the last among them."""
    return np.unique(np.linspace(0, num_images - 1, min(num_chosen, num_images)).round().astype(int))


def _draw_truth(folder: Path, held_out: ShardSet | LabelledFolder, number: int, shown: ShownImage) -> dict:
    sample = held_out.read(shown.index)
    truth = colourise(labels_of(sample), held_out.classes)
    files = {
        "image": _save(folder / f"{number:03d}_image.png", sample.sar, Image.Resampling.BOX),
        "truth": _save(folder / f"{number:03d}_truth.png", truth, Image.Resampling.NEAREST),
    }
    return {"key": sample.key, "group": shown.group, "size": sample.sar.shape, "files": files, "miou": {}}


def _save(path: Path, pixels: np.ndarray, resampling: Image.Resampling) -> str:
    picture = Image.fromarray(pixels)
    scale = MAX_SIDE / max(picture.size)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize(size, resampling)
    with replacing(path) as aside:
        picture.save(aside, format="PNG", optimize=True)
    return path.name
