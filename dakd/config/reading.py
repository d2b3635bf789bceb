"""Reads a YAML file, overrides and environment variables into a validated `Config`, and writes it as YAML."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

import yaml

from dakd.config.base import validated
from dakd.config.experiment import Config
from dakd.shipped import find_file, not_found

# The parser also raises errors of Python, for bad bytes, dates and numbers.
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)
_MAX_VALUES = 10_000


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The validated configuration of a YAML file with dotted overrides (`section.key=value`, values in YAML).

    path: a file, or the name of an experiment that comes with dakd, such as `demo`.
    Raises ValueError naming the key, what was found and what was expected.
    """
    found = find_file(path)
    if found is None and Path(path).is_dir():
        raise ValueError(f"{path} is a folder; give the YAML file of one experiment")
    if found is None:
        raise ValueError(not_found(path, "configuration"))
    path = found
    try:
        tree = yaml.safe_load(path.read_text())
    except _YAML_ERRORS as error:
        raise ValueError(f"{path} is not valid YAML: {_yaml_problem(error)}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds {type(tree).__name__}; expected a mapping with sections prepare, balance, ...")
    for override in overrides or []:
        _apply_override(tree, override)
    source = " with ".join([str(path), *([", ".join(overrides)] if overrides else [])])
    return build_config(_expand_variables(tree, source=str(path)), source=source)


def build_config(tree: dict, source: str = "configuration") -> Config:
    """The configuration of a plain mapping; one ValueError lists all faults."""
    return validated(Config, tree, f"{source} is not a valid configuration")


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _apply_override(tree: dict, override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r} is not of the form section.key=value, without spaces")
    node = tree
    *parents, last = key.strip().split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ValueError(f"override {override!r}: {parent!r} is a value, not a section")
    try:
        node[last] = yaml.safe_load(value)
    except _YAML_ERRORS as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ValueError(f"override {override!r}: the value is not valid YAML ({problem}); quote it") from None


def _yaml_problem(error: Exception) -> str:
    return "it nests too deeply" if isinstance(error, RecursionError) else str(error)


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
            return re.sub(r"\$\{(\w+)\}", _environment_value, node)
        return node

    try:
        return expand(tree)
    except RecursionError:
        raise ValueError(f"{source} nests too deeply, or an alias (*name) leads into itself") from None


def _environment_value(match: re.Match) -> str:
    name = match.group(1)
    if name not in os.environ:
        raise ValueError(f"the configuration uses ${{{name}}}, which is not set; run: export {name}=/path/to/it")
    return os.environ[name]
