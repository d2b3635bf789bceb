"""Names for output files and folders, made from any text, and paths to write to: one rule for all steps.

Standard library only.

A text that every file system takes is kept as it is. In any other the troublesome characters become underscores, and
it ends in `~` and ten digits of the text's sha256, so that two texts never make one name. Where two inputs would still
share a file, `unique_names` takes the next of their choices; names that a file system holds for one, since they differ
only in case or in Unicode's composed and decomposed forms, count as the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

MAX_BYTES = 120  # of a name in UTF-8; file systems take 255 for the name with its ending
# What `is_file_part` asks, for messages.
FILE_PART = (
    'no slash, colon or other special character (<>"|?*\\), no dot or space at its ends, no dash or tilde at its '
    f"start, no device of Windows such as CON, at most {MAX_BYTES} bytes"
)
_DIGITS = 10
_MARKED = re.compile(rf"~[0-9a-f]{{{_DIGITS}}}$")
_FORBIDDEN = frozenset('<>:"/\\|?*')  # on Windows; the slash everywhere
_RESERVED = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(?:\..*)?", re.IGNORECASE)


def written_path(path: str | Path) -> Path:
    """The path of a file or folder that is written, `~/` as the home folder; ValueError for a URL and an empty text."""
    if path == "":  # Path("") is the current folder
        raise ValueError(f"the path is {path!r}; expected a file or folder; give . for the current folder")
    # A Path keeps one of two slashes.
    if re.match(r"[a-zA-Z][\w+.:-]+:/" if isinstance(path, Path) else r"[a-zA-Z][\w+.:-]+://", str(path)):
        raise ValueError(
            f"{str(path)!r} is a URL; expected a path of this machine; give a local or mounted folder, and copy to or "
            "from it"
        )
    # Shells leave the tilde of --out=~/x as it is. One of a user's name may begin a file's name.
    return Path(os.path.expanduser(path)) if str(path).startswith("~/") else Path(path)


def is_file_part(text: str) -> bool:
    """Whether every file system takes the text as a name, alone and with an ending, and it stays within its folder."""
    return (
        bool(text)
        and text.isprintable()
        and not _FORBIDDEN.intersection(text)
        and text[0] not in ". -~"
        and text[-1] not in ". "
        and not _RESERVED.fullmatch(text)
        and len(text.encode()) <= MAX_BYTES
    )


def file_part(text: str) -> str:
    """A safe name for a text: the text itself, its slashes as underscores, or a marked name (see `hashed`)."""
    # Slashes part the keys of most datasets. An underscore reads better than a hash, and `unique_names` sees to pairs
    # such as a/b and a_b.
    plain = text.replace("/", "_") if text[:1] != "/" else text
    return plain if is_file_part(plain) and not _MARKED.search(plain) else hashed(text)


def hashed(text: str, identity: str | None = None) -> str:
    """The text with underscores for all but plain characters, shortened, and digits of its sha256 at the end.

    identity: what is hashed in place of the text, where the text does not tell two inputs apart.
    """
    digest = hashlib.sha256((text if identity is None else identity).encode(errors="surrogatepass")).hexdigest()
    plain = "".join(one if one.isprintable() and one not in _FORBIDDEN else "_" for one in text)
    room = MAX_BYTES - _DIGITS - 1
    plain = plain.encode(errors="replace")[:room].decode(errors="ignore").lstrip(". -~")
    name = f"{plain}~{digest[:_DIGITS]}"
    return name if is_file_part(name) else f"_{plain[: room // 4 - 1]}~{digest[:_DIGITS]}"


def same_file(name: str) -> str:
    """The text that two names share if some file system holds them for one: other case, other Unicode form."""
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
    return unicodedata.normalize("NFC", folded)


def unique_names(
    choices: Sequence[Sequence[str]], endings: Sequence[str] = ("",), taken: Iterable[str] = ()
) -> list[str]:
    """A name for each input, so that no two share a file; independent of the inputs' order.

    choices: of each input, names from the plainest to the most specific. All inputs that would share a file take their
    next choice, so that a plain name never stands for one of several.
    endings: of the files that are written for a name.  taken: whole file names that are not to be made.
    Raises ValueError where inputs share a file even by their last choices.
    """
    used = [0] * len(choices)
    blocked = {same_file(name) for name in taken}
    while True:
        names = [one[level] for one, level in zip(choices, used)]
        owners: dict[str, set[int]] = {}
        for number, name in enumerate(names):
            for ending in endings:
                owners.setdefault(same_file(name + ending), set()).add(number)
        clashing = {number for file, ones in owners.items() if len(ones) > 1 or file in blocked for number in ones}
        if not clashing:
            return names
        raised = [number for number in clashing if used[number] + 1 < len(choices[number])]
        if not raised:
            shown = ", ".join(sorted({repr(names[number]) for number in clashing}))
            raise ValueError(f"two inputs make files of one name, {shown}; expected a name for each: rename one")
        for number in raised:
            used[number] += 1
