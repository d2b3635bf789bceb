"""Masks counted: those of one pixel type and palette that fit the same meanings, with the values that they hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dakd.data.readers.mask_pixels import shown_colour, unpack


@dataclass
class MaskGroup:
    """Masks of one form and palette (see MaskPixels) that fit the same meanings.

    is_0_255: greys of which each mask holds 255, and at most 0 beside it.  is_255_nodata: the files say that 255, which
    they hold, means "no data".
    examples: the first of the files.  pixels: their number by stored value.
    """

    form: str
    palette: tuple[int, ...]
    fits_colours: bool
    fits_ids: bool
    is_lossy: bool = False
    is_0_255: bool = False
    is_255_nodata: bool = False
    num_files: int = 0
    examples: list[Path] = field(default_factory=list)
    pixels: Counter[int] = field(default_factory=Counter)

    def colour(self, value: int) -> int | None:
        """The packed colour that a value shows; None for greys beyond 8 bits."""
        return shown_colour(self.form, self.palette, value)

    @property
    def is_usable(self) -> bool:
        """Whether there is a meaning that these masks fit, or may fit by a setting."""
        return self.fits_colours or self.fits_ids or self.is_white_bits

    @property
    def is_white_bits(self) -> bool:
        """Bits whose white is no class: they may mean the second class, or unknown."""
        return self.form == "bits" and not self.fits_colours and bool(self.pixels[1])

    @property
    def text(self) -> str:
        """Files, pixel type and values, for messages."""
        more = f" and {self.num_files - 1} more" if self.num_files > 1 else ""
        return f"{self.examples[0]}{more} ({self.kind}: {values_text(self)})"

    @property
    def kind(self) -> str:
        """The form as people say it."""
        return {"bits": "1-bit", "colours": "RGB"}.get(self.form, self.form) + (" JPEG" if self.is_lossy else "")


def listed(groups: list[MaskGroup]) -> str:
    """The first three of some groups, for messages."""
    more = f"; and {len(groups) - 3} kinds more" if len(groups) > 3 else ""
    return "; ".join(group.text for group in groups[:3]) + more


def values_text(group: MaskGroup) -> str:
    """The first eight values; of a palette with their colours."""
    values = sorted(group.pixels)
    texts = [colour_text(group, value) if group.form in ("palette", "colours") else str(value) for value in values[:8]]
    if group.form == "palette":
        texts = [f"{value} {text}" for value, text in zip(values, texts)]
    return ", ".join(texts) + (" ..." if len(values) > 8 else "")


def colour_text(group: MaskGroup, value: int) -> str:
    """The colour that a value shows, as (r, g, b)."""
    colour = group.colour(value)
    return str(value if colour is None else unpack(colour))


def value_text(group: MaskGroup, value: int, reading: str) -> str:
    """A value as a reading (see LabelMeaning) takes it: a colour or a number."""
    by_colour = reading == "colours" or (reading == "palette" and group.form == "palette")
    return colour_text(group, value).replace(" ", "") if by_colour or group.form == "colours" else str(value)
