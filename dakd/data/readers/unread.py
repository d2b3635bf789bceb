"""What lies beside the files that are read, in few words, so that nothing is passed over in silence."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_NAMED = 3  # files of one suffix, or folders in one place, that are named one by one
_LISTED = 30
_SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # of Windows, macOS and Synology
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".xml")  # these say little without the suffix before


def is_hidden(path: Path) -> bool:
    """Whether a name is one of those that systems write and hide: .DS_Store, ._a.png, Thumbs.db."""
    return path.name.startswith(".") or path.name.lower() in _SYSTEM_NAMES


def list_unread(root: Path, read: Iterable[Path], searched: Iterable[Path] = ()) -> list[str]:
    """The files and folders below `root` that are not among `read`, as "train/notes.txt", "train/masks/ (2 files)",
    "*.jp2 (40 files, such as a.jp2)".

    Other folders than `root`, `searched` and those on the way to what was read are named, not entered.
    """
    read = set(read)
    entered = {root, *searched, *(path.parent for path in read)}
    entered |= {above for folder in entered for above in folder.parents}
    found: list[str] = []
    _enter(root, root, read, entered, found)
    found.sort()
    return found if len(found) <= _LISTED else [*found[:_LISTED], f"and {len(found) - _LISTED} more"]


def contents(folder: Path) -> str:
    """What a folder holds, in few words."""
    return ", ".join(list_unread(folder, ())) or "nothing"


def _enter(folder: Path, root: Path, read: set[Path], entered: set[Path], found: list[str]) -> None:
    prefix = "" if folder == root else f"{folder.relative_to(root)}/"
    folders, files = [], {}
    for path in sorted(folder.iterdir()):
        if is_hidden(path) or path in read:
            continue
        if path.is_dir():
            _enter(path, root, read, entered, found) if path in entered else folders.append(path)
        else:
            files.setdefault(_suffix(path), []).append(path.name)
    if len(folders) > _NAMED:
        found.append(f"{prefix}*/ ({len(folders)} folders, such as {folders[0].name}/)")
    else:
        found += [f"{prefix}{path.name}/ ({_count(path)})" for path in folders]
    for suffix, names in files.items():
        if len(names) > _NAMED:
            found.append(f"{prefix}*{suffix} ({len(names)} files, such as {names[0]})")
        else:
            found += [f"{prefix}{name}" for name in names]


def _suffix(path: Path) -> str:
    suffixes = path.suffixes[-2:] if path.suffix.lower() in _COMPRESSED else path.suffixes[-1:]
    return "".join(suffixes)


def _count(folder: Path) -> str:
    try:
        with os.scandir(folder) as found:  # it knows the kinds of a million files without asking for each
            kinds = [entry.is_dir() for entry in found if not is_hidden(Path(entry.name))]
    except OSError as error:  # not ours to enter
        return f"{error.strerror}"
    numbers = ((len(kinds) - sum(kinds), "file"), (sum(kinds), "folder"))
    return ", ".join(f"{number} {name}{'s' * (number > 1)}" for number, name in numbers if number) or "empty"
