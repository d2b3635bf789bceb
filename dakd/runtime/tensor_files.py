"""Tensors on disk: safetensors with JSON metadata and checksums, written whole or not at all, loaded strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dakd.runtime.files import file_hash, replacing
from dakd.runtime.sealed import Changed, parse_sealed, refuse_unlisted, remedy, seal

_METADATA_KEY = "dakd"
_DIGEST_KEY = "tensors_sha256"
_NUM_LISTED = 10
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes tensors and JSON-serialisable metadata to `path`: to a file next to it first, which is then renamed.

    A reader sees the old file or the new one, never a part. The folder is created where it is missing. The metadata
    hold the checksum of the tensors, and their own. ValueError for tensors with values that are not finite.
    """
    # Tied or sliced tensors share memory, which the format refuses: each is written as a copy of its own.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state_dict.items()}
    _refuse_non_finite(tensors, f"the weights for {path}", "nothing was written; train again at a lower rate")
    text = seal(json.dumps(metadata | {_DIGEST_KEY: tensors_hash(tensors)}))
    with replacing(path) as aside:
        save_file(tensors, aside, metadata={_METADATA_KEY: text})


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that `save_weights` wrote, without reading the tensors; {} for a file of another origin.

    ValueError where they are not as they were written.
    """
    metadata = _stored_metadata(path)
    metadata.pop(_DIGEST_KEY, None)
    return metadata


def stated_hash(path: str | Path) -> str | None:
    """The checksum that a file states of its tensors, which are not read; None for a file of another origin."""
    return _stored_metadata(path).get(_DIGEST_KEY)


def weights_hash(path: str | Path) -> str:
    """What the tensors of a weights file are known by: the checksum that it states of them, else that of the file.

    Other metadata, such as a student's temperature, leave it as it is.
    """
    return stated_hash(path) or file_hash(path)


def load_state(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors that `save_weights` wrote, by name.

    FileNotFoundError where there is no file; ValueError where its tensors or metadata are not as they were written,
    where its folder's manifest lists another file, and where a value is not finite.
    """
    expected = _stored_metadata(path).get(_DIGEST_KEY)
    if expected is None:
        raise ValueError(
            f"{path} holds no checksum of its tensors, so dakd did not write it; give weights that dakd wrote, or "
            "write these again with dakd.runtime.tensor_files.save_weights"
        )
    tensors = load_foreign_state(path)
    if (found := tensors_hash(tensors)) != expected:
        raise Changed(
            f"{path} has changed since dakd wrote it: its tensors have the sha256 {found[:12]}, expected "
            f"{str(expected)[:12]}; {remedy(path)}"
        )
    refuse_unlisted(Path(path))
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def load_foreign_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of any origin, by name, on the CPU; the errors of `load_state`."""
    with _readable(path):
        tensors = load_file(str(path))
    _refuse_non_finite(tensors, str(path), "train or copy the weights again")
    return tensors


def _stored_metadata(path: str | Path) -> dict[str, Any]:
    with _readable(path), safe_open(str(path), framework="pt") as file:
        text = (file.metadata() or {}).get(_METADATA_KEY)
    if text is None:
        return {}
    return parse_sealed(text.encode("utf-8", "surrogatepass"), path)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors with their names, dtypes and shapes; the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{json.dumps(name)} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _refuse_non_finite(tensors: Mapping[str, Tensor], source: str, what_to_do: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            count = tensor.numel() - int(tensor.float().isfinite().sum())
            raise ValueError(
                f"{source}: {count} of {tensor.numel()} values in {name} are not finite (NaN or infinity); "
                f"expected finite numbers; {what_to_do}"
            )


def load_strict(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Loads every tensor by name and shape, or changes nothing and raises ValueError with what does not fit.

    source: where the weights come from, for the message.
    """
    refuse_misfit(model, state_dict, source)
    # Not the model's own method: some foreign nets take no `strict`, or rename the tensors that they are given.
    nn.Module.load_state_dict(model, state_dict, strict=True)


def refuse_misfit(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """ValueError with what does not fit between a model, which may lie on the meta device, and weights."""
    wanted = model.state_dict()
    problems = {
        "missing": [name for name in wanted if name not in state_dict],
        "unexpected": [name for name in state_dict if name not in wanted],
        "of another shape": [
            f"{name}: found {tuple(state_dict[name].shape)}, expected {tuple(wanted[name].shape)}"
            for name in wanted
            if name in state_dict and state_dict[name].shape != wanted[name].shape
        ],
        "of another dtype": [
            f"{name}: found {state_dict[name].dtype}, expected {wanted[name].dtype}"
            for name in wanted
            if name in state_dict and not _can_stand_for(state_dict[name].dtype, wanted[name].dtype)
        ],
    }
    if any(problems.values()):
        lists = "\n".join(_listed(problem, names) for problem, names in problems.items() if names)
        raise ValueError(
            f"weights of {source} do not fit {type(model).__name__}; "
            f"build the model with the settings that the weights were made with\n{lists}"
        )


def _can_stand_for(found: torch.dtype, expected: torch.dtype) -> bool:
    """Whether weights of one dtype may be loaded as another: floating numbers of any usual precision, else the same."""
    return found == expected or (found in _FLOATS and expected in _FLOATS)


def _listed(problem: str, names: list[str]) -> str:
    lines = [f"  {len(names)} {problem}:", *(f"    {name}" for name in names[:_NUM_LISTED])]
    if len(names) > _NUM_LISTED:
        lines.append(f"    and {len(names) - _NUM_LISTED} more")
    return "\n".join(lines)


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Turns the errors of a missing or damaged safetensors file into one that names the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; give the path of a .safetensors file")
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file; write or copy it again: {error}") from error
