"""The types of settings in words: `whole number >= 0`, `[height, width] in pixels`, `one of ema, raw`."""

from __future__ import annotations

from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from dakd.config.base import LARGEST, Section, Size
from dakd.config.prepare import SceneSide

_NOUNS = {int: "whole number", float: "number", str: "text"}


def kind(annotation: Any, metadata: Sequence[Any] = (), many: bool = False) -> str:
    """A type in words.  metadata: its bounds.  many: in the plural, as the things in a list."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [one for extra in arguments[1:] for one in getattr(extra, "metadata", [extra])]
        return kind(arguments[0], [*inner, *metadata], many)
    if origin is Literal:
        words = ", ".join(map(str, arguments))
        return f"{'words' if many else 'one'} of {words}" if len(arguments) > 1 else words
    if origin in (Union, UnionType):
        return _union(arguments)
    if origin is tuple:
        return _tuple(annotation, arguments, metadata, many)
    if origin is list:
        return f"list{'s' * many} of {kind(arguments[0], many=True)}{_bounds(metadata)}"
    if origin is dict:
        value = arguments[1]
        return f"map{'s' * many} of names to {'values' if value is Any else kind(value, many=True)}"
    if annotation is bool:
        return "true or false"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return _NOUNS.get(annotation, "value") + "s" * many + _bounds(metadata)


def _union(arguments: Sequence[Any]) -> str:
    others = [one for one in arguments if one is not type(None)]
    null = ["null"] * (len(others) < len(arguments))
    if len(others) == 1:
        return " or ".join([kind(others[0]), *null])
    words = [str(word) for one in others if get_origin(one) is Literal for word in get_args(one)]
    words += ["true", "false"] * (bool in others)
    words += [kind(one) for one in others if get_origin(one) is not Literal and one is not bool]
    return any_of([*words, *null])


def _tuple(annotation: Any, arguments: Sequence[Any], metadata: Sequence[Any], many: bool) -> str:
    if annotation == Size:
        return "[height, width] in pixels"
    if annotation == tuple[SceneSide, SceneSide]:
        return f"[height, width] in pixels, each{_bounds(get_args(SceneSide)[1].metadata)}"
    count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
    if least := _limit(metadata, "min_length"):
        count = f"{least} or more "
    return f"list{'s' * many} of {count}{kind(arguments[0], many=True)}"


def _bounds(metadata: Sequence[Any]) -> str:
    if pattern := next((one.pattern for one in metadata if getattr(one, "pattern", None)), None):
        return f" matching {pattern}"
    if _limit(metadata, "min_length"):
        return ", not empty"
    ge, gt, le, lt = (_limit(metadata, name) for name in ("ge", "gt", "le", "lt"))
    low, high = (gt if ge is None else ge), (lt if le is None else le)
    high = None if high == LARGEST else high
    if low is not None and high is not None:
        return f" in {'(' if ge is None else '['}{low:g}, {high:g}{')' if le is None else ']'}"
    if low is not None:
        return f" {'>' if ge is None else '>='} {low:g}"
    return "" if high is None else f" {'<' if le is None else '<='} {high:g}"


def _limit(metadata: Sequence[Any], name: str) -> float | None:
    return next((limit for one in metadata if (limit := getattr(one, name, None)) is not None), None)


def any_of(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
