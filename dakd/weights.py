"""Weights of models on disk: safetensors with JSON metadata, written whole or not at all, loaded strictly.

A student's file carries what rebuilds it. Public encoder checkpoints come in through `load_pretrained_encoder`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dakd.config import ScheduleConfig, StudentConfig, UNetConfig
from dakd.data.sample import ClassTable
from dakd.diffusion.bits import num_bits
from dakd.diffusion.labels import READINGS
from dakd.models.encoders import TimmEncoder
from dakd.models.jointnet import SARJointNet
from dakd.models.mamba_vision import MambaVision
from dakd.models.rivals.ddpm import DDPM
from dakd.models.zoo import build_student
from dakd.runtime.files import replacing

# File and Hugging Face repository of each MambaVision variant's ImageNet-1K weights.
PUBLIC_CHECKPOINTS = {
    "mambavision_tiny_1k.pth.tar": "nvidia/MambaVision-T-1K",
    "mambavision_tiny2_1k.pth.tar": "nvidia/MambaVision-T2-1K",
    "mambavision_small_1k.pth.tar": "nvidia/MambaVision-S-1K",
    "mambavision_base_1k.pth.tar": "nvidia/MambaVision-B-1K",
    "mambavision_large_1k.pth.tar": "nvidia/MambaVision-L-1K",
}
# Which file of a student's folder holds which weights.
STUDENT_FILES = {"ema": "student.safetensors", "raw": "student_raw.safetensors"}
_METADATA_KEY = "dakd"
_NUM_LISTED = 10
_LARGEST_SETTING = 8192  # of any whole number in a net's settings: a damaged one would build for hours


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes tensors and JSON-serialisable metadata to `path`, beside it first and then renamed.

    A reader sees the old file or the new one, never a part. The folder is created where it is missing.
    """
    # Tied or sliced tensors share memory, which the format refuses: each is written as a copy of its own.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state_dict.items()}
    with replacing(path) as aside:
        save_file(tensors, aside, metadata={_METADATA_KEY: json.dumps(metadata)})


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that `save_weights` wrote, without reading the tensors; {} for a file of another origin."""
    with _readable(path), safe_open(str(path), framework="pt") as file:
        text = (file.metadata() or {}).get(_METADATA_KEY, "{}")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the metadata of {path} are not JSON; write or copy it again: {error}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"the metadata of {path} are a {type(metadata).__name__}; wanted settings by name")
    return metadata


def load_state(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file by name; FileNotFoundError or ValueError where there is none to read."""
    with _readable(path):
        return load_file(str(path), device=str(device))


