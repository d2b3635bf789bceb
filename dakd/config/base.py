"""The base class of all sections of the configuration, and number types with bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=0, le=8)]  # relative to the size of the image
Byte = Annotated[int, Field(ge=0, le=255)]
Size = tuple[Positive, Positive]  # (height, width) in pixels


def wanted(text: str) -> WrapValidator:
    """A validator for unions: one error that names the wanted values, not one error per type of the union."""

    def check(value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"wanted {text}") from None

    return WrapValidator(check)


class Section(BaseModel):
    """A strict, immutable part of the configuration.

    The docstring under a field is the meaning of the setting; `dakd.config.explain` prints it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
