"""A trained student from its weights file alone, and its predictions for arrays, pictures, files and folders."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dakd.data.pictures import check_alpha
from dakd.data.radiometry import Radiometry
from dakd.data.sample import ClassTable
from dakd.data.transforms import to_student
from dakd.hub import HubModel, local_weights, refuse_other_model
from dakd.models.student import StudentNet, at_scales, checked_logits, checked_scales, in_eval_mode, uncompiled
from dakd.names import written_path
from dakd.predict.images import file_sources, grey_image
from dakd.predict.prediction import OVERLAY_ALPHA, Prediction
from dakd.predict.record import predict_to_folder
from dakd.predict.tiles import TILE, checked_overlap, checked_tile, is_large, tiled
from dakd.runtime.distributed import device_of
from dakd.runtime.tensor_files import save_weights, tensors_hash
from dakd.scene.scene_job import SceneResult
from dakd.weights import load_student, student_metadata, temperature_of


class Student(HubModel):
    """A trained student: a net that segments images, with its classes and the facts of its file.

    net: image (B, 3, H, W), ImageNet-normalised -> finite logits (B, K, H, W); predictions are made in eval mode.
    classes: names and colours by class id.  device: where the net lies.
    facts: all that the file states: settings, training set, seed, ...
    scales: factors of the image's size at which it is predicted; the largest logit of all counts.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: ClassTable,
        device: str | torch.device = "cpu",
        facts: dict[str, Any] | None = None,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        """Raises ValueError where the net has another number of classes than the table, TypeError for no table."""
        if not isinstance(classes, ClassTable):
            raise TypeError(f"classes is a {type(classes).__name__}; expected a dakd.ClassTable")
        # Any module may serve as the net; one that states no number of classes is checked at its first prediction.
        num_classes = getattr(uncompiled(net), "num_classes", classes.num_classes)
        if num_classes != classes.num_classes:
            raise ValueError(
                f"the net has {num_classes} classes and the table {classes.num_classes}: "
                f"{', '.join(classes.names)}; give each class of the net a name and a colour"
            )
        self.net = net
        self.classes = classes
        self.device = device_of(device)
        self.facts = facts or {}
        self.scales = checked_scales(scales)
        temperature_of(self.facts, "the facts")  # refused before the first prediction

    @property
    def temperature(self) -> float:
        """What the logits are divided by for the probabilities: fitted in training with `validation.calibrate`, else 1.

        It is one of the facts, and is saved with them. It changes no class.
        """
        return temperature_of(self.facts, "the facts")

    @property
    def radiometry(self) -> Radiometry:
        """What its training's greys meant and how they were spread, as far as its file says; see `dakd config explain
        prepare.radiometry`."""
        return Radiometry.from_dict(self.facts.get("radiometry"), "the student's file")

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device | None = None, scales: Sequence[float] = (1.0,)
    ) -> Student:
        """The student of a weights file, or of a folder that holds one.  device: None takes a GPU where there is one.

        Raises FileNotFoundError or ValueError where there is no student.
        """
        device = device_of(device)
        net, facts = load_student(local_weights(path), device)
        return cls(net, ClassTable.from_dict(facts["classes"]), device, facts, scales)

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
        Raises ValueError for an image that is not 8-bit grey, for an impossible tile, and where the net does not give
        finite logits (1, K, H, W).
        """
        sar = grey_image(image)
        if overlap is not None:
            overlap = checked_overlap(TILE if tile in ("auto", None) else tile, overlap)
        if tile == "auto":
            tile = TILE if is_large(sar.shape) else None
        found = self._probabilities(sar) if tile is None else tiled(self._probabilities, sar, tile, overlap)
        if len(found) == self.classes.num_classes:
            return Prediction(sar, found, self.classes)
        plain, calibrated = np.split(found, 2)
        # A temperature must change no class, and it could by rounding, and where tiles are blended.
        return Prediction(sar, calibrated, self.classes, plain.argmax(axis=0).astype(np.uint8))

    def predict_files(
        self,
        inputs: str | Path | Sequence[str | Path],
        out_dir: str | Path,
        *,
        overlay_alpha: float = OVERLAY_ALPHA,
        tile: int | Literal["auto"] | None = "auto",
    ) -> list[str]:
        """Predict image files and folders of images, and write each one's files (`Prediction.save`) to `out_dir`.

        Returns the names of the outputs, in the order of the images: the stem of each image's file name, and another
        one where two images would share a file or the stem is no safe name. `out_dir`/predict.json says where each
        comes from; later calls add to it. Raises ValueError, before anything is written, for no input, a URL, a folder
        with predictions of another student and an impossible tile or alpha; and BadImages, a ValueError, at the end
        when some images could not be predicted: the others are written.
        """
        check_alpha(overlay_alpha)
        out_dir = written_path(out_dir)
        if tile is not None and tile != "auto":
            checked_tile(tile)
        sources = file_sources([inputs] if isinstance(inputs, str | Path) else inputs, out_dir)
        state = {name: one for name, one in uncompiled(self.net).state_dict().items() if isinstance(one, Tensor)}
        maker = {"tensors_sha256": tensors_hash(state), "scales": list(self.scales)}
        maker["temperature"] = self.facts.get("temperature")
        named = predict_to_folder(
            partial(self.predict, tile=tile),
            sources,
            out_dir,
            self.classes,
            maker,
            {},
            overlay_alpha=overlay_alpha,
            radiometry=self.radiometry,
        )
        return [source.name for source in named]

    def predict_scene(
        self, scene: Any, out_dir: str | Path | None = None, *, overwrite: bool = False, **options: Any
    ) -> SceneResult:
        """Polygons and rasters of a radar scene of any size: what `dakd scene` does, for one scene.

        scene: a GeoTIFF, COG, VRT, PNG, JPEG or BMP: its path, a name that GDAL opens, or an open dataset of rasterio.
        out_dir: folder of the files; None takes a temporary one, which goes with the result.
        options: of `dakd.scene.options.SceneOptions`: band, unit, window, spacing, nodata, aoi, tile, outputs, ...
        Returns a SceneResult: `features`, `read("class")`, `read("probability")`, `files`, `record`.
        Raises RuntimeError where the extra `geo` is not installed, TypeError for an unknown option, ValueError for one
        that makes no sense, and for a scene that cannot be read or whose meaning is unclear.
        """
        from dakd.scene.detect import detect
        from dakd.scene.options import SceneOptions

        place = str(scene if isinstance(scene, str | Path) else scene.name)
        asked = SceneOptions(**options)
        if out_dir is not None:
            return detect(place, self, out_dir, asked, overwrite)
        kept = tempfile.TemporaryDirectory(prefix="dakd-scene-")
        return replace(detect(place, self, kept.name, asked), kept=kept)

    def save(self, path: str | Path, facts: dict[str, Any] | None = None) -> None:
        """Write the net with all that `load_student` needs, whole or not at all.

        facts: JSON-serialisable facts for the file, in place of those that the student was loaded with: a student that
        was trained further has others.
        Raises ValueError for a net that was neither made by `create_student` nor loaded, for a URL, and for a folder or
        file that is there and is no student's.
        """
        if Path(path).is_dir():
            raise ValueError(f"{path} is a folder; give a file's name, such as {Path(path) / 'student.safetensors'}")
        state, metadata = self._state_and_metadata(facts)
        path = written_path(path)
        refuse_other_model(path, metadata["kind"])
        save_weights(path, state, metadata)

    @classmethod
    def _from_file(cls, path: Path, **settings: Any) -> Student:
        return cls.load(path, **settings)

    def _state_and_metadata(self, facts: dict[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        net = uncompiled(self.net)
        if not isinstance(net, StudentNet) or net.student_config is None:
            raise ValueError(
                f"{type(net).__name__} carries no settings that it could be built from again; make it with "
                "dakd.create_student, or save its state_dict yourself"
            )
        facts = self.facts if facts is None else facts
        return net.state_dict(), student_metadata(net, net.student_config, self.classes, facts)

    @torch.inference_mode()
    def _probabilities(self, sar: np.ndarray) -> np.ndarray:
        """(K, h, w) float32 probabilities; sar: (h, w) uint8. (2 K, h, w) with a temperature: without it, and with it.
        """
        image = torch.as_tensor(np.require(sar, requirements=["C", "W"]), device=self.device)
        with in_eval_mode(self.net):
            normalised = to_student(image[None, None])
            logits = checked_logits(at_scales(self.net, self.scales)(normalised), normalised)
        if logits.shape[1] != self.classes.num_classes:
            raise ValueError(
                f"the net gives {logits.shape[1]} classes; the table has {self.classes.num_classes}; give the table "
                "of its training set"
            )
        temperatures = (1.0,) if self.temperature == 1 else (1.0, self.temperature)
        probability = torch.cat([(logits.float() / one).softmax(dim=1)[0] for one in temperatures]).cpu().numpy()
        spoilt = np.count_nonzero(np.isnan(probability[0]))  # such a logit makes its pixel NaN in every class
        if spoilt:
            raise ValueError(
                f"the net gives logits that are NaN or infinite at {spoilt} of {sar.size} pixels; expected finite: "
                "take weights of an earlier step, or of a training whose loss stayed finite"
            )
        return probability
