"""SAM with a learnable adapter: the mask of the object in a box. SAM is transformers'; the user has its weights."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from dakd.models.encoders import import_torchvision
from dakd.shipped import extra_remedy

_PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
_BOXES_AT_ONCE = 16  # bounds the memory of masks at SAM's own size, 4 MiB each at 1024 pixels


class SamMasks(nn.Module):
    """Box -> mask. SAM is frozen; the adapter changes its image embeddings, and is all that is trained.

    sam_config: SAM's sizes as `read_sam_config` gives them.
    adapter_channels: inner width of the adapter.
    """

    def __init__(self, sam_config: dict, adapter_channels: int) -> None:
        super().__init__()
        transformers = import_transformers()
        self.sam = transformers.SamModel(transformers.SamConfig(**sam_config)).requires_grad_(False)
        # SAM ties one parameter to two names. As two parameters they can be saved and loaded by name.
        shared = self.sam.prompt_encoder.shared_embedding
        shared.positional_embedding = nn.Parameter(shared.positional_embedding.detach().clone(), requires_grad=False)
        self.image_size: int = self.sam.config.vision_config.image_size
        self.adapter = Adapter(self.sam.config.vision_config.output_channels, adapter_channels)

    def train(self, mode: bool = True) -> SamMasks:
        """SAM itself stays as it is in evaluation."""
        super().train(mode)
        self.sam.eval()
        return self

    def load_pretrained(self, folder: str | Path) -> None:
        """SAM's weights from a folder as transformers writes it; the adapter stays as it is."""
        _check_folder(folder)
        if not any(Path(folder).glob("*.safetensors")):
            raise FileNotFoundError(f"no weights of SAM in {folder}; expected model.safetensors next to config.json")
        try:
            given, report = import_transformers().SamModel.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
        except (OSError, SafetensorError) as error:
            raise ValueError(f"the weights in {folder} cannot be read ({error}); copy it whole again") from error
        problems = {*report["missing_keys"], *report["unexpected_keys"], *map(str, report["mismatched_keys"])}
        if problems:
            raise ValueError(
                f"the weights in {folder} do not fit SAM: {len(problems)} missing, unexpected or of another shape, "
                f"such as {', '.join(sorted(problems)[:3])}; copy the whole folder again"
            )
        self.sam.load_state_dict(given.state_dict())

    @torch.no_grad()
    def embed(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W), ImageNet-normalised -> (B, C, h, w), frozen SAM's embeddings, without the adapter."""
        height, width = image.shape[-2:]
        h, w = self._resized(height, width)
        # SAM wants the longer side at its own size, and normalised zeros (the mean grey) below and right of the image.
        image = F.interpolate(image, (h, w), mode="bilinear", align_corners=False)
        return self.sam.vision_encoder(F.pad(image, (0, self.image_size - w, 0, self.image_size - h)))[0]

    def forward(self, embedding: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """(n, H, W) mask logits of one image's boxes.

        embedding: (C, h, w), of `embed`.  boxes: (n, 4) x0 y0 x1 y1 in pixels.  size: (H, W) of the image.
        """
        adapted = self.adapter(embedding[None]).float()
        if not len(boxes):
            return adapted.new_zeros(0, *size) + 0 * adapted.sum()
        h, w = self._resized(*size)
        boxes = boxes.float() * boxes.new_tensor([w / size[1], h / size[0]] * 2)
        masks = []
        # Half precision rounds the positions of neighbouring pixels to one number.
        with torch.autocast(boxes.device.type, enabled=False):
            for some in boxes.split(_BOXES_AT_ONCE):
                # `multimask_output` off: a box is not ambiguous as a point is.
                small = self.sam(image_embeddings=adapted, input_boxes=some[None], multimask_output=False).pred_masks[0]
                whole = F.interpolate(small, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
                masks.append(F.interpolate(whole[..., :h, :w], size, mode="bilinear", align_corners=False)[:, 0])
        return torch.cat(masks)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        scale = self.image_size / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))


class Adapter(nn.Module):
    """x + a bottleneck with a 3x3 convolution in the middle. Its last layer starts at zero: training starts at SAM.

    x: (B, C, h, w) image embeddings.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1)
        self.expand = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(F.gelu(self.mix(F.gelu(self.reduce(x)))))


def read_sam_config(folder: str | Path) -> dict:
    """SAM's sizes from the folder's config.json: its three parts, only the settings of the architecture."""
    tree = _check_folder(folder)
    transformers = import_transformers()
    config = transformers.SamConfig(**{part: tree.get(part) for part in _PARTS})
    common = set(transformers.PreTrainedConfig().to_dict())
    parts = {part: getattr(config, part).to_dict() for part in _PARTS}
    return {part: {name: value for name, value in one.items() if name not in common} for part, one in parts.items()}


def import_transformers() -> ModuleType:
    """transformers, also with a torchvision that does not fit this torch; RuntimeError where it is missing."""
    try:
        if importlib.util.find_spec("torchvision") is not None:
            import_torchvision()
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"SAM needs the package {error.name}, which is not installed; {extra_remedy('rivals')}"
        ) from error


def _check_folder(folder: str | Path) -> dict:
    """The content of the folder's config.json; FileNotFoundError or ValueError where it is not a folder of SAM."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no SAM at {folder}: there is no {path}; set train_saross.student.pretrained to a folder with config.json "
            "and model.safetensors, such as a copy of the Hugging Face repository facebook/sam-vit-base (Apache-2.0)"
        )
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON; copy it again: {error}") from None
    if not isinstance(tree, dict) or tree.get("model_type") != "sam":
        found = tree.get("model_type") if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(f"{path} describes a model of type {found}; expected sam (SamModel of transformers)")
    return tree
