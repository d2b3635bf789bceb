"""What IoU, F1 and accuracy mean: one pooled confusion matrix and the scores that follow from it; and beside it objects
found by size, boundary IoU, calibration, and how sure a score or a difference of two is."""

from __future__ import annotations

from dakd.metrics.bootstrap import bootstrap, over_seeds, paired_bootstrap
from dakd.metrics.boundary import BoundaryCounts
from dakd.metrics.calibration import CalibrationCounts
from dakd.metrics.confusion import ConfusionMatrix
from dakd.metrics.objects import ObjectCounts
from dakd.metrics.scores import SegmentationScores, pooled_score, score
from dakd.metrics.tables import format_scores, format_table

__all__ = [
    "BoundaryCounts",
    "CalibrationCounts",
    "ConfusionMatrix",
    "ObjectCounts",
    "SegmentationScores",
    "bootstrap",
    "format_scores",
    "format_table",
    "over_seeds",
    "paired_bootstrap",
    "pooled_score",
    "score",
]