def load_strict(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Loads every tensor by name and shape, or changes nothing and raises ValueError with what does not fit.

    source: where the weights come from, for the message.
    """
    refuse_misfit(model, state_dict, source)
    # Not the model's own method: some of foreign nets take no `strict`, or rename what they are given.
    nn.Module.load_state_dict(model, state_dict, strict=True)


def refuse_misfit(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """ValueError with what does not fit between a model, which may lie on the meta device, and weights."""
    wanted = model.state_dict()
    problems = {
        "missing": [name for name in wanted if name not in state_dict],
        "unexpected": [name for name in state_dict if name not in wanted],
        "of another shape": [
            f"{name}: found {tuple(state_dict[name].shape)}, wanted {tuple(wanted[name].shape)}"
            for name in wanted
            if name in state_dict and state_dict[name].shape != wanted[name].shape
        ],
    }
    if any(problems.values()):
        lists = "\n".join(_listed(what, names) for what, names in problems.items() if names)
        raise ValueError(
            f"weights of {source} do not fit {type(model).__name__}; "
            f"build the model with the settings that the weights were made with\n{lists}"
        )


def save_student(
    path: str | Path, model: nn.Module, student_cfg: StudentConfig, classes: ClassTable, extra: dict[str, Any]
) -> None:
    """Writes a student with its settings and class table; extra: further JSON-serialisable facts."""
    save_weights(path, model.state_dict(), student_metadata(model, student_cfg, classes, extra))


def student_metadata(
    model: nn.Module, student_cfg: StudentConfig, classes: ClassTable, extra: dict[str, Any]
) -> dict[str, Any]:
    """The metadata of a student's file, from which `load_student` rebuilds it."""
    if hasattr(model, "self_contained"):
        student_cfg = model.self_contained(student_cfg)
    settings = student_cfg.model_dump(mode="json")
    return {**extra, "kind": "student", "student": settings, "classes": classes.to_dict()}


def load_student(path: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """The student of a file that `save_student` wrote, in eval mode on `device`, and the file's metadata.

    Needs nothing but the file: no config and no pretrained checkpoint.
    """
    metadata = read_metadata(path)
    if metadata.get("kind") != "student":
        raise ValueError(f"{path} holds {metadata.get('kind', 'weights of unknown kind')}, not a student; "
                         "give a student.safetensors of a train_saross run")

    def build() -> nn.Module:
        classes = ClassTable.from_dict(metadata["classes"])
        return build_student(StudentConfig.model_validate(metadata["student"]), classes.num_classes)

    return _rebuild(build, metadata.get("student"), path).to(device).eval(), metadata


def load_teacher(path: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """The SAR-JointNet of a file that a stage 2 or 3 wrote, or a DDPM, in eval mode on `device`, and the metadata.

    The metadata hold what sampling needs: b, the schedule, the class table and, where they are not the defaults,
    label_loss and sigma_data.
    """
    metadata = read_metadata(path)
    if metadata.get("kind") not in ("jointnet", "ddpm"):
        raise ValueError(
            f"{path} holds {metadata.get('kind', 'weights of unknown kind')}, not a teacher of pairs; "
            "give the weights of stage 2 or 3, or of ddpm, of a train_jointnet run"
        )

    def build() -> nn.Module:
        # What sampling needs is looked at here: whoever samples finds it sound.
        ScheduleConfig.model_validate(metadata["schedule"])
        num_classes = ClassTable.from_dict(metadata["classes"]).num_classes
        if metadata.get("label_loss", "ce") not in READINGS:
            raise ValueError(f"label_loss is {metadata['label_loss']}; wanted one of {', '.join(READINGS)}")
        if not 0 < (1.0 if metadata.get("sigma_data") is None else metadata["sigma_data"]) <= 8:
            raise ValueError(f"sigma_data is {metadata['sigma_data']}; wanted a number above 0 and at most 8")
        if not 0 < metadata["b"] <= 4 or metadata["num_classes"] != num_classes:
            raise ValueError(f"b is {metadata['b']} and num_classes {metadata['num_classes']} of {num_classes} names")
        if metadata["kind"] == "ddpm":
            return DDPM.from_config(UNetConfig.model_validate(metadata["unet"]), num_bits(num_classes))
        return SARJointNet.from_config(UNetConfig.model_validate(metadata["unet"]), num_classes)

    return _rebuild(build, metadata.get("unet"), path).to(device).eval(), metadata


def _rebuild(build: Callable[[], nn.Module], settings: Any, path: str | Path) -> nn.Module:
    """The model of a file's settings with the file's weights; ValueError naming the file where they do not fit.

    It is built without memory first: settings that do not belong to the weights cost nothing.
    """
    state = load_state(path)
    try:
        _refuse_large(settings)
        with torch.device("meta"):
            skeleton = build()
    # Settings of a damaged file may be anything; so may be what a net makes of them.
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
        raise ValueError(f"one is {settings}; wanted at most {_LARGEST_SETTING}")


def load_pretrained_encoder(model: nn.Module, student_cfg: StudentConfig) -> None:
    """Fills a new student's encoder from the file `student_cfg.pretrained`; does nothing where that is None.

    SAM-OIL's comes from a folder, and cannot be done without.
    """
    if hasattr(model, "load_pretrained"):
        model.load_pretrained(student_cfg.pretrained)
    elif student_cfg.pretrained is not None:
        load_public_checkpoint(model.encoder, student_cfg.pretrained)


def load_public_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Loads a public ImageNet checkpoint into an encoder, by name and strictly but for the classifier.

    model: MambaVision (a .pth.tar of nvidia/MambaVision-*), a ResNet, TimmEncoder or an encoder of
    segmentation_models_pytorch (a .pth or .safetensors).
    The classifier's weights are left out where the model has no classifier.
    FileNotFoundError says where MambaVision's file is to be had; ValueError what does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(_where_to_get(path) if isinstance(model, MambaVision) else _not_there(model, path))
    state = load_state(path) if path.suffix == ".safetensors" else _load_pickled_state(path)
    # Of segmentation_models_pytorch, whose encoders `tu-...` hold timm's in the same way.
    if isinstance(model, TimmEncoder) or type(model).__name__ == "TimmUniversalEncoder":
        load_strict(model.model, _as_timm_features(model.model, state), str(path))
        return
    wanted = model.state_dict()
    prefixes = getattr(model, "classifier_prefixes", ())
    load_strict(model, {k: v for k, v in state.items() if k in wanted or not k.startswith(prefixes)}, str(path))


def _load_pickled_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a torch file: as it is, or under "state_dict" or "model"; "module." of DDP is cut off."""
    # Training scripts store their command line beside the weights: a Namespace is plain data, and allowed.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} is not a whole file of plain tensors; copy it again: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{path} holds no state dict; wanted tensors by name, at the top or under 'state_dict'")
    if content and all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return dict(content)


def _as_timm_features(features: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A timm classifier's state dict under the names of its feature extractor, which joins `stages.0` to `stages_0`.

    Weights of layers that the extractor leaves out (the classifier) are left out.
    """
    children = dict(features.named_children())
    renamed = {}
    for name, tensor in state.items():
        head, _, rest = name.partition(".")
        second, _, tail = rest.partition(".")
        if head in children:
            renamed[name] = tensor
        elif f"{head}_{second}" in children:
            renamed[f"{head}_{second}.{tail}"] = tensor
    return renamed


def _not_there(model: nn.Module, path: Path) -> str:
    return (
        f"pretrained checkpoint {path} does not exist. Set train_saross.student.pretrained to a file with the weights "
        f"of the encoder, {type(model).__name__}, by their public names (.pth or .safetensors), or to null to train "
        "from scratch; nothing is downloaded."
    )


def _where_to_get(path: Path) -> str:
    known = {path.name: PUBLIC_CHECKPOINTS[path.name]} if path.name in PUBLIC_CHECKPOINTS else PUBLIC_CHECKPOINTS
    files = "; ".join(f"{file} in the Hugging Face repository {repository}" for file, repository in known.items())
    return (
        f"pretrained checkpoint {path} does not exist. MambaVision's public weights are {files}; "
        "their licence is CC BY-NC-SA 4.0: non-commercial use only. "
        "Download the file and set train_saross.student.pretrained to its path, or to null to train from scratch."
    )


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Turns what a missing or damaged safetensors file raises into an error that names the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; give the path of a .safetensors file")
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file; write or copy it again: {error}") from error


def _listed(what: str, names: list[str]) -> str:
    lines = [f"  {len(names)} {what}:", *(f"    {name}" for name in names[:_NUM_LISTED])]
    if len(names) > _NUM_LISTED:
        lines.append(f"    and {len(names) - _NUM_LISTED} more")
    return "\n".join(lines)
