"""JSON files that end with their own checksum, and the manifest of a folder: no later change goes unnoticed.

The last member of a sealed object is `content_sha256`, the hash of all bytes before it. So the file says by itself
whether it is whole, wherever it was copied to. A manifest (`manifest.json`, sealed too) lists the hashes of the files
that a step wrote into its folder: it tells a whole file of another run from the one that belongs there. A step removes
its manifest before it changes the first of these files and writes it last, so that after a kill there is none, and
never one that disagrees with whole files.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dakd.runtime.files import file_hash, holds, parse_json, write_text
from dakd.runtime.named import Named

MANIFEST = "manifest.json"
_MAX_JSON_BYTES = 1 << 28
CHECKSUM_LINE = "# content_sha256: "
REMEDY = "copy it again, or run its step again (dakd verify RUN names the command)"
_TAIL = '\n "content_sha256": "{}"\n}}\n'
_TAIL_LENGTH = len(_TAIL.format("0" * 64))
_TAIL_FORM = re.compile(re.escape(_TAIL.format("DIGEST")).replace("DIGEST", "([0-9a-f]{64})").encode())


class Changed(ValueError):
    """A file whose bytes are not those that were written."""


def seal(text: str) -> str:
    """A JSON object's text with the checksum as its last member."""
    head = text.rstrip().removesuffix("}").rstrip()
    head += "" if head == "{" else ","
    return head + _TAIL.format(hashlib.sha256(head.encode()).hexdigest())


def unseal(text: bytes, path: str | Path, how: str = REMEDY) -> bytes:
    """The JSON object's text without its checksum. Changed, naming the file, where its bytes are not as written.

    how: what to do about it, for the messages.
    """
    head, tail = text[:-_TAIL_LENGTH], _TAIL_FORM.fullmatch(text[-_TAIL_LENGTH:])
    if not text.strip():
        raise Changed(f"{path} is empty; {remedy(path, how)}")
    if tail is None:
        raise Changed(
            f"{path} does not end with the checksum that dakd writes: found {text[-40:]!r}, expected "
            f"content_sha256 as the last member; {remedy(path, how)}"
        )
    found, expected = hashlib.sha256(head).hexdigest(), tail[1].decode()
    if found != expected:
        raise Changed(
            f"{path} has changed since dakd wrote it: found the sha256 {found[:12]}, expected {expected[:12]}; "
            f"{remedy(path, how)}"
        )
    return head.removesuffix(b",") + b"}"


def parse_sealed(text: bytes, path: str | Path, how: str = REMEDY) -> Named:
    """The content of a sealed JSON object; the errors of `unseal` and of `parse_json`."""
    return parse_json(unseal(text, path, how), path, how)


