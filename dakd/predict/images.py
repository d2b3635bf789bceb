"""The images to predict: found, named, and read like training images; predicted and written one by one.

All images that cannot be read are reported at the end, when the others are written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from PIL import Image

from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.read_picture import MAX_SCENE_PIXELS, grey_values, read_grey
from dakd.data.readers.unread import IMAGE_SUFFIXES, contents, is_hidden, list_unread
from dakd.predict.prediction import OVERLAY_ALPHA, Prediction
from dakd.runtime.distributed import barrier, rank, world_size
from dakd.runtime.runlog import progress, say


def grey_image(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    """(H, W) uint8 grey values of an array, a PIL picture or a file; ValueError for anything but 8-bit grey."""
    if isinstance(image, str | Path):
        if not Path(image).exists():
            raise FileNotFoundError(f"no image at {str(image)!r}; give the path of a PNG, JPEG, TIFF or BMP")
        return _in_words(lambda: read_image(image))
    if isinstance(image, Image.Image):
        return _in_words(lambda: grey_values(image, "the picture"))
    if np.ma.is_masked(image):
        raise ValueError(
            f"image hides {np.ma.count_masked(image)} of its pixels by a mask; expected a value in every pixel: cut it "
            "to its valid part, or fill the others (image.filled(VALUE))"
        )
    try:
        array = np.asarray(image)
    except (TypeError, RuntimeError) as error:  # of tensors that numpy cannot hold
        raise ValueError(f"image cannot be read as an array: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"image is {array.dtype} of shape {array.shape}; expected uint8 grey values (H, W), not empty: take one "
            "channel, and bring its values to 0..255 as the training images were"
        )
    return array


def _in_words(read: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return read()
    except (BadFile, OSError) as error:
        raise ValueError(str(error)) from error


def read_image(path: str | Path) -> np.ndarray:
    """(H, W) uint8 grey values of a PNG, JPEG, TIFF or BMP, read as images of a dataset are, but of whole scenes too.

    Raises BadFile for all that the table in `dakd.data.readers.read_picture` refuses.
    """
    return read_grey(Path(path), max_pixels=MAX_SCENE_PIXELS)


def list_images(inputs: str | Path) -> tuple[list[Path], list[str]]:
    """The image files of a file or folder by name, and the other files and the sub-folders that lie there, in words.

    Raises ValueError where there is no such file or folder, or no image in it.
    """
    inputs = Path(inputs)
    if inputs.is_file():
        return [inputs], []
    if not inputs.is_dir():
        raise ValueError(f"no file or folder at {inputs}; give an image or a folder of images")
    files = sorted(path for path in inputs.iterdir() if not path.is_dir() and not is_hidden(path))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        expected = f"files that end in {', '.join(IMAGE_SUFFIXES)}, not in sub-folders"
        raise ValueError(f"no image in {inputs}; expected {expected}; found {contents(inputs)}")
    return images, list_unread(inputs, images)


def output_names(paths: list[Path]) -> list[str]:
    """A name for each file's outputs: its stem, or its whole name where two files share a stem."""
    stems = Counter(path.stem for path in paths)
    return [path.name if stems[path.stem] > 1 else path.stem for path in paths]


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
        found, unread = list_images(place)
        if unread:
            say(f"{place}: not read: {', '.join(unread)}")
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
