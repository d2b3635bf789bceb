"""The step `pseudo_label`: the run's student of real images labels the run's images without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dakd.config import Config, DataConfig, PseudoLabelConfig, StudentLossConfig
from dakd.data.index import load_index
from dakd.data.prepared import open_shards, open_unlabelled
from dakd.data.readers.base import UNLABELLED
from dakd.data.sample import ClassTable
from dakd.names import written_path
from dakd.pseudo_label.write_set import label_images, provenance, refuse_other_set
from dakd.runtime.distributed import device, device_of
from dakd.runtime.tensor_files import weights_hash
from dakd.weights import read_student_metadata


def pseudo_label(config: Config) -> Path:
    """Write RUN/pseudo_label, the pairs of RUN/train_saross/real on RUN/prepare/unlabelled, or reuse it; the folder.

    Damaged images stop it or are left out, as `data.on_bad_record` has it. Raises ValueError where the student or the
    images are not there, and where the folder holds another set.
    """
    folder, student = set_folder(config), config.real_student
    if not student.is_file():
        raise ValueError(
            f"no student at {student}, which labels the images; train it first: dakd train_saross --training-set real"
        )
    images = open_unlabelled(config)
    softened_by, on_bad_record = config.soft_label_temperature, config.data.on_bad_record
    label_images(folder, student, images, config.pseudo_label, softened_by, device(), on_bad_record)
    return folder


def label_to_folder(
    student: str | Path,
    images: str | Path,
    out: str | Path,
    temperature: float | None = None,
    device_name: str | None = None,
    **settings: Any,
) -> Path:
    """Write the pairs of any student on any set of shards to a folder, or reuse them; the folder.

    images: a folder or URL of a set; its labels are not used, and may be of other classes.
    temperature: that logprob8 codes are written for; None takes that of a student's loss by default.
    settings: of the section `pseudo_label`.
    Raises ValueError where the student or the images are not there, and where the folder holds anything else.
    """
    cfg, student, folder = PseudoLabelConfig(**settings), Path(student).expanduser(), written_path(out)
    if not student.is_file():
        raise ValueError(f"no weights file at {student}; give a student.safetensors")
    classes = ClassTable.from_dict(read_student_metadata(student)["classes"])
    shards = open_shards(str(images), DataConfig(), classes, images_only=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    softened_by = StudentLossConfig().temperature if temperature is None else temperature
    label_images(folder, student, shards, cfg, softened_by, device_of(device_name))
    return folder


def set_folder(config: Config) -> Path:
    return config.run_path / "pseudo_label"


def refuse_settings_of_another_set(config: Config) -> None:
    """ValueError where the run's set was made with other settings, by another student or of other images than now.

    Of a student and of images that are not there, those of the set are taken.
    """
    folder = set_folder(config)
    if not (folder / "index.json").is_file():
        return
    found = load_index(folder / "index.json").provenance
    student, images = config.real_student, config.run_path / "prepare" / UNLABELLED / "index.json"
    wanted = provenance(
        weights_hash(student) if student.is_file() else str(found.get("student")),
        load_index(images).fingerprint if images.is_file() else str(found.get("images")),
        config.pseudo_label,
        config.soft_label_temperature,
    )
    refuse_other_set(folder, found, wanted)