def remedy(path: str | Path, how: str = REMEDY) -> str:
    """What to do about a file that has changed, for the end of a message."""
    return f"{how}; to keep an edit of your own: dakd verify --accept {shlex.quote(str(path))}"


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a sealed JSON object, whole or not at all."""
    write_text(path, seal(json.dumps(content, indent=1)))


def read_json(path: str | Path, how: str = REMEDY) -> Named | None:
    """The content of a sealed JSON file; None where there is no such file, Changed where it is not as written.

    how: what to do about it, for the messages.  ValueError too where it is not JSON or lacks a name that is asked for.
    """
    path = Path(path)
    if not path.is_file():
        return None
    if (num_bytes := path.stat().st_size) > _MAX_JSON_BYTES:
        raise ValueError(f"{path} has {num_bytes} bytes; expected JSON of at most {_MAX_JSON_BYTES}; {how}")
    content = parse_sealed(path.read_bytes(), path, how)
    refuse_unlisted(path, how)
    return content


def seal_yaml(text: str) -> str:
    """Settings with the checksum of all that follows in their first line, a comment."""
    return f"{CHECKSUM_LINE}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def refuse_changed_yaml(path: Path) -> None:
    """Changed where the settings that a run keeps are not as written, wherever they were copied to."""
    first, _, text = path.read_text(errors="replace").partition("\n")
    if f"{first}\n{text}" != seal_yaml(text):
        found = "its checksum differs" if first.startswith(CHECKSUM_LINE) else "its first line is no checksum"
        raise Changed(f"{path} has changed since dakd wrote it, and may not say what was run: {found}; {remedy(path)}")


# --- manifests --------------------------------------------------------------------------------------------------------


def remove_manifest(folder: str | Path) -> None:
    """Call before the first file of a folder is changed."""
    (Path(folder) / MANIFEST).unlink(missing_ok=True)


def write_manifest(folder: str | Path, files: Iterable[Path], earlier: Mapping[str, str] | None = None) -> None:
    """List files of a folder, or of folders in it, with their hashes; call when all of them are written.

    earlier: the hashes of files that stay from before, so that damage to them since then is not listed as right.
    """
    folder = Path(folder)
    names = {path.relative_to(folder).as_posix(): path for path in sorted(files)}
    listed = {name: (earlier or {}).get(name) or file_hash(path) for name, path in names.items()}
    write_json(folder / MANIFEST, {"files": listed})


def write_listed(path: Path, text: str) -> None:
    """Write a text and have its folder's manifest list it, beside the files that it lists already.

    A kill in between leaves the text unlisted. Nothing is written where it is there and listed.
    """
    listed = listed_in(path.parent)
    if holds(path, text) and listed.get(path.name) == file_hash(path):
        return
    others = {name: digest for name, digest in listed.items() if name != path.name}
    write_json(path.with_name(MANIFEST), {"files": others})
    write_text(path, text)
    written = None
    while written != (found := file_hash(path)):  # again where another process has written its own in between
        write_json(path.with_name(MANIFEST), {"files": others | {path.name: found}})
        written = found


def list_again(path: Path) -> bool:
    """Have the manifest that lists a file, in its folder or the one above, list it as it is now, or no longer if it is
    gone; what is listed of others stays. Returns whether one lists it."""
    path = path.absolute()
    for folder in path.parents[:2]:
        listed, name = read_manifest(folder) or {}, path.relative_to(folder).as_posix()
        if name in listed:
            others = {other: digest for other, digest in listed.items() if other != name}
            mine = {name: file_hash(path)} if path.is_file() else {}
            write_json(folder / MANIFEST, {"files": dict(sorted((others | mine).items()))})
            return True
    return False


def files_of(*folders: Path) -> list[Path]:
    """The files in folders that a manifest may list: not those in their sub-folders, hidden ones and the manifest."""
    found = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    return [path for path in found if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")]


def read_manifest(folder: str | Path) -> dict[str, str] | None:
    """The hashes that a folder's manifest lists, by file; None where there is none."""
    path = Path(folder) / MANIFEST
    try:
        return parse_sealed(path.read_bytes(), path)["files"]
    except (FileNotFoundError, NotADirectoryError):
        return None


def listed_in(folder: str | Path) -> dict[str, str]:
    """The hashes that a folder's manifest lists, by file; {} where there is none that can be read."""
    try:
        return read_manifest(folder) or {}
    except ValueError:
        return {}


def is_as_listed(folder: Path) -> bool:
    """Whether a folder has a manifest, and every file is there as it lists it."""
    paths = {folder / name: digest for name, digest in listed_in(folder).items()}
    return bool(paths) and all(path.is_file() and file_hash(path) == digest for path, digest in paths.items())


def refuse_unlisted(path: Path, how: str = REMEDY) -> None:
    """Changed where the manifest of a file's folder lists another hash for it; a file that is not listed may be any."""
    expected = (read_manifest(path.parent) or {}).get(path.name) if path.name != MANIFEST else None
    if expected is not None and (found := file_hash(path)) != expected:
        raise Changed(
            f"{path} is not the file that its step wrote here, though it may be whole: its sha256 is {found[:12]}, "
            f"{path.with_name(MANIFEST)} lists {expected[:12]}; {remedy(path, how)}"
        )
