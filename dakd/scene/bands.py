"""The finished bands of a scene on disk, so that a killed run loses at most the band that it was at.

The work folder holds plan.json, which says what the bands are bands of, and a compressed file a band, each whole or
absent. Processes share a scene by claiming chunks of bands, each by a lock of the kernel that ends with its process.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from dakd.runtime.files import open_to_append, replacing
from dakd.runtime.sealed import read_json, write_json
from dakd.scene.engine import Band

PLAN = "plan.json"
_CHUNK_ROWS = 4096  # of pixels, about
_LEVEL = 1  # of zstandard
_HEAD = 8  # bytes: the length of the header
_ARRAYS = ("label", "probability", "level", "grey")
_TYPES = {"label": np.uint8, "probability": np.uint8, "level": np.int16, "grey": np.uint8}


def plan_in(folder: Path) -> dict | None:
    """The plan of the bands in a work folder; None where there is none that can be read."""
    try:
        return read_json(folder / PLAN)
    except (ValueError, OSError):
        return None


class BandStore:
    """The bands of one scene in a work folder.

    plan: all that decides their bytes; bands of another plan are removed.  bands: their numbers.  stride: rows a band.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], bands: range, stride: int) -> None:
        self.folder, self._bands = folder, bands
        self._per_chunk = max(1, _CHUNK_ROWS // stride)
        folder.mkdir(parents=True, exist_ok=True)
        with self.lock("plan", wait=True):
            if plan_in(folder) != plan:
                self._clear()
                write_json(folder / PLAN, plan)

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.suffix != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def missing(self) -> list[int]:
        """The numbers of the bands that are not there yet, in order."""
        return [number for number in self._bands if not self.has(number)]

    def has(self, number: int) -> bool:
        return self._path(number).exists()

    @property
    def num_done(self) -> int:
        return len(self._bands) - len(self.missing())

    def chunk_of(self, number: int) -> int:
        return number // self._per_chunk

    def chunk(self, number: int) -> range:
        """The bands of a chunk."""
        start = number * self._per_chunk
        return range(max(start, self._bands.start), min(start + self._per_chunk, self._bands.stop))

    @contextmanager
    def lock(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Hold the lock of that name while the block runs; yields False where another process has it."""
        with open_to_append(self.folder / f"{name}.lock") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def write(self, band: Band) -> None:
        """Keep a band, whole or not at all."""
        arrays = [np.ascontiguousarray(getattr(band, name)) for name in _ARRAYS]
        head = {name: getattr(band, name) for name in ("number", "top", "bottom", "left", "right")}
        body = zstandard.ZstdCompressor(_LEVEL).compress(b"".join(one.tobytes() for one in arrays))
        text = json.dumps(head | {"num_classes": len(band.probability), "crc": zlib.crc32(body)}).encode()
        with replacing(self._path(band.number)) as aside:
            aside.write_bytes(len(text).to_bytes(_HEAD, "little") + text + body)

    def read(self, number: int) -> Band:
        """A band; ValueError where its file is damaged, which is then removed."""
        path = self._path(number)
        data = path.read_bytes()
        try:
            size = int.from_bytes(data[:_HEAD], "little")
            head, body = json.loads(data[_HEAD : _HEAD + size]), data[_HEAD + size :]
            if zlib.crc32(body) != head.pop("crc"):
                raise ValueError("its checksum differs")
            return self._parsed(head, zstandard.ZstdDecompressor().decompress(body))
        except (ValueError, KeyError, TypeError, zstandard.ZstdError) as error:
            path.unlink(missing_ok=True)
            raise ValueError(f"{path} is damaged ({error}), and is removed; run the same command again") from error

    @staticmethod
    def _parsed(head: dict[str, int], content: bytes) -> Band:
        shape = head["bottom"] - head["top"], head["right"] - head["left"]
        planes = {"probability": head.pop("num_classes")}
        arrays, place = {}, 0
        for name in _ARRAYS:
            full = (planes[name], *shape) if name in planes else shape
            count = int(np.prod(full))
            arrays[name] = np.frombuffer(content, _TYPES[name], count, place).reshape(full)
            place += count * np.dtype(_TYPES[name]).itemsize
        return Band(**head, **arrays)

    def all(self) -> Iterator[Band]:
        """All bands from the top to the bottom."""
        return map(self.read, self._bands)

    def remove(self) -> None:
        """The whole work folder, once its scene is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_idle(self) -> None:
        """The same, unless another process is at work in it."""
        chunks = sorted({f"chunk-{self.chunk_of(number):05d}" for number in self._bands})
        with ExitStack() as locks:
            if all(locks.enter_context(self.lock(name)) for name in ("finish", *chunks)):
                self.remove()

    def _path(self, number: int) -> Path:
        return self.folder / f"band-{number:06d}.zst"
