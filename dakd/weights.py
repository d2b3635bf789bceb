"""Weights files of trained students and teachers: each carries the settings that rebuild its net."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dakd.config import Config, ScheduleConfig, StudentConfig, UNetConfig
from dakd.data.sample import ClassTable
from dakd.diffusion.label_bits import num_bits
from dakd.diffusion.label_reading import READINGS
from dakd.models.jointnet import SARJointNet
from dakd.models.registry import build_student
from dakd.models.rivals.ddpm import DDPM
from dakd.models.student import StudentNet
from dakd.runtime.tensor_files import load_state, load_strict, read_metadata, refuse_misfit, save_weights

# Which file of a student's folder holds which weights.
STUDENT_FILES = {"ema": "student.safetensors", "raw": "student_raw.safetensors"}
_LARGEST_SETTING = 8192  # of any whole number in a net's settings: a damaged one would build for hours


def save_student(
    path: str | Path, model: StudentNet, student_cfg: StudentConfig, classes: ClassTable, extra: dict[str, Any]
) -> None:
    """Writes a student with its settings and class table; extra: further JSON-serialisable facts."""
    save_weights(path, model.state_dict(), student_metadata(model, student_cfg, classes, extra))


def student_metadata(
    model: StudentNet, student_cfg: StudentConfig, classes: ClassTable, extra: dict[str, Any]
) -> dict[str, Any]:
    """The metadata of a student's file, from which `load_student` rebuilds it."""
    settings = model.self_contained(student_cfg).model_dump(mode="json")
    return {**extra, "kind": "student", "student": settings, "classes": classes.to_dict()}


def load_student(path: str | Path, device: str | torch.device = "cpu") -> tuple[StudentNet, dict[str, Any]]:
    """The student of a file that `save_student` wrote, in eval mode on `device`, and the file's metadata.

    Needs only the file: no config and no pretrained checkpoint.
    """
    metadata = read_student_metadata(path)

    def build() -> StudentNet:
        classes = ClassTable.from_dict(metadata["classes"])
        return build_student(StudentConfig.model_validate(metadata["student"]), classes.num_classes)

    return _rebuild(build, metadata.get("student"), path).to(device).eval(), metadata


def load_student_of(
    path: str | Path, classes: ClassTable, device: str | torch.device, owner: str, remedy: str
) -> tuple[StudentNet, dict[str, Any]]:
    """As `load_student`; ValueError, with the remedy, where the student knows other classes than these.

    owner: of the classes, for the message.
    """
    net, metadata = load_student(path, device)
    known = metadata["classes"]["names"]
    if known != list(classes.names):
        raise ValueError(
            f"the student {path} knows the classes {', '.join(known)}, the {owner} {', '.join(classes.names)}; {remedy}"
        )
    return net, metadata


def temperature_of(metadata: Mapping[str, Any], source: str | Path) -> float:
    """What a student's logits are divided by before the softmax; 1 where its training calibrated none.

    source: of the metadata, for the message.  ValueError for anything but a positive, finite number.
    """
    found = metadata.get("temperature", 1.0)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
        raise ValueError(f"the temperature of {source} is {found!r:.80}; expected a positive number: write it again")
    return float(found)


def real_student(config: Config, asked_by: str) -> Path:
    """The weights file of the run's own student of real images; ValueError, naming the setting, where there is none."""
    path = config.real_student
    if not path.is_file():
        raise ValueError(
            f"{asked_by} needs the student of the set real, and there is no {path} yet; run dakd train_saross "
            "--training-set real first"
        )
    return path


def read_student_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a student's file, without its tensors; ValueError for a file of anything else."""
    metadata = read_metadata(path)
    if metadata.get("kind") != "student":
        raise ValueError(f"{path} holds {metadata.get('kind', 'weights of unknown kind')}, not a student; "
                         "give a student.safetensors of a train_saross run")
    return metadata


