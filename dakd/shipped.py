"""What comes with dakd: its files (experiments, tables, ZeRO files), its extras, and which code this is.

The files are in `configs/` of a checkout and in `dakd/configs/` of an installed wheel.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_FOLDER = "configs"


def is_installed() -> bool:
    """Whether dakd runs from an installed wheel, whose files are in the package, and not from a checkout."""
    return (_PACKAGE / _FOLDER).is_dir()


def config_folder() -> Path:
    """The folder of the files that come with dakd: in the installed package, or in the checkout."""
    return (_PACKAGE if is_installed() else _PACKAGE.parent) / _FOLDER


def find_file(name: str | Path, kind: str = "", suffix: str = ".yaml") -> Path | None:
    """The file at the path `name`, or else the file of that name that comes with dakd; None if there is neither.

    kind: the folder in `configs/`: "" for experiments, "ablate" for tables, "deepspeed" for ZeRO files.
    `demo`, `demo.yaml` and `configs/demo.yaml` name the same shipped file; `~/` is the home folder.
    """
    path = Path(os.path.expanduser(name)) if str(name).startswith("~/") else Path(name)
    if _is_file(path):
        return path
    parts = list(path.with_suffix("").parts if path.suffix == suffix else path.parts)
    if parts[:1] == [_FOLDER]:
        del parts[0]
    if kind and parts[:1] == [kind]:
        del parts[0]
    if len(parts) != 1 or path.is_absolute():
        return None
    shipped = config_folder() / kind / f"{parts[0]}{suffix}"
    return shipped if _is_file(shipped) else None


def _is_file(path: Path) -> bool:
    """Path.is_file; False for a name that is too long for any file too, where it raises."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def known_files(kind: str = "", suffix: str = ".yaml") -> list[str]:
    """The names, without suffix, of the files of a kind that come with dakd."""
    return sorted(path.stem for path in (config_folder() / kind).glob(f"*{suffix}"))


def not_found(name: str | Path, what: str, kind: str = "", suffix: str = ".yaml") -> str:
    """The error message if `find_file` found nothing.  what: `configuration`, `table`, ..."""
    known = known_files(kind, suffix)
    nearest = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"no {what} at {name}; {hint}give a path, or the name of one that comes with dakd: {', '.join(known)}"


def version() -> str:
    """The version of dakd. By its name: the package's front door lies above whoever asks."""
    return str(importlib.import_module("dakd").__version__)


def extra_remedy(extra: str) -> str:
    """The command that installs an extra of dakd, for a checkout or for an installed wheel."""
    return f"pip install 'dakd[{extra}]'" if is_installed() else f"pip install -e '.[{extra}]'"


def extension_remedy(needs: str, settings: str = "") -> str:
    """The command that builds the compiled library.  needs: its requirements.  settings: environment of the build.

    pip's isolated builds have no torch, so a wheel has the library only if it was built without isolation.
    """
    if is_installed():
        command = f"{settings}pip wheel --no-build-isolation --no-deps SOURCE"
        return f"build a wheel from dakd's source and install it: {command} (needs {needs})"
    return f"{settings}pip install --no-build-isolation -e . (needs {needs})"


@cache
def code_version() -> str:
    """A commit's 40 digits, `-dirty` behind them where tracked files differ; or `dakd 0.1.0`; or `unknown`."""
    root = _PACKAGE.parent
    # An installed package may lie in the folder of a repository that is not dakd's.
    if (root / ".git").exists() and not is_installed():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
        except (OSError, subprocess.SubprocessError):  # no git here, or not our checkout to ask
            pass
    try:
        return f"dakd {metadata.version('dakd')}"
    except metadata.PackageNotFoundError:
        return "unknown"
