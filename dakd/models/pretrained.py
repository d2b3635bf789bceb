"""Public ImageNet checkpoints for the students' encoders: read safely, renamed where needed, loaded strictly."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dakd.models.encoders import TimmEncoder
from dakd.models.mamba_vision import MambaVision
from dakd.models.resnet import BasicResNet
from dakd.runtime.tensor_files import load_foreign_state, load_strict

# File and Hugging Face repository of each MambaVision variant's ImageNet-1K weights.
PUBLIC_CHECKPOINTS = {
    "mambavision_tiny_1k.pth.tar": "nvidia/MambaVision-T-1K",
    "mambavision_tiny2_1k.pth.tar": "nvidia/MambaVision-T2-1K",
    "mambavision_small_1k.pth.tar": "nvidia/MambaVision-S-1K",
    "mambavision_base_1k.pth.tar": "nvidia/MambaVision-B-1K",
    "mambavision_large_1k.pth.tar": "nvidia/MambaVision-L-1K",
}


def load_public_checkpoint(encoder: MambaVision | BasicResNet | TimmEncoder, path: str | Path) -> None:
    """Loads a public checkpoint into an encoder, by name and strictly, except the classifier.

    encoder: MambaVision (a .pth.tar of nvidia/MambaVision-*), a ResNet or TimmEncoder (a .pth or .safetensors).
    The classifier's weights are left out where the encoder has no classifier.
    FileNotFoundError says where MambaVision's file can be downloaded; ValueError lists what does not fit.
    """
    state = read_public_checkpoint(path, encoder)
    if isinstance(encoder, TimmEncoder):
        load_timm_features(encoder.model, state, path)
    else:
        load_without_classifier(encoder, state, encoder.classifier_prefixes, path)


def read_public_checkpoint(path: str | Path, encoder: nn.Module) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their public names.  encoder: named in the error where the file is missing."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"pretrained checkpoint {path} is a folder; give the file in it with the weights of the encoder, "
            f"{type(encoder).__name__}"
        )
    if not path.is_file():
        raise FileNotFoundError(_where_to_get(path) if isinstance(encoder, MambaVision) else _absent(path, encoder))
    return load_foreign_state(path) if path.suffix == ".safetensors" else _load_pickled_state(path)


def load_without_classifier(
    encoder: nn.Module, state: Mapping[str, Tensor], classifier_prefixes: tuple[str, ...], path: str | Path
) -> None:
    """Loads all tensors but those of a classifier that the encoder does not have.  path: for the error."""
    own = encoder.state_dict()
    kept = {name: tensor for name, tensor in state.items() if name in own or not name.startswith(classifier_prefixes)}
    load_strict(encoder, kept, str(path))


def load_timm_features(features: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads a timm classifier's tensors into its feature extractor, which renames `stages.0` to `stages_0`.

    Tensors of layers that the extractor does not have (the classifier) are left out.
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
    load_strict(features, renamed, str(path))


def _load_pickled_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a torch file: at the top, or under "state_dict" or "model"; DDP's prefix "module." is cut."""
    # Training scripts store their command line next to the weights: a Namespace is plain data, and allowed.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} is not a whole file of plain tensors; copy it again: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{path} holds no state dict; expected tensors by name, at the top or under 'state_dict'")
    if content and all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return dict(content)


def _absent(path: Path, encoder: nn.Module) -> str:
    return (
        f"pretrained checkpoint {path} does not exist. Set train_saross.student.pretrained to a file with the weights "
        f"of the encoder, {type(encoder).__name__}, by their public names (.pth or .safetensors), or to null to train "
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
