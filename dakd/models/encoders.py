"""Pyramid encoders by name, and the optional packages that some of them come from."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

import torch
from torch import Tensor, nn

from dakd.models.mamba_vision import VARIANTS, MambaVision
from dakd.models.resnet import RESNETS, build_resnet
from dakd.shipped import extra_remedy

STRIDES = (4, 8, 16, 32)
TIMM_PREFIX = "timm:"
# Torch drops an operator with its library object: these keep theirs.
_LIBRARIES: list[torch.library.Library] = []
ENCODERS = (*(f"mamba_vision_{variant.lower()}" for variant in VARIANTS), "mamba_vision", *RESNETS)


def build_encoder(name: str, options: dict) -> nn.Module:
    """A pyramid encoder with `channels` and `forward_features`, by name.

    name: one of ENCODERS, or "timm:<name>".  options: override a MambaVision variant's sizes, give a ResNet another
    `width` (channels of its first stage), or go to timm's factory.
    """
    if name.startswith(TIMM_PREFIX):
        return TimmEncoder(name.removeprefix(TIMM_PREFIX), options)
    if name not in ENCODERS:
        nearest = difflib.get_close_matches(name, ENCODERS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise ValueError(f"encoder {name!r} is unknown; {hint}Known: {', '.join(ENCODERS)}, timm:<name>")
    if name in RESNETS:
        return build_resnet(name, options)
    variant = name.removeprefix("mamba_vision").removeprefix("_").upper()
    return _mamba_vision(name, VARIANTS.get(variant, {}) | options)


class TimmEncoder(nn.Module):
    """Any timm feature extractor with maps at strides 4, 8, 16 and 32; layers beyond them are left out.

    options: keyword arguments of timm.create_model, except those that are set here.
    """

    reserved_options = ("features_only", "out_indices", "pretrained")

    def __init__(self, name: str, options: dict | None = None) -> None:
        super().__init__()
        options = dict(options or {})
        if reserved := [key for key in self.reserved_options if key in options]:
            raise ValueError(f"encoder_options of timm:{name} may not set {', '.join(reserved)}; "
                             "leave them out; give the file of pretrained weights in student.pretrained")
        timm = import_timm()
        if not timm.is_model(name):
            nearest = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise ValueError(f"timm has no model {name!r}" + (f"; near names: {', '.join(nearest)}" if nearest else ""))
        # The whole pyramid, built without memory for its weights, says which maps to request.
        with torch.device("meta"):
            strides = timm.create_model(name, features_only=True, **options).feature_info.reduction()
        if missing := [stride for stride in STRIDES if stride not in strides]:
            raise ValueError(f"timm model {name!r} has maps at strides {strides}; also expected {missing}; use another")
        indices = tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES)
        self.model = timm.create_model(name, features_only=True, out_indices=indices, **options)
        self.channels = tuple(self.model.feature_info.channels())
        self.channels_come_last = str(self.model.output_fmt.value) == "NHWC"

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W) -> four maps (B, C, h, w) at strides 4, 8, 16, 32."""
        features = self.model(image)
        if self.channels_come_last:
            return [feature.permute(0, 3, 1, 2) for feature in features]
        return features


def import_timm() -> ModuleType:
    """timm, also with a torchvision whose compiled part does not fit this torch; RuntimeError where it is missing."""
    return import_beside_torchvision("timm", "a timm encoder", "encoders")


def import_smp() -> ModuleType:
    """segmentation_models_pytorch, in the same way."""
    return import_beside_torchvision("segmentation_models_pytorch", "this student", "rivals")


def import_torchvision() -> ModuleType:
    """torchvision; on a CPU-only torch with the operators without which a CUDA build of torchvision fails.

    That build (the package index's) registers the shapes of `nms` without the operator itself, and then fails. With the
    operator declared its import succeeds; nothing here calls it.
    """
    return import_beside_torchvision("torchvision", "a timm encoder", "encoders")


def import_beside_torchvision(package: str, user: str, extra: str) -> ModuleType:
    """A package that imports torchvision. user, extra: its user and dakd's extra with it, for the error."""
    try:
        _import_torchvision()
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{user} needs the package {error.name}, which is not installed; {extra_remedy(extra)}"
        ) from error


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if torch.version.cuda is not None or "torchvision::nms does not exist" not in str(error):
            raise
    else:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)
    importlib.import_module("torchvision")


def _mamba_vision(name: str, options: dict) -> MambaVision:
    """MambaVision without classifier; an option that it does not know is an error that says which there are."""
    known = ("dim", "in_dim", "depths", "num_heads", "window_size", "mlp_ratio", "drop_path", "layer_scale")
    if unknown := [key for key in options if key not in known]:
        raise ValueError(f"encoder_options {', '.join(unknown)} are unknown to {name}; known: {', '.join(known)}")
    return MambaVision(num_classes=0, **options)
