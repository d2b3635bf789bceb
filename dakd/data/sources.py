"""The places of sets of shards, and their opening: a folder, or a folder of an object store behind a cache.

A URL (`s3://bucket/set`, `gs://`, `https://`, any that fsspec knows) is read through fsspec. A shard is fetched as a
whole, aside, compared with the checksum of the index, and only then gets its name in the cache, which is the checksum:
any number of processes share it, and a changed set is never mixed up with its earlier state. Where the
cache grows beyond its limit, the least recently opened shards are removed; a reader keeps its open file.

Bare tars, without an index, are indexed when they are first opened.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dakd.data.degenerate import refuse_black_and_white
from dakd.data.index import Index, ShardEntry, describe_shard, gather_index, load_sidecar, parse_sidecar, save_index
from dakd.data.records import BadRecord
from dakd.data.sample import ClassTable
from dakd.runtime.files import file_hash, open_to_append, replacing, write_text
from dakd.runtime.waiting import saying_after

_ATTEMPTS = 3  # a fetch may fail, and another process may evict a shard before it is opened
# The errors that the library and the decoders raise on a damaged tar.
_TAR_ERRORS = (ValueError, RuntimeError, OSError, EOFError, KeyError, TypeError, tarfile.TarError)
_SEEN = "indexed_tars"  # the tars that an index was made of, in its provenance, where it was made when first opened
_ABANDONED_S = 3600.0  # a file aside that nobody has written to for so long was left by a process that died


@dataclass(frozen=True)
class ShardCache:
    """A folder with the shards that were fetched, at most `limit_bytes` in all, unless a single one is larger."""

    folder: Path
    limit_bytes: int

    def get(self, name: str, fetch: Callable[[Path], None]) -> Path:
        """The file `name`, by `fetch(path)` where it is not there; fetched once even if several processes ask."""
        path = self.folder / "tars" / name
        if not path.is_file():
            with self._one_at_a_time(name):
                # Again: another process may have fetched it while this one waited for the lock.
                if not path.is_file():
                    with replacing(path) as aside:
                        fetch(aside)
                    self._evict(keep=path)
        with suppress(FileNotFoundError):
            os.utime(path)  # the time of the last use
        return path

    def home(self, *identity: str) -> Path:
        """A folder for the index and the sidecars of a set that has no room for them; another identity, another one."""
        return self.folder / "sets" / hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32]

    @contextmanager
    def _one_at_a_time(self, name: str) -> Iterator[None]:
        """A lock that only saves double work; it ends with its process."""
        # 256 lock files for any number of shards: two names that share one only wait for each other.
        lock = self.folder / "locks" / hashlib.sha256(name.encode()).hexdigest()[:2]
        lock.parent.mkdir(parents=True, exist_ok=True)
        with open_to_append(lock) as stream:
            with saying_after(f"waits for another process that fetches {name} to the same cache (lock {lock})"):
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _evict(self, keep: Path) -> None:
        files = []
        for path in keep.parent.iterdir():
            with suppress(FileNotFoundError):
                facts = path.stat()
                files.append((facts.st_mtime, facts.st_size, path))
        total, now = sum(size for _, size, _ in files), time.time()
        # Sorted by time: the least recently used go first. Files being written (.name) stay, unless abandoned.
        for last_use_s, size, path in sorted(files):
            is_abandoned = path.name.startswith(".") and now - last_use_s > _ABANDONED_S
            is_due = total > self.limit_bytes and not path.name.startswith(".") and path != keep
            if is_abandoned or is_due:
                path.unlink(missing_ok=True)
                total -= size


def default_cache(folder: str | None = None, limit_gib: float = 64.0) -> ShardCache:
    """The cache in `folder`; None: `dakd` in XDG_CACHE_HOME or ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dakd"
    return ShardCache(Path(folder) if folder else base, int(limit_gib * 2**30))


def open_source(place: str | Path, cache: ShardCache) -> LocalFolder | RemoteFolder:
    """A folder or URL as a source of shards. ValueError for a `pipe:`, which only streams."""
    text = str(place)
    if text.startswith("pipe:"):
        raise ValueError(f"{text!r} is a pipe, whose records come in one order only; name it where streams are taken")
    if text.startswith("file://"):
        return LocalFolder(Path(text.removeprefix("file://")))
    return RemoteFolder(text.rstrip("/"), cache) if "://" in text else LocalFolder(Path(place))


