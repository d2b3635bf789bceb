"""A trained student from its weights file alone, and its predictions for arrays, pictures, files and folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dakd.data.sample import ClassTable
from dakd.data.transforms import to_student
from dakd.hub import HubModel
from dakd.models.multiscale import at_scales
from dakd.predict.files import file_sources, predict_sources
from dakd.predict.images import grey_image
from dakd.predict.prediction import OVERLAY_ALPHA, Prediction
from dakd.predict.tiles import TILE, is_large, tiled
from dakd.runtime import distributed
from dakd.weights import load_student, save_weights, student_metadata


class Student(HubModel):
    """A trained student: a net that segments images, with the facts of its file.

    net: image (B, 3, H, W), ImageNet-normalised -> logits (B, K, H, W), in eval mode.  classes: names and colours by
    class id.  device: where the net lies.  facts: all that the file states: settings, training set, seed, ...
    """

    def __init__(
        self,
        net: nn.Module,
        classes: ClassTable,
        device: str | torch.device = "cpu",
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.net, self.classes, self.device, self.facts = net, classes, torch.device(device), facts or {}
        self._bare_net = net

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device | None = None, scales: Sequence[float] = (1.0,)
    ) -> Student:
        """The student of a weights file.  device: None takes a GPU where there is one.

        scales: sizes of the image, times its own, at which the student looks; the largest logit of all counts.
        Raises FileNotFoundError or ValueError where the file holds no student.
        """
        device = distributed.device() if device is None else torch.device(device)
        net, facts = load_student(path, device)
        student = cls(net, ClassTable.from_dict(facts["classes"]), device, facts)
        student.net = at_scales(net, scales)
        return student

    def __repr__(self) -> str:
        name = self.facts.get("student", {}).get("name", type(self.net).__name__)
        return f"Student({name}, classes: {', '.join(self.classes.names)}; {self.device})"

    def predict(
        self,
        image: np.ndarray | Image.Image | str | Path,
        *,
        tile: int | Literal["auto"] | None = "auto",
        overlap: int | None = None,
    ) -> Prediction:
        """The classes of one image of any size, at its own size.

        image: an array (H, W) uint8 of grey values, a PIL picture, or the path of a PNG, JPEG, TIFF or BMP; colour
        pictures are taken where their channels are equal.
        tile: side in pixels of the overlapping tiles that the image is taken in, a multiple of 32; None takes it whole;
        "auto" takes it whole up to 1.5 million pixels, and beyond in tiles of 1024.  overlap: of neighbouring tiles in
        pixels, a multiple of 32; None takes a quarter of the tile.
        Returns a Prediction: `label` (H, W) uint8, `probability` (K, H, W) float32, `overlay()`.
        Raises ValueError for an image that is not 8-bit grey, and for an impossible tile.
        """
        sar = grey_image(image)
        if tile == "auto":
            tile = TILE if is_large(sar.shape) else None
        probability = self._probabilities(sar) if tile is None else tiled(self._probabilities, sar, tile, overlap)
        return Prediction(sar, probability, self.classes)

    def predict_files(
        self,
        inputs: str | Path | Sequence[str | Path],
        out_dir: str | Path,
        *,
        overlay_alpha: float = OVERLAY_ALPHA,
        tile: int | Literal["auto"] | None = "auto",
    ) -> list[str]:
        """Predict image files and folders of images, and write each one's files (`Prediction.save`) to `out_dir`.

        Returns the names of the outputs. Raises BadImages, a ValueError, at the end when some images could not be read;
        the others are written.
        """
        sources = file_sources([inputs] if isinstance(inputs, str | Path) else inputs, out_dir)
        predict_sources(self, sources, out_dir, overlay_alpha=overlay_alpha, tile=tile)
        return [source.name for source in sources]

    def save(self, path: str | Path) -> None:
        """Write the net with all that `load_student` needs, whole or not at all.

        Raises ValueError for a net that was not made by `create_student`, or loaded.
        """
        save_weights(path, *self._state_and_metadata())

    @classmethod
    def _from_file(cls, path: Path, **settings: Any) -> Student:
        return cls.load(path, **settings)

    def _state_and_metadata(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        cfg = getattr(self._bare_net, "student_config", None)
        if cfg is None:
            raise ValueError(
                f"{type(self._bare_net).__name__} carries no settings that it could be built from again; make it with "
                "dakd.create_student, or save its state_dict yourself"
            )
        return self._bare_net.state_dict(), student_metadata(self._bare_net, cfg, self.classes, self.facts)

    @torch.inference_mode()
    def _probabilities(self, sar: np.ndarray) -> np.ndarray:
        """(K, h, w) float32 probabilities; sar: (h, w) uint8."""
        image = torch.as_tensor(np.ascontiguousarray(sar), device=self.device)
        logits = self.net(to_student(image[None, None]))
        return logits.float().softmax(dim=1)[0].cpu().numpy()
