"""Damage to files, and the hashes that reveal it."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable
from pathlib import Path

from dakd.runtime.files import file_hash


def flip_a_bit(path: Path, chance: random.Random) -> str:
    """Flip one random bit of a file; returns a description."""
    place = chance.randrange(8 * path.stat().st_size)
    with open(path, "r+b") as stream:
        stream.seek(place // 8)
        byte = stream.read(1)[0]
        stream.seek(place // 8)
        stream.write(bytes([byte ^ 1 << place % 8]))
    return f"{path.name}: bit {place} flipped"


def cut_the_tail(path: Path, chance: random.Random) -> str:
    """Truncate a file at a random byte; returns a description."""
    size = chance.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"{path.name}: cut at byte {size}"


DAMAGES = {"bit flipped": flip_a_bit, "tail cut": cut_the_tail}


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """sha256 by file name."""
    return {path.name: file_hash(path) for path in sorted(paths)}


def tree_hash(folder: Path) -> str:
    """One hash of all files below a folder, with their relative paths."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder)} {file_hash(path)}\n".encode())
    return total.hexdigest()
