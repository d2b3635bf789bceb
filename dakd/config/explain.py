"""All settings with type, default and meaning, read from the models of the configuration, as data and as text.

A setting is a leaf of `Config`. A map by free names, such as `prepare.classes`, is one setting. A default is the value
in an experiment that sets only its name: `train_saross.optimizer.lr_decay` is poly, though its class says constant.
"""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import yaml
from pydantic.fields import FieldInfo

from dakd.config.base import Section
from dakd.config.experiment import Config
from dakd.config.kinds import any_of, kind

REQUIRED = "required"
WIDTH = 100  # columns of the text
_WIDEST = 40  # columns of a value that has another one on its line
_MOST_HINTS = 5


class Setting(NamedTuple):
    """One leaf of the configuration.

    kind: the type in words, with its bounds.  default: as YAML, or `required`.  meaning: one line.
    """

    key: str
    kind: str
    default: str
    meaning: str


def settings(prefix: str = "") -> list[Setting]:
    """The settings below a dotted key, or at it, in the order of the models; "" means all.

    Raises ValueError with the nearest keys for an unknown key.
    """
    return [_setting(node) for node in _walk(_find(prefix)) if not node.is_section]


def explain(key: str, config: Config | None = None) -> str:
    """The text about a setting, or about a section and all settings in it.

    config: an experiment whose values are printed too.  Raises ValueError with the nearest keys for an unknown key.
    """
    node = _find(key)
    values = None if config is None else _values(config)
    if node.is_section:
        note = f"Experiment {config.name}: a value that differs from the default is printed with it." if config else ""
        paragraphs = [line for text in [*_paragraphs(node)[1:], note] for line in _wrap(text)]
        return "\n".join([*_heading(node), *paragraphs, *_body(node, values)])
    setting = _setting(node)
    lines = [
        setting.key,
        *_wrap(setting.meaning, "  "),
        *_wrap(f"type:     {setting.kind}", "  ", " " * 12),
        f"  default:  {setting.default}",
    ]
    if config is not None:
        lines.append(f"  value:    {_yaml(values[key])} (experiment {config.name})")
    return "\n".join(lines)


def difference(a: Config, b: Config) -> list[tuple[str, Any, Any]]:
    """The settings in which two experiments differ: (key, value in a, value in b), in the order of the models.

    Values are plain ones, as in the YAML dump: lists for tuples.
    """
    in_a, in_b = _values(a), _values(b)
    return [(key, value, in_b[key]) for key, value in in_a.items() if value != in_b[key]]


def format_difference(differences: Sequence[tuple[str, Any, Any]], name_a: str, name_b: str) -> str:
    """The table of `difference`, headed by the names of both experiments.

    A setting takes one line, or two if its first value is long.
    """
    if not differences:
        return "no settings differ"
    rows = [("setting", name_a, name_b), *((key, _yaml(one), _yaml(other)) for key, one, other in differences)]
    first = max(len(key) for key, _, _ in rows)
    second = max([len(one) for _, one, _ in rows if len(one) <= _WIDEST], default=0)
    lines = []
    for key, one, other in rows:
        if len(one) > second:
            lines += [f"{key:<{first}}  {one}", f"{'':<{first}}  {'':<{second}}  {other}"]
        else:
            lines.append(f"{key:<{first}}  {one:<{second}}  {other}")
    return "\n".join(lines)


def help_table(prefixes: Sequence[str]) -> str:
    """The settings below some dotted keys, by section: `key = default (type)`, and the meaning in the next line."""
    blocks = []
    for node in map(_find, prefixes):
        lines = [*_heading(node), *_body(node)] if node.is_section else _setting_lines(node)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


# --- the tree of the models -------------------------------------------------------------------------------------------


class _Node(NamedTuple):
    """A section or a setting."""

    key: str
    field: FieldInfo | None  # None for the experiment itself

    @property
    def model(self) -> Any:
        return Config if self.field is None else self.field.annotation

    @property
    def is_section(self) -> bool:
        return isinstance(self.model, type) and issubclass(self.model, Section)


_ROOT = _Node("", None)


def _children(node: _Node) -> list[_Node]:
    fields = node.model.model_fields if node.is_section else {}
    return [_Node(f"{node.key}.{name}" if node.key else name, field) for name, field in fields.items()]


