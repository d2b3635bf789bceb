"""Validation whose one error lists all faults, each in plain words: the key, what was found, what was expected."""

from __future__ import annotations

import difflib
import re
import reprlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dakd.config.kinds import kind

Model = TypeVar("Model", bound=BaseModel)
Written = Callable[[tuple], tuple[str, str] | None]
_MOST_SHOWN = 120  # characters of a value
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict = 4, 12, 12, 12
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = _MOST_SHOWN
# Errors of pydantic whose own words are good: they name the bound or the choices.
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "literal_error")


class Place(NamedTuple):
    """A key of a model, the type that it takes, and the bounds of that type."""

    key: tuple
    annotation: Any
    metadata: Sequence[Any] = ()

    @property
    def takes_text(self) -> bool:
        """Whether every value of it is a text, or null."""
        return bool(self.members) and all(
            one is str or (get_origin(one) is Literal and all(isinstance(word, str) for word in get_args(one)))
            for one in self.members
        )

    @property
    def members(self) -> list[Any]:
        """The types that it takes, without null."""
        return [one for one in _members(self.annotation) if one is not type(None)]

    @property
    def takes_null(self) -> bool:
        return type(None) in _members(self.annotation)


def place_of(root: Any, location: Sequence[Any]) -> Place:
    """The deepest key that the beginning of a location names in a model, and its type."""
    place = Place((), root)
    for part in location:
        inner = _inner(place.annotation, part)
        if inner is None:
            break
        place = Place((*place.key, part), *inner)
    return place


def section_at(root: type[BaseModel], location: Sequence[Any]) -> Any:
    """The class of the section at a location of a model; None where there is none."""
    place = place_of(root, location)
    only = place.members[0] if place.key == tuple(location) and len(place.members) == 1 else None
    return only if hasattr(only, "model_fields") else None


def validated(model: type[Model], values: Mapping[str, Any], source: str, written: Written = lambda _: None) -> Model:
    """The values as a `model`; a ValueError lists all faults: found, expected, and the nearest known name.

    source: the first line of the error.  written: the characters of the value at a location, and what YAML reads in
    them, where it reads anything else than text.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = dict.fromkeys(f"  {plain_fault(detail, model, written)}" for detail in error.errors())
        raise ValueError(f"{source}:\n" + "\n".join(lines)) from None


def plain_fault(detail: Mapping[str, Any], root: type[BaseModel], written: Written = lambda _: None) -> str:
    """One error of pydantic in plain words: the key, what was expected there, and what was found."""
    if detail["type"] == "json_invalid":
        return f"no JSON: {detail['ctx']['error']}"
    place = place_of(root, detail["loc"])
    where = ".".join(str(part) for part in place.key)
    prefix, found = f"{where}: " if where else "", f" (found {shown(detail['input'])})"
    if detail["type"] == "extra_forbidden":
        return f"{prefix and prefix[:-2] + '.'}{_unknown(place, detail['loc'][-1])}"
    if detail["type"] == "missing":
        name = detail["loc"][-1]
        if isinstance(name, str):
            return f"{where}: missing; expected {_expected(place)}"
        return f"{prefix}expected {_expected(place)}{found}"
    if detail["type"] in ("value_error", "empty_text", "no_text"):
        message = detail["msg"].removeprefix("Value error, ")
        # A message about a whole section, which would be long to print, names the value found itself.
        is_section = any(hasattr(one, "model_fields") for one in place.members)
        return prefix + message + ("" if is_section else found)
    if "[key]" in detail["loc"] or detail["type"] == "invalid_key":
        return f'{prefix}its keys must be text{found}; quote it, as in "no": ...'
    if detail["type"] == "string_type" and (hint := _quoted(detail, place, written)):
        return f"{prefix}must be text ({hint})"
    if detail["type"] not in _BOUNDS or len(place.members) > 1:
        return f"{prefix}expected {_expected(place)}{found}{_as_list(place, detail['input'])}"
    message = detail["msg"].replace("Input should", "must")
    if detail["type"] == "literal_error":
        nearest = difflib.get_close_matches(str(detail["input"]), re.findall(r"'([^']+)'", message), n=1)
        message += f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"{prefix}{message}{found}"


def _unknown(place: Place, name: object) -> str:
    names = sorted(getattr(_members(place.annotation)[0], "model_fields", {}))
    nearest = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys here: {', '.join(names)}"
    text = str(name)[:_MOST_SHOWN]
    if odd := [one for one in dict.fromkeys(text) if not one.isprintable()]:
        characters = ", ".join(f"U+{ord(one):04X} {unicodedata.name(one, '')}".rstrip() for one in odd)
        return f"{text!r}: unknown key; it has the invisible {characters}: write plain spaces, or remove it"
    return f"{text}: unknown key; {hint}"


def _quoted(detail: Mapping[str, Any], place: Place, written: Written) -> str | None:
    """What YAML made of a value that was meant as text, and how to write it."""
    value = detail["input"]
    if isinstance(value, dict | list | tuple):
        return None
    last = f"{place.key[-1]}: " if isinstance(place.key[-1], str) else ""
    as_written = written(place.key)
    if as_written is None and value is None:
        return None
    if as_written is None:
        return f"found {shown(value)}; quote the text, as in {last}\"...\""
    text, meaning = as_written
    return f"found {text or 'nothing'}, which YAML reads as {meaning}; quote it: {last}\"{text}\""


def _expected(place: Place) -> str:
    only = (place.members or [place.annotation])[0]
    if fields := getattr(only, "model_fields", None):
        return f"a section, with some of the keys {', '.join(fields)}"
    return kind(place.annotation, place.metadata)


def _as_list(place: Place, value: object) -> str:
    """How to write one value where a list of them belongs."""
    items = [get_args(one)[0] for one in place.members if get_origin(one) is tuple]
    takes_texts = len(place.members) == len(items) == 1 and Place((), items[0]).takes_text
    return f"; write a list: [{value}]" if takes_texts and isinstance(value, str) and "," not in value else ""


def shown(value: object) -> str:
    """The beginning of a value's repr; YAML's aliases can make a value of a few lines without end."""
    text = _REPR.repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


# --- types ------------------------------------------------------------------------------------------------------------


def _plain(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _members(annotation: Any) -> list[Any]:
    """The types of a union, or the one type."""
    annotation = _plain(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return [member for one in get_args(annotation) for member in _members(one)]
    return [annotation]


def _inner(annotation: Any, part: Any) -> tuple[Any, Sequence[Any]] | None:
    """The type and bounds of a part of a value: of a section's setting, of a list's item, of a map's value."""
    members = Place((), annotation).members
    if len(members) != 1:
        return None
    (only,) = members
    origin, arguments = get_origin(only), get_args(only)
    if part in (fields := getattr(only, "model_fields", {})):
        return fields[part].annotation, fields[part].metadata
    if origin is dict and isinstance(part, str) and part != "[key]":
        return arguments[1], ()
    if origin is list and isinstance(part, int):
        return arguments[0], ()
    if origin is tuple and isinstance(part, int) and arguments:
        return arguments[0 if arguments[-1] is Ellipsis else min(part, len(arguments) - 1)], ()
    return None
