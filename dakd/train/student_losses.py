"""The student's losses next to the op `seg_loss`: forms of distillation other than the paper's, and a boundary term.

The forms by which a student can learn from soft labels:

    temperature    softened cross-entropy (Hinton et al. 2015; paper, Eq. 9): the op `seg_loss`; here with a mask
    confidence     the same, each pixel weighted by how sure the teacher is of it
    standardized   the same of logits that are standardised over the classes (Sun et al. 2024)
    dist           one minus Pearson's correlation, over classes and over pixels (DIST, Huang et al. 2022)

Each takes the teacher's raw logits z (or their codes) and the student's s; each is a loss by sample, a mean over its
pixels. Of pairs that mark pixels as ignored it is a mean over the others, and the paper's form is computed here too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dakd.config import StudentLossConfig
from dakd.kernels.contract import compute_dtype

# Added to a deviation (its square to a variance): constant logits have a finite gradient, at most 1000 times as steep.
DEVIATION_FLOOR = 1e-3
# DIST's beta and gamma: the weights of its terms over classes and over pixels (Huang et al. 2022).
DIST_INTER, DIST_INTRA = 1.0, 1.0
_BOUNDARY, _TOLERANCE = 3, 5  # sides of the boundary term's windows, pixels


def distillation_loss(
    logits: Tensor,
    teacher: Tensor | None,
    teacher_row: Tensor,
    teacher_range: float | None,
    cfg: StudentLossConfig,
    counts: Tensor | None = None,
) -> Tensor:
    """(B,) losses of the form `cfg.kd_form`, 0 for real samples; fp32 (fp64 for fp64 logits); `kd_scale` is not in it.

    logits, teacher, teacher_row, teacher_range: as `seg_loss` takes them. Only the logits get a gradient.
    counts: (B, H, W) bool, the pixels that count; a sample without one has loss 0. None: all. ValueError for the form
    dist with it, and for the form temperature without: the op has that.
    """
    logits = logits.to(compute_dtype(logits.dtype))
    if teacher is None or not len(teacher):
        return logits.new_zeros(len(logits))
    z = decode_teacher(teacher, teacher_range, logits.dtype)[teacher_row.clamp_min(0)]
    if cfg.kd_form == "confidence":
        losses = confidence_weighted_kd(logits, z, cfg.temperature, counts)
    elif cfg.kd_form == "standardized":
        losses = standardized_kd(logits, z, cfg.temperature, counts)
    elif cfg.kd_form == "temperature" and counts is not None:
        losses = pixel_mean(softened_cross_entropy(logits, z, cfg.temperature), counts)
    elif cfg.kd_form == "dist" and counts is None:
        inter, intra = dist_relations((logits / cfg.temperature).softmax(1), (z / cfg.temperature).softmax(1))
        losses = DIST_INTER * inter + DIST_INTRA * intra
    else:
        fourth = "dist" if counts is None else "temperature (pixels are ignored)"
        raise ValueError(f"kd_form is {cfg.kd_form}; expected confidence, standardized or {fourth}")
    return torch.where(teacher_row < 0, 0, losses)


def kd_scale(cfg: StudentLossConfig) -> float:
    """The factor of the loss next to its weight.

    tau^2 keeps the gradients of a softened cross-entropy on the scale of the hard one's (Hinton et al. 2015; paper,
    Eq. 9). Correlations, which softening does not shrink, have 1.
    """
    return 1.0 if cfg.kd_form == "dist" else cfg.temperature**2


def check_kd_form(
    cfg: StudentLossConfig, num_classes: int, soft_range: float | None, has_ignored: bool = False
) -> list[float]:
    """The temperatures that the form softens the teacher by, for the check of its codes.

    soft_range: the nats that code 255 stands for, None for logits.  has_ignored: whether the pairs mark pixels as
    ignored. ValueError for a form that does not work with these.
    """
    if cfg.kd_form == "dist" and has_ignored:
        raise ValueError(
            f"kd_form is {cfg.kd_form}, which correlates all pixels of a class, and the pairs hold pixels that count "
            "in no loss (hard labels beside the soft ones); set it to temperature, confidence or standardized"
        )
    if cfg.kd_form == "standardized":
        if num_classes < 3:
            raise ValueError(
                "kd_form standardized has no gradient with 2 classes: their standardised logits are always 1 and "
                "-1; set it to temperature, confidence or dist"
            )
        if soft_range is not None:
            raise ValueError(
                f"kd_form standardized needs the teacher's logits; the pairs hold codes that end {soft_range:g} nats "
                "below the largest one, which changes their deviation; generate them with codec fp16"
            )
    # The teacher's confidence is taken at temperature 1, not softened.
    return [cfg.temperature, *([1.0] if cfg.kd_form == "confidence" else [])]


def decode_teacher(teacher: Tensor, teacher_range: float | None, dtype: torch.dtype) -> Tensor:
    """(Bs, K, H, W) logits, of codes those below a largest one of 0; no gradient goes to them."""
    scale = 1.0 if teacher_range is None else -teacher_range / 255
    return scale * teacher.detach().to(dtype)


def softened_cross_entropy(logits: Tensor, z: Tensor, temperature: float) -> Tensor:
    """(B, H, W): -sum_c softmax(z / tau)_c log softmax(s / tau)_c; logits s and z: (B, K, H, W)."""
    return -((z / temperature).softmax(1) * (logits / temperature).log_softmax(1)).sum(1)


def pixel_mean(values: Tensor, counts: Tensor | None = None) -> Tensor:
    """(B,) means over the pixels of (B, H, W) that count, 0 where none does.  counts: bool; None: all."""
    if counts is None:
        return values.mean((1, 2))
    # Selected and not multiplied: 0 times an infinite loss would be NaN.
    total = torch.where(counts, values, 0).sum((1, 2))
    return total / counts.sum((1, 2)).clamp_min(1)


def confidence_weighted_kd(logits: Tensor, z: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """(B,) softened cross-entropies, a pixel weighted by max_c softmax(z)_c over the sample's mean of it.

    The largest probability is the usual measure of confidence (Hendrycks & Gimpel 2017), and never 0. The weights of a
    sample average 1, so that its whole weight is that of the plain form, and only the pixels' shares differ.
    """
    confidence = z.softmax(1).amax(1)
    mean = pixel_mean(confidence, counts)
    # A sample without a pixel that counts has mean 0, and its loss is 0 whatever the weights.
    weight = confidence / torch.where(mean > 0, mean, 1)[:, None, None]
    return pixel_mean(weight * softened_cross_entropy(logits, z, temperature), counts)


def standardized_kd(logits: Tensor, z: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """(B,) softened cross-entropies of logits that have mean 0 and deviation 1 over the classes of a pixel.

    temperature: the base temperature. The student need not match how far the teacher's logits lie apart (Sun et al.
    2024); its own distances follow from the labelled samples.
    """
    return pixel_mean(softened_cross_entropy(standardize(logits, 1), standardize(z, 1), temperature), counts)


def dist_relations(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) each: 1 - Pearson's correlation of probabilities p with q, both (B, K, H, W).

    inter: over the classes of a pixel, mean over pixels.  intra: over the pixels of a class, mean over classes.
    Differences far below a thousandth count as none. Over two classes a correlation is 1 or -1: then inter has
    practically no gradient, and intra does the work.
    """
    inter = 1 - (standardize(p, 1) * standardize(q, 1)).mean(1).mean((1, 2))
    p, q = p.flatten(2), q.flatten(2)
    intra = 1 - (standardize(p, 2) * standardize(q, 2)).mean(2).mean(1)
    return inter, intra


