"""The image files to predict, the names of their outputs, and their grey values, read like those of training images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from dakd.data.readers.base import IMAGE_SUFFIXES, BadFile, count_pages, grey_values, read_grey


def grey_image(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    """(H, W) uint8 grey values of an array, a PIL picture or a file; ValueError for anything but 8-bit grey."""
    if isinstance(image, str | Path):
        if not Path(image).exists():
            raise FileNotFoundError(f"no image at {str(image)!r}; give the path of a PNG, JPEG, TIFF or BMP")
        return _in_words(lambda: read_image(image))
    if isinstance(image, Image.Image):
        return _in_words(lambda: grey_values(image, "the picture"))
    try:
        array = np.asarray(image)
    except (TypeError, RuntimeError) as error:  # of tensors that numpy cannot hold
        raise ValueError(f"image cannot be read as an array: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"image is {array.dtype} of shape {array.shape}; wanted uint8 grey values (H, W), not empty: take one "
            "channel, and bring its values to 0..255 as the training images were"
        )
    return array


def _in_words(read: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return read()
    except (BadFile, OSError) as error:
        raise ValueError(str(error)) from error


def read_image(path: str | Path) -> np.ndarray:
    """(H, W) uint8 grey values of a PNG, JPEG, TIFF or BMP of any size.

    Taken: 8-bit grey, and 8-bit colour whose channels are equal but for JPEG's errors (their mean is taken; an alpha
    channel is dropped). Raises BadFile for other depths, colour pictures, several pages and unreadable files.
    """
    path = Path(path)
    with _any_size():
        sar, num_pages = read_grey(path), count_pages(path)
    if num_pages > 1:
        raise BadFile(path, f"has {num_pages} pages; wanted one picture a file: split it")
    return sar


@contextmanager
def _any_size() -> Iterator[None]:
    """Lets PIL open scenes of 400 million pixels, which it would refuse as an attack."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def list_images(inputs: str | Path) -> tuple[list[Path], int]:
    """The image files of a file or folder (not its sub-folders) by name, and how many other files lie there.

    Raises ValueError where there is no such file or folder, or no image in it.
    """
    inputs = Path(inputs)
    if inputs.is_file():
        return [inputs], 0
    if not inputs.is_dir():
        raise ValueError(f"no file or folder at {inputs}; give an image or a folder of images")
    files = sorted(path for path in inputs.iterdir() if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise ValueError(f"no image in {inputs}; wanted files that end in {', '.join(IMAGE_SUFFIXES)}")
    return images, len(files) - len(images)


def output_names(paths: list[Path]) -> list[str]:
    """A name for each file's outputs: its stem, or its whole name where two files share a stem."""
    stems = Counter(path.stem for path in paths)
    return [path.name if stems[path.stem] > 1 else path.stem for path in paths]
