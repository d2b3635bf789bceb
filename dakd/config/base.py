"""The base class of all sections, and number types with bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

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

    @model_validator(mode="before")
    @classmethod
    def _sections_keep_their_defaults(cls, tree: Any) -> Any:
        """A section within this one changes only the settings that it names; one that is empty changes none.

        Its default may differ from its class's: `train_saross.optimizer.lr_decay` is poly, the class says constant.
        """
        if not isinstance(tree, dict):
            return tree
        full = dict(tree)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Section) and name in tree:
                if tree[name] is None:
                    del full[name]
                elif isinstance(tree[name], dict):
                    full[name] = _own_values(field.default) | tree[name]
        return full


def _own_values(default: Section) -> dict[str, Any]:
    """The values in which a section's default differs from its class's."""
    fields = type(default).model_fields
    if any(field.is_required() for field in fields.values()) or default != type(default)():
        return {name: value for name, value in default if value != fields[name].default}
    return {}
