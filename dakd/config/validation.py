"""One error for all faults of a section's values: found, wanted, and the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """The section `model` of these values; ValueError that lists all faults.

    source: names the values, for the first line of the error.
    """
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
        # The message is of a whole section, and names the value that was found.
        return f"{where}: {message}" if where else message
    return f"{where}: {message} (found {detail['input']!r})"


def _known_keys(root: type[BaseModel], location: tuple) -> list[str]:
    model: Any = root
    for part in location:
        if get_origin(model) is dict:  # of sections by a name that is free
            model = get_args(model)[-1]
        else:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
    return sorted(getattr(model, "model_fields", {}))
