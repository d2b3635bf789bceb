"""The base class of all sections, and number types with bounds."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dakd.names import written_path

LARGEST = 2**63 - 1  # of whole numbers: torch's and numpy's have 64 bits
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=0, le=8)]  # relative to the size of the image
Byte = Annotated[int, Field(ge=0, le=255)]
_Side = Annotated[int, Field(gt=0, le=1 << 16)]
Size = tuple[_Side, _Side]  # (height, width) in pixels


def _written(path: str) -> str:
    written_path(path)
    return path


WrittenPath = Annotated[str, AfterValidator(_written)]


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

    kind_key: ClassVar[str | None] = None
    """The setting whose value says what the others mean: an override of another kind replaces the whole section."""

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

    @field_validator("*", mode="before")
    @classmethod
    def _is_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would take `true` for the number 1, and any text for a path."""
        field = cls.model_fields[info.field_name]
        types = _leaves(field.annotation)
        if Any in types or (field.default == "" and value == ""):  # a note may be empty
            return value
        if types & {int, float} and bool not in types and _has_bool(value):
            raise PydanticCustomError("bool_for_number", "expected a number")
        return _path_text(value) if str in types else value


def _leaves(annotation: Any) -> set[Any]:
    """The types that a type is made of."""
    arguments = get_args(annotation)
    return set().union(*map(_leaves, arguments)) if arguments else {annotation} if _is_type(annotation) else set()


def _is_type(annotation: Any) -> bool:
    return annotation is Any or isinstance(annotation, type)


def _has_bool(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, bool) or any(map(_has_bool, inner))


def _path_text(value: Any) -> Any:
    """A value with `~/` written out in each of its texts.  ValueError for texts that are empty or fit no path."""
    if isinstance(value, list | tuple):
        return type(value)(map(_path_text, value))
    if not isinstance(value, str):
        return value
    try:
        can_be_path = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:  # half of a surrogate pair
        can_be_path = False
    if not value:  # as a path it would be the current folder
        raise PydanticCustomError("empty_text", "expected text, not empty")
    if not can_be_path:
        raise PydanticCustomError("no_text", "expected text without NUL and half characters")
    return os.path.expanduser(value) if value.startswith("~/") else value


def _own_values(default: Section) -> dict[str, Any]:
    """The values in which a section's default differs from its class's."""
    fields = type(default).model_fields
    if any(field.is_required() for field in fields.values()) or default != type(default)():
        return {name: value for name, value in default if value != fields[name].default}
    return {}
