"""Nets that turn images into features for the distances of fidelity.py: InceptionV3, or a small stand-in.

FID, IS and KID are names of numbers from one net with one set of weights. Numbers from another net, or from other
weights, have other names: `Frechet distance (small-random-conv)`, never FID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from dakd.config import FidelityConfig
from dakd.models.encoders import import_beside_torchvision
from dakd.runtime.files import file_hash
from dakd.runtime.seeding import Stream, numpy_rng

# The last part of the standard file's name is the start of its sha256.
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_HASH = "6726825d"
SMALL = "small-random-conv"
_SMALL_WIDTHS = (16, 24, 32)
_SMALL_SEED = 0


@dataclass(frozen=True)
class Extractor:
    """features: (B, 1, H, W) uint8 on the device to features (B, d) and, from Inception, logits (B, 1008).

    widths: of each of them.  name: of the net.  suffix: of its numbers' keys, "" where they are FID, IS and KID.
    identity: a hash of the weights.  note: for the reader of the numbers.
    """

    name: str
    suffix: str
    identity: str
    widths: tuple[int, ...]
    features: Callable[[Tensor], tuple[Tensor, ...]]
    note: str = ""

    @property
    def is_standard(self) -> bool:
        return not self.suffix


def open_extractor(cfg: FidelityConfig, device: str | torch.device) -> Extractor | None:
    """The extractor of a configuration on a device; None where it names none.

    Raises RuntimeError where torch-fidelity is not installed or the weights cannot be downloaded, ValueError where the
    weights do not fit.
    """
    if cfg.extractor == "none":
        return None
    import_torch_fidelity()
    return _open_inception(cfg.weights, device) if cfg.extractor == "inception" else _open_small(device)


def import_torch_fidelity() -> ModuleType:
    """torch-fidelity, even where the compiled part of torchvision does not fit this torch."""
    return import_beside_torchvision("torch_fidelity", "FID and its relatives", "eval")


def to_rgb(sar: Tensor) -> Tensor:
    """(B, 1, H, W) uint8 greys as (B, 3, H, W)."""
    return sar.expand(-1, 3, -1, -1)


# --- InceptionV3 ------------------------------------------------------------------------------------------------------


def find_inception(weights: str | None) -> Path | None:
    """The file of InceptionV3's weights: the one that is named, or was downloaded; None where it is yet to be.

    ValueError where the file does not hold InceptionV3's tensors.
    """
    path = _downloaded() if weights is None else Path(weights)
    if weights is None and not path.exists():
        return None
    remedy = "set evaluate.fidelity.weights to it" if weights is not None else f"remove {path}"
    _refuse_other_files(path, f"expected torch-fidelity's {INCEPTION_FILE}; {remedy}")
    return path


def _downloaded() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def _open_inception(weights: str | None, device: str | torch.device) -> Extractor:
    """torch-fidelity's, which resizes to 299 x 299 itself: pool3 (2048) and the logits without their bias."""
    from torch_fidelity.utils import create_feature_extractor

    path = find_inception(weights) or _downloaded()
    try:
        net = create_feature_extractor(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            cuda=False,
            feature_extractor_weights_path=weights,
            verbose=False,
        )
    except OSError as error:  # urllib's errors are among them
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        raise RuntimeError(
            f"the weights of InceptionV3 cannot be downloaded ({error}); fetch {URL_INCEPTION_V3} where there is a "
            f"network and set evaluate.fidelity.weights to the file, or evaluate.fidelity.extractor to small or none"
        ) from None
    sha256 = file_hash(path)
    net = net.to(device)

    def features(sar: Tensor) -> tuple[Tensor, Tensor]:
        pooled, logits = net(to_rgb(sar))
        return pooled, logits

    if sha256.startswith(_INCEPTION_HASH):
        return Extractor("inception-v3-compat", "", sha256, (2048, 1008), features)
    note = (
        f"the weights in {path} (sha256 {sha256[:8]}) are not those of {INCEPTION_FILE}: the numbers "
        "do not compare with any that are called FID or KID."
    )
    name = f"InceptionV3, other weights {sha256[:8]}"
    return Extractor(name, "other_weights", sha256, (2048, 1008), features, note)


def _refuse_other_files(path: Path, remedy: str) -> None:
    """ValueError where a file does not hold InceptionV3's tensors; no code in the pickle is run."""
    if not path.is_file():
        raise ValueError(f"no weights of InceptionV3 at {path}; {remedy}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise any error
        first_line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as weights ({first_line}); {remedy}") from None
    shape = tuple(state["fc.weight"].shape) if isinstance(state, dict) and "fc.weight" in state else None
    if shape != (1008, 2048) or "Mixed_7c.branch_pool.conv.weight" not in state:
        raise ValueError(f"{path} holds weights of another net than InceptionV3 with 1008 logits; {remedy}")


# --- the small net ---------------------------------------------------------------------------------------------------


class SmallRandomConv(nn.Module):
    """Three levels of random 5x5 filters: mean and deviation of each filter's response, 144 features.

    (B, 1, H, W) uint8, at its own size, 4 pixels a side at least -> (B, 144) float32. A filter's response is rectified,
    and between the levels 2x2 pixels are averaged. Filters are normal, of variance 2 / fan-in, from the project's own
    generator with seed 0, so that they are the same on every host. Those of the first level sum to 0, or brightness
    alone would decide the distances.

    Random filters answer to contrast, grain and orientation at three scales. They know nothing of what an image shows,
    so the distances tell sets apart that differ in texture, and little else: for tests and for tables made on a CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        rng = numpy_rng(_SMALL_SEED, stream=Stream.RESAMPLE)
        channels = (1, *_SMALL_WIDTHS)
        for level, (inner, outer) in enumerate(pairwise(channels)):
            filters = rng.standard_normal((outer, inner, 5, 5)) * np.sqrt(2 / (25 * inner))
            if level == 0:
                filters -= filters.mean(axis=(2, 3), keepdims=True)
            self.register_buffer(f"filters{level}", torch.tensor(filters, dtype=torch.float32))

    def forward(self, sar: Tensor) -> Tensor:
        image, features = (sar.to(torch.float32) - 128) / 128, []
        for level in range(len(_SMALL_WIDTHS)):
            if level:
                image = nn.functional.avg_pool2d(image, 2)
            padded = nn.functional.pad(image, (2, 2, 2, 2), mode="replicate")
            image = nn.functional.conv2d(padded, getattr(self, f"filters{level}")).relu()
            features += [image.mean(dim=(2, 3)), image.std(dim=(2, 3), correction=0)]
        return torch.cat(features, dim=1)


def _open_small(device: str | torch.device) -> Extractor:
    net = SmallRandomConv().to(device)
    digest = hashlib.sha256(b"".join(buffer.cpu().numpy().tobytes() for buffer in net.buffers())).hexdigest()
    note = f"{SMALL} stands in for InceptionV3: random filters see only texture, and their numbers are not FID or KID."
    return Extractor(SMALL, "small", digest, (2 * sum(_SMALL_WIDTHS),), lambda sar: (net(sar),), note)
