"""Opening a set wherever it lies: with its index, or, for bare tars, with one that is made on first sight.

What is derived (an index, a sidecar that a kill left out) is written beside the tars where that is allowed, and else
into the cache, so that it is derived once.
"""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import asdict
from pathlib import Path

from dakd.data.indexing import describe_shard, load_sidecar, write_index
from dakd.data.lookup import BadRecord
from dakd.data.sample import ClassTable
from dakd.data.sources import LocalFolder, RemoteFolder, ShardCache
from dakd.runtime.files import write_text

# What a damaged tar can make the library and the decoders raise.
_TAR_ERRORS = (ValueError, RuntimeError, OSError, EOFError, KeyError, TypeError, tarfile.TarError)


def find_index(
    source: LocalFolder | RemoteFolder, cache: ShardCache, classes: ClassTable | None
) -> tuple[bytes, Path]:
    """The index of a set, and the folder where it and the sidecars lie or shall lie.

    classes: the class table for tars without an index, which are then indexed; None refuses them.
    Raises ValueError where there is no set, or a tar of it cannot be indexed.
    """
    text = source.read_small("index.json")
    if text is not None:
        return text, _home(source, cache, text.decode(errors="replace"))
    stamps = source.stamps() if classes is not None else {}
    if not stamps:
        raise ValueError(
            f"{source.place} is no set of shards: {source.place}/index.json is absent; "
            "run the step that writes it first"
        )
    home = _home(source, cache, json.dumps(stamps))
    if not (home / "index.json").is_file():
        for name in stamps:
            sidecar = home / Path(name).with_suffix(".json")
            if not sidecar.is_file():
                _derive_sidecar(source.tar(name), name, classes, sidecar)
        counts = {name: load_sidecar((home / name).with_suffix(".json")).num_samples for name in stamps}
        write_index(home, classes, kind="real", kept={name: range(count) for name, count in counts.items()})
    return (home / "index.json").read_bytes(), home


def find_sidecar(
    source: LocalFolder | RemoteFolder, home: Path, entry: dict, classes: ClassTable, tar_path: Path
) -> Path:
    """The sidecar of a shard, fetched or derived from the tar where it is absent.

    entry: the shard's entry in the index.  Raises BadRecord where the tar is not the one that the index names.
    """
    name = Path(entry["file"]).with_suffix(".json").name
    if isinstance(source, LocalFolder) and (source.folder / name).is_file():
        return source.folder / name
    sidecar = home / name
    if not sidecar.is_file():
        text = source.read_small(name)
        if text is not None:
            write_text(sidecar, text.decode(errors="replace"))
        else:
            _derive_sidecar(tar_path, entry["file"], classes, sidecar, entry["sha256"])
    return sidecar


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
    write_text(sidecar, json.dumps(asdict(info)) + "\n")
