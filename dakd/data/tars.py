"""The header walk of a tar: which members it holds and where their bytes lie. Nothing is ever unpacked by name.

No tar makes a walk take more memory than its own members do: the library alone would read a name of 6 GB.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

_MOST_EMPTY_READS = 16  # at the end of a file; a walk that asks more often would ask for ever
_MAX_KEY = 1024  # characters
_MAX_HEADERS = 1 << 16  # bytes of long names and attributes before a member
_MAX_MEMBERS = 1 << 18  # of one tar, whose places are kept in memory
MAX_RECORD_BYTES = 1 << 30  # of a record that is read from a stream
_WITH_TEXT = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
              tarfile.SOLARIS_XHDTYPE)  # fmt: skip
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's own readers pass over these
# Control characters, bytes that are not UTF-8 (surrogates, in tarfile's names), and ways out of the folder.
_NOT_IN_KEYS = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]|(^|/)\.{1,2}(/|$)|^/|//")
_KEY = re.compile(r"[^\s./\\][^\s.\\]*")
KEY_FORM = f"UTF-8 of 1 to {_MAX_KEY} characters without dots, spaces, backslashes and control characters"


class DamagedTar(ValueError):
    """A tar that is not a whole tar of records; the message names it and says why."""


def is_key(text: str) -> bool:
    """Whether the members of a record can be named after a text, so that each reader of the tar finds them."""
    is_plain = _KEY.fullmatch(text) and not text.endswith("/") and len(text) <= _MAX_KEY
    return bool(is_plain) and not _NOT_IN_KEYS.search(text) and not _META.match(f"{text}.json")


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
                for number, entry in enumerate(_entries(tar)):
                    if number == _MAX_MEMBERS:
                        raise DamagedTar(f"it has more than {_MAX_MEMBERS} members; split it into several tars")
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


def stream_members(stream: BinaryIO, source: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file in a tar that is read once, compressed or not, in its order.

    source: for the messages.  Raises DamagedTar where a header or a record is larger than any that is read; what the
    library raises otherwise (tarfile.TarError, EOFError, OSError).
    """
    key, num_bytes = "", 0
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_CheckedHeader) as tar:
        for entry in _entries(tar):
            if not entry.isreg() or _META.match(entry.name):
                continue
            folder, slash, file = entry.name.rpartition("/")
            own = folder + slash + file.partition(".")[0]
            key, num_bytes = own, entry.size + (num_bytes if own == key else 0)
            if num_bytes > MAX_RECORD_BYTES:
                raise DamagedTar(
                    f"{source}: record {own[:80]!r} has {num_bytes} bytes or more; expected at most "
                    f"{MAX_RECORD_BYTES}: cut the image into parts"
                )
            yield entry.name, tar.extractfile(entry).read()


def _entries(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, of which none is kept: the library would keep them all, and the attributes of all."""
    for entry in tar:
        tar.members.clear()
        tar.pax_headers.clear()
        yield entry


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
        raise DamagedTar(
            f"member {name[:80]!r} claims {entry.size} bytes, more than follow: it is truncated; write it "
            "again"
        )
    if key in members and key != last_key:
        raise DamagedTar(f"the members of record {key!r} lie apart; write it as one, as webdataset's TarWriter does")
    places = members.setdefault(key, {})
    if extension in places:
        raise DamagedTar(f"holds {name} twice: two samples have the key {key!r}; give each its own")
    places[extension] = (entry.offset_data, entry.size)
    return key


class _CheckedHeader(tarfile.TarInfo):
    """A header whose size cannot send the walk backwards, nor make the library read much for a name."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise DamagedTar(
                f"member {header.name[:80]!r} claims {header.size} bytes; the header is damaged; write it "
                "again"
            )
        if header.type in _WITH_TEXT and header.size > _MAX_HEADERS:
            raise DamagedTar(
                f"a name or attribute has {header.size} bytes; expected at most {_MAX_HEADERS}: write it with plain "
                "names"
            )
        if header.type == tarfile.GNUTYPE_SPARSE:
            cls._refuse_sparse()
        return header

    @staticmethod
    def _refuse_sparse(*_: object) -> NoReturn:
        raise DamagedTar("a member is stored as a sparse file; write it without gaps (tar without --sparse)")

    # Called by the library for the sparse files of the newer formats, whose map may be as long as the tar.
    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


class _Ending:
    """A file that ends for good: the library has loops that read on at the end of a damaged tar."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, _MOST_EMPTY_READS

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        if not data and size:
            self._left -= 1
            if self._left < 0:
                raise DamagedTar("its headers lead beyond its end: it is truncated or damaged; write it again")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()
