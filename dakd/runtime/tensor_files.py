"""Tensors on disk: safetensors with JSON metadata, written whole or not at all, and loaded into a net strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dakd.runtime.files import replacing

_METADATA_KEY = "dakd"
_NUM_LISTED = 10


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes tensors and JSON-serialisable metadata to `path`: to a file next to it first, which is then renamed.

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
        raise ValueError(f"the metadata of {path} are a {type(metadata).__name__}; expected settings by name")
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
    }
    if any(problems.values()):
        lists = "\n".join(_listed(problem, names) for problem, names in problems.items() if names)
        raise ValueError(
            f"weights of {source} do not fit {type(model).__name__}; "
            f"build the model with the settings that the weights were made with\n{lists}"
        )


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