class LocalFolder:
    """Shards on a file system that this host has."""

    def __init__(self, folder: Path) -> None:
        self.place, self.folder = str(folder), folder

    def read_small(self, name: str) -> bytes | None:
        """The content of a file, None where it is absent."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def stamps(self) -> dict[str, str]:
        """The names of the tars, each with a stamp that changes when the tar does."""
        found = {}
        for path in sorted(self.folder.glob("*.tar")):
            facts = path.stat()
            found[path.name] = f"{facts.st_size} {facts.st_mtime_ns}"
        return found

    def tar(self, name: str, sha256: str | None = None) -> Path:
        """The path of a tar. FileNotFoundError where it is absent."""
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        return path

    def open_tar(self, name: str, sha256: str) -> tuple[Path, int]:
        """The path of a tar, and a file descriptor that is open for reading."""
        path = self.tar(name)
        return path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class RemoteFolder:
    """Shards of an object store, read through a cache. Holds no connection: forked readers open their own."""

    def __init__(self, url: str, cache: ShardCache) -> None:
        self.place, self.url, self.cache = url, url, cache
        self._file_system()

    def read_small(self, name: str) -> bytes | None:
        """The content of a file, None where it is absent. RuntimeError where the store does not answer."""
        return self._asked(lambda files, root: files.cat_file(f"{root}/{name}"), absent=None)

    def stamps(self) -> dict[str, str]:
        """The names of the tars, each with a stamp that changes when the tar does."""

        def listed(files: Any, root: str) -> dict[str, str]:
            entries = files.ls(root, detail=True, refresh=True)
            tars = sorted(entry["name"] for entry in entries if entry["name"].endswith(".tar"))
            return {name.rpartition("/")[2]: str(files.checksum(name)) for name in tars}

        return self._asked(listed, absent={})

    def tar(self, name: str, sha256: str | None = None) -> Path:
        """The path of a tar in the cache, fetched where it is not there.

        sha256: what its bytes must have; None takes them as they are, under a name of their own.
        Raises FileNotFoundError where the store has no such tar, RuntimeError where it comes damaged or not at all.
        """
        if sha256 is None:
            stamp = self.stamps().get(name, "")
            key = hashlib.sha256(f"{self.url}/{name} {stamp}".encode()).hexdigest()
        return self.cache.get(f"{sha256 or key}.tar", lambda aside: self._fetch(name, sha256, aside))

    def open_tar(self, name: str, sha256: str) -> tuple[Path, int]:
        """The path of a tar in the cache, and a file descriptor that is open for reading."""
        for attempt in range(_ATTEMPTS):
            path = self.tar(name, sha256)
            try:
                return path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # another process needed the room
                if attempt == _ATTEMPTS - 1:
                    break
        raise RuntimeError(
            f"{path} went from the cache as often as it was fetched; set data.cache_gib to more than the shards of two "
            "windows of all readers of this host"
        )

    def _fetch(self, name: str, sha256: str | None, aside: Path) -> None:
        for _ in range(_ATTEMPTS):
            self._asked(lambda files, root: files.get_file(f"{root}/{name}", str(aside)))
            found = file_hash(aside)
            if sha256 in (None, found):
                return
        raise DamagedFetch(
            f"{self.url}/{name} has sha256 {found}, its index says {sha256}; it is damaged there; upload it "
            "again"
        )

    def _file_system(self) -> tuple[Any, str]:
        """fsspec's file system, of this process, and the folder's path in it."""
        from fsspec.core import url_to_fs

        try:
            # At each call: connections do not survive a fork, and fsspec keeps its instances by process.
            return url_to_fs(self.url)
        except ImportError as error:
            raise ValueError(f"{self.url} needs a package that is not installed: {error}") from None
        except ValueError as error:
            raise ValueError(f"{self.url} cannot be opened ({error}); check the address") from None

    def _asked(self, ask: Callable[[Any, str], Any], **answers: Any) -> Any:
        """What the store answers; `absent` where it has no such file, if given."""
        for attempt in range(_ATTEMPTS):
            try:
                return ask(*self._file_system())
            except FileNotFoundError:
                if "absent" in answers:
                    return answers["absent"]
                raise
            except (OSError, TimeoutError) as error:
                if attempt == _ATTEMPTS - 1:
                    raise RuntimeError(
                        f"{self.url} does not answer: {type(error).__name__}: {error}; check the address and the "
                        "network"
                    ) from error
                time.sleep(2.0**attempt)
        raise AssertionError("the last attempt returns or raises")


class DamagedFetch(ValueError):
    """Bytes that came from a store and are not those that the index names."""


# --- the index and the sidecars of a set ------------------------------------------------------------------------------


def find_index(
    source: LocalFolder | RemoteFolder, cache: ShardCache, classes: ClassTable | None
) -> tuple[bytes, Path]:
    """The index of a set, and the folder that holds, or will hold, it and the sidecars.

    classes: the class table for tars without an index, which are then indexed; None refuses them. The index and a
    missing sidecar are written next to the tars where that is allowed, else into the cache: they are made once.
    Raises ValueError where there is no set, or a tar of it cannot be indexed.
    """
    text = source.read_small("index.json")
    if text is not None:
        return text, _home(source, cache, text.decode(errors="replace"))
    stamps = bare_tars(source, classes is not None)
    home = _home(source, cache, json.dumps(stamps))
    if not (home / "index.json").is_file():
        for name in stamps:
            sidecar = home / Path(name).with_suffix(".json")
            if not sidecar.is_file():
                _derive_sidecar(source.tar(name), name, classes, sidecar)
        every, seen = dict.fromkeys(stamps), {_SEEN: sorted(stamps)}  # all records of each
        index = gather_index(home, classes, kind="real", kept=every, provenance=seen)
        infos = (load_sidecar((home / name).with_suffix(".json")) for name in stamps)
        foreign = (record for info in infos for record in info.records if "sar.u8" not in record.members)
        refuse_black_and_white(foreign, index.classes.names[0], source.place)
        save_index(home, index)
    return (home / "index.json").read_bytes(), home


def bare_tars(source: LocalFolder | RemoteFolder, may_be_bare: bool = True) -> dict[str, str]:
    """The tars of a source without an index, each with its stamp; ValueError where it is no set.

    may_be_bare: False where tars without an index are no set.
    """
    stamps = source.stamps() if may_be_bare else {}
    if not stamps:
        raise ValueError(
            f"{source.place} is not a set of shards: {source.place}/index.json does not exist; "
            "write one with `dakd prepare`, `dakd generate` or dakd.write_shards"
        )
    return stamps


def refuse_stale_index(
    source: LocalFolder | RemoteFolder, home: Path, index: Index, classes: ClassTable | None
) -> None:
    """ValueError where an index has other class names than `classes`, or was made here of fewer tars than there are.

    Only the names are compared: they say what an id means. classes: None compares none.
    """
    seen = index.provenance.get(_SEEN)  # None: dakd wrote the set, and may have left out tars of its folder
    again = f"remove index.json and the sidecars of the tars (.json) in {home}: then it is indexed again"
    if classes is not None and classes.names != index.classes.names:
        remedy = "open it without classes" if seen is None else again
        raise ValueError(
            f"{source.place} has an index for the classes {', '.join(index.classes.names)}; expected those given, "
            f"{', '.join(classes.names)}: give the former, or {remedy}"
        )
    is_own = isinstance(seen, list) and isinstance(source, LocalFolder)
    new = [name for name in source.stamps() if name not in seen] if is_own else []
    if new:
        raise ValueError(
            f"{source.place} holds {len(new)} tar(s) that came after its index: {', '.join(new[:5])}; expected those "
            f"of the index: move them elsewhere, or {again}"
        )


def find_sidecar(
    source: LocalFolder | RemoteFolder, home: Path, entry: ShardEntry, classes: ClassTable, tar_path: Path
) -> Path:
    """The sidecar of a shard: fetched, or derived from the tar where the store has none, or a damaged one.

    entry: the shard's entry in the index.  Raises BadRecord where the tar is not the one that the index names.
    """
    name = Path(entry.file).with_suffix(".json").name
    if isinstance(source, LocalFolder) and (source.folder / name).is_file():
        return source.folder / name
    sidecar = home / name
    if not sidecar.is_file():
        text = source.read_small(name)
        if text is not None and _is_sidecar(text):
            write_text(sidecar, text.decode())
        else:
            _derive_sidecar(tar_path, entry.file, classes, sidecar, entry.sha256)
    return sidecar


def _is_sidecar(text: bytes) -> bool:
    try:
        parse_sidecar(text, "a sidecar")
    except ValueError:
        return False
    return True


def _home(source: LocalFolder | RemoteFolder, cache: ShardCache, content: str) -> Path:
    """The set's own folder where it can be written to, else one of the cache for this content of the set."""
    if isinstance(source, LocalFolder) and os.access(source.folder, os.W_OK):
        return source.folder
    home = cache.home(os.path.abspath(source.place) if isinstance(source, LocalFolder) else source.place, content)
    home.mkdir(parents=True, exist_ok=True)
    return home


def _derive_sidecar(
    tar_path: Path, name: str, classes: ClassTable, sidecar: Path, sha256: str | None = None
) -> None:
    try:
        info = describe_shard(tar_path, classes, file=name, foreign=True)
    except _TAR_ERRORS as error:
        raise BadRecord(f"{tar_path} cannot be indexed: {error}") from None
    if sha256 not in (None, info.sha256):
        raise BadRecord(f"{tar_path} has sha256 {info.sha256}, the index says {sha256}; fetch or write it again")
    write_text(sidecar, info.to_json())
