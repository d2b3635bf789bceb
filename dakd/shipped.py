"""The files that come with dakd, found by name: experiments, tables, ZeRO files; and how an extra is installed.

They lie in `configs/` of a checkout and in `dakd/configs/` of an installed wheel.
"""

from __future__ import annotations

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_FOLDER = "configs"


def config_folder() -> Path:
    """The folder of the files that come with dakd: within the installed package, or in the checkout beside it."""
    installed = _PACKAGE / _FOLDER
    return installed if installed.is_dir() else _PACKAGE.parent / _FOLDER


def find_file(name: str | Path, kind: str = "", suffix: str = ".yaml") -> Path | None:
    """The file at the path `name`, or else the one of that name that comes with dakd; None where there is neither.

    kind: the folder within `configs/`: "" for experiments, "ablate" for tables, "deepspeed" for ZeRO files.
    `demo`, `demo.yaml` and `configs/demo.yaml` name the same shipped file.
    """
    path = Path(name)
    if path.is_file():
        return path
    parts = list(path.with_suffix("").parts if path.suffix == suffix else path.parts)
    if parts[:1] == [_FOLDER]:
        del parts[0]
    if kind and parts[:1] == [kind]:
        del parts[0]
    if len(parts) != 1 or path.is_absolute():
        return None
    shipped = config_folder() / kind / f"{parts[0]}{suffix}"
    return shipped if shipped.is_file() else None


def known_files(kind: str = "", suffix: str = ".yaml") -> list[str]:
    """The names, without suffix, of the files of a kind that come with dakd."""
    return sorted(path.stem for path in (config_folder() / kind).glob(f"*{suffix}"))


def not_found(name: str | Path, what: str, kind: str = "", suffix: str = ".yaml") -> str:
    """The message for a file that is neither at `name` nor comes with dakd.  what: `configuration`, `table`, ..."""
    known = known_files(kind, suffix)
    nearest = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"no {what} at {name}; {hint}give a path, or the name of one that comes with dakd: {', '.join(known)}"


def extra_remedy(extra: str) -> str:
    """The command that installs an extra of the running dakd, from its checkout or beside the installed wheel."""
    is_checkout = (_PACKAGE.parent / "pyproject.toml").is_file()
    return f"pip install -e '.[{extra}]'" if is_checkout else f"pip install 'dakd[{extra}]'"
