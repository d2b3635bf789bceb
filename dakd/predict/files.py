"""Predictions of many images: reads them one by one, writes each one's files, and reports all bad ones at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist

from dakd.data.readers.base import BadFile
from dakd.predict.images import list_images, output_names, read_image
from dakd.predict.prediction import OVERLAY_ALPHA, Prediction
from dakd.runtime.distributed import barrier, rank, world_size
from dakd.runtime.runlog import progress, say


class BadImages(ValueError):
    """Images that could not be predicted. failures: (where, reason) of each; all others were written."""

    def __init__(self, failures: list[tuple[str, str]], num_images: int) -> None:
        self.failures = failures
        lines = "\n".join(f"  {where}: {reason}" for where, reason in failures)
        done = num_images - len(failures)
        super().__init__(f"{len(failures)} of {num_images} images could not be predicted ({done} were):\n{lines}")


@dataclass(frozen=True)
class Source:
    """An image to predict: the name of its outputs, where it comes from, how to read its (H, W) uint8 grey values."""

    name: str
    where: str
    read: Callable[[], np.ndarray]


def file_sources(inputs: Sequence[str | Path], out_dir: str | Path) -> list[Source]:
    """The images of files and folders.

    Raises ValueError where there is none, where outputs would lie among the inputs or two would have one name.
    """
    paths: dict[Path, None] = {}  # in their order, each once
    for place in (Path(one).expanduser() for one in inputs):
        if place.is_dir() and place.resolve() == Path(out_dir).resolve():
            raise ValueError(f"inputs and outputs are one folder, {out_dir}; give another folder for the outputs")
        found, num_others = list_images(place)
        if num_others:
            say(f"{place}: {num_others} files are not images by their names and are left out")
        paths |= dict.fromkeys(found)
    names = output_names(list(paths))
    if doubled := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"two images are called {', '.join(doubled)}; predict their folders one by one")
    return [Source(name, str(path), lambda path=path: read_image(path)) for name, path in zip(names, paths)]


def predict_sources(
    predict: Callable[[np.ndarray], Prediction],
    sources: list[Source],
    out_dir: str | Path,
    overlay_alpha: float = OVERLAY_ALPHA,
) -> None:
    """Predict and write images one by one; rank r takes sources i with i % world == r. Raises BadImages at the end."""
    out_dir = Path(out_dir)
    if out_dir.is_file():
        raise ValueError(f"{out_dir} is a file; give a folder for the predictions")
    out_dir.mkdir(parents=True, exist_ok=True)
    own, failures = sources[rank() :: world_size()], []
    for source in progress(own, len(own), "predict"):
        try:
            sar = source.read()
        except BadFile as error:
            failures.append((source.where, error.reason))
            continue
        predict(sar).save(out_dir, source.name, overlay_alpha)
    failures = _of_all_ranks(failures)
    barrier()
    if failures:
        raise BadImages(failures, len(sources))


def _of_all_ranks(failures: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if not (dist.is_available() and dist.is_initialized()):
        return failures
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, failures)
    return sorted(failure for one in gathered for failure in one)
