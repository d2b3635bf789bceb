"""A student's answer for one image: class probabilities, the class map, pictures of both, and its files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from dakd.data.pictures import check_alpha, class_map, overlay, save_png
from dakd.data.sample import ClassTable
from dakd.names import FILE_PART, file_part, hashed, is_file_part, unique_names, written_path
from dakd.runtime.named import Named

OVERLAY_ALPHA = 0.45


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The classes of one image.

    sar: (H, W) uint8 grey values.  probability: (K, H, W) float32, by class id, summing to 1.  classes: names, colours.
    decided: (H, W) uint8 class ids, where the probabilities were calibrated after the classes were decided.
    """

    sar: np.ndarray
    probability: np.ndarray
    classes: ClassTable
    decided: np.ndarray | None = None

    @cached_property
    def label(self) -> np.ndarray:
        """(H, W) uint8: the likeliest class of each pixel; the first where several are."""
        if self.decided is not None:
            return self.decided
        return self.probability.argmax(axis=0).astype(np.uint8)

    @property
    def shares(self) -> dict[str, float]:
        """The share of the pixels that each class has, by name; a name that no class has raises KeyError with them."""
        counts = np.bincount(self.label.ravel(), minlength=self.classes.num_classes)
        shares = {name: float(count / self.label.size) for name, count in zip(self.classes.names, counts)}
        return Named(shares, self.classes.no_class)

    def overlay(self, alpha: float = OVERLAY_ALPHA) -> Image.Image:
        """The image with every class but the first laid over it in its colour, `alpha` strong (0 to 1).

        Raises ValueError for an alpha that is no such number.
        """
        check_alpha(alpha)
        return Image.fromarray(overlay(self.sar, self.label, self.classes, alpha))

    def class_map(self) -> Image.Image:
        """Class ids as a palette picture in the colours of the class table."""
        return class_map(self.label, self.classes)

    def save(self, folder: str | Path, name: str, alpha: float = OVERLAY_ALPHA) -> None:
        """Write NAME_class.png, NAME_overlay.png and NAME_probability_CLASS.png, each file whole or not at all.

        Raises ValueError for a name that leaves the folder or that not every file system takes, for a URL, and for an
        alpha outside 0 to 1.
        """
        if not is_file_part(name):
            raise ValueError(f"name is {name!r}; expected the start of a file's name, such as 'scene_1': {FILE_PART}")
        folder = written_path(folder)
        check_alpha(alpha)
        greys = ((255 * one).round().astype(np.uint8) for one in self.probability)
        pictures = chain([self.class_map(), self.overlay(alpha)], map(Image.fromarray, greys))
        for ending, picture in zip(output_endings(self.classes), pictures):
            save_png(picture, folder / f"{name}{ending}")

    def __repr__(self) -> str:
        height, width = self.label.shape
        return f"Prediction({height} x {width}; {', '.join(f'{n} {s:.2%}' for n, s in self.shares.items())})"

    def _repr_png_(self) -> bytes:
        """The overlay, for notebooks."""
        content = io.BytesIO()
        self.overlay().save(content, format="PNG")
        return content.getvalue()


def output_endings(classes: ClassTable) -> list[str]:
    """What follows NAME in the files of a prediction: class map, overlay, then each class by its id."""
    parts = unique_names([(file_part(name), hashed(name)) for name in classes.names])
    return ["_class.png", "_overlay.png", *(f"_probability_{part}.png" for part in parts)]
