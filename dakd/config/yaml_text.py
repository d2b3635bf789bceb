"""YAML as this package reads it: each key once, dates and leading zeros as text, errors with line and remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.constructor import ConstructorError

_MAX_BYTES = 1 << 20  # an experiment has a few thousand
# What the parser raises; errors of Python are for numbers, for bytes that are no text, and for depth.
_ERRORS = (yaml.YAMLError, ValueError, RecursionError)
_INT, _FLOAT, _BOOL, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
_READ_AS = {_INT: "a number", _FLOAT: "a number", _BOOL: "true or false", _NULL: "null"}


class Document(NamedTuple):
    """A YAML text: its values, and where they are written."""

    tree: Any
    root: yaml.Node | None

    def part(self, key: object) -> Document:
        """The document of the value under a key of this one's mapping."""
        return Document(self.tree[key], _child(self.root, key))

    def written(self, location: tuple) -> tuple[str, str] | None:
        """The characters of the plain value at a location, and what YAML reads in them; None where it reads text."""
        node = self.root
        for part in location:
            node = _child(node, part)
        is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return (node.value, _READ_AS[node.tag]) if is_plain and node.tag in _READ_AS else None


def read_yaml(path: Path) -> Document:
    """The document of a file; ValueError that names the file, the place in it and the remedy."""
    num_bytes = path.stat().st_size
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"{path} has {num_bytes} bytes; expected YAML of at most {_MAX_BYTES}: is it another file?")
    try:
        return parse_yaml(path.read_bytes())
    except _ERRORS as error:
        raise ValueError(f"{path} is not valid YAML: {yaml_problem(error)}") from None


def parse_yaml(text: str | bytes) -> Document:
    """The document of a text. Raises what the parser raises; `yaml_problem` puts it into words."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return Document(None if root is None else loader.construct_document(root), root)
    finally:
        loader.dispose()


def yaml_problem(error: Exception) -> str:
    """One line about an error of the parser: where, what, and what to do."""
    if isinstance(error, RecursionError):
        return "it nests too deeply; write it flatter"
    if isinstance(error, yaml.reader.ReaderError):
        reason = "is a control character" if error.encoding == "unicode" else "is not UTF-8"
        return f"byte {error.position} ({int(error.character):#04x}) {reason}; save the file as UTF-8 text"
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"{error}; quote the value"
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    context = f" ({error.context})" if error.context and error.problem else ""
    return f"{where}{error.problem or error.context}{context}; {_remedy(str(error.problem))}"


def _remedy(problem: str) -> str:
    if "'\\t'" in problem:
        return "indent with spaces, not with tabs"
    if problem.startswith("the key"):
        return "remove one of the two lines"
    if "could not determine a constructor" in problem:
        return "leave out the tag that begins with !"
    if "cannot be read" in problem:
        return "quote it if it is text"
    if "another document" in problem:
        return "keep one experiment in the file, and remove the line ---"
    if "alias" in problem:
        return "quote a text that begins with *"
    return "fix this line, or quote a text with special characters"


def _child(node: yaml.Node | None, part: object) -> yaml.Node | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    if isinstance(node, yaml.MappingNode):
        # From the end: there stand a mapping's own keys, behind those that `<<` merged into it.
        return next((value for key, value in reversed(node.value) if key.value == str(part)), None)
    return None


class _Loader(yaml.SafeLoader):
    """The safe loader without YAML 1.1's traps."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        # While composing, because merged keys are added to a node later and may be overridden.
        node = super().compose_mapping_node(anchor)
        first: dict[Any, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            # By value, since 1 and 0x1 are one key; as written where it is text, or the sign `<<` of a merge.
            same = self.construct_object(key) if key.tag in _READ_AS else key.value
            if same in first:
                found = f"the key {key.value[:80]!r} is in line {first[same].start_mark.line + 1} already"
                if key.value != first[same].value:  # YAML reads both `on` and `yes` as true
                    found += f", written {first[same].value[:80]!r}"
                raise ConstructorError(None, None, found, key.start_mark)
            first[same] = key
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError:  # of Python: 0x_, a number of 5000 digits, the 99th of a month
            written = str(node.value)[:80]
            raise ConstructorError(None, None, f"the value {written!r} cannot be read", node.start_mark) from None


def _without_traps() -> dict[str, list]:
    """The rules for plain values; `2021-01-01` is text here, and so are `0012` and `1:30`, else octal and base 60."""
    rules = {}
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items():
        rules[letter] = [(tag, rule) for tag, rule in pairs if tag not in (_INT, "tag:yaml.org,2002:timestamp")]
        rules[letter] = [(tag, _FLOAT_RULE if tag == _FLOAT else rule) for tag, rule in rules[letter]]
    return rules


_NUMBER = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
_FLOAT_RULE = re.compile(rf"^(?:{_NUMBER}|\.(?:nan|NaN|NAN))$")
_Loader.yaml_implicit_resolvers = _without_traps()
_Loader.add_implicit_resolver(
    _INT, re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)
