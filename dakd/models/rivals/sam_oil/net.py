"""SAM-OIL as a student: boxes, masks, ordered fusion; it has a loss of its own, on the objects of hard labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dakd.models.rivals.sam_oil.detector import TorchvisionDetector, build_detector
from dakd.models.rivals.sam_oil.masks import SamMasks, read_sam_config
from dakd.models.rivals.sam_oil.objects import objects_of
from dakd.models.student import StudentNet

if TYPE_CHECKING:
    from dakd.config import StudentConfig

_LARGEST_CERTAINTY = 1 - 1e-6  # keeps the logarithms of the fusion finite
_ADAPTER_CHANNELS = 64  # inner width of the adapter on SAM's embeddings
_MIN_PIXELS, _MAX_OBJECTS = 4, 200  # of the labelled objects of an image that are learnt from
_MAX_MASKS = 16  # objects of an image that the adapter learns from in a step


class SamOil(StudentNet):
    """A detector's boxes -> SAM's masks -> ordered fusion; class 0 of the table is the sea.

    sam_config: SAM's sizes, as its config.json has them; its weights come in by `load_pretrained`.
    detector, detector_options: a detector's name, and keyword arguments of it (`build_detector`).
    min_score: of a detection that is kept.  order: class ids, the first of which wins a pixel that several claim; None:
    the higher score wins.
    """

    has_own_loss = True

    def __init__(
        self,
        num_classes: int,
        sam_config: dict[str, Any],
        detector: str = "fasterrcnn_resnet50_fpn",
        detector_options: dict[str, Any] | None = None,
        *,
        min_score: float = 0.25,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(num_classes, multiple=1)
        _check_order(order, num_classes)
        self.sam_config = sam_config
        self.min_score = min_score
        self.order = order
        self.detector = build_detector(detector, num_classes, dict(detector_options or {}))
        self.masks = SamMasks(sam_config, _ADAPTER_CHANNELS)

    @classmethod
    def from_config(cls, cfg: StudentConfig, num_classes: int) -> SamOil:
        """The net of a section `train_saross.student`: `encoder` names the detector, `pretrained` is SAM's folder.

        Its config.json is read where `sam_oil.sam_config` does not hold SAM's sizes.
        """
        _check_order(cfg.sam_oil.order, num_classes)  # before a missing folder is reported
        own = cfg.sam_oil
        sam_config = own.sam_config or read_sam_config(_sam_folder(cfg.pretrained))
        return cls(num_classes, sam_config, cfg.encoder, cfg.encoder_options, min_score=own.min_score, order=own.order)

    def load_pretrained(self, folder: str | None) -> None:
        """SAM's weights; ValueError where no folder is given: an untrained SAM makes no masks."""
        self.masks.load_pretrained(_sam_folder(folder))

    def self_contained(self, cfg: StudentConfig) -> StudentConfig:
        """The settings with SAM's sizes and without its folder, which the weights file then does not need."""
        settings = cfg.sam_oil.model_copy(update={"sam_config": self.sam_config})
        return cfg.model_copy(update={"sam_oil": settings, "pretrained": None})

    def encode(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W) -> frozen SAM's embeddings, the only map."""
        return [self.masks.embed(image)]

    def segment(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) -> (B, K, H, W) log-probabilities of the fused map, in eval mode.

        On the meta device, where nothing can be found, only the detector's and SAM's encoders run.
        """
        if image.is_meta:
            return self._run_countable_part(image)
        if self.training:
            raise RuntimeError("SamOil finds objects in eval mode; call eval() first, or loss_of to train")
        embeddings, size = self.masks.embed(image), (image.shape[-2], image.shape[-1])
        return torch.stack([self._fused(*one, size) for one in zip(embeddings, self.detector(image))])

    def _fused(self, embedding: Tensor, found: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        is_sure = found["scores"] >= self.min_score
        boxes, labels, scores = (found[name][is_sure] for name in ("boxes", "labels", "scores"))
        mask_logits = self.masks(embedding, boxes, size)
        return fuse_masks(mask_logits, labels, scores, self.num_classes, self.order)

    def loss_of(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """(B,) each: `detector`, `mask` and their sum `loss`, 0 for a sample without a labelled pixel.

        image: (B, 3, H, W).  label: (B, H, W) class ids; others (the ignored one) belong to no object.
        Objects are the connected components of each class but the sea. The mask loss is BCE + Dice of the mask that
        SAM makes of an object's true box, a mean over at most 16 objects, drawn where there are more.
        """
        objects = [objects_of(one, self.num_classes, _MIN_PIXELS, _MAX_OBJECTS) for one in label.cpu().numpy()]
        boxes = [torch.as_tensor(one.boxes, device=image.device) for one in objects]
        labels = [torch.as_tensor(one.classes, device=image.device) for one in objects]
        targets = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels)]
        detector = self.detector.training_loss(image, targets)
        places = [torch.as_tensor(one.places, device=image.device) for one in objects]
        mask = torch.stack([self._mask_loss(*one) for one in zip(self.masks.embed(image), boxes, places)])
        is_labelled = (label < self.num_classes).flatten(1).any(1)
        detector, mask = (torch.where(is_labelled, losses, 0 * losses) for losses in (detector, mask))
        return {"loss": detector + mask, "detector": detector, "mask": mask}

    def _mask_loss(self, embedding: Tensor, boxes: Tensor, places: Tensor) -> Tensor:
        chosen = torch.randperm(len(boxes), device=boxes.device)[:_MAX_MASKS]
        logits = self.masks(embedding, boxes[chosen], (places.shape[0], places.shape[1]))
        return mask_loss(logits, places == chosen[:, None, None] + 1)

    def _run_countable_part(self, image: Tensor) -> Tensor:
        self.masks.adapter(self.masks.embed(image))
        if isinstance(self.detector, TorchvisionDetector):
            self.detector.features(image)
        return image.new_empty(len(image), self.num_classes, *image.shape[-2:])


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """A scalar, mean over masks of BCE + soft Dice (smooth 1); 0 where there is none, with a gradient of 0.

    logits: (n, H, W).  masks: (n, H, W) bool.
    """
    if not len(masks):
        return logits.float().sum()
    logits, masks = logits.float(), masks.float()
    bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((1, 2))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * masks).sum((1, 2)) + 1) / (p.sum((1, 2)) + masks.sum((1, 2)) + 1)
    return (bce + dice).mean()


def _sam_folder(folder: str | None) -> str:
    if folder is None:
        raise ValueError(
            "student sam_oil has no SAM; set train_saross.student.pretrained to a folder with its config.json and "
            "model.safetensors, such as a copy of the Hugging Face repository facebook/sam-vit-base (Apache-2.0)"
        )
    return folder


def _check_order(order: Sequence[int] | None, num_classes: int) -> None:
    if order is not None and (len(set(order)) != len(order) or not all(0 < one < num_classes for one in order)):
        raise ValueError(f"sam_oil.order is {order}; expected different class ids from 1 to {num_classes - 1}")


def fuse_masks(
    mask_logits: Tensor, classes: Tensor, scores: Tensor, num_classes: int, order: Sequence[int] | None = None
) -> Tensor:
    """Ordered mask fusion: class-agnostic masks with classes and scores become one class map, without parameters.

    Returns (K, H, W) log-probabilities, the largest being the fused class; those of a pixel sum to 1 as probabilities.
    mask_logits: (n, H, W), a mask claims a pixel where its logit is positive.  classes: (n,) ids from 1.
    scores: (n,) confidences in (0, 1].
    order: class ids, the first of which wins a pixel that masks of several classes claim; classes that are not named
    come after them. Within a rank, and where `order` is None among all, the mask with the higher score wins.

    What no mask claims is class 0, the sea. A pixel's certainty is c = score * sigmoid(logit) of the winning mask, or 1
    less the largest such product where none claims it; its probabilities are c for the class + (1 - c) / K for each.
    Source: Wu et al. 2024 (SAM-OIL); the certainty, which the class map does not depend on, is ours.
    """
    ranked = by_precedence(classes, scores, order)
    mask_logits, classes, scores = mask_logits[ranked].float(), classes[ranked], scores[ranked].float()
    winner, is_claimed = first_claim(mask_logits > 0)
    support = scores[:, None, None] * mask_logits.sigmoid()
    if len(classes):
        class_map = torch.where(is_claimed, classes[winner], 0)
        certainty = torch.where(is_claimed, support.gather(0, winner[None])[0], 1 - support.amax(0))
    else:
        class_map, certainty = winner, torch.ones_like(winner, dtype=torch.float32)
    certainty = certainty.clamp(1 - _LARGEST_CERTAINTY, _LARGEST_CERTAINTY)
    onehot = F.one_hot(class_map, num_classes).movedim(-1, 0)
    return (certainty * onehot + (1 - certainty) / num_classes).log()


def by_precedence(classes: Tensor, scores: Tensor, order: Sequence[int] | None) -> Tensor:
    """(n,) indices of masks, the one that wins first; equal ones stay in their order."""
    ranks = {class_id: rank for rank, class_id in enumerate(order or ())}
    keys = [(ranks.get(label, len(ranks)), -score) for label, score in zip(classes.tolist(), scores.tolist())]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64, device=classes.device)


def first_claim(claims: Tensor) -> tuple[Tensor, Tensor]:
    """(H, W) int64 index of the first mask that claims a pixel, 0 where none does; and where one does.

    claims: (n, H, W) bool.
    """
    count = len(claims)
    if count == 0:
        nothing = torch.zeros(claims.shape[1:], dtype=torch.int64, device=claims.device)
        return nothing, nothing.bool()
    # Each has a weight of its own: an argmax among equals would take any of them.
    weights = torch.arange(count, 0, -1, device=claims.device)[:, None, None]
    largest = (claims * weights).amax(0)
    return torch.where(largest > 0, count - largest, 0), largest > 0
