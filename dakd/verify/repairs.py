"""What `dakd verify` prints: the files that are not ok, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

from dakd.runtime.kept_config import CONFIG, refuse_changed_config
from dakd.runtime.runlog import METRICS
from dakd.runtime.sealed import MANIFEST, listed_in
from dakd.train.checkpoint import list_checkpoints
from dakd.verify.found import STEPS, Found, State


def next_command(run: Path, found: Found) -> str:
    """The command that makes a damaged or missing file again."""
    place = shlex.quote(str(found.path))
    parts = found.path.relative_to(run).parts
    step = parts[0] if parts[0] in STEPS else None
    config = run / CONFIG
    config_name = shlex.quote(str(config)) if _is_whole_config(config) else "EXPERIMENT.yaml"
    options = f"--config {config_name} run_dir={shlex.quote(str(run))}"
    if step is None:
        return f"dakd prepare {options}" if parts in ((CONFIG,), (MANIFEST,)) else f"rm -f {place}"
    if parts[-1] == CONFIG and step != "generate":
        return f"{_removal(found.path)}  # the {CONFIG} of the run says what was run"
    if step == "prepare":
        if parts[-1].startswith("shard-") and parts[-1].endswith(".json"):
            return f"rm -f {place}  # it is made again from its tar"
        return f"rm -r {shlex.quote(str(run / step))} && dakd prepare {options}"
    if step == "generate" and "audit" in parts:
        return f"dakd generate {options} --audit"
    if step == "generate" and parts[-1].endswith((".png", "provenance.json", CONFIG, MANIFEST)):
        return f"rm -f {place} && dakd generate {options}"
    if step == "generate":
        return f"dakd generate {options} --repair"
    if parts[-1] == METRICS:
        return f"dakd verify --accept {place}  # keeps its whole lines; only training again makes the others"
    if "samples" in parts:
        return f"{_removal(found.path)}  # only training again makes it"
    if "checkpoints" in parts and list_checkpoints(found.path.parents[1])[-1:] != [found.path.parent]:
        return f"rm -r {shlex.quote(str(found.path.parent))}  # there is a newer one"
    if "posthoc" in parts:
        return f"rm -r {shlex.quote(str(found.path.parent))}  # dakd ema leaves it out; only training again makes it"
    return f"dakd {step} {options}"


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


def _is_whole_config(path: Path) -> bool:
    try:
        refuse_changed_config(path)
    except (OSError, ValueError):
        return False
    return path.is_file()
