"""The base class of the dataset readers, and their common parts: strict reading, pairing files, naming bad ones."""

from __future__ import annotations

import filecmp
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.label_meaning import LabelMeaning
from dakd.data.readers.mask_names import find_mask_among
from dakd.data.readers.read_picture import read_grey
from dakd.data.readers.unread import IMAGE_SUFFIXES, contents, is_hidden, list_unread
from dakd.data.sample import ClassTable, Sample
from dakd.data.tars import KEY_FORM, is_key

UNLABELLED = "unlabelled"  # the set of the training images whose labels are absent or not used
_LISTED, _LONG = 50, 100  # files; characters of a reason
NO_LABEL = "has no label file"


class BadDataset(ValueError):
    """A dataset that cannot be used as it is; the message lists its bad files, and a long reason once."""

    def __init__(self, what: str, problems: list[BadFile], remedy: str) -> None:
        lines, said = [], set()
        for problem in problems[:_LISTED]:
            lines.append(f"  {problem.path}: the same" if problem.reason in said else f"  {problem}")
            said |= {problem.reason} if len(problem.reason) > _LONG else set()
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
    split: str = ""


class Dataset:
    """A dataset with classes and splits; a reader fills `_entries` and `_problems` and decodes labels.

    `read` raises BadFile; `problems` lists faults of the structure (an image without its label, an empty split).
    """

    classes: ClassTable
    layout: str = ""  # which folders are read, for messages

    def __init__(self, root: Path | None = None) -> None:
        self._root, self._searched = root, []
        self._entries: dict[str, list[SampleFiles]] = {}
        self._unlabelled: list[SampleFiles] = []
        self._unopened: set[Path] = set()  # masks that are set aside, images that are left out
        self._problems: list[BadFile] = []
        self._lonely: dict[str, list[SampleFiles]] = {}  # images without a label, in splits that have labels

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", "test" and perhaps "val": those that the dataset has."""
        return tuple(self._entries)

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets to pack: the splits, and "unlabelled" where training images were set aside."""
        return (*self.splits, *([UNLABELLED] if self._unlabelled else []))

    def entries(self, split: str) -> list[SampleFiles]:
        """The entries of a split or of "unlabelled", sorted by key; ValueError for a split that is not there."""
        if split == UNLABELLED:
            return self._unlabelled
        if split not in self._entries:
            raise ValueError(
                f"the dataset has no split {split!r}; expected one of "
                f"{', '.join(self._entries) or 'none'}"
            )
        return self._entries[split]

    def problems(self) -> list[BadFile]:
        """Faults of the structure, in the order of the splits."""
        return list(self._problems)

    @property
    def has_unmasked(self) -> bool:
        """Whether training images without a label lie among others that have one, not set aside."""
        return bool(self._lonely.get("train"))

    def keep_labels(self, keys: Collection[str]) -> None:
        """Set the other training images aside as "unlabelled": they come without labels, whose files stay closed.

        keys: of training images.
        """
        train, keys = self.entries("train"), set(keys)
        self._entries["train"] = [entry for entry in train if entry.key in keys]
        rest = [entry for entry in train if entry.key not in keys]
        self._unopened |= {entry.label_path for entry in rest if entry.label_path is not None}
        self._set_aside(rest)

    def keep_images(self, keys: Collection[str]) -> None:
        """Leave the other training images out: neither they nor their labels are read.  keys: of training images."""
        train, keys = self.entries("train"), set(keys)
        self._entries["train"] = [entry for entry in train if entry.key in keys]
        left_out = [entry for entry in train if entry.key not in keys]
        self._unopened |= {path for entry in left_out for path in (entry.image_path, entry.label_path) if path}

    def set_aside_unmasked(self) -> None:
        """Set training images without a label aside as "unlabelled", where others have one: no problem any more."""
        lonely = self._lonely.pop("train", [])
        paths = {entry.image_path for entry in lonely}
        self._problems = [one for one in self._problems if one.reason != NO_LABEL or one.path not in paths]
        self._set_aside(lonely)

    def _set_aside(self, entries: list[SampleFiles]) -> None:
        aside = [replace(entry, label_path=None, split=UNLABELLED) for entry in entries]
        self._unlabelled = sorted([*self._unlabelled, *aside], key=lambda entry: _natural(entry.key))

    def unread(self) -> list[str]:
        """The files and folders below the root that no split has, in few words; see `list_unread`."""
        if self._root is None:
            return []
        entries = [*self._unlabelled, *(entry for split in self._entries.values() for entry in split)]
        read = {entry.image_path for entry in entries} | {entry.label_path for entry in entries if entry.label_path}
        read |= self._unopened
        return list_unread(self._root, read | {problem.path for problem in self._problems}, self._searched)

    def leave_out_unpackable(self) -> None:
        """Make problems of the images and labels whose key no record of a shard can have; call it before packing."""
        for split, entries in self._entries.items():
            for entry in entries:
                reason = f"makes the key {entry.key!r}, which no shard can hold; expected {KEY_FORM}: rename it"
                paths = () if is_key(entry.key) else (entry.image_path, entry.label_path)
                self._problems += [BadFile(path, reason) for path in paths if path is not None]
            self._entries[split] = [entry for entry in entries if is_key(entry.key)]

    def check(self) -> None:
        """ValueError when the labels as a whole cannot mean what the settings say; nothing to check by default."""

    def label_meaning(self, split: str) -> LabelMeaning | None:
        """What the values of the split's labels mean, by all of them; None where nothing is to be decided.

        ValueError when they have several meanings; the message names the settings that decide.
        """

    def read(self, entry: SampleFiles) -> Sample:
        """The sample of an entry; BadFile when the image or label is damaged, or they do not fit together."""
        sar = read_grey(entry.image_path)
        if entry.label_path is None:
            return Sample(entry.key, sar, meta={"source": entry.image_path.name})
        label, facts = self._read_label(entry)
        # An empty image and its empty mask may well be one picture.
        if sar.min() < sar.max() and filecmp.cmp(entry.image_path, entry.label_path, shallow=False):
            raise BadFile(
                entry.label_path,
                f"has the same bytes as its image {entry.image_path}; expected an image and a mask of its classes: put "
                "the other one into its place",
            )
        if label.shape != sar.shape:
            name, label_size, size = entry.image_path.name, _size(label), _size(sar)
            raise BadFile(
                entry.label_path, f"is {label_size}, its image {name} {size} (width x height); make them equal"
            )
        return Sample(entry.key, sar, label, meta={"source": entry.image_path.name, **facts})

    def _read_label(self, entry: SampleFiles) -> tuple[np.ndarray, dict]:
        raise TypeError(f"{type(self).__name__} reads no labels")

    def _add_split(
        self, split: str, images: dict[str, Path], labels: dict[str, Path] | None, where: Path, labels_in: Path | None
    ) -> None:
        """Pairs {key: path}; labels None means that the split has none. Notes missing mates and emptiness.

        where, labels_in: the folders that were searched.
        """
        labels_in = labels_in or where
        self._searched += [where, labels_in]
        if not images:
            self._problems.append(BadFile(where, self._why_empty(split, where)))
        elif labels is None:
            _refuse_masks_among(images)
        else:
            labels = _with_keys_of(images, labels)
            lonely, orphaned = images.keys() - labels.keys(), labels.keys() - images.keys()
            if len(lonely) == len(images):
                self._problems.append(BadFile(labels_in, _why_unpaired(split, images, labels, labels_in)))
            else:
                self._problems += [BadFile(images[key], NO_LABEL) for key in sorted(lonely)]
                self._lonely[split] = [SampleFiles(key, images[key], None, split) for key in sorted(lonely)]
                self._problems += [BadFile(labels[key], "has no image file") for key in sorted(orphaned)]
            images = {key: path for key, path in images.items() if key in labels}
        mates = labels or {}
        self._entries[split] = [
            SampleFiles(key, images[key], mates.get(key), split) for key in sorted(images, key=_natural)
        ]

    def _why_empty(self, split: str, where: Path) -> str:
        expected = f"expected files that end in {', '.join(IMAGE_SUFFIXES)}, not in sub-folders"
        return f"the split {split!r} is empty; {expected}; found {contents(where)}; dakd reads {self.layout}"


def _with_keys_of(images: dict[str, Path], labels: dict[str, Path]) -> dict[str, Path]:
    """The labels under the keys of their images, where these differ only in upper and lower case, one from one."""
    lonely, orphaned = images.keys() - labels.keys(), labels.keys() - images.keys()
    counts = [Counter(key.casefold() for key in keys) for keys in (lonely, orphaned)]
    mates = {key.casefold(): key for key in lonely if all(count[key.casefold()] == 1 for count in counts)}
    return {mates.get(key.casefold(), key) if key in orphaned else key: path for key, path in labels.items()}


def _refuse_masks_among(images: dict[str, Path]) -> None:
    if found := find_mask_among(images):
        mask, image = found
        is_sos = mask.stem.lower().endswith("_mask") and image.stem.lower().endswith("_sat")
        layout = ", or set prepare.dataset to sos (dakd init: --dataset sos), which reads such pairs" if is_sos else ""
        raise ValueError(
            f"{mask} has the name of a mask of {image.name} beside it and would be read as an image; put the masks "
            f"into masks/ beside images/, each with the name of its image{layout}"
        )


def _why_unpaired(split: str, images: dict[str, Path], labels: dict[str, Path], labels_in: Path) -> str:
    if not labels:
        return f"the split {split!r} has {len(images)} images and no label; found here: {contents(labels_in)}"
    return (
        f"no label of the split {split!r} belongs to an image by its name: the images are called "
        f"{min(images.values()).name} and so on, the labels {min(labels.values()).name}; give both the same names"
    )


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
        name = key(path) if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path) else None
        if name is None:
            continue
        if name in found:
            raise ValueError(f"{found[name]} and {path} would both be sample {name!r}; rename or remove one")
        found[name] = path
    return found


def stem(path: Path) -> str:
    """A file's name without its suffix, fit to be a sample's key; the same however a system composes its accents."""
    return re.sub(r"[\s.]", "_", unicodedata.normalize("NFC", path.stem))


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
