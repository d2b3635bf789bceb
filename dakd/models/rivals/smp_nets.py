"""UNet, LinkNet, PSPNet, DeepLabV3+, SegFormer and UNet++ of segmentation_models_pytorch (smp), and smp's encoders.

Where smp's defaults are not the form that a net's authors describe, theirs is taken:

    PSPNet      all five stages of the encoder, dilated to output stride 8 (smp: the first three)
    DeepLabV3+  atrous rates 6, 12, 18 at output stride 16 (smp: those of output stride 8)
    SegFormer   768 decoder channels with MiT-B2 and larger (smp: 256 with all)

Their dropout has no position: it follows torch's generator, which the training seeds for each step and rank.
"""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dakd.models.encoders import import_smp
from dakd.models.pretrained import load_timm_features, load_without_classifier, read_public_checkpoint
from dakd.models.student import StudentNet

if TYPE_CHECKING:
    from dakd.config import StudentConfig

# Class of smp by the student's name.
SMP_CLASSES = {
    "unet": "Unet",
    "linknet": "Linknet",
    "pspnet": "PSPNet",
    "deeplabv3plus": "DeepLabV3Plus",
    "segformer": "Segformer",
    "unetplusplus": "UnetPlusPlus",
}
# Set by other settings, or without a meaning for logits.
_RESERVED = ("self", "kwargs", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params")
# Prefixes of a classifier's tensors in the public files of smp's encoders.
_CLASSIFIERS = ("fc.", "head.", "classifier.", "last_linear.", "head_dist.")


class SmpStudent(StudentNet):
    """A net of smp. name: one of SMP_CLASSES.  encoder: by smp's name.  options: keyword arguments of smp's class."""

    def __init__(self, name: str, encoder: str, num_classes: int, options: dict[str, Any] | None = None) -> None:
        smp = import_smp()
        make = getattr(smp, SMP_CLASSES[name])
        options = _defaults(name, encoder) | dict(options or {})
        _check_options(name, encoder, make, options)
        _check_encoder(smp, name, encoder)
        with _NumbersOnHost():
            try:
                net = make(encoder_name=encoder, encoder_weights=None, in_channels=3, classes=num_classes, **options)
            except Exception as error:  # smp refuses in many ways, by asserts and KeyErrors too
                raise ValueError(
                    f"{name} with {encoder} and {options} cannot be built: {error}; change encoder or encoder_options"
                ) from error
        super().__init__(num_classes, net.encoder.output_stride)
        self.net = net

    @classmethod
    def from_config(cls, cfg: StudentConfig, num_classes: int) -> SmpStudent:
        return cls(cfg.name, cfg.encoder, num_classes, cfg.encoder_options)

    @property
    def encoder(self) -> nn.Module:
        return self.net.encoder

    def encode(self, image: Tensor) -> list[Tensor]:
        return encoder_maps(self.encoder, image)

    def segment(self, image: Tensor) -> Tensor:
        return self.net(image)

    def load_pretrained(self, path: str | None) -> None:
        load_smp_encoder(self.encoder, path)


def build_smp_encoder(name: str, output_stride: int, user: str) -> nn.Module:
    """smp's encoder `name` with fresh weights, dilated to the output stride (8, 16, 32).  user: for errors."""
    smp = import_smp()
    _check_encoder(smp, user, name)
    with _NumbersOnHost():
        try:
            encoder = smp.encoders.get_encoder(name, in_channels=3, depth=5, weights=None, output_stride=output_stride)
        except Exception as error:
            raise ValueError(
                f"smp's encoder {name} has no form of output stride {output_stride}: {error}; take another encoder"
            ) from error
    return encoder


def load_smp_encoder(encoder: nn.Module, path: str | None) -> None:
    """Fills smp's encoder from a public checkpoint; None leaves it as it is."""
    if path is None:
        return
    state = read_public_checkpoint(path, encoder)
    # Encoders `tu-...` hold timm's feature extractor, all others the layers themselves.
    if isinstance(encoder, import_smp().encoders.TimmUniversalEncoder):
        load_timm_features(encoder.model, state, path)
    else:
        load_without_classifier(encoder, state, _CLASSIFIERS, path)


def encoder_maps(encoder: nn.Module, image: Tensor) -> list[Tensor]:
    """The maps of smp's encoder, without the image itself and the empty map that some have at stride 2."""
    return [feature for feature in encoder(image)[1:] if feature.shape[1]]


class _NumbersOnHost(TorchFunctionMode):
    """Lets nets that read numbers off a linspace (their drop-path rates) be built on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def _defaults(name: str, encoder: str) -> dict[str, Any]:
    if name == "pspnet":
        return {"encoder_depth": 5, "output_stride": 8}
    if name == "deeplabv3plus":
        return {"decoder_atrous_rates": (6, 12, 18)}
    if name == "segformer" and encoder in ("mit_b2", "mit_b3", "mit_b4", "mit_b5"):
        return {"decoder_segmentation_channels": 768}
    return {}


def _check_options(name: str, encoder: str, make: Any, options: dict[str, Any]) -> None:
    """ValueError for an option that smp's class does not name; smp would pass it on silently."""
    known = [key for key in inspect.signature(make.__init__).parameters if key not in _RESERVED]
    known += ["output_stride"] if name == "pspnet" else []
    unknown = [key for key in options if key not in known]
    if unknown and (not encoder.startswith("tu-") or set(unknown) & set(_RESERVED)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"encoder_options {', '.join(unknown)} are unknown to {name}; {hint}Known: {', '.join(known)}")


def _check_encoder(smp: Any, user: str, name: str) -> None:
    known = smp.encoders.get_encoder_names()
    if name not in known and not name.startswith("tu-"):
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise ValueError(
            f"encoder {name!r} is unknown to {user}, which takes those of segmentation_models_pytorch{hint}; set "
            "train_saross.student.encoder to one of them, or to null for the usual one"
        )
