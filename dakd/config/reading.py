"""Reads a YAML file, overrides and environment variables into a validated `Config`, and writes it as YAML."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dakd.config.experiment import Config
from dakd.config.overrides import Overridden, Override
from dakd.config.validation import shown, validated
from dakd.config.yaml_text import read_yaml
from dakd.shipped import find_file, not_found

_MAX_VALUES = 10_000


def load_config(path: str | Path, overrides: Sequence[Override] | None = None) -> Config:
    """The validated configuration of a YAML file with dotted overrides over it.

    path: a file, or the name of an experiment that comes with dakd, such as `demo`.
    overrides: `section.key=value`, where a text setting takes the value as it is typed and any other one reads it as
    YAML; or (section.key, value).
    Raises ValueError naming the key, what was found and what was expected.
    """
    found = find_file(path)
    if found is None and os.path.isdir(path):
        raise ValueError(f"{path} is a folder; give the YAML file of one experiment")
    if found is None and os.path.exists(path):  # False for names that no file can have
        raise ValueError(f"{path} is no regular file; save the YAML in a file, which each step reads again")
    if found is None:
        raise ValueError(not_found(path, "configuration"))
    path, file = found, read_yaml(found)
    if not isinstance(file.tree, dict):
        kind = "nothing" if file.tree is None else "a list" if isinstance(file.tree, list) else shown(file.tree)
        raise ValueError(f"{path} holds {kind}; expected sections prepare, balance, ...; see dakd config show demo")
    values = Overridden(file)
    name = file.written(("name",))
    if name is not None and name[1] == "a number":
        values.tree["name"] = name[0]  # a name may look like a number: 2024
    for override in overrides or []:
        values.apply(override)
    typed = ", ".join(one if isinstance(one, str) else f"{one[0]}={one[1]!r:.80}" for one in overrides or [])
    source = f"{path} with {typed}" if typed else str(path)
    tree = _expand_variables(values.tree, source=str(path))
    return validated(Config, tree, f"{source} is not a valid configuration", values.written)


def build_config(tree: dict, source: str = "configuration") -> Config:
    """The configuration of a plain mapping; one ValueError lists all faults."""
    return validated(Config, tree, f"{source} is not a valid configuration")


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _expand_variables(tree: Any, source: str) -> Any:
    """The tree with `${NAME}` replaced. ValueError if aliases make it endless or larger than any experiment."""
    num_values = itertools.count(1)

    def expand(node: Any) -> Any:
        if next(num_values) > _MAX_VALUES:
            raise ValueError(f"{source} unfolds to more than {_MAX_VALUES} values; write it without aliases (*name)")
        if isinstance(node, dict):
            return {key: expand(value) for key, value in node.items()}
        if isinstance(node, list):
            return [expand(value) for value in node]
        if isinstance(node, str):
            return re.sub(r"\$\{([^}]*)(\}?)", _environment_value, node)
        return node

    try:
        return expand(tree)
    except RecursionError:
        raise ValueError(
            f"{source} nests too deeply, or an alias (*name) leads into itself; write it flatter, without "
            "aliases"
        ) from None


def _environment_value(match: re.Match) -> str:
    name = match.group(1)
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or not match.group(2):
        raise ValueError(f"the configuration uses {match.group()[:80]!r}; expected a variable, as ${{NAME}}")
    if not os.environ.get(name, "").strip():
        state = "empty" if name in os.environ else "not set"
        raise ValueError(f"the configuration uses ${{{name}}}, which is {state}; run: export {name}=/path/to/it")
    return os.environ[name]