def _walk(node: _Node) -> Iterator[_Node]:
    yield node
    for child in _children(node):
        yield from _walk(child)


def _find(key: str) -> _Node:
    for node in _walk(_ROOT):
        if node.key == key:
            return node
    nearest = _nearest(key)
    known = ", ".join(child.key for child in _children(_ROOT))
    hint = f"did you mean {any_of(nearest)}?" if nearest else f"sections and settings at the top: {known}"
    raise ValueError(f"no setting or section is called {key!r}; {hint}")


def _nearest(key: str) -> list[str]:
    """The keys that an unknown one may stand for, the likeliest first."""
    keys = [node.key for node in _walk(_ROOT) if node.key]
    if outer := [node.key for node in _walk(_ROOT) if not node.is_section and key.startswith(f"{node.key}.")]:
        return outer  # the key is within a map by free names
    if endings := [known for known in keys if known.endswith(f".{key}")]:
        return endings[:_MOST_HINTS]
    if found := _nearest_below(_ROOT, key.split(".")):
        return sorted(found, key=lambda known: -difflib.SequenceMatcher(None, known, key).ratio())[:3]
    # The unknown key may lack its first parts, so it is compared with as many last parts of each known key.
    parts = key.count(".") + 1
    by_ending = {".".join(known.split(".")[-parts:]): known for known in reversed(keys)}
    return [by_ending[ending] for ending in difflib.get_close_matches(key, by_ending, n=3, cutoff=0.7)]


def _nearest_below(node: _Node, parts: list[str]) -> list[str]:
    """The keys below a node whose parts are all equal or close to these."""
    if not parts:
        return [node.key]
    children = {child.key.rpartition(".")[2]: child for child in _children(node)}
    names = parts[:1] if parts[0] in children else difflib.get_close_matches(parts[0], children, n=3)
    return [found for name in children if name in names for found in _nearest_below(children[name], parts[1:])]


def _values(config: Config) -> dict[str, Any]:
    """The plain value of each setting, by its key."""
    tree = config.model_dump(mode="json")
    values = {}
    for node in _walk(_ROOT):
        if not node.is_section:
            value: Any = tree
            for part in node.key.split("."):
                value = value[part]
            values[node.key] = value
    return values


@cache
def _defaults() -> dict[str, Any]:
    return _values(Config(name=REQUIRED))  # no other setting is required


def _setting(node: _Node) -> Setting:
    words = kind(node.field.annotation, node.field.metadata)
    return Setting(node.key, words, _yaml(_defaults()[node.key]), _one_line(node.field.description))


# --- text -------------------------------------------------------------------------------------------------------------


def _heading(node: _Node) -> list[str]:
    return _wrap(": ".join(part for part in (node.key, *_paragraphs(node)[:1]) if part))


def _body(node: _Node, values: dict[str, Any] | None = None) -> list[str]:
    """A section's own settings, then the sections in it, each with its heading.  values: those of an experiment."""
    lines = [line for child in _children(node) if not child.is_section for line in _setting_lines(child, values)]
    for child in _children(node):
        if child.is_section:
            lines += ["", *_heading(child), *_body(child, values)]
    return lines


def _setting_lines(node: _Node, values: dict[str, Any] | None = None) -> list[str]:
    setting = _setting(node)
    value = _yaml(values[setting.key]) if values else setting.default
    shown = f", value {value}" if value != setting.default else ""
    head = _wrap(f"{setting.key} = {setting.default}{shown} ({setting.kind})", "  ", " " * 6)
    return head + _wrap(setting.meaning, " " * 6)


def _paragraphs(node: _Node) -> list[str]:
    """The description of a section, by paragraphs: the text of its field, or else its class's docstring."""
    text = (node.field.description if node.field else None) or inspect.cleandoc(node.model.__doc__ or "")
    return [_one_line(paragraph) for paragraph in text.split("\n\n") if paragraph.strip()]


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _wrap(text: str, indent: str = "", further: str | None = None) -> list[str]:
    """Lines of WIDTH columns.  further: the indent of all but the first."""
    further = indent if further is None else further
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=further, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _yaml(value: Any) -> str:
    """A plain value on one line, as a user would write it."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()