def standardize(x: Tensor, dim: int) -> Tensor:
    """x less its mean over its deviation along `dim`; 0 where x is constant."""
    centred = x - x.mean(dim, keepdim=True)
    return centred * (centred.square().mean(dim, keepdim=True) + DEVIATION_FLOOR**2).rsqrt()


def soft_dice(
    logits: Tensor,
    teacher: Tensor | None,
    teacher_row: Tensor,
    teacher_range: float | None,
    counts: Tensor,
    form: str,
    smooth: float = 1.0,
) -> Tensor:
    """(B,) Dice losses with the soft labels over the pixels that count, by the formulas of `seg_loss`; 0 for real ones.

    counts: (B, H, W) bool.  form: "soft" or "generalized".  smooth: the op's `dice_smooth`.
    """
    logits = logits.to(compute_dtype(logits.dtype))
    if teacher is None or not len(teacher):
        return logits.new_zeros(len(logits))
    p = logits.softmax(1)
    r = decode_teacher(teacher, teacher_range, logits.dtype)[teacher_row.clamp_min(0)].softmax(1)
    overlap, predicted, actual = ((part * counts.unsqueeze(1)).sum((2, 3)) for part in (r * p, p, r))
    if form == "soft":
        losses = (1 - (2 * overlap + smooth) / (predicted + actual + smooth)).mean(1)
    else:
        # A class of less than one pixel has no weight, as in the op.
        weight = torch.where(actual >= 1, actual.clamp_min(1).square().reciprocal(), 0)
        total = (weight * (predicted + actual)).sum(1)
        ratio = 2 * (weight * overlap).sum(1) / torch.where(total > 0, total, 1)
        losses = torch.where(total > 0, 1 - ratio, 0)
    return losses.masked_fill(teacher_row < 0, 0)


