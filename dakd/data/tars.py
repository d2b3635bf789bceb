"""The header walk of a tar: which members it holds and where their bytes lie. Nothing is ever unpacked by name."""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path
from typing import BinaryIO

_MOST_EMPTY_READS = 16  # at the end of a file; a walk that asks more often would ask for ever
_MAX_KEY = 1024  # characters
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's own readers pass over these
# Control characters, bytes that are not UTF-8 (surrogates, in tarfile's names), and ways out of the folder.
_NOT_IN_KEYS = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]|(^|/)\.{1,2}(/|$)|^/|//")


class DamagedTar(ValueError):
    """A tar that is not a whole tar of records; the message names it and says why."""


def list_members(tar_path: str | Path) -> dict[str, dict[str, tuple[int, int]]]:
    """{key: {extension: (offset, size)}} in the order of the tar, from its headers.

    A key is a member's name up to the first dot behind its folder. Raises DamagedTar where the tar is truncated, holds
    anything but files and folders, a name that leads elsewhere, or the members of a record apart or twice.
    """
    tar_path = Path(tar_path)
    num_bytes = tar_path.stat().st_size
    members: dict[str, dict[str, tuple[int, int]]] = {}
    last_key, end = None, 0
    with open(tar_path, "rb") as stream:
        try:
            with tarfile.open(fileobj=_Ending(stream), mode="r:", tarinfo=_CheckedHeader) as tar:
                for entry in tar:
                    tar.members.clear()  # the library keeps them all
                    if not entry.isdir() and not _META.match(entry.name):
                        last_key = _add_member(members, entry, last_key, num_bytes)
                    end = max(end, entry.offset_data + entry.size)
        except DamagedTar as error:
            raise DamagedTar(f"{tar_path}: {error}") from None
        # All that the library is known to raise on damaged headers.
        except (tarfile.TarError, OSError, EOFError, ValueError, IndexError, OverflowError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DamagedTar(f"{tar_path} is not a whole tar ({reason}); write it again") from None
        # A tar ends with a block of zeros: one that was cut between two records looks whole but for that.
        num_blocks = (end + tarfile.BLOCKSIZE - 1) // tarfile.BLOCKSIZE
        stream.seek(num_blocks * tarfile.BLOCKSIZE)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DamagedTar(f"{tar_path} has no end mark behind byte {end}: it is truncated; write it again")
    return members


def _add_member(members: dict, entry: tarfile.TarInfo, last_key: str | None, num_bytes: int) -> str:
    """Note a member; returns the key of its record."""
    name = entry.name
    if not entry.isreg() or entry.issparse():
        raise DamagedTar(f"member {name[:80]!r} is not a regular file; expected a WebDataset of files")
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    key = folder + slash + stem
    if len(key) > _MAX_KEY or not stem or not extension or _NOT_IN_KEYS.search(name):
        raise DamagedTar(f"member {name[:80]!r} has no usable name; expected KEY.EXTENSION, without a way elsewhere")
    if not 0 <= entry.size <= num_bytes - entry.offset_data:
        raise DamagedTar(f"member {name[:80]!r} claims {entry.size} bytes, more than follow; it is truncated")
    if key in members and key != last_key:
        raise DamagedTar(f"the members of record {key!r} lie apart; write it as one, as webdataset's TarWriter does")
    places = members.setdefault(key, {})
    if extension in places:
        raise DamagedTar(f"holds {name} twice: two samples have the key {key!r}; give each its own")
    places[extension] = (entry.offset_data, entry.size)
    return key


class _CheckedHeader(tarfile.TarInfo):
    """A header whose size cannot send the walk backwards."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise DamagedTar(f"member {header.name[:80]!r} claims {header.size} bytes; the header is damaged")
        return header


class _Ending:
    """A file that ends for good: the library has loops that read on at the end of a damaged tar."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, _MOST_EMPTY_READS

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        if not data and size:
            self._left -= 1
            if self._left < 0:
                raise DamagedTar("its headers lead beyond its end; it is truncated or damaged")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()