def refuse_other_student(path: str | Path, student_cfg: StudentConfig, classes: ClassTable) -> None:
    """ValueError where a training of this net and these classes cannot start from a file's weights.

    Only the metadata are read. `pretrained` may differ: the weights replace all that it gave.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"train_saross.init_from is {path}, which is no file; expected a student.safetensors: train that student "
            "first, or set init_from to null"
        )
    metadata = read_student_metadata(path)
    found, wanted = StudentConfig.model_validate(metadata["student"]), student_cfg
    pairs = {name: (getattr(found, name), getattr(wanted, name)) for name in StudentConfig.model_fields}
    pairs["classes"] = (ClassTable.from_dict(metadata["classes"]).names, classes.names)
    del pairs["pretrained"]
    if differing := [f"{name}: {its} there, {ours} now" for name, (its, ours) in pairs.items() if its != ours]:
        lines = "\n".join(f"  {line}" for line in differing)
        raise ValueError(
            f"train_saross.init_from: {path} holds another student:\n{lines}\n"
            "expected the same net and classes; set train_saross.student to its settings, or give weights of this net"
        )


def load_teacher(path: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """The SAR-JointNet of a file that stage 2 or 3 wrote, or a DDPM, in eval mode on `device`, and the metadata.

    The metadata hold the settings of sampling: b, sigma_data, the schedule, the class table and, of SAR-JointNet,
    label_loss.
    """
    metadata = read_metadata(path)
    if metadata.get("kind") not in ("jointnet", "ddpm"):
        raise ValueError(
            f"{path} holds {metadata.get('kind', 'weights of unknown kind')}, not a teacher of pairs; "
            "give the weights of stage 2 or 3, or of ddpm, of a train_jointnet run"
        )

    def build() -> nn.Module:
        # Sampling's settings are checked here too, so that it need not.
        ScheduleConfig.model_validate(metadata["schedule"])
        num_classes = ClassTable.from_dict(metadata["classes"]).num_classes
        if metadata.get("label_loss", "ce") not in READINGS:
            raise ValueError(f"label_loss is {metadata['label_loss']}; expected one of {', '.join(READINGS)}")
        if not 0 < (1.0 if metadata.get("sigma_data") is None else metadata["sigma_data"]) <= 8:
            raise ValueError(f"sigma_data is {metadata['sigma_data']}; expected a number above 0 and at most 8")
        if not 0 < metadata["b"] <= 4 or metadata["num_classes"] != num_classes:
            raise ValueError(
                f"b is {metadata['b']} and num_classes {metadata['num_classes']} of {num_classes} names; expected "
                "0 < b <= 4 and as many names"
            )
        if metadata["kind"] == "ddpm":
            return DDPM.from_config(UNetConfig.model_validate(metadata["unet"]), num_bits(num_classes))
        return SARJointNet.from_config(UNetConfig.model_validate(metadata["unet"]), num_classes)

    return _rebuild(build, metadata.get("unet"), path).to(device).eval(), metadata


def _rebuild(build: Callable[[], nn.Module], settings: Any, path: str | Path) -> nn.Module:
    """The model of a file's settings with the file's weights; ValueError naming the file where they do not fit.

    It is first built on the meta device: settings that do not belong to the weights then cost no memory.
    """
    state = load_state(path)
    try:
        _refuse_large(settings)
        with torch.device("meta"):
            skeleton = build()
    # Settings of a damaged file may be anything, and so may the errors of a net that is built from them.
    except Exception as error:
        raise ValueError(f"the settings in {path} make no net; write or copy it again: {error!r:.500}") from error
    refuse_misfit(skeleton, state, str(path))
    model = build()
    load_strict(model, state, str(path))
    return model


def _refuse_large(settings: Any) -> None:
    if isinstance(settings, dict | list):
        for value in settings.values() if isinstance(settings, dict) else settings:
            _refuse_large(value)
    elif isinstance(settings, int) and settings > _LARGEST_SETTING:
        raise ValueError(f"one is {settings}; expected at most {_LARGEST_SETTING}")