def boundary_loss(logits: Tensor, labels: Tensor, teacher_row: Tensor | None = None) -> Tensor:
    """A differentiable F1 of class boundaries: (B,) losses from 0 to 1, fp32 (fp64 for fp64 logits).

        b(v) = v - erosion_3x3(v)                  inner boundary of a class map v in [0, 1]
        P    = (sum b(p) dilation_5x5(b(y)) + 1) / (sum b(p) + 1)
        R    = (sum b(y) dilation_5x5(b(p)) + 1) / (sum b(y) + 1)
        loss = mean over classes of 1 - 2 P R / (P + R)

    with p = softmax(logits) and y the one-hot mask. It is CBD-Net's boundary term, for any student: the form and the
    windows are those of its public code, after Bokhovkin and Burnaev 2019. Inferred here: the term is added, with a
    weight, to the other losses (there it multiplies them); it is one of each sample; and each sum counts one pixel
    more, so that a class that is absent from both has no loss, and one that is predicted where there is none has some.

    A sample without a labelled pixel, or with soft labels, has loss 0 and no gradient.

    logits: (B, K, H, W).  labels: (B, H, W) class ids; any other number marks a pixel without a label.
    teacher_row: (B,) int64, -1 for samples with labels of their own; None when all are such.

    A pixel that has none but labelled pixels around it is compared; so an unlabelled one has no gradient.
    """
    num_classes = logits.shape[1]
    label = labels.to(torch.int64)
    is_labelled = (label >= 0) & (label < num_classes)
    if teacher_row is not None:
        is_labelled &= (teacher_row < 0)[:, None, None]
    p = logits.to(compute_dtype(logits.dtype)).softmax(dim=1)
    y = torch.zeros_like(p).scatter_(1, (label * is_labelled).unsqueeze(1), 1)
    counts = _eroded(is_labelled.unsqueeze(1).to(p.dtype), _BOUNDARY)
    predicted, actual = ((v - _eroded(v, _BOUNDARY)) * counts for v in (p, y))
    precision = _share(predicted, _dilated(actual, _TOLERANCE))
    recall = _share(actual, _dilated(predicted, _TOLERANCE))
    return (1 - 2 * precision * recall / (precision + recall)).mean(dim=1)


def _share(boundary: Tensor, near: Tensor) -> Tensor:
    """(B, K): how much of a boundary lies where `near` is."""
    return ((boundary * near).sum(dim=(2, 3)) + 1) / (boundary.sum(dim=(2, 3)) + 1)


def _dilated(v: Tensor, window: int) -> Tensor:
    """The largest of the window's pixels that lie in the image."""
    return F.max_pool2d(v, window, stride=1, padding=window // 2)


def _eroded(v: Tensor, window: int) -> Tensor:
    return -_dilated(-v, window)
