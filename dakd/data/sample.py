"""One sample: a SAR image with a label, a soft label, or none; and the class tables: names, ids and colours."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# A pixel with this label takes part in no loss and in no metric.
IGNORE_INDEX = 255
# Of one image; more is a damaged or hostile file, not an image to train on.
MAX_PIXELS = 1 << 28


@dataclass(frozen=True)
class ClassTable:
    """Names and RGB colours of the classes; the id of a class is its place in the table.

    Lists and arrays are taken too, and kept as tuples.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        for field_name in ("names", "colours"):
            object.__setattr__(self, field_name, _as_tuples(getattr(self, field_name)))
        if len(self.names) != len(self.colours):
            raise ValueError(f"class table has {len(self.names)} names and {len(self.colours)} colours; give one each")
        if not 2 <= len(self.names) <= IGNORE_INDEX:
            raise ValueError(f"class table has {len(self.names)} classes; expected 2 to {IGNORE_INDEX}")
        for name, colour in zip(self.names, self.colours):
            # A table that the index cannot hold must not get as far as the shards.
            if not isinstance(name, str) or not name or not name.isprintable():
                raise ValueError(f"the class name {name!r} is not a text of printable characters; give another")
            if not (isinstance(colour, tuple) and len(colour) == 3
                    and all(type(value) is int and 0 <= value <= 255 for value in colour)):  # fmt: skip
                raise ValueError(f"the colour of {name} is {colour!r}; expected three of 0 to 255, as (0, 0, 0)")
        for what, entries in (("name", self.names), ("colour", self.colours)):
            if len(set(entries)) != len(entries):
                raise ValueError(f"class table repeats a {what}: {entries}; give each class its own")

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def id_of(self, name: str) -> int:
        """The id of the class called `name`; ValueError when there is none."""
        if name not in self.names:
            raise ValueError(self.no_class(name))
        return self.names.index(name)

    def no_class(self, name: object) -> str:
        """The message that there is no class of that name, with the nearest one."""
        nearest = difflib.get_close_matches(str(name), self.names, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        return f"no class is called {name!r}; the table has {', '.join(self.names)}{hint}"

    def palette(self) -> np.ndarray:
        """(256, 3) uint8 colours by id; ids outside the table, the ignore index among them, are mid-grey."""
        table = np.full((256, 3), 128, np.uint8)
        table[: self.num_classes] = np.array(self.colours, np.uint8)
        return table

    def to_dict(self) -> dict:
        return {"names": list(self.names), "colours": [list(colour) for colour in self.colours]}

    @classmethod
    def from_dict(cls, table: dict) -> ClassTable:
        """The table of `to_dict`. Raises ValueError for anything else."""
        names, colours = (table.get(key) if isinstance(table, dict) else None for key in ("names", "colours"))
        if not isinstance(names, list) or not isinstance(colours, list):
            raise ValueError(f"class table is {table!r:.80}; expected a list of names and one of colours")
        return cls(tuple(names), tuple(tuple(one) if isinstance(one, list) else one for one in colours))


def _as_tuples(value: Any) -> Any:
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


# Krestenitis et al. 2019; (the authors' generated masks use the same palette).
OSD_CLASSES = ClassTable(
    ("sea", "oil", "look-alike", "ship", "land"),
    ((0, 0, 0), (0, 255, 255), (255, 0, 0), (153, 76, 0), (0, 153, 0)),
)
# Zhu et al. 2022: oil or no oil; oil is shown in white, as in the published masks.
SOS_CLASSES = ClassTable(("sea", "oil"), ((0, 0, 0), (255, 255, 255)))


@dataclass(frozen=True)
class Sample:
    """One image, with its labels where they are known.

    sar: (H, W) uint8 grey values.  label: (H, W) uint8 class ids, IGNORE_INDEX where unknown, or None.
    soft_label: (K, H, W) of the teacher, or None: raw logits, any floating dtype to be written; when read, what the
    codec stores: float16 logits or uint8 codes (see soft_labels.py).
    soft_range: the nats that code 255 stands for, None for logits.
    meta: JSON-serialisable facts.
    """

    key: str
    sar: np.ndarray
    label: np.ndarray | None = None
    soft_label: np.ndarray | None = None
    soft_range: float | None = None
    meta: dict = field(default_factory=dict)
