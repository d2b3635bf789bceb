"""Overrides, `section.key=value`: a text setting takes the value as it is typed, any other one reads it as YAML.

A value that is a section, `section={key: value}`, changes the keys that it names.
"""

from __future__ import annotations

from typing import Any

import yaml

from dakd.config.experiment import Config
from dakd.config.validation import place_of, section_at, shown
from dakd.config.yaml_text import Document, parse_yaml, yaml_problem

Override = str | tuple[str, Any]


class Overridden:
    """The values of a file and of the overrides over them."""

    def __init__(self, file: Document) -> None:
        self.tree: dict = dict(file.tree)
        self._documents: dict[tuple, Document] = {(): file}

    def apply(self, override: Override) -> None:
        """override: `section.key=value`; or a dotted key and its value, as a table's YAML has it."""
        if isinstance(override, tuple):
            key, value = override
            document = Document(value, None)
        else:
            key, separator, text = override.partition("=")
            if not separator or not key.strip():
                raise ValueError(f"override {override!r} is not a setting; expected section.key=value, without spaces")
            document = _read(override, tuple(key.strip().split(".")), text)
        self._set(tuple(key.strip().split(".")), document, key)

    def written(self, location: tuple) -> tuple[str, str] | None:
        """The characters of a value, and what YAML reads in them (see `Document.written`)."""
        nearest = max((key for key in self._documents if location[: len(key)] == key), key=len)
        return self._documents[nearest].written(location[len(nearest) :])

    def _set(self, key: tuple[str, ...], document: Document, name: str) -> None:
        if self._is_merged(key, document.tree):
            for part in document.tree:
                self._set((*key, part), document.part(part), name)
            return
        node = self.tree
        for part in key[:-1]:
            inner = node.get(part)
            if inner is not None and not isinstance(inner, dict):
                raise ValueError(f"override of {name}: {part} is the value {shown(inner)}, not a section; "
                                 f"override {part} itself, or write it as a section")  # fmt: skip
            # A copy: YAML's anchors may share the section with another place, which keeps its value.
            node[part] = dict(inner or {})
            node = node[part]
        node[key[-1]] = document.tree
        self._documents = {one: kept for one, kept in self._documents.items() if one[: len(key)] != key}
        self._documents[key] = document

    def _is_merged(self, key: tuple[str, ...], value: Any) -> bool:
        """Whether a value changes the settings that it names, as a section does; one of another kind replaces all."""
        section = section_at(Config, key) if isinstance(value, dict) else None
        found: Any = self.tree
        for part in key:
            found = found.get(part) if isinstance(found, dict) else found
        if section is None or not isinstance(found, dict | None):
            return False
        kind = section.kind_key
        if kind is None or kind not in value:
            return True
        return value[kind] == (found or {}).get(kind, section.model_fields[kind].default)


def _read(override: str, key: tuple[str, ...], text: str) -> Document:
    place = place_of(Config, key)
    is_known = place.key == key
    if not text.strip():
        can_be_none = not is_known or place.takes_null
        hint = f"write {'.'.join(key)}=null for none" if can_be_none else "give one, or leave it out for the file's"
        raise ValueError(f"override {override!r} has no value; {hint}")
    if is_known and place.takes_text:
        return Document(_text(text, place.takes_null), None)
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"override {override[:200]!r}: the value is not valid YAML ({yaml_problem(error)})") from None


def _text(typed: str, takes_null: bool) -> str | None:
    """The text that is typed; without the quotation marks where they enclose all of it, as in a YAML file."""
    if takes_null and typed == "null":
        return None
    if len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "\"'":
        try:
            document = parse_yaml(typed)
        except (yaml.YAMLError, ValueError):
            return typed
        if isinstance(document.root, yaml.ScalarNode):
            return document.tree
    return typed
