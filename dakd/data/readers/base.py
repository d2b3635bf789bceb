"""The base class of the dataset readers, and their common parts: strict reading, pairing files, naming bad ones."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dakd.data.sample import ClassTable, Sample

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_MAX_CHANNEL_DIFFERENCE = 8  # grey values; what JPEG's colour coding may do to a grey picture
_LISTED = 50


class BadFile(Exception):
    """One file that cannot be used: its path and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


class BadDataset(ValueError):
    """A dataset that cannot be used as it is; the message lists its bad files."""

    def __init__(self, what: str, problems: list[BadFile], remedy: str) -> None:
        lines = [f"  {problem}" for problem in problems[:_LISTED]]
        if len(problems) > _LISTED:
            lines.append(f"  ... and {len(problems) - _LISTED} more")
        super().__init__("\n".join([what, *lines, remedy]))
        self.problems = problems


@dataclass(frozen=True)
class SampleFiles:
    """The files of one sample of a split, not yet read. label_path: None for an image without a label."""

    key: str
    image_path: Path
    label_path: Path | None


class Dataset:
    """A dataset with classes and splits; a reader fills `_entries` and `_problems` and decodes labels.

    `read` raises BadFile; `problems` lists faults of the structure (an image without its label, an empty split).
    """

    classes: ClassTable

    def __init__(self) -> None:
        self._entries: dict[str, list[SampleFiles]] = {}
        self._problems: list[BadFile] = []

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", "test" and perhaps "val": those that the dataset has."""
        return tuple(self._entries)

    def entries(self, split: str) -> list[SampleFiles]:
        """The entries of a split, sorted by key; ValueError for a split that is not there."""
        if split not in self._entries:
            raise ValueError(f"the dataset has no split {split!r}; it has {', '.join(self._entries) or 'none'}")
        return self._entries[split]

    def problems(self) -> list[BadFile]:
        """Faults of the structure, in the order of the splits."""
        return list(self._problems)

    def check(self) -> None:
        """ValueError when the labels as a whole cannot mean what the settings say; nothing to check by default."""

    def check_labels(self, split: str) -> None:
        """ValueError when the labels read since the last call, those of `split`, hint at another meaning."""

    def read(self, entry: SampleFiles) -> Sample:
        """The sample of an entry; BadFile when the image or label is damaged, or they do not fit together."""
        sar = read_grey(entry.image_path)
        if entry.label_path is None:
            return Sample(entry.key, sar, meta={"source": entry.image_path.name})
        label, facts = self._read_label(entry.label_path)
        if label.shape != sar.shape:
            name, label_size, size = entry.image_path.name, _size(label), _size(sar)
            raise BadFile(
                entry.label_path, f"is {label_size}, its image {name} {size} (width x height); make them equal"
            )
        return Sample(entry.key, sar, label, meta={"source": entry.image_path.name, **facts})

    def _read_label(self, path: Path) -> tuple[np.ndarray, dict]:
        raise TypeError(f"{type(self).__name__} reads no labels")

    def _add_split(self, split: str, images: dict[str, Path], labels: dict[str, Path] | None, where: Path) -> None:
        """Pairs {key: path}; labels None means that the split has none. Notes missing mates and emptiness."""
        if labels is not None:
            lonely, orphaned = images.keys() - labels.keys(), labels.keys() - images.keys()
            self._problems += [BadFile(images[key], "has no label file") for key in sorted(lonely)]
            self._problems += [BadFile(labels[key], "has no image file") for key in sorted(orphaned)]
            images = {key: path for key, path in images.items() if key in labels}
        if not images:
            self._problems.append(BadFile(where, f"the split {split!r} is empty"))
        mates = labels or {}
        self._entries[split] = [SampleFiles(key, images[key], mates.get(key)) for key in sorted(images, key=_natural)]


def read_grey(path: Path, data: bytes | None = None) -> np.ndarray:
    """(H, W) uint8 grey values of a picture; BadFile unless it is whole, 8 bits deep and grey.

    data: the file's content, where it lies in no file of its own.
    """
    return grey_values(open_picture(path, data), path)


def grey_values(picture: Image.Image, path: str | Path) -> np.ndarray:
    """(H, W) uint8 grey values of a decoded picture; BadFile, naming `path`, unless it is 8 bits deep and grey."""
    if picture.mode not in ("L", "RGB", "RGBA", "LA", "P", "1"):
        how = "scale it to 0..255 first, as gdal_translate -ot Byte -scale IN OUT does"
        raise BadFile(path, f"has the pixel type {picture.mode!r}; expected 8-bit grey: {how}")
    if picture.mode == "L":
        return np.array(picture)
    colours = np.array(picture.convert("RGB"))
    red, green, blue = (colours[..., channel] for channel in range(3))
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    difference = int((highest - lowest).max())
    if difference > _MAX_CHANNEL_DIFFERENCE:
        raise BadFile(path, f"is a colour picture (channels differ by {difference}); expected grey, one SAR channel")
    return red.copy() if difference == 0 else colours.mean(axis=-1).round().astype(np.uint8)


def open_picture(path: Path, data: bytes | None = None) -> Image.Image:
    """A picture, decoded to its end; BadFile when it is absent, damaged or truncated.  data: see `read_grey`."""
    return _ask_picture(path, _decoded, data)


def count_pages(path: Path) -> int:
    """How many pictures a file holds; BadFile as above."""
    return _ask_picture(path, lambda picture: getattr(picture, "n_frames", 1))


def _decoded(picture: Image.Image) -> Image.Image:
    picture.load()
    return picture


def _ask_picture(path: Path, question: Callable[[Image.Image], Any], data: bytes | None = None) -> Any:
    if data is None and path.exists() and not path.is_file():  # a pipe would be waited for
        raise BadFile(path, "is not a regular file; expected a picture")
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as picture:
            return question(picture)
    # What the library's parsers stumble over in damaged files has no common base.
    except Exception as error:
        raise BadFile(path, f"cannot be read as a picture ({error})") from error


def find_folder(parent: Path, *names: str) -> Path | None:
    """The first sub-folder of `parent` called one of `names`, in any case; None when there is none."""
    if not parent.is_dir():
        return None
    folders = {path.name.lower(): path for path in sorted(parent.iterdir(), reverse=True) if path.is_dir()}
    return next((folders[name.lower()] for name in names if name.lower() in folders), None)


def list_pictures(folder: Path, key: Callable[[Path], str | None]) -> dict[str, Path]:
    """{key: path} of the pictures in a folder; `key` gives None for those that do not belong.

    ValueError when two files have one key.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = key(path) if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") else None
        if name is None:
            continue
        if name in found:
            raise ValueError(f"{found[name]} and {path} would both be sample {name!r}; rename or remove one")
        found[name] = path
    return found


def stem(path: Path) -> str:
    """A file's name without its suffix, fit to be a sample's key."""
    return re.sub(r"[\s.]", "_", path.stem)


def require_root(root: str | None, what: str) -> Path:
    """The root of a dataset; ValueError when it is not a folder."""
    path = Path(root or "")
    if not root or not path.is_dir():
        raise ValueError(f"{what}: {root!r} is not a folder; set prepare.root (dakd init: --root) to its folder")
    return path


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def _natural(key: str) -> tuple[int, str]:
    """Numbers in their order, then names."""
    return (int(key), "") if key.isdecimal() else (1 << 62, key)
