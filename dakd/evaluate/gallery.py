"""Pictures for the report: held-out images with their truth and each student's prediction, and labels laid on images.

Written to `evaluate/pictures/` with an index.json that names the files, so that the report needs no model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dakd.data.pictures import colourise, overlay
from dakd.data.sample import ClassTable
from dakd.data.shards import ShardSet
from dakd.evaluate.segmentation import labels_of, predict_classes, stack_images
from dakd.runtime.files import write_json

MAX_SIDE = 480  # pixels; larger pictures are shrunk, for the report carries them all
NUM_EXTREMES = 3  # best and worst images
NUM_OVERLAYS = 8  # pairs shown with the label on the image
GROUPS = ("held-out", "best", "worst")


@dataclass(frozen=True)
class Choice:
    """One image to show: its place in the set and why."""

    group: str
    index: int


def choose_images(per_image: np.ndarray, mious: np.ndarray, num_pictures: int) -> list[Choice]:
    """Held-out images at even distances, then the best and the worst by mIoU.

    per_image: (N, K, K) counts.  mious: (N,), NaN where an image has no counted pixel.
    An image with a single true class is best without merit, so best and worst come from the others where there are any.
    """
    num_images = len(mious)
    if not num_pictures or not num_images:
        return []
    places = np.unique(np.linspace(0, num_images - 1, min(num_pictures, num_images)).round().astype(int))
    scored = np.flatnonzero(~np.isnan(mious))
    mixed = [index for index in scored if (per_image[index].sum(axis=1) > 0).sum() > 1]
    ranked = sorted(mixed or scored, key=lambda index: (mious[index], index))
    count = min(NUM_EXTREMES, len(ranked) // 2)
    return [
        *(Choice("held-out", int(index)) for index in places),
        *(Choice("best", int(index)) for index in reversed(ranked[len(ranked) - count :])),
        *(Choice("worst", int(index)) for index in ranked[:count]),
    ]


def write_gallery(
    folder: Path,
    shard_set: ShardSet,
    choices: list[Choice],
    mious: dict[str, np.ndarray],
    open_student: Callable[[str], torch.nn.Module],
    device: str | torch.device,
) -> list[dict]:
    """Write image, truth and each student's prediction of the chosen images; returns one record an image.

    mious: (N,) by student; open_student: loads the model of that name, one at a time.
    """
    records = [_write_truth(folder, shard_set, number, choice) for number, choice in enumerate(choices)]
    for student, values in mious.items():
        model = open_student(student) if choices else None
        for number, choice in enumerate(choices):
            sample = shard_set.read(choice.index)
            prediction = predict_classes(model, stack_images([sample], device))[0].to(torch.uint8).cpu().numpy()
            records[number]["files"][student] = _save(
                folder / f"{number:03d}_{student}.png",
                colourise(prediction, shard_set.classes),
                Image.Resampling.NEAREST,
            )
            value = values[choice.index]
            records[number]["miou"][student] = None if np.isnan(value) else float(value)
    return records


def write_overlays(folder: Path, name: str, shard_set: ShardSet) -> list[dict]:
    """Pairs at even distances of a set, image beside the same image under its label; returns one record a pair."""
    places = np.unique(np.linspace(0, len(shard_set) - 1, min(NUM_OVERLAYS, len(shard_set))).round().astype(int))
    records = []
    for number, index in enumerate(places):
        sample = shard_set.read(int(index))
        laid = overlay(sample.sar, labels_of(sample), shard_set.classes, 0.45)
        stem = f"{name}_{number:03d}"
        files = {
            "image": _save(folder / f"{stem}_image.png", sample.sar, Image.Resampling.BOX),
            "label on image": _save(folder / f"{stem}_overlay.png", laid, Image.Resampling.BOX),
        }
        records.append({"key": sample.key, "files": files})
    return records


def start_gallery(folder: Path) -> None:
    """An empty folder: pictures of an earlier evaluation do not stay."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def finish_gallery(folder: Path, images: list[dict], overlays: dict[str, list[dict]], classes: ClassTable) -> None:
    write_json(folder / "index.json", {"images": images, "overlays": overlays, "classes": classes.to_dict()})


def _write_truth(folder: Path, shard_set: ShardSet, number: int, choice: Choice) -> dict:
    sample = shard_set.read(choice.index)
    truth = colourise(labels_of(sample), shard_set.classes)
    files = {
        "image": _save(folder / f"{number:03d}_image.png", sample.sar, Image.Resampling.BOX),
        "truth": _save(folder / f"{number:03d}_truth.png", truth, Image.Resampling.NEAREST),
    }
    return {"key": sample.key, "group": choice.group, "size": sample.sar.shape, "files": files, "miou": {}}


def _save(path: Path, pixels: np.ndarray, resampling: Image.Resampling) -> str:
    picture = Image.fromarray(pixels)
    scale = MAX_SIDE / max(picture.size)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize(size, resampling)
    picture.save(path, optimize=True)
    return path.name
