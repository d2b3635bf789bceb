"""What `dakd verify` prints: the files that are not ok, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

from dakd.card.write import CARD_FILE
from dakd.config import Config, load_config
from dakd.runtime.kept_config import CONFIG, refuse_changed_config
from dakd.runtime.runlog import METRICS
from dakd.runtime.sealed import MANIFEST, listed_in
from dakd.train.checkpoint import list_checkpoints
from dakd.train.validation import BEST, SCORES
from dakd.verify.found import OWN_FOLDERS, STEPS, Found, State
from dakd.verify.made_with import Settings, as_overrides, evaluation_settings, prediction_settings


def next_command(run: Path, found: Found) -> str:
    """The command that makes a damaged or missing file again."""
    place = shlex.quote(str(found.path))
    parts = found.path.relative_to(run).parts
    step = parts[0] if parts[0] in STEPS else None
    options = _options(run)
    if step is None:
        return f"dakd prepare {options}" if parts in ((CONFIG,), (MANIFEST,)) else f"rm -f {place}"
    if parts[-1] == CONFIG and step != "generate":
        return f"{_removal(found.path)}  # the {CONFIG} of the run says what was run"
    if parts[-1] == CARD_FILE:  # an emptied one is not known as dakd's, which replaces no other
        return f"rm -f {place} && dakd card {shlex.quote(str(run))}  # with --licence where it named one"
    if step == "prepare":
        if parts[-1].startswith("shard-") and parts[-1].endswith(".json"):
            return f"rm -f {place}  # it is made again from its tar"
        return f"rm -r {shlex.quote(str(run / step))} && dakd prepare {options}"
    if step == "pseudo_label":
        return f"rm -r {shlex.quote(str(run / step))} && dakd pseudo_label {options}"
    if step == "generate":
        if "audit" in parts:
            return f"dakd generate {options} --audit"
        is_derived = parts[-1].endswith((".png", "provenance.json", CONFIG, MANIFEST))
        return f"rm -f {place} && dakd generate {options}" if is_derived else f"dakd generate {options} --repair"
    if step == "refine":
        return f"rm -r {shlex.quote(str(run / step))} && dakd refine {options}"
    if step == "evaluate":
        return _evaluation(run, found.path)
    if step == "predict" and len(parts) > 2:
        return f"dakd predict {options}" + _typed(run, prediction_settings(run / step / parts[1], parts[2]))
    if parts[-1] in (METRICS, SCORES):
        return f"dakd verify --accept {place}  # keeps its whole lines; only training again makes the others"
    if "samples" in parts:
        return f"{_removal(found.path)}  # only training again makes it"
    if "checkpoints" in parts and list_checkpoints(found.path.parents[1])[-1:] != [found.path.parent]:
        return f"rm -r {shlex.quote(str(found.path.parent))}  # there is a newer one"
    if BEST in parts:
        return f"rm -r {shlex.quote(str(found.path.parent))}  # only training again makes it"
    if "posthoc" in parts:
        return f"rm -r {shlex.quote(str(found.path.parent))}  # dakd ema leaves it out; only training again makes it"
    return f"dakd {step} {options}"


def _evaluation(run: Path, path: Path) -> str:
    name = path.relative_to(run / "evaluate").parts[0]
    folder = run / "evaluate" if run / "evaluate" / name == path or name in OWN_FOLDERS else run / "evaluate" / name
    settings = evaluation_settings(run, folder)
    if settings is None:
        hint = "no whole file names its inputs: evaluate again with its evaluate.folder or evaluate.student"
        return f"rm -r {shlex.quote(str(folder))}  # {hint}"
    return f"dakd evaluate {_options(run)}" + _typed(run, settings)


def _options(run: Path) -> str:
    config = run / CONFIG
    name = "EXPERIMENT.yaml" if _kept(config) is None else shlex.quote(str(config))
    return f"--config {name} run_dir={shlex.quote(str(run))}"


def _typed(run: Path, settings: Settings) -> str:
    """Overrides for a shell, each after a space."""
    config = _kept(run / CONFIG) or Config(name="default")
    return "".join(f" {shlex.quote(one)}" for one in as_overrides(settings, config))


def format_found(run: Path, found: list[Found]) -> str:
    """A line for each file that is not ok, the counts of all, and the next commands."""
    width = max(map(len, ("unexpected", *(one.state for one in found))))
    lines = [
        f"{one.state:<{width}}  {one.path.relative_to(run)}: {one.reason}" for one in found if one.state != "ok"
    ]
    counts = Counter(one.state for one in found)
    lines.append(f"{run}: " + ", ".join(f"{counts[state]} {state}" for state in State.__args__ if counts[state]))
    commands = dict.fromkeys(next_command(run, one) for one in found if one.state in ("damaged", "missing"))
    if commands:
        lines += ["to repair:", *(f"  {command}" for command in commands)]
    return "\n".join(lines)


def _removal(path: Path) -> str:
    """The command after which no file is there and no manifest lists it."""
    name, place = path.name, shlex.quote(str(path))
    is_listed = name in listed_in(path.parent) or f"{path.parent.name}/{name}" in listed_in(path.parents[1])
    return f"rm -f {place}" + f" && dakd verify --accept {place}" * is_listed


def _kept(path: Path) -> Config | None:
    """A run's own configuration; None where it is damaged or gone."""
    try:
        refuse_changed_config(path)
        return load_config(path) if path.is_file() else None
    except (OSError, ValueError):
        return None
