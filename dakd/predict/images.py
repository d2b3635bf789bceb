"""The images to predict: found, named, and read like training images; predicted and written one by one.

All images that cannot be predicted are reported at the end, when the others are written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from dakd.data.radiometry import Radiometry
from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.picture_structure import read_structure
from dakd.data.readers.read_picture import MAX_SCENE_PIXELS, grey_values, read_grey
from dakd.data.readers.unread import IMAGE_SUFFIXES, contents, is_hidden, list_unread
from dakd.data.records import BadRecord
from dakd.data.sample import ClassTable
from dakd.names import file_part, hashed, unique_names
from dakd.predict.prediction import OVERLAY_ALPHA, Prediction, output_endings
from dakd.runtime.distributed import barrier, rank, world_size
from dakd.runtime.files import NO_ROOM
from dakd.runtime.runlog import progress, say
from dakd.runtime.stopping import Preempted
from dakd.scene.radiometry import foreign_greys
from dakd.scene.rasters_in import collar_of

_LEAST_BORDER = 0.001  # of the pixels
_NUM_SHOWN = 10  # names that differ; predict.json has all


def grey_image(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    """(H, W) uint8 grey values of an array, a PIL picture or a file; ValueError for anything but 8-bit grey."""
    if isinstance(image, str | Path):
        if not Path(image).exists():
            raise FileNotFoundError(f"no image at {str(image)!r}; give the path of a PNG, JPEG, TIFF or BMP")
        return _in_words(lambda: read_image(image))
    if isinstance(image, Image.Image):
        return _in_words(lambda: grey_values(image, "the picture"))
    if np.ma.is_masked(image):
        raise ValueError(
            f"image hides {np.ma.count_masked(image)} of its pixels by a mask; expected a value in every pixel: cut it "
            "to its valid part, or fill the others (image.filled(VALUE))"
        )
    try:
        array = np.asarray(image)
    except (TypeError, RuntimeError) as error:  # of tensors that numpy cannot hold
        raise ValueError(f"image cannot be read as an array ({error}); give uint8 grey values (H, W)") from error
    if array.dtype != np.uint8 or array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"image is {array.dtype} of shape {array.shape}; expected uint8 grey values (H, W), not empty: take one "
            "channel, and bring its values to 0..255 as the training images were"
        )
    return array


def _in_words(read: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return read()
    except (BadFile, OSError) as error:
        raise ValueError(str(error)) from error


def read_image(path: str | Path) -> np.ndarray:
    """(H, W) uint8 grey values of a PNG, JPEG, TIFF or BMP, read as images of a dataset are, but of whole scenes too.

    Raises BadFile for all that the table in `dakd.data.readers.read_picture` refuses.
    """
    return read_grey(Path(path), max_pixels=MAX_SCENE_PIXELS)


def list_images(inputs: str | Path) -> tuple[list[Path], list[str]]:
    """The image files of a file or folder by name, and the other files and the sub-folders that lie there, in words.

    Raises ValueError where there is no such file or folder, or no image in it.
    """
    inputs = Path(inputs)
    if inputs.is_file():
        return [inputs], []
    if not inputs.is_dir():
        raise ValueError(f"no file or folder at {inputs}; give an image or a folder of images")
    files = sorted(path for path in inputs.iterdir() if not path.is_dir() and not is_hidden(path))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        expected = f"files that end in {', '.join(IMAGE_SUFFIXES)}, not in sub-folders"
        raise ValueError(f"no image in {inputs}; expected {expected}; found {contents(inputs)}")
    return images, list_unread(inputs, images)


class BadImages(ValueError):
    """Images that could not be predicted. failures: (where, reason) of each; all others were written."""

    def __init__(self, failures: list[tuple[str, str]], num_images: int) -> None:
        self.failures = failures
        lines = "\n".join(f"  {_shown(where)}: {reason}" for where, reason in failures)
        done = num_images - len(failures)
        super().__init__(f"{len(failures)} of {num_images} images could not be predicted ({done} were):\n{lines}")


@dataclass(frozen=True)
class Source:
    """An image to predict.

    where: where it comes from, unlike that of any other.  title: what its outputs are named after.
    read: gives its (H, W) uint8 grey values.  choices: names for its outputs, from the plainest to the most specific.
    name: the one of them that was taken.
    """

    where: str
    title: str
    read: Callable[[], np.ndarray]
    choices: tuple[str, ...]
    name: str = ""


def file_sources(inputs: Sequence[str | Path], out_dir: str | Path) -> list[Source]:
    """The images of files and folders, each once.

    Raises ValueError where there is none, and where outputs would lie among the inputs.
    """
    paths: dict[Path, None] = {}  # in their order
    for place in (Path(one).expanduser() for one in inputs):
        refuse_outputs_as_inputs(place, out_dir)
        found, unread = list_images(place)
        if unread:
            say(f"{place}: not read: {', '.join(unread)}")
        paths |= dict.fromkeys(Path(os.path.abspath(path)) for path in found)
    if not paths:
        raise ValueError(f"inputs are {inputs!r:.80}; expected at least one image or folder: name one")
    return [_file_source(path) for path in paths]


def refuse_outputs_as_inputs(place: Path, out_dir: str | Path) -> None:
    """ValueError where the folder of the outputs is the one of the inputs."""
    if place.is_dir() and place.resolve() == Path(out_dir).resolve():
        raise ValueError(f"inputs and outputs are one folder, {out_dir}; give another folder for the outputs")


def _file_source(path: Path) -> Source:
    stem, name = path.stem, path.name
    # Of a.png alone the stem; beside a.tif the whole name; beside A.png its digits; from two folders those of the path.
    choices = (file_part(stem), file_part(name), hashed(stem, name), hashed(stem, str(path)))
    return Source(str(path), stem, lambda: read_image(path), choices)


def key_source(key: str, read: Callable[[], np.ndarray]) -> Source:
    """The image of a record of a shard."""
    return Source(key, key.replace("/", "_"), read, (file_part(key), hashed(key)))


def name_sources(
    sources: list[Source],
    classes: ClassTable,
    out_dir: str | Path,
    earlier: Mapping[str, str] | None = None,
    others: Iterable[str] = (),
) -> list[Source]:
    """The sources, each with a name under which no other has a file; says which had to differ from their titles.

    earlier: where the predictions that stay in the folder come from, by name; these names stay theirs.
    others: files in the folder that are not to be written over.
    """
    earlier, out_dir = earlier or {}, Path(out_dir).resolve()
    names_of = {where: name for name, where in earlier.items()}
    own, endings = {source.where for source in sources}, output_endings(classes)
    taken = [name + ending for name, where in earlier.items() if where not in own for ending in endings]
    taken += others
    # A picture that lies in the folder of the outputs is not written over.
    taken += [path.name for path in (Path(source.where) for source in sources) if path.parent == out_dir]
    choices = [(names_of[source.where],) if source.where in names_of else source.choices for source in sources]
    named = [replace(one, name=name) for one, name in zip(sources, unique_names(choices, endings, taken))]
    differing = [source for source in named if source.name != source.title]
    for source in differing[:_NUM_SHOWN]:
        say(f"{_shown(source.where)}: its outputs are called {source.name}_..., for the plain name is taken or unsafe")
    if len(differing) > _NUM_SHOWN:
        say(f"and {len(differing) - _NUM_SHOWN} more names that differ from their images'")
    return named


def remarks_on(path: Path, sar: np.ndarray, radiometry: Radiometry) -> list[str]:
    """Remarks on losses and likely errors where an image is predicted as a picture and not as a scene.

    path: where it comes from, a file or not.  sar: (H, W) uint8 greys.  radiometry: of the student's training images.
    """
    found = []
    if path.is_absolute() and path.is_file():  # a key of a record is neither
        with path.open("rb") as stream:
            if read_structure(stream).has_place:
                found.append("the PNGs do not keep its place on Earth; dakd scene does, and outlines slicks")
    border = collar_of(sar)
    if (share := border.mean()) > _LEAST_BORDER:
        found.append(f"{share:.1%} of it is a black border, whose classes mean nothing; dakd scene leaves it out")
    if (warning := foreign_greys(sar[~border], radiometry)) is not None:
        found.append(warning)
    return found


def predict_sources(
    predict: Callable[[np.ndarray], Prediction],
    sources: list[Source],
    out_dir: str | Path,
    endings: Sequence[str],
    overlay_alpha: float = OVERLAY_ALPHA,
    radiometry: Radiometry | None = None,
) -> None:
    """Predict and write images one by one; rank r takes sources i with i % world == r. Raises BadImages at the end.

    sources: with names.  endings: of an image's files.  radiometry: of the student's training images, for warnings.
    An image whose reading, prediction or writing fails costs no other; no file of this call is left of it. Files of an
    earlier call go only where the image cannot be read.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    own, failures = sources[rank() :: world_size()], []
    for source in progress(own, len(own), "predict"):
        files = [out_dir / f"{source.name}{ending}" for ending in endings]
        lost, sar = [path for path in files if not path.exists()], None  # of a failure
        try:
            sar = source.read()
            for remark in remarks_on(Path(source.where), sar, radiometry or Radiometry()):
                say(f"{_shown(source.where)}: {remark}")
            predict(sar).save(out_dir, source.name, overlay_alpha)
        except Preempted:
            raise
        except Exception as error:  # of any class: the others are to be written, and no rank to wait for this one
            failures.append((source.where, _reason(error)))
            # Earlier files show an image that is no longer there; not after a want of memory or a mistake of the call.
            if sar is None and isinstance(error, BadFile | BadRecord | OSError):
                lost = files
            for path in lost:
                path.unlink(missing_ok=True)
    failures = _of_all_ranks(failures)
    barrier()
    if failures:
        raise BadImages(failures, len(sources))


def _reason(error: Exception) -> str:
    if isinstance(error, BadFile):
        return error.reason
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"too little memory for it; take it in tiles (dakd.Student.predict_files), or cut it in parts ({error})"
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        text += "; free some space there, and predict again"
    return text if isinstance(error, ValueError | OSError | BadRecord) else f"{type(error).__name__}: {text}"


def _shown(text: str) -> str:
    """The text itself, or as Python writes it where it has control characters or bytes that are no text."""
    return text if text.isprintable() else repr(text)


def _of_all_ranks(failures: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if not (dist.is_available() and dist.is_initialized()):
        return failures
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, failures)
    return sorted(failure for one in gathered for failure in one)
