"""The base class of all sections, number types with bounds, and validation whose one error lists all faults."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

Model = TypeVar("Model", bound=BaseModel)
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=0, le=8)]  # relative to the size of the image
Byte = Annotated[int, Field(ge=0, le=255)]
Size = tuple[Positive, Positive]  # (height, width) in pixels


def expected(text: str) -> WrapValidator:
    """A validator for unions: one error that names the expected values, not one error per type of the union."""

    def check(value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"expected {text}") from None

    return WrapValidator(check)


class Section(BaseModel):
    """A strict, immutable part of the configuration.

    The docstring under a field is the meaning of the setting; `dakd.config.explain` prints it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def validated(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """The values as a `model`; a ValueError lists all faults: found, expected, and the nearest known name.

    source: the first line of the error.
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
    message = plain_message(detail)
    if detail["type"] == "literal_error":
        nearest = difflib.get_close_matches(str(detail["input"]), re.findall(r"'([^']+)'", detail["msg"]), n=1)
        message += f"; did you mean {nearest[0]!r}?" if nearest else ""
    if detail["type"] == "value_error" and isinstance(detail["input"], dict):
        # The message is about a whole section, which would be long to print, and already names the value found.
        return f"{where}: {message}" if where else message
    return f"{where}: {message} (found {detail['input']!r})"


def plain_message(detail: Mapping[str, Any]) -> str:
    """One error of pydantic in the words of this package."""
    return detail["msg"].removeprefix("Value error, ").replace("Input should", "must")


def _known_keys(root: type[BaseModel], location: tuple) -> list[str]:
    model: Any = root
    for part in location:
        if get_origin(model) is dict:  # a map of sections by free names
            model = get_args(model)[-1]
        else:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
    return sorted(getattr(model, "model_fields", {}))
