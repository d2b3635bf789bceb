"""The step `predict`: a student's class map, overlay and class probabilities for each image, at its own size.

For an image NAME, of any size that fits in memory, are written

    NAME_class.png                 class ids as a palette PNG in the colours of the class table
    NAME_overlay.png               the image with the predicted classes laid over it
    NAME_probability_CLASS.png     8-bit grey, 255 times the probability of the class, one file a class

The step writes to RUN/predict/TRAINING_SET, with a predict.json that tells the last call: its inputs, its student and
the names of the images that it wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from dakd.config import Config
from dakd.data.pictures import overlay
from dakd.data.readers.base import BadFile
from dakd.data.sample import ClassTable
from dakd.data.shards import ShardSet, open_split
from dakd.data.transforms import to_student
from dakd.models.multiscale import at_scales
from dakd.predict.images import list_images, output_names, read_image
from dakd.runtime.distributed import barrier, device, init_if_many, is_main, rank, world_size
from dakd.runtime.files import file_hash, replacing, write_json
from dakd.runtime.runlog import progress, say
from dakd.weights import STUDENT_FILES, load_student


class BadImages(ValueError):
    """Images that could not be predicted. failures: (where, reason) of each; all others were written."""

    def __init__(self, failures: list[tuple[str, str]], num_images: int) -> None:
        self.failures = failures
        lines = "\n".join(f"  {where}: {reason}" for where, reason in failures)
        done = num_images - len(failures)
        super().__init__(f"{len(failures)} of {num_images} images could not be predicted ({done} were):\n{lines}")


@dataclass(frozen=True)
class Source:
    """An image to predict: the name of its outputs, where it comes from, how to read its (H, W) uint8 grey values."""

    name: str
    where: str
    read: Callable[[], np.ndarray]


def predict(cfg: Config, run_dir: str | Path | None = None) -> Path:
    """Predict `predict.inputs`, or the first images of the test split; returns the folder of the outputs.

    The student's weights and scales are those that are evaluated (`evaluate.weights`, `evaluate.scales`). Every rank
    takes its share. Raises BadImages at the end when some images were not predicted.
    """
    init_if_many()
    run_dir = Path(run_dir) if run_dir is not None else cfg.run_path
    training_set = cfg.predict.training_set or cfg.train_saross.training_sets[-1]
    weights = run_dir / "train_saross" / training_set / STUDENT_FILES[cfg.evaluate.weights]
    if not weights.is_file():
        raise ValueError(f"no student at {weights}; run the step train_saross, or set predict.training_set")
    out_dir = run_dir / "predict" / training_set
    if cfg.predict.inputs is not None:
        inputs = Path(cfg.predict.inputs).expanduser()
        sources = _file_sources(inputs, out_dir)
    else:
        inputs = run_dir / "prepare" / "test"
        if not (inputs / "index.json").is_file():
            raise ValueError(
                f"no test split at {inputs}; name images: predict.inputs=FILE_OR_FOLDER, or give the dataset a test "
                "split and prepare it"
            )
        sources = _held_out_sources(open_split(run_dir / "prepare", "test"), cfg.predict.num_images)
    model, metadata = load_student(weights, device())
    model = at_scales(model, cfg.evaluate.scales)
    classes = ClassTable.from_dict(metadata["classes"])
    problem = None
    try:
        predict_sources(model, classes, sources, out_dir, device=device(), overlay_alpha=cfg.predict.overlay_alpha)
    except BadImages as error:
        problem = error
    if is_main():
        failed = {where for where, _ in problem.failures} if problem else set()
        record = {
            "inputs": str(inputs),
            "training_set": training_set,
            "student": str(weights),
            "student_sha256": file_hash(weights),
            "scales": list(cfg.evaluate.scales),
            "images": [source.name for source in sources if source.where not in failed],
        }
        write_json(out_dir / "predict.json", record)
    if problem:
        raise problem
    say(f"predictions of the student trained on {training_set}: {out_dir}")
    return out_dir


def predict_paths(
    weights: str | Path,
    inputs: str | Path,
    out_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    overlay_alpha: float = 0.45,
) -> list[str]:
    """Predict an image file or a folder of images with the student of a weight file; returns the outputs' names.

    Every rank takes its share. Raises BadImages at the end when some images could not be read; the others are written.
    """
    sources = _file_sources(Path(inputs).expanduser(), Path(out_dir))
    model, metadata = load_student(weights, device)
    classes = ClassTable.from_dict(metadata["classes"])
    predict_sources(model, classes, sources, out_dir, device=device, overlay_alpha=overlay_alpha)
    return [source.name for source in sources]


def predict_sources(
    model: nn.Module,
    classes: ClassTable,
    sources: list[Source],
    out_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    overlay_alpha: float = 0.45,
) -> None:
    """Predict and write images one by one; rank r takes sources i with i % world == r. Raises BadImages at the end."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    own, failures = sources[rank() :: world_size()], []
    for source in progress(own, len(own), "predict"):
        try:
            sar = source.read()
        except BadFile as error:
            failures.append((source.where, error.reason))
            continue
        write_prediction(out_dir, source.name, sar, class_probabilities(model, sar, device), classes, overlay_alpha)
    failures = _of_all_ranks(failures)
    barrier()
    if failures:
        raise BadImages(failures, len(sources))


@torch.inference_mode()
def class_probabilities(model: nn.Module, sar: np.ndarray, device: str | torch.device = "cpu") -> np.ndarray:
    """(K, H, W) float32 probabilities; sar: (H, W) uint8."""
    logits = model(to_student(torch.as_tensor(sar, device=device)[None, None]))
    return logits.float().softmax(dim=1)[0].cpu().numpy()


def write_prediction(
    out_dir: Path, name: str, sar: np.ndarray, probabilities: np.ndarray, classes: ClassTable, overlay_alpha: float
) -> None:
    """Write the class map, the overlay and the probabilities of one image, each file whole or not at all."""
    label = probabilities.argmax(axis=0).astype(np.uint8)
    class_map = Image.fromarray(label)
    class_map.putpalette(classes.palette().tobytes())
    _save(class_map, out_dir / f"{name}_class.png")
    _save(Image.fromarray(overlay(sar, label, classes, overlay_alpha)), out_dir / f"{name}_overlay.png")
    for class_name, one in zip(classes.names, probabilities):
        grey = Image.fromarray((255 * one).round().astype(np.uint8))
        _save(grey, out_dir / f"{name}_probability_{file_part(class_name)}.png")


def file_part(text: str) -> str:
    """The text with everything but letters, digits, dash and underscore replaced by an underscore."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in text)


def _file_sources(inputs: Path, out_dir: Path) -> list[Source]:
    if inputs.is_dir() and inputs.resolve() == out_dir.resolve():
        raise ValueError(f"inputs and outputs are one folder, {out_dir}; give another folder for the outputs")
    paths, num_others = list_images(inputs)
    if num_others:
        say(f"{inputs}: {num_others} files are not images by their names and are left out")
    names = output_names(paths)
    return [Source(name, str(path), lambda path=path: read_image(path)) for name, path in zip(names, paths)]


def _held_out_sources(held_out: ShardSet, num_images: int) -> list[Source]:
    return [
        Source(file_part(held_out.key(i)), held_out.key(i), lambda i=i: held_out.read(i).sar)
        for i in range(min(num_images, len(held_out)))
    ]


def _of_all_ranks(failures: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if not (dist.is_available() and dist.is_initialized()):
        return failures
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, failures)
    return sorted(failure for one in gathered for failure in one)


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as aside:
        picture.save(aside, format="PNG")
