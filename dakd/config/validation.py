"""Validates values against a model; one error lists all faults: found, wanted, and the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """The values as a `model`; a ValueError lists all faults.  source: the first line of the error."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"  {_explain(detail, model)}" for detail in error.errors()]
        raise ValueError(f"{source}:\n" + "\n".join(lines)) from None


def _explain(detail: Mapping[str, Any], root: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        names = _known_keys(root, detail["loc"][:-1])
        nearest = difflib.get_close_matches(str(detail["loc"][-1]), names, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys here: {', '.join(names)}"
        return f"{where}: unknown key; {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error" and isinstance(detail["input"], dict):
        # The message is about a whole section, which would be long to print, and already names the value found.
        return f"{where}: {message}" if where else message
    return f"{where}: {message} (found {detail['input']!r})"


def _known_keys(root: type[BaseModel], location: tuple) -> list[str]:
    model: Any = root
    for part in location:
        if get_origin(model) is dict:  # a map of sections by free names
            model = get_args(model)[-1]
        else:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
    return sorted(getattr(model, "model_fields", {}))
